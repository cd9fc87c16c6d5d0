"""The training loop: epochs, steps, validation, checkpoints. `fit()` reads top to bottom.

The position (epoch, step of the epoch) is all that a run needs to go on: data order, learning rate and random numbers
are functions of it. A step is the unit of everything: whatever happens, a run stands between two steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

from prismatic import dist
from prismatic.conf.models import StageConfig
from prismatic.conf.run import PretrainConfig
from prismatic.dist import World
from prismatic.models.llm.lora import has_adapter
from prismatic.train import checkpoint, folder, fsdp, narration, optim, weights
from prismatic.train.answers import Answers
from prismatic.train.best import Best
from prismatic.train.console import StepFacts
from prismatic.train.errors import TrainingError
from prismatic.train.features import FeatureRun
from prismatic.train.flops import count_flops
from prismatic.train.guard import StepGuard
from prismatic.train.limits import WaitAccount
from prismatic.train.memory import longest
from prismatic.train.memory.forecast import Forecast, memory_told
from prismatic.train.metrics import Metrics
from prismatic.train.position import Position
from prismatic.train.saver import Saver
from prismatic.train.seeding import seed_step
from prismatic.train.signals import StopSignals
from prismatic.train.skips import SkipAccount
from prismatic.train.step import Stepper
from prismatic.train.telling import Telling
from prismatic.train.validation import (
    ValidationSet,
    mean_loss,
    measure,
    next_batches,
    validation_accounts,
    validation_sets,
)
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.data.loader import StepLoader
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)

WINDOW = 128  # Steps over which the shown loss is a mean (the older systems' figure, so that their curves compare)


def check_stage(stage: StageConfig, cpu_offload: bool = False) -> None:
    """Raises ValueError for an unknown strategy, schedule or optimizer; call it before weights are read."""
    fsdp.STRATEGIES.get(stage.train_strategy, f"{stage.prefix}train_strategy")
    optim.SCHEDULES.get(stage.lr_scheduler_type, f"{stage.prefix}lr_scheduler_type")
    optim.check_optimizer(stage, cpu_offload)


class Trainer:
    """Trains a model whose stage is frozen and whose weights are loaded; shards it first.

    forecast: what the run needs of memory, asked for advice when there is not enough (build.py sets it).

    Args:
        val_loader: one validation dataset, or several by name.
        frozen_modules: frozen modules of `vlm` whose weights no id can bring back (random ones); they are saved once.
        features: the feature cache of the frozen vision tower, when there is one.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        vlm: PrismaticVLM,
        train_loader: StepLoader,
        val_loader: StepLoader | Mapping[str, ValidationSet] | None,
        world: World,
        run_dir: Path,
        *,
        frozen_modules: Sequence[str] = (),
        features: FeatureRun | None = None,
    ) -> None:
        self.forecast: Forecast | None = None
        self.cfg, self.world, self.run_dir = cfg, world, run_dir
        self.stage = cfg.model.stage(cfg.stage)
        check_stage(self.stage, cfg.model.cpu_offload)
        self.train_loader = train_loader
        self.val_sets = validation_sets(cfg, val_loader)
        self.trained_modules = list(vlm.trainable_modules())
        # Adapters are saved in a form of their own, and the LLM below them is not trained.
        self.whole_modules = [name for name in self.trained_modules if not has_adapter(getattr(vlm, name))]
        self.frozen_modules = list(frozen_modules)
        vlm.whole_vision = features is not None
        flops = count_flops(vlm)  # while its weights are whole
        self.vlm = fsdp.shard(
            vlm,
            world,
            self.stage.train_strategy,
            mixed_precision=cfg.model.enable_mixed_precision_training,
            reduce_fp32=cfg.model.reduce_in_full_precision,
            recompute=cfg.model.recompute,
            cpu_offload=cfg.model.cpu_offload,
            compile_blocks=cfg.model.compile,
        )
        self.features = features
        self.optimizer = optim.build_optimizer(self.vlm, self.stage, cfg.model.learning_rates)
        self.total_steps = self._total_steps()
        self.at = Position()
        self.signals = StopSignals()
        self.stepper = Stepper(self.vlm, self.optimizer, self.stage, world, self.signals, flops)
        self.guard = StepGuard(run_dir, cfg.on_nan, cfg.max_nan_steps, cfg.max_gradient)
        self.answers = Answers(run_dir, self.val_sets, self.stage.train_strategy)
        self.skips = SkipAccount(run_dir / "skipped.jsonl", cfg.dataset.max_skipped_share)
        self.validation_skips = validation_accounts(cfg, run_dir, self.val_sets)
        self.waits = WaitAccount()
        self.telling = Telling(self)
        self.losses: list[float] = []
        self.validation_loss: float | None = None
        self.scores: dict[str, dict[str, float]] = {}
        self.best = Best(cfg.best_metric)
        self.saver = Saver(cfg, run_dir, self.vlm, self.optimizer, self.whole_modules, world)

    @property
    def val_loader(self) -> StepLoader | None:
        """The loader of the first validation dataset."""
        return next((data.loader for data in self.val_sets.values()), None)

    @property
    def metrics(self) -> Metrics | None:
        """Where the rows go; rank 0 has it, while the run goes on."""
        return self.telling.metrics

    @property
    def mean_loss(self) -> float:
        """Mean of the last 128 losses; infinite before the first step (as file names of the older systems say)."""
        return math.fsum(self.losses) / len(self.losses) if self.losses else math.inf

    def fit(self) -> Signals | None:
        """Train to the end, or save and return the signal that asked to stop.

        Raises TrainingError, CheckpointError; whatever the loaders raise comes through.
        """
        with self.signals:
            resumed_from = self._resume()
            if dist.rank_zero():
                narration.header(self, resumed_from)
            if self.at.complete:
                if dist.rank_zero():
                    narration.nothing_to_do(self)
                return None
            if self.features is not None:
                self.features.start(self.vlm, self.world)
            stage, began = self.stage, time.perf_counter()
            self.schedule = optim.build_schedule(
                self.optimizer,
                stage.lr_scheduler_type,
                self.total_steps,
                stage.warmup_ratio,
                self.at.step,
                decay_ratio=stage.decay_ratio,
            )
            first_step = self.at.step
            with self.telling.run(resumed_from), self.saver, self.features or nullcontext():
                longest.go_first(self)
                with memory_told(self.forecast, lambda: f"step {self.at.step + 1}"), dist.losses_told():
                    stop = self._run()
        if dist.rank_zero():
            narration.summary(self, stop, self.at.step - first_step, time.perf_counter() - began)
        return stop

    def train_step(self, batches: list[Batch], data_wait: float, began: float) -> Signals | None:
        """One optimizer step over this process's micro-batches; every process calls it.

        Args:
            data_wait: seconds that the batches took to come. began: `time.perf_counter()` when they were asked for.

        Returns the signal that asks to stop, if one came, before or after the step; the position says which.
        """
        counts = self.stepper.count(batches, data_wait)
        if counts.stop is not None:
            return counts.stop
        self.skips.add(batches, counts.examples, counts.skipped)
        if self.features is not None:
            self.features.add(batches)
        self.telling.before_step()
        seed_step(self.cfg.seed, self.at.step, self.world.rank)
        gradients = self.guard.attempt(self, batches, counts)
        rates = optim.learning_rates(self.optimizer)
        if gradients is not None:
            self.stepper.update(gradients)
        self.schedule.step()
        self.at.step += 1
        self.at.step_in_epoch += 1
        self.telling.step(batches, counts, gradients, rates, time.perf_counter() - began)
        return gradients.stop if gradients is not None else None

    def validate(self) -> Signals | None:
        """Measure the loss on the validation data, if there is any. Returns the signal that stopped it."""
        if not self.val_sets:
            return None
        self.set_training(False)
        with optim.averaged(self.optimizer):
            found = measure(self.vlm, self.val_sets, self.world.device, self.signals, self.validation_skips)
        if isinstance(found, Signals):
            self.set_training(True)
            return found
        self.validation_loss = mean_loss(found)
        narration.validated(self, found)
        self.best.note_loss(self.at.step, self.validation_loss)
        if self.cfg.eval_interval is None or self.at.step >= self.total_steps:
            self.ask()
        self.set_training(True)
        return None

    def ask(self) -> None:
        """Answer the questions of the validation data (--eval_task), if there are any, and score the answers."""
        if self.answers.questions:
            self.set_training(False)
            with optim.averaged(self.optimizer):
                self.scores = self.answers.take(self.vlm, self.world, self.at.step)
            self.set_training(True)
            self.best.note_scores(self.at.step, self.scores)
            narration.scored(self, self.scores)

    def save(self) -> None:
        """Take a checkpoint at the present position; every process calls it. See `Saver.save`."""
        state = {
            **asdict(self.at),
            "total_steps": self.total_steps,
            "world_size": self.world.world_size,
            "seen": self.skips.seen,
            "skipped": self.skips.skipped,
            "losses": self.losses,
            "validation_loss": self.validation_loss,
            "scores": self.scores,
            "left_out": [self.guard.left_out, self.guard.in_a_row],
            "measured": self.best.state(self.at.step),
        }
        self.saver.save(state, self.mean_loss)

    def _run(self) -> Signals | None:
        self.set_training(True)
        while not self.at.complete:
            stop = self._run_epoch()
            if stop is not None:
                self.save()
                return stop
        return None

    def _run_epoch(self) -> Signals | None:
        steps = self.train_loader.steps_per_epoch(self.at.epoch)
        batches = self.train_loader.iterate(self.at.epoch, start_step=self.at.step_in_epoch)
        while self.at.step_in_epoch < steps and self.at.step < self.total_steps:
            began = time.perf_counter()
            micro_batches = next_batches(batches, self.signals)
            stop = self.train_step(micro_batches, time.perf_counter() - began, began)
            if stop is None and self.at.step_in_epoch < steps and self.at.step < self.total_steps:
                stop = self._at_intervals()
            if stop is not None:
                return stop
        self.skips.check()
        if self.features is not None:
            self.features.end_epoch(self.at.epoch)
        stop = self.validate()
        if stop is not None:
            return stop
        if self.at.step_in_epoch == steps:
            self.at.epoch, self.at.step_in_epoch = self.at.epoch + 1, 0
        self.at.complete = self.at.step >= self.total_steps
        self.save()
        return None

    def _at_intervals(self) -> Signals | None:
        interval, due = self.cfg.checkpoint_interval, self.saver.after_step()
        due = due or (interval is not None and self.at.step % interval == 0)
        if self.cfg.validation_interval and self.at.step % self.cfg.validation_interval == 0:
            stop = self.validate()
            if stop is not None:
                return stop
        if self.cfg.eval_interval and self.at.step % self.cfg.eval_interval == 0:
            self.ask()
        if due or (self.cfg.keep_best and self.best.improved(self.at.step)):
            self.save()
        return None

    def note_loss(self, facts: StepFacts) -> None:
        """Take a step's loss into the mean that is shown, and its numbers into the metrics."""
        self.losses = [*self.losses, facts.loss][-WINDOW:]
        if self.at.step_in_epoch > 1:
            self.waits.add(facts.seconds, facts.data_wait)
            if dist.rank_zero() and self.waits.is_news():
                narration.limit(self)
        if self.metrics is not None:
            self.metrics.log_step(facts, self.mean_loss)

    def set_training(self, training: bool) -> None:
        """Training or evaluation mode, of what is trained; what is frozen stays in evaluation mode."""
        if not training:
            self.saver.copied()  # Whoever evaluates may put averages in the place of the weights for a while
        self.vlm.train(training)
        for name, module in self.vlm.named_children():
            # A frozen module works as it will when the model is used: no dropout, no new batch statistics.
            if name not in self.trained_modules:
                module.eval()

    def _total_steps(self) -> int:
        steps = [self.train_loader.steps_per_epoch(epoch) for epoch in range(self.stage.epochs)]
        if not all(steps):
            raise TrainingError(f"the training data of --dataset.type {self.cfg.dataset.dataset_id} is empty")
        return self.stage.max_steps or sum(steps)

    def _resume(self) -> Path | None:
        here = self.run_dir / folder.FOLDER
        source = folder.find(self.cfg.resume, self.run_dir)
        if source is None:
            folder.set_aside(self.run_dir, after_step=0)
            self.skips.resume(0, 0)
            self.guard.resume(0, 0, 0)
            self.answers.resume(0)
            checkpoint.check_room(self.run_dir, self.vlm, self.optimizer, self.whole_modules)
            if self.frozen_modules:
                weights.save_frozen(here, self.vlm, self.frozen_modules)
            return None
        # A checkpoint that was set aside left this file where it was.
        if not weights.load_frozen(source.parent, self.vlm):
            weights.load_frozen(here, self.vlm)
        state = checkpoint.restore(source, self.vlm, self.optimizer)
        self.at = Position(**{name: state[name] for name in asdict(self.at)})
        ours = source.resolve().parent == here.resolve()
        if not ours:
            self.at.go_on(self.total_steps, source)
        self.losses, self.validation_loss = state["losses"], state["validation_loss"]
        self.scores = state.get("scores", {})  # Runs of older versions have none
        self.best.resume(state.get("measured"))
        self.guard.resume(self.at.step, *state.get("left_out", (0, 0)))
        self.answers.resume(self.at.step)
        folder.set_aside(self.run_dir, after_step=self.at.step if ours else 0)
        self.skips.resume(state["seen"], state["skipped"])
        if not ours and self.frozen_modules:
            weights.save_frozen(here, self.vlm, self.frozen_modules)
        return source
