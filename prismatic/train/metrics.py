"""Where the numbers of a run go: `run-metrics.jsonl`, `<run_id>.jsonl`, wandb, and the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismatic.report.history import History, read_history
from prismatic.train.console import Console, StepFacts
from prismatic.train.jsonl import RowFile
from prismatic.train.wandb_tracker import WandbTracker


class Metrics:
    """Rows of a run, one a step, under keys that begin with the stage ("Finetune/Loss"). Only rank 0 makes one.

    Keys: Step, Epoch, Loss (mean of the last 128), Loss (Raw), Learning Rate (and "Learning Rate (NAME)" of each group
    of weights where there are several), Step Time (s), Gradient Norm, Tokens/s, Frames/s, Examples/s, TFLOP/s (useful,
    a device), MFU (of a known or measured peak), Data Wait (s), Data Wait Share (of the step), Host Memory and
    Device Memory (GiB, of rank 0), Filled Share (of positions), Label Share (of filled ones), Skipped (samples),
    Skipped Steps (left out by --on_nan skip; such a step has a row without a loss); rows of a validation: Step,
    Validation Loss, Validation Tokens, and "Validation Loss (DATA)", "Validation Loss (DATA, L=2)" by data and by the
    number of clips of an example; rows of answers: "Evaluation SCORE (DATA)". `history` has all rows as curves.
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
        self.console: Console | None = None
        self.history = History()
        self._run_dir = run_dir
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
            self.history = read_history(self._run_dir)
        self.console = Console(total_steps, step)

    def log_step(self, facts: StepFacts, mean_loss: float) -> None:
        """Record a training step; `mean_loss` is that of the last steps."""
        self._write(
            facts.step,
            {
                "Epoch": facts.epoch,
                "Loss": mean_loss,
                "Loss (Raw)": facts.loss,
                "Learning Rate": facts.learning_rate,
                "Step Time": facts.seconds,
                "Gradient Norm": facts.grad_norm,
                **_rates(facts),
                **_optional(facts),
                "Skipped": facts.skipped,
                "Skipped Steps": facts.left_out,
            },
        )
        if self.console is not None:
            self.console.update(facts, mean_loss)

    def log_left_out(self, step: int, epoch: int, left_out: int) -> None:
        """Record a step that was not taken; left_out: how many so far."""
        self._write(step, {"Epoch": epoch, "Skipped Steps": left_out})

    def log_validation(self, step: int, loss: float, tokens: int, by_part: Mapping[str, float] | None = None) -> None:
        """Record a pass over the validation data. by_part: losses by "DATA" and by "DATA, L=2"."""
        parts = {f"Validation Loss ({name})": value for name, value in (by_part or {}).items()}
        self._write(step, {"Validation Loss": loss, "Validation Tokens": tokens, **parts})

    def log_scores(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Record scores of answers by data: {"DATA": {"accuracy": ...}}."""
        values = {f"Evaluation {name} ({data})": v for data, of in scores.items() for name, v in of.items()}
        self._write(step, values)

    def close(self) -> None:
        """Finish the trackers; at most a few seconds."""
        if self.console is not None:
            self.console.close()
        if self._rows is not None:
            self._rows.flush()
        if self._wandb is not None:
            self._wandb.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        row = {f"{self.prefix}/{name}": value for name, value in {"Step": step, **values}.items()}
        self.history.add(row)
        if self._rows is not None:
            self._rows.append(row)
        if self._wandb is not None:
            self._wandb.log(row, step)


def _rates(facts: StepFacts) -> dict[str, float]:
    seconds = max(facts.seconds, 1e-9)
    return {
        "Tokens/s": facts.tokens / seconds,
        "Frames/s": facts.frames / seconds,
        "Examples/s": facts.examples / seconds,
        "Data Wait": facts.data_wait,
        "Data Wait Share": facts.data_wait / seconds,
    }


def _optional(facts: StepFacts) -> dict[str, float]:
    """What is not known everywhere: memory of a GPU, MFU without a peak, rates of a single group."""
    values: dict[str, float | None] = {
        "TFLOP/s": facts.device_flops and facts.device_flops / 1e12,
        "MFU": facts.mfu,
        "Device Memory": facts.device_memory and facts.device_memory / 2**30,
        "Host Memory": facts.host_memory and facts.host_memory / 2**30,
        "Filled Share": facts.tokens / facts.positions if facts.positions else None,
        "Label Share": facts.label_tokens / facts.tokens if facts.positions and facts.tokens else None,
    }
    if len(facts.learning_rates) > 1:
        values |= {f"Learning Rate ({name})": rate for name, rate in facts.learning_rates.items()}
    return {name: value for name, value in values.items() if value is not None}
