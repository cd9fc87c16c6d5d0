"""The peer of the training benchmarks: a plain training step, as the older systems took it, over our own modules.

Padded batches with a 2-D mask, logits of every position in fp32, the LLM's layers always recomputed in the backward
pass, the frozen vision backbone run anew each step (with its last block, whose output nobody uses), and PIL on PNG
frames, normalised on the CPU one by one. Linear layers are PyTorch's own. Same weights, same loss, same gradients: only
the way there is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn.utils.rnn import pad_sequence

from prismatic.data.dataset import ClipDataset
from prismatic.models.linear import OneDNNLinear
from prismatic.models.vlm import PrismaticVLM
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, ImageSpec, Record


@dataclass(frozen=True)
class ReferenceItem:
    """One row: text ids and labels int64 [S], without places of visual tokens; pixels fp32 [F, 3, R, R]."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor


@dataclass(frozen=True)
class ReferenceBatch:
    """Padded on the right: input_ids, labels int64 [B, S]; attention_mask bool [B, S]; pixels of each row."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    pixels: tuple[torch.Tensor, ...]

    def to(self, device: torch.device) -> ReferenceBatch:
        """The same on a device."""
        parts = (t.to(device) for t in (self.input_ids, self.labels, self.attention_mask))
        return ReferenceBatch(*parts, tuple(pixels.to(device) for pixels in self.pixels))


def read_pixels(paths: Sequence[str], spec: ImageSpec) -> torch.Tensor:
    """Frames from image files, squeezed into the square and normalised: fp32 [T, 3, R, R]."""
    frames = []
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((spec.resolution, spec.resolution), filters[spec.interpolation])
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().float().div(255)
        frames.append((pixels - mean) / std)
    return torch.stack(frames)


def read_item(dataset: ClipDataset, record: Record) -> ReferenceItem:
    """A row of our dataset whose media are lists of frames, read the older way; visual tokens go behind the first."""
    tokens = dataset.tokens_of(record)
    ids, labels = torch.tensor(tokens.input_ids), torch.tensor(tokens.labels)
    text = ids != VISUAL_SLOT
    spec = dataset.read.image_spec
    clips = [read_pixels(medium.paths, spec) for medium in record.media]
    pixels = torch.cat(clips) if clips else torch.empty(0, 3, spec.resolution, spec.resolution)
    return ReferenceItem(ids[text], labels[text], pixels)


def collate(items: Sequence[ReferenceItem], pad_token_id: int) -> ReferenceBatch:
    """Rows padded to the longest text."""
    ids = pad_sequence([item.input_ids for item in items], batch_first=True, padding_value=pad_token_id)
    labels = pad_sequence([item.labels for item in items], batch_first=True, padding_value=IGNORE_INDEX)
    lengths = torch.tensor([len(item.input_ids) for item in items])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return ReferenceBatch(ids, labels, mask, tuple(item.pixels for item in items))


def read_batch(dataset: ClipDataset, records: Sequence[Record]) -> ReferenceBatch:
    """What a loader of the older systems hands over for these rows."""
    return collate([read_item(dataset, record) for record in records], dataset.tokenizer.pad_token_id)


def concat(features: torch.Tensor) -> torch.Tensor:
    """Features [T, P, Dv] of a clip, one frame after the other: [T P, Dv]."""
    return features.flatten(0, 1)


def st_pool(features: torch.Tensor) -> torch.Tensor:
    """Video-ChatGPT's: the mean of each frame, then the mean of each patch over time: [T + P, Dv]."""
    return torch.cat([torch.stack([frame.mean(0) for frame in features]), sum(features) / len(features)])


def pool2(features: torch.Tensor) -> torch.Tensor:
    """Means of 2 x 2 neighbouring patches of each frame (an even square grid): [T P / 4, Dv]."""
    T, P, Dv = features.shape
    side = round(P**0.5)
    grid = features.view(T, side // 2, 2, side // 2, 2, Dv)
    return grid.mean(dim=(2, 4)).reshape(-1, Dv)


def mean(features: torch.Tensor) -> torch.Tensor:
    """The mean of each patch over time: [P, Dv]."""
    return sum(features) / len(features)


AGGREGATES = {"concat": concat, "stpool": st_pool, "pool2": pool2, "mean": mean}


class Reference:
    """Trains `vlm` (timm ViT, visual tokens after BOS; changed in place) the plain way.

    aggregate: of AGGREGATES. learning_rate, weight_decay, max_grad_norm, betas: of AdamW, matrices alone decayed, as
    our trainer does.
    """

    def __init__(
        self,
        vlm: PrismaticVLM,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.1,
        max_grad_norm: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        recompute: bool = True,
        aggregate: str = "concat",
    ) -> None:
        self.vlm, self.max_grad_norm = vlm.train(), max_grad_norm
        self.aggregate = AGGREGATES[aggregate]
        for module in vlm.modules():
            if type(module) is OneDNNLinear:
                module.__class__ = nn.Linear
        parameters = [p for p in vlm.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
        layers = vlm.llm_backbone.layers
        if recompute:
            for index, layer in enumerate(layers):
                layers[index] = checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels fp32 [F, 3, R, R] to features [F, P, Dv] of the second-to-last block; all blocks are run."""
        tower = self.vlm.vision_backbone
        with torch.no_grad():
            return tower.featurizer.get_intermediate_layers(pixels, n={tower.block_index})[0]

    def loss(self, batch: ReferenceBatch) -> torch.Tensor:
        """Mean loss over the label tokens of a batch, an fp32 scalar."""
        counts = [len(pixels) for pixels in batch.pixels]
        clips = self.features(torch.cat(batch.pixels)).split(counts)  # [T, P, Dv] each
        visual = [self.vlm.projector(self.aggregate(clip)) for clip in clips]  # [N, D] each
        text = self.vlm.llm_backbone.embed(batch.input_ids)
        rows, labels, masks = [], [], []
        for row, patches in enumerate(visual):
            rows.append(torch.cat([text[row, :1], patches, text[row, 1:]]))
            nothing = batch.labels.new_full((len(patches),), IGNORE_INDEX)
            labels.append(torch.cat([batch.labels[row, :1], nothing, batch.labels[row, 1:]]))
            mask = batch.attention_mask[row]
            seen = mask.new_ones(len(patches))
            masks.append(torch.cat([mask[:1], seen, mask[1:]]))
        padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        output = self.vlm.llm_backbone.llm(
            inputs_embeds=pad_sequence(rows, batch_first=True),
            attention_mask=pad_sequence(masks, batch_first=True),
            use_cache=False,
        )
        logits = output.logits.float()  # [B, S, vocabulary]
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), padded[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="mean"
        )

    def step(self, batch: ReferenceBatch) -> float:
        """One optimizer step. Returns the loss."""
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.vlm.parameters() if p.requires_grad], self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
