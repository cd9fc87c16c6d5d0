"""Flags of optimizers, rates, freezing and memory: what they take, and words for what cannot work."""

from __future__ import annotations

import pytest

from prismatic.conf import cli
from prismatic.conf.run import PretrainConfig

FLAGS = ("--model.type", "tiny-video", "--dataset.type", "moving-shapes")


def _parse(*flags: str, processes: int = 1) -> PretrainConfig:
    cfg = cli.parse(PretrainConfig, [*FLAGS, *flags])
    cfg.validate(processes)
    return cfg


def test_rates_and_patterns_are_written_as_json() -> None:
    rates = '{"projector.*": 1e-3, "llm_backbone.*layers.0.*": 1e-5}'
    cfg = _parse("--model.learning_rates", rates, "--model.freeze", '["*embed_tokens*"]', "--device_memory", "80")
    assert cfg.model.learning_rates == {"projector.*": 1e-3, "llm_backbone.*layers.0.*": 1e-5}
    assert cfg.model.freeze == ("*embed_tokens*",) and cfg.device_memory == 80


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--model.freeze", "projector.*"), r"--model.freeze takes a list in brackets"),
        (("--model.learning_rates", '{"projector.*": 0}'), r"rate of 'projector.\*' must be greater than 0"),
        (("--model.finetune_decay_ratio", "0.5"), r"has no effect without --model.finetune_lr_scheduler_type wsd"),
        (
            ("--model.finetune_lr_scheduler_type", "wsd", "--model.finetune_decay_ratio", "0.99"),
            r"finetune_decay_ratio must be greater than 0 and, with --model.finetune_warmup_ratio, at most 1",
        ),
        (("--device_memory", "0"), r"--device_memory is GiB of a device"),
        (("--context_parallel_size", "3"), r"--context_parallel_size must divide the number of processes, 2, got 3"),
        (("--context_parallel_size", "2", "--dataset.packing", "false"), r"pass --dataset.packing true"),
    ],
)
def test_what_cannot_work_is_named(flags: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _parse(*flags, processes=2)


def test_a_schedule_that_does_not_decay_so_may_warm_up_for_long() -> None:
    cfg = _parse("--model.finetune_warmup_ratio", "0.9")
    assert cfg.model.finetune_warmup_ratio == 0.9


def test_shared_batches_count_once_among_the_processes() -> None:
    # 16 examples of 16 at a time: two processes that share one batch, not two of 16.
    assert _parse("--context_parallel_size", "2", processes=2).context_parallel_size == 2
    with pytest.raises(ValueError, match="is not a multiple"):
        _parse(processes=2)
