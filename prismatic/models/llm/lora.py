"""Low-rank adapters (LoRA) in any LLM, through peft: adding them, reading and writing peft's own files, merging.

The adapters are put into the LLM in place: it stays the same object of the same class, and whatever is done with it is
done with its adapters. Its own weights keep their values and are never trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prismatic.models.errors import first_line
from prismatic.models.seeding import seeded

if TYPE_CHECKING:
    from peft import LoraConfig

    from prismatic.models.llm.hf_causal import HFCausalLM

FLAG = "--model.lora.target_modules"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ALL_LINEAR = "all-linear"

# Names inside the VLM, in the LLM with adapters, and in peft's files.
_IN_VLM, _BASE, _ADAPTER, _IN_FILE = "llm_backbone.llm.", ".base_layer.", ".default", "base_model.model."


class AdapterError(ValueError):
    """Adapters cannot be added or read; the text says what to change."""


def add_adapter(
    backbone: HFCausalLM, *, rank: int, alpha: float, dropout: float, target_modules: Sequence[str], seed: int = 0
) -> None:
    """Put new adapters into the LLM; the answers stay what they were until the adapters are trained.

    target_modules: ends of the names of linear layers, or ("all-linear",) for all but the head. seed: of the initial
    weights. Raises AdapterError when a name fits no layer, or peft is not installed.
    """
    leaves = sorted({n.rsplit(".", 1)[-1] for n, m in backbone.llm.named_modules() if isinstance(m, nn.Linear)})
    unknown = [t for t in target_modules if t != ALL_LINEAR and not _fits(t, backbone.llm)]
    if unknown:
        raise AdapterError(f"{FLAG}: this LLM has no layer '{unknown[0]}'; it has {', '.join(leaves)}, or {ALL_LINEAR}")
    name = getattr(backbone.llm.config, "_name_or_path", None)
    config = _peft().LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,  # peft's own files hold an integer
        lora_dropout=dropout,
        target_modules=ALL_LINEAR if ALL_LINEAR in target_modules else list(target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=name if name and not Path(name).is_dir() else None,
    )
    _inject(backbone, config, seed)


def load_adapter(backbone: HFCausalLM, folder: Path) -> None:
    """Put the adapters of a folder that peft (or a run here) wrote into the LLM.

    Raises AdapterError when files are missing, of another kind of adapter, or do not fit this LLM.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kind = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("peft_type")
        state = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{folder} cannot be read as a LoRA adapter: {first_line(error)}") from error
    if kind != "LORA":
        raise AdapterError(f"{folder} holds adapters of kind {kind}; only LORA can be read")
    _inject(backbone, _peft().LoraConfig.from_pretrained(str(folder)), seed=0)
    mine = {_file_key(name): name for name in backbone.llm.state_dict() if is_adapter_key(name)}
    shapes = {name: tuple(value.shape) for name, value in backbone.llm.state_dict().items()}
    wrong = sorted(mine.keys() ^ state.keys()) or [k for k, n in mine.items() if tuple(state[k].shape) != shapes[n]]
    if wrong:
        raise AdapterError(f"the adapters in {folder} do not fit this LLM: {'; '.join(wrong[:3])}")
    backbone.llm.load_state_dict({mine[key]: value for key, value in state.items()}, strict=False)


def merge_adapter(backbone: HFCausalLM) -> None:
    """Add the adapters to the weights that they stand beside and take them out: the same answers, a plain LLM.

    Raises AdapterError when the sum is not finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in backbone.llm.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in layers:
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise AdapterError(f"the adapter of {name} cannot be merged: {first_line(error)}") from error
        parent, _, child = name.rpartition(".")
        setattr(backbone.llm.get_submodule(parent), child, module.get_base_layer())
    backbone.adapter = None


def adapter_parameters(backbone: HFCausalLM) -> Iterable[nn.Parameter]:
    """The adapters' weights: all that is trained of an LLM that has adapters."""
    return [parameter for name, parameter in backbone.llm.named_parameters() if is_adapter_key(name)]


def is_adapter_key(key: str) -> bool:
    """Whether a weight of an LLM with adapters is an adapter's."""
    return ".lora_" in key


def to_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """Adapter weights of a VLM's state (`llm_backbone.llm.*`) under the names that they have in peft's files."""
    return {_file_key(k.removeprefix(_IN_VLM)): v for k, v in state.items() if is_adapter_key(k)}


def base_key(key: str) -> str:
    """The name that a weight had before adapters were added."""
    return key.replace(_BASE, ".")


def write_config(backbone: HFCausalLM, folder: Path) -> None:
    """Write adapter_config.json into an existing folder."""
    assert backbone.adapter is not None
    inference_mode, backbone.adapter.inference_mode = backbone.adapter.inference_mode, True
    try:
        backbone.adapter.save_pretrained(str(folder))
    finally:
        backbone.adapter.inference_mode = inference_mode


def _file_key(name: str) -> str:
    return _IN_FILE + name.replace(_ADAPTER, "")


def _inject(backbone: HFCausalLM, config: LoraConfig, seed: int) -> None:
    if backbone.adapter is not None:
        raise AdapterError("the LLM has adapters already; merge them first")
    trainable = [p.requires_grad for p in backbone.llm.parameters()]
    before = list(backbone.llm.parameters())
    config.inference_mode = False
    try:
        with seeded(seed):
            _peft().inject_adapter_in_model(config, backbone.llm)
    except ValueError as error:
        raise AdapterError(f"{FLAG}: {first_line(error)}") from error
    # What is trained is for freeze() to say; peft freezes everything else by itself.
    for parameter, flag in zip(before, trainable, strict=True):
        parameter.requires_grad_(flag)
    backbone.adapter = config


def _fits(target: str, llm: nn.Module) -> bool:
    return any(name == target or name.endswith(f".{target}") for name, _ in llm.named_modules())


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise AdapterError(
            "adapters (--model.lora.rank) need the package peft: pip install 'prismatic[lora]'"
        ) from error
    return peft


def has_adapter(module: nn.Module) -> bool:
    """Whether a part of a VLM is an LLM with adapters."""
    return getattr(module, "adapter", None) is not None


def cast_base(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Hold the LLM's own weights in `dtype`, in place; adapters keep theirs."""
    for name, parameter in backbone.named_parameters():
        if not is_adapter_key(name) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
