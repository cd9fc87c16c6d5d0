"""Where a model's weights lie and what is in them: run folders, checkpoint files, published models.

Reads the layout that training here writes (`checkpoints/latest-checkpoint.safetensors`, flat keys) and the older one
(`latest-checkpoint.pt`, `{"model": {module: state}}`). Nothing is unpickled beyond tensors.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from prismatic.conf.hub import hub_model
from prismatic.models.errors import first_line
from prismatic.models.hub import explain
from prismatic.models.pickle_scan import check_pickles

log = logging.getLogger(__name__)

MODULES = ("vision_backbone", "aggregator", "projector", "llm_backbone")
FROZEN_FILE = "frozen-backbones.safetensors"
ADAPTER_END = "-adapter"


# What the readers of both formats raise for bytes that are none of theirs, cut short, or made to confuse them.
_UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(MemoryError, OverflowError, RecursionError, zipfile.BadZipFile),
)
# Tables that older versions of Transformers saved, and newer ones compute.
_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


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

    @property
    def files(self) -> list[Path]:
        """The files that hold its weights."""
        return [path for path in (self.frozen, self.weights) if path is not None]

    @property
    def llm_definition(self) -> Path | None:
        """Folder with the LLM's configuration and tokenizer, as a run of this project keeps it."""
        folder = self.run_dir / "llm_backbone" if self.run_dir else None
        return folder if folder and folder.is_dir() else None


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
    from huggingface_hub.errors import RemoteEntryNotFoundError

    repo, folder = (repo_id, name) if repo_id else (hub_model(name).repo_id, hub_model(name).folder)

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(repo, f"{folder}/{file}", token=hf_token, cache_dir=cache_dir))

    try:
        config = fetch("config.json")
        try:
            weights = fetch("checkpoints/latest-checkpoint.pt")
        except RemoteEntryNotFoundError:
            weights = fetch("checkpoints/latest-checkpoint.safetensors")
    except (OSError, ValueError) as error:
        # Any failure of the hub library is one of these; a bare ValueError is a repository name that cannot be one.
        raise CheckpointLoadError(
            f"'{name}' is no local path and could not be fetched: {explain(error, repo)} (folder {folder})"
        ) from error
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
        zipped = zipfile.is_zipfile(path)
        if not zipped and _begins_with(path, b"PK"):
            raise EOFError("the end of the archive is missing")
        if zipped:
            _check_archive(path)
        check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointLoadError(
            f"{path} holds more than tensors, or is no checkpoint; nothing in it was run: {_reason(error)}"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointLoadError(f"{path} cannot be read as a checkpoint (truncated?): {_reason(error)}") from error
    modules = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(modules, Mapping) or not all(isinstance(state, Mapping) for state in modules.values()):
        raise CheckpointLoadError(f"{path} is no prismatic checkpoint: expected {{'model': {{module: weights}}}}")
    flat = {f"{module}.{key}": tensor for module, state in modules.items() for key, tensor in state.items()}
    foreign = [key for key, tensor in flat.items() if not isinstance(tensor, torch.Tensor)]
    if foreign:
        raise CheckpointLoadError(f"{path} is no prismatic checkpoint: {foreign[0]} is not a tensor")
    return flat


def read_shapes(path: Path) -> dict[str, torch.Tensor]:
    """What `read_weights` gives, without the numbers: tensors on the meta device. Raises CheckpointLoadError too."""
    if path.suffix != ".safetensors":
        return {key: tensor.to("meta") for key, tensor in read_weights(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}
    except _UNREADABLE as error:
        raise CheckpointLoadError(f"{path} cannot be read as a checkpoint (truncated?): {_reason(error)}") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError for what torch never writes: packed, doubled or overlapping members, which grow when read."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("a member of the archive is there twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("members of the archive are compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("members of the archive are larger than the file")


def _begins_with(path: Path, head: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _reason(error: Exception) -> str:
    """What torch objects to, without its advice to switch the check off."""
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found:
        return f"it would call {found[1].rstrip(',')}"
    found = re.search(r"Unsupported [a-z]+ [^\n]+|legacy \.tar format", text)
    if found:
        return found[0]
    return first_line(error) if "weights_only" not in text else "not a file of tensors"


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
    weights = {key: tensor for key, tensor in weights.items() if not key.endswith(_DERIVED)}
    expected = {k: v for k, v in vlm.state_dict().items() if k.split(".", 1)[0] in modules}
    wrong = [k for k in expected.keys() & weights.keys() if weights[k].shape != expected[k].shape]
    problems = [
        f"{len(keys)} {kind} ({'; '.join(name_keys(keys))})"
        for kind, keys in (
            ("missing", expected.keys() - weights.keys()),
            ("unexpected", weights.keys() - expected.keys()),
        )
        if keys
    ]
    if wrong:
        shapes = [f"{k}: checkpoint {tuple(weights[k].shape)}, model {tuple(expected[k].shape)}" for k in sorted(wrong)]
        problems.append(f"{len(wrong)} of another shape ({'; '.join(name_keys(shapes))})")
    if problems:
        raise CheckpointLoadError(
            f"the weights in {source} do not fit the model that its configuration describes: {', '.join(problems)}"
            f"{_advice(wrong)}"
        )
    vlm.load_state_dict(dict(weights), strict=False)
    log.info("loaded %s from %s", ", ".join(sorted(modules)), source)


def name_keys(keys: Iterable[str]) -> list[str]:
    """Every key, those that differ in the number of a layer as one: `layers.{0-31}.mlp.up_proj.weight`."""
    numbers: dict[str, list[int]] = {}
    for key in keys:
        found = re.search(r"(?<=\.)\d+(?=\.)", key)
        pattern = f"{key[: found.start()]}{{}}{key[found.end() :]}" if found else key
        numbers.setdefault(pattern, []).extend([int(found[0])] if found else [])
    return sorted(_with_numbers(pattern, sorted(found)) for pattern, found in numbers.items())


def _with_numbers(pattern: str, numbers: list[int]) -> str:
    if len(numbers) < 2:
        return pattern.replace("{}", str(numbers[0]), 1) if numbers else pattern
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    listed = f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))
    return pattern.replace("{}", f"{{{listed}}}", 1)


def _advice(wrong: Sequence[str]) -> str:
    if any(key.endswith(("embed_tokens.weight", "lm_head.weight")) for key in wrong):
        return "; another vocabulary or width of the LLM: is --model.llm_backbone_id the one it was trained with?"
    if any(key.startswith("projector.") for key in wrong):
        return "; is --model.vision_backbone_id the one it was trained with?"
    return ""
