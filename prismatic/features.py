"""`scripts/preprocess.py --cache_features`: every clip of a dataset through the vision backbone, once, onto disk.

Builds the backbone alone (no LLM), exactly as training will have it: same weights, same precision on this device, same
pixels. What is in the cache already is read and checked, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from prismatic import dist
from prismatic.build_data import read_annotations
from prismatic.conf.run import PreprocessConfig, PretrainConfig
from prismatic.conf.token import read_token
from prismatic.data.dataset import SampleError
from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_reader import CachedReader, ReadClip
from prismatic.data.feature_cache_size import amount
from prismatic.data.feature_cache_writer import FeatureWriter
from prismatic.data.loader import prepare_worker
from prismatic.data.media import reader_of
from prismatic.dist import World
from prismatic.models.checkpoints import apply_weights
from prismatic.models.linear import use_onednn
from prismatic.models.vision.zoo import build_vision
from prismatic.start import read_start
from prismatic.train.feature_estimate import estimate
from prismatic.train.features import distinct_media, open_cache, recipe
from prismatic.train.fsdp import cast_frozen
from prismatic.types import Medium

log = logging.getLogger(__name__)

SHOWN = 5  # broken clips that are named


@dataclass
class Outcome:
    """Clips of this process: found in the cache, encoded, found damaged there, broken (files that give no frames)."""

    found: int = 0
    encoded: int = 0
    damaged: int = 0
    broken: int = 0


def cache_features(cfg: PreprocessConfig, world: World) -> str:
    """Fill the cache and return a summary. Every process of a torchrun takes its share of the clips.

    Raises ValueError for settings or annotations that training would refuse, SampleError for a clip that cannot be
    read (`--dataset.on_error skip` leaves it out).
    """
    began = time.perf_counter()
    run = PretrainConfig(model=cfg.model, dataset=cfg.dataset, stage=cfg.stage, seed=cfg.seed, hf_token=cfg.hf_token)
    cache = open_cache(cfg.dataset, cfg.stage, cfg.model.num_frames)
    records = read_annotations(cfg.dataset, cfg.stage, seed=cfg.seed, num_frames=cfg.model.num_frames)
    media = distinct_media(records, cfg.model.stage(cfg.stage).epochs)
    tower = _tower(run, world.device)
    spec, resize = tower.image_spec, cfg.model.image_resize_strategy
    reader = CachedReader(reader_of(cfg.dataset, cfg.model.num_frames, spec, resize), cache)
    cache.bind(recipe(tower, cfg.model.vision_backbone_id, spec, resize))
    if dist.rank_zero():
        for line in estimate(reader, tower, media, world.device, total=len(media), epochs=None):
            log.info(line)
    writer = FeatureWriter(cache)
    outcome, problem = Outcome(), None
    try:
        _fill(run, tower, reader, writer, media[world.rank :: world.world_size], world, outcome)
    except SampleError as error:
        problem = error
    writer.flush()
    dist.raise_together(problem)
    counts = [outcome.found, outcome.encoded, outcome.damaged, outcome.broken, writer.refused, writer.added]
    return _summary(cache, len(media), [int(n) for n in dist.all_reduce_sum(counts)], time.perf_counter() - began)


def _tower(run: PretrainConfig, device: torch.device) -> Any:
    """The vision backbone as a run of this configuration has it, on its device and in its precision."""
    start = read_start(run)
    tower = build_vision(
        run.model.vision_backbone_id,
        pretrained=run.model.pretrained_backbones and "vision_backbone" not in start.modules,
        seed=run.seed,
        hf_token=read_token(run.hf_token),
    )
    holder = nn.ModuleDict({"vision_backbone": tower}).requires_grad_(False)
    for path, weights in start.weights.items():
        own = {key: value for key, value in weights.items() if key.startswith("vision_backbone.")}
        if own:
            apply_weights(holder, own, path)
    use_onednn(holder)
    if run.model.enable_mixed_precision_training and device.type == "cuda":
        cast_frozen(holder, torch.bfloat16)
    return tower.to(device)


def _fill(
    run: PretrainConfig,
    tower: Any,
    reader: CachedReader,
    writer: FeatureWriter,
    media: Sequence[Medium],
    world: World,
    outcome: Outcome,
) -> None:
    """Read the clips in the processes of `--dataset.num_workers`, encode here what the cache does not have."""
    workers = run.dataset.num_workers
    # As many clips at a time as a micro-batch of training: matrices of like shapes round alike.
    size = run.model.stage(run.stage).per_device_batch_size
    groups = [list(range(i, min(i + size, len(media)))) for i in range(0, len(media), size)]
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    loader = DataLoader(
        _Clips(media, reader),
        sampler=groups,  # type: ignore[arg-type]  a batch of clips at a time
        batch_size=None,
        num_workers=workers,
        worker_init_fn=prepare_worker,
        multiprocessing_context=method if workers else None,
    )
    with tqdm(total=len(media), unit="clip", desc="features", disable=not dist.rank_zero()) as bar:
        for clips in loader:
            _encode(tower, writer, [clip for clip in clips if isinstance(clip, ReadClip)], world, outcome)
            for text in (clip for clip in clips if isinstance(clip, str)):
                _broken(run, text, outcome)
            bar.update(len(clips))
            if writer.full:
                break


def _encode(tower: nn.Module, writer: FeatureWriter, clips: Sequence[ReadClip], world: World, outcome: Outcome) -> None:
    fresh = [clip for clip in clips if clip.frames is not None]
    outcome.found += len(clips) - len(fresh)
    outcome.damaged += sum(clip.damaged for clip in clips)
    if not fresh:
        return
    with torch.no_grad():
        features = tower(torch.cat([clip.frames for clip in fresh]).to(world.device)).to(writer.dtype)
    writer.keep([clip.key for clip in fresh], features.split([clip.num_frames for clip in fresh]))
    outcome.encoded += len(fresh)


def _broken(run: PretrainConfig, text: str, outcome: Outcome) -> None:
    if run.dataset.on_error == "raise":
        raise SampleError(f"{text} (--dataset.on_error skip leaves such clips out)")
    outcome.broken += 1
    if outcome.broken <= SHOWN:
        log.warning("left out: %s", text)


def _summary(cache: FeatureCache, total: int, counts: Sequence[int], seconds: float) -> str:
    found, encoded, damaged, broken, refused, added = counts
    parts = [f"{found:,} were there", f"{encoded:,} encoded ({amount(added)} added)"]
    parts += [f"{damaged:,} of them in the place of damaged entries"] if damaged else []
    parts += [f"{broken:,} broken and left out"] if broken else []
    parts += [f"{refused:,} not kept"] if refused else []
    done = found + encoded + broken
    parts += [f"{total - done:,} not looked at: the cache is full"] if done < total else []
    return (
        f"{cache.root}: {total:,} clips: {', '.join(parts)}; {seconds:.1f} s\n"
        f"Train with the same --model, --dataset and --seed flags and --dataset.feature_cache {cache.root} "
        f"--dataset.feature_cache_dtype {cache.dtype}"
    )


class _Clips(Dataset[list[Any]]):
    """Groups of clips by their numbers; of a broken one the reason, a str."""

    def __init__(self, media: Sequence[Medium], reader: CachedReader) -> None:
        self.media, self.reader = media, reader

    def __getitem__(self, group: list[int]) -> list[ReadClip | str]:
        return [self._read(self.media[number]) for number in group]

    def _read(self, medium: Medium) -> ReadClip | str:
        try:
            return self.reader.clip(medium)
        except (ValueError, OSError) as error:
            return str(error)
