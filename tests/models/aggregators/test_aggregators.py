"""Every aggregator: promised token counts, ragged batches, clip by clip; then each one's own arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prismatic.models.aggregators import AGGREGATORS, build_aggregator

P, Dv = 16, 24
COUNTS = (3, 1, 5, 3)


def build(name: str, num_patches: int = P, **options):
    if name in ("temporal-attention", "resampler"):
        options = {"heads": 4, **options}
    return build_aggregator(name, vision_dim=Dv, num_patches=num_patches, options=options, seed=1)


def features(F_: int = sum(COUNTS), seed: int = 0) -> torch.Tensor:
    return torch.randn(F_, P, Dv, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_counts_are_as_promised_and_clips_do_not_mix(name):
    module, x = build(name), features()
    out = module(x, COUNTS)
    sizes = [module.num_tokens(T, P) for T in COUNTS]
    assert out.shape == (sum(sizes), Dv)
    for clip, part in zip(x.split(list(COUNTS)), out.split(sizes), strict=True):
        torch.testing.assert_close(module(clip, (len(clip),)), part)
    changed = x.clone()
    changed[:3] += 1.0
    torch.testing.assert_close(module(changed, COUNTS)[sizes[0] :], out[sizes[0] :])


@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_gradients_and_bf16(name):
    module, x = build(name), features().requires_grad_()
    module(x, COUNTS).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
    assert all(p.grad is not None for p in module.parameters())
    assert module.to(torch.bfloat16)(features().bfloat16(), COUNTS).dtype == torch.bfloat16


@pytest.mark.parametrize("name", AGGREGATORS.names())
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    one, two = build(name).state_dict(), build(name).state_dict()
    torch.testing.assert_close(torch.rand(2), expected)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_concat_and_mean():
    x = features()
    torch.testing.assert_close(build("concat")(x, COUNTS), x.reshape(-1, Dv))
    torch.testing.assert_close(build("mean")(x, COUNTS)[:P], x[:3].mean(0))


def test_spatial_pool_windows():
    x = features()
    grid = x.view(-1, 2, 2, 2, 2, Dv)  # [F, y, dy, x, dx, Dv]
    torch.testing.assert_close(build("spatial-pool")(x, COUNTS), grid.mean(dim=(2, 4)).reshape(-1, Dv))
    torch.testing.assert_close(build("spatial-pool", mode="max")(x, COUNTS), grid.amax(dim=(2, 4)).reshape(-1, Dv))
    bilinear = F.interpolate(x.view(-1, 4, 4, Dv).permute(0, 3, 1, 2), size=2, mode="bilinear")
    torch.testing.assert_close(
        build("spatial-pool", mode="bilinear")(x, COUNTS), bilinear.permute(0, 2, 3, 1).reshape(-1, Dv)
    )
    # A side that the stride does not divide: no patch is dropped, the last window is smaller.
    odd = torch.randn(1, 9, Dv)
    pooled = build("spatial-pool", num_patches=9)(odd, (1,))
    torch.testing.assert_close(pooled[3], odd[0, 8])
    torch.testing.assert_close(pooled[1], odd[0, [2, 5]].mean(0))
    assert build("spatial-pool", num_patches=729).num_tokens(2, 729) == 2 * 14 * 14


def test_st_pool_is_video_chatgpts():
    x = torch.randn(7, P, Dv)
    expected = torch.cat(
        [torch.stack([f.mean(0) for f in x]), torch.zeros(93, Dv), torch.stack([x[:, p].mean(0) for p in range(P)])]
    )
    torch.testing.assert_close(build("st-pool", frames=100)(x, (7,)), expected)
    torch.testing.assert_close(build("st-pool")(x, (7,)), torch.cat([expected[:7], expected[100:]]))
    assert build("st-pool", frames=100).num_tokens(100, 256) == 356
    with pytest.raises(ValueError, match=r"a clip of 9 frames is longer than st-pool's 8; lower --model.num_frames"):
        build("st-pool", frames=8).num_tokens(9, P)


def test_token_merge_keeps_what_moves():
    torch.manual_seed(0)
    background = F.normalize(torch.randn(1, P, Dv), dim=-1)
    x = background.repeat(4, 1, 1)
    moved = torch.randn(4, Dv)
    for t in range(4):
        x[t, 3 * t] = 3 * moved[t]
    out = build("token-merge", tokens_per_frame=8)(x, (4,))  # 60 background features of 16 kinds, 4 of motion
    assert out.shape == (32, Dv)
    for t in range(4):
        assert (out - 3 * moved[t]).abs().amax(-1).min() < 1e-5, "a feature without its like must survive"
    for p in range(P):
        assert (out - background[0, p]).abs().amax(-1).min() < 1e-5, "copies of one feature become that feature"


def test_token_merge_weighs_by_size_and_keeps_the_order():
    x = torch.randn(2, P, Dv)
    torch.testing.assert_close(build("token-merge", tokens_per_frame=P)(x, (2,)), x.reshape(-1, Dv))
    # Merging down to one token of one frame: the mean of all, whatever the order of merges.
    torch.testing.assert_close(build("token-merge", tokens_per_frame=1)(x[:1], (1,))[0], x[0].mean(0))
    ordered = torch.eye(Dv)[torch.arange(P) // 2][None] * 2.0
    out = build("token-merge", tokens_per_frame=8)(ordered, (1,))
    torch.testing.assert_close(out, torch.eye(Dv)[:8] * 2.0)


def test_temporal_attention_starts_as_the_mean_and_sees_order():
    x = features()
    module = build("temporal-attention")
    torch.testing.assert_close(module(x, COUNTS), build("mean")(x, COUNTS))
    torch.testing.assert_close(build("temporal-attention", pool="none")(x, COUNTS), x.reshape(-1, Dv))
    torch.nn.init.normal_(module.layers[0].out.weight)
    assert (module(x[:3], (3,)) - module(x[:3].flip(0), (3,))).abs().max() > 1e-3
    changed = x.clone()
    changed[:3, 5] += 1.0  # a patch looks at itself over time, never at other patches
    same = [p for p in range(P) if p != 5]
    torch.testing.assert_close(module(changed, COUNTS)[:P][same], module(x, COUNTS)[:P][same])


def test_resampler_has_one_length_and_sees_order():
    module = build("resampler", tokens=7)
    assert module.num_tokens(1, P) == module.num_tokens(99, P) == 7
    x = features()[:3]
    assert (module(x, (3,)) - module(x.flip(0), (3,))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "spatial-pol",
            {},
            "unknown frame aggregator 'spatial-pol' for --model.frame_aggregator; did you mean 'spatial-pool'",
        ),
        ("concat", {"stride": 2}, "--model.frame_aggregator_options: 'concat' has no option 'stride'; it has none"),
        ("spatial-pool", {"strid": 2}, "no option 'strid'; it has 'stride', 'mode'"),
        ("spatial-pool", {"stride": 0}, "stride must be a whole number from 1 on, got 0"),
        ("spatial-pool", {"mode": "avg"}, "mode must be average, max or bilinear, got 'avg'"),
        ("st-pool", {"frames": 0}, "frames must be"),
        ("token-merge", {"tokens_per_frame": 0}, "tokens_per_frame must be"),
        ("resampler", {"tokens": 0}, "tokens must be"),
        ("resampler", {"heads": 7}, "heads 7 does not divide the vision width 24"),
        ("temporal-attention", {"pool": "max"}, "pool must be mean or none"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_spatial_pool_needs_a_square_grid():
    with pytest.raises(ValueError, match="square grid of patches, got 15 a frame"):
        build("spatial-pool", num_patches=15)
