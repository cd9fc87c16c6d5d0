"""Which shard holds which clip, for annotation rows that name clips in shards: `weave --frames SHARDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from prismatic.data.media_paths import MediaPathError, MediaRoot
from prismatic.video.shards import read_index
from prismatic.webvid.rows import listed
from prismatic.webvid.tar_shards import PLAN, read_outcome, read_plan
from prismatic.webvid.texts import Rows, Texts


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards: a plan of `extract`, or any tar file."""
    return (folder / PLAN).is_file() or any(folder.glob("*.tar"))


def find_shards(folder: Path) -> tuple[Texts, Rows, list[str]]:
    """(ids of all clips that are there, the number of the shard of each, names of the shards).

    By the plan of `extract`; shards of other tools are looked through. Raises MediaError for a tar that is none.
    """
    names: list[str] = []
    counts: list[int] = []
    root = MediaRoot(folder)

    def inside(name: str) -> str:
        try:
            return root.resolve(f"{name}#").removesuffix("#")
        except MediaPathError as error:
            raise ValueError(f"--frames {folder}: {name} or its index is a link that leaves the folder") from error

    def ids() -> Iterator[str]:
        if (folder / PLAN).is_file():
            made = ((inside(shard.name), read_outcome(folder, shard.number)) for shard in read_plan(folder))
            found = ((Path(tar).name, outcome[0] if outcome else []) for tar, outcome in made)
        else:
            found = ((tar.name, list(read_index(inside(tar.name)))) for tar in sorted(folder.glob("*.tar")))
        for name, clips in found:
            names.append(name)
            counts.append(len(clips))
            yield from clips

    clips = Texts.of(ids())
    return clips, np.repeat(np.arange(len(names)), counts), names


def shard_names(folder: Path, prefix: str, ids: Texts) -> Callable[[Rows, list[str]], list[str]]:
    """(numbers of some of `ids`, those ids) -> "PREFIX000000.tar#ID" for each.

    Of a clip that was extracted twice the later shard counts. Raises ValueError for a clip that no shard holds.
    """
    clips, shards, names = find_shards(folder)
    # `places` finds the first of two: the last shard has to come first.
    backwards = np.arange(len(clips))[::-1]
    places = clips.take(backwards).places(ids)
    shard_of = np.where(places < 0, -1, shards[::-1][places]).astype(np.int32) if len(clips) else places

    def named(rows: Rows, wanted: list[str]) -> list[str]:
        numbers = shard_of[rows].tolist()
        if -1 in numbers:
            missing = listed(list(dict.fromkeys(i for i, n in zip(wanted, numbers, strict=True) if n < 0)))
            raise ValueError(f"--frames {folder}: no shard holds {missing}; `webvid.py extract` makes them")
        return [f"{prefix}{names[number]}#{i}" for i, number in zip(wanted, numbers, strict=True)]

    return named
