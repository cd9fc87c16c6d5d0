"""The training configurations that benchmarks share: model with random weights, clips as PNG frames, our loader.

A: ViT-B/16 at 224, 4 frames, Llama of 4 layers x 256, batch 4. B: ViT-S, 4 frames, Llama of 12 x 768, batch 2.
C: ViT-S, 16 frames, Llama of 4 x 256, batch 1. All: 196 visual tokens a frame, a vocabulary of 32064, stage finetune
(the vision backbone is frozen, the projector and the LLM are trained). `7b` and `0.5b`, for a GPU, have the shapes of
CLIP ViT-L/14 at 336 with 16 frames of 576 visual tokens, and of Llama-2 and Qwen2. `tiny` is for tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prismatic.data.annotations import load_records
from prismatic.data.dataset import ClipDataset, MediaReader
from prismatic.data.loader import StepLoader
from prismatic.data.pack import collate
from prismatic.models.aggregators import build_aggregator
from prismatic.models.llm.hf_causal import HFCausalLM
from prismatic.models.llm.tokenizer import train_tokenizer
from prismatic.models.projectors import build_projector
from prismatic.models.seeding import seeded
from prismatic.models.vision.zoo import build_vision
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import TEMPLATES, PromptBuilder
from prismatic.types import Record

WIDTH, HEIGHT = 596, 336  # of a WebVid clip, pixels
VOCABULARY = 32064  # rows of Llama-2's embedding with a padding token
CONTEXT = 16384
QUESTION = "What happens in the video?"


@dataclass(frozen=True)
class Workload:
    """One configuration. inner: width of the LLM's MLP. batch: examples of an optimizer step, in one micro-batch.

    kv_heads: heads of keys and values, as many as `heads` by default. tied: the head has the weights of the embedding.
    """

    vision: str
    num_frames: int
    layers: int
    width: int
    heads: int
    inner: int
    batch: int
    vocabulary: int = VOCABULARY
    kv_heads: int | None = None
    tied: bool = False


AGGREGATORS: dict[str, tuple[str, dict[str, int]]] = {
    "concat": ("concat", {}),
    "stpool": ("st-pool", {}),
    "pool2": ("spatial-pool", {"stride": 2}),
    "mean": ("mean", {}),
}
"""Name on the command line: (id, options) of the aggregator."""

WORKLOADS = {
    "A": Workload("timm:vit_base_patch16_224", 4, layers=4, width=256, heads=4, inner=688, batch=4),
    "B": Workload("timm:vit_small_patch16_224", 4, layers=12, width=768, heads=12, inner=2048, batch=2),
    "C": Workload("timm:vit_small_patch16_224", 16, layers=4, width=256, heads=4, inner=688, batch=1),
    "7b": Workload("clip-vit-l-336px", 16, layers=32, width=4096, heads=32, inner=11008, batch=1),
    "0.5b": Workload(
        *("clip-vit-l-336px", 16),
        **{"layers": 24, "width": 896, "heads": 14, "inner": 4864, "batch": 8, "vocabulary": 151936, "kv_heads": 2},
        tied=True,
    ),
    "tiny": Workload("tiny-vit", 2, layers=2, width=32, heads=2, inner=64, batch=2, vocabulary=512),
}

WORDS = (
    "a red small old green round boat car bird dog tree child woman moves turns waits runs swims falls jumps slowly "
    "quickly left right up down over under near the blue city river beach forest house bridge at night in rain snow"
).split()


def captions(count: int, seed: int = 0) -> list[str]:
    """Sentences of 12 to 20 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(12, 21)))) + "." for _ in range(count)]


def build_model(
    workload: Workload,
    aggregator: str = "concat",
    seed: int = 0,
    attention: str = "sdpa",
    device: str | torch.device = "cpu",
    **options: object,
) -> PrismaticVLM:
    """The model, stage finetune, weights by `seed` (and kind of device) alone. options: of the aggregator.

    device: where the LLM's weights are made, and where the model is.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    template = TEMPLATES.get("vicuna-v15")
    # Words of the prompt become tokens, as they are for a published tokenizer: some 70 text tokens an example.
    prompt = PromptBuilder(template).get_potential_prompt(QUESTION)
    tokenizer = train_tokenizer([*captions(200), *[prompt] * 20], min(1024, workload.vocabulary))
    config = LlamaConfig(
        hidden_size=workload.width,
        intermediate_size=workload.inner,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.kv_heads or workload.heads,
        vocab_size=workload.vocabulary,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=workload.tied,
    )
    with seeded(seed), torch.device(device):
        if torch.device(device).type == "cuda":
            torch.cuda.manual_seed(seed)
        llm = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    vision = build_vision(workload.vision, pretrained=False, seed=seed)
    P, Dv = vision.num_patches, vision.embed_dim
    vlm = PrismaticVLM(
        vision,
        build_aggregator(aggregator, vision_dim=Dv, num_patches=P, seed=seed, options=dict(options)),
        build_projector("gelu-mlp", Dv, workload.width, seed=seed),
        HFCausalLM(llm, tokenizer, "vicuna-v15"),
        template=template,
        num_frames=workload.num_frames,
    )
    vlm.freeze("finetune")
    return vlm.to(device)


def write_clips(folder: Path, frame_counts: Sequence[int], seed: int = 0) -> Path:
    """A clip a count, as a folder of PNG frames of 596x336, with an annotation file, whose path is returned."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, (count, caption) in enumerate(zip(frame_counts, captions(len(frame_counts), seed), strict=True)):
        small = rng.integers(0, 255, (HEIGHT // 16 + 4, WIDTH // 16 + 4, 3), np.uint8)
        scene = Image.fromarray(small).resize((WIDTH + 64, HEIGHT + 64), Image.Resampling.BICUBIC)
        (folder / f"{i:05d}").mkdir(parents=True)
        paths = [f"{i:05d}/{t:03d}.png" for t in range(count)]
        for t, path in enumerate(paths):
            left, top = 64 * t // max(1, count), 32 * t // max(1, count)
            noise = rng.integers(-3, 4, (HEIGHT, WIDTH, 3))
            view = np.asarray(scene.crop((left, top, left + WIDTH, top + HEIGHT))) + noise
            Image.fromarray(view.clip(0, 255).astype(np.uint8)).save(folder / path)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": caption}]
        rows.append({"id": f"clip-{i}", "frames": paths, "conversations": turns})
    annotations = folder / "clips.json"
    annotations.write_text(json.dumps(rows), encoding="utf-8")
    return annotations


def build_dataset(vlm: PrismaticVLM, annotations: Path) -> ClipDataset:
    """Our dataset over the rows of `annotations`, whose media lie beside it."""
    return ClipDataset(
        [load_records(annotations, annotations.parent)],
        read=MediaReader(
            num_frames=vlm.num_frames, image_spec=vlm.vision_backbone.image_spec, resize_strategy="resize-naive"
        ),
        template=vlm.template,
        tokenizer=vlm.llm_backbone.tokenizer,
        layout=vlm.layout,
        max_length=2048,
        tokens_per_clip=vlm.tokens_per_clip,
        context_length=vlm.llm_backbone.context_length,
    )


def build_loader(dataset: ClipDataset, batch: int, *, packing: bool = False) -> StepLoader:
    """Our loader, in the order of the file and in this process, so that its CPU-seconds count."""
    return StepLoader(
        dataset,
        partial(collate, pad_token_id=dataset.tokenizer.pad_token_id, packing=packing),
        num_examples=dataset.num_examples,
        global_batch_size=batch,
        per_device_batch_size=batch,
        shuffle=False,
    )


def records_of(dataset: ClipDataset) -> list[Record]:
    """The rows of the dataset's first epoch."""
    return list(dataset.records_by_epoch[0])


def trained(vlm: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: parameter for name, parameter in vlm.named_parameters() if parameter.requires_grad}
