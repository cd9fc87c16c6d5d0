"""The composition root: from a configuration to a model, its data and a trainer, top to bottom."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prismatic import dist
from prismatic.build_data import build_loader, conversation_texts, read_annotations, validation_set
from prismatic.conf.models import ModelConfig
from prismatic.conf.run import PretrainConfig
from prismatic.conf.token import read_token
from prismatic.data.weave import WovenEpochs
from prismatic.dist import World
from prismatic.eval.report import write_report
from prismatic.eval.tasks import TASKS
from prismatic.models.aggregators import build_aggregator
from prismatic.models.llm import lora
from prismatic.models.llm.attention import choose_attention, use_attention
from prismatic.models.llm.build import build_llm
from prismatic.models.llm.context import use_context
from prismatic.models.native.build import NativeSource, build_native
from prismatic.models.projectors import build_projector
from prismatic.models.vision.zoo import build_vision
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import TEMPLATES, ChatTemplate, tokenizer_template
from prismatic.registry import unknown_id_message
from prismatic.start import add_adapters, read_start, start_from
from prismatic.train.context import share_data
from prismatic.train.features import FeatureRun, cache_of
from prismatic.train.folder import LLM_DEFINITION, resumed_definition
from prismatic.train.layers import use_tf32
from prismatic.train.memory.forecast import Forecast
from prismatic.train.optim import check_patterns, freeze_matching
from prismatic.train.run_dir import prepare_run_dir
from prismatic.train.trainer import Trainer, check_stage
from prismatic.webvid.online import refuse_shared_clips

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def build_trainer(cfg: PretrainConfig, world: World) -> Trainer:
    """A trainer that is ready to fit. Everything that can be wrong with the input is said before a weight is read."""
    check_stage(cfg.model.stage(cfg.stage), cfg.model.cpu_offload)
    if cfg.eval_task is not None and cfg.eval_task not in TASKS:
        raise ValueError(unknown_id_message("task", cfg.eval_task, TASKS.names(), "--eval_task"))
    half = cfg.model.enable_mixed_precision_training and world.device.type == "cuda"
    choose_attention(cfg.model.attention, world.device, half)
    use_tf32(cfg.model.tf32, world.device)
    cache = cache_of(cfg)
    read = partial(read_annotations, stage=cfg.stage, seed=cfg.seed, num_frames=cfg.model.num_frames)
    train_records = read(cfg.dataset)
    val_records = {name: read(data) for name, data in cfg.validation_datasets().items()}
    for held_out in val_records.values():
        if isinstance(train_records, WovenEpochs):
            refuse_shared_clips(train_records, held_out)
    run_dir = prepare_run_dir(cfg)
    definition = run_dir / LLM_DEFINITION
    start = read_start(cfg)
    build = partial(
        build_vlm,
        cfg.model,
        seed=cfg.seed,
        hf_token=read_token(cfg.hf_token),
        llm_definition=definition if definition.is_dir() else resumed_definition(cfg.resume) or start.llm_definition,
        texts=partial(conversation_texts, train_records),
    )
    if cfg.model.pretrained_backbones and (cfg.model.freeze or cfg.model.learning_rates):
        check_names(cfg, build)
    vlm = build(weights_come=start.modules)
    save_llm_definition(vlm, definition)
    unsaved = start_from(vlm, cfg, start)
    del start
    add_adapters(vlm, cfg)
    attention = use_attention(vlm.llm_backbone, cfg.model.attention, world.device, half)
    log.info(f"Attention of the LLM: {attention.removeprefix('prismatic_')}; recomputed: {cfg.model.recompute}")
    share = share_data(world, cfg.context_parallel_size)
    if share.shards is not None:
        use_context(vlm.llm_backbone, share.shards)
    choose_trained(vlm, cfg)
    loader = partial(build_loader, cfg=cfg, vlm=vlm, share=share, cache=cache)
    train_loader = loader(cfg.dataset, train_records, train=True)
    forecast = Forecast(cfg, vlm, train_loader.dataset, world, train_loader.packing)
    if dist.rank_zero():
        forecast.warn()
    trainer = Trainer(
        cfg,
        vlm,
        train_loader=train_loader,
        val_loader={
            name: validation_set(name, rows, cfg=cfg, vlm=vlm, share=share, cache=cache)
            for name, rows in val_records.items()
        },
        world=world,
        run_dir=run_dir,
        frozen_modules=[n for n in unsaved if n not in vlm.trainable_modules() or lora.has_adapter(getattr(vlm, n))],
        features=FeatureRun(cfg, cache, train_records, val_records) if cache else None,
    )
    trainer.forecast, trainer.telling.final_page = forecast, write_report
    return trainer


def check_names(cfg: PretrainConfig, build: Callable[..., PrismaticVLM]) -> None:
    """Raises ValueError as `choose_trained`, of the model's outline: no weight is read. build: `build_vlm` of `cfg`."""
    with torch.device("meta"):
        outline = build(weights_come=frozenset({"vision_backbone", "llm_backbone"}))
        add_adapters(outline, cfg)
    choose_trained(outline, cfg)


def choose_trained(vlm: PrismaticVLM, cfg: PretrainConfig) -> None:
    """Freeze what the stage does not train, then what `--model.freeze` names.

    Raises ValueError for a pattern, there or in `--model.learning_rates`, that matches no weight to train.
    """
    vlm.freeze(cfg.stage)
    freeze_matching(vlm, cfg.model.freeze)
    check_patterns(vlm, cfg.model.learning_rates)
    if not any(parameter.requires_grad for parameter in vlm.parameters()):
        raise ValueError(f"--model.freeze freezes all that --stage {cfg.stage} trains; leave out one of its patterns")


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
        hf_token=hf_token,
        cache_dir=cache_dir,
    )
    # Weights that a checkpoint brings were learned with the published tokenizer, never with one trained on the spot.
    published = model.pretrained_backbones and "llm_backbone" in weights_come
    llm = build_llm(
        model.llm_backbone_id,
        pretrained=model.pretrained_backbones and "llm_backbone" not in weights_come,
        rope_scaling_factor=model.rope_scaling_factor,
        rope_scaling_type=model.rope_scaling_type,
        max_length=model.llm_max_length,
        hf_token=hf_token,
        cache_dir=cache_dir,
        trust_remote_code=model.trust_remote_code,
        fetch=published,
        tokenizer=llm_definition,
        texts=None if published else texts,
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
