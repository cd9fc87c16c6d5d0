"""Asking: ours beside a plain `generate` as the older systems had it, and beside Transformers' own on our embeddings.

    python benchmarks/bench_generate.py --config A,C --T 4,16 --bs 1,8

Plain: PIL on PNG frames, every block of the vision backbone, logits of all positions of the prompt, the library's
cache, one prompt at a time. The gate: the same greedy tokens, all of them, or no ratio. TTFT is a question about a clip
that was not seen before, up to the first token; `second` is another question about the same clip; decoding is what
each further token costs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Cost, Several, best_of, report
from reference import read_pixels
from torch import nn
from transformers.utils import logging
from workload import WORKLOADS, Workload, build_model, write_clips

from prismatic.models.linear import OneDNNLinear
from prismatic.models.vlm import PrismaticVLM
from prismatic.prompting import tokenize_prompt

Ids = list[list[int]]
QUESTION = "What happens in the video?"
FURTHER = ("Which colour is the boat, red or green?", "And what does it do then?", "Who is there?", QUESTION)


def ask(vlm: PrismaticVLM, clips: Sequence[Any], questions: Sequence[str], new: int) -> Ids:
    """Our own way, all questions in one batch. Ids instead of text: random weights say what is no text."""
    seen: list[torch.Tensor] = []
    generate = vlm.llm_backbone.llm.generate

    def tapped(**kwargs: Any) -> torch.Tensor:
        seen.append(generate(**kwargs))
        return seen[-1]

    vlm.llm_backbone.llm.generate = tapped
    try:
        prompts = [prompt_of(vlm, question) for question in questions]
        vlm.generate_batch(list(clips), prompts, max_new_tokens=new, eos_token_id=-1)
    finally:
        del vlm.llm_backbone.llm.generate
    return seen[0].tolist()


@torch.no_grad()
def plain(vlm: PrismaticVLM, clip: Path, question: str, new: int) -> Ids:
    """The plain way."""
    return run(vlm, plain_embeds(vlm, clip, question), new, logits_to_keep=0)


@torch.no_grad()
def plain_embeds(vlm: PrismaticVLM, clip: Path, question: str) -> torch.Tensor:
    """A prompt with its visual tokens, [1, S, D]."""
    tower, tokenizer = vlm.vision_backbone, vlm.llm_backbone.tokenizer
    like = next(vlm.parameters())
    ids = tokenize_prompt(prompt_of(vlm, question), [], tokenizer=tokenizer, layout="after-bos")
    text = vlm.llm_backbone.embed(torch.tensor([ids], device=like.device))
    pixels = read_pixels([str(path) for path in sorted(clip.iterdir())], tower.image_spec).to(like)
    features = tower.featurizer.get_intermediate_layers(pixels, n={tower.block_index})[0]
    visual = vlm.projector(vlm.aggregator(features, [len(pixels)]))[None]
    return torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)


@torch.no_grad()
def run(vlm: PrismaticVLM, embeds: torch.Tensor, new: int, **more: Any) -> Ids:
    """Transformers' `generate`, greedy, on embeddings [1, S, D]."""
    return vlm.llm_backbone.llm.generate(
        inputs_embeds=embeds,
        attention_mask=embeds.new_ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
        **more,
    ).tolist()


def prompt_of(vlm: PrismaticVLM, question: str) -> str:
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", question)
    return builder.get_prompt()


def same_tokens(vlm: PrismaticVLM, peer: PrismaticVLM, clips: Sequence[Path], new: int) -> bool:
    """Whether a batch about different clips, and further questions about one, get the plain way's tokens."""
    vlm.memory.forget()
    together = ask(vlm, [str(clip) for clip in clips], [QUESTION] * len(clips), new)
    further = [ask(vlm, [str(clips[0])], [question], new)[0] for question in FURTHER]
    return together == [plain(peer, clip, QUESTION, new)[0] for clip in clips] and further == [
        plain(peer, clips[0], question, new)[0] for question in FURTHER
    ]


def first_token(vlm: PrismaticVLM, peer: PrismaticVLM, clip: Path, repeats: int) -> tuple[Cost, Cost, Cost]:
    """Cost of the first token of ours, of the plain way's, and of ours for a further question."""

    def unseen() -> Ids:
        vlm.memory.forget()
        return ask(vlm, [str(clip)], [QUESTION], 1)

    ours, theirs = best_of(repeats, unseen, lambda: plain(peer, clip, QUESTION, 1))
    further = best_of(repeats, *(lambda q=q: ask(vlm, [str(clip)], [q], 1) for q in FURTHER))
    slowest = max((cost for _, cost in further), key=lambda cost: cost.cpu)
    return ours[1], theirs[1], slowest


def decoding(
    vlm: PrismaticVLM, peer: PrismaticVLM, clip: Path, args: argparse.Namespace
) -> tuple[dict[int, float], float]:
    """Tokens per CPU-second behind the first one: of ours by the number of questions at once, and of Transformers'."""
    embeds = plain_embeds(peer, clip, QUESTION)
    runs: list[Callable[[int], Ids]] = [
        *(lambda n, many=many: ask(vlm, [str(clip)] * many, [QUESTION] * many, n) for many in args.bs),
        lambda n: run(peer, embeds, n),
    ]
    costs = best_of(args.repeats, *(lambda r=r, n=n: r(n) for r in runs for n in (1, 1 + args.new)))
    few, more = ([cost.cpu for _, cost in costs[at::2]] for at in (0, 1))
    rates = [args.new / max(1e-9, b - a) for a, b in zip(few, more, strict=True)]
    return {many: many * rate for many, rate in zip(args.bs, rates[:-1], strict=True)}, rates[-1]


def use_torch_linear(model: nn.Module) -> None:
    """Undo what PrismaticVLM does for itself: the plain way has PyTorch's own linear layers."""
    for module in model.modules():
        if type(module) is OneDNNLinear:
            module.__class__ = nn.Linear


def measure(workload: Workload, name: str, aggregator: str, args: argparse.Namespace) -> None:
    """One configuration: the gate, the costs, two lines."""
    vlm, peer = (build_model(workload, aggregator).eval() for _ in range(2))
    use_torch_linear(peer)
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder) / "clips", [workload.num_frames] * max(args.bs))
        clips = sorted(path for path in (Path(folder) / "clips").iterdir() if path.is_dir())
        same = same_tokens(vlm, peer, clips, 4)
        ours, theirs, second = first_token(vlm, peer, clips[0], args.repeats)
        rates, library = decoding(vlm, peer, clips[0], args)
    ratios = {
        "ttft": theirs.cpu / ours.cpu,
        "second": theirs.cpu / second.cpu,
        **{f"decode_{many}": rate / library for many, rate in rates.items()},
    }
    told = ", ".join(f"{many} at once {rate:.0f}" for many, rate in rates.items())
    line = (
        f"{name} {aggregator}, {workload.num_frames} frames: first token {ours.cpu * 1e3:.0f} CPU-ms (plain "
        f"{theirs.cpu * 1e3:.0f}), of a second question {second.cpu * 1e3:.1f}; tokens decoded per "
        f"CPU-second: {told}, plain {library:.0f}; "
    )
    line += ", ".join(f"{k} {v:.1f}x" for k, v in ratios.items()) if same else "OTHER TOKENS: no ratio"
    report(
        "generate",
        line,
        config=name,
        aggregator=aggregator,
        num_frames=workload.num_frames,
        same_tokens=same,
        ttft_ms=ours.cpu * 1e3,
        ttft_wall_ms=ours.wall * 1e3,
        plain_ttft_ms=theirs.cpu * 1e3,
        second_ms=second.cpu * 1e3,
        tokens_per_s={str(many): rate for many, rate in rates.items()},
        plain_tokens_per_s=library,
        busy=ours.busy,
        **(ratios if same else {}),
    )


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action=Several, choices=list(WORKLOADS), default=["A", "C"])
    parser.add_argument(
        "--T", action=Several, read=int, default=[], help="frames of a clip; those of the config by default"
    )
    parser.add_argument("--aggregator", action=Several, default=["concat", "st-pool"], help="how frames become tokens")
    parser.add_argument("--bs", action=Several, read=int, default=[1, 8], help="questions at once")
    parser.add_argument("--new", type=int, default=32, help="tokens to decode")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many counts")
    args = parser.parse_args()
    logging.set_verbosity_error()  # about the end token that no answer has, so that all are of one length
    torch.set_num_threads(1)  # CPU-seconds of one core: ratios then do not depend on how threads wait
    for name in args.config:
        for T in args.T or [WORKLOADS[name].num_frames]:
            for aggregator in args.aggregator:
                measure(replace(WORKLOADS[name], num_frames=T), name, aggregator, args)


if __name__ == "__main__":
    main()
