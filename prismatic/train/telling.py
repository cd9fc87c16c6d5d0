"""All that a run tells while it goes on: rows of metrics, the console, its page, its card, spikes, traces.

The trainer calls; nothing here decides about the run, and a page or a trace that cannot be written does not end it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic import dist
from prismatic.train import card, narration, usage
from prismatic.train.console import StepFacts
from prismatic.train.flops import peak_flops
from prismatic.train.live_report import LiveReport, State, Writer
from prismatic.train.metrics import Metrics
from prismatic.train.profile import StepProfiler
from prismatic.train.spikes import SpikeReport
from prismatic.train.step import Gradients, StepCounts
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.train.trainer import Trainer


class Telling:
    """Tells about a trainer. Every process has one and calls it alike; rank 0 writes.

    final_page: writes the page after the last step, with more on it than a run knows by itself (build.py sets it); None
    for the page as it is while the run goes on.
    """

    def __init__(self, trainer: Trainer) -> None:
        cfg, world = trainer.cfg, trainer.world
        self._trainer = trainer
        self.final_page: Writer | None = None
        self.metrics: Metrics | None = None
        self._page: LiveReport | None = None
        self.spikes = SpikeReport(trainer.run_dir)
        self._profiler = StepProfiler(trainer.run_dir, cfg.profile, world)
        # Of a CPU it is measured, and the rows are written by one process: the others need not compute beside it.
        self._peak = peak_flops(world.device, cfg.peak_tflops) if dist.rank_zero() else None

    @contextmanager
    def run(self, resumed_from: Path | None) -> Iterator[None]:
        """Around the steps of a run. However they end, the files say so."""
        trainer = self._trainer
        self.spikes.resume(trainer.at.step)
        if dist.rank_zero():
            card.write_card(trainer, resumed_from)
            self.metrics = narration.start_metrics(trainer)
            self._page = LiveReport(trainer.run_dir, self.metrics.history, trainer.total_steps, self.final_page)
            self._page.tick(trainer.at.step, None)
        state: State = "failed"
        message = ""
        try:
            yield
            state = "finished" if trainer.at.complete else "stopped"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._profiler.close(trainer.at.step)
            if self.metrics is not None and self._page is not None:
                self.metrics.close()
                self._page.close(state, trainer.at.step, message)

    def before_step(self) -> None:
        """Before the forward passes of the next step."""
        self._profiler.before(self._trainer.at.step + 1)

    def step(
        self,
        batches: Sequence[Batch],
        counts: StepCounts,
        gradients: Gradients | None,
        rates: Mapping[str, float],
        seconds: float,
    ) -> None:
        """After a step, when the trainer stands behind it. gradients: None for a step that was left out."""
        trainer, at = self._trainer, self._trainer.at
        self._profiler.after(at.step)
        if gradients is None:
            if self.metrics is not None:
                self.metrics.log_left_out(at.step, at.epoch, trainer.guard.left_out)
            return
        self.spikes.look(at.step, gradients.loss, trainer.losses, batches, gradients.losses)
        facts = StepFacts(
            step=at.step,
            epoch=at.epoch,
            loss=gradients.loss,
            learning_rate=next(iter(rates.values())),
            grad_norm=float(gradients.norm),
            seconds=seconds,
            data_wait=counts.data_wait,
            tokens=gradients.tokens,
            frames=gradients.frames,
            examples=counts.examples,
            skipped=trainer.skips.skipped,
            positions=gradients.positions,
            label_tokens=counts.label_tokens,
            learning_rates=rates,
            flops=gradients.flops,
            devices=trainer.world.world_size,
            peak=self._peak,
            host_memory=usage.host_bytes(),
            device_memory=usage.device_bytes(trainer.world.device),
            left_out=trainer.guard.left_out,
        )
        trainer.note_loss(facts)
        if self.metrics is not None and self._page is not None:
            self._page.tick(at.step, self.metrics.console.seconds_left if self.metrics.console else None)
