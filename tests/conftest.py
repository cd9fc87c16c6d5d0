"""Shared by all tests: no network, one thread, no process group left behind; a small model and something to see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Each test finds the default dtype, and leaves no process group to the next."""
    yield
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_default_dtype(torch.float32)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip themselves where there is no GPU; `slow` ones unless asked for."""
    import torch

    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def tiny_vlm():
    """tiny-video, untrained."""
    import prismatic.conf.presets  # noqa: F401
    from prismatic.build import build_vlm
    from prismatic.conf.models import ModelConfig

    config = ModelConfig.get_choice_class("tiny-video")()
    return build_vlm(config, seed=3, texts=lambda: ["what is it? a red circle moves to the left, yes or no"]).eval()


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 30 frames at 25 a second."""
    from tests.video.files import write_video

    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", "mpeg4", 30)


@pytest.fixture(scope="session")
def tiny_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image."""
    import numpy as np
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)
    return path
