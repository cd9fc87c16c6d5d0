"""`reproducibility.json` of a run folder: what it takes to get the same run again, one entry for each start.

Written by rank 0 before the first step. An entry is added by every start of the run and none is changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
import torch

import prismatic
from prismatic.conf.data import DatasetConfig
from prismatic.train.folder import LLM_DEFINITION

if TYPE_CHECKING:
    from prismatic.train.trainer import Trainer

log = logging.getLogger(__name__)

NAME = "reproducibility.json"
PACKAGES = ("prismatic", "torch", "torchvision", "transformers", "timm", "tokenizers", "numpy", "av", "draccus", "peft")
WHOLE_BYTES = 256 << 20  # A file up to this size is hashed whole: half a second
SAMPLED_BLOCKS, BLOCK_BYTES = 64, 1 << 20  # of a larger file, evenly apart, its first and its last among them
_TOKEN = re.compile(r"\b(hf|api)_[A-Za-z0-9]{12,}")


def write_card(trainer: Trainer, resumed_from: Path | None) -> Path | None:
    """Add the present start to the card and return its path; None, with a warning, when it cannot be written."""
    path = trainer.run_dir / NAME
    try:
        starts = _earlier(path)
        starts.append(entry(trainer, resumed_from))
        partial = path.with_name(f".{NAME}.partial")
        partial.write_text(json.dumps({"starts": starts}, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        # A full disk stops no run for the sake of its card.
        log.warning(f"{path} could not be written ({error.strerror}); the run goes on without it")
        return None
    return path


def entry(trainer: Trainer, resumed_from: Path | None) -> dict[str, Any]:
    """The facts of one start."""
    cfg, world = trainer.cfg, trainer.world
    config = json.loads(json.dumps(draccus.encode(cfg), default=str))
    config.pop("hf_token", None)
    data = {"dataset": _data(cfg.dataset, cfg.stage)}
    for name, dataset in cfg.validation_datasets().items():
        data[name] = _data(dataset, cfg.stage)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": trainer.at.step,
        "resumed_from": str(resumed_from) if resumed_from is not None else None,
        "command": [_TOKEN.sub(r"\1_...", argument) for argument in sys.argv],
        "seed": cfg.seed,
        "world_size": world.world_size,
        "device": _device(world.device),
        "versions": versions(),
        "git": git_state(Path(prismatic.__file__).parent.parent),
        "config_sha256": _sha256([json.dumps(config, sort_keys=True).encode()]),
        "config": config,
        "data": data,
        "template_sha256": template_hash(getattr(trainer.vlm, "template", None)),
        "tokenizer_sha256": files_hash(sorted((trainer.run_dir / LLM_DEFINITION).glob("*token*"))),
    }


def versions() -> dict[str, str | None]:
    """Versions of what computes: Python, packages, CUDA, cuDNN, the driver, the operating system."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with the build: "+cpu" and "+cu130" round differently
    found["cuda"] = torch.version.cuda
    found["cudnn"] = str(torch.backends.cudnn.version()) if torch.backends.cudnn.is_available() else None
    driver = Path("/proc/driver/nvidia/version")
    match = re.search(r"Kernel Module\D*([\d.]+)", driver.read_text()) if driver.is_file() else None
    found["driver"] = match[1] if match else None
    return found


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the package runs from, and whether files in it were changed; None without one."""
    if not (root / ".git").exists():
        return None
    try:
        ask = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **ask).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return {"commit": None, "problem": str(error)}
    return {"commit": commit, "dirty": bool(changed), "changed": [line[3:] for line in changed[:20]]}


def template_hash(template: Any) -> str | None:
    """Of every string of a prompt template, names of fields included; None for a model without one."""
    if template is None:
        return None
    if hasattr(template, "__dataclass_fields__"):
        return _sha256([json.dumps(asdict(template), sort_keys=True, default=repr).encode()])
    return _sha256([repr(template).encode()])


def files_hash(files: Sequence[Path]) -> str | None:
    """One hash of the names and contents of some files, in the order given; None without any."""
    if not files:
        return None
    return _sha256(part for file in files for part in (file.name.encode(), file_hash(file)["sha256"].encode()))


def file_hash(path: Path) -> dict[str, Any]:
    """{"path", "bytes", "sha256", "method"} of a file.

    "whole" up to 256 MiB. Of a larger file "sampled": its length and 64 blocks of 1 MiB, evenly apart, the first and
    the last among them, which takes as long for 100 GB as for one, and misses a change that falls between blocks and
    leaves the length as it was.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"path": str(path), "bytes": size, "sha256": digest, "method": "whole"}
        hashed = hashlib.sha256(str(size).encode())
        for number in range(SAMPLED_BLOCKS):
            file.seek((size - BLOCK_BYTES) * number // (SAMPLED_BLOCKS - 1))
            hashed.update(file.read(BLOCK_BYTES))
    return {"path": str(path), "bytes": size, "sha256": hashed.hexdigest(), "method": "sampled"}


def _data(data: DatasetConfig, stage: str) -> dict[str, Any]:
    """The annotation files of a dataset and, when it weaves, what it weaves by; contents, not media."""
    try:
        files, media_root = data.components(stage)
    except ValueError as error:
        return {"problem": str(error)}
    told: dict[str, Any] = {"dataset_id": data.dataset_id, "media_root": str(media_root), "files": _hashes(files)}
    if data.weave.enabled:
        clusters = data.weave.clusters
        listed = clusters if isinstance(clusters, list) else [] if clusters is None else [clusters]
        told["weave"] = {
            "videos_per_example": data.weave.videos_per_example,
            "curriculum": list(data.weave.curriculum),
            "method": data.weave.method,
            "clusters": _hashes(data.dataset_root_dir / path for path in listed),
        }
    return told


def _hashes(paths: Iterable[Path]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            try:
                found.append(file_hash(file))
            except OSError as error:
                found.append({"path": str(file), "problem": error.strerror})
    return found


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"


def _earlier(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (ValueError, KeyError, TypeError) as error:
        aside = path.with_name(f"{NAME}.unreadable")
        path.replace(aside)
        log.warning(f"{path} could not be read ({error}) and is now {aside.name}; a new one begins")
        return []


def _sha256(parts: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()
