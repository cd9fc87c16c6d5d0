"""`--dry_run true`: what a run would be, without loading weights or training."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import draccus
import torch

from prismatic.build import build_vlm, conversation_texts, read_annotations
from prismatic.conf.run import PretrainConfig
from prismatic.conf.token import read_token
from prismatic.data.tokenize import tokenize_chat
from prismatic.estimate import Estimate, Gradient, Load, Part, estimate
from prismatic.models.hub import NotHereError
from prismatic.models.llm.zoo import llm_spec
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import TEMPLATES
from prismatic.start import add_adapters
from prismatic.types import IGNORE_INDEX, Medium, Record

log = logging.getLogger(__name__)

ROWS_PER_KIND = 64  # tokenized for the table; all rows are counted


@dataclass
class Tokens:
    """Sums over the rows of one kind that were tokenized, and the longest. broken: rows that cannot be trained on."""

    rows: int = 0
    frames: int = 0
    visual: int = 0
    text: int = 0
    labels: int = 0
    longest: int = 0
    broken: list[str] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Mean of one of the sums over the rows."""
        return getattr(self, name) / max(1, self.rows)


def describe(cfg: PretrainConfig) -> str:
    """Configuration, parameters by module, tokens per example by modality, FLOPs and memory of a step, as a text.

    Raises ValueError for everything that `build_trainer` would refuse in the annotations or the ids.
    """
    records = read_annotations(cfg.dataset, cfg.stage, seed=cfg.seed, num_frames=cfg.model.num_frames)
    vlm, notes = without_weights(cfg, records)
    add_adapters(vlm, cfg)
    vlm.freeze(cfg.stage)
    stage = cfg.model.stage(cfg.stage)
    # Files take turns, woven epochs are all their own: as ClipDataset has it.
    rows = [len(records[e if cfg.dataset.weave.enabled else e % len(records)]) for e in range(stage.epochs)]
    steps = sum(-(-count // stage.global_batch_size) for count in rows)
    tokens = _count(cfg, vlm, records[0])
    lines = [
        draccus.dump(cfg).rstrip(),
        "",
        f"run folder   {cfg.run_root_dir / cfg.resolved_run_id()}",
        f"examples     {len(records[0])} in {', '.join(str(file) for file in cfg.dataset.components(cfg.stage)[0])}",
        f"steps        {stage.max_steps or steps} of {stage.global_batch_size} examples",
        "",
        *_parameters(vlm),
        "",
        *_token_lines(vlm, records[0], tokens),
        "",
        *_cost_lines(cfg, vlm, tokens),
        *(f"note               {note}" for note in notes),
    ]
    return "\n".join(lines)


def without_weights(cfg: PretrainConfig, records: Sequence[Sequence[Record]]) -> tuple[PrismaticVLM, list[str]]:
    """The model on the meta device (tokenizer and sizes, no memory for weights), and what about it is estimated."""
    model = cfg.model

    def build(published: bool) -> PrismaticVLM:
        weights_come = {"vision_backbone", *(["llm_backbone"] if published else [])}
        return build_vlm(
            model if published else replace(model, pretrained_backbones=False),
            seed=cfg.seed,
            hf_token=read_token(cfg.hf_token),
            texts=lambda: conversation_texts(records),
            weights_come=frozenset(weights_come),
        )

    with torch.device("meta"):
        if model.model_path is not None:
            return build(True), []
        if not model.pretrained_backbones:
            return build(False), []
        spec = llm_spec(model.llm_backbone_id)
        try:
            return build(True), []
        except NotHereError as error:
            if spec.model_type is None:
                raise
            reason = str(error)
        vlm = build(False)
        added = 1 if spec.pad_token else 0
        rows = spec.shape.get("vocab_size", type(vlm.llm_backbone.llm.config)().vocab_size) + added
        rows = -(-rows // spec.pad_to_multiple) * spec.pad_to_multiple if added else rows
        vlm.llm_backbone.llm.resize_token_embeddings(rows, mean_resizing=False)
    note = (
        f"estimated: text tokens and the {rows} rows of the vocabulary, because the tokenizer of "
        f"{model.llm_backbone_id} is not here; one trained on the annotations stands in for it ({reason})"
    )
    return vlm, [note]


def _parameters(vlm: PrismaticVLM) -> list[str]:
    lines = [f"{'module':<18}{'parameters':>16}{'trained':>16}{'frozen':>16}"]
    total = trained = 0
    for name, module in vlm.named_children():
        counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
        here, here_trained = sum(n for n, _ in counts), sum(n for n, grad in counts if grad)
        lines.append(f"{name:<18}{here:>16,}{here_trained:>16,}{here - here_trained:>16,}")
        total, trained = total + here, trained + here_trained
    return [*lines, f"{'all':<18}{total:>16,}{trained:>16,}{total - trained:>16,}"]


def _kind(record: Record) -> str:
    kinds = {medium.kind for medium in record.media}
    return " + ".join(sorted(kinds)) if kinds else "text only"


def _count(cfg: PretrainConfig, vlm: PrismaticVLM, records: Sequence[Record]) -> dict[str, Tokens]:
    """Tokens of rows spread over each kind of example."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(_kind(record), []).append(record)
    found = {}
    for kind, rows in by_kind.items():
        found[kind] = tokens = Tokens()
        for row in rows[:: -(-len(rows) // ROWS_PER_KIND)]:
            _add(tokens, cfg, vlm, row)
    return found


def _add(tokens: Tokens, cfg: PretrainConfig, vlm: PrismaticVLM, record: Record) -> None:
    tokenizer = vlm.llm_backbone.tokenizer
    frames = [_frames(medium, vlm.num_frames) for medium in record.media]
    visual = [vlm.tokens_per_clip(count) for count in frames]
    try:
        example = tokenize_chat(
            record.turns,
            visual,
            template=TEMPLATES.get("caption").for_tokenizer(tokenizer) if cfg.stage == "align" else vlm.template,
            tokenizer=tokenizer,
            layout=cfg.model.visual_token_layout,
            max_length=cfg.model.llm_max_length,
        )
    except ValueError as error:
        tokens.broken.append(f"{record.source}: {error}")
        return
    tokens.rows += 1
    tokens.frames += sum(frames)
    tokens.visual += sum(visual)
    tokens.text += len(example.input_ids) - sum(visual)
    tokens.labels += sum(label != IGNORE_INDEX for label in example.labels)
    tokens.longest = max(tokens.longest, len(example.input_ids))


def _token_lines(vlm: PrismaticVLM, records: Sequence[Record], tokens: dict[str, Tokens]) -> list[str]:
    rows = Counter(_kind(record) for record in records)
    lines = [f"{'modality':<18}{'examples':>10}{'frames':>10}{'visual':>10}{'text':>10}{'learned':>10}{'longest':>10}"]
    for kind, sums in tokens.items():
        means = "".join(f"{sums.mean(name):>10.1f}" for name in ("frames", "visual", "text", "labels"))
        lines.append(f"{kind:<18}{rows[kind]:>10}{means}{sums.longest:>10}")
    context = vlm.llm_backbone.context_length
    lines += [
        f"                   (tokens per example: means over up to {ROWS_PER_KIND} rows of each kind)",
        f"a video            {vlm.num_frames} frames = {vlm.tokens_per_clip(vlm.num_frames)} visual tokens",
        f"context            {context} tokens, of which text at most {vlm.llm_backbone.tokenizer.model_max_length}",
    ]
    longest = max((sums.longest for sums in tokens.values()), default=0)
    if longest > context:
        factor = vlm.llm_backbone.rope_factor
        needed = math.ceil(10 * longest * (factor or 1) / context) / 10
        hint = f", or pass --model.rope_scaling_factor {needed:g}" if factor else ""
        lines.append(f"too long           {longest} tokens exceed the context: lower --model.num_frames{hint}")
    broken = [text for sums in tokens.values() for text in sums.broken]
    if broken:
        lines.append(f"broken             {len(broken)} of the rows looked at, the first: {broken[0]}")
    return lines


def _frames(medium: Medium, num_frames: int) -> int:
    if medium.kind == "image":
        return 1
    return len(medium.paths) if medium.kind == "frames" else medium.num_frames or num_frames


def _cost_lines(cfg: PretrainConfig, vlm: PrismaticVLM, tokens: dict[str, Tokens]) -> list[str]:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    cost = _cost(cfg, vlm, tokens, processes)
    gib = {name: size / 2**30 for name, size in cost.memory.items()}
    return [
        f"a step             about {_short(cost.flops / 1e12)} TFLOPs over {processes} process(es)",
        f"memory             about {_short(sum(gib.values()))} GiB on each process:",
        *(f"                   {_short(size):>10} GiB  {name}" for name, size in gib.items() if size),
    ]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _cost(cfg: PretrainConfig, vlm: PrismaticVLM, tokens: dict[str, Tokens], processes: int) -> Estimate:
    stage = cfg.model.stage(cfg.stage)
    llm, vision = vlm.llm_backbone, vlm.vision_backbone
    sums = [t for t in tokens.values() if t.rows]
    rows = max(1, sum(t.rows for t in sums))
    head = llm.llm.get_output_embeddings()
    table, vocabulary = llm.llm.get_input_embeddings().weight.numel(), head.weight.shape[0] if head is not None else 0
    tied = head is not None and head.weight is llm.llm.get_input_embeddings().weight
    gradient: Gradient = "through" if cfg.stage == "align" else "trained"
    llm_size, llm_trained = _sizes([llm])
    vision_size, vision_trained = _sizes([vision])
    projector_size, projector_trained = _sizes([vlm.aggregator, vlm.projector])
    blocks = len(getattr(getattr(vision, "featurizer", None), "blocks", ())) or 24
    parts = (
        Part(
            # A native tower does not tell its width and patches: the LLM's width and its own tokens stand in.
            *(vision_size, vision_trained, vision_size, blocks, getattr(vision, "embed_dim", llm.embed_dim)),
            gradient="trained" if vision_trained else "none",
        ),
        Part(projector_size, projector_trained, projector_size, 0, llm.embed_dim, gradient="trained"),
        Part(
            *(llm_size, llm_trained, llm_size - table * (1 if tied else 2), len(llm.layers), llm.embed_dim),
            gradient=gradient,
            recomputed=cfg.model.recompute != "none",
        ),
    )
    load = Load(
        frames=sum(t.frames for t in sums) / rows,
        patches=getattr(vision, "num_patches", None) or vlm.tokens_per_clip(1),
        visual=sum(t.visual for t in sums) / rows,
        text=sum(t.text for t in sums) / rows,
        labels=sum(t.labels for t in sums) / rows,
        examples=stage.global_batch_size,
        at_a_time=stage.per_device_batch_size,
    )
    half = cfg.model.enable_mixed_precision_training and cfg.device != "cpu"
    shards = 1 if stage.train_strategy == "ddp" else processes
    return estimate(*parts, load, vocabulary=vocabulary, shards=shards, half=half)


def _sizes(modules: list[torch.nn.Module | None]) -> tuple[int, int]:
    """Weights of some modules (None: a native model has no aggregator), and how many of them are trained."""
    parameters = [p for module in modules if module is not None for p in module.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
