"""`--dataset.weave.*`: the clips and clusters that training weaves, from a catalog or an annotation file.

Owns where clips and clusters come from; how they become examples is `prismatic.data.weave`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismatic import dist
from prismatic.conf.data import DatasetConfig, OnlineWeaveConfig
from prismatic.data.annotations import AnnotationError, RecordTable, load_records
from prismatic.data.media_paths import MediaRoot
from prismatic.data.weave import Clusters, Recipe, WovenEpochs
from prismatic.types import Medium, Record, Turn
from prismatic.webvid.catalog import read_catalog
from prismatic.webvid.cluster import LEFT_OUT, METHODS, Videos, read_embeddings
from prismatic.webvid.durations import read_durations
from prismatic.webvid.files import read_rows, read_text, whole_file
from prismatic.webvid.forms import FORMS

log = logging.getLogger(__name__)

CACHE = ".weave"
"""Folder beside embeddings.npy that keeps the clusters made of it: a run that goes on does not make them again."""


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
        find_clusters(options, clips, recipe, seed),
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
        rows = list(found.usable().values())
        if not rows:
            raise ValueError(f"{file}: no row of this catalog has status ok")
        durations = np.array([np.nan if d is None else d for d in read_durations(file)], np.float32)[rows]
        videos, above = found.videos.resolve(), Path(media_root).resolve()
        # A media folder that does not hold the catalog's videos is a copy elsewhere: the paths are as in the catalog.
        prefix = videos.relative_to(above).as_posix() if videos.is_relative_to(above) else "."
        root = MediaRoot(media_root)

        def records() -> Iterator[Record]:
            for row in rows:
                medium = Medium("video", (root.resolve(f"{prefix}/{found.paths[row]}".removeprefix("./")),))
                turns = (Turn("human", "<video>"), Turn("gpt", found.captions[row]))
                yield Record(found.ids[row], (medium,), turns, f"{file}, row {row + 1}")

        return Clips(RecordTable(records()), durations, str(file))
    table = load_records(file, media_root)
    for record in table:
        if len(record.media) != 1 or [turn.role for turn in record.turns] != ["human", "gpt"]:
            raise AnnotationError(
                f"{record.source}: --dataset.weave needs one clip and one answer, its caption, in each row; this one "
                f"has {len(record.media)} media and {len(record.turns)} turns"
            )
    return Clips(table, None, str(file))


@dataclass(frozen=True)
class ClusterTables:
    """Clusters by L where there are such, otherwise tables that epochs take in turn. Clip numbers [C, size] each."""

    in_turn: tuple[NDArray[np.int32], ...]
    by_size: dict[int, NDArray[np.int32]] = field(default_factory=dict)

    def __call__(self, epoch: int, size: int) -> NDArray[np.int32]:
        """The clusters of an epoch whose examples have `size` clips."""
        found = self.by_size.get(size)
        return self.in_turn[epoch % len(self.in_turn)] if found is None else found


def find_clusters(options: OnlineWeaveConfig, clips: Clips, recipe: Recipe, seed: int) -> Clusters:
    """Which clips may meet, by epoch and L."""
    everyone = np.arange(len(clips.records), dtype=np.int32)
    if options.clusters is None:
        return ClusterTables((everyone[None, :],))
    places = {record.id: place for place, record in enumerate(clips.records)}
    if len(places) < len(clips.records):
        raise ValueError(f"{clips.name}: two clips have the same id; clusters tell clips apart by their ids")
    files = options.clusters if isinstance(options.clusters, list) else [options.clusters]
    sizes = sorted({recipe.videos(epoch) for epoch in range(len(recipe.curriculum) + 1)} - {1})
    if files[0].is_dir():
        if len(files) > 1:
            raise ValueError("--dataset.weave.clusters takes several clusters files, but one folder of embeddings")
        tables = {size: _embedded(files[0], options.method, places, size, seed) for size in sizes}
        return ClusterTables((everyone[None, :],), tables)
    read = [_from_file(file, places, clips.name) for file in files]
    for file, table in zip(files, read, strict=True):
        for size in sizes:
            if table.shape[1] % size:
                raise ValueError(
                    f"--dataset.weave.clusters {file}: clusters of {table.shape[1]} cannot be cut into examples of "
                    f"{size} clips; make them with `webvid.py cluster --videos_per_cluster {size}` (or a multiple)"
                )
    return ClusterTables(tuple(read))


def _from_file(file: Path, places: dict[str, int], name: str) -> NDArray[np.int32]:
    """Clip numbers [C, size] of a clusters file."""
    members: dict[str, list[int]] = {}
    unknown = []
    for number, row in enumerate(read_rows(file, "--dataset.weave.clusters"), start=1):
        if "video_id" not in row or "cluster" not in row:
            raise ValueError(f"--dataset.weave.clusters {file}: row {number} lacks video_id or cluster")
        place = places.get(str(row["video_id"]))
        if place is None:
            unknown.append(str(row["video_id"]))
        else:
            members.setdefault(str(row["cluster"]), []).append(place)
    if unknown:
        # A clustering of training and validation clips together would put them into one example.
        raise ValueError(
            f"--dataset.weave.clusters {file}: {len(unknown)} of its videos are no clips of {name}, the first: "
            f"{', '.join(unknown[:5])}; cluster the very clips that are woven"
        )
    lengths = sorted({len(cluster) for cluster in members.values()})
    if len(lengths) != 1:
        raise ValueError(f"--dataset.weave.clusters {file}: expected clusters of one size, got sizes {lengths}")
    return np.array(list(members.values()), dtype=np.int32)


def _embedded(folder: Path, method: str, places: dict[str, int], size: int, seed: int) -> NDArray[np.int32]:
    """Clip numbers [C, size] of clusters made of embeddings, by process 0 for all, and kept for the next start."""
    ids, matrix = read_embeddings(folder)
    rows = [row for row, video_id in enumerate(ids) if video_id in places]
    if len(rows) < size:
        raise ValueError(
            f"--dataset.weave.clusters {folder}: {len(rows)} of its ids are clips that are woven; examples of {size} "
            "need more"
        )
    if len(rows) < len(places):
        log.warning(
            "%d of %d clips have no embedding in %s and are not woven", len(places) - len(rows), len(places), folder
        )
    kept = [ids[row] for row in rows]
    digest = hashlib.blake2b(np.ascontiguousarray(matrix).data, digest_size=12)
    digest.update("\n".join([str(len(matrix)), method, str(size), str(seed), *kept]).encode())
    cache = folder / CACHE / f"{method}-L{size}-{digest.hexdigest()}.npy"
    labels, problem = None, None
    if dist.rank_zero():
        try:
            labels = _cached(cache, len(kept))
            if labels is None:
                log.info("clustering %d clips by %d (%s) ...", len(kept), size, method)
                chosen = matrix if len(rows) == len(ids) else matrix[rows]
                labels = METHODS.get(method)(Videos(kept, [""] * len(kept), chosen), size, seed)
                _keep(cache, labels)
        except ValueError as error:
            problem = error
    dist.raise_together(problem)
    labels = dist.broadcast_object(labels)
    assert labels is not None
    order = np.argsort(labels, kind="stable")
    numbers = np.array([places[video_id] for video_id in kept], dtype=np.int32)
    return numbers[order[labels[order] != LEFT_OUT]].reshape(-1, size)


def _cached(cache: Path, count: int) -> NDArray[np.int64] | None:
    if not cache.is_file():
        return None
    try:
        labels = np.load(cache, allow_pickle=False)
    except (ValueError, EOFError) as error:
        log.warning("%s cannot be read (%s); the clusters are made again", cache, error)
        return None
    return labels if labels.shape == (count,) else None


def _keep(cache: Path, labels: NDArray[np.int64]) -> None:
    try:
        with whole_file(cache, "wb") as file:
            np.save(file, labels)
    except OSError as error:
        log.warning("%s cannot be written (%s); the next start makes these clusters again", cache, error.strerror)


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
