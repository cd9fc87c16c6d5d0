"""The training loop: epochs, steps, validation, checkpoints. `fit()` reads top to bottom.

The position (epoch, step of the epoch) is all that a run needs to go on: data order, learning rate and random numbers
are functions of it. A step is the unit of everything: whatever happens, a run stands between two steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic import dist
from prismatic.conf.models import StageConfig
from prismatic.conf.run import PretrainConfig
from prismatic.dist import World
from prismatic.models.llm.lora import has_adapter
from prismatic.train import checkpoint, folder, fsdp, narration, weights
from prismatic.train.console import StepFacts
from prismatic.train.errors import TrainingError
from prismatic.train.features import FeatureRun
from prismatic.train.metrics import Metrics
from prismatic.train.optim import build_optimizer, build_schedule, check_schedule
from prismatic.train.seeding import seed_step
from prismatic.train.signals import StopSignals
from prismatic.train.skips import SkipAccount
from prismatic.train.step import Stepper
from prismatic.train.validation import measure, next_batches
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.data.loader import StepLoader
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)

WINDOW = 128  # Steps over which the shown loss is a mean (the older systems' figure, so that their curves compare)


def check_stage(stage: StageConfig) -> None:
    """Raises ValueError for an unknown strategy or schedule; call it before weights are read."""
    fsdp.STRATEGIES.get(stage.train_strategy)
    check_schedule(stage.lr_scheduler_type)


@dataclass
class Position:
    """Where a run stands. step: optimizer steps done; epoch: epochs done; step_in_epoch: steps done of the next one.

    complete: all steps are done, and what belongs to the end of the last epoch too.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    complete: bool = False


class Trainer:
    """Trains a model whose stage is frozen and whose weights are loaded; shards it first.

    Args:
        frozen_modules: frozen modules of `vlm` whose weights no id can bring back (random ones); they are saved once.
        features: the feature cache of the frozen vision tower, when there is one.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        vlm: PrismaticVLM,
        train_loader: StepLoader,
        val_loader: StepLoader | None,
        world: World,
        run_dir: Path,
        *,
        frozen_modules: Sequence[str] = (),
        features: FeatureRun | None = None,
    ) -> None:
        self.cfg, self.world, self.run_dir = cfg, world, run_dir
        self.stage = cfg.model.stage(cfg.stage)
        check_stage(self.stage)
        self.train_loader, self.val_loader = train_loader, val_loader
        self.trained_modules = list(vlm.trainable_modules())
        # Adapters are saved in a form of their own, and the LLM below them is not trained.
        self.whole_modules = [name for name in self.trained_modules if not has_adapter(getattr(vlm, name))]
        self.frozen_modules = list(frozen_modules)
        self.vlm = fsdp.shard(
            vlm,
            world,
            self.stage.train_strategy,
            mixed_precision=cfg.model.enable_mixed_precision_training,
            reduce_fp32=cfg.model.reduce_in_full_precision,
            recompute=cfg.model.recompute,
            compile_blocks=cfg.model.compile,
            whole_vision=features is not None,
        )
        self.features = features
        self.optimizer = build_optimizer(self.vlm, self.stage)
        self.total_steps = self._total_steps()
        self.at = Position()
        self.signals = StopSignals()
        self.stepper = Stepper(self.vlm, self.optimizer, self.stage, world, self.signals)
        self.skips = SkipAccount(run_dir / "skipped.jsonl", cfg.dataset.max_skipped_share)
        share = cfg.val_dataset.max_skipped_share if cfg.val_dataset is not None else 0.0
        path = run_dir / "skipped-validation.jsonl"
        self.validation_skips = SkipAccount(path, share, "--val_dataset.max_skipped_share")
        self.metrics: Metrics | None = None
        self.losses: list[float] = []
        self.validation_loss: float | None = None

    @property
    def mean_loss(self) -> float:
        """Mean of the last 128 losses; infinite before the first step (as file names of the older systems say)."""
        return math.fsum(self.losses) / len(self.losses) if self.losses else math.inf

    def fit(self) -> int:
        """Train to the end, or to a signal. Returns 0, or 143 (SIGTERM) or 130 (Ctrl-C) after saving.

        Raises TrainingError, CheckpointError; whatever the loaders raise comes through.
        """
        with self.signals:
            resumed_from = self._resume()
            if dist.rank_zero():
                narration.header(self, resumed_from)
            if self.at.complete:
                if dist.rank_zero():
                    narration.nothing_to_do(self)
                return 0
            if self.features is not None:
                self.features.start(self.vlm, self.world)
            stage, began = self.stage, time.perf_counter()
            self.schedule = build_schedule(
                self.optimizer, stage.lr_scheduler_type, self.total_steps, stage.warmup_ratio, self.at.step
            )
            first_step = self.at.step
            if dist.rank_zero():
                self.metrics = narration.start_metrics(self)
            try:
                code = self._run()
            finally:
                if self.metrics is not None:
                    self.metrics.close()
                if self.features is not None:
                    self.features.close()
        if dist.rank_zero():
            narration.summary(self, code, self.at.step - first_step, time.perf_counter() - began)
        return code

    def train_step(self, batches: list[Batch], data_wait: float, began: float) -> int | None:
        """One optimizer step over this process's micro-batches; every process calls it.

        Args:
            data_wait: seconds that the batches took to come. began: `time.perf_counter()` when they were asked for.

        Returns an exit code when a signal asks to stop, before or after the step; the position says which.
        """
        counts = self.stepper.count(batches)
        if counts.exit_code is not None:
            return counts.exit_code
        self.skips.add(batches, counts.examples, counts.skipped)
        if self.features is not None:
            self.features.add(batches)
        if not counts.label_tokens:
            raise TrainingError(narration.nothing_to_learn(self, batches))
        seed_step(self.cfg.seed, self.at.step, self.world.rank)
        gradients = self.stepper.backward(batches, counts.label_tokens)
        if not gradients.finite:
            raise TrainingError(narration.not_finite(self, batches, gradients))
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.stepper.update(gradients)
        self.schedule.step()
        self.at.step += 1
        self.at.step_in_epoch += 1
        facts = StepFacts(
            step=self.at.step,
            epoch=self.at.epoch,
            loss=gradients.loss,
            learning_rate=learning_rate,
            grad_norm=float(gradients.norm),
            seconds=time.perf_counter() - began,
            data_wait=data_wait,
            tokens=gradients.tokens,
            frames=gradients.frames,
            examples=counts.examples,
            skipped=self.skips.skipped,
        )
        self._note_loss(facts)
        return gradients.exit_code

    def validate(self) -> int | None:
        """Measure the loss on the validation data, if there is any. Returns an exit code when a signal stops it."""
        if self.val_loader is None:
            return None
        self._set_training(False)
        found = measure(self.vlm, self.val_loader, self.world.device, self.signals, self.validation_skips)
        self._set_training(True)
        if isinstance(found, int):
            return found
        self.validation_loss, tokens = found
        log.info(f"step {self.at.step}: validation loss {self.validation_loss:.4f}")
        if self.metrics is not None:
            self.metrics.log_validation(self.at.step, self.validation_loss, tokens)
        return None

    def save(self) -> None:
        """Write a checkpoint at the present position; every process calls it. Raises CheckpointError."""
        began = time.perf_counter()
        state = {
            **asdict(self.at),
            "total_steps": self.total_steps,
            "world_size": self.world.world_size,
            "seen": self.skips.seen,
            "skipped": self.skips.skipped,
            "losses": self.losses,
            "validation_loss": self.validation_loss,
        }
        path = checkpoint.save(
            self.run_dir,
            self.vlm,
            self.optimizer,
            state,
            modules=self.whole_modules,
            loss=self.mean_loss,
            keep=self.cfg.keep_checkpoints,
        )
        log.info(f"step {self.at.step}: saved {path.name} in {time.perf_counter() - began:.1f} s")

    def _run(self) -> int:
        self._set_training(True)
        while not self.at.complete:
            code = self._run_epoch()
            if code is not None:
                self.save()
                return code
        return 0

    def _run_epoch(self) -> int | None:
        steps = self.train_loader.steps_per_epoch(self.at.epoch)
        batches = self.train_loader.iterate(self.at.epoch, start_step=self.at.step_in_epoch)
        while self.at.step_in_epoch < steps and self.at.step < self.total_steps:
            began = time.perf_counter()
            micro_batches = next_batches(batches)
            code = self.train_step(micro_batches, time.perf_counter() - began, began)
            if code is None and self.at.step_in_epoch < steps and self.at.step < self.total_steps:
                code = self._at_intervals()
            if code is not None:
                return code
        self.skips.check()
        if self.features is not None:
            self.features.end_epoch(self.at.epoch)
        code = self.validate()
        if code is not None:
            return code
        if self.at.step_in_epoch == steps:
            self.at.epoch, self.at.step_in_epoch = self.at.epoch + 1, 0
        self.at.complete = self.at.step >= self.total_steps
        self.save()
        return None

    def _at_intervals(self) -> int | None:
        code = None
        if self.cfg.validation_interval and self.at.step % self.cfg.validation_interval == 0:
            code = self.validate()
        if code is None and self.cfg.checkpoint_interval and self.at.step % self.cfg.checkpoint_interval == 0:
            self.save()
        return code

    def _note_loss(self, facts: StepFacts) -> None:
        self.losses = [*self.losses, facts.loss][-WINDOW:]
        if self.metrics is not None:
            self.metrics.log_step(facts, self.mean_loss)

    def _set_training(self, training: bool) -> None:
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
            checkpoint.check_room(self.run_dir, self.vlm, self.whole_modules)
            if self.frozen_modules:
                weights.save_frozen(here, self.vlm, self.frozen_modules)
            return None
        # A checkpoint that was set aside left this file where it was.
        if not weights.load_frozen(source.parent, self.vlm):
            weights.load_frozen(here, self.vlm)
        state = checkpoint.restore(source, self.vlm, self.optimizer)
        self.at = Position(**{name: state[name] for name in asdict(self.at)})
        self.losses, self.validation_loss = state["losses"], state["validation_loss"]
        ours = source.resolve().parent == here.resolve()
        folder.set_aside(self.run_dir, after_step=self.at.step if ours else 0)
        self.skips.resume(state["seen"], state["skipped"])
        if not ours and self.frozen_modules:
            weights.save_frozen(here, self.vlm, self.frozen_modules)
        return source
