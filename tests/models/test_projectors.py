"""Projectors: published keys and shapes, initialisation from a seed of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prismatic.models.projectors import PROJECTORS, build_projector

SHAPES = {
    "linear": {"projector.weight": (10, 6), "projector.bias": (10,)},
    "gelu-mlp": {
        "projector.0.weight": (10, 6),
        "projector.0.bias": (10,),
        "projector.2.weight": (10, 10),
        "projector.2.bias": (10,),
    },
    "fused-gelu-mlp": {
        "projector.0.weight": (24, 6),
        "projector.0.bias": (24,),
        "projector.2.weight": (10, 24),
        "projector.2.bias": (10,),
        "projector.4.weight": (10, 10),
        "projector.4.bias": (10,),
    },
}


@pytest.mark.parametrize("name", PROJECTORS.names())
def test_keys_and_shapes(name):
    module = build_projector(f"no-align+{name}", 6, 10)
    if name in SHAPES:
        assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == SHAPES[name]
    assert module(torch.randn(7, 6)).shape == (7, 10)
    assert module.to(torch.bfloat16)(torch.randn(7, 6)).dtype == torch.bfloat16


def test_starts_as_published_runs_did_and_leaves_the_global_numbers_alone():
    torch.manual_seed(6)  # the width of the vision backbone
    expected = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 10)).state_dict()
    torch.manual_seed(1)
    after = torch.rand(2)
    torch.manual_seed(1)
    ours = build_projector("gelu-mlp", 6, 10).projector.state_dict()
    torch.testing.assert_close(torch.rand(2), after)
    assert all(torch.equal(ours[k], expected[k]) for k in expected)
    other = build_projector("gelu-mlp", 6, 10, seed=3).projector.state_dict()
    assert not torch.equal(ours["0.weight"], other["0.weight"])


def test_unknown_id():
    with pytest.raises(
        ValueError, match=r"unknown projector 'gelu-mpl' for --model.arch_specifier; did you mean 'gelu-mlp'"
    ):
        build_projector("no-align+gelu-mpl", 6, 10)
