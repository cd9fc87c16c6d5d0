"""Building a native VLM from a local folder or hub name: configuration, processor, weights, chat format, checks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prismatic.models.errors import first_line
from prismatic.models.llm.tokenizer import ensure_pad_token
from prismatic.models.native.parts import NATIVE_FAMILIES, Checkpoint, NativeFamily
from prismatic.models.native.vlm import NativeLM, NativeVLM
from prismatic.models.seeding import seeded
from prismatic.prompting import TEMPLATES, ChatTemplate, processor_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

FLAG = "--model.model_path"


@dataclass(frozen=True)
class NativeSource:
    """Which checkpoint, and how to get it.

    path: local folder or hub name. pretrained: False for random weights of its configuration; then nothing is
    downloaded. definition: folder that a run keeps (configuration and processor), read in the place of `path`.
    hub: hf_token, cache_dir, trust_remote_code of the composition root.
    """

    path: str
    pretrained: bool = True
    definition: Path | None = None
    seed: int = 0
    hub: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Keywords of from_pretrained."""
        given = {"token": self.hub.get("hf_token"), "cache_dir": self.hub.get("cache_dir")}
        options: dict[str, Any] = {name: str(value) for name, value in given.items() if value is not None}
        options["trust_remote_code"] = bool(self.hub.get("trust_remote_code", False))
        if not self.pretrained:
            options["local_files_only"] = True
        return options


def build_native(
    source: NativeSource,
    *,
    num_frames: int,
    image_size: int | None = None,
    resize_strategy: str = "processor",
    template_id: str | None = None,
    max_length: int = 2048,
) -> NativeVLM:
    """The native VLM of a checkpoint, on the CPU in fp32.

    image_size: R of the square frames (None: the family's own). resize_strategy: an id, or "processor" for the one
    nearest to the official preprocessing. template_id: prompt template (None: the checkpoint's own chat template).
    max_length: most text tokens.

    Raises ValueError: no such checkpoint, not one of NATIVE_FAMILIES, code of its own, a processor that does not fit.
    """
    family = _family(source)
    config, processor = _config(source), _processor(source)
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.model_max_length = max_length
    template = _template(processor, family, template_id)
    model = _model(source, family, config)
    if ensure_pad_token(processor.tokenizer, None):
        rows = model.get_input_embeddings().weight.shape[0]
        if len(processor.tokenizer) > rows:
            with seeded(source.seed):
                model.resize_token_embeddings(-(-len(processor.tokenizer) // 64) * 64, mean_resizing=False)
    model.config.get_text_config().pad_token_id = processor.tokenizer.pad_token_id
    parts = family.take(Checkpoint(model, processor, image_size))
    vlm = NativeVLM(
        parts,
        NativeLM(model, processor),
        template=template,
        num_frames=num_frames,
        resize_strategy=family.resize if resize_strategy == "processor" else resize_strategy,
    )
    check_placeholders_fit(vlm, family, source.path)
    return vlm


def check_placeholders_fit(vlm: NativeVLM, family: NativeFamily, path: str) -> None:
    """Compare the visual tokens of an image and of a video with what the official processor reserves for them.

    Raises ValueError when they differ: the processor's settings and the model's then contradict each other.
    """
    processor, R = vlm.llm_backbone.processor, vlm.vision_backbone.image_spec.resolution
    counts = [1, vlm.num_frames] if family.has_video and vlm.num_frames > 1 else [1]
    for T in counts:
        frames = np.zeros((T, R, R, 3), dtype=np.uint8)
        media = {"images": [frames[0]]} if T == 1 else {"videos": [frames]}
        token, token_id = (
            (processor.image_token, processor.image_token_id)
            if T == 1
            else (processor.video_token, processor.video_token_id)
        )
        try:
            with torch.device("cpu"), _quiet():
                ids = processor(text=[token], **media)["input_ids"][0]
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{FLAG} {path}: its processor cannot prepare {'an image' if T == 1 else 'a video'} "
                f"({first_line(error)}); is its processor configuration complete?"
            ) from error
        reserved = list(ids).count(token_id)
        if reserved != vlm.tokens_per_clip(T):
            raise ValueError(
                f"{FLAG} {path}: the model makes {vlm.tokens_per_clip(T)} visual tokens of {T} frame(s) of {R} pixels, "
                f"but its processor reserves {reserved}; its processor and model configurations contradict each other"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes that processors log about videos without metadata; ours carry none on purpose."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def _family(source: NativeSource) -> NativeFamily:
    """The family, told from config.json alone: no code of the repository runs."""
    from transformers import PretrainedConfig

    where = str(source.definition or source.path)
    options = source.options()
    options.pop("trust_remote_code")
    try:
        raw, _ = PretrainedConfig.get_config_dict(where, **options)
    except (OSError, ValueError) as error:
        hint = "check the path or name, the network and --hf_token"
        if not source.pretrained:
            hint = "random weights need its configuration here: download it once, or give a local folder"
        raise ValueError(f"{FLAG} {source.path}: cannot read its configuration: {first_line(error)}; {hint}") from error
    kind = raw.get("model_type")
    if kind in NATIVE_FAMILIES:
        return NATIVE_FAMILIES.get(kind)
    known = ", ".join(NATIVE_FAMILIES.names())
    if raw.get("auto_map"):
        trusted = source.hub.get("trust_remote_code", False)
        raise ValueError(
            f"{FLAG} {source.path}: '{kind}' needs code from its own repository, which was not run "
            f"(--model.trust_remote_code {str(bool(trusted)).lower()}); native VLMs run Transformers' own classes of "
            f"{known}: use a checkpoint converted to one of these"
        )
    raise ValueError(
        f"{FLAG} {source.path}: '{kind}' is not a vision-language model of a known family ({known}); an LLM goes to "
        "--model.llm_backbone_id of another --model.type"
    )


def _config(source: NativeSource) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(source.definition or source.path), **source.options())


def _processor(source: NativeSource) -> Any:
    from transformers import AutoProcessor

    where = source.definition or source.path
    try:
        processor = AutoProcessor.from_pretrained(str(where), **source.options())
    except (OSError, ValueError, TypeError, ImportError) as error:
        hint = (
            "if you trust it, pass --model.trust_remote_code true"
            if "custom code" in str(error)
            else "the folder must hold tokenizer and processor too"
        )
        raise ValueError(f"{FLAG} {source.path}: cannot load its processor: {first_line(error)}; {hint}") from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{FLAG} {source.path}: it has no processor for images (a {type(processor).__name__} was found); the "
            "folder must hold preprocessor_config.json and processor_config.json"
        )
    return processor


def _model(source: NativeSource, family: NativeFamily, config: PretrainedConfig) -> PreTrainedModel:
    import transformers
    from safetensors import SafetensorError

    model_class = getattr(transformers, family.model_class)
    if not source.pretrained:
        with seeded(source.seed):
            model = model_class._from_config(config, dtype=torch.float32)
        with contextlib.suppress(OSError):  # most folders bring one; the end tokens of answers stand in it
            model.generation_config = transformers.GenerationConfig.from_pretrained(
                str(source.definition or source.path), local_files_only=True
            )
        return model
    options = source.options()
    options.pop("trust_remote_code")  # the class is Transformers' own
    try:
        return model_class.from_pretrained(source.path, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{FLAG} {source.path}: cannot load the weights: {first_line(error)}; check the path, the network and "
            "--hf_token, or build it with random weights: --model.pretrained_backbones false"
        ) from error


def _template(processor: Any, family: NativeFamily, template_id: str | None) -> ChatTemplate:
    tokenizer = processor.tokenizer
    if getattr(processor, "chat_template", None):
        tokenizer.chat_template = processor.chat_template
    try:
        own = processor_template(tokenizer, processor.image_token)
    except ValueError as error:
        log.info("%s; taking the prompt template '%s'", error, family.template)
        own = replace(TEMPLATES.get(family.template).for_tokenizer(tokenizer), medium=family.medium)
    if template_id is not None:
        named = TEMPLATES.get(template_id).for_tokenizer(tokenizer)
        own = replace(named, medium=own.medium, before_text="")
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return replace(own, adds_bos=begins, slot_token=processor.image_token)
