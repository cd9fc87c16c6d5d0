"""The model card (README.md) of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.models.generation import stop_texts

if TYPE_CHECKING:
    from prismatic.export.hf import HFExport
    from prismatic.models.vlm import PrismaticVLM

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [video-language-model, prismatic]
---

# {name}

A video-language model trained with prismatic, in Transformers' `{model}` layout.

| | |
|---|---|
| vision | {vision}, {resolution} x {resolution} pixels, {patches} tokens a frame |
| LLM | {llm}, context {context} tokens |
| frames of a video in training | {frames} |
| pictures are prepared by | {resize} |

A clip is given as its frames, one image item a frame, in the order of time:

```python
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.bfloat16)
processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")
content = [{{"type": "image", "image": frame}} for frame in frames]  # PIL images, {frames} of a video or 1 picture
content.append({{"type": "text", "text": "What happens in the video?"}})
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)
answer = model.generate(**inputs{stop})[0, inputs["input_ids"].shape[1]:]
print(processor.decode(answer, skip_special_tokens=True))
```

Notes:

{notes}
"""


def write_card(folder: Path, vlm: PrismaticVLM, export: HFExport, *, name: str) -> None:
    """Write README.md. name: the model's."""
    stops = stop_texts(vlm)
    where = "at the front, behind the begin token" if vlm.layout == "after-bos" else "where the image items stand"
    notes = [
        f"Visual tokens stand {where}; the chat template puts them there.",
        "The begin token is written by the chat template, and the tokenizer adds none: a prompt that is built without "
        "the chat template must hold it.",
        '`backend="pil"` gives the very pixels of training; the default backend differs by 2/255 in a few of them.',
        *(f"{note[0].upper()}{note[1:]}." for note in export.processor.notes),
    ]
    if not export.tokenizer.whole_chats:
        notes.append(
            "Earlier turns of a conversation are split into other tokens than in training; first questions not."
        )
    config = vlm.llm_backbone.llm.config
    text = _CARD.format(
        name=name,
        model="FastVlmForConditionalGeneration" if export.tower.kind == "fastvit" else "LlavaForConditionalGeneration",
        vision={"clip": "CLIP ViT", "siglip": "SigLIP ViT", "fastvit": "FastViT-HD"}[export.tower.kind],
        resolution=vlm.vision_backbone.image_spec.resolution,
        patches=vlm.vision_backbone.num_patches,
        llm=f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}",
        context=vlm.llm_backbone.context_length,
        frames=vlm.num_frames,
        resize=vlm.resize_strategy,
        stop=f", stop_strings={stops!r}, tokenizer=processor.tokenizer" if stops else "",
        notes="\n".join(f"- {note}" for note in notes),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
