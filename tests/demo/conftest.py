"""A demo of a small model with random weights, and the folder that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def media_root(tmp_path: Path, tiny_clip: Path, tiny_picture: Path) -> Path:
    """A folder to choose from, beside one that is nobody's business, with links that lead there."""
    root, outside = tmp_path / "media", tmp_path / "outside"
    (root / "deep" / "frames").mkdir(parents=True)
    outside.mkdir()
    for target in (root / "clip.mp4", outside / "secret.mp4"):
        target.write_bytes(tiny_clip.read_bytes())
    for name in ("0.png", "1.png"):
        (root / "deep" / "frames" / name).write_bytes(tiny_picture.read_bytes())
    (root / "notes.txt").write_text("no medium")
    (root / ".hidden.mp4").write_bytes(b"")
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "linked").symlink_to(outside, target_is_directory=True)
    return root


@pytest.fixture
def app(tiny_vlm, media_root: Path) -> Iterator[object]:
    """A demo of three visitors at most and uploads of 1 MB at most."""
    from prismatic.conf.demo import DemoConfig
    from prismatic.demo.app import App

    cfg = DemoConfig(
        model_path="runs/tiny", media_root=media_root, max_new_tokens=8, max_visitors=3, max_upload_mb=1, num_frames=4
    )
    tiny_vlm.num_frames = 4
    app = App(tiny_vlm, cfg)
    yield app
    app.close(5.0)
