"""Features of a frozen vision backbone on disk: a folder that any number of processes reads and writes at once.

    DIR/entries/<recipe>/recipe.json      what made the features of this group: encoder, transform, precision
    DIR/entries/<recipe>/abc/abc....feat  the features of one clip (feature_cache_entry.py), 4096 folders a group
    DIR/notes/abc/abc...                  what is remembered of media (feature_cache_notes.py)
    DIR/partial/                          files that are being written
    DIR/size                              bytes and number of entries, kept under a lock

A key is a hash of the recipe (hash of the encoder's weights and build, image spec, resize strategy, precision kept),
the medium's content, its decoder and its frame numbers. What changes any of them asks for another key, so nothing
stale is ever found: a group of another recipe only takes room, and may be deleted by hand at any time.

Owns the folder. Knows no model class: what computes features hands them to feature_cache_writer.py.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prismatic.data.feature_cache_entry import DTYPES, DamagedEntryError, entry_bytes, read_entry, write_entry
from prismatic.data.feature_cache_notes import Notes, digest
from prismatic.data.feature_cache_size import SizeCount, entries

RECIPE_VERSION = 1
"""To be raised when decoding, sampling or resizing changes what pixels come out of the same settings."""

_ABANDONED_SECONDS = 3600


class FeatureCacheError(ValueError):
    """The feature cache cannot be used so. The text says which flag to change."""


@dataclass
class FeatureCache:
    """One cache folder, for one recipe once `bind` has said which.

    root: the folder, made when it is not there. dtype: precision that features are kept in, a name of DTYPES. limit:
    bytes of all entries above which nothing is added; None: none. Raises FeatureCacheError when the folder cannot be
    made. A folder that cannot be written is read.
    """

    root: Path
    dtype: str = "bfloat16"
    limit: int | None = None
    group: Path | None = field(default=None, init=False)
    recipe: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.root = self.root.absolute()
        self.notes = Notes(self.root / "notes")
        self.size = SizeCount(self.root, self.limit)
        try:
            for folder in ("entries", "notes", "partial"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not (self.root / "entries").is_dir():
                raise FeatureCacheError(
                    f"--dataset.feature_cache {self.root} cannot be made ({error.strerror}); name a folder that can"
                ) from error
        self._sweep()

    @property
    def torch_dtype(self) -> torch.dtype:
        """Precision that features are kept in."""
        return DTYPES[self.dtype]

    def bind(self, recipe: Mapping[str, Any]) -> None:
        """Say what makes the features: every value that they depend on beside the clip. Before the first key."""
        full = {"version": RECIPE_VERSION, "dtype": self.dtype, **recipe}
        self.recipe = digest(full)
        self.group = self.root / "entries" / self.recipe[:16]
        with suppress(OSError):  # of a folder that can only be read
            self.group.mkdir(exist_ok=True)
            path = self.group / "recipe.json"
            if not path.exists():
                partial = self._partial("recipe")
                partial.write_text(json.dumps(full, indent=1, sort_keys=True), encoding="utf-8")
                os.replace(partial, path)

    def key(self, content: str, *frames: Any) -> str:
        """The name of a clip's features. frames: decoder and frame numbers, or what else picks pixels of a content."""
        assert self.recipe, "bind() comes first"
        return digest(self.recipe, content, frames)

    def get(self, key: str) -> torch.Tensor | None:
        """Features [T, P, Dv] of a key; None when there are none.

        Raises DamagedEntryError, once: the entry is removed, so that it is computed again.
        """
        path = self._path(key)
        try:
            return read_entry(path, key)
        except FileNotFoundError:
            return None
        except DamagedEntryError:
            with suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                self.size.release(size)
            raise
        except OSError as error:
            raise DamagedEntryError(f"{path} cannot be read ({error.strerror or error})") from error

    def put(self, key: str, features: torch.Tensor) -> int:
        """Keep features [T, P, Dv] of dtype `torch_dtype`; returns the bytes added, 0 when they are there already.

        Raises CacheFullError at the limit, OSError when the disk is full or cannot be written.
        """
        path = self._path(key)
        if path.exists():
            return 0
        size = entry_bytes(tuple(features.shape), features.dtype)
        self.size.reserve(size)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return write_entry(path, self._partial(key), key, features)
        except OSError:
            with suppress(OSError):
                self.size.release(size)
            raise

    def num_entries(self) -> int:
        """Entries of this recipe."""
        return sum(1 for _ in entries(self.group)) if self.group is not None and self.group.is_dir() else 0

    def _path(self, key: str) -> Path:
        assert self.group is not None, "bind() comes first"
        return self.group / key[:3] / f"{key}.feat"

    def _partial(self, name: str) -> Path:
        who = f"{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}"
        return self.root / "partial" / f"{name}-{who}"

    def _sweep(self) -> None:
        """Remove what killed writers left behind, an hour later: another machine may be writing now."""
        with suppress(OSError):
            for entry in os.scandir(self.root / "partial"):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry.path)
