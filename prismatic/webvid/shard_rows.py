"""Which shard holds which clip, for annotation rows that name clips in shards: `weave --frames SHARDS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prismatic.video.shards import read_index
from prismatic.webvid.tar_shards import PLAN, read_outcome, read_plan


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards: a plan of `extract`, or any tar file."""
    return (folder / PLAN).is_file() or any(folder.glob("*.tar"))


def find_shards(folder: Path) -> dict[str, str]:
    """id -> "000000.tar#id", relative to the folder, for every clip that is there.

    By the plan of `extract`; shards of other tools are looked through. Raises MediaError for a tar that is none.
    """
    if not (folder / PLAN).is_file():
        tars = sorted(tar.name for tar in folder.glob("*.tar"))
        return {clip_id: f"{name}#{clip_id}" for name in tars for clip_id in read_index(str(folder / name))}
    found: dict[str, str] = {}
    for shard in read_plan(folder):
        outcome = read_outcome(folder, shard.number)
        found.update({clip_id: f"{shard.name}#{clip_id}" for clip_id in (outcome[0] if outcome else ())})
    return found


def shard_rows(folder: Path, prefix: str) -> Callable[[list[str], list[int]], tuple[dict[str, Any], str]]:
    """(ids, frames of each) -> (columns of a row, placeholders that open its question), as `weave` asks for them.

    prefix: what stands before the paths. Raises ValueError for a clip that no shard holds.
    """
    shards = find_shards(folder)

    def columns(ids: list[str], frames: list[int]) -> tuple[dict[str, Any], str]:
        missing = [clip_id for clip_id in ids if clip_id not in shards]
        if missing:
            raise ValueError(f"--frames {folder}: no shard holds {', '.join(missing)}; `webvid.py extract` makes them")
        even = len(set(frames)) == 1
        counts = frames[0] if even else frames
        return {"videos": [prefix + shards[i] for i in ids], "num_frames_per_video": counts}, "<video>\n" * len(ids)

    return columns
