"""When checkpoints are written, and by whom: the loop copies, a thread writes, and the loop hears how it went.

A save takes the training loop as long as listing the tensors; copying them in memory (see staging.py), writing and
syncing them, the consolidated file and the removal of old checkpoints happen beside the next steps. One save is under
way at a time: the next one waits for it.
Every process calls every method alike; what one of them finds out, all know before they act on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from prismatic import dist
from prismatic.conf.run import PretrainConfig
from prismatic.dist import World
from prismatic.train import checkpoint, optimizer_state, staging, weights
from prismatic.train.checkpoint import Groups, Job
from prismatic.train.errors import CheckpointError
from prismatic.train.optim import averaged
from prismatic.train.threads import in_thread

log = logging.getLogger(__name__)

WAIT_WORTH_TELLING = 1.0  # Seconds that a save waits for the one before
FAREWELL = 20.0  # Seconds that a run which ends with an error waits for its last save


@dataclass
class _Flight:
    """A save under way. blocked: seconds that the loop stood still for it."""

    step: int
    result: Future[tuple[Path, float]]
    blocked: float


class Saver:
    """Saves one sharded model and its optimizer, which has not stepped yet, into one run folder.

    modules: top-level modules of `vlm` that go whole into the consolidated file. Adapters are saved beside it.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        run_dir: Path,
        vlm: nn.Module,
        optimizer: torch.optim.Optimizer,
        modules: Sequence[str],
        world: World,
    ) -> None:
        self._cfg, self._run_dir, self._vlm, self._optimizer, self._world = cfg, run_dir, vlm, optimizer, world
        self._whole = weights.Whole.of(vlm, modules)
        self._groups_before = optimizer_state.group_values(optimizer)
        self._groups = Groups.make()
        self._staging = staging.Staging(world.device)
        self._staging.prepare_meshes(vlm)
        optimizer.register_step_pre_hook(self._before_update)
        self._reserved: Future[None] | None = None
        self._async = cfg.checkpoint_async
        self._flight: _Flight | None = None
        self._failed: CheckpointError | None = None
        self._last_state: dict[str, Any] | None = None
        self._clock = time.monotonic  # Of --checkpoint_minutes: one that nobody sets
        self._since = self._clock()

    def save(self, state: dict[str, Any], loss: float) -> None:
        """Take a checkpoint; returns at once (`--checkpoint_async`), or when it is written.

        Until `copied`, weights and optimizer state may change in nothing but the optimizer's own step.

        state: JSON values that `checkpoint.restore` gives back, see `checkpoint.Job`. loss: shown in the file's name.
        Raises CheckpointError when the save before has failed and `--on_save_error stop`; without
        `--checkpoint_async`, this one.
        """
        if state == self._last_state:
            return
        began = time.monotonic()
        self._land()
        waited = time.monotonic() - began
        if waited > WAIT_WORTH_TELLING:
            log.info(
                f"step {state['step']}: waited {waited:.1f} s until the checkpoint before was written; a larger "
                "--checkpoint_interval spares that"
            )
        job = self._job(state, loss)
        self._last_state, self._since = state, self._clock()
        self._flight = _Flight(state["step"], in_thread(lambda: self._write(job)), time.monotonic() - began)
        if not self._async:
            self._land()

    def copied(self) -> None:
        """Return when what the last save holds has been copied, and may change."""
        self._staging.wait()

    def after_step(self) -> bool:
        """After each step: hear of a save that has ended. Returns whether `--checkpoint_minutes` asks for one now.

        Raises CheckpointError when it has failed and `--on_save_error stop`.
        """
        if self._async and self._reserved is None:
            self._reserve()
        minutes = self._cfg.checkpoint_minutes
        if self._flight is None and minutes is None:
            return False
        due = minutes is not None and dist.rank_zero() and self._clock() - self._since >= 60 * minutes
        landed = self._flight is not None and self._flight.result.done()
        all_landed, any_due = dist.all_reduce_sum([landed, due])
        if self._flight is not None and all_landed == self._world.world_size:
            self._land()
        return bool(any_due) and self._flight is None

    @property
    def writing(self) -> bool:
        """Whether a save is being written, as this process sees it."""
        return self._flight is not None and not self._flight.result.done()

    def finish_writing(self) -> None:
        """Wait until everything is written. Raises CheckpointError when the newest state is not on the disk."""
        self._land(last=True)
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.finish()
        else:
            self.abandon()

    def finish(self) -> None:
        """At the end of a run: wait, and give back the memory for copies. Raises as `finish_writing` does."""
        if self._reserved is not None:
            self._reserved.result()
        self._reserved = None
        try:
            self.finish_writing()
        finally:
            self._staging.release()

    def abandon(self) -> None:
        """Because of an error that is on its way up: let a save under way end, if it can; raise nothing."""
        if self._flight is None:
            return
        try:
            path, _ = self._flight.result.result(FAREWELL)
            log.info(f"step {self._flight.step}: saved {path.name}")
        except (CheckpointError, RuntimeError, TimeoutError) as error:
            log.warning(f"The checkpoint of step {self._flight.step} was not completed: {error}")
        self._flight = None

    def _before_update(self, *_: Any) -> None:
        began = time.monotonic()
        self._staging.before_update()
        if self._flight is not None:
            self._flight.blocked += time.monotonic() - began

    def _job(self, state: dict[str, Any], loss: float) -> Job:
        names = optimizer_state.parameter_names(self._vlm)
        kept = {
            "numbers": optimizer_state.numbers(self._optimizer, names),
            "groups": optimizer_state.moved(self._groups_before, optimizer_state.group_values(self._optimizer)),
        }
        tensors = checkpoint.contents(self._vlm, self._optimizer)
        if self._async and self._reserved is None:
            self._reserve()
        if self._reserved is not None:
            self._reserved.result()
        copies = self._staging.copy(tensors) if self._async else checkpoint.detached(tensors)
        return Job(
            run_dir=self._run_dir,
            vlm=self._vlm,
            state={**state, "optimizer": kept},
            tensors=copies,
            whole=self._whole,
            given=self._given(tensors["model"]),
            loss=loss,
            keep=self._cfg.keep_checkpoints,
            keep_best=self._cfg.keep_best,
            groups=self._groups,
        )

    def _given(self, model: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors of the consolidated file that are not those of the resumable part; takes the time it takes."""
        if hasattr(self._optimizer, "averages"):
            self.copied()
            with averaged(self._optimizer) as swapped:
                if swapped:  # On a CPU they share memory with the weights, which go back to what they were
                    return {k: t.clone() for k, t in weights.gather_named(self._vlm, self._whole.keys()).items()}
        still = self._whole.keys() - model.keys()
        return weights.gather_named(self._vlm, still) if still else {}

    def _reserve(self) -> None:
        """Take the memory for copies, in a thread; without enough of it on each machine, do without copies."""
        tensors = checkpoint.contents(self._vlm, self._optimizer)
        fits = staging.fits_memory(staging.num_bytes(tensors) * self._world.local_world_size)
        self._async = dist.all_reduce_sum([fits])[0] == self._world.world_size
        if self._async:
            self._reserved = in_thread(lambda: self._staging.reserve(tensors))

    def _write(self, job: Job) -> tuple[Path, float]:
        began = time.monotonic()
        self._staging.claim_device()
        self._staging.wait()
        return checkpoint.write(job), time.monotonic() - began

    def _land(self, last: bool = False) -> None:
        """Wait for the save under way, say how it went."""
        if self._flight is None:
            return
        flight = self._flight
        try:
            path, seconds = flight.result.result()
        except CheckpointError as error:
            self._failed, self._last_state = error, None
            if self._cfg.on_save_error == "stop":
                self._failed = None
                raise
            if not last:
                log.error(f"{error} -- the training goes on (--on_save_error continue)")
        else:
            self._failed = None
            stood = f"; training stood still for {1000 * flight.blocked:.0f} ms" if self._async else ""
            log.info(f"step {flight.step}: saved {path.name} in {seconds:.1f} s{stood}")
        finally:
            self._flight = None
