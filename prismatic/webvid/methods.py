"""Which videos belong together: the methods of `webvid.py cluster`, each an entry of METHODS (`--method`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from prismatic.registry import Registry
from prismatic.webvid.balanced import balanced_clusters, diverse_clusters
from prismatic.webvid.quantised import Rows, Vectors, quantise, side_by_side
from prismatic.webvid.texts import Texts
from prismatic.webvid.words import WordVectors

Labels = Rows
LEFT_OUT = -1
"""Label of a video that is in no cluster."""


@dataclass(frozen=True)
class Videos:
    """Who takes part.

    embeddings, caption_embeddings: float16 or float32 [n, D], or None. rows, caption_rows: the row of each id in them;
    None where the rows are the ids in order. caption_weight: share of the captions in `hybrid`, 0 to 1. scratch: folder
    for what does not fit in memory.
    """

    ids: Texts
    captions: Texts
    embeddings: NDArray[np.floating] | None
    rows: Rows | None = None
    caption_embeddings: NDArray[np.floating] | None = None
    caption_rows: Rows | None = None
    caption_weight: float = 0.5
    scratch: Path | None = None

    @cached_property
    def looks(self) -> Vectors:
        """Quantised embeddings [N, D]. Raises ValueError when there are none, or one is not finite."""
        if self.embeddings is None:
            raise ValueError("this --method needs --embeddings DIR, a folder with embeddings.npy and ids.txt")
        return quantise(self.embeddings, self.ids, self.rows, self.scratch)

    @cached_property
    def words(self) -> Vectors:
        """Quantised vectors of the captions [N, D]: of a text encoder, or by their words."""
        if self.caption_embeddings is not None:
            return quantise(self.caption_embeddings, self.ids, self.caption_rows, self.scratch)
        if not any(self.captions):
            raise ValueError("this --method needs captions: --catalog FILE or --caption_embeddings DIR")
        words = cast("NDArray[np.floating]", WordVectors(self.captions))  # a matrix that is read in slices
        return quantise(words, self.ids, None, self.scratch)

    @cached_property
    def both(self) -> Vectors:
        """Looks beside words, weighted by caption_weight."""
        return side_by_side(self.looks, self.words, self.caption_weight, self.scratch)


Method = Callable[[Videos, int, int], Labels]
"""(videos, L, seed) -> labels int64 [N]: 0, 1, 2, ... on exactly L videos each, LEFT_OUT on the N mod L others."""
METHODS: Registry[Method] = Registry("cluster method", flag="--method")


@METHODS.register("random")
def random_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """A shuffle cut into pieces; the remainder is the end of the shuffle."""
    count = len(videos.ids)
    labels = np.full(count, LEFT_OUT, np.int64)
    order = np.random.default_rng(seed).permutation(count)[: count - count % size]
    labels[order] = np.arange(len(order)) // size
    return labels


@METHODS.register("visual")
def visual_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """Videos whose embeddings point the same way; the remainder is what is least like the mean of all."""
    return balanced_clusters(videos.looks, size, seed, scratch=videos.scratch)


@METHODS.register("caption")
def caption_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """Videos whose captions are alike; the remainder is what is least like the mean of all."""
    return balanced_clusters(videos.words, size, seed, scratch=videos.scratch)


@METHODS.register("hybrid")
def hybrid_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """Videos alike in look and caption; the remainder is what is least like the mean of all."""
    return balanced_clusters(videos.both, size, seed, scratch=videos.scratch)


@METHODS.register("diverse")
def diverse_videos(videos: Videos, size: int, seed: int) -> Labels:
    """Videos as unlike in look as can be; the remainder is random."""
    return diverse_clusters(videos.looks, size, seed)


@METHODS.register("hard")
def hard_clusters(videos: Videos, size: int, seed: int) -> Labels:
    """Videos near in look and far in caption; the remainder is what looks least like the mean of all."""
    return balanced_clusters(videos.looks, size, seed, far=videos.words, scratch=videos.scratch)
