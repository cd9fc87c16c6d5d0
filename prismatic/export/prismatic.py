"""A trained model as an older run folder: config.json and `checkpoints/latest-checkpoint.pt`.

`prismatic.load` reads it back equal. The key names are those of the published checkpoints, so the older code reads it
too, as far as it has the parts that the model is made of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prismatic.export.errors import ExportError

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)


def write(vlm: PrismaticVLM, config: Mapping[str, Any], folder: Path, *, modules: Collection[str]) -> None:
    """Write the folder.

    config: of the run, with its "model" part. modules: those whose weights the run saved; projector and LLM are
    written always, as the older code wants them both, the vision backbone when it is named here.

    Raises ExportError for an LLM with adapters.
    """
    if vlm.llm_backbone.adapter is not None:
        raise ExportError(
            "the older layout has no place for LoRA adapters; pass --merge_lora true to add them to the LLM's weights"
        )
    state = vlm.state_dict()
    kept = [name for name in ("projector", "llm_backbone", "vision_backbone", "aggregator") if name in modules]
    kept = list(dict.fromkeys(["projector", "llm_backbone", *kept]))
    weights = {
        name: {k.removeprefix(f"{name}."): v.contiguous() for k, v in state.items() if k.startswith(f"{name}.")}
        for name in kept
    }
    weights = {name: tensors for name, tensors in weights.items() if tensors}
    (folder / "checkpoints").mkdir(parents=True)
    text = json.dumps(config, indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(_yaml(config), encoding="utf-8")
    vlm.llm_backbone.save_definition(folder / "llm_backbone")
    torch.save({"model": weights}, folder / "checkpoints" / "latest-checkpoint.pt")
    for part in _unknown_to_older_code(vlm, config["model"], weights):
        log.warning("The older code does not know %s; prismatic.load does", part)


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False)


def _unknown_to_older_code(vlm: PrismaticVLM, model: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    found = []
    if "aggregator" in weights or type(vlm.aggregator).__name__ != "Concat":
        found.append(f"the frame aggregator {model.get('frame_aggregator')}")
    if vlm.layout != "after-bos":
        found.append(f"the layout {vlm.layout} of visual tokens")
    if not model.get("pretrained_backbones", True):
        found.append("backbones that were not published")
    return found
