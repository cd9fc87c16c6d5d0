"""NativeVLM: a Transformers VLM with the face of PrismaticVLM, made of the official modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prismatic.models.llm.hf_causal import HFCausalLM
from prismatic.models.native.parts import NativeParts
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import PLACEHOLDERS, ChatTemplate, Prompt, check_placeholders
from prismatic.types import VISUAL_SLOT, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEPARATES = ("qwen2_vl", "qwen2_5_vl")
"""Families whose own text model keeps packed examples apart, given text positions beside those of their M-RoPE."""


class NativeLM(HFCausalLM):
    """The official model without its tower and projector, with the whole processor."""

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        super().__init__(model, processor.tokenizer)
        self.processor = processor

    @property
    def separates(self) -> bool:
        """Whether attention stops where position ids restart."""
        return super().separates or self.llm.config.model_type in _SEPARATES

    def save_definition(self, folder: Path) -> None:
        """Write processor and configuration (no weights) of the whole model."""
        self.processor.save_pretrained(folder)
        super().save_definition(folder)
        self.llm.generation_config.save_pretrained(folder)

    def _separate(
        self, embeds: torch.Tensor, position_ids: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        if position_ids.ndim == 2:
            return super()._separate(embeds, position_ids, places)
        if self._one_row:
            # The text positions tell where examples begin.
            return embeds.flatten(0, 1)[None], position_ids.flatten(1)[:, None], places
        return embeds, position_ids, places


class NativeVLM(PrismaticVLM):
    """A native VLM. Visual tokens always stand at their placeholders, in the checkpoint's own chat format.

    There is no aggregator: how frames become tokens is the family's own affair.
    """

    vision_backbone: Any

    def __init__(
        self,
        parts: NativeParts,
        llm_backbone: NativeLM,
        *,
        template: ChatTemplate,
        num_frames: int,
        resize_strategy: str,
    ) -> None:
        super().__init__(
            parts.vision,
            None,
            parts.projector,
            llm_backbone,
            template=template,
            layout="inline",
            num_frames=num_frames,
            resize_strategy=resize_strategy,
        )
        self._rope = parts.rope

    def tokens_per_clip(self, T: int) -> int:
        """N, visual tokens of a clip of T frames. One frame is an image."""
        return self.vision_backbone.num_tokens(T)

    def encode(self, frames: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] of clips with T = frames_per_medium to visual tokens [V, D], clips in order."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_vision()):
            features = self.vision_backbone(frames, tuple(frames_per_medium))
        return self.projector(features, tuple(frames_per_medium))

    def positions(self, batch: Batch) -> torch.Tensor | None:
        """Position ids of a batch: int64 [B, S], or [3, B, S] in time, height and width ([4, B, S] when packed).

        The fourth, first of all, are those of the text: by them attention keeps packed examples apart.
        """
        if self._rope is None:
            return super().positions(batch)
        ids, places = batch.input_ids.cpu(), batch.position_ids.cpu()
        media = iter([self.tokens_per_clip(T) for T in batch.frames_per_medium])
        rows = [
            torch.cat([self._rope.positions(example, tokens) for example, tokens in _examples(row, at, media)], dim=1)
            for row, at in zip(ids, places, strict=True)
        ]
        three = torch.stack(rows, dim=1)
        return (torch.cat([places[None], three]) if batch.packed else three).to(batch.input_ids.device)

    def place_media(self, prompt: str, num_media: int) -> str:
        """A prompt as the official processor wants it, too: its own placeholders are known, missing ones are added.

        A `Prompt` of the prompt builder gets its places when it is tokenized.
        """
        if isinstance(prompt, Prompt) and prompt.conversation is not None:
            return prompt
        processor, template = self.llm_backbone.processor, self.template
        text = prompt.replace(processor.image_token, PLACEHOLDERS[0])
        text = text.replace(getattr(processor, "video_token", None) or PLACEHOLDERS[1], PLACEHOLDERS[1])
        missing = check_placeholders([text], num_media) if num_media else 0
        media = template.medium.replace("{slots}", PLACEHOLDERS[0]) * missing
        opening = template.human("\0", first=True).removeprefix(template.bos)
        start = opening.partition("\0")[0].removesuffix(template.before_text)
        at = len(start) if text.startswith(start) else 0
        return text[:at] + media + text[at:]

    def prompt_positions(self, ids: torch.Tensor, media_tokens: Sequence[int]) -> torch.Tensor | None:
        """Positions int64 [3, S] of one prompt's ids [S] for clips of N = media_tokens; None where they just count."""
        return None if self._rope is None else self._rope.positions(ids.cpu(), media_tokens).to(ids.device)


def _examples(
    ids: torch.Tensor, places: torch.Tensor, media: Iterator[int]
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """The examples of a row [S], each with the visual tokens of its clips; padding goes with the last."""
    starts = (places == 0).nonzero()[:, 0].tolist()
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        example, tokens = ids[start:end], []
        while sum(tokens) < int((example == VISUAL_SLOT).sum()):
            tokens.append(next(media))
        yield example, tokens
