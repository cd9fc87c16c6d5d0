"""What training starts from: the weights of another model, an aligned projector, fresh adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.conf.run import PretrainConfig
from prismatic.conf.token import read_token
from prismatic.models.checkpoints import (
    CheckpointLoadError,
    apply_weights,
    modules_in,
    read_shapes,
    read_weights,
    resolve_source,
)
from prismatic.models.llm import lora
from prismatic.models.vlm import PrismaticVLM

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Start:
    """What `--model.init_from_model` brings.

    weights: by file. llm_definition: the LLM's tokenizer and configuration, if it has them. adapter: folder of LoRA
    adapters, if it was trained with them.
    """

    weights: dict[Path, dict[str, torch.Tensor]] = field(default_factory=dict)
    llm_definition: Path | None = None
    adapter: Path | None = None

    @property
    def modules(self) -> frozenset[str]:
        """Modules whose weights come with it, so that none are downloaded for them."""
        return frozenset().union(*(modules_in(state) for state in self.weights.values()))


def read_start(cfg: PretrainConfig, *, shapes_only: bool = False) -> Start:
    """The weights that `--model.init_from_model` names. Raises ValueError when there are none, or none that load.

    shapes_only: tensors on the meta device, for a look at what a run would be.
    """
    model = cfg.model
    if not model.init_from_model:
        return Start()
    source = resolve_source(model.init_from_model, repo_id=model.repo_id, hf_token=read_token(cfg.hf_token))
    read = read_shapes if shapes_only else read_weights
    weights = {path: read(path) for path in source.files}
    return Start(weights, source.llm_definition, source.adapter)


def start_from(vlm: PrismaticVLM, cfg: PretrainConfig, start: Start) -> list[str]:
    """Put the weights that training starts from into `vlm`; returns the modules whose weights no id can bring back.

    Raises ValueError when `--stage finetune` of a two-stage architecture has no aligned projector to start from.
    """
    model = cfg.model
    unsaved = set() if model.pretrained_backbones else {"vision_backbone", "llm_backbone"}
    if unsaved and model.model_path is not None:
        unsaved.add("projector")
    for path, weights in start.weights.items():
        apply_weights(vlm, weights, path)
    unsaved |= start.modules
    if start.adapter is not None:
        lora.load_adapter(vlm.llm_backbone, start.adapter)
        lora.merge_adapter(vlm.llm_backbone)
        unsaved.add("llm_backbone")
    if cfg.pretrained_checkpoint is not None:
        weights = read_weights(cfg.pretrained_checkpoint)
        projector = {key: value for key, value in weights.items() if key.startswith(("projector.", "aggregator."))}
        if not projector:
            raise CheckpointLoadError(f"--pretrained_checkpoint {cfg.pretrained_checkpoint} holds no projector")
        apply_weights(vlm, projector, cfg.pretrained_checkpoint)
    elif cfg.stage != "align" and model.needs_align_checkpoint and not model.init_from_model:
        raise ValueError(
            f"--model.arch_specifier {model.arch_specifier} starts --stage {cfg.stage} from an aligned projector: run "
            "--stage align first and pass its checkpoint with --pretrained_checkpoint, or use "
            f"--model.arch_specifier no-align+{model.arch_specifier}"
        )
    return sorted(unsaved)


def add_adapters(vlm: PrismaticVLM, cfg: PretrainConfig) -> None:
    """Put LoRA adapters into the LLM when the configuration asks for them. Its weights must be loaded before."""
    wanted = cfg.model.lora
    if wanted.rank:
        lora.add_adapter(
            vlm.llm_backbone,
            rank=wanted.rank,
            alpha=wanted.alpha,
            dropout=wanted.dropout,
            target_modules=wanted.target_modules,
            seed=cfg.seed,
        )
