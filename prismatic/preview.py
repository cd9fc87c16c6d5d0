"""`--dry_run true`: what a run would be, without loading weights or training."""

from __future__ import annotations

from collections import Counter

import draccus
import torch

from prismatic.build import add_adapters, build_vlm, conversation_texts, read_annotations, read_token
from prismatic.conf.run import PretrainConfig
from prismatic.models.vlm import PrismaticVLM
from prismatic.types import Medium, Record


def describe(cfg: PretrainConfig) -> str:
    """The resolved configuration, parameters by module, and tokens per example, as a text to print.

    Raises ValueError for everything that `build_trainer` would refuse in the annotations or the ids.
    """
    records = read_annotations(cfg.dataset, cfg.stage)
    vlm = _without_weights(cfg, records)
    add_adapters(vlm, cfg)
    vlm.freeze(cfg.stage)
    stage = cfg.model.stage(cfg.stage)
    steps = -(-len(records[0]) // stage.global_batch_size)
    lines = [
        draccus.dump(cfg).rstrip(),
        "",
        f"run folder   {cfg.run_root_dir / cfg.resolved_run_id()}",
        f"examples     {len(records[0])} in {', '.join(str(file) for file in cfg.dataset.components(cfg.stage)[0])}",
        f"steps        {stage.max_steps or steps * stage.epochs} of {stage.global_batch_size} examples",
        "",
        *_parameters(vlm),
        "",
        *_tokens(vlm, records[0]),
    ]
    return "\n".join(lines)


def _without_weights(cfg: PretrainConfig, records: list[list[Record]]) -> PrismaticVLM:
    with torch.device("meta"):
        return build_vlm(
            cfg.model,
            seed=cfg.seed,
            hf_token=read_token(cfg.hf_token),
            texts=lambda: conversation_texts(records),
            weights_come=frozenset({"vision_backbone", "llm_backbone"}),
        )


def _parameters(vlm: PrismaticVLM) -> list[str]:
    lines = [f"{'module':<18}{'parameters':>16}{'trained':>16}"]
    total = trained = 0
    for name, module in vlm.named_children():
        counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
        here, here_trained = sum(n for n, _ in counts), sum(n for n, grad in counts if grad)
        lines.append(f"{name:<18}{here:>16,}{here_trained:>16,}")
        total, trained = total + here, trained + here_trained
    return [*lines, f"{'all':<18}{total:>16,}{trained:>16,}"]


def _tokens(vlm: PrismaticVLM, records: list[Record]) -> list[str]:
    kinds: Counter[str] = Counter()
    visual: Counter[int] = Counter()
    for record in records:
        kinds.update(medium.kind for medium in record.media)
        kinds["text only"] += not record.media
        visual[sum(vlm.tokens_per_clip(_frames(medium, vlm.num_frames)) for medium in record.media)] += 1
    media = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n)
    shown = ", ".join(f"{tokens} in {n} rows" for tokens, n in sorted(visual.items())[:6])
    context = vlm.llm_backbone.context_length
    return [
        f"media              {media}",
        f"visual tokens      {shown}{', ...' if len(visual) > 6 else ''}",
        f"a video            {vlm.num_frames} frames = {vlm.tokens_per_clip(vlm.num_frames)} visual tokens",
        f"context            {context} tokens, of which text at most {vlm.llm_backbone.tokenizer.model_max_length}",
    ]


def _frames(medium: Medium, num_frames: int) -> int:
    if medium.kind == "image":
        return 1
    return len(medium.paths) if medium.kind == "frames" else medium.num_frames or num_frames
