"""The composition root: from a configuration to a model, its data and a trainer, top to bottom."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic import dist
from prismatic.conf.data import DatasetConfig
from prismatic.conf.models import ModelConfig
from prismatic.conf.run import PretrainConfig
from prismatic.data.annotations import load_records
from prismatic.data.dataset import ClipDataset, MediaReader
from prismatic.data.loader import StepLoader
from prismatic.data.pack import collate
from prismatic.dist import World
from prismatic.models.aggregators import build_aggregator
from prismatic.models.checkpoints import CheckpointLoadError, apply_weights, modules_in, read_weights, resolve_source
from prismatic.models.llm import lora
from prismatic.models.llm.build import build_llm
from prismatic.models.native.build import NativeSource, build_native
from prismatic.models.projectors import build_projector
from prismatic.models.vision.zoo import build_vision
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import TEMPLATES, ChatTemplate, tokenizer_template
from prismatic.train.run_dir import prepare_run_dir
from prismatic.train.trainer import Trainer, check_stage
from prismatic.types import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def build_trainer(cfg: PretrainConfig, world: World) -> Trainer:
    """A trainer that is ready to fit. Everything that can be wrong with the input is said before a weight is read."""
    check_stage(cfg.model.stage(cfg.stage))
    train_records = read_annotations(cfg.dataset, cfg.stage)
    val_records = read_annotations(cfg.val_dataset, cfg.stage) if cfg.val_dataset else []
    run_dir = prepare_run_dir(cfg)
    definition = run_dir / "llm_backbone"
    vlm = build_vlm(
        cfg.model,
        seed=cfg.seed,
        hf_token=read_token(cfg.hf_token),
        llm_definition=definition if definition.is_dir() else None,
        texts=partial(conversation_texts, train_records),
    )
    save_llm_definition(vlm, definition)
    unsaved = start_from(vlm, cfg)
    add_adapters(vlm, cfg)
    vlm.freeze(cfg.stage)
    loader = partial(build_loader, cfg=cfg, vlm=vlm, world=world)
    return Trainer(
        cfg,
        vlm,
        train_loader=loader(cfg.dataset, train_records, train=True),
        val_loader=loader(cfg.val_dataset, val_records, train=False) if cfg.val_dataset else None,
        world=world,
        run_dir=run_dir,
        frozen_modules=[n for n in unsaved if n not in vlm.trainable_modules() or lora.has_adapter(getattr(vlm, n))],
    )


def build_vlm(
    model: ModelConfig,
    *,
    seed: int = 0,
    hf_token: str | None = None,
    cache_dir: str | Path | None = None,
    llm_definition: Path | None = None,
    texts: Callable[[], Iterable[str]] | None = None,
    weights_come: frozenset[str] = frozenset(),
) -> PrismaticVLM:
    """The model that a configuration composes, on the CPU in fp32.

    llm_definition: folder with the LLM's configuration and tokenizer, as a run keeps it. texts: what a tokenizer is
    trained on where the LLM has none. weights_come: modules whose weights will be loaded from a checkpoint, so that
    none are downloaded for them.
    """
    if model.model_path is not None:
        source = NativeSource(
            model.model_path,
            pretrained=model.pretrained_backbones and not {"vision_backbone", "llm_backbone"} <= weights_come,
            definition=llm_definition,
            seed=seed,
            hub={"hf_token": hf_token, "cache_dir": cache_dir, "trust_remote_code": model.trust_remote_code},
        )
        return build_native(
            source,
            num_frames=model.num_frames,
            image_size=model.image_size,
            resize_strategy=model.image_resize_strategy,
            template_id=model.prompt_template,
            max_length=model.llm_max_length,
        )
    vision = build_vision(
        model.vision_backbone_id,
        pretrained=model.pretrained_backbones and "vision_backbone" not in weights_come,
        seed=seed,
    )
    llm = build_llm(
        model.llm_backbone_id,
        pretrained=model.pretrained_backbones and "llm_backbone" not in weights_come,
        rope_scaling_factor=model.rope_scaling_factor,
        max_length=model.llm_max_length,
        hf_token=hf_token,
        cache_dir=cache_dir,
        trust_remote_code=model.trust_remote_code,
        tokenizer=llm_definition,
        texts=texts,
        seed=seed,
    )
    return PrismaticVLM(
        vision,
        build_aggregator(
            model.frame_aggregator,
            vision_dim=vision.embed_dim,
            num_patches=vision.num_patches,
            seed=seed,
            options=model.frame_aggregator_options,
        ),
        build_projector(model.projector_id, vision.embed_dim, llm.embed_dim),
        llm,
        template=find_template(model.prompt_template or llm.template_id, llm.tokenizer),
        layout=model.visual_token_layout,
        num_frames=model.num_frames,
        resize_strategy=model.image_resize_strategy,
    )


def find_template(template_id: str | None, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The prompt template of an id; without one the tokenizer's own chat format, or `pure` when it has none."""
    if template_id is None and getattr(tokenizer, "chat_template", None):
        return tokenizer_template(tokenizer)
    return TEMPLATES.get(template_id or "pure").for_tokenizer(tokenizer)


def save_llm_definition(vlm: PrismaticVLM, folder: Path) -> None:
    """Keep the LLM's configuration and tokenizer in the run folder, so that `load` needs nothing from elsewhere."""
    if dist.rank_zero() and not folder.is_dir():
        partial_folder = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        vlm.llm_backbone.save_definition(partial_folder)
        partial_folder.rename(folder)
    dist.barrier()


def start_from(vlm: PrismaticVLM, cfg: PretrainConfig) -> list[str]:
    """Load the weights that training starts from; returns the modules whose weights no id can bring back.

    Raises ValueError when `--stage finetune` of a two-stage architecture has no aligned projector to start from.
    """
    model = cfg.model
    unsaved = set() if model.pretrained_backbones else {"vision_backbone", "llm_backbone"}
    if unsaved and model.model_path is not None:
        unsaved.add("projector")
    if model.init_from_model:
        source = resolve_source(model.init_from_model, repo_id=model.repo_id, hf_token=read_token(cfg.hf_token))
        for path in filter(None, (source.frozen, source.weights)):
            weights = read_weights(path)
            apply_weights(vlm, weights, path)
            unsaved |= modules_in(weights)
        if source.adapter is not None:
            lora.load_adapter(vlm.llm_backbone, source.adapter)
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


def build_loader(
    data: DatasetConfig,
    records: list[list[Record]],
    *,
    cfg: PretrainConfig,
    vlm: PrismaticVLM,
    world: World,
    train: bool,
) -> StepLoader:
    """Batches of one dataset for this process, in an order that depends on the seed alone."""
    stage = cfg.model.stage(cfg.stage)
    tokenizer = vlm.llm_backbone.tokenizer
    caption = TEMPLATES.get("caption").for_tokenizer(tokenizer)
    dataset = ClipDataset(
        records,
        read=MediaReader(
            num_frames=cfg.model.num_frames,
            sampler=data.sampler,
            decoder=data.decoder,
            short_clips=data.short_clips,
            image_spec=vlm.vision_backbone.image_spec,
            resize_strategy=vlm.resize_strategy,
            augmentations=data.augmentations if train else (),
        ),
        # The align stage learns captions alone: no question in front of them.
        template=caption if cfg.stage == "align" else vlm.template,
        tokenizer=tokenizer,
        layout=vlm.layout,
        max_length=cfg.model.llm_max_length,
        tokens_per_clip=vlm.tokens_per_clip,
        context_length=vlm.llm_backbone.context_length,
        seed=cfg.seed,
        on_error=data.on_error,
        train=train,
    )
    dataset.check()
    return StepLoader(
        dataset,
        partial(collate, pad_token_id=tokenizer.pad_token_id, packing=data.packing),
        num_examples=dataset.num_examples,
        global_batch_size=stage.global_batch_size,
        per_device_batch_size=stage.per_device_batch_size,
        seed=cfg.seed,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=data.num_workers,
        shuffle=train,
    )


def read_annotations(data: DatasetConfig, stage: str) -> list[list[Record]]:
    """The rows of each annotation file (one per epoch, in turn). Raises ValueError naming file and row."""
    files, media_root = data.components(stage)
    return [load_records(file, media_root) for file in files]


def conversation_texts(records: list[list[Record]]) -> Iterable[str]:
    """Every message of the data: what a tokenizer that is trained on the spot sees."""
    for epoch in records:
        for record in epoch:
            for turn in record.turns:
                yield turn.text


def read_token(hf_token: str) -> str | None:
    """The hub token behind `--hf_token`: a file's content, or the value of an environment variable.

    The default file may be absent. Raises ValueError when another name is neither a file nor a variable.
    """
    path = Path(hf_token).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8").strip() or None
    if hf_token in os.environ:
        return os.environ[hf_token]
    if hf_token in ("", ".hf_token"):
        return None
    raise ValueError(f"--hf_token: '{hf_token}' is neither a file nor an environment variable")
