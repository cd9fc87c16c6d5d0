"""Linear layers through oneDNN have the results and gradients of PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prismatic.models import linear
from prismatic.models.linear import OneDNNLinear, prefers_onednn, use_onednn

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")), reason="no oneDNN"
)


def as_onednn(layer: nn.Linear) -> nn.Linear:
    changed = copy.deepcopy(layer)
    changed.__class__ = OneDNNLinear
    return changed


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(700, 24), (2, 9, 24), (5, 24), (1, 24), (24,)])
def test_results_and_gradients_are_those_of_pytorch(shape, bias):
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    ours = as_onednn(plain)
    grads = []
    for layer in (plain, ours):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        out = layer(x)
        out.sin().sum().backward()
        grads.append([out.detach(), x.grad, *[p.grad for p in layer.parameters()]])
    for expected, got in zip(*grads, strict=True):
        assert got.is_contiguous() and got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))


@needs_onednn
def test_frozen_weights_pass_gradients_on_and_get_none(monkeypatch):
    called = []
    product = linear.product
    monkeypatch.setattr(linear, "product", lambda *a: called.append(1) or product(*a))
    layer = as_onednn(nn.Linear(16, 8)).requires_grad_(False)
    x = torch.randn(32, 16, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(32, 16))
    assert layer.weight.grad is None and len(called) == 2


@needs_onednn
def test_other_types_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(linear, "product", lambda *a: pytest.fail("oneDNN was asked"))
    layer = as_onednn(nn.Linear(16, 8))
    assert layer.double()(torch.randn(8, 16, dtype=torch.float64)).dtype == torch.float64
    assert layer.bfloat16()(torch.randn(8, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(torch.randn(8, 16)).dtype == torch.bfloat16


@needs_onednn
def test_few_rows_take_onednn_where_the_weight_is_large(monkeypatch):
    called = []
    product = linear.product
    monkeypatch.setattr(linear, "product", lambda *a: called.append(1) or product(*a))
    monkeypatch.setattr(linear, "_LARGE_WEIGHT", 24 * 40)
    with torch.no_grad():
        for rows, wide in ((1, False), (1, True), (4, False), (0, True)):
            plain = nn.Linear(24, 40 if wide else 39)
            x = torch.randn(rows, 24)
            called.clear()
            torch.testing.assert_close(as_onednn(plain)(x), plain(x))
            assert bool(called) == (rows > 0 and (wide or rows >= 4))


def test_layers_change_in_place_where_it_is_faster(monkeypatch):
    class Own(nn.Linear):
        pass

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), Own(4, 4), nn.Sequential(nn.Linear(4, 4)))

    monkeypatch.setattr(linear, "prefers_onednn", lambda: False)
    assert use_onednn(model()) == 0
    monkeypatch.setattr(linear, "prefers_onednn", lambda: True)
    changed = model()
    first, keys = changed[0], list(changed.state_dict())
    assert use_onednn(changed) == 2 and use_onednn(changed) == 0
    assert changed[0] is first and isinstance(first, OneDNNLinear) and type(changed[1]) is Own
    assert list(changed.state_dict()) == keys


@pytest.mark.parametrize(
    ("facts", "faster"),
    [
        ({"avx512_f": True, "cpu_name": "AMD EPYC 9654"}, True),
        ({"avx512_f": False, "cpu_name": "AMD EPYC 7742"}, False),
        ({"avx512_f": True, "cpu_name": "Intel(R) Xeon(R) Platinum 8480+"}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_only_avx512_of_amd(facts, faster, monkeypatch):
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        pytest.skip("a build without MKL")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts, raising=False)
    assert prefers_onednn.__wrapped__() is faster
