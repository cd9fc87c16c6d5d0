"""Records to Examples: what a training process asks a dataset for, and what happens to a broken sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prismatic.data.annotations import AnnotationError, check_media
from prismatic.data.feature_cache_reader import CachedReader, join_clips
from prismatic.data.media import MediaReader, joined
from prismatic.data.rows import RecordRows
from prismatic.data.sizes import RowSizes, Shape, TextFit, media_of, sizes_of, text_bytes
from prismatic.data.tokenize import Tokenized, tokenize_chat
from prismatic.data.watch import ReadingWatch
from prismatic.data.weave import WovenEpochs
from prismatic.prompting import ChatTemplate
from prismatic.types import IGNORE_INDEX, VISUAL_SLOT, CachedFeatures, Example, Record, Skip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ClipDataset", "ContextError", "MediaReader", "Position", "SampleError"]

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 16
CHECKED_ROWS = 4096  # one or two seconds with a fast tokenizer
_MEASURED_ROWS = 50_000  # among which the longest are looked for at start-up; about a second
_SHOWN = 5
FILLER_LENGTH = 2  # tokens of a filler: one to predict from, one that is not learned


class Position(NamedTuple):
    """A place in the data order. counted: False for a filler, which keeps ranks in step and teaches nothing."""

    epoch: int
    index: int
    counted: bool = True


class SampleError(ValueError):
    """A sample cannot be used; the text names file, row and reason."""


class ContextError(ValueError):
    """Visual and text tokens together exceed the context of the LLM."""


@dataclass(eq=False)
class ClipDataset(Dataset[Example]):
    """Examples by Position. What a position gives depends on (seed, epoch, index) alone, in every process.

    records_by_epoch: rows of each epoch, in turn (several files: one clustering an epoch); one entry serves all epochs,
    and WovenEpochs has rows of its own for each.
    tokens_per_clip: visual tokens N of a clip of T frames. max_length: longest text in tokens. context_length: places
    that the LLM has, None for no bound. rope_factor: by how much RoPE scaling stretches it already, None where it
    cannot (for the hint of an error). on_error: "raise" stops at a broken sample, "skip" replaces it by another one and
    says so in Example.skipped. train: False draws the same frames in every epoch. watch: knows what each reading
    process is at, and which rows cannot be read without losing one. features: reads media with `read` where a cache
    does not have their features.
    """

    records_by_epoch: Sequence[Sequence[Record]]
    read: MediaReader
    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    layout: str
    max_length: int
    tokens_per_clip: Callable[[int], int]
    context_length: int | None = None
    rope_factor: float | None = 1.0
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    train: bool = True
    watch: ReadingWatch = field(default_factory=ReadingWatch)
    features: CachedReader | None = None

    def __post_init__(self) -> None:
        self.template = self.template.for_tokenizer(self.tokenizer)
        self._fit = TextFit()
        self._tokens_of_shape: dict[Shape, int] = {}

    def num_examples(self, epoch: int) -> int:
        """Rows of an epoch."""
        return len(self._records(epoch))

    def __getitem__(self, position: Position) -> Example:
        """The example at a position; a filler has two tokens, no frames and no labels.

        Raises SampleError for a broken sample (on_error "raise"), or when no replacement is whole either.
        """
        if not position.counted:
            return self._filler()
        skipped: list[Skip] = []
        index = position.index
        for attempt in range(MAX_REPLACEMENTS + 1):
            record = self._read_row(position.epoch, index)
            try:
                example = self.watch.read(position.epoch, index, partial(self._example, record, position.epoch, index))
                return replace(example, skipped=tuple(skipped))
            except (ValueError, OSError) as error:
                if self.on_error == "raise":
                    raise SampleError(
                        f"{record.source}: {error} (--dataset.on_error skip leaves such samples out)"
                    ) from error
                skipped.append(Skip(record.id, record.source, str(error), position.epoch, index))
            index = self._replacement(position, attempt, {skip.index for skip in skipped})
        raise SampleError(
            f"{skipped[0].source}: {skipped[0].reason}; {MAX_REPLACEMENTS} others in its place are broken too"
        )

    def lengths(self, rows: NDArray[np.int64], epoch: int = 0) -> NDArray[np.int64]:
        """About how many positions examples take, int64 [n], from their rows alone and alike in every process.

        Visual tokens are counted, text is guessed from its bytes; after `check` as this tokenizer cuts this data.
        """
        records = self._records(epoch)
        sizes: RowSizes | None = records.sizes if isinstance(records, RecordRows) else None
        if sizes is None:
            sizes, rows = sizes_of(records[row] for row in rows.tolist()), np.arange(len(rows))
        visual = np.array([self._visual_tokens(shape) for shape in sizes.shapes], np.int64)
        text = self._fit.tokens(sizes.text[rows])
        return visual[sizes.shape[rows]] + text.clip(1, self.max_length)

    def tokens_of(self, record: Record) -> Tokenized:
        """Ids and labels of a row, from the row alone: no medium is opened.

        Raises ContextError, ZeroLabelsError, or ValueError for turns and placeholders that do not fit.
        """
        return self._tokenized(record, self._media_tokens(record))

    def check(self, limit: int | None = CHECKED_ROWS) -> None:
        """Look at rows before anything is trained: context, labels left, placeholders, whether the media exist.

        Takes the longest rows and rows spread evenly over each epoch, `limit` in all (None: every row). Raises
        SampleError that names rows and reasons: with on_error "raise" when one is broken, with "skip" when all are.
        """
        broken: list[str] = []
        texts: list[tuple[int, int]] = []
        cut = looked_at = 0
        for record in self._rows_to_check(limit):
            looked_at += 1
            try:
                tokens = self.tokens_of(record)
            except ValueError as error:
                broken.append(f"{record.source}: {error}")
                continue
            cut += tokens.cut > 0
            visual = tokens.input_ids.count(VISUAL_SLOT)
            texts.append((text_bytes(record), len(tokens.input_ids) + tokens.cut - visual))
            broken += check_media([record])[:1]
        self._fit = TextFit.of(texts)
        if cut:
            log.warning(
                "%d of %d rows looked at have a text longer than --model.llm_max_length %d; its end is cut off",
                *(cut, looked_at, self.max_length),
            )
        if broken and (self.on_error == "raise" or len(broken) == looked_at):
            for text in broken[1:_SHOWN]:
                log.warning("%s", text)
            raise SampleError(
                f"{broken[0]} ({len(broken)} of {looked_at} rows looked at are broken; --dataset.on_error skip leaves "
                "such samples out)"
            )
        if broken:
            log.warning("%d of %d rows looked at are broken and will be skipped: %s", len(broken), looked_at, broken[0])

    def _rows_to_check(self, limit: int | None) -> Iterator[Record]:
        for epoch, records in enumerate(self.records_by_epoch):
            if limit is None:
                yield from records
                continue
            share = max(2, limit // len(self.records_by_epoch))
            looked_at = np.array(_spread(len(records), _MEASURED_ROWS))
            longest = looked_at[np.argsort(-self.lengths(looked_at, epoch), kind="stable")[: share // 8]].tolist()
            yield from (records[index] for index in sorted({*_spread(len(records), share), *longest}))

    def _records(self, epoch: int) -> Sequence[Record]:
        if isinstance(self.records_by_epoch, WovenEpochs):
            return self.records_by_epoch[epoch]
        return self.records_by_epoch[epoch % len(self.records_by_epoch)]

    def _read_row(self, epoch: int, index: int) -> Record:
        try:
            return self._records(epoch)[index]
        except AnnotationError as error:  # of a file that has changed since the start, or a link that was put there
            raise SampleError(str(error)) from error

    def _visual_tokens(self, shape: Shape) -> int:
        if shape not in self._tokens_of_shape:
            self._tokens_of_shape[shape] = sum(self.tokens_per_clip(self.read.count(m)) for m in media_of(shape))
        return self._tokens_of_shape[shape]

    def _media_tokens(self, record: Record) -> list[int]:
        return [self.tokens_per_clip(self.read.count(medium)) for medium in record.media]

    def _example(self, record: Record, epoch: int, index: int) -> Example:
        rng = np.random.default_rng([self.seed % 2**32, epoch if self.train else 0, index])
        frames, counts, cache = self._media(record, rng)
        tokens = self._tokenized(record, [self.tokens_per_clip(count) for count in counts])
        side = self.read.image_spec.resolution
        return Example(
            id=record.id,
            input_ids=torch.tensor(tokens.input_ids, dtype=torch.int64),
            labels=torch.tensor(tokens.labels, dtype=torch.int64),
            frames=torch.empty((0, 3, side, side), dtype=torch.uint8) if frames is None else frames,
            frames_per_medium=counts,
            cache=cache,
        )

    def _media(
        self, record: Record, rng: np.random.Generator
    ) -> tuple[torch.Tensor | None, tuple[int, ...], CachedFeatures | None]:
        """(frames uint8 [F, 3, R, R] of clips that no cache has, T of every clip, the clips that the cache has)."""
        if self.features is not None:
            found = self.features.clips(record.media)
            frames, cache = join_clips(found)
            return frames, tuple(clip.num_frames for clip in found), cache
        clips = [self.read.read(medium, rng) for medium in record.media]
        return joined(clips), tuple(len(clip) for clip in clips), None

    def _tokenized(self, record: Record, media_tokens: Sequence[int]) -> Tokenized:
        """Raises ContextError, ZeroLabelsError or ValueError."""
        tokens = tokenize_chat(
            record.turns,
            media_tokens,
            template=self.template,
            tokenizer=self.tokenizer,
            layout=self.layout,
            max_length=self.max_length,
        )
        total, visual = len(tokens.input_ids), sum(media_tokens)
        if self.context_length is not None and total > self.context_length:
            raise ContextError(
                f"{visual} visual tokens ({len(media_tokens)} clips, --model.num_frames {self.read.num_frames}) + "
                f"{total - visual} text tokens = {total} exceed the LLM's context of {self.context_length}; lower "
                "--model.num_frames, use --model.frame_aggregator mean, lower --model.llm_max_length"
                f"{self._stretch(total)}"
            )
        return tokens

    def _stretch(self, total: int) -> str:
        """The RoPE scaling that makes room for `total` positions, as a hint; none where the LLM cannot be stretched."""
        if self.rope_factor is None or self.context_length is None:
            return " or take an LLM with a longer context"
        factor = math.ceil(10 * total * self.rope_factor / self.context_length) / 10
        return f", or stretch the context: --model.rope_scaling_factor {factor:g}"

    def _replacement(self, position: Position, attempt: int, tried: set[int]) -> int:
        """Another row, none of `tried`, as long as there is one."""
        rng = np.random.default_rng([self.seed % 2**32, position.epoch, position.index, attempt + 1])
        rows = self.num_examples(position.epoch)
        drawn = int(rng.integers(rows))
        return next((row for row in (*range(drawn, rows), *range(drawn)) if row not in tried), drawn)

    def _filler(self) -> Example:
        side = self.read.image_spec.resolution
        token = next(t for t in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0) if t is not None)
        return Example(
            id="",
            input_ids=torch.full((FILLER_LENGTH,), token, dtype=torch.int64),
            labels=torch.full((FILLER_LENGTH,), IGNORE_INDEX, dtype=torch.int64),
            frames=torch.empty((0, 3, side, side), dtype=torch.uint8),
            frames_per_medium=(),
        )


def _spread(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly apart, first and last among them."""
    return sorted(set(np.linspace(0, total - 1, min(total, count)).astype(int).tolist()))
