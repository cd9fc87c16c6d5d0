"""The plan of a run's memory against what PyTorch's own tracker counts in a real step under FSDP2."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

from prismatic import dist
from prismatic.build import build_vlm
from prismatic.conf.models import ModelConfig
from prismatic.data.largest import ExampleSize, MicroBatch, micro_batch
from prismatic.models.llm.attention import use_attention
from prismatic.models.vlm import PrismaticVLM
from prismatic.train import fsdp
from prismatic.train.memory.advice import advise, lines, verdict
from prismatic.train.memory.plan import GIB, Planner, Setup, tokens_per_clip
from prismatic.train.optim import build_optimizer
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Batch

ROWS, FRAMES, TEXT, LABELS = 8, 4, 60, 24


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return ModelConfig.get_choice_class("tiny-video")(
        finetune_per_device_batch_size=ROWS, finetune_global_batch_size=ROWS
    )


@pytest.fixture(scope="module")
def whole(model: ModelConfig) -> PrismaticVLM:
    return build_vlm(model, texts=lambda: ["what is it? a red circle moves to the left"])


def _setup(model: ModelConfig, **changes: Any) -> Setup:
    values = {"processes": 1, "local": 1, "on_gpu": False}
    own = {name: changes.pop(name) for name in list(changes) if name in values}
    return Setup.of(model, "finetune", **{**values, **own}).changed(**changes)


def _batch(vlm: PrismaticVLM) -> tuple[MicroBatch, Batch]:
    sizes = micro_batch([ExampleSize((FRAMES,), TEXT, LABELS)] * ROWS, vlm.tokens_per_clip, packing=False)
    side, visual = vlm.vision_backbone.image_spec.resolution, vlm.tokens_per_clip(FRAMES)
    ids = torch.full((ROWS, sizes.length), 5)
    ids[:, 1 : 1 + visual] = VISUAL_SLOT
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -LABELS:] = 7
    frames = torch.zeros(ROWS * FRAMES, 3, side, side, dtype=torch.uint8)
    places = torch.arange(sizes.length).expand_as(ids)
    return sizes, Batch(ids, labels, places, frames, (FRAMES,) * ROWS, packed=False)


def _tracked(vlm: PrismaticVLM, batch: Batch, stage: Any) -> int:
    """Bytes at the peak of the second step, when the optimizer has its state, as PyTorch counts them."""
    optimizer = build_optimizer(vlm, stage)
    vlm(batch).loss_sum.backward()
    optimizer.step()
    optimizer.zero_grad()
    tracker = FSDPMemTracker(vlm, optimizer)
    tracker.track_inputs((batch.frames, batch.input_ids, batch.labels, batch.position_ids))
    with tracker:
        vlm(batch).loss_sum.backward()
        optimizer.step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_the_plan_is_what_a_real_step_takes(
    whole: PrismaticVLM, model: ModelConfig, stage: str, recompute: str
) -> None:
    vlm, world = copy.deepcopy(whole), dist.start("cpu")
    vlm.freeze(stage)
    sizes, batch = _batch(vlm)
    setup = replace(_setup(model, recompute=recompute), stage=model.stage("finetune"))
    plan = Planner(vlm).plan(setup, sizes)
    fsdp.shard(
        vlm,
        world,
        setup.stage.train_strategy,
        mixed_precision=False,
        reduce_fp32=True,
        recompute=recompute,
    )
    vlm.train()
    assert not plan.note
    assert plan.peak == pytest.approx(_tracked(vlm, batch, setup.stage), rel=0.05)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_last_layer_at_label_positions_is_planned_too(
    whole: PrismaticVLM, model: ModelConfig, recompute: str
) -> None:
    """As training attends: by a function of our own, which on a GPU is `varlen`."""
    vlm, world = copy.deepcopy(whole), dist.start("cpu")
    use_attention(vlm.llm_backbone, "sdpa", world.device, False)
    assert vlm.llm_backbone.shortened
    vlm.freeze("finetune")
    sizes, batch = _batch(vlm)
    setup = _setup(model, recompute=recompute)
    plan = Planner(vlm).plan(setup, sizes)
    longer = Planner(_with_whole_layers(whole)).plan(setup, sizes)
    fsdp.shard(vlm, world, "fsdp-full-shard", mixed_precision=False, reduce_fp32=True, recompute=recompute)
    vlm.train()
    assert not plan.note and plan.peak <= 1.001 * longer.peak
    assert plan.peak == pytest.approx(_tracked(vlm, batch, setup.stage), rel=0.1)


@pytest.mark.parametrize("name", ["flex_attention", "prismatic_varlen"])
def test_attention_that_needs_a_gpu_is_planned_without_one(whole: PrismaticVLM, model: ModelConfig, name: str) -> None:
    vlm = _with_whole_layers(whole)
    use_attention(vlm.llm_backbone, "sdpa", torch.device("cpu"), False)  # registers the names
    vlm.llm_backbone.llm.set_attn_implementation(name)
    sizes, _ = _batch(vlm)
    packed = replace(sizes, rows=1, length=sizes.rows * sizes.length)
    for batch in (sizes, packed):
        assert not Planner(vlm).plan(_setup(model), batch).note


def _with_whole_layers(whole: PrismaticVLM) -> PrismaticVLM:
    vlm = copy.deepcopy(whole)
    vlm.freeze("finetune")
    return vlm


def test_the_plan_of_bf16_is_what_such_a_step_takes(whole: PrismaticVLM, model: ModelConfig) -> None:
    # What shard() does on CUDA, on a CPU.
    vlm, world = copy.deepcopy(whole), dist.start("cpu")
    vlm.freeze("finetune")
    sizes, batch = _batch(vlm)
    setup = _setup(model).changed(half=True)
    plan = Planner(vlm).plan(setup, sizes)
    fsdp.cast_frozen(vlm, torch.bfloat16)
    policy = fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16)
    for unit in [*vlm.fsdp_units(), vlm]:
        mesh = fsdp._mesh(world, fsdp.STRATEGIES.get("fsdp-full-shard"))
        fsdp.fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=unit is not vlm)
    assert plan.peak == pytest.approx(_tracked(vlm, batch, setup.stage), rel=0.05)


def test_what_lasts_goes_by_shards_and_optimizer(whole: PrismaticVLM, model: ModelConfig) -> None:
    vlm = copy.deepcopy(whole)
    vlm.freeze("finetune")
    trained = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in vlm.parameters()) - trained
    sizes, _ = _batch(vlm)
    planner = Planner(vlm)
    plan = planner.plan(_setup(model, on_gpu=True), sizes)
    assert plan.parts["weights"] == 4 * trained + 2 * frozen and plan.parts["optimizer adamw"] == 8 * trained
    assert plan.needed > plan.peak
    four = planner.plan(_setup(model, on_gpu=True, processes=4, local=4), sizes)
    assert four.parts["weights"] == plan.parts["weights"] / 4
    two = planner.plan(_setup(model, processes=4, local=2, train_strategy="fsdp-hybrid"), sizes)
    assert two.parts["optimizer adamw"] == 4 * trained
    ddp = planner.plan(_setup(model, processes=4, local=4, train_strategy="ddp"), sizes)
    assert ddp.parts["optimizer adamw"] == 8 * trained
    half = planner.plan(_setup(model, optimizer="adamw-bf16"), sizes)
    assert half.parts["optimizer adamw-bf16"] == 4 * trained
    muon = planner.plan(_setup(model, optimizer="muon"), sizes)
    assert 4 * trained < muon.parts["optimizer muon"] < 8 * trained
    assert not {"weights", "optimizer adamw"} & planner.plan(_setup(model, offload=True), sizes).parts.keys()


def test_more_at_a_time_takes_more_and_recomputing_less(whole: PrismaticVLM, model: ModelConfig) -> None:
    vlm = copy.deepcopy(whole)
    vlm.freeze("finetune")
    planner = Planner(vlm)

    def activations(count: int, frames: int, recompute: str) -> float:
        size = micro_batch([ExampleSize((frames,), TEXT, LABELS)] * count, vlm.tokens_per_clip, packing=True)
        return planner.plan(_setup(model, recompute=recompute), size).parts["activations"]

    assert activations(8, 4, "none") == pytest.approx(2 * activations(4, 4, "none"), rel=0.05)
    assert activations(4, 16, "none") > 1.5 * activations(4, 4, "none")
    assert activations(8, 4, "full") < 0.6 * activations(8, 4, "none")


def test_the_cheapest_change_that_fits_comes_first(whole: PrismaticVLM, model: ModelConfig) -> None:
    vlm = copy.deepcopy(whole)
    vlm.freeze("finetune")
    setup = _setup(model, processes=2, local=2, train_strategy="ddp")

    def batch_of(changed: Setup) -> MicroBatch:
        size = changed.stage.per_device_batch_size
        return micro_batch([ExampleSize((FRAMES,), TEXT, LABELS)] * size, tokens_per_clip(vlm, changed), True)

    plan = Planner(vlm).plan(setup, batch_of(setup))
    assert verdict(vlm, setup, plan, plan.needed, batch_of)[0].startswith("fits ")
    half = advise(vlm, setup, 0.8 * plan.needed, batch_of)
    assert half.fits and half.flags == "--model.finetune_per_device_batch_size 4"
    assert half.plan.needed < 0.8 * plan.needed
    never = advise(vlm, setup, 1000, batch_of)
    assert not never.fits and "--model.finetune_per_device_batch_size 1 " in never.flags
    assert "--model.cpu_offload" not in never.flags  # Not on a CPU
    limit = 1.3 * never.plan.needed
    several = advise(vlm, setup, limit, batch_of)
    assert several.fits and several.plan.needed <= limit and len(several.changes) > 1
    # Nothing in it that would not be missed.
    for left_out in several.changes:
        fields = {k: v for change in several.changes if change is not left_out for k, v in change.fields.items()}
        changed = setup.changed(**fields)
        assert left_out is several.changes[-1] or Planner(vlm).plan(changed, batch_of(changed)).needed > limit
    told = "\n".join([*lines(plan), *verdict(vlm, setup, plan, 1000, batch_of)])
    assert "does not fit" in told and "not even with" in told and "GiB" in told
    assert plan.peak < GIB


def test_a_model_that_looks_at_numbers_is_planned_by_a_formula(whole: PrismaticVLM, model: ModelConfig) -> None:
    vlm = copy.deepcopy(whole)
    vlm.freeze("finetune")
    sizes, _ = _batch(vlm)
    exact = Planner(vlm).plan(_setup(model), sizes)

    class Looking(torch.nn.Module):
        def forward(self, features: torch.Tensor, counts: Any) -> torch.Tensor:
            return features[: int(features.sum())]

        num_tokens = staticmethod(vlm.aggregator.num_tokens)

    vlm.aggregator = Looking()
    plan = Planner(vlm).plan(_setup(model), sizes)
    assert "by a formula" in plan.note and "by a formula" in "\n".join(lines(plan))
    assert plan.peak == pytest.approx(exact.peak, rel=0.6)
