"""The tables behind `python -m prismatic list`: every id with its sizes and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prismatic.conf.run  # noqa: F401  registers presets and datasets
from prismatic.conf.data import DatasetConfig
from prismatic.conf.models import NATIVE_MODEL_ID, ModelConfig
from prismatic.registry import Registry

Table = tuple[list[str], list[list[str]]]
"""Header and rows, all of one length."""

# The clip that aggregators are compared on: 8 frames of CLIP ViT-L/14 at 336 pixels.
EXAMPLE_T, EXAMPLE_P, EXAMPLE_WIDTH = 8, 576, 1024


def short(count: int | None) -> str:
    """A number of weights to three digits, "-" for an unknown one."""
    if count is None:
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def text_of(table: Table) -> str:
    """The table as aligned lines."""
    header, rows = table
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _vision() -> Table:
    from prismatic.models.facts import vision_facts
    from prismatic.models.vision.zoo import VISION

    rows = []
    for name in VISION.names():
        facts = vision_facts(name)
        sizes = [str(facts.resolution), str(facts.width), str(facts.patches), short(facts.parameters)]
        rows.append([name, *sizes, facts.source])
    return ["vision backbone", "pixels", "width", "tokens a frame", "parameters", "source"], rows


def _llms() -> Table:
    from prismatic.models.facts import llm_facts
    from prismatic.models.llm.zoo import LLMS

    rows = []
    for name, spec in LLMS.items():
        facts = llm_facts(name)
        sizes = ["-" if n is None else str(n) for n in (facts.width, facts.layers, facts.context)]
        rows.append([name, *sizes, short(facts.parameters), spec.template or "the tokenizer's", facts.source])
    return ["LLM", "width", "layers", "context", "parameters", "template", "source"], rows


def _models() -> Table:
    from prismatic.conf.hub import HUB_MODELS
    from prismatic.models.facts import llm_facts, vision_facts

    rows = []
    for name, cls in ModelConfig.get_known_choices().items():
        cfg = cls()
        if name == NATIVE_MODEL_ID:
            rows.append([name, "(of --model.model_path)", *["-"] * 7])
            continue
        vision, llm = vision_facts(cfg.vision_backbone_id), llm_facts(cfg.llm_backbone_id)
        total = None if llm.parameters is None else vision.parameters + llm.parameters
        source = HUB_MODELS.get(name).repo_id if name in HUB_MODELS else "-"
        rows.append(
            [
                *(name, cfg.vision_backbone_id, cfg.llm_backbone_id, cfg.arch_specifier, cfg.image_resize_strategy),
                *("-" if llm.width is None else str(llm.width), str(vision.patches), short(total), source),
            ]
        )
    head = ["model", "vision", "LLM", "architecture", "resize", "width", "tokens a frame", "parameters", "trained"]
    return head, rows


def _native() -> Table:
    from prismatic.models.native.parts import NATIVE_FAMILIES

    rows = [[name, family.model_class, family.resize] for name, family in NATIVE_FAMILIES.items()]
    return ["native family", "Transformers class (--model.type hf-vlm --model.model_path ...)", "resize"], rows


def _datasets() -> Table:
    rows = []
    for name, cls in DatasetConfig.get_known_choices().items():
        annotations, media = cls().finetune_stage_components
        rows.append([name, str(annotations) if name != "custom" else "(yours)", str(media)])
    return ["dataset", "annotations (below --dataset.dataset_root_dir)", "media"], rows


def _aggregators() -> Table:
    import torch

    from prismatic.models.aggregators import AGGREGATORS, build_aggregator
    from prismatic.models.facts import count_parameters

    rows = []
    for name, entry in AGGREGATORS.items():
        with torch.device("meta"):
            module: Any = build_aggregator(name, vision_dim=EXAMPLE_WIDTH, num_patches=EXAMPLE_P)
        tokens = module.num_tokens(EXAMPLE_T, EXAMPLE_P)
        rows.append([name, str(tokens), short(count_parameters(module)), _first_line(entry)])
    return ["aggregator", f"tokens of {EXAMPLE_T} x {EXAMPLE_P}", "parameters", "what it does"], rows


def _described(kind: str, find: Callable[[], Registry[Any]]) -> Callable[[], Table]:
    return lambda: ([kind, "what it does"], [[name, _first_line(entry)] for name, entry in find().items()])


def _projectors() -> Registry[Any]:
    from prismatic.models.projectors import PROJECTORS

    return PROJECTORS


def _samplers() -> Registry[Any]:
    from prismatic.video.sampling import SAMPLERS

    return SAMPLERS


def _resizes() -> Registry[Any]:
    from prismatic.video.transforms import RESIZES

    return RESIZES


def _forms() -> Registry[Any]:
    from prismatic.webvid.forms import FORMS

    return FORMS


def _schedules() -> Registry[Any]:
    from prismatic.train.optim import SCHEDULES

    return SCHEDULES


def _optimizers() -> Table:
    from prismatic.train.optim import OPTIMIZERS
    from prismatic.train.optim.optimizers import OptimizerSpec

    def state(spec: OptimizerSpec) -> str:
        least = spec.state_bytes if spec.matrix_bytes is None else spec.matrix_bytes
        return f"{least:.3g}" if least == spec.state_bytes else f"{least:.3g} to {spec.state_bytes:.3g}"

    rows = [[name, state(spec), spec.package or "", spec.about] for name, spec in OPTIMIZERS.items()]
    return ["optimizer", "bytes of state a weight", "needs", "what it does"], rows


def _templates() -> Table:
    from prismatic.prompting import TEMPLATES

    return ["template", "a first question"], [[name, repr(t.human("...", first=True))] for name, t in TEMPLATES.items()]


def _first_line(entry: Any) -> str:
    return (entry.__doc__ or "").strip().split("\n")[0]


KINDS: dict[str, Callable[[], Table]] = {
    "vision": _vision,
    "llm": _llms,
    "model": _models,
    "native": _native,
    "dataset": _datasets,
    "aggregator": _aggregators,
    "projector": _described("projector", _projectors),
    "sampler": _described("sampler", _samplers),
    "resize": _described("resize strategy", _resizes),
    "form": _described("form of woven examples", _forms),
    "template": _templates,
    "optimizer": _optimizers,
    "schedule": _described("learning-rate schedule", _schedules),
}
"""What can be listed, each with the function that makes its table."""
