"""`--dataset.weave.*`: the clips that training weaves, from a catalog or an annotation file, and what is asked of them.

Which of them may meet is `online_clusters.py`; how they become examples is `prismatic.data.weave`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic.conf.data import DatasetConfig, OnlineWeaveConfig
from prismatic.data.annotations import AnnotationError, RecordTable, load_records
from prismatic.data.media_paths import MediaRoot
from prismatic.data.weave import Recipe, WovenEpochs
from prismatic.types import Medium, Record, Turn
from prismatic.webvid.catalog import read_catalog
from prismatic.webvid.cluster import METHODS
from prismatic.webvid.durations import read_durations
from prismatic.webvid.files import read_text
from prismatic.webvid.forms import FORMS
from prismatic.webvid.online_clusters import find_clusters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """What can be woven. records: one medium and one caption each. durations: seconds, NaN where unknown, or None."""

    records: Sequence[Record]
    durations: NDArray[np.float32] | None
    name: str


def weave_epochs(data: DatasetConfig, stage: str, *, seed: int, num_frames: int) -> WovenEpochs:
    """The rows of every epoch of a dataset with `--dataset.weave.videos_per_example`; every process calls it.

    num_frames: frames of an example unless --dataset.weave.total_frames says otherwise. Raises ValueError naming the
    flag or the file for what cannot be woven.
    """
    options = data.weave
    files, media_root = data.components(stage)
    if len(files) != 1:
        raise ValueError(
            "--dataset.weave makes another weave of the same clips for every epoch, so it takes one file of clips; the "
            f"dataset names {len(files)}"
        )
    form = FORMS.get(options.form)
    METHODS.get(options.method)
    clips = read_clips(files[0], media_root)
    recipe = Recipe(
        form=form,
        prompts=_prompts(options),
        total_frames=options.total_frames or num_frames,
        videos_per_example=options.videos_per_example or options.curriculum[-1],
        curriculum=options.curriculum,
    )
    epochs = WovenEpochs(
        clips.records,
        find_clusters(options, clips.records, recipe, seed, clips.name),
        recipe,
        seed=seed,
        durations=clips.durations,
        name=clips.name,
    )
    told = ", ".join(f"{len(rows)} of {recipe.videos(epoch)}" for epoch, rows in enumerate(epochs))
    log.info("%s: %d clips woven anew in every epoch (%s): %s", files[0], len(clips.records), options.method, told)
    return epochs


def read_clips(file: Path, media_root: Path | str) -> Clips:
    """Clips of a catalog (.parquet; rows with status ok) or of an annotation file with one clip a row.

    Raises AnnotationError, naming file and row, for a row that is not one clip with a question and a caption.
    """
    if file.suffix == ".parquet":
        found = read_catalog(file)
        rows = found.usable()
        if not len(rows):
            raise ValueError(f"{file}: no row of this catalog has status ok")
        durations = read_durations(file)[rows]
        videos, above = found.videos.resolve(), Path(media_root).resolve()
        # A media folder that does not hold the catalog's videos is a copy elsewhere: the paths are as in the catalog.
        prefix = videos.relative_to(above).as_posix() if videos.is_relative_to(above) else "."
        root = MediaRoot(media_root)

        def records() -> Iterator[Record]:
            columns = (column.take(rows) for column in (found.ids, found.paths, found.captions))
            for row, clip_id, path, caption in zip(rows.tolist(), *columns, strict=True):
                medium = Medium("video", (root.resolve(f"{prefix}/{path}".removeprefix("./")),))
                turns = (Turn("human", "<video>"), Turn("gpt", caption))
                yield Record(clip_id, (medium,), turns, f"{file}, row {row + 1}")

        return Clips(RecordTable(records()), durations, str(file))
    table = load_records(file, media_root)
    for record in table:
        if len(record.media) != 1 or [turn.role for turn in record.turns] != ["human", "gpt"]:
            raise AnnotationError(
                f"{record.source}: --dataset.weave needs one clip and one answer, its caption, in each row; this one "
                f"has {len(record.media)} media and {len(record.turns)} turns"
            )
    return Clips(table, None, str(file))


def _prompts(options: OnlineWeaveConfig) -> tuple[str, ...]:
    if options.prompts is None:
        return (options.prompt,)
    lines = (" ".join(line.split()) for line in read_text(options.prompts, "--dataset.weave.prompts").splitlines())
    prompts = tuple(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise ValueError(f"--dataset.weave.prompts {options.prompts} holds no question")
    return prompts


def refuse_shared_clips(woven: WovenEpochs, held_out: Sequence[Sequence[Record]]) -> None:
    """Raises ValueError when a clip that is woven for training is also in the validation data, by its file."""
    # Woven validation rows leave out a rest of the clips, a different one each epoch: all its clips count.
    epochs = [held_out.clips] if isinstance(held_out, WovenEpochs) else held_out
    theirs = {path for rows in epochs for record in rows for medium in record.media for path in medium.paths}
    shared = [clip.id for clip in woven.clips if not theirs.isdisjoint(clip.media[0].paths)]
    if shared:
        raise ValueError(
            f"{len(shared)} clips of {woven.name} are also in the validation data, the first: {', '.join(shared[:5])}; "
            "woven training examples must not show them (`webvid.py split` makes two catalogs that share none)"
        )
