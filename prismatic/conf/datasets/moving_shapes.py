"""The embedded dataset that `scripts/preprocess.py --dataset_id moving-shapes` renders."""

from __future__ import annotations

from prismatic.conf.data import register

register("moving-shapes", ("moving-shapes/train.json", "moving-shapes"), ("moving-shapes/train.json", "moving-shapes"))
register(
    "moving-shapes-val",
    ("moving-shapes/val.json", "moving-shapes"),
    ("moving-shapes/val.json", "moving-shapes"),
    metric="moving-shapes",
)
