"""Batches whose clips come partly as frames and partly as features: the same as if all were encoded now."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from prismatic.models.features import batch_features
from prismatic.models.linear import OneDNNLinear
from prismatic.models.vision.fingerprint import fingerprint
from prismatic.models.vision.zoo import build_vision
from prismatic.types import Batch, CachedFeatures


class _Keeper:
    """Remembers what it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kept: dict[str, torch.Tensor] = {}

    def keep(self, keys: Sequence[str], clips: Sequence[torch.Tensor]) -> None:
        self.kept |= dict(zip(keys, (clip.clone() for clip in clips), strict=True))


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    return build_vision("tiny-vit", pretrained=False, seed=3).requires_grad_(False)


COUNTS = (2, 1, 3, 2)


def _batch(frames: torch.Tensor, cache: CachedFeatures) -> Batch:
    ids = torch.zeros((1, 1), dtype=torch.int64)
    return Batch(ids, ids, ids, frames, COUNTS, packed=False, cache=cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hits", [(), (0, 1, 2, 3), (1, 2), (0, 3)])
def test_hits_and_misses_mix(tower: nn.Module, dtype: torch.dtype, hits: tuple[int, ...]) -> None:
    R = tower.image_spec.resolution
    clips = [
        torch.randint(0, 256, (T, 3, R, R), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i, T in enumerate(COUNTS)
    ]
    live = [tower(clip).to(dtype) for clip in clips]
    missing = [clip for i, clip in enumerate(clips) if i not in hits]
    cache = CachedFeatures(
        torch.cat([live[i] for i in hits]) if hits else None,
        tuple(None if i in hits else f"k{i}" for i in range(len(COUNTS))),
    )
    calls = []
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    keeper = _Keeper(dtype)
    found = batch_features(tower, _batch(torch.cat(missing) if missing else torch.empty(0, 3, R, R), cache), keeper)
    hook.remove()
    assert torch.equal(found, torch.cat(live).float()), "a miss passes through the precision of the cache as a hit does"
    assert len(calls) == (len(hits) < len(COUNTS)), "the tower runs only for what is new"
    assert sorted(keeper.kept) == [f"k{i}" for i in range(len(COUNTS)) if i not in hits]
    assert all(torch.equal(keeper.kept[f"k{i}"], live[i]) for i in range(len(COUNTS)) if i not in hits)


def test_a_batch_takes_its_features_along() -> None:
    batch = _batch(torch.zeros(1, 3, 2, 2), CachedFeatures(torch.ones(7, 1, 2), (None,) * 4))
    moved = batch.to(torch.device("meta"))
    assert moved.cache.features.device.type == "meta" and moved.cache.keys == batch.cache.keys
    assert batch.to(torch.device("cpu")).cache.features is batch.cache.features


def test_a_fingerprint_knows_every_bit(tower: nn.Module) -> None:
    known = fingerprint(tower)
    assert fingerprint(copy.deepcopy(tower)) == known == fingerprint(build_vision("tiny-vit", pretrained=False, seed=3))
    others = [build_vision("tiny-vit", pretrained=False, seed=4), copy.deepcopy(tower).to(torch.bfloat16)]
    for name, _ in tower.named_parameters():
        other = copy.deepcopy(tower)
        weights = dict(other.named_parameters())[name].data.view(torch.int32).view(-1)
        weights[-1] ^= 1
        others.append(other)
    changed = copy.deepcopy(tower)
    changed.featurizer.blocks[0].mlp.act = nn.ReLU()
    narrower = copy.deepcopy(tower)
    narrower.image_spec = replace(tower.image_spec, mean=(0.4, 0.5, 0.5))
    prints = [fingerprint(other) for other in [*others, changed, narrower]]
    assert known not in prints and len(set(prints)) == len(prints)


def test_a_fingerprint_does_not_know_how_products_are_computed(tower: nn.Module) -> None:
    other = copy.deepcopy(tower)
    other.featurizer.blocks[0].mlp.fc1.__class__ = OneDNNLinear
    assert fingerprint(other) == fingerprint(tower)
    other.featurizer.blocks[1] = torch.compile(other.featurizer.blocks[1])
    assert fingerprint(other) == fingerprint(tower)
