"""PrismaticVLM: vision backbone, aggregator, projector and LLM as one model, for training and for asking.

Frames in, loss or text out. Owns the splice of visual tokens into the text and which parts a stage trains. Generation
is generation.py's, reading what callers hand over is media.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from prismatic.models.aggregators import Aggregator
from prismatic.models.features import FeatureKeeper, batch_features
from prismatic.models.generation import generate_texts
from prismatic.models.linear import use_onednn
from prismatic.models.llm.hf_causal import HFCausalLM
from prismatic.models.media import ClipReader, EncodedClip, pixels_key
from prismatic.models.memory import Memory
from prismatic.models.scoring import score
from prismatic.models.vision.base import VisionBackbone
from prismatic.prompting import ChatTemplate, PromptBuilder
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, Batch, Layout

STAGE_MODULES = {
    "align": ("aggregator", "projector"),
    "finetune": ("aggregator", "projector", "llm_backbone"),
    "full-finetune": ("vision_backbone", "aggregator", "projector", "llm_backbone"),
}


class LossOutput(NamedTuple):
    """loss_sum: fp32 scalar, sum of token losses. num_tokens: int64 scalar, how many tokens are in it."""

    # A NamedTuple, not a dataclass: FSDP finds the tensors of an output by its tree of tuples and dicts.
    loss_sum: torch.Tensor
    num_tokens: torch.Tensor


class PrismaticVLM(nn.Module):
    """A video-language model.

    Args:
        vision_backbone, aggregator, projector, llm_backbone: the parts; these names are the prefixes of checkpoints.
            aggregator: None in a subclass that arranges visual tokens by itself.
        template: chat format of the prompts; its end token is fitted to the tokenizer.
        layout: where visual tokens stand, "after-bos" or "inline".
        num_frames: T of a video when asking. An image always has one frame.
        resize_strategy: of frames when asking.
    """

    def __init__(
        self,
        vision_backbone: VisionBackbone,
        aggregator: Aggregator | None,
        projector: nn.Module,
        llm_backbone: HFCausalLM,
        *,
        template: ChatTemplate,
        layout: Layout = "after-bos",
        num_frames: int = 8,
        resize_strategy: str = "resize-naive",
    ) -> None:
        super().__init__()
        if num_frames < 1:
            raise ValueError(f"--model.num_frames must be at least 1, got {num_frames}")
        if layout not in ("after-bos", "inline"):
            raise ValueError(f"--model.visual_token_layout must be after-bos or inline, got '{layout}'")
        self.vision_backbone = vision_backbone
        self.aggregator = aggregator
        self.projector = projector
        self.llm_backbone = llm_backbone
        self.template = template.for_tokenizer(llm_backbone.tokenizer)
        self.layout = layout
        self.num_frames = num_frames
        self.resize_strategy = resize_strategy
        self.sampler = "uniform"  # which frames are taken of a video that it is asked about; an id of SAMPLERS
        self.memory = Memory()
        use_onednn(self)
        self.feature_keeper: FeatureKeeper | None = None  # set by a run that trains with a feature cache
        self.whole_vision = False  # a run with a feature cache does not shard the vision backbone

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.llm_backbone.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """As of any module; a model that is to be trained forgets what it was asked."""
        if mode:
            self.memory.forget()
        return super().train(mode)

    def tokens_per_clip(self, T: int) -> int:
        """N, visual tokens of a clip of T frames."""
        assert self.aggregator is not None
        return self.aggregator.num_tokens(T, self.vision_backbone.num_patches)

    # --- training ---

    def freeze(self, stage: str) -> None:
        """Train the modules of `stage` (align, finetune, full-finetune) and no other. Raises ValueError for another."""
        if stage not in STAGE_MODULES:
            raise ValueError(f"--stage must be one of {', '.join(STAGE_MODULES)}, got '{stage}'")
        self.requires_grad_(False)
        for name in STAGE_MODULES[stage]:
            module = getattr(self, name)
            if module is None:
                continue
            # What is never computed (a ViT's last block) never gets a gradient, and must not look trainable.
            used = module.used_parameters() if hasattr(module, "used_parameters") else module.parameters()
            for parameter in used:
                parameter.requires_grad_(True)

    def trainable_modules(self) -> list[str]:
        """Names of the parts that have a parameter to train, as in checkpoints."""
        return [name for name, module in self.named_children() if _is_trained(module)]

    def fsdp_units(self) -> list[nn.Module]:
        """What to shard as units of their own, before the model itself: the vision tower, each decoder layer."""
        return [self.vision_backbone, *self.llm_backbone.layers]

    def compile_units(self) -> list[nn.Module]:
        """What to compile, each by itself: blocks of the vision tower, each decoder layer."""
        return [*_blocks(self.vision_backbone), *self.llm_backbone.layers]

    def forward(self, batch: Batch) -> LossOutput:
        """Sum of token losses of a batch on this device, and the number of tokens in it.

        Raises ValueError when the visual tokens and the slots for them differ in number.
        """
        targets = batch.labels[:, 1:]
        rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
        num_slots = int((batch.input_ids == VISUAL_SLOT).sum())
        counts = batch.frames_per_medium
        if counts:
            visual = self.encode(batch.frames, counts) if batch.cache is None else self._encode_cached(batch)
        else:
            # Every rank runs the same collectives: a batch of text alone passes one black frame through, times 0.
            R = self.vision_backbone.image_spec.resolution
            visual = self.encode(torch.zeros(1, 3, R, R, dtype=torch.uint8, device=self.device), (1,))
        if num_slots != (len(visual) if counts else 0):
            raise ValueError(
                f"the batch has {num_slots} slots for visual tokens, but its {len(counts)} clips make "
                f"{len(visual) if counts else 0}; examples: {', '.join(batch.ids[:4])}"
            )
        embeds = self.splice(batch.input_ids, visual if counts else visual[:0])
        if not counts:
            embeds = embeds + 0.0 * visual.sum().to(embeds.dtype)
        places = rows * batch.input_ids.shape[1] + columns
        loss = self.llm_backbone.token_losses(embeds, self.positions(batch), places, targets[rows, columns])
        return LossOutput(loss, torch.tensor(len(rows), device=loss.device))

    def encode(self, frames: torch.Tensor, frames_per_medium: Sequence[int]) -> torch.Tensor:
        """Frames uint8 [F, 3, R, R] of clips with T = frames_per_medium to visual tokens [V, D], clips in order."""
        assert self.aggregator is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_vision()):
            features = self.vision_backbone(frames)  # [F, P, Dv]
        return self.projector(self.aggregator(features, frames_per_medium))

    def _encode_cached(self, batch: Batch) -> torch.Tensor:
        """Visual tokens [V, D] of a batch some of whose clips come as features."""
        assert self.aggregator is not None and self.feature_keeper is not None and not self._trains_vision()
        features = batch_features(self.vision_backbone, batch, self.feature_keeper)
        return self.projector(self.aggregator(features, batch.frames_per_medium))

    def positions(self, batch: Batch) -> torch.Tensor | None:
        """Position ids of a batch; None where they simply count."""
        return batch.position_ids if batch.packed else None

    def _trains_vision(self) -> bool:
        return _is_trained(self.vision_backbone)

    def splice(self, input_ids: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, S, D] of ids int64 [B, S], with visual tokens [V, D] at the slots, in row-major order."""
        slots = input_ids == VISUAL_SLOT
        embeds = self.llm_backbone.embed(input_ids.masked_fill(slots, 0))
        return embeds.masked_scatter(slots[..., None], visual.to(embeds.dtype))

    # --- asking ---

    @property
    def clip_reader(self) -> ClipReader:
        """Reads what it is asked about, as `num_frames` and `sampler` now say."""
        return ClipReader(self.vision_backbone.image_spec, self.resize_strategy, self.num_frames, self.sampler)

    def place_media(self, prompt: str, num_media: int) -> str:
        """A prompt that has the places of its media; a model with a format of its own for them adds what is missing."""
        return prompt

    def prompt_positions(self, ids: torch.Tensor, media_tokens: Sequence[int]) -> torch.Tensor | None:
        """Positions int64 [3, S] of a prompt's ids [S], of models that place visual tokens in space; else None."""
        return None

    def get_prompt_builder(self, system_prompt: str | None = None) -> PromptBuilder:
        """A new conversation. system_prompt: None for the template's own, "" for none."""
        return PromptBuilder(self.template, system_prompt, keep_placeholders=self.layout == "inline")

    def generate(self, frames: Any, prompt_text: str, **kwargs: Any) -> str:
        """The answer to one prompt about one clip, several clips, or none (None).

        frames: see ClipReader.read. kwargs: of Transformers' `generate`; without them greedy, at most 256 tokens.
        A further question about the same clip takes the visual tokens, and their keys and values, from `memory`.
        Raises ValueError for frames that do not fit, and when prompt and answer exceed the context.
        """
        return self.generate_batch([frames], [prompt_text], **kwargs)[0]

    def generate_batch(self, clips: Sequence[Any], prompts: Sequence[str], **kwargs: Any) -> list[str]:
        """The answers to several prompts, each with its own frames: the same as one by one, in one go."""
        with self._uncompiled():
            return generate_texts(self, clips, prompts, **kwargs)

    def score_choices(self, clip: Any, prompt: str, choices: Sequence[str], per_token: bool = False) -> list[float]:
        """How likely each choice is as the answer: the likelihoods of the whole strings, made to sum to 1.

        A longer string has more factors below 1; per_token compares the mean log-likelihood of a token instead. When
        one choice begins another, the end of the answer counts for all. Raises ValueError for no or empty choices.
        """
        return self.score_choices_batch([clip], [prompt], [choices], per_token)[0]

    def score_choices_batch(
        self, clips: Sequence[Any], prompts: Sequence[str], choices: Sequence[Sequence[str]], per_token: bool = False
    ) -> list[list[float]]:
        """`score_choices` of several prompts, each with its own frames and choices: as one by one, in one go."""
        with self._uncompiled():
            return score(self, clips, prompts, choices, per_token)

    def _uncompiled(self) -> AbstractContextManager[None]:
        """Inside, compiled layers run as written: a cache that grows would have them compiled over and over."""
        if all(module._compiled_call_impl is None for module in self.modules()):
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    @torch.no_grad()
    def encode_clips(self, frames: Any) -> list[EncodedClip]:
        """The clips of `frames`, encoded once: hand the result over as `frames` of any number of questions."""
        self.memory.refresh(self, self.device)
        return self.encode_new(frames)

    def encode_new(self, frames: Any) -> list[EncodedClip]:
        """`encode_clips` for a caller that has refreshed `memory` itself: clips that it holds are not encoded again."""
        reader = self.clip_reader
        made: list[EncodedClip | None] = []
        fresh: list[tuple[int, object | None, torch.Tensor]] = []
        for place, (clip, listed) in enumerate(reader.clips(frames)):
            known: EncodedClip | None = None
            if isinstance(clip, EncodedClip):
                stale = clip.frames is not None and self.memory.weights not in (None, clip.weights)
                key: object | None = ("again", clip.uid)
                known = self.memory.clip(key) if stale else clip
                pixels = clip.frames
            else:
                key = reader.key(clip, listed) if self.memory.weights is not None else None
                known, pixels = self.memory.clip(key), None
            made.append(known)
            if known is None:
                read = reader.read_clip(clip, listed) if pixels is None else pixels
                assert isinstance(read, torch.Tensor)
                fresh.append((place, key, read))
        if fresh:
            encoded = self._encode_clips([pixels for _, _, pixels in fresh])
            for (place, key, _), clip in zip(fresh, encoded, strict=True):
                made[place] = clip
                if key is not None:
                    self.memory.keep_clip(key, clip)
        return [clip for clip in made if clip is not None]

    @torch.no_grad()
    def encode_frames(self, clips: Sequence[torch.Tensor]) -> list[EncodedClip]:
        """Clips uint8 [T, 3, R, R] of any T, encoded together: those of the same pixels once, and none that `memory`
        holds, so that they are one clip for questions about them.
        """
        self.memory.refresh(self, self.device)
        keys = [("frames", pixels_key([clip])) for clip in clips]
        known = {key: self.memory.clip(key) for key in keys}
        fresh = {key: clip for key, clip in zip(keys, clips, strict=True) if known[key] is None}
        if fresh:
            for key, encoded in zip(fresh, self._encode_clips(list(fresh.values())), strict=True):
                known[key] = encoded
                self.memory.keep_clip(key, encoded)
        return [clip for key in keys if (clip := known[key]) is not None]

    @torch.no_grad()
    def _encode_clips(self, clips: Sequence[torch.Tensor]) -> list[EncodedClip]:
        counts = [len(clip) for clip in clips]
        tokens = self.encode(torch.cat(list(clips)).to(self.device), counts)
        parts = tokens.split([self.tokens_per_clip(T) for T in counts])
        weights = self.memory.weights
        return [
            EncodedClip(part.clone(), clip if weights else None, weights)
            for part, clip in zip(parts, clips, strict=True)
        ]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _blocks(tower: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a tower: members of its outermost lists of two or more of one class; else the tower."""
    kinds = nn.ModuleList | nn.Sequential
    lists = [(name, list(m)) for name, m in tower.named_modules() if isinstance(m, kinds) and len(m) > 1]
    alike = [(name, blocks) for name, blocks in lists if len({type(block) for block in blocks}) == 1]
    outer = [blocks for name, blocks in alike if not any(name.startswith(f"{other}.") for other, _ in alike)]
    return [block for blocks in outer for block in blocks] or [tower]
