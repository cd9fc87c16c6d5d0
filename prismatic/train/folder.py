"""The folder `checkpoints/` of a run: which checkpoints lie there, which are whole, and clearing up."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prismatic import dist
from prismatic.models.errors import first_line
from prismatic.train import files

log = logging.getLogger(__name__)

FOLDER, LATEST, STATE = "checkpoints", "latest-checkpoint.safetensors", "state.json"
LLM_DEFINITION = "llm_backbone"  # Of a run folder: the LLM's tokenizer and configuration
LATEST_ADAPTER, ADAPTER_END = "latest-adapter", "-adapter"
BEST, BEST_ADAPTER = "best-checkpoint.safetensors", "best-adapter"
READERS = 8  # Files whose checksums are taken at a time
_STEP = re.compile(r"step-(\d{6,})(-epoch-.*(?:\.safetensors|-adapter))?")


def adapter_name(weights_name: str) -> str:
    """The folder of the LLM's adapters that belongs to a consolidated file."""
    return weights_name.removesuffix(".safetensors") + ADAPTER_END


def point_latest(folder: Path, weights_name: str) -> None:
    """Have the links in `checkpoints/` point at this consolidated file, and at its adapters where there are some."""
    _point(folder, weights_name, LATEST, LATEST_ADAPTER)


def point_best(run_dir: Path) -> None:
    """Have `best-*` point at the weights of the best of the whole checkpoints, if one was measured."""
    folder = run_dir / FOLDER
    names = [_weights_of(path) for path in best(run_dir, 1)]
    if names and names[0]:
        _point(folder, names[0], BEST, BEST_ADAPTER)
    else:
        for name in (BEST, BEST_ADAPTER):
            (folder / name).unlink(missing_ok=True)


def best(run_dir: Path, count: int) -> list[Path]:
    """The whole `step-*/` folders with the least of what is measured, least first; of equal ones the earlier first.

    Only what was measured at the very step of a checkpoint counts (its state's "measured"), only a number, and only
    under the name that the newest of them has: a loss does not compare with a score.
    """
    found: list[tuple[float, int, Path]] = []
    wanted = None
    for path in resumable(run_dir):
        if incomplete(path) is None:
            measured = read_state(path).get("measured") or {}
            name, value = measured.get("name"), measured.get("value")
            if value is not None and math.isfinite(value) and name == (wanted or name):
                wanted = name
                found.append((value, _step(path) or 0, path))
    return [path for _, _, path in sorted(found)[:count]]


def find(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that `--resume auto|never|PATH` means, as rank 0 sees it; None to start anew.

    PATH is a `step-000100/` folder, or a run folder, whose newest is meant. Raises ValueError when it is neither, or
    when the checkpoint asked for is damaged.
    """
    path, problem = None, None
    if dist.rank_zero() and resume != "never":
        asked = Path(resume)
        if resume == "auto":
            path = find_latest(run_dir)
        elif (asked / STATE).is_file():
            path, fault = asked, incomplete(asked) or damaged(asked)
            if fault:
                problem = f"--resume {resume}: this checkpoint cannot be used: {fault}; pass an earlier one, or auto"
        else:
            path = find_latest(asked)
            if path is None:
                problem = (
                    f"--resume {resume}: no resumable checkpoint there; it takes a folder like "
                    f"{run_dir / FOLDER / 'step-000100'} or a run folder, or auto, or never"
                )
    path, problem = dist.broadcast_object((path, problem))
    if problem:
        raise ValueError(problem)
    return path


def resumed_definition(resume: str) -> Path | None:
    """The LLM's tokenizer and configuration of the run that `--resume PATH` means; None where it names none."""
    asked = Path(resume)
    of_run = asked.parent.parent if (asked / STATE).is_file() else asked
    found = of_run / LLM_DEFINITION
    return found if resume not in ("auto", "never") and found.is_dir() else None


def find_latest(run_dir: Path) -> Path | None:
    """The newest resumable checkpoint of a run that is whole, or None; those passed over are named in the log.

    All its bytes are read and compared with their checksums.
    """
    for path in resumable(run_dir):
        problem = incomplete(path) or damaged(path)
        if problem is None:
            return path
        log.warning(f"Passing over the checkpoint {path}: {problem}")
    return None


def newest(run_dir: Path) -> Path | None:
    """The newest complete resumable checkpoint by the sizes of its files, or None."""
    return next((path for path in resumable(run_dir) if incomplete(path) is None), None)


def resumable(run_dir: Path) -> list[Path]:
    """The `step-*/` folders of a run, newest first, whole or not."""
    folder = run_dir / FOLDER
    found = folder.iterdir() if folder.is_dir() else ()
    paths = [p for p in found if _step(p) is not None and p.is_dir() and not p.name.endswith(ADAPTER_END)]
    return sorted(paths, key=lambda path: _step(path) or 0, reverse=True)


def incomplete(checkpoint: Path) -> str | None:
    """What is wrong with a `step-000100/` folder, or None when all its files are there in full length."""
    try:
        for name, size in read_state(checkpoint)["files"].items():
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        return f"it has no {STATE} with all its files ({first_line(error)})"
    return None


def damaged(checkpoint: Path) -> str | None:
    """Which file of a complete `step-000100/` folder has other bytes than were written, or None.

    Checkpoints of older versions have no checksums: nothing can be said of them.
    """
    sums = read_state(checkpoint).get("checksums", {})
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: _checksum(checkpoint / name), sums)
        for (name, expected), actual in zip(sums.items(), found, strict=True):
            if actual != expected:
                return f"{name} is damaged: its checksum is {actual} instead of {expected}"
    return None


def write_state(checkpoint: Path, values: Mapping[str, Any]) -> None:
    """Write `state.json`, with a checksum of its own."""
    values = json.loads(json.dumps(values))  # As they will be read
    files.write_json(checkpoint / STATE, {**values, "crc32": _seal(values)})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint. Raises OSError, or ValueError when they are not those that were written."""
    values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    seal = values.pop("crc32", None)
    if seal is not None and seal != _seal(values):
        raise ValueError(f"{STATE} is damaged: its checksum does not fit")
    return values


def set_aside(run_dir: Path, after_step: int) -> None:
    """On rank 0, move checkpoints of steps after `after_step` into a folder `previous-N`.

    They belong to a line that is given up; left in place, the next `--resume auto` would take one for the newest.
    """
    if not dist.rank_zero():
        return
    folder = run_dir / FOLDER
    steps = {_step(path) for path in resumable(run_dir)}
    # Weights without a resumable folder are left: a kill between the renames of a save leaves such, and they are whole.
    found = [path for path in folder.glob("step-*") if _step(path) in steps and (_step(path) or -1) > after_step]
    if not found:
        return
    number = 1
    while (run_dir / f"previous-{number}").exists():
        number += 1
    target = run_dir / f"previous-{number}"
    (target / FOLDER).mkdir(parents=True)
    for path in found:
        os.replace(path, target / FOLDER / path.name)
    log.warning(f"Checkpoints of steps after {after_step} are now in {target}")
    link = folder / LATEST
    if link.is_symlink() and not link.exists():
        kept = sorted((p for p in folder.glob("step-*.safetensors")), key=lambda p: _step(p) or 0)
        if kept:
            point_latest(folder, kept[-1].name)
        else:
            link.unlink()
            (folder / LATEST_ADAPTER).unlink(missing_ok=True)
    if (folder / BEST).is_symlink():
        point_best(run_dir)


def prune(run_dir: Path, keep: int, keep_best: int = 0) -> None:
    """On rank 0, remove all but the newest `keep` whole checkpoints and the `keep_best` best ones.

    Never the weights that `latest` points to.
    """
    if not dist.rank_zero():
        return
    folder = run_dir / FOLDER
    try:
        complete = [path for path in resumable(run_dir) if incomplete(path) is None]
        latest = (folder / LATEST).resolve()
        kept = {_step(path) for path in [*complete[:keep], *best(run_dir, keep_best)]} | {_step(latest)}
        for path in folder.iterdir():
            # Also another file of the newest step: a run stopped in validation saves that step before and after it.
            resumable_one = path.is_dir() and not path.name.endswith(ADAPTER_END)
            newest_names = (latest.name, adapter_name(latest.name))
            superseded = not resumable_one and _step(path) == _step(latest) and path.name not in newest_names
            if _step(path) is not None and (_step(path) not in kept or superseded):
                files.remove(path)
    except OSError as error:
        log.warning(f"Could not remove an old checkpoint in {folder}: {error}")


def tidy(folder: Path) -> None:
    """On rank 0, remove what a save that failed has left."""
    if dist.rank_zero():
        try:
            files.remove_leftovers(folder)
        except OSError as error:
            log.warning(f"Could not remove the temporary files in {folder}: {error}")


def _step(path: Path) -> int | None:
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else None


def _point(folder: Path, weights_name: str, link: str, adapter_link: str) -> None:
    files.replace_link(folder / link, weights_name)
    if (folder / adapter_name(weights_name)).is_dir():
        files.replace_link(folder / adapter_link, adapter_name(weights_name))
    else:
        (folder / adapter_link).unlink(missing_ok=True)


def _weights_of(checkpoint: Path) -> str | None:
    name = read_state(checkpoint).get("weights")
    return name if name and (checkpoint.parent / name).is_file() else None


def _checksum(path: Path) -> str:
    try:
        return files.checksum(path)
    except OSError as error:  # A disk that cannot read a block: as good as other bytes
        return f"unreadable ({error.strerror})"


def _seal(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
