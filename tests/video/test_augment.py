"""Augmentations treat all frames of a clip alike and come from the generator given."""

from __future__ import annotations

import numpy as np
import pytest

from prismatic.registry import UnknownIdError
from prismatic.video.augment import AUGMENTATIONS, augment


def still(frames: int = 3) -> np.ndarray:
    """The same picture in every frame: whatever comes out must be the same in every frame too."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    return np.repeat(picture, frames, axis=0)


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_every_augmentation(name: str) -> None:
    frames, changed = still(), 0
    for seed in range(8):
        out = augment(frames, [name], np.random.default_rng(seed))
        assert (out.dtype, out.ndim, out.shape[0], out.shape[3]) == (np.uint8, 4, 3, 3)
        assert (out == out[:1]).all(), "frames of one clip were treated differently"
        assert np.array_equal(out, augment(frames, [name], np.random.default_rng(seed)))
        changed += not np.array_equal(out, frames)
    assert changed
    assert np.array_equal(frames, still()), "the input was changed"


def test_none_is_the_identity() -> None:
    assert augment(still(), [], np.random.default_rng(0)) is not None
    assert np.array_equal(augment(still(), [], np.random.default_rng(0)), still())


def test_jitter_is_mild_and_keeps_hues() -> None:
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 200
    for seed in range(10):
        out = augment(red, ["color-jitter"], np.random.default_rng(seed)).astype(int)
        assert (out[..., 0] > 2 * out[..., 1:].max(-1)).all(), "red is no longer red"
    grey = augment(np.full((1, 4, 4, 3), 100, np.uint8), ["color-jitter"], np.random.default_rng(1))
    assert np.ptp(grey.astype(int)) <= 1, "grey got a colour"


def test_crop_keeps_nine_tenths_of_each_side() -> None:
    for seed in range(10):
        height, width = augment(still(), ["random-crop"], np.random.default_rng(seed)).shape[1:3]
        assert 36 <= height <= 40
        assert 54 <= width <= 60


def test_in_the_order_given_and_unknown_names_refused() -> None:
    twice = augment(still(), ["random-crop", "random-crop"], np.random.default_rng(0))
    assert twice.shape[1] <= augment(still(), ["random-crop"], np.random.default_rng(0)).shape[1]
    with pytest.raises(UnknownIdError, match=r"--dataset\.augmentations; did you mean 'color-jitter'"):
        augment(still(), ["colour-jitter"], np.random.default_rng(0))
