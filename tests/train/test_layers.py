"""Recomputing and compiling change neither losses nor gradients nor the names of weights."""

from __future__ import annotations

import copy

import pytest
import torch

from prismatic.models.llm.attention import use_attention
from prismatic.train import layers
from prismatic.train.layers import checkpoint_layers, compile_layers, use_tf32
from tests.models.conftest import make_llm, make_vlm, tokenizer  # noqa: F401  fixtures
from tests.models.test_vlm import example, rows_to_batch


@pytest.fixture
def vlm(make_vlm):  # noqa: F811
    model = make_vlm("qwen2")
    model.freeze("finetune")
    use_attention(model.llm_backbone, "sdpa", torch.device("cpu"), half=False)
    return model


def batches(pad: int = 2):
    examples = [example(i, T, text, 300, 3 + i) for i, (T, text) in enumerate([(1, 9), (3, 14), (0, 8)])]
    return [rows_to_batch([examples], pad), rows_to_batch([[e] for e in examples[:2]], pad)]


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(batch).loss_sum
    loss.backward()
    found = {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in model.named_parameters()}
    return {"loss": loss.detach(), **{n: g for n, g in found.items() if g is not None}}


def check_equal(plain, changed, each: list) -> None:
    for batch in each:
        expected, got = gradients(plain, batch), gradients(changed, batch)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=2e-5, rtol=2e-4, msg=name)
    assert list(changed.state_dict()) == list(plain.state_dict())


class Kept:
    """Bytes that the forward pass keeps for the backward pass."""

    def __enter__(self):
        self.bytes, seen = 0, set()

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in seen:
                seen.add(tensor.untyped_storage().data_ptr())
                self.bytes += tensor.untyped_storage().nbytes()
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


@pytest.mark.parametrize("how", ["full", "selective"])
def test_recomputing_changes_nothing(vlm, how):
    plain, counted = copy.deepcopy(vlm), []
    for module in vlm.llm_backbone.layers[0].modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_: counted.append(1))
    checkpoint_layers(vlm.llm_backbone.layers, how)
    check_equal(plain, vlm.train(), batches())
    # Two batches; the second time a layer stops before its last product, whose result nobody needs.
    assert len(counted) == 2 * (7 + 6)


def test_selective_runs_products_and_attention_once(vlm):
    """The layers run again, but what is expensive in them is taken from memory."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        expensive, all = 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.expensive += func in layers._expensive()
            Count.all += 1
            return func(*args, **(kwargs or {}))

    counts = {}
    for how in ("none", "selective", "full"):
        model = copy.deepcopy(vlm)
        checkpoint_layers(model.llm_backbone.layers, how)
        Count.expensive = Count.all = 0
        loss = model(batches()[1]).loss_sum
        with Count():
            loss.backward()
        counts[how] = (Count.expensive, Count.all)
    assert counts["none"][0] == counts["selective"][0] < counts["full"][0]
    assert counts["none"][1] < counts["selective"][1] <= counts["full"][1]


def test_none_leaves_the_layers_as_they_are(vlm):
    before = list(vlm.llm_backbone.layers)
    checkpoint_layers(vlm.llm_backbone.layers, "none")
    assert list(vlm.llm_backbone.layers) == before


def test_blocks_of_the_tower_and_layers_are_compiled_by_themselves(vlm):
    units = vlm.compile_units()
    assert units == [*vlm.vision_backbone.featurizer.blocks, *vlm.llm_backbone.layers]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "full", "selective"])
def test_compiled_is_equal_for_every_length_without_new_graphs(vlm, how):
    plain = copy.deepcopy(vlm)
    checkpoint_layers(vlm.llm_backbone.layers, how)
    assert compile_layers(vlm.compile_units()) == 4
    check_equal(plain, vlm.train(), batches())
    more = [
        rows_to_batch([[example(i, T, text, 300, 3)], [example(9, T, text, 300, 3)]], 2)
        for i, (T, text) in enumerate([(2, 11), (3, 17), (1, 23), (2, 29), (4, 12)])
    ]
    gradients(vlm, more[0])
    torch._dynamo.utils.counters.clear()
    check_equal(plain, vlm, more[1:])
    assert not torch._dynamo.utils.counters["stats"].get("unique_graphs"), "a new length needed a new graph"


def test_asking_a_compiled_model_compiles_nothing(vlm, monkeypatch):
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    vlm.eval()
    before = vlm.generate(frames, "What happens?", max_new_tokens=3)
    compile_layers(vlm.compile_units())
    torch._dynamo.utils.counters.clear()
    assert vlm.generate(frames, "What happens?", max_new_tokens=3) == before
    assert not torch._dynamo.utils.counters["stats"].get("unique_graphs")


def test_tf32_says_what_it_does(caplog, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    with caplog.at_level("INFO", logger="prismatic"):
        use_tf32(False, torch.device("cuda"))
        use_tf32(True, torch.device("cpu"))
        assert not asked and "no effect on a CPU" in caplog.text
        use_tf32(True, torch.device("cuda"))
    assert asked == ["high"] and "TF32" in caplog.text
