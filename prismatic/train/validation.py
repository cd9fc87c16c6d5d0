"""The loss on held-out data, and taking the next batches so that an error of one process is known to all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from prismatic import dist
from prismatic.train import fsdp
from prismatic.train.errors import TrainingError
from prismatic.train.signals import Interrupted, StopSignals, received
from prismatic.train.skips import SkipAccount
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.conf.run import PretrainConfig
    from prismatic.data.loader import StepLoader
    from prismatic.models.vlm import PrismaticVLM

Row = dict[str, Any]


class Questions(Protocol):
    """A fixed part of one validation dataset, and what makes an answer to it good."""

    def answer(self, vlm: PrismaticVLM, rank: int, world_size: int) -> list[Row]:
        """Answered rows of this process's share, each with "id", "index", "question", "prediction", "reference"."""
        ...

    def score(self, rows: list[Row]) -> dict[str, float]:
        """Scores of all rows; higher is better."""
        ...


@dataclass(frozen=True)
class ValidationSet:
    """One validation dataset. clips: what the "epochs" of its loader are: the rows with so many clips each; None where
    rows are not told apart. questions: rows of it that are answered while the model is trained.
    """

    loader: StepLoader
    clips: tuple[int | None, ...] = (None,)
    questions: Questions | None = None


@dataclass(frozen=True)
class Measured:
    """Loss of one part of the validation data: rows of a dataset with `clips` clips. Sums over all processes."""

    data: str
    clips: int | None
    loss_sum: float
    tokens: int


def validation_sets(
    cfg: PretrainConfig, given: StepLoader | Mapping[str, ValidationSet] | None
) -> dict[str, ValidationSet]:
    """Validation data by name, of what a trainer was given."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    return {cfg.val_dataset.dataset_id if cfg.val_dataset is not None else "validation": ValidationSet(given)}


def validation_accounts(
    cfg: PretrainConfig, run_dir: Path, sets: Mapping[str, ValidationSet]
) -> dict[str, SkipAccount]:
    """The account of skipped samples of each dataset: skipped-validation.jsonl, -NAME.jsonl of further ones."""
    configs = cfg.validation_datasets()
    accounts = {}
    for number, name in enumerate(sets):
        share = configs[name].max_skipped_share if name in configs else 0.0
        file = run_dir / ("skipped-validation.jsonl" if number == 0 else f"skipped-validation-{name}.jsonl")
        flag = "--val_datasets" if name in cfg.val_datasets else "--val_dataset"
        accounts[name] = SkipAccount(file, share, f"{flag}.max_skipped_share")
    return accounts


def mean_loss(parts: Sequence[Measured]) -> float:
    """Mean over the label tokens of all parts."""
    return sum(part.loss_sum for part in parts) / sum(part.tokens for part in parts)


def losses_by_part(parts: Sequence[Measured]) -> dict[str, float]:
    """Losses by data ("web") and by data and number of clips ("web, L=2"), of parts that tell their number of clips."""
    told = [part for part in parts if part.clips is not None]
    by_data = {part.data: mean_loss([p for p in told if p.data == part.data]) for part in told}
    return {**by_data, **{f"{part.data}, L={part.clips}": mean_loss([part]) for part in told}}


def measure(
    vlm: nn.Module,
    sets: Mapping[str, ValidationSet],
    device: torch.device,
    signals: StopSignals,
    skips: Mapping[str, SkipAccount],
) -> list[Measured] | Signals:
    """The loss of each part of the validation data, or the signal that came.

    `vlm` is in eval mode. `skips` begin anew. Raises TrainingError when a dataset has nothing to learn, or when too
    many samples of it were skipped.
    """
    parts: list[Measured] = []
    try:
        for name, data in sets.items():
            skips[name].resume(0, 0)
            for group, clips in enumerate(data.clips):
                found = _measure(vlm, data.loader, group, device, signals, skips[name])
                if isinstance(found, Signals):
                    return found
                if found[1]:
                    parts.append(Measured(name, clips, *found))
            skips[name].check()
            if len(sets) > 1:
                data.loader.close()  # of several sets each would keep its reading processes
            if not any(part.data == name for part in parts):
                raise TrainingError(
                    f"the validation data (--val_dataset) has no tokens to learn: nothing can be measured on '{name}'"
                )
    finally:
        fsdp.reshard(vlm)
    return parts


def _measure(
    vlm: nn.Module,
    loader: StepLoader,
    group: int,
    device: torch.device,
    signals: StopSignals,
    skips: SkipAccount,
) -> tuple[float, int] | Signals:
    """(sum of token losses, number of tokens) over all processes."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    with torch.no_grad():
        # The same "epoch" whatever the epoch of training is: the same frames each time, so that the losses compare.
        steps = loader.iterate(group)
        for _ in range(loader.steps_per_epoch(group)):
            batches = next_batches(steps)
            for batch in batches:
                total += vlm(batch.to(device)).loss_sum.double()
                tokens += batch.num_label_tokens
            counts = [sum(len(b.ids) for b in batches), sum(len(b.skipped) for b in batches)]
            seen, skipped, *stops = dist.all_reduce_sum([*counts, *signals.counts()])
            skips.add(batches, int(seen), int(skipped))
            stop = received(stops)
            if stop is not None:
                return stop
    loss_sum, all_tokens = dist.all_reduce_sum([float(total), tokens])
    return loss_sum, int(all_tokens)


def next_batches(steps: Iterator[list[Batch]], signals: StopSignals | None = None) -> list[Batch]:
    """The next step's micro-batches. An error of one process (a broken sample) is raised on all.

    signals: end the wait where one of them asks to stop; there are no micro-batches then.
    """
    batches: list[Batch] = []
    problem = None
    try:
        if signals is None:
            batches = next(steps)
        elif signals.received is None:
            signals.waiting = True
            batches = next(steps)
            signals.waiting = False  # here already: a signal that came inside `finally` would not be caught
    except (ValueError, OSError) as error:
        problem = error
    except Interrupted:
        pass
    finally:
        if signals is not None:
            signals.waiting = False
    dist.raise_together(problem)
    return batches
