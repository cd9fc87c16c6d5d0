"""From a dataset's configuration to its rows, its examples and its batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from prismatic.conf.data import DatasetConfig
from prismatic.conf.run import PretrainConfig
from prismatic.data.annotations import load_records
from prismatic.data.by_clips import by_clips
from prismatic.data.dataset import ClipDataset
from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_reader import CachedReader
from prismatic.data.loader import StepLoader
from prismatic.data.media import reader_of
from prismatic.data.pack import collate
from prismatic.data.watch import ReadingWatch
from prismatic.eval.in_training import TrainingQuestions
from prismatic.prompting import TEMPLATES
from prismatic.train.context import DataShare
from prismatic.train.validation import ValidationSet
from prismatic.types import Record
from prismatic.webvid.online import weave_epochs

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)


def read_annotations(
    data: DatasetConfig, stage: str, *, seed: int = 0, num_frames: int = 1
) -> Sequence[Sequence[Record]]:
    """The rows of each epoch: of each annotation file in turn, or woven anew of one file's clips.

    Raises ValueError naming file and row.
    """
    if data.weave.enabled:
        return weave_epochs(data, stage, seed=seed, num_frames=num_frames)
    files, media_root = data.components(stage)
    for file in files:
        if file.suffix == ".parquet":
            raise ValueError(
                f"{file} is a catalog of clips; pass --dataset.weave.videos_per_example 4 (or 1) to train on it"
            )
    return [load_records(file, media_root) for file in files]


def conversation_texts(records: Sequence[Sequence[Record]]) -> Iterable[str]:
    """Every message of the data: what a tokenizer that is trained on the spot sees."""
    for epoch in records:
        for record in epoch:
            for turn in record.turns:
                yield turn.text


def validation_set(
    name: str,
    records: Sequence[Sequence[Record]],
    *,
    cfg: PretrainConfig,
    vlm: PrismaticVLM,
    share: DataShare,
    cache: FeatureCache | None,
) -> ValidationSet:
    """One validation dataset, its rows told apart by their number of clips, and what is asked of it while training.

    Of several files, or of rows woven anew in each epoch, those of the first epoch are taken.
    """
    data = cfg.validation_datasets()[name]
    groups = by_clips(records[0])
    loader = build_loader(data, list(groups.values()), cfg=cfg, vlm=vlm, share=share, train=False, cache=cache)
    questions = None
    if cfg.eval_task is not None:
        questions = TrainingQuestions(
            data,
            records[0],
            reader_of(data, cfg.model.num_frames, vlm.vision_backbone.image_spec, vlm.resize_strategy),
            task=cfg.eval_task,
            examples=cfg.eval_examples,
            options={"max_new_tokens": cfg.eval_max_new_tokens},
            seed=cfg.seed,
        )
        if cfg.best_metric not in ("validation_loss", *questions.names):
            known = ", ".join(["validation_loss", *questions.names])
            raise ValueError(f"--best_metric {cfg.best_metric} is no score of {name}; there are {known}")
    return ValidationSet(loader, tuple(groups), questions)


def build_loader(
    data: DatasetConfig,
    records: Sequence[Sequence[Record]],
    *,
    cfg: PretrainConfig,
    vlm: PrismaticVLM,
    share: DataShare,
    train: bool,
    cache: FeatureCache | None = None,
) -> StepLoader:
    """Batches of one dataset for this process, in an order that depends on the seed alone."""
    stage = cfg.model.stage(cfg.stage)
    dataset = build_dataset(data, records, cfg=cfg, vlm=vlm, train=train, cache=cache)
    dataset.check()
    packing = data.packing and vlm.llm_backbone.packs
    if data.packing and not packing:
        log.info(
            "--dataset.packing: rows are padded, because the attention of this LLM does not keep examples apart in "
            "one row without a mask of all of it (on a GPU, --model.attention flex may)"
        )
    make = partial(collate, pad_token_id=vlm.llm_backbone.tokenizer.pad_token_id, packing=packing)
    return StepLoader(
        dataset,
        (lambda examples: share.own(make(examples))) if share.echo else make,
        num_examples=dataset.num_examples,
        global_batch_size=stage.global_batch_size,
        per_device_batch_size=stage.per_device_batch_size,
        seed=cfg.seed,
        rank=share.rank,
        world_size=share.world_size,
        num_workers=data.num_workers,
        shuffle=train,
        packing=packing,
        prefetch=data.prefetch,
    )


def build_dataset(
    data: DatasetConfig,
    records: Sequence[Sequence[Record]],
    *,
    cfg: PretrainConfig,
    vlm: PrismaticVLM,
    train: bool,
    cache: FeatureCache | None = None,
) -> ClipDataset:
    """The examples of one dataset, as this model is trained on them. cache: used if `data` asks for one."""
    tokenizer = vlm.llm_backbone.tokenizer
    caption = TEMPLATES.get("caption").for_tokenizer(tokenizer)
    augmentations = data.augmentations if train else ()
    spec = vlm.vision_backbone.image_spec
    read = reader_of(data, cfg.model.num_frames, spec, vlm.resize_strategy, augmentations)
    return ClipDataset(
        records,
        read=read,
        # The align stage learns captions alone: no question in front of them.
        template=caption if cfg.stage == "align" else vlm.template,
        tokenizer=tokenizer,
        layout=vlm.layout,
        max_length=cfg.model.llm_max_length,
        tokens_per_clip=vlm.tokens_per_clip,
        context_length=vlm.llm_backbone.context_length,
        rope_factor=vlm.llm_backbone.rope_factor,
        seed=cfg.seed,
        on_error=data.on_error,
        train=train,
        watch=ReadingWatch(data.decode_timeout),
        features=CachedReader(read, cache) if cache is not None and data.feature_cache is not None else None,
    )
