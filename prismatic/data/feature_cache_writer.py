"""Puts features into the cache on a thread of its own, and says once what it cannot put there."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

import torch

from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_size import CacheFullError

log = logging.getLogger(__name__)

WAITING_CLIPS = 32
"""Each may be tens of MB. A disk that cannot keep up has to slow the first epoch down at some point."""


class FeatureWriter:
    """Keeps features on a thread of its own, so that training does not wait for the disk.

    What cannot be kept (limit reached, disk full, a number that the precision cannot hold) is said once and counted,
    and never stops a run. stored: clips written; added: their bytes; refused: clips not kept.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache
        self.stored = self.added = self.refused = 0
        self._closed = False
        self._said: set[str] = set()
        self._queue: queue.Queue[tuple[str, torch.Tensor]] | None = None
        self._thread: threading.Thread | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision that features are kept in."""
        return self.cache.torch_dtype

    @property
    def full(self) -> bool:
        """Whether nothing more can be kept."""
        return self._closed

    def keep(self, keys: Sequence[str], clips: Sequence[torch.Tensor]) -> None:
        """Take the features [T, P, Dv] of clips over, for the disk; a key "" is not kept. They are copied here."""
        if self._closed:
            self.refused += len(keys)
            return
        for key, features in zip(keys, clips, strict=True):
            if key:
                self._start().put((key, features.detach().to("cpu", self.dtype, copy=True)))

    def flush(self) -> None:
        """Wait until everything taken over so far is on disk, or refused."""
        if self._queue is not None:
            self._queue.join()

    def _start(self) -> queue.Queue[tuple[str, torch.Tensor]]:
        # Started with the first clip, hence after the reading processes of the training data were forked.
        if self._queue is None:
            self._queue = queue.Queue(maxsize=WAITING_CLIPS)
            self._thread = threading.Thread(target=self._work, args=(self._queue,), name="feature-cache", daemon=True)
            self._thread.start()
        return self._queue

    def _work(self, jobs: queue.Queue[tuple[str, torch.Tensor]]) -> None:
        while True:
            key, features = jobs.get()
            try:
                self._write(key, features)
            finally:
                jobs.task_done()

    def _write(self, key: str, features: torch.Tensor) -> None:
        if self._closed:
            self.refused += 1
            return
        try:
            if not bool(torch.isfinite(features).all()):
                self._refuse(f"features that {self.cache.dtype} cannot hold (or are not finite) are not kept")
                return
            size = self.cache.put(key, features)
            self.stored += size > 0
            self.added += size
        except CacheFullError as error:
            self._closed = True
            self._refuse(
                f"the limit is reached ({error}): nothing more is added, what is there goes on being used, other clips "
                "are decoded and encoded each time; raise --dataset.feature_cache_limit, or delete groups of other "
                f"recipes below {self.cache.root / 'entries'}"
            )
        except OSError as error:
            self._closed = True
            self._refuse(f"cannot be written ({error.strerror or error}): nothing more is added by this process")

    def _refuse(self, why: str) -> None:
        self.refused += 1
        if why not in self._said:
            self._said.add(why)
            log.warning("Feature cache %s: %s", self.cache.root, why)
