from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.tensor import DTensor

from prismatic import dist
from prismatic.train import fsdp
from tests.train.fake_run import FakeLoader, FakeVLM


def _batch(world: dist.World):
    return next(FakeLoader(8, world, per_step=4, per_device=4).iterate(0))[0]


def _shard(vlm: FakeVLM, world: dist.World, strategy: str = "fsdp-full-shard", **kw) -> FakeVLM:
    options = {"mixed_precision": False, "reduce_fp32": False, "recompute": "none"}
    return fsdp.shard(vlm, world, strategy, **{**options, **kw})


def _grads(vlm: FakeVLM, batch) -> dict[str, torch.Tensor]:
    vlm(batch).loss_sum.backward()
    whole = {n: p.grad for n, p in vlm.named_parameters() if p.grad is not None}
    return {
        n.replace("_checkpoint_wrapped_module.", ""): g.full_tensor() if isinstance(g, DTensor) else g
        for n, g in whole.items()
    }


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize("strategy", fsdp.STRATEGIES.names())
def test_sharded_model_has_the_same_loss_gradients_and_names(world: dist.World, strategy: str, recompute: str) -> None:
    plain = FakeVLM()
    plain.freeze("finetune")
    sharded = _shard(copy.deepcopy(plain), world, strategy, recompute=recompute)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    batch = _batch(world)
    expected, got = _grads(plain, batch), _grads(sharded, batch)
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])
    assert list(sharded.state_dict()) == list(plain.state_dict())


def test_recomputing_runs_the_layers_twice(world: dist.World) -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    calls = []
    vlm.llm_backbone.layers[0][0].register_forward_hook(lambda *_: calls.append(1))
    _shard(vlm, world, recompute="full")
    vlm(_batch(world)).loss_sum.backward()
    assert len(calls) == 2


def test_a_cpu_says_that_it_computes_in_fp32(world: dist.World, caplog: pytest.LogCaptureFixture) -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    with caplog.at_level("INFO", logger="prismatic"):
        _shard(vlm, world, mixed_precision=True)
    assert "--model.enable_mixed_precision_training has no effect" in caplog.text
    assert {p.dtype for p in vlm.parameters()} == {torch.float32}


def test_frozen_modules_in_bf16_share_a_unit_with_trained_fp32(world: dist.World) -> None:
    # What shard() does on CUDA, where this cannot be run: root unit = frozen bf16 embedding and trained fp32 projector.
    vlm = FakeVLM()
    vlm.freeze("align")
    fsdp.cast_frozen(vlm, torch.bfloat16)
    assert vlm.llm_backbone.embed.weight.dtype == torch.bfloat16 and vlm.projector.weight.dtype == torch.float32
    assert vlm.llm_backbone.lm_head.weight is vlm.llm_backbone.embed.weight
    policy = fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for unit in [*vlm.fsdp_units(), vlm]:
        fsdp.fully_shard(unit, mesh=fsdp._mesh(world, fsdp.STRATEGIES.get("ddp")), mp_policy=policy)
    vlm.vision_backbone.eval()
    loss = vlm(_batch(world)).loss_sum
    loss.backward()
    assert loss.isfinite() and vlm.projector.weight.grad.dtype == torch.float32
    assert vlm.projector.weight.grad.full_tensor().abs().sum() > 0


def test_unknown_strategy_suggests(world: dist.World) -> None:
    with pytest.raises(ValueError, match=r"'fsdp-full' .*did you mean 'fsdp-full-shard'"):
        _shard(FakeVLM(), world, "fsdp-full")


def test_gathered_weights_are_freed_after_a_forward_pass_alone(world: dist.World) -> None:
    vlm = FakeVLM()
    vlm.freeze("finetune")
    _shard(vlm, world, "fsdp-shard-grad-op")
    with torch.no_grad():
        vlm(_batch(world))
    assert not isinstance(vlm.llm_backbone.layers[0][0].weight, DTensor)
    fsdp.reshard(vlm)
    assert all(isinstance(p, DTensor) for p in vlm.parameters())


def test_offloaded_weights_give_the_same_gradients_and_step(world: dist.World) -> None:
    # The policy of --model.cpu_offload true, with the host's memory on both sides.
    plain, offloaded = FakeVLM(), FakeVLM()
    options = fsdp._unit_options(fsdp.MixedPrecisionPolicy(), fsdp._mesh(world, fsdp.STRATEGIES.get("ddp")), True)
    assert isinstance(options["offload_policy"], fsdp.CPUOffloadPolicy)
    plain.freeze("finetune")
    offloaded.freeze("finetune")
    for unit in [*offloaded.fsdp_units(), offloaded]:
        fsdp.fully_shard(unit, **options)
    batch = _batch(world)
    expected, got = _grads(plain, batch), _grads(offloaded, batch)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])
    for model in (plain, offloaded):
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True).step()
    torch.testing.assert_close(offloaded.projector.weight.full_tensor(), plain.projector.weight)


def test_offloading_on_a_cpu_changes_nothing_and_says_so(world: dist.World, caplog: pytest.LogCaptureFixture) -> None:
    plain, offloaded = FakeVLM(), FakeVLM()
    for model, wanted in ((plain, False), (offloaded, True)):
        model.freeze("finetune")
        caplog.clear()
        with caplog.at_level("INFO", logger="prismatic"):
            _shard(model, world, "fsdp-full-shard", cpu_offload=wanted)
        assert ("--model.cpu_offload has no effect on a CPU" in caplog.text) == wanted
    batch = _batch(world)
    expected, got = _grads(plain, batch), _grads(offloaded, batch)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
