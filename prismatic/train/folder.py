"""The folder `checkpoints/` of a run: which checkpoints lie there, which are whole, and clearing up."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from prismatic import dist
from prismatic.train import files

log = logging.getLogger(__name__)

FOLDER, LATEST, STATE = "checkpoints", "latest-checkpoint.safetensors", "state.json"
LATEST_ADAPTER, ADAPTER_END = "latest-adapter", "-adapter"
_STEP = re.compile(r"step-(\d{6,})(-epoch-.*(?:\.safetensors|-adapter))?")


def adapter_name(weights_name: str) -> str:
    """The folder of the LLM's adapters that belongs to a consolidated file."""
    return weights_name.removesuffix(".safetensors") + ADAPTER_END


def point_latest(folder: Path, weights_name: str) -> None:
    """Have the links in `checkpoints/` point at this consolidated file, and at its adapters where there are some."""
    files.replace_link(folder / LATEST, weights_name)
    if (folder / adapter_name(weights_name)).is_dir():
        files.replace_link(folder / LATEST_ADAPTER, adapter_name(weights_name))
    else:
        (folder / LATEST_ADAPTER).unlink(missing_ok=True)


def find(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that `--resume auto|never|PATH` means, as rank 0 sees it; None to start anew.

    PATH is a `step-000100/` folder, or a run folder, whose newest is meant. Raises ValueError when it is neither.
    """
    path, problem = None, None
    if dist.rank_zero() and resume != "never":
        asked = Path(resume)
        if resume == "auto":
            path = find_latest(run_dir)
        elif (asked / STATE).is_file():
            path = asked
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


def find_latest(run_dir: Path) -> Path | None:
    """The newest complete resumable checkpoint of a run, or None; those passed over are named in the log."""
    for path in resumable(run_dir):
        problem = incomplete(path)
        if problem is None:
            return path
        log.warning(f"Passing over the checkpoint {path}: {problem}")
    return None


def newest(run_dir: Path) -> Path | None:
    """The newest complete resumable checkpoint, or None."""
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


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint. Raises OSError or ValueError."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


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


def prune(run_dir: Path, keep: int) -> None:
    """On rank 0, remove all but the newest `keep` whole checkpoints, never the weights that `latest` points to."""
    if not dist.rank_zero():
        return
    folder = run_dir / FOLDER
    complete = [path for path in resumable(run_dir) if incomplete(path) is None]
    latest = (folder / LATEST).resolve()
    kept = {_step(path) for path in complete[:keep]} | {_step(latest)}
    try:
        for path in folder.iterdir():
            # Also another file of the newest step: a run stopped in validation saves that step before and after it.
            resumable_one = path.is_dir() and not path.name.endswith(ADAPTER_END)
            newest_names = (latest.name, adapter_name(latest.name))
            superseded = not resumable_one and _step(path) == _step(latest) and path.name not in newest_names
            if _step(path) is not None and (_step(path) not in kept or superseded):
                files.remove(path)
    except OSError as error:
        log.warning(f"Could not remove an old checkpoint in {folder}: {error}")


def first_line(error: BaseException) -> str:
    """The gist of an error's text; of the first cause, when torch.distributed.checkpoint wrapped those of all ranks."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _step(path: Path) -> int | None:
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else None
