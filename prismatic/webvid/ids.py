"""`webvid.py ids`: the ids of a catalog, a clusters file or annotation rows, for other tools and `extract --ids`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from prismatic.conf.webvid_rows import IdsConfig
from prismatic.webvid.catalog import usable_rows
from prismatic.webvid.files import clear_dead, iter_rows, whole_file
from prismatic.webvid.rows import ids_of


def ids(cfg: IdsConfig) -> str:
    """Write cfg.output and return a summary. Raises ValueError for input that cannot be used, or has no id."""
    cfg.validate()
    found = (row.id for row in usable_rows(cfg.catalog)) if cfg.catalog is not None else _of_rows(cfg)
    lines = cfg.output.suffix == ".txt"
    count = 0
    clear_dead(cfg.output)
    with whole_file(cfg.output) as file:
        for video_id in found:
            if lines and "\n" in video_id:
                raise ValueError(f"the id {video_id!r} holds a line end; write a .json --output")
            text = video_id if lines else ("[\n" if count == 0 else ",\n") + json.dumps(video_id, ensure_ascii=False)
            file.write(text + "\n" * lines)
            count += 1
        if not count:
            raise ValueError(f"{cfg.catalog or cfg.annotations} names no usable video")
        file.write("" if lines else "\n]\n")
    return f"{cfg.output}: the ids of {count:,} videos"


def _of_rows(cfg: IdsConfig) -> Iterator[str]:
    """Each id once, in the order in which rows first name it."""
    assert cfg.annotations is not None
    seen: set[str] = set()
    for number, row in enumerate(iter_rows(cfg.annotations, "--annotations"), start=1):
        name = row.get("video_id", row.get("id"))
        if name is None:
            raise ValueError(f"--annotations {cfg.annotations}: row {number} has neither video_id nor id")
        named = [str(name)] if "video_id" in row else ids_of(str(name))
        for video_id in named:
            if video_id not in seen:
                seen.add(video_id)
                yield video_id
