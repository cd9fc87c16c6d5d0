"""Where a model's weights lie and what is in them: run folders, checkpoint files, published models.

Reads the layout that training here writes (`checkpoints/latest-checkpoint.safetensors`, flat keys) and the older one
(`latest-checkpoint.pt`, `{"model": {module: state}}`). Nothing is unpickled beyond tensors.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from prismatic.conf.hub import hub_model

log = logging.getLogger(__name__)

MODULES = ("vision_backbone", "aggregator", "projector", "llm_backbone")
FROZEN_FILE = "frozen-backbones.safetensors"
ADAPTER_END = "-adapter"


class CheckpointLoadError(ValueError):
    """Weights cannot be read, or do not fit the model; the text names the file and the first keys concerned."""


@dataclass(frozen=True)
class Source:
    """A trained model on disk.

    frozen: weights of modules that were frozen and exist nowhere else, if there are any. adapter: folder with the LoRA
    adapters of the LLM that belong to `weights`, if there are any.
    """

    config: Path
    weights: Path
    frozen: Path | None
    run_dir: Path | None
    adapter: Path | None = None


def resolve_source(
    name: str | Path, *, repo_id: str | None = None, hf_token: str | None = None, cache_dir: str | Path | None = None
) -> Source:
    """Find config and weights behind a run folder, a file of its `checkpoints/`, a published id, or a hub folder.

    Raises CheckpointLoadError when a local path has no checkpoint, ValueError for an unknown id.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_run_dir(path)
    if path.is_file():
        if path.suffix not in (".pt", ".safetensors"):
            raise CheckpointLoadError(f"{path} is neither a run folder nor a .pt or .safetensors checkpoint")
        return _from_file(path)
    if path.is_absolute() or str(name).startswith((".", "~")) or path.suffix in (".pt", ".safetensors"):
        raise CheckpointLoadError(f"there is no run folder or checkpoint at {path}")
    return _from_hub(str(name), repo_id, hf_token, cache_dir)


def _from_run_dir(run_dir: Path) -> Source:
    for suffix in ("safetensors", "pt"):
        weights = run_dir / "checkpoints" / f"latest-checkpoint.{suffix}"
        if weights.is_file():
            return _from_file(weights)
    raise CheckpointLoadError(
        f"{run_dir} has no checkpoints/latest-checkpoint.safetensors (or .pt); is it a run folder, and has the run "
        "saved a checkpoint yet?"
    )


def _from_file(weights: Path) -> Source:
    # absolute(), not resolve(): `latest` is a link inside checkpoints/, and the folder it stands in is the run's.
    run_dir = weights.absolute().parent.parent
    config = run_dir / "config.json"
    if not config.is_file():
        raise CheckpointLoadError(f"{weights} belongs to no run folder: {config} is missing")
    frozen = weights.parent / FROZEN_FILE
    # Of `latest`, the adapters beside the file that it points to: there is no moment at which the two do not match.
    file = weights.resolve()
    adapter = file.with_name(file.name.removesuffix(file.suffix) + ADAPTER_END)
    return Source(
        config,
        weights,
        frozen if frozen.is_file() else None,
        run_dir,
        adapter if adapter.is_dir() else None,
    )


def _from_hub(name: str, repo_id: str | None, hf_token: str | None, cache_dir: str | Path | None) -> Source:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    repo, folder = (repo_id, name) if repo_id else (hub_model(name).repo_id, hub_model(name).folder)
    try:
        config, weights = (
            Path(hf_hub_download(repo, f"{folder}/{file}", token=hf_token, cache_dir=cache_dir))
            for file in ("config.json", "checkpoints/latest-checkpoint.pt")
        )
    except GatedRepoError as error:
        raise CheckpointLoadError(
            f"{repo} is gated: accept its terms on the hub, then pass --hf_token with a token file or variable"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointLoadError(
            f"'{name}' is no local path, and {repo}/{folder} could not be fetched: the hub is out of reach (or "
            "HF_HUB_OFFLINE is set) and it is not in the cache"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointLoadError(f"{repo}/{folder} could not be fetched: {error}") from error
    return Source(config, weights, None, None)


def read_model_config(path: Path) -> dict[str, Any]:
    """The `model` part of a run's config.json. Raises CheckpointLoadError when there is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointLoadError(f"{path} cannot be read as a run's configuration: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise CheckpointLoadError(f"{path} has no 'model' section; it is not a run's configuration")
    return config["model"]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint with flat keys (`projector.*`, `llm_backbone.*`, ...), on the CPU.

    Raises CheckpointLoadError for a truncated or foreign file, and for a pickle that holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointLoadError(f"{path} holds more than tensors and is not loaded: {error}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointLoadError(f"{path} cannot be read as a checkpoint (truncated?): {error}") from error
    modules = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(modules, Mapping) or not all(isinstance(state, Mapping) for state in modules.values()):
        raise CheckpointLoadError(f"{path} is no prismatic checkpoint: expected {{'model': {{module: weights}}}}")
    return {f"{module}.{key}": tensor for module, state in modules.items() for key, tensor in state.items()}


def modules_in(weights: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the modules that have weights in a flat state."""
    return {key.split(".", 1)[0] for key in weights}


def apply_weights(vlm: nn.Module, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Copy weights into the modules they name; every key of those modules must be there, with its shape.

    Raises CheckpointLoadError listing missing, unexpected and misshapen keys.
    """
    modules = modules_in(weights)
    unknown = modules - set(MODULES)
    if unknown:
        raise CheckpointLoadError(f"{source} has weights of unknown modules: {', '.join(sorted(unknown))}")
    expected = {k: v for k, v in vlm.state_dict().items() if k.split(".", 1)[0] in modules}
    wrong = [
        f"{k}: checkpoint {tuple(weights[k].shape)}, model {tuple(expected[k].shape)}"
        for k in expected.keys() & weights.keys()
        if weights[k].shape != expected[k].shape
    ]
    lists = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(wrong),
    }
    problems = [
        f"{len(keys)} {kind} ({'; '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
        for kind, keys in lists.items()
        if keys
    ]
    if problems:
        raise CheckpointLoadError(
            f"the weights in {source} do not fit the model that its configuration describes: {', '.join(problems)}"
        )
    vlm.load_state_dict(dict(weights), strict=False)
    log.info("loaded %s from %s", ", ".join(sorted(modules)), source)
