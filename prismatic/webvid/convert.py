"""`webvid.py convert`: image rows -> clips of n pictures, each conversation with its own picture among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid_rows import ConvertConfig
from prismatic.video.decode import is_video
from prismatic.webvid.files import read_rows, write_rows
from prismatic.webvid.rows import turns_of

OTHER_MEDIA = ("images", "video", "videos", "frames")


def convert(cfg: ConvertConfig) -> str:
    """Write cfg.output and return a summary. Raises ValueError for input that cannot be used."""
    cfg.validate()
    rows = read_rows(cfg.annotations, "--annotations")
    for number, row in enumerate(rows, start=1):
        turns_of(row, f"--annotations {cfg.annotations}, row {number}")
    pictures = [number for number, row in enumerate(rows) if _is_picture(row)]
    if not pictures:
        raise ValueError(f"--annotations {cfg.annotations}: no row has one `image`")
    if len({rows[number]["image"] for number in pictures}) < cfg.num_frames:
        raise ValueError(f"--num_frames {cfg.num_frames} is more than the pictures of --annotations {cfg.annotations}")
    rng = np.random.default_rng(cfg.seed)
    if cfg.shuffle:
        pictures = [pictures[i] for i in rng.permutation(len(pictures)).tolist()]
    made = 0

    def out() -> Iterator[dict[str, Any]]:
        nonlocal made
        groups = _groups(pictures, cfg.num_frames)
        first_of = {group[0]: (group, own) for group, own in groups}
        members = {number for group, own in groups for number in group[:own]}
        for number, row in enumerate(tqdm(rows, unit="row", desc="convert")):
            if number in first_of:
                group, own = first_of[number]
                for made_row in _clips(rows, group, own, cfg, rng):
                    made += 1
                    yield made_row
            elif number not in members:
                yield row

    written = write_rows(cfg.output, out())
    return (
        f"{cfg.output}: {written:,} rows: {made:,} clips of {cfg.num_frames} pictures from {len(pictures):,} image "
        f"rows, {written - made:,} other rows as they were"
    )


def _groups(pictures: list[int], size: int) -> list[tuple[list[int], int]]:
    """(row numbers of a group, how many of them are its own): the last one is filled up from those before it."""
    groups = [(pictures[start : start + size], size) for start in range(0, len(pictures), size)]
    last = groups[-1][0]
    if len(last) < size:
        filled = [*last, *(n for n in reversed(pictures) if n not in last)][:size]
        groups[-1] = (filled, len(last))
    return groups


def _clips(
    rows: list[dict[str, Any]], group: list[int], own: int, cfg: ConvertConfig, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The conversations of the first `own` rows, each with the pictures of all turned so that its own is at `place`."""
    images = [rows[number]["image"] for number in group]
    for mine in range(own):
        places = range(len(images)) if cfg.orders == "all" else [int(rng.integers(len(images)))]
        for place in places:
            # A turned list is as good an order as any, and has the own picture in each place exactly once.
            turned = [images[(mine - place + k) % len(images)] for k in range(len(images))]
            row = {name: value for name, value in rows[group[mine]].items() if name != "image"}
            conversations = row.pop("conversations")
            yield {**row, "frames": turned, "conversations": [dict(turn) for turn in conversations]}


def _is_picture(row: dict[str, Any]) -> bool:
    image = row.get("image")
    return isinstance(image, str) and not is_video(image) and not any(row.get(name) for name in OTHER_MEDIA)
