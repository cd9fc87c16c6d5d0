"""Every make-up of a batch trains, and its loss and gradients are those of its examples one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.data.annotations import load_records
from prismatic.data.dataset import FILLER_LENGTH, ClipDataset, MediaReader, Position, SampleError
from prismatic.data.loader import StepLoader
from prismatic.data.pack import collate
from prismatic.types import VISUAL_SLOT, Batch

GLOBAL, PER_DEVICE = 4, 2


def _row(frames: int = 0, question: str = "What happens?", answer: str = "A red circle stops.") -> dict[str, Any]:
    media = {0: {}, 1: {"image": "0.png"}}.get(frames, {"frames": [f"{i}.png" for i in range(frames)]})
    return {**media, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


SHAPES = {
    "mixed frame counts": [_row(1), _row(4, answer="It moves to the left and stops."), _row(8), _row(2, "Why? yes no")],
    "text beside clips": [_row(), _row(4), _row(0, "Hi", "Hello."), _row(3)],
    "images alone": [_row(1), _row(1, "Is it?"), _row(1, answer="yes"), _row(1)],
    "text alone": [_row(), _row(0, "1 2", "2 1"), _row(0, answer="no " * 30), _row()],
    "one example": [_row(4)],
    "fewer than the global batch": [_row(4), _row(), _row(1)],
    "empty texts": [_row(2, ""), _row(1, "", ""), _row(0, "", "yes"), _row(4, answer="")],
    "more than one step": [_row(i % 5, "what " * (i % 7)) for i in range(11)],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def _dataset(root: Path, vlm: torch.nn.Module, rows: list[dict[str, Any]], **options: Any) -> ClipDataset:
    (root / "rows.json").write_text(json.dumps(rows))
    dataset = ClipDataset(
        [load_records(root / "rows.json", root)],
        read=MediaReader(num_frames=4, image_spec=vlm.vision_backbone.image_spec, resize_strategy="resize-naive"),
        template=vlm.template,
        tokenizer=vlm.llm_backbone.tokenizer,
        layout="after-bos",
        tokens_per_clip=vlm.tokens_per_clip,
        **{"max_length": 256, **options},
    )
    dataset.check()
    return dataset


def _gradients(vlm: torch.nn.Module, batches: list[Batch], labels: int) -> tuple[float, dict[str, torch.Tensor]]:
    vlm.zero_grad()
    loss = 0.0
    for batch in batches:
        part = vlm(batch).loss_sum / labels
        part.backward()
        loss += float(part.detach())
    return loss, {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_the_examples(
    root: Path, make_vlm: Callable[..., torch.nn.Module], shape: str, packing: bool
) -> None:
    vlm = make_vlm()
    vlm.freeze("finetune")
    rows = SHAPES[shape]
    dataset = _dataset(root, vlm, rows)
    loader = StepLoader(
        dataset,
        lambda examples: collate(examples, pad_token_id=2, packing=packing),
        num_examples=dataset.num_examples,
        global_batch_size=GLOBAL,
        per_device_batch_size=PER_DEVICE,
        packing=packing,
    )
    left = list(range(len(rows)))
    for step in loader.iterate(0):
        members = [int(i) for batch in step for i in batch.ids if i]
        left = [i for i in left if i not in members]
        alone = [collate([dataset[Position(0, i)]], pad_token_id=2, packing=False) for i in members]
        labels = sum(batch.num_label_tokens for batch in alone)
        assert labels == sum(batch.num_label_tokens for batch in step) > 0
        if packing:
            fillers = [len(batch.lengths) - len(batch.ids) for batch in step]
            assert all(b.positions - b.useful == FILLER_LENGTH * n for b, n in zip(step, fillers, strict=True))
        loss, gradients = _gradients(vlm, step, labels)
        expected_loss, expected = _gradients(vlm, alone, labels)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        scale = max(float(g.abs().max()) for g in expected.values())
        for name, gradient in gradients.items():
            assert float((gradient - expected[name]).abs().max()) <= 1e-6 * max(1.0, scale), name
    assert not left


def test_context_overflow_is_refused_by_the_row_and_visual_spans_stay_whole(
    root: Path, make_vlm: Callable[..., torch.nn.Module]
) -> None:
    vlm = make_vlm()
    rows = [_row(2), _row(8, "why " * 10)]
    with pytest.raises(SampleError, match=r"row 2: 32 visual tokens .* exceed the LLM's context of 50; lower --model"):
        _dataset(root, vlm, rows, context_length=50)
    for room in range(40, 60):  # a text that is cut at any place: never a slot of the clip, never all labels
        try:
            dataset = _dataset(root, vlm, rows, max_length=room)
        except SampleError as error:
            assert "no label token is left" in str(error) and "--model.llm_max_length" in str(error)
            continue
        ids = dataset[Position(0, 1)].input_ids
        slots = (ids == VISUAL_SLOT).nonzero()[:, 0]
        assert len(slots) == 32 and int(slots[-1] - slots[0]) == 31


def test_lengths_are_planned_from_the_rows_as_they_come_out(
    root: Path, make_vlm: Callable[..., torch.nn.Module]
) -> None:
    """Visual tokens exactly, text within a tenth on average after `check` has seen how this tokenizer cuts."""
    vlm = make_vlm()
    rng = np.random.default_rng(0)
    words = "A red circle moves to the left and stops . small blue square splits in two What happens".split()
    rows = [_row(int(f), " ".join(rng.choice(words, rng.integers(3, 40)))) for f in rng.integers(0, 9, 64)]
    dataset = _dataset(root, vlm, rows)
    true = np.array([len(dataset[Position(0, i)]) for i in range(64)])
    text = true - np.array([4 * int(len(row.get("frames", [])) or "image" in row) for row in rows])
    assert np.abs(dataset.lengths(np.arange(64)) - true).mean() < 0.1 * text.mean()
