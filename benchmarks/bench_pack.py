"""Packed rows beside padded ones: the LLM's part of a training step on clips of mixed lengths.

    python benchmarks/bench_pack.py --mix 1,4,8,16 --global_batch 64 --batch 16

Three ways through the same examples with the same weights, forward and backward: each row padded to the longest of a
batch drawn at random (as LLaVA's collator does), the same with like lengths together over the global batch (as
`group_by_length` does), and ours. The gate, in fp32: each packed example has the loss that it has alone, the loss of
one has no gradient at the positions of another, and the gradients of the weights are the sum of the examples'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from common import Several, best_of, report
from numpy.typing import NDArray

from prismatic.data import plan
from prismatic.data.pack import collate
from prismatic.models.llm.attention import use_attention
from prismatic.models.llm.hf_causal import HFCausalLM
from prismatic.types import IGNORE_INDEX, Batch, Example

VOCABULARY, LABELS = 4096, 48
NO_FRAMES = torch.empty((0, 3, 1, 1), dtype=torch.uint8)


def make_llm(layers: int, width: int) -> HFCausalLM:
    """A Llama of random weights, fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=VOCABULARY,
        max_position_embeddings=16384,
    )
    llm = HFCausalLM(LlamaForCausalLM(config).train(), None)  # type: ignore[arg-type]  no text is cut here
    use_attention(llm, "auto", torch.device("cpu"), half=False)
    return llm


def make_examples(count: int, frames: list[int], per_frame: int, seed: int) -> list[Example]:
    """Clips of so many frames, a question and an answer; visual tokens are ids like all others here."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = int(rng.choice(frames)) * per_frame + int(rng.integers(LABELS + 16, LABELS + 160))
        ids = torch.from_numpy(rng.integers(0, VOCABULARY, length))
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[-LABELS:] = ids[-LABELS:]
        found.append(Example(str(number), ids, labels, NO_FRAMES, ()))
    return found


def loss_of(llm: HFCausalLM, batch: Batch, only: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of token losses of the examples in columns `only`, embeddings [B, S, D])."""
    embeds = llm.embed(batch.input_ids)
    targets = torch.full_like(batch.labels[:, 1:], IGNORE_INDEX)
    targets[:, only] = batch.labels[:, 1:][:, only]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    places = rows * batch.input_ids.shape[1] + columns
    positions = batch.position_ids if batch.packed else None
    return llm.token_losses(embeds, positions, places, targets[rows, columns]), embeds


def gradients(llm: HFCausalLM, batches: list[Batch]) -> list[torch.Tensor]:
    """Gradients of the weights, of the sum over batches."""
    llm.zero_grad()
    for batch in batches:
        loss_of(llm, batch)[0].backward()
    return [p.grad.clone() for p in llm.parameters() if p.grad is not None]


def gate(llm: HFCausalLM, examples: list[Example]) -> float:
    """Largest relative difference of anything that must be equal. Raises SystemExit where something leaks."""
    packed = collate(examples, pad_token_id=0, packing=True)
    alone = [collate([example], pad_token_id=0, packing=True) for example in examples]
    apart, start = 0.0, 0
    for batch in alone:
        end = start + batch.positions
        loss, embeds = loss_of(llm, packed, slice(start, end - 1))
        expected = float(loss_of(llm, batch)[0].detach())
        apart = max(apart, abs(float(loss.detach()) / expected - 1))
        (sensitive,) = torch.autograd.grad(loss, embeds)
        if sensitive[0, :start].any() or sensitive[0, end:].any():
            raise SystemExit("attention crosses from one example to another: no ratio")
        start = end
    for ours, expected in zip(gradients(llm, [packed]), gradients(llm, alone), strict=True):
        apart = max(apart, float((ours - expected).abs().max() / expected.abs().max()))
    return apart


def ways(examples: list[Example], args: argparse.Namespace) -> dict[str, list[Batch]]:
    """Name -> the batches of all examples."""
    lengths = np.array([len(example) for example in examples])
    steps = [slice(at, at + args.global_batch) for at in range(0, len(examples), args.global_batch)]
    groups = args.global_batch // args.batch

    def cut(one: Callable[[NDArray[np.int64]], plan.Groups], packing: bool) -> list[Batch]:
        found: list[Batch] = []
        for step in steps:
            members = examples[step]
            found += [
                collate([members[i] for i in group], pad_token_id=0, packing=packing) for group in one(lengths[step])
            ]
        return found

    at_random = np.arange(args.global_batch).reshape(groups, -1).tolist()
    return {
        "packed": cut(lambda sizes: plan.balanced(sizes, groups), packing=True),
        "padded": cut(lambda sizes: at_random, packing=False),
        "grouped": cut(lambda sizes: plan.alike(sizes, groups), packing=False),
    }


def planner_speed(lengths: NDArray[np.int64], groups: int) -> float:
    """Examples planned a CPU-second."""
    began, steps = time.process_time(), 0
    while time.process_time() - began < 0.5:
        plan.balanced(lengths, groups)
        steps += 1
    return steps * len(lengths) / (time.process_time() - began)


def imbalance(lengths: NDArray[np.int64], groups: int, processes: int) -> float:
    """By how much the slowest process of each turn is above the mean, over a step."""
    found = plan.balanced(lengths, groups)
    shares = [plan.share_of(found, rank, processes) for rank in range(processes)]
    turns = np.array([[int(lengths[group].sum()) for group in share] for share in shares])
    return float(turns.max(axis=0).sum() / turns.mean(axis=0).sum() - 1)


def main() -> None:
    """Gate, then measure the three ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", action=Several, read=int, default=[1, 4, 8, 16], help="clips have one of these counts")
    parser.add_argument("--per_frame", type=int, default=144, help="visual tokens of a frame")
    parser.add_argument("--global_batch", type=int, default=64, help="examples of an optimizer step")
    parser.add_argument("--batch", type=int, default=16, help="examples of a forward pass, on average where packed")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    llm = make_llm(args.layers, args.width)
    examples = make_examples(args.examples, args.mix, args.per_frame, 0)
    apart = gate(llm, examples[: args.batch])
    if apart > 1e-5:
        raise SystemExit(f"packed and alone differ by {apart:.1e}: no ratio")
    batches = ways(examples, args)
    jobs = [lambda b=b: len(gradients(llm, b)) for b in batches.values()]
    costs = {n: cost for n, (_, cost) in zip(batches, best_of(args.repeats, *jobs), strict=True)}
    useful = sum(len(example) for example in examples)
    speed = {name: useful / cost.cpu for name, cost in costs.items()}
    padding = {name: 1 - useful / sum(b.positions for b in found) for name, found in batches.items()}
    lengths = np.array([len(example) for example in examples])[: args.global_batch]
    planned = planner_speed(lengths, args.global_batch // args.batch)
    skew = imbalance(lengths, args.global_batch // args.batch, 2)
    told = ", ".join(
        f"{name} {speed[name]:,.0f} ({padding[name]:.1%} padding{_ratio(name, speed)})" for name in batches
    )
    line = (
        f"clips of {'/'.join(map(str, args.mix))} frames, {args.batch} a pass: useful tokens a CPU-s: {told}; "
        f"{planned / 1e6:.1f} M examples planned a CPU-s, two processes {skew:.1%} apart, equal to {apart:.0e}"
    )
    values = {f"{name}_tokens_per_cpu_s": speed[name] for name in batches}
    values |= {f"{name}_padding": padding[name] for name in batches}
    values |= {f"{name}_wall_s": costs[name].wall for name in batches}
    ratios = {f"over_{name}": speed["packed"] / speed[name] for name in ("padded", "grouped")}
    report("pack", line, **values, **ratios, planned_per_cpu_s=planned, imbalance=skew, difference=apart)


def _ratio(name: str, speed: dict[str, float]) -> str:
    return "" if name == "packed" else f", ours {speed['packed'] / speed[name]:.2f}x"


if __name__ == "__main__":
    main()
