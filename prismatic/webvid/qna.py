"""`webvid.py qna`: typed question files -> training rows, a chosen number of each type for each video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from prismatic.conf.webvid_rows import QnaConfig
from prismatic.data.media_paths import MediaRoot
from prismatic.webvid.catalog import Catalog, read_catalog
from prismatic.webvid.files import write_rows
from prismatic.webvid.questions import Questions, read_questions
from prismatic.webvid.rows import listed, matching_files, share
from prismatic.webvid.shard_rows import is_shard_folder, shard_names
from prismatic.webvid.texts import PIECE, Rows
from prismatic.webvid.weave import below, read_frame_folder


def qna(cfg: QnaConfig) -> str:
    """Write cfg.output and return a summary with the coverage. Raises ValueError for input that cannot be used."""
    cfg.validate()
    found = read_catalog(cfg.catalog)
    entries = read_questions(matching_files(cfg.questions, "--questions"), found, cfg.types)
    skipped = listed([f"{count:,} {reason}" for reason, count in entries.skipped.most_common() if count])
    unknown = [kind for kind in cfg.types if kind not in entries.names]
    if unknown or not len(entries.rows):
        raise ValueError(
            f"--questions {cfg.questions}: no usable entry"
            + (f" of type {', '.join(unknown)}" if unknown else "")
            + f" (left out: {skipped or 'nothing'})"
        )
    chosen = _chosen(entries, cfg)
    written = write_rows(cfg.output, _rows(entries, chosen, found, _media(cfg, found)))
    counts = np.bincount(entries.kinds[chosen], minlength=len(entries.names)).tolist()
    videos = Counter(np.unique(entries.rows * len(entries.names) + entries.kinds) % len(entries.names))
    told = [f"{counts[i]:,} {name} (of {videos[i]:,} videos)" for i, name in enumerate(entries.names)]
    about = share(len(np.unique(entries.rows)), len(found.usable()))
    lines = [
        f"{cfg.output}: {written:,} rows about {about} usable videos of the catalog",
        f"  {', '.join(told)}",
        *([f"  entries left out: {skipped}"] if skipped else []),
    ]
    return "\n".join(lines)


def _chosen(entries: Questions, cfg: QnaConfig) -> Rows:
    """Up to per_type entries of each type for each video, drawn where there are more; all in a drawn order."""
    rng = np.random.default_rng(cfg.seed)
    # Sorted by video, type and a drawn number: the first ones of each group are the draw.
    order = np.lexsort((rng.random(len(entries.rows)), entries.kinds, entries.rows))
    groups = entries.rows[order] * len(entries.names) + entries.kinds[order]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    place_in_group = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return rng.permutation(order[place_in_group < cfg.per_type])


Media = Callable[[Rows, list[str]], list[dict[str, Any]]]
"""(rows of the catalog, their ids) -> the media columns of the annotation row of each."""


def _rows(entries: Questions, chosen: Rows, found: Catalog, media: Media) -> Iterator[dict[str, Any]]:
    for start in range(0, len(chosen), PIECE):
        piece = chosen[start : start + PIECE]
        rows, kinds = entries.rows[piece], entries.kinds[piece].tolist()
        ids = list(found.ids.take(rows))
        texts = zip(list(entries.questions.take(piece)), list(entries.answers.take(piece)), strict=True)
        for video_id, columns, kind, (question, answer) in zip(ids, media(rows, ids), kinds, texts, strict=True):
            yield {
                "id": video_id,
                "type": entries.names[kind],
                **columns,
                "conversations": [
                    {"from": "human", "value": f"<video>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }


def _media(cfg: QnaConfig, found: Catalog) -> Media:
    frames = {} if cfg.num_frames is None else {"num_frames_per_video": cfg.num_frames}
    if cfg.frames is None:
        prefix = below(found.videos, cfg.media_root or found.videos, "the catalog's videos")
        return lambda rows, _: [{"videos": [prefix + path], **frames} for path in found.paths.take(rows)]
    prefix = below(cfg.frames, cfg.media_root or cfg.frames, "--frames")
    if is_shard_folder(cfg.frames):
        named = shard_names(cfg.frames, prefix, found.ids)
        return lambda rows, ids: [{"videos": [name], **frames} for name in named(rows, ids)]
    root, count = MediaRoot(cfg.frames), cfg.num_frames
    assert count is not None

    def columns(video_id: str) -> dict[str, Any]:
        return {"frames": [prefix + file for file in read_frame_folder(root, video_id).uniform(count)]}

    return lambda _, ids: [columns(video_id) for video_id in ids]
