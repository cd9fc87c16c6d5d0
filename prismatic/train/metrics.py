"""Where the numbers of a run go: `run-metrics.jsonl`, `<run_id>.jsonl`, wandb, and the console."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismatic.train.console import Console, StepFacts
from prismatic.train.jsonl import RowFile
from prismatic.train.wandb_tracker import WandbTracker


class Metrics:
    """Rows of a run, one a step, under keys that begin with the stage ("Finetune/Loss"). Only rank 0 makes one.

    Keys: Step, Epoch, Loss (mean of the last 128), Loss (Raw), Learning Rate, Step Time (s), Gradient Norm,
    Tokens/s, Frames/s, Examples/s, Data Wait (s), Skipped; rows of a validation: Step, Validation Loss,
    Validation Tokens.
    """

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        *,
        stage: str,
        trackers: Sequence[str],
        hparams: dict[str, Any],
        wandb_project: str = "prismatic",
        wandb_entity: str | None = None,
    ) -> None:
        self.prefix = stage.capitalize()
        self._console: Console | None = None
        self._rows = RowFile(run_dir / f"{run_id}.jsonl") if "jsonl" in trackers else None
        if self._rows is not None:
            text = json.dumps({"run_id": run_id, "hparams": hparams}) + "\n"
            (run_dir / "run-metrics.jsonl").write_text(text, encoding="utf-8")
        self._wandb = None
        if "wandb" in trackers:
            self._wandb = WandbTracker(run_dir, run_id, hparams, wandb_project, wandb_entity)

    @property
    def unwritten(self) -> int:
        """Rows that a full disk did not take."""
        return self._rows.waiting if self._rows is not None else 0

    def start(self, step: int, total_steps: int) -> None:
        """Begin after `step` steps (0: anew): rows of later steps, which come again, are cut."""
        key = f"{self.prefix}/Step"
        if self._rows is not None:
            self._rows.keep(lambda _number, row: row.get(key, 0) <= step and step > 0)
        self._console = Console(total_steps, step)

    def log_step(self, facts: StepFacts, mean_loss: float) -> None:
        """Record a training step; `mean_loss` is that of the last steps."""
        seconds = max(facts.seconds, 1e-9)
        self._write(
            facts.step,
            {
                "Epoch": facts.epoch,
                "Loss": mean_loss,
                "Loss (Raw)": facts.loss,
                "Learning Rate": facts.learning_rate,
                "Step Time": facts.seconds,
                "Gradient Norm": facts.grad_norm,
                "Tokens/s": facts.tokens / seconds,
                "Frames/s": facts.frames / seconds,
                "Examples/s": facts.examples / seconds,
                "Data Wait": facts.data_wait,
                "Skipped": facts.skipped,
            },
        )
        if self._console is not None:
            self._console.update(facts, mean_loss)

    def log_validation(self, step: int, loss: float, tokens: int) -> None:
        """Record a pass over the validation data."""
        self._write(step, {"Validation Loss": loss, "Validation Tokens": tokens})

    def close(self) -> None:
        """Finish the trackers; at most a few seconds."""
        if self._console is not None:
            self._console.close()
        if self._rows is not None:
            self._rows.flush()
        if self._wandb is not None:
            self._wandb.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        row = {f"{self.prefix}/{name}": value for name, value in {"Step": step, **values}.items()}
        if self._rows is not None:
            self._rows.append(row)
        if self._wandb is not None:
            self._wandb.log(row, step)
