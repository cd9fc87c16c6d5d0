"""Which side a run waits for: reading the data, or computing."""

from __future__ import annotations

from dataclasses import dataclass

WAITS = 0.02
"""Share of a step's time spent waiting for data above which reading is the limit."""

LOUD_WAITS = 0.1
"""Share from which a run warns."""

TELL_AFTER = 20
"""Steps after which a run says which side it waits for."""

TELL_AT_LEAST = 4
"""Steps that a shorter run needs, to say it at its end."""


@dataclass
class WaitAccount:
    """Seconds of steps and of the waits in them, the newest weighing most (half of the weight is in the last 50).

    The first step of a pass is left out by the caller: it waits for its data whoever is faster.
    """

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0
    told_waiting: bool = False

    def add(self, seconds: float, data_wait: float) -> None:
        """One step that took `seconds`, `data_wait` of them until its data came."""
        self.steps += 1
        keep = 0.5 ** (1 / 50)
        self.seconds = self.seconds * keep + seconds
        self.waited = self.waited * keep + min(data_wait, seconds)

    @property
    def share(self) -> float:
        """Share of the time that was spent waiting, 0 to 1; 0 before the first step."""
        return self.waited / self.seconds if self.seconds > 0 else 0.0

    def is_news(self) -> bool:
        """Whether it is time to tell: after the first steps, and when reading has become the limit since."""
        if self.steps < TELL_AFTER:
            return False
        if self.steps == TELL_AFTER or (self.share > LOUD_WAITS) > self.told_waiting:
            self.told_waiting = self.share > LOUD_WAITS
            return True
        return False

    def verdict(self, num_workers: int, cores: int | None, cacheable: bool = True, cached: bool = False) -> str:
        """One line: who is the limit, and what to do about it.

        cores: of this machine for each process, if known. cacheable: the vision backbone is frozen and sees the same
        pixels in every epoch, so that its features can be kept. cached: they are, in this run.
        """
        if self.share <= WAITS:
            return f"Data      keeps up: {self.share:.1%} of a step is waited for it, computing is the limit"
        processes = f"{num_workers or 'no'} reading process{'' if num_workers == 1 else 'es'}"
        text = (
            f"Data      is the limit: {self.share:.0%} of a step is waited for it (the first one of each epoch left "
            f"out), with {processes}"
        )
        if cores is None or num_workers < cores - 1:
            return f"{text}: raise --dataset.num_workers"
        once = "extract the frames once (`webvid.py extract`), "
        once += "pass --dataset.feature_cache DIR, or " if cacheable else "or "
        if cached:
            once = "when all clips are in --dataset.feature_cache less is read; else "
        return f"{text} on {cores} core{'' if cores == 1 else 's'}: {once}lower --model.num_frames"
