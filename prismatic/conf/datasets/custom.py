"""Your own annotations: give the files with --dataset.finetune_stage_components."""

from __future__ import annotations

from prismatic.conf.data import register

register("custom", None, ("", ""))
