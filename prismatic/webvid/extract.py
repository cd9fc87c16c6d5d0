"""`webvid.py extract`: the frames of every usable video as pictures, in folders or in shards.

Owns what is done already, what is left, and the list of failures. How frames are stored is the jobs' business.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jsonlines
from tqdm import tqdm

from prismatic.conf.webvid_media import ExtractConfig
from prismatic.video.sampling import SAMPLERS
from prismatic.webvid.catalog import count_usable, usable_rows, videos_folder
from prismatic.webvid.engine import ENGINES, Workers, cut
from prismatic.webvid.files import ENCODE, read_text, whole_file, write_rows
from prismatic.webvid.frame_folders import Clip, FolderJob, is_done
from prismatic.webvid.frames import FrameSpec, square_of
from prismatic.webvid.rows import listed
from prismatic.webvid.tar_shards import ShardJob, extend_plan, read_outcome, read_plan
from prismatic.webvid.texts import Texts

SETTINGS = "extract.json"
FAILED = "failed.jsonl"
BATCH = 32  # folders between two looks at the list of failures
SHOWN = 10


@dataclass
class State:
    """done: number of clips whose frames are there. failed: id -> reason of those that are not. now: clips done by this
    run. No ids of what went well are held: there may be ten million.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    now: int = 0


@dataclass(frozen=True)
class Wanted:
    """The clips that are asked for, read from the catalog anew whenever they are gone through."""

    catalog: Path
    ids: set[str] | None

    def __iter__(self) -> Iterator[Clip]:
        return ((row.id, row.path) for row in usable_rows(self.catalog) if self.ids is None or row.id in self.ids)

    def count(self) -> int:
        """How many there are."""
        return count_usable(self.catalog) if self.ids is None else sum(1 for _ in self)

    def unknown(self) -> list[str]:
        """Ids that are asked for and that the catalog cannot use."""
        return sorted(self.ids - {clip_id for clip_id, _ in self}) if self.ids else []


def extract(cfg: ExtractConfig) -> str:
    """Write frames below cfg.output and return a summary. Raises ValueError for input that cannot be used."""
    cfg.validate()
    SAMPLERS.get(cfg.sampler)
    ENGINES.get(cfg.engine)
    spec = FrameSpec(cfg.num_frames, cfg.sampler, cfg.image_format, cfg.quality, cfg.short_side, cfg.seed)
    if cfg.vision_backbone_id:
        square = square_of(cfg.vision_backbone_id, cfg.image_resize_strategy)
        spec = replace(spec, square=square, resize_strategy=cfg.image_resize_strategy)
    wanted = Wanted(cfg.catalog, read_ids(cfg.ids))
    unknown = wanted.unknown()
    count = wanted.count()
    if not count:
        raise ValueError(f"--catalog {cfg.catalog}: no row has status ok" + (" and an id of --ids" if cfg.ids else ""))
    keep_settings(cfg.output / SETTINGS, json.loads(json.dumps({"format": cfg.format, **asdict(spec)})))
    clear_partial(cfg.output)
    state = State()
    total = _folders(cfg, spec, wanted, count, state) if cfg.format == "folder" else _shards(cfg, spec, wanted, state)
    clear_partial(cfg.output)  # of a machine that a cluster has lost on the way
    if state.failed:  # in the order of the catalog
        known = state.failed
        state.failed = {clip_id: known[clip_id] for clip_id, _ in wanted if clip_id in known} | known
    write_failures(cfg.output / FAILED, state.failed)
    told = f"\n  of --ids {len(unknown)} are no usable videos of the catalog: {listed(unknown)}" if unknown else ""
    return summary(cfg.output, total, state.now, state.failed) + told


def _folders(cfg: ExtractConfig, spec: FrameSpec, wanted: Wanted, count: int, state: State) -> int:
    known = read_failures(cfg.output / FAILED)
    state.failed = {i: reason for i, reason in known.items() if not is_done(cfg.output, i)}
    write_failures(cfg.output / FAILED, state.failed)
    skipped = set() if cfg.retry_failed else set(state.failed)
    job = FolderJob(str(videos_folder(cfg.catalog).resolve()), str(cfg.output.resolve()), spec)
    with tqdm(total=count, unit="video", desc="extract") as bar:

        def left() -> Iterator[Clip]:
            for clip in wanted:
                if clip[0] in skipped or is_done(cfg.output, clip[0]):
                    bar.update()
                else:
                    yield clip

        for batch, reasons in ENGINES.get(cfg.engine)(job, cut(left(), BATCH), _workers(cfg)):
            for clip_id, _ in batch:
                state.failed.pop(clip_id, None)
            failed = {clip_id: reason for (clip_id, _), reason in zip(batch, reasons, strict=True) if reason}
            append_failures(cfg.output / FAILED, failed)
            state.failed |= failed
            state.now += sum(not reason for reason in reasons)
            bar.update(len(batch))
    return count


def _shards(cfg: ExtractConfig, spec: FrameSpec, wanted: Wanted, state: State) -> int:
    clips = _plan(cfg, wanted, state)
    before = state.done
    left = (shard for shard in read_plan(cfg.output) if read_outcome(cfg.output, shard.number) is None)
    job = ShardJob(str(videos_folder(cfg.catalog).resolve()), str(cfg.output.resolve()), spec)
    with tqdm(total=clips, unit="video", desc="extract") as bar:
        batches = ([(shard.number, clip) for clip in shard.clips] for shard in left)
        for batch, _ in ENGINES.get(cfg.engine)(job, batches, _workers(cfg)):
            _note(cfg.output, batch[0][0], state)
            bar.update(len(batch))
    state.now = state.done - before
    return state.done + len(state.failed)


def _plan(cfg: ExtractConfig, wanted: Wanted, state: State) -> int:
    """Note what earlier runs did, and plan shards for what none of them has planned or (--retry_failed) got.

    Returns how many clips the shards hold that are not made yet.
    """
    number, clips = 0, 0
    under_way: set[str] = set()  # of clips that failed and are planned again

    def planned() -> Iterator[str]:
        nonlocal number, clips
        for shard in read_plan(cfg.output):
            number += 1
            if not _note(cfg.output, shard.number, state):
                clips += len(shard.clips)
                # A clip is only planned again in a later shard than the one in which it failed.
                under_way.update(clip_id for clip_id, _ in shard.clips if clip_id in state.failed)
            yield from (clip_id for clip_id, _ in shard.clips)

    known = Texts.of(planned()).places(Texts.of(clip_id for clip_id, _ in wanted)) >= 0
    again = set(state.failed) - under_way if cfg.retry_failed else set()
    fresh = int((~known).sum()) + len(again)
    if fresh:
        left = (clip for clip, done in zip(wanted, known, strict=True) if not done or clip[0] in again)
        extend_plan(cfg.output, cut(left, cfg.clips_per_shard), number)
    return clips + fresh


def _note(output: Path, number: int, state: State) -> bool:
    """Add the outcome of a shard to the state; False when it is not made yet."""
    outcome = read_outcome(output, number)
    if outcome is None:
        return False
    state.done += len(outcome[0])
    state.failed |= outcome[1]
    for clip_id in outcome[0]:
        state.failed.pop(clip_id, None)
    return True


def _workers(cfg: ExtractConfig) -> Workers:
    return Workers(cfg.num_workers, cfg.timeout, cfg.address)


def read_ids(ids: str) -> set[str] | None:
    """The ids of --ids: listed, or in a file with one a line; None for "". Raises ValueError when there are none."""
    if not ids:
        return None
    # os.path: a long list is a name that pathlib refuses to look for.
    if not os.path.isfile(ids):
        if ids.endswith((".txt", ".json")):
            raise ValueError(f"--ids {ids}: no such file")
        names = ids.split(",")
    elif ids.endswith(".json"):
        names = _listed_ids(Path(ids))
    else:
        names = read_text(Path(ids), "--ids").split("\n")
    found = {name.strip() for name in names} - {""}
    if not found:
        raise ValueError(f"--ids {ids}: no id in it")
    return found


def _listed_ids(file: Path) -> list[str]:
    try:
        names = json.loads(read_text(file, "--ids"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--ids {file}: not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise ValueError(f"--ids {file}: expected a list of ids, as `webvid.py ids` writes it")
    return [str(name) for name in names]


def keep_settings(file: Path, settings: dict, *, empty: bool = False) -> None:
    """Write down what the folder is made with. Raises ValueError when it was made with something else.

    empty: nothing has been made yet, so that settings of a first try that failed bind nobody.
    """
    if file.is_file() and not empty:
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [f"{name} {before.get(name)!r} (now {settings[name]!r})" for name in settings
                   if before.get(name) != settings[name]]  # fmt: skip
        if changed:
            raise ValueError(f"--output {file.parent} was made with other settings: {', '.join(changed)}; use another")
        return
    with whole_file(file) as out:
        out.write(json.dumps(settings, indent=2) + "\n")


def clear_partial(folder: Path) -> None:
    """Delete what killed runs left half written."""
    for left in folder.glob(".*.partial*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def read_failures(file: Path) -> dict[str, str]:
    """id -> reason. A last line that a kill cut off counts as not written."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="\n") as lines:
        rows = jsonlines.Reader(line for line in lines if line.endswith("\n"))
        return {row["id"]: row["reason"] for row in rows.iter(type=dict)}


def write_failures(file: Path, failed: dict[str, str]) -> None:
    """One line an id, whole or not at all."""
    write_rows(file, ({"id": clip_id, "reason": reason} for clip_id, reason in failed.items()))


def append_failures(file: Path, failed: dict[str, str]) -> None:
    """More lines at the end: to write all anew after every batch takes days where a tenth of ten million fails."""
    with jsonlines.open(file, "a", dumps=ENCODE, flush=True) as out:
        out.write_all({"id": clip_id, "reason": reason} for clip_id, reason in failed.items())


def summary(output: Path, total: int, now: int, failed: dict[str, str]) -> str:
    """What was done and what was left out, with the first reasons."""
    before = total - now - len(failed)
    head = f"{output}: {total} videos: {now} done now, {before} from before, {len(failed)} failed"
    lines = [f"  {clip_id}: {reason}" for clip_id, reason in list(failed.items())[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"  ... and {len(failed) - SHOWN} more")
    return "\n".join(
        [head + (f"; see {output / FAILED}; --retry_failed true tries them again" if failed else ""), *lines]
    )
