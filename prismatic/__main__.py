"""`python -m prismatic list [KIND]`: the ids there are, in a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import prismatic.conf.run  # noqa: F401  registers presets and datasets
from prismatic.conf import cli
from prismatic.conf.data import DatasetConfig
from prismatic.conf.models import NATIVE_MODEL_ID, ModelConfig
from prismatic.registry import Registry, unknown_id_message

USAGE = "usage: python -m prismatic list [KIND] [--plugins a.b,c.d]"
Table = tuple[list[str], list[list[str]]]


def _models() -> Table:
    rows = []
    for name, cls in ModelConfig.get_known_choices().items():
        cfg = cls()
        parts = [cfg.vision_backbone_id, cfg.llm_backbone_id, cfg.arch_specifier]
        if name == NATIVE_MODEL_ID:
            parts = ["(those of --model.model_path)", "", ""]
        rows.append([name, *parts, cfg.image_resize_strategy])
    return ["model", "vision", "LLM", "architecture", "resize"], rows


def _datasets() -> Table:
    rows = []
    for name, cls in DatasetConfig.get_known_choices().items():
        annotations, media = cls().finetune_stage_components
        rows.append([name, str(annotations) if name != "custom" else "(yours)", str(media)])
    return ["dataset", "annotations (below --dataset.dataset_root_dir)", "media"], rows


def _vision() -> Table:
    from prismatic.models.vision.zoo import VISION

    return ["vision backbone", "made of"], [[name, _row(spec)] for name, spec in VISION.items()]


def _native() -> Table:
    from prismatic.models.native.parts import NATIVE_FAMILIES

    rows = [[name, family.model_class, family.resize] for name, family in NATIVE_FAMILIES.items()]
    return ["native family", "Transformers class (--model.type hf-vlm --model.model_path ...)", "resize"], rows


def _llms() -> Table:
    from prismatic.models.llm.zoo import LLMS

    return ["LLM", "made of"], [[name, _row(spec)] for name, spec in LLMS.items()]


def _functions(kind: str, find: Callable[[], Registry[Any]]) -> Callable[[], Table]:
    return lambda: ([kind, "what it does"], [[name, _first_line(entry)] for name, entry in find().items()])


def _aggregators() -> Registry[Any]:
    from prismatic.models.aggregators import AGGREGATORS

    return AGGREGATORS


def _projectors() -> Registry[Any]:
    from prismatic.models.projectors import PROJECTORS

    return PROJECTORS


def _samplers() -> Registry[Any]:
    from prismatic.video.sampling import SAMPLERS

    return SAMPLERS


def _resizes() -> Registry[Any]:
    from prismatic.video.transforms import RESIZES

    return RESIZES


def _templates() -> Table:
    from prismatic.prompting import TEMPLATES

    return ["template", "a first question"], [[name, repr(t.human("...", first=True))] for name, t in TEMPLATES.items()]


KINDS: dict[str, Callable[[], Table]] = {
    "vision": _vision,
    "llm": _llms,
    "model": _models,
    "native": _native,
    "dataset": _datasets,
    "aggregator": _functions("aggregator", _aggregators),
    "projector": _functions("projector", _projectors),
    "sampler": _functions("sampler", _samplers),
    "resize": _functions("resize strategy", _resizes),
    "template": _templates,
}


def _first_line(entry: Any) -> str:
    return (entry.__doc__ or "").strip().split("\n")[0]


def _row(spec: Any) -> str:
    values = ((field.name, getattr(spec, field.name)) for field in fields(spec))
    return ", ".join(f"{name} {value}" for name, value in values if value not in (None, {}, (), False, ""))


def _print(table: Table) -> None:
    header, rows = table
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> int:
    """Print the tables asked for; all of them without a KIND."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(f"{USAGE}\nKIND: {', '.join(KINDS)}; all without one")
        return 0
    if args[0] != "list":
        raise ValueError(f"unknown command '{args[0]}'; {USAGE}")
    args = args[1:]
    if "--plugins" in args:
        position = args.index("--plugins")
        cli.import_plugins(",".join(args[position + 1 : position + 2]))
        del args[position : position + 2]
    for kind in args or list(KINDS):
        if kind not in KINDS:
            raise ValueError(unknown_id_message("kind", kind, KINDS))
        _print(KINDS[kind]())
        print()
    return 0


if __name__ == "__main__":
    cli.run(main)
