"""Model configurations: what is composed, and how each stage trains it.

`ModelConfig` is a draccus choice: `--model.type ID` picks a preset of `presets.py`, any field can then be overridden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import draccus

STAGES = ("align", "finetune", "full-finetune")
DEFAULT_MODEL_ID = "prism-clip+7b"
NATIVE_MODEL_ID = "hf-vlm"
_COMPOSED = ("vision_backbone_id", "llm_backbone_id", "arch_specifier", "frame_aggregator", "frame_aggregator_options")
_COMPOSED += ("visual_token_layout", "rope_scaling_factor")
ATTENTIONS = ("auto", "sdpa", "flex", "flash", "varlen")
RECOMPUTES = ("none", "full", "selective")
ROPE_SCALINGS = ("dynamic", "linear", "yarn")


@dataclass(frozen=True)
class StageConfig:
    """The `align_*` or `finetune_*` fields of a ModelConfig without their prefix, for one training stage."""

    stage: str
    epochs: int
    max_steps: int | None
    global_batch_size: int
    per_device_batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    lr_scheduler_type: str
    warmup_ratio: float
    train_strategy: str
    optimizer: str = "adamw"
    decay_ratio: float = 0.2

    @property
    def prefix(self) -> str:
        """What the flags of these fields begin with."""
        return "--model.align_" if self.stage == "align" else "--model.finetune_"


@dataclass
class LoRAConfig:
    """Low-rank adapters in the LLM: stages finetune and full-finetune then train them in the place of its weights."""

    rank: int = 0  # Rank of the adapters; 0: none, the LLM's own weights are trained
    alpha: float = 16.0  # Adapters are scaled by alpha / rank
    dropout: float = 0.05  # Dropout in front of the adapters
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")  # Layers that get one, in brackets; '["all-linear"]': all

    def validate(self, stage: str) -> None:
        """Raises ValueError naming the flag when a value cannot work, or has no effect."""
        if self.rank < 0:
            raise ValueError(f"--model.lora.rank must be at least 0, got {self.rank}")
        if not self.rank:
            if self != LoRAConfig():
                raise ValueError("--model.lora.* has no effect without --model.lora.rank; for example pass 16")
            return
        if stage == "align":
            raise ValueError("--model.lora.rank has no effect in --stage align, which does not train the LLM; drop it")
        if not self.alpha > 0:
            raise ValueError(f"--model.lora.alpha must be greater than 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--model.lora.dropout must be at least 0 and less than 1, got {self.dropout}")
        if not self.target_modules:
            raise ValueError("""--model.lora.target_modules is empty; for example pass '["q_proj","v_proj"]'""")


@dataclass
class ModelConfig(draccus.ChoiceRegistry):
    """A vision backbone, a frame aggregator, a projector and an LLM by id, and the optimization of each stage."""

    model_id: str = DEFAULT_MODEL_ID  # Name of this composition; part of the default run id
    vision_backbone_id: str = "clip-vit-l-336px"  # `python -m prismatic list vision`; `video-ID` is the same as ID
    llm_backbone_id: str = "llama2-7b-pure"  # `python -m prismatic list llm`, a hub name, or a local folder
    arch_specifier: str = "no-align+gelu-mlp"  # [no-align+]linear|gelu-mlp|fused-gelu-mlp; no-align+: no stage 1 needed
    model_path: str | None = None  # With --model.type hf-vlm: a Transformers VLM, by hub name or local folder
    image_size: int | None = None  # With --model.type hf-vlm: side of a frame in pixels; default: the checkpoint's own
    image_resize_strategy: str = "resize-naive"  # letterbox, resize-naive, resize-crop; processor (hf-vlm): its own
    llm_max_length: int = 2048  # Longest text in tokens; visual tokens are counted on top, against the LLM's context

    num_frames: int = 8  # Frames taken from a video (an image is one frame)
    frame_aggregator: str = "concat"  # How frames become visual tokens; `python -m prismatic list aggregator`
    frame_aggregator_options: dict[str, Any] = field(default_factory=dict)  # Options of the aggregator, as JSON
    visual_token_layout: Literal["after-bos", "inline"] = "after-bos"  # Where visual tokens stand in the sequence
    prompt_template: str | None = None  # Template id; default: the one that the LLM's row names
    pretrained_backbones: bool = True  # false: backbones from their configs with random weights, nothing downloaded
    rope_scaling_factor: float | None = None  # Stretch the LLM's context by this factor (RoPE scaling)
    rope_scaling_type: str = "dynamic"  # How: dynamic (nothing changes within the original context), linear, yarn
    trust_remote_code: bool = False  # Allow code from a model repository to run

    lora: LoRAConfig = field(default_factory=LoRAConfig)  # Low-rank adapters in the LLM

    init_from_model: str | None = None  # Start from these weights: a run dir, a checkpoint file, or a model id
    repo_id: str | None = None  # Hub repository in which `init_from_model` is a folder

    align_epochs: int = 1  # Passes over the align data
    align_max_steps: int | None = None  # Stop after this many optimizer steps, whatever align_epochs says
    align_global_batch_size: int = 256  # Examples per optimizer step over all processes
    align_per_device_batch_size: int = 16  # Examples per forward pass and process; the rest is accumulated
    align_learning_rate: float = 1e-3  # Peak learning rate
    align_weight_decay: float = 0.0  # AdamW decay of matrices (never of biases and norms)
    align_max_grad_norm: float = 1.0  # Clip the gradient to this norm
    align_lr_scheduler_type: str = "linear-warmup+cosine-decay"  # or constant, wsd (constant, then a straight decay)
    align_warmup_ratio: float = 0.03  # Share of the steps that warm up
    align_decay_ratio: float = 0.2  # Share of the steps that decay, of the schedule wsd
    align_optimizer: str = "adamw"  # adamw-bf16, adamw-8bit (less memory), muon, schedule-free; `list optimizer`
    align_train_strategy: str = "fsdp-shard-grad-op"  # fsdp-full-shard, fsdp-shard-grad-op, fsdp-hybrid, ddp

    finetune_epochs: int = 1  # Passes over the finetune data (stages finetune and full-finetune)
    finetune_max_steps: int | None = None  # Stop after this many optimizer steps, whatever finetune_epochs says
    finetune_global_batch_size: int = 128  # Examples per optimizer step over all processes
    finetune_per_device_batch_size: int = 16  # Examples per forward pass and process; the rest is accumulated
    finetune_learning_rate: float = 2e-5  # Peak learning rate
    finetune_weight_decay: float = 0.1  # AdamW decay of matrices (never of biases and norms)
    finetune_max_grad_norm: float = 1.0  # Clip the gradient to this norm
    finetune_lr_scheduler_type: str = "linear-warmup+cosine-decay"  # or constant, wsd (constant, then a straight decay)
    finetune_warmup_ratio: float = 0.03  # Share of the steps that warm up
    finetune_decay_ratio: float = 0.2  # Share of the steps that decay, of the schedule wsd
    finetune_optimizer: str = "adamw"  # adamw-bf16, adamw-8bit (less memory), muon, schedule-free; `list optimizer`
    finetune_train_strategy: str = "fsdp-full-shard"  # fsdp-full-shard, fsdp-shard-grad-op, fsdp-hybrid, ddp

    learning_rates: dict[str, float] = field(default_factory=dict)  # Peak rates by name: '{"projector.*": 1e-3}'
    freeze: tuple[str, ...] = ()  # Weights that stay as they are, by name, e.g. '["*embed_tokens*", "*layers.0.*"]'
    cpu_offload: bool = False  # Weights and optimizer wait in the host's memory: a GPU holds what it works on

    attention: str = "auto"  # How the LLM attends: sdpa, flex, flash, varlen; auto: the best one that is there
    activation_checkpointing: str | None = None  # Recomputed in the backward pass: none, full, selective; default: full
    enable_gradient_checkpointing: bool = True  # Older flag: false is --model.activation_checkpointing none
    compile: bool = False  # torch.compile of each decoder layer and vision block: a slow first step, then faster
    tf32: bool = False  # On a GPU: fp32 matrix products in TF32, faster and less precise; bf16 ones are not concerned
    enable_mixed_precision_training: bool = True  # bf16 compute on a GPU (fp32 weights); a CPU always computes in fp32
    reduce_in_full_precision: bool = False  # Reduce gradients over processes in fp32

    @classmethod
    def default_choice_name(cls) -> str:
        """Preset used when only `--model.FIELD` is given."""
        return DEFAULT_MODEL_ID

    @property
    def projector_id(self) -> str:
        """The projector named by arch_specifier, without `no-align+`."""
        return self.arch_specifier.removeprefix("no-align+")

    @property
    def recompute(self) -> str:
        """What of the LLM's layers is computed again in the backward pass: "none", "full" or "selective"."""
        return self.activation_checkpointing or ("full" if self.enable_gradient_checkpointing else "none")

    @property
    def needs_align_checkpoint(self) -> bool:
        """Whether `--stage finetune` starts from a projector that an `align` run trained."""
        return not self.arch_specifier.startswith("no-align+")

    def stage(self, stage: str) -> StageConfig:
        """The optimization fields of one stage; `full-finetune` shares those of `finetune`."""
        prefix = "align_" if stage == "align" else "finetune_"
        names = [f.name for f in fields(StageConfig) if f.name != "stage"]
        return StageConfig(stage=stage, **{name: getattr(self, prefix + name) for name in names})

    def _validate_native(self) -> None:
        """A native VLM is one checkpoint, the others are composed; a flag of the other kind would be ignored."""
        if self.model_id == NATIVE_MODEL_ID:
            if not self.model_path:
                raise ValueError(f"--model.type {NATIVE_MODEL_ID} needs --model.model_path: a hub name or local folder")
            fixed = ModelConfig.get_choice_class(NATIVE_MODEL_ID)()
            for name in _COMPOSED:
                if getattr(self, name) != getattr(fixed, name):
                    raise ValueError(
                        f"--model.{name} has no meaning for --model.type {NATIVE_MODEL_ID}, whose parts are those of "
                        "--model.model_path; leave it out"
                    )
            if self.image_size is not None and self.image_size < 1:
                raise ValueError(f"--model.image_size must be at least 1, got {self.image_size}")
        elif self.model_path is not None or self.image_size is not None:
            name = "model_path" if self.model_path is not None else "image_size"
            raise ValueError(f"--model.{name} goes with --model.type {NATIVE_MODEL_ID}")

    def _validate_optimization(self, cfg: StageConfig, prefix: str) -> None:
        """Schedules and rates; ids are checked where they are resolved."""
        decays = cfg.lr_scheduler_type == "wsd"
        if decays and (not 0 < cfg.decay_ratio <= 1 or cfg.decay_ratio + cfg.warmup_ratio > 1):
            raise ValueError(
                f"{prefix}decay_ratio must be greater than 0 and, with {prefix}warmup_ratio, at most 1, got "
                f"{cfg.decay_ratio} and {cfg.warmup_ratio}"
            )
        if cfg.decay_ratio != StageConfig.decay_ratio and not decays:
            raise ValueError(f"{prefix}decay_ratio has no effect without {prefix}lr_scheduler_type wsd; drop it")
        if any(len(pattern) == 1 and pattern != "*" for pattern in self.freeze):
            raise ValueError(
                "--model.freeze takes a list in brackets, for example --model.freeze '[\"*embed_tokens*\"]'"
            )
        for pattern, rate in self.learning_rates.items():
            if not rate > 0:
                raise ValueError(
                    f"--model.learning_rates: the rate of '{pattern}' must be greater than 0, got {rate}; to train "
                    f"none of it pass --model.freeze '[\"{pattern}\"]'"
                )

    def _validate_compute(self) -> None:
        """Raises ValueError for how the layers are computed."""
        if self.attention not in ATTENTIONS:
            raise ValueError(f"--model.attention must be {', '.join(ATTENTIONS)}, got '{self.attention}'")
        asked = self.activation_checkpointing
        if asked is not None and asked not in RECOMPUTES:
            raise ValueError(f"--model.activation_checkpointing must be {', '.join(RECOMPUTES)}, got '{asked}'")
        older = self.enable_gradient_checkpointing
        # Given where it is not what the preset says; what the preset says gives way to the newer flag.
        given = older != type(self)().enable_gradient_checkpointing
        if asked is not None and given and older != (asked != "none"):
            raise ValueError(
                f"--model.activation_checkpointing {asked} contradicts --model.enable_gradient_checkpointing "
                f"{str(older).lower()}; leave the latter, older one out"
            )

    def validate(self, stage: str, world_size: int) -> None:
        """Raises ValueError naming the flag when a value cannot work. Ids are checked where they are resolved."""
        self._validate_compute()
        if self.num_frames < 1:
            raise ValueError(f"--model.num_frames must be at least 1, got {self.num_frames}")
        if self.llm_max_length < 8:
            raise ValueError(f"--model.llm_max_length must be at least 8, got {self.llm_max_length}")
        self.lora.validate(stage)
        self._validate_native()
        if self.rope_scaling_type not in ROPE_SCALINGS:
            raise ValueError(
                f"--model.rope_scaling_type must be {', '.join(ROPE_SCALINGS)}, got '{self.rope_scaling_type}'"
            )
        if self.repo_id is not None and self.init_from_model is None:
            raise ValueError(
                f"--model.repo_id {self.repo_id} says where --model.init_from_model is, which is not given; pass "
                "--model.init_from_model FOLDER, a folder of that repository"
            )
        cfg = self.stage(stage)
        prefix = cfg.prefix
        for name in ("epochs", "global_batch_size", "per_device_batch_size"):
            if getattr(cfg, name) < 1:
                raise ValueError(f"{prefix}{name} must be at least 1, got {getattr(cfg, name)}")
        if cfg.max_steps is not None and cfg.max_steps < 1:
            raise ValueError(f"{prefix}max_steps must be at least 1, got {cfg.max_steps}")
        if not 0 <= cfg.warmup_ratio <= 1:
            raise ValueError(f"{prefix}warmup_ratio must be between 0 and 1, got {cfg.warmup_ratio}")
        self._validate_optimization(cfg, prefix)
        _check_rates(cfg, prefix)
        step = cfg.per_device_batch_size * world_size
        if cfg.global_batch_size % step:
            raise ValueError(
                f"{prefix}global_batch_size {cfg.global_batch_size} is not a multiple of {prefix}per_device_batch_size "
                f"{cfg.per_device_batch_size} x {world_size} process(es) = {step}; for example pass "
                f"{prefix}global_batch_size {max(1, cfg.global_batch_size // step) * step}"
            )


def _check_rates(cfg: StageConfig, prefix: str) -> None:
    for name in ("learning_rate", "max_grad_norm"):
        if not 0 < getattr(cfg, name) < math.inf:
            raise ValueError(f"{prefix}{name} must be a number greater than 0, got {getattr(cfg, name)}")
    if not 0 <= cfg.weight_decay < math.inf:
        raise ValueError(f"{prefix}weight_decay must be 0 or more, got {cfg.weight_decay}")
