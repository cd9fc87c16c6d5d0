"""`--dry_run true`: what a run would be, without loading weights or training."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import draccus
import torch
from torch.utils.flop_counter import FlopCounterMode

from prismatic.build import build_vlm, choose_trained
from prismatic.build_data import build_dataset, conversation_texts, read_annotations
from prismatic.conf.run import PretrainConfig
from prismatic.conf.token import read_token
from prismatic.data.tokenize import tokenize_chat
from prismatic.dist import World
from prismatic.estimate import Gradient, Load, Part, step_flops
from prismatic.models.checkpoints import apply_weights
from prismatic.models.hub import NotHereError
from prismatic.models.llm.zoo import llm_spec
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import TEMPLATES
from prismatic.start import Start, add_adapters, read_start
from prismatic.train.memory.forecast import Forecast
from prismatic.train.optim.groups import clean_name, parameter_groups
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
    start = read_start(cfg, shapes_only=True)
    vlm, notes = without_weights(cfg, records, start)
    for path, weights in start.weights.items():
        apply_weights(vlm, weights, path)
        notes.append(f"starts from {path}")
    add_adapters(vlm, cfg)
    choose_trained(vlm, cfg)
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
        *_rates(cfg, vlm),
        "",
        *_token_lines(vlm, records[0], tokens),
        "",
        *_cost_lines(cfg, vlm, tokens),
        *_memory_lines(cfg, vlm, records),
        *(f"note               {note}" for note in notes),
    ]
    return "\n".join(lines)


def without_weights(
    cfg: PretrainConfig, records: Sequence[Sequence[Record]], start: Start | None = None
) -> tuple[PrismaticVLM, list[str]]:
    """The model on the meta device (tokenizer and sizes, no memory for weights), and what about it is estimated."""
    model, start = cfg.model, start or Start()

    def build(published: bool) -> PrismaticVLM:
        weights_come = {"vision_backbone", *(["llm_backbone"] if published else [])}
        return build_vlm(
            model if published else replace(model, pretrained_backbones=False),
            seed=cfg.seed,
            hf_token=read_token(cfg.hf_token),
            llm_definition=start.llm_definition,
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
    flops = _flops(cfg, vlm, tokens)
    return [f"a step             about {_short(flops / 1e12)} TFLOPs over {_world(cfg).world_size} process(es)"]


def _memory_lines(cfg: PretrainConfig, vlm: PrismaticVLM, records: Sequence[Sequence[Record]]) -> list[str]:
    dataset = build_dataset(cfg.dataset, records, cfg=cfg, vlm=vlm, train=True)
    packing = cfg.dataset.packing and vlm.llm_backbone.separates
    return Forecast(cfg, vlm, dataset, _world(cfg), packing).lines()


def _world(cfg: PretrainConfig) -> World:
    """The processes that torchrun describes; on GPUs, unless --device cpu, wherever this is looked at."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu" if cfg.device == "cpu" else "cuda")
    return World(0, 0, size, device, "", int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def _rates(cfg: PretrainConfig, vlm: PrismaticVLM) -> list[str]:
    """Learning rates by name and what is frozen, where flags say something about them."""
    model, stage = cfg.model, cfg.model.stage(cfg.stage)
    lines = []
    for group in parameter_groups(vlm, stage.learning_rate, stage.weight_decay, model.learning_rates):
        count = sum(p.numel() for p in group["params"])
        lines.append(f"learning rate      {group['lr']:<10g}{count:>16,}  {group['name']}")
    held = [clean_name(n) for n, p in vlm.named_parameters() if any(fnmatchcase(n, f) for f in model.freeze)]
    if held:
        lines.append(f"frozen             {len(held)} weights by --model.freeze, for example {held[0]}")
    return ["", *lines] if model.learning_rates or held else []


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _flops(cfg: PretrainConfig, vlm: PrismaticVLM, tokens: dict[str, Tokens]) -> float:
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
    patches = getattr(vision, "num_patches", None) or vlm.tokens_per_clip(1)
    parts = (
        Part(
            *(vision_size, vision_trained, _frame_flops(vlm, vision_size * patches) // (2 * patches)),
            *(0, getattr(vision, "embed_dim", llm.embed_dim)),
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
        patches=patches,
        visual=sum(t.visual for t in sums) / rows,
        text=sum(t.text for t in sums) / rows,
        labels=sum(t.labels for t in sums) / rows,
        examples=stage.global_batch_size,
    )
    return step_flops(*parts, load, vocabulary=vocabulary)


def _frame_flops(vlm: PrismaticVLM, multiplications: int) -> int:
    """FLOPs of a frame in the vision backbone, counted; of one that wants more than frames, 2 a weight and patch."""
    side = vlm.vision_backbone.image_spec.resolution
    frame = torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vlm.vision_backbone(frame)
    except (TypeError, RuntimeError):
        return 2 * multiplications
    return counter.get_total_flops()


def _sizes(modules: list[torch.nn.Module | None]) -> tuple[int, int]:
    """Weights of some modules (None: a native model has no aggregator), and how many of them are trained."""
    parameters = [p for module in modules if module is not None for p in module.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
