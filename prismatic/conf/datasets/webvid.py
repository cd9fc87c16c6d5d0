"""WebVid clips woven four to an example, as the VideoWeave runs used them."""

from __future__ import annotations

from prismatic.conf.data import register

register(
    "webvid",
    ("dataset_splits/webvid_train_45k_cluster_size=4.json", "webvid"),
    ("dataset_splits/webvid_train_45k_cluster_size=4.json", "webvid_num_frames=1"),
)
register(
    "webvid_val",
    ("dataset_splits/webvid_val_5k_cluster_size=4.json", "webvid_cluster_size=4"),
    ("dataset_splits/webvid_val_5k_cluster_size=4.json", "webvid_num_frames=1"),
)
