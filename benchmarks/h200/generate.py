"""Asking a model of a real size on a GPU: ours beside a plain `generate`, seconds to the first token, tokens a second.

    python benchmarks/h200/generate.py --config 7b,0.5b --aggregator concat,st-pool --bs 1,8
    python benchmarks/h200/generate.py --config tiny --device cpu        # does it run

Weights are random, of published shapes, in bf16 (fp32 on a CPU), and one model serves both sides. Plain is as the older
systems had it: PIL on PNG frames, every block of the vision backbone, logits of all positions of the prompt, the
library's cache. `second` is another question about the same clip. The gate: the same greedy tokens (in bf16 two tokens
may be as likely; how many of the first ones are the same is told).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_generate import FURTHER, QUESTION, Ids, ask, plain, plain_embeds, run
from common import Several, report, wait
from workload import WORKLOADS, build_model, write_clips


def fastest(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds that it takes, the best of `repeats` after one that warms up."""
    seconds = []
    for _ in range(1 + repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def same_share(a: Ids, b: Ids) -> float:
    """Share of the tokens that are the same up to the first that is not, over all answers."""
    same = total = 0
    for ours, theirs in zip(a, b, strict=True):
        pairs = [x == y for x, y in zip(ours, theirs, strict=True)]
        same += pairs.index(False) if False in pairs else len(pairs)
        total += len(pairs)
    return same / total


def measure(name: str, aggregator: str, batches: Sequence[int], args: argparse.Namespace) -> None:
    """One configuration: the gate, the seconds, two lines."""
    workload, device = WORKLOADS[name], torch.device(args.device)
    vlm = build_model(workload, aggregator, device=device).eval()
    vlm.to(device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder) / "clips", [workload.num_frames] * max(batches))
        clips = sorted(path for path in (Path(folder) / "clips").iterdir() if path.is_dir())
        questions = [QUESTION, *FURTHER[:3]]
        same = same_share(
            [ask(vlm, [str(clips[0])], [question], 16)[0] for question in questions],
            [plain(vlm, clips[0], question, 16)[0] for question in questions],
        )

        def unseen() -> Ids:
            vlm.memory.forget()
            return ask(vlm, [str(clips[0])], [QUESTION], 1)

        first = fastest(unseen, device, args.repeats)
        plain_first = fastest(lambda: plain(vlm, clips[0], QUESTION, 1), device, args.repeats)
        second = max(fastest(lambda q=q: ask(vlm, [str(clips[0])], [q], 1), device, args.repeats) for q in FURTHER)
        embeds = plain_embeds(vlm, clips[0], QUESTION)

        def rate(work: Callable[[int], object], many: int) -> float:
            one, more = (fastest(lambda n=n: work(n), device, args.repeats) for n in (1, 1 + args.new))
            return many * args.new / max(1e-9, more - one)

        rates = {
            many: rate(lambda n, m=many: ask(vlm, list(map(str, clips[:m])), [QUESTION] * m, n), many)
            for many in batches
        }
        library = rate(lambda n: run(vlm, embeds, n), 1)
    told = "; ".join(
        f"{many} at once {tokens:.0f} tokens/s ({tokens / library:.1f}x)" for many, tokens in rates.items()
    )
    report(
        "h200-generate",
        f"{name} {aggregator}, {workload.num_frames} frames: first token {first * 1e3:.0f} ms (plain "
        f"{plain_first * 1e3:.0f}), of a second question {second * 1e3:.1f}; {told}; Transformers {library:.0f}; "
        f"{same:.0%} of the tokens are the same",
        config=name,
        aggregator=aggregator,
        same_tokens=same,
        ttft_ms=first * 1e3,
        plain_ttft_ms=plain_first * 1e3,
        second_ms=second * 1e3,
        tokens_per_s={str(many): tokens for many, tokens in rates.items()},
        plain_tokens_per_s=library,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action=Several, choices=list(WORKLOADS), default=["7b", "0.5b"])
    parser.add_argument("--aggregator", action=Several, default=["concat", "st-pool"], help="how frames become tokens")
    parser.add_argument("--bs", action=Several, read=int, default=[1, 8], help="clips asked about at once")
    parser.add_argument("--new", type=int, default=128, help="tokens to decode")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args = parser.parse_args()
    logging.set_verbosity_error()  # about the end token that no answer has, so that all are of one length
    for name in args.config:
        for aggregator in args.aggregator:
            measure(name, aggregator, args.bs, args)


if __name__ == "__main__":
    main()
