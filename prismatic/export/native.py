"""A native VLM back into the form it came in: official class, processor and files, with the weights trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismatic.export.errors import ExportError
from prismatic.export.verify import TOLERANCE
from prismatic.models.generation import prompt_rows
from prismatic.models.native.parts import NATIVE_FAMILIES, whole
from prismatic.models.native.vlm import NativeVLM
from prismatic.prompting import PLACEHOLDERS

QUESTION = "What happens in the video?"


def check(vlm: NativeVLM, layout: str) -> None:
    """Raises ExportError with the reason when the model cannot be written."""
    if layout != "hf":
        raise ExportError(f"--format {layout} knows composed models only; export a native VLM with --format hf")
    if vlm.llm_backbone.adapter is not None:
        raise ExportError("the LLM has LoRA adapters beside its weights; pass --merge_lora true to add them up")


def write(vlm: NativeVLM, folder: Path) -> None:
    """Write weights, configuration and processor, as Transformers does, in the dtype that `vlm` has."""
    model = vlm.llm_backbone.llm
    with whole(model):
        model.save_pretrained(folder)
    vlm.llm_backbone.processor.save_pretrained(folder)


def verify(vlm: NativeVLM, folder: Path) -> str:
    """Load the folder with the official classes and compare logits on an image and on a clip, in fp32.

    Returns what was found, for the user. Raises ExportError when prompts differ in length, or logits in value.
    """
    import transformers

    family = NATIVE_FAMILIES.get(vlm.llm_backbone.llm.config.model_type)
    model = getattr(transformers, family.model_class).from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    worst = 0.0
    for T in sorted({1, vlm.num_frames}):
        R = vlm.vision_backbone.image_spec.resolution
        frames = np.random.default_rng(T).integers(0, 256, (T, R, R, 3), dtype=np.uint8)
        builder = vlm.get_prompt_builder()
        builder.add_turn("human", f"{PLACEHOLDERS[0]}\n{QUESTION}")
        prompt = builder.get_prompt()
        inputs = _official_inputs(processor, family.has_video, prompt, frames)
        with torch.no_grad():
            row = prompt_rows(vlm.eval(), [frames[0] if T == 1 else frames], [prompt])[0]
            positions = {} if row.positions is None else {"position_ids": row.positions[:, None]}
            ours = vlm.llm_backbone.llm(inputs_embeds=row.embeds[None], **positions).logits
            theirs = model(**inputs).logits
        if ours.shape != theirs.shape:
            raise ExportError(
                f"parity failed: Transformers makes {theirs.shape[1]} tokens of a prompt, here it has {ours.shape[1]}"
            )
        difference = float((ours - theirs).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
            raise ExportError(f"parity failed: logits of {T} frame(s) differ by {difference:.3g}")
        worst = max(worst, difference)
    return f"verified: an image and a clip, the same tokens; largest difference of a logit {worst:.1e}"


def _official_inputs(processor: Any, has_video: bool, prompt: str, frames: np.ndarray) -> dict[str, torch.Tensor]:
    T = len(frames)
    if T > 1 and has_video:
        text = prompt.replace(PLACEHOLDERS[0], processor.video_token)
        inputs = dict(processor(text=[text], videos=[frames], return_tensors="pt"))
        inputs.pop("second_per_grid_ts", None)  # frames carry no time here; the model then takes a second a pair
        return inputs
    text = prompt.replace(PLACEHOLDERS[0], processor.image_token * T)
    return dict(processor(text=[text], images=list(frames), return_tensors="pt"))
