"""Each family against the official processor and the official forward pass, in fp32: ids, logits, loss, greedy text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismatic.data.pack import collate
from prismatic.data.tokenize import tokenize_chat
from prismatic.models.generation import prompt_rows
from prismatic.prompting import place_turns
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Example, Turn

QUESTION, ANSWER = "What is happening in the video?", "A red circle moves."
OFFICIAL = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "fast_vlm": "FastVlmForConditionalGeneration",
    "video_llava": "VideoLlavaForConditionalGeneration",
}
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {media}\n{text} ASSISTANT:"
)
IMAGES_ONLY = ("llava", "fast_vlm")


def _official_text(family: str, processor: Any, T: int) -> str:
    """The publisher's prompt for one clip; a family without videos takes each frame as an image."""
    video = T > 1 and family not in IMAGES_ONLY
    if family == "video_llava":  # its folder brings no chat format
        return VICUNA.format(media=processor.video_token if video else processor.image_token, text=QUESTION)
    parts = [{"type": "video" if video else "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return text.replace("<image>", T * "<image>") if family in IMAGES_ONLY else text


class Official:
    """The publisher's processor and model on the same frames."""

    def __init__(self, family: str, folder: Path) -> None:
        import transformers

        self.family = family
        self.processor = transformers.AutoProcessor.from_pretrained(str(folder))
        model_class = getattr(transformers, OFFICIAL[family])
        self.model = model_class.from_pretrained(str(folder), dtype=torch.float32).eval()

    def inputs(self, frames: np.ndarray, answer: str = "") -> dict[str, torch.Tensor]:
        """frames: uint8 [T, R, R, 3]."""
        text = _official_text(self.family, self.processor, len(frames)) + answer
        if len(frames) == 1 or self.family in IMAGES_ONLY:
            return dict(self.processor(text=[text], images=list(frames), return_tensors="pt"))
        metadata: dict[str, Any] = {}
        if self.family == "qwen2_5_vl":  # two frames a second, as our clips are taken
            metadata["video_metadata"] = [{"fps": 2.0, "total_num_frames": len(frames)}]
        return dict(self.processor(text=[text], videos=[frames], return_tensors="pt", **metadata))


def _pad(processor: Any, text: str) -> str:
    return processor.image_token if processor.image_token in text else processor.video_token


@pytest.fixture(scope="module")
def official(folder) -> Any:
    made: dict[str, Official] = {}

    def find(family: str) -> Official:
        if family not in made:
            made[family] = Official(family, folder(family))
        return made[family]

    return find


def _frames(vlm: Any, T: int, seed: int = 0) -> np.ndarray:
    R = vlm.vision_backbone.image_spec.resolution
    return np.random.default_rng(seed).integers(0, 256, (T, R, R, 3), dtype=np.uint8)


def _prompt(vlm: Any) -> Any:
    builder = vlm.get_prompt_builder()
    builder.add_turn(role="human", message=QUESTION)
    return builder.get_prompt()


@pytest.mark.parametrize("T", [1, 4])
def test_ids_logits_and_greedy_text(native_family: str, T: int, native, official) -> None:
    vlm, theirs = native(native_family), official(native_family)
    frames = _frames(vlm, T)
    inputs = theirs.inputs(frames)
    clip = frames[0] if T == 1 else frames
    with torch.no_grad():
        row = prompt_rows(vlm, [clip], [_prompt(vlm)])[0]
        positions = {} if row.positions is None else {"position_ids": row.positions[:, None]}
        ours = vlm.llm_backbone.llm(inputs_embeds=row.embeds[None], **positions).logits[0]
        expected = theirs.model(**inputs).logits[0]
    assert len(ours) == len(expected), "the prompts differ in length"
    assert (ours - expected).abs().max() < 1e-4
    assert expected.std() > 1e-3, "logits that say nothing prove nothing"

    told = theirs.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = vlm.llm_backbone.tokenizer.decode(told, skip_special_tokens=True).strip()
    assert vlm.generate(clip, _prompt(vlm), max_new_tokens=8) == text
    # A clip has one placeholder, whatever it stands for.
    plain = _official_text(native_family, theirs.processor, 1 if native_family in IMAGES_ONLY else T)
    assert vlm.generate(clip, plain, max_new_tokens=8) == text
    without = plain.replace(vlm.template.medium.replace("{slots}", _pad(theirs.processor, plain)), "", 1)
    assert without != plain
    assert vlm.generate(clip, without, max_new_tokens=8) == text


def _example(vlm: Any, frames: np.ndarray, answer: str = ANSWER) -> Example:
    tokens = tokenize_chat(
        [Turn("human", QUESTION), Turn("gpt", answer)],
        [vlm.tokens_per_clip(len(frames))],
        template=vlm.template,
        tokenizer=vlm.llm_backbone.tokenizer,
        layout=vlm.layout,
        max_length=512,
    )
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return Example(answer, torch.tensor(tokens.input_ids), torch.tensor(tokens.labels), pixels, (len(frames),))


@pytest.mark.parametrize("T", [1, 4])
def test_loss(native_family: str, T: int, native, official) -> None:
    vlm, theirs = native(native_family), official(native_family)
    frames = _frames(vlm, T)
    batch = collate([_example(vlm, frames)], pad_token_id=0, packing=False)
    with torch.no_grad():
        ours = vlm(batch)
    inputs = theirs.inputs(frames, ANSWER + vlm.template.end.strip())
    labels = inputs["input_ids"].clone()
    asked = theirs.inputs(frames)["input_ids"].shape[1]
    labels[:, :asked] = IGNORE_INDEX
    with torch.no_grad():
        expected = theirs.model(**inputs, labels=labels).loss
    slots = batch.input_ids[0] == VISUAL_SLOT
    assert batch.input_ids[0][~slots].tolist() == inputs["input_ids"][0][~slots].tolist()
    assert int(ours.num_tokens) == int((labels[:, 1:] != IGNORE_INDEX).sum())
    assert abs(float(ours.loss_sum / ours.num_tokens - expected)) < 1e-4


def test_packed_equals_padded(native_family: str, native) -> None:
    vlm = native(native_family)
    examples = [
        _example(vlm, _frames(vlm, 4, 1), "A red circle moves to the left and stops. " * 4),
        _example(vlm, _frames(vlm, 1, 2)),
        _example(vlm, _frames(vlm, 2, 3), "yes"),
    ]
    text = torch.tensor(vlm.llm_backbone.tokenizer("What happens?")["input_ids"])
    R = vlm.vision_backbone.image_spec.resolution
    examples.append(Example("text", text, text.clone(), torch.empty(0, 3, R, R, dtype=torch.uint8), ()))
    packed = collate(examples, pad_token_id=0, packing=True)
    padded = collate(examples, pad_token_id=0, packing=False)
    assert packed.packed and len(packed.input_ids) < len(padded.input_ids)
    with torch.no_grad():
        one, other = vlm(packed), vlm(padded)
        alone = sum(float(vlm(collate([e], pad_token_id=0, packing=False)).loss_sum) for e in examples)
    assert one.num_tokens == other.num_tokens
    assert float(one.loss_sum) == pytest.approx(float(other.loss_sum), abs=1e-3)
    assert float(one.loss_sum) == pytest.approx(alone, abs=1e-3)


def test_batch_beams_and_choices(native_family: str, native) -> None:
    vlm = native(native_family)
    clips = [_frames(vlm, 4, 1), _frames(vlm, 1, 2)[0], [_frames(vlm, 4, 3), _frames(vlm, 1, 4)], None]
    prompts = [_prompt(vlm), "Say more about the picture, please:", _prompt(vlm), _prompt(vlm)]
    for options in ({}, {"num_beams": 3}):
        together = vlm.generate_batch(clips, prompts, max_new_tokens=6, **options)
        apart = [vlm.generate(c, p, max_new_tokens=6, **options) for c, p in zip(clips, prompts, strict=True)]
        assert together == apart
    choices = ["A red circle", "A small blue square splits", "yes"]
    likely = vlm.score_choices(clips[0], _prompt(vlm), choices)
    assert sum(likely) == pytest.approx(1)
    with torch.no_grad():
        losses = [float(vlm(collate([_cut(vlm, clips[0], c)], pad_token_id=0, packing=False))[0]) for c in choices]
    expected = torch.tensor([-loss for loss in losses], dtype=torch.float64).softmax(0).tolist()
    assert likely == pytest.approx(expected, abs=1e-4)
    lists = [choices, choices[2:] * 2, choices[:2], choices]
    alone = [vlm.score_choices(*one) for one in zip(clips, prompts, lists, strict=True)]
    vlm.memory.forget()
    for row, one in zip(vlm.score_choices_batch(clips, prompts, lists), alone, strict=True):
        assert row == pytest.approx(one, abs=1e-5)


def test_further_questions_take_up_what_is_known(native_family: str, native) -> None:
    vlm = native(native_family)
    frames, work = _frames(vlm, 4, 7), []
    vlm.llm_backbone.layers[0].register_forward_pre_hook(lambda _, args: work.append(args[0].shape[1]))
    builder = vlm.get_prompt_builder()
    prompts = [builder.get_potential_prompt(text) for text in ("What happens?", "Say more about it, please.", "Why?")]
    vlm.memory.limit_bytes = 0
    plain = [vlm.generate(frames, prompt, max_new_tokens=6) for prompt in prompts]
    whole, work[:] = sum(work), []
    vlm.memory.limit_bytes = None
    assert [vlm.generate(frames, prompt, max_new_tokens=6) for prompt in prompts] == plain
    known = vlm.llm_backbone.separates
    assert sum(work) < whole - vlm.tokens_per_clip(4) if known else sum(work) == whole
    assert vlm.generate_batch([frames] * 3, prompts, max_new_tokens=6) == plain


def _cut(vlm: Any, frames: np.ndarray, answer: str) -> Example:
    """An example whose answer has no end token: what a choice is measured by."""
    whole, ends = _example(vlm, frames, answer), vlm.llm_backbone.tokenizer(vlm.template.end, add_special_tokens=False)
    length = len(whole.input_ids) - len(ends["input_ids"])
    return Example("", whole.input_ids[:length], whole.labels[:length], whole.frames, whole.frames_per_medium)


def test_placeholders_in_a_row_find_their_places(native) -> None:
    """The newline of LLaVA-style rows is the chat format's affair: Qwen2-VL writes none."""
    vlm = native("qwen2_vl")
    turns = place_turns([Turn("human", "<video>\nWhat is <image> for?")], 2, "inline")
    text = vlm.template.segments(turns)[0].text
    assert "<|vision_start|><video><|vision_end|>What is <|vision_start|><image><|vision_end|> for?" in text
