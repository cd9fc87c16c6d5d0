"""A sequence over two processes has the loss and the gradients that it has in one, in every family.

The two processes are threads here, whose collectives meet at a barrier; tests/train/test_gradients.py has real ones.
"""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from prismatic.models.llm.attention import use_attention
from prismatic.models.llm.context import ContextShards, use_context
from prismatic.models.llm.hf_causal import SEPARATES_BY_POSITION
from tests.models.llm.test_attention import LENGTHS, NO_SDPA, sdpa
from tests.models.llm.test_hf_causal import small

SIZE = 2


class Threads:
    """ContextShards whose rank is that of the thread, and the collectives between them."""

    size, group = SIZE, None
    pieces, take, whole = ContextShards.pieces, ContextShards.take, ContextShards.whole

    def __init__(self) -> None:
        self._own, self._barrier, self._given = threading.local(), threading.Barrier(SIZE), {}

    @property
    def rank(self) -> int:
        return self._own.rank

    def run(self, work):
        """work(rank) on each thread; what they return."""

        def start(rank: int):
            self._own.rank = rank
            return work(rank)

        with ThreadPoolExecutor(SIZE) as pool:
            return list(pool.map(start, range(SIZE)))

    def exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._given[self.rank] = tensor
        self._barrier.wait(30)
        given = [self._given[rank].clone() for rank in range(SIZE)]
        self._barrier.wait(30)
        return given

    def gather(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Gather.apply(key, self), Gather.apply(value, self)


class Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part: torch.Tensor, threads: Threads) -> torch.Tensor:
        ctx.threads, ctx.rank = threads, threads.rank
        return torch.cat(threads.exchange(part), dim=2)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return sum(ctx.threads.exchange(gradient)).chunk(SIZE, dim=2)[ctx.rank], None


@pytest.mark.parametrize("model_type", sorted(SEPARATES_BY_POSITION - NO_SDPA))
@pytest.mark.parametrize("is_packed", [True, False])
def test_two_parts_add_up_to_the_whole(model_type, is_packed, tokenizer):
    threads = Threads()
    whole = sdpa(model_type, tokenizer)
    parts = [copy.deepcopy(whole) for _ in range(SIZE)]
    use_attention(whole, "auto", torch.device("cpu"), half=False)
    for part in parts:
        use_context(part, threads)
    ids = torch.randint(3, 290, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    position_ids = torch.cat([torch.arange(n) for n in (LENGTHS if is_packed else (sum(LENGTHS),))])
    places = (position_ids.roll(-1) != 0).nonzero()[:, 0]
    places = places[places > 2]  # Labels are not everywhere

    def loss_of(llm):
        at = position_ids[None] if is_packed else None
        loss = llm.token_losses(llm.embed(ids[None]), at, places, ids.roll(-1)[places])
        loss.backward()
        return float(loss.detach())

    expected = loss_of(whole)
    assert sum(threads.run(lambda rank: loss_of(parts[rank]))) == pytest.approx(expected, rel=1e-5)
    for name, parameter in whole.named_parameters():
        if parameter.grad is not None:
            found = sum(dict(part.named_parameters())[name].grad for part in parts)
            torch.testing.assert_close(found, parameter.grad, atol=2e-4, rtol=1e-3, msg=lambda t, n=name: f"{n}: {t}")


def test_parts_look_back_at_about_the_same_number_of_positions():
    looked = [
        sum(sum(range(begin + 1, end + 1)) for begin, end in ContextShards(rank, 4, None).pieces(64))
        for rank in range(4)
    ]
    assert len(set(looked)) == 1
    assert sorted(p for rank in range(4) for p in ContextShards(rank, 4, None).pieces(64)) == [
        (n, n + 8) for n in range(0, 64, 8)
    ]


def test_a_sequence_is_cut_as_pytorch_cuts_it():
    from torch.distributed.tensor.experimental._attention import _HeadTailLoadBalancer

    order = _HeadTailLoadBalancer(64, 4, "cpu")._generate_indices()[0].tolist()
    ours = [at for rank in range(4) for piece in ContextShards(rank, 4, None).pieces(64) for at in range(*piece)]
    assert ours == order


def test_what_it_is_not_for_is_refused(tokenizer):
    shards = ContextShards(0, 2, None)
    with pytest.raises(ValueError, match="--context_parallel_size 2 is not for a gptj model"):
        use_context(small("gptj", tokenizer), shards)
    with pytest.raises(ValueError, match=r"pass --dataset.packing true"):
        shards.take(torch.zeros(2, 4, 8), None, torch.tensor([0]), torch.tensor([1]))


def test_families_that_cap_their_scores_are_refused():
    config = SimpleNamespace(attn_logit_softcapping=50.0, model_type="gemma2")
    llm = SimpleNamespace(config=config, _can_set_attn_implementation=lambda: True)
    with pytest.raises(ValueError, match="is not for a gemma2 model"):
        use_context(SimpleNamespace(llm=llm, separates=True), ContextShards(0, 2, None))
