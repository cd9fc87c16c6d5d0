"""Which settings may change between the start of a run and its continuation."""

from __future__ import annotations

import json
from typing import Any

import draccus

from prismatic.conf.run import PretrainConfig
from prismatic.train.run_dir import completed, differences


def _encoded(*flags: str) -> dict[str, Any]:
    arguments = ["--model.type", "tiny-video", "--dataset.type", "moving-shapes", *flags]
    return json.loads(json.dumps(draccus.encode(draccus.parse(PretrainConfig, args=arguments)), default=str))


def test_fields_that_came_later_have_their_default() -> None:
    older = _encoded()
    del older["dry_run"], older["dataset"]["weave"], older["model"]["lora"]["dropout"]
    assert differences(completed(older), _encoded()) == []
    assert differences(completed(older), _encoded("--seed", "8")) == ["--seed 7 -> 8"]


def test_free_options_are_not_completed() -> None:
    flags = ("--model.frame_aggregator_options", '{"frames_per_token": 2}')
    older = _encoded(*flags)
    assert completed(older)["model"]["frame_aggregator_options"] == {"frames_per_token": 2}
    assert differences(completed(older), _encoded()) == [
        "--model.frame_aggregator_options {'frames_per_token': 2} -> {}"
    ]
