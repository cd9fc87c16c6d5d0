"""Train-time augmentation: one draw per clip, the same for all its frames, so that motion stays motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prismatic.registry import Registry

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", flag="--dataset.augmentations")
"""Id -> (frames uint8 [T, H, W, 3], rng) -> uint8 [T, H', W', 3]."""

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)
"""Share of red, green and blue in grey (ITU-R BT.601)."""


def augment(frames: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Apply augmentations one after another to a clip, uint8 [T, H, W, 3]. The input is not changed.

    Raises ValueError for an unknown name.
    """
    for name in names:
        frames = AUGMENTATIONS.get(name)(frames, rng)
    return frames


@AUGMENTATIONS.register("color-jitter")
def color_jitter(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast (about the clip's mean grey) and saturation, each scaled by 0.8 to 1.2.

    The hue stays: captions name colours. All three are one affine map of RGB, rounded and clipped once.
    """
    brightness, contrast, saturation = rng.uniform(0.8, 1.2, size=3).astype(np.float32)
    colours = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    grey = brightness * float(frames.mean(axis=(0, 1, 2)) @ _LUMA)
    matrix, offset = (brightness * contrast * colours).T, (1 - contrast) * grey
    changed = np.empty_like(frames)
    for frame, out in zip(frames, changed, strict=True):
        np.copyto(out, np.clip(frame.astype(np.float32) @ matrix + offset + 0.5, 0, 255), casting="unsafe")
    return changed


@AUGMENTATIONS.register("random-crop")
def random_crop(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut out a window of 0.9 to 1.0 of each side, proportions kept: 81 % of the area at least."""
    height, width = frames.shape[1:3]
    share = rng.uniform(0.9, 1.0)
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return frames[:, top : top + rows, left : left + columns]


@AUGMENTATIONS.register("horizontal-flip")
def horizontal_flip(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror the clip half of the time. Not for captions with directions in them: left becomes right."""
    return frames[:, :, ::-1] if rng.random() < 0.5 else frames
