"""Evaluation: `evaluate()` as scripts/evaluate.py runs it, beside a plain loop over the rows, one at a time.

    python benchmarks/bench_eval.py --config A --clips 8 --per_clip 1,4

Plain: PIL on PNG frames, every block of the vision backbone and the whole prompt for each row, no batches, as in
bench_generate.py. The gate: the same answers. per_clip: questions about each clip; most benchmarks have several.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_generate import plain, use_torch_linear
from common import Several, best_of, report
from transformers.utils.logging import set_verbosity_error
from workload import WORKLOADS, build_model, captions, write_clips

from prismatic.conf import cli
from prismatic.conf.run import EvaluateConfig
from prismatic.eval.evaluate import evaluate
from prismatic.models.vlm import PrismaticVLM


def write_rows(folder: Path, num_clips: int, num_frames: int, per_clip: int) -> list[dict[str, Any]]:
    """Clips, and an annotation file rows.json with `per_clip` questions of many lengths about each."""
    found = json.loads(write_clips(folder, [num_frames] * num_clips).read_text(encoding="utf-8"))
    rows = []
    for number, said in enumerate(captions(num_clips * per_clip, seed=3)):
        question = " ".join(said.split()[: 3 + number % 12]) + "?"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": said}]
        rows.append({"id": str(number), "frames": found[number % num_clips]["frames"], "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return rows


def ours(vlm: PrismaticVLM, folder: Path, batch: int, new: int) -> list[str]:
    """The predictions of an evaluation, in the order of the rows."""
    vlm.memory.forget()
    components = json.dumps(["rows.json", "."])
    args = ["--model_path", "model", "--dataset.type", "custom", "--dataset.dataset_root_dir", str(folder)]
    args += ["--dataset.finetune_stage_components", components, "--dataset.num_workers", "0", "--task", "caption"]
    args += ["--batch_size", str(batch), "--max_new_tokens", str(new), "--output_dir", str(folder / "evaluation")]
    evaluate(cli.parse(EvaluateConfig, args), vlm)
    lines = (folder / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def one_by_one(vlm: PrismaticVLM, folder: Path, rows: list[dict[str, Any]], new: int) -> list[str]:
    """The same, each row for itself."""
    said = []
    for row in rows:
        clip = (folder / row["frames"][0]).parent
        (ids,) = plain(vlm, clip, row["conversations"][0]["value"], new)
        end = vlm.llm_backbone.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        said.append(vlm.llm_backbone.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return said


@torch.no_grad()
def enliven(vlm: PrismaticVLM) -> None:
    """Larger weights, the same for all: as they are made at first, every prompt gets the same answer."""
    generator = torch.Generator().manual_seed(0)
    for parameter in (*vlm.projector.parameters(), *vlm.llm_backbone.parameters()):
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / parameter.shape[-1] ** 0.5)


def measure(name: str, aggregator: str, num_clips: int, per_clip: int, batch: int, new: int) -> None:
    """One configuration: the gate, the costs, two lines."""
    # As many rows of the embedding as tokens, so that random weights say what can be written down and compared.
    workload = replace(WORKLOADS[name], vocabulary=512)
    vlm, peer = (build_model(workload, aggregator).eval() for _ in range(2))
    use_torch_linear(peer)
    for model in (vlm, peer):
        enliven(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        warm = write_rows(Path(temporary) / "warm", 1, workload.num_frames, 1)
        ours(vlm, Path(temporary) / "warm", batch, 1)
        one_by_one(peer, Path(temporary) / "warm", warm, 1)
        rows = write_rows(folder, num_clips, workload.num_frames, per_clip)
        mine, theirs = best_of(1, lambda: ours(vlm, folder, batch, new), lambda: one_by_one(peer, folder, rows, new))
    same = mine[0] == theirs[0] and len(set(mine[0])) > 1
    ratio = theirs[1].cpu / mine[1].cpu
    line = (
        f"{name} {aggregator}, {len(rows)} rows, {per_clip} a clip, batches of {batch}: {mine[1].cpu:.2f} CPU-s, one "
        f"by one {theirs[1].cpu:.2f}; {f'{ratio:.1f}x' if same else 'OTHER ANSWERS: no ratio'}"
    )
    report(
        "eval",
        line,
        config=name,
        aggregator=aggregator,
        per_clip=per_clip,
        rows=len(rows),
        batch=batch,
        same_answers=same,
        items_per_s=len(rows) / mine[1].cpu,
        plain_items_per_s=len(rows) / theirs[1].cpu,
        wall_s=mine[1].wall,
        plain_wall_s=theirs[1].wall,
        busy=mine[1].busy,
        **({"ratio": ratio} if same else {}),
    )


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action=Several, choices=list(WORKLOADS), default=["tiny", "A"])
    parser.add_argument("--aggregator", default="concat", help="how frames become tokens")
    parser.add_argument("--clips", type=int, default=8, help="different clips")
    parser.add_argument("--per_clip", action=Several, read=int, default=[1, 4], help="questions about each")
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch")
    parser.add_argument("--new", type=int, default=24, help="longest answer, tokens")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    set_verbosity_error()
    torch.set_num_threads(1)  # CPU-seconds of one core: ratios then do not depend on how threads wait
    for name in args.config:
        for per_clip in args.per_clip:
            measure(name, args.aggregator, args.clips, per_clip, args.batch, args.new)


if __name__ == "__main__":
    main()
