"""Is an exported folder the same model? Transformers loads it, and ids, pixels, logits and answers are compared.

The clips have several frames of odd sizes, the weights are compared in fp32 whatever they are stored in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from prismatic.export.chat_template import messages
from prismatic.export.errors import ExportError
from prismatic.export.tokens import prompt_ids
from prismatic.models.generation import end_tokens, prompt_embeddings, stop_texts
from prismatic.types import Turn

if TYPE_CHECKING:
    from prismatic.export.hf import HFExport
    from prismatic.models.vlm import PrismaticVLM

TOLERANCE = 1e-4
"""Largest difference of a logit, in units of the largest logit where that is above 1 (fp32 has seven digits)."""

FRAMES, NEW_TOKENS = 3, 24
SIZES = ((90, 120), (75, 61))  # (height, width) of the test pictures, in percent of the backbone's
QUESTIONS = ("What happens in the video?", "Describe it in one sentence. What colours are there?")


@dataclass(frozen=True)
class Parity:
    """What was found. logits: largest difference. pixels, fast_pixels: of normalised pixels with Pillow's and with
    Transformers' default backend. texts: the answers, equal on both sides.
    """

    logits: float
    pixels: float
    fast_pixels: float
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"verified: {len(self.texts)} clips, the same tokens and the same greedy answers; largest difference of a "
            f"logit {self.logits:.1e}, of a pixel {self.pixels:.1e} (default image backend {self.fast_pixels:.1e})"
        )


def verify(vlm: PrismaticVLM, export: HFExport, folder: Path) -> Parity:
    """Compare an exported folder with the model that it was made of (in fp32).

    Raises ExportError when ids, logits or answers differ, or pixels where the processor is meant to be exact.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    default = AutoProcessor.from_pretrained(folder)
    found = []
    with _frames(vlm, FRAMES), torch.no_grad():
        for number, (size, question) in enumerate(zip(SIZES, QUESTIONS, strict=True)):
            frames = _clip(vlm, export, size, seed=number)
            chat = [Turn("human", question)]
            if number and export.tokenizer.whole_chats:
                chat = [Turn("human", QUESTIONS[0]), Turn("gpt", "A red circle moves."), Turn("human", question)]
            found.append(_compare(vlm, export, model, (processor, default), frames, chat))
    logits, pixels, fast, texts = zip(*found, strict=True)
    return Parity(max(logits), max(pixels), max(fast), texts)


def _compare(
    vlm: PrismaticVLM, export: HFExport, model: Any, processors: Any, frames: list[Image.Image], chat: list[Turn]
) -> tuple[float, float, float, str]:
    pil, default = (_inputs(p, frames, chat) for p in processors)
    tokens = vlm.tokens_per_clip(len(frames))
    expected = prompt_ids(vlm, chat, tokens, export.tokenizer.image_id)
    ids = pil["input_ids"][0].tolist()
    if ids != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), min(len(ids), len(expected))
        )
        raise ExportError(
            f"parity failed: Transformers makes {len(ids)} tokens of a prompt, here it has {len(expected)}; they "
            f"differ from place {at} on"
        )
    pixels = _pixels(vlm, frames)
    off, fast = (float((p["pixel_values"] - pixels).abs().max()) for p in (pil, default))
    if off > 1e-5 and export.processor.exact:
        raise ExportError(f"parity failed: the processor's pixels differ by {off:.3g} (normalised)")
    if not export.processor.exact:
        pil["pixel_values"] = pixels  # Its differences are known and in the card; the model is compared by itself.
    prompt = _prompt(vlm, chat)
    ours = vlm.llm_backbone.llm(inputs_embeds=prompt_embeddings(vlm, [frames], [prompt])[0][None]).logits
    theirs = model(**pil).logits[..., : ours.shape[-1]]
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise ExportError(f"parity failed: logits differ by {difference:.3g} (largest {float(ours.abs().max()):.3g})")
    said, again = vlm.generate(frames, prompt, max_new_tokens=NEW_TOKENS), _answer(vlm, model, processors[0], pil)
    if said != again:
        raise ExportError(f"parity failed: the greedy answers differ: {said!r} here, {again!r} from Transformers")
    return difference, off, fast, said


def _inputs(processor: Any, frames: list[Image.Image], chat: list[Turn]) -> Any:
    said = messages(chat, len(frames))
    pictures = iter(frames)
    for message in said:
        message["content"] = [
            {**item, "image": next(pictures)} if item["type"] == "image" else item
            for item in message["content"]  # type: ignore[attr-defined]
        ]
    return processor.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def _answer(vlm: PrismaticVLM, model: Any, processor: Any, inputs: Any) -> str:
    stops = stop_texts(vlm)
    more = {"stop_strings": stops, "tokenizer": processor.tokenizer} if stops else {}
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **more)[0, inputs["input_ids"].shape[1] :].tolist()
    ends = end_tokens(vlm, None)
    text = processor.decode([i for i in ids if i not in ends], skip_special_tokens=True)
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _prompt(vlm: PrismaticVLM, chat: list[Turn]) -> str:
    builder = vlm.get_prompt_builder()
    for turn in chat:
        builder.add_turn(turn.role, turn.text)
    return builder.get_prompt()


def _pixels(vlm: PrismaticVLM, frames: list[Image.Image]) -> torch.Tensor:
    from prismatic.models.vision.base import normalise
    from prismatic.video.transforms import resize

    spec = vlm.vision_backbone.image_spec
    return normalise(resize(np.stack([np.asarray(f) for f in frames]), spec, vlm.resize_strategy), spec)


def _clip(vlm: PrismaticVLM, export: HFExport, percent: tuple[int, int], seed: int) -> list[Image.Image]:
    """Frames that differ: smooth colours and noise, so that order and resizing both show."""
    R, rng = vlm.vision_backbone.image_spec.resolution, np.random.default_rng(seed)
    height, width = (max(8, R * p // 100) for p in percent)
    frames = []
    for _ in range(FRAMES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
        noise = rng.integers(-20, 21, (height, width, 3))
        frames.append(Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)))
    return frames


@contextmanager
def _frames(vlm: PrismaticVLM, num_frames: int) -> Iterator[None]:
    before, vlm.num_frames = vlm.num_frames, num_frames
    try:
        yield
    finally:
        vlm.num_frames = before
