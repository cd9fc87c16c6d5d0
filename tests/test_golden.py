"""Ten steps of a fixed run have the losses of `golden_losses.json`: a refactoring must not move a number.

`python tests/test_golden.py` computes and writes them anew, for a change that means to move them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden_losses.json")
# Two builds of PyTorch round differently; a changed sampler, template, initialisation or schedule moves far more.
TOLERANCE = 2e-3


def _write_data(root: Path) -> None:
    """Twelve drawn clips as PNG frames: no video codec, whose versions differ in pixels, is involved."""
    from PIL import Image

    from prismatic.data.moving_shapes import QUESTION, caption, plan
    from prismatic.data.moving_shapes_draw import draw_clip

    rows = []
    for number, clip in enumerate([c for c in plan(7, 24, 8) if c.split == "train"][:12]):
        frames = draw_clip(clip, side=64)
        names = [f"{number:02d}/{i}.png" for i in range(4)]
        for name, index in zip(names, np.linspace(0, len(frames) - 1, 4).astype(int), strict=True):
            path = root / "media" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frames[index]).save(path)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": caption(clip.attributes)}]
        rows.append({"id": str(number), "frames": names, "conversations": turns})
    (root / "a.json").write_text(json.dumps(rows), encoding="utf-8")


def golden_run(root: Path) -> list[float]:
    """Train ten steps in this process and return their losses."""
    import torch

    from prismatic import dist
    from prismatic.build import build_trainer
    from prismatic.conf import cli
    from prismatic.conf.run import PretrainConfig

    torch.set_num_threads(1)
    _write_data(root)
    flags = (
        "--model.type tiny-video --stage full-finetune --model.num_frames 4 --model.finetune_global_batch_size 6 "
        "--model.finetune_per_device_batch_size 3 --model.finetune_max_steps 10 --model.finetune_learning_rate 1e-3 "
        "--dataset.type custom --dataset.num_workers 0 --run_id golden --seed 3 --device cpu"
    )
    cfg = cli.parse(
        PretrainConfig,
        [
            *flags.split(),
            *("--dataset.dataset_root_dir", str(root), "--run_root_dir", str(root)),
            *("--dataset.finetune_stage_components", '["a.json", "media"]', "--trackers", '["jsonl"]'),
        ],
    )
    world = dist.start("cpu")
    trainer = build_trainer(cfg, world)
    trainer.fit()
    dist.stop(trainer)
    rows = [json.loads(line) for line in (root / "golden" / "golden.jsonl").read_text().splitlines()]
    return [row["Full-finetune/Loss (Raw)"] for row in rows if "Full-finetune/Loss (Raw)" in row]


def test_ten_steps_have_the_golden_losses(tmp_path: Path) -> None:
    np.testing.assert_allclose(golden_run(tmp_path), json.loads(GOLDEN.read_text()), atol=TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps([round(loss, 6) for loss in golden_run(Path(folder))], indent=1) + "\n")
    print(GOLDEN.read_text())
