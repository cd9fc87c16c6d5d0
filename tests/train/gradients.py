"""The gradient of the first step of a real run over mixed examples, in this process or under torchrun.

`python gradients.py '{"root": ..., "layouts": [[2, 1], [4, 2]], "out": "folder"}'` is what a test starts.
A layout is (examples of a forward pass, processes that share each batch).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismatic import dist
from prismatic.build import build_trainer
from prismatic.conf import cli
from prismatic.conf.run import PretrainConfig
from prismatic.train import files

GLOBAL = 8
# Frames of each example; 0: text alone. Their answers have 1 to 9 words.
FRAMES = (1, 4, 2, 0, 4, 1, 3, 4)


def write_data(root: Path) -> None:
    """Eight rows with 0 to 4 PNG frames and answers of unlike length."""
    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for number, count in enumerate(FRAMES):
        names = [f"{number}/{i}.png" for i in range(count)]
        for name in names:
            path = root / "media" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        question = "<video>\nWhat is it?" if names else "What is it?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": " ".join(["cat"] * (1 + number))}]
        rows.append({"id": str(number), "conversations": turns} | ({"frames": names} if names else {}))
    (root / "a.json").write_text(json.dumps(rows), encoding="utf-8")


def first_gradient(
    root: Path, per_device: int, world: dist.World, packing: bool = True, context: int = 1
) -> dict[str, torch.Tensor]:
    """Whole gradients by name; every process calls it."""
    flags = (
        f"--model.type tiny-video --stage full-finetune --model.finetune_global_batch_size {GLOBAL} --device cpu "
        f"--model.finetune_per_device_batch_size {per_device} --dataset.type custom --dataset.num_workers 0 "
        f"--run_id {world.world_size}-{per_device}-{packing}-{context} --dataset.packing {str(packing).lower()} "
        f"--model.num_frames 4 --context_parallel_size {context}"
    )
    paths = ("--dataset.dataset_root_dir", str(root), "--run_root_dir", str(root), "--trackers", '["jsonl"]')
    files_ = ("--dataset.finetune_stage_components", '["a.json", "media"]')
    trainer = build_trainer(cli.parse(PretrainConfig, [*flags.split(), *paths, *files_]), world)
    trainer.set_training(True)
    batches = next(trainer.train_loader.iterate(0))
    assert len(batches) == GLOBAL // per_device // (world.world_size // context)
    trainer.stepper.backward(batches, trainer.stepper.count(batches).label_tokens)
    found = {name: p.grad.full_tensor().clone() for name, p in trainer.vlm.named_parameters() if p.grad is not None}
    vars(trainer).clear()
    return found


def main(options: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    world = dist.start("cpu")
    for size, context in options["layouts"]:
        found = first_gradient(Path(options["root"]), size, world, context=context)
        if world.rank == 0:
            files.write_tensors(Path(options["out"]) / f"{size}-{context}.safetensors", found)
    dist.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
