"""The image processor and LlavaProcessor of an exported model: pixels prepared as `--model.image_resize_strategy` does.

What Transformers' processors cannot do exactly is said (`notes`), not hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prismatic.export.errors import ExportError
from prismatic.export.vision import VisionTower
from prismatic.types import ImageSpec
from prismatic.video.transforms import INTERPOLATIONS

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExportedProcessor:
    """processor: Pillow's backend, whose pixels are those of training. exact: for pictures of any size.

    notes: what is different from training, for the model card.
    """

    processor: LlavaProcessor
    exact: bool
    notes: tuple[str, ...]


def export_processor(
    spec: ImageSpec, strategy: str, tower: VisionTower, tokenizer: PreTrainedTokenizerBase
) -> ExportedProcessor:
    """The processor of a model. Raises ExportError for a resize strategy that no processor can express."""
    from transformers import LlavaProcessor

    images, exact, notes = _image_processor(spec, strategy, tower)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        # "default" drops the first feature, CLIP's class token; the others have none.
        vision_feature_select_strategy="default" if tower.extra_tokens else "full",
        num_additional_image_tokens=tower.extra_tokens,
        chat_template=tokenizer.chat_template,
    )
    return ExportedProcessor(processor, exact, notes)


def _image_processor(spec: ImageSpec, strategy: str, tower: VisionTower) -> tuple[Any, bool, tuple[str, ...]]:
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    R = spec.resolution
    common: dict[str, Any] = {
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "resample": int(INTERPOLATIONS[spec.interpolation]),
        "do_normalize": True,
        "do_rescale": True,
        "do_convert_rgb": True,
    }
    square, crop = {"height": R, "width": R}, {"do_center_crop": True, "crop_size": {"height": R, "width": R}}
    if strategy == "resize-naive":
        if tower.kind == "siglip":
            return SiglipImageProcessorPil(size=square, **common), True, ()
        off = {"do_center_crop": False, "crop_size": square}
        return CLIPImageProcessorPil(size=square, **off, **common), True, ()
    shortest = {"shortest_edge": math.floor(R / spec.crop_pct)}
    if strategy == "resize-crop":
        note = "the crop may lie one pixel beside that of training, where an odd number of pixels is cut off"
        return CLIPImageProcessorPil(size=shortest, **crop, **common), False, (note,)
    if strategy == "letterbox":
        note = (
            "pictures whose height and width differ by an odd number are padded by one pixel less in training than "
            "by Transformers"
        )
        return LlavaImageProcessorPil(size=shortest, do_pad=True, **crop, **common), False, (note,)
    raise ExportError(f"--model.image_resize_strategy {strategy}: no processor of Transformers prepares pictures so")
