"""`webvid.py validate`: annotations read as training reads them, every problem counted instead of the first raised.

Nothing is judged here that training would not judge too: schema and paths by `parse_row`, media by `check_media` and
`MediaReader`, lengths by the very dataset that training builds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from prismatic.build_data import build_dataset
from prismatic.conf.data import DatasetConfig, url_of
from prismatic.conf.run import PretrainConfig
from prismatic.conf.webvid_rows import ValidateConfig
from prismatic.data.annotation_files import AnnotationError, read_parts
from prismatic.data.annotations import RecordTable, check_media
from prismatic.data.dataset import ClipDataset, ContextError
from prismatic.data.file_records import FileRows
from prismatic.data.media import MediaReader
from prismatic.data.media_paths import MediaRoot
from prismatic.data.schemas import parse_row
from prismatic.data.tokenize import ZeroLabelsError
from prismatic.preview import without_weights
from prismatic.types import ImageSpec, Medium, Record
from prismatic.video.decode import DECODERS
from prismatic.webvid.files import write_rows
from prismatic.webvid.rows import ids_of

log = logging.getLogger(__name__)

ROWS_AT_A_TIME = 64
KINDS = {
    "row": "rows that fit no schema, or whose placeholders or paths are wrong",
    "media": "media that are missing or empty",
    "decode": "media that cannot be decoded",
    "labels": "rows with nothing left to learn",
    "context": "rows longer than the LLM's context",
    "tokens": "rows that cannot be made into tokens",
    "leak": "videos of --val_annotations in --annotations",
}


class InvalidAnnotationsError(ValueError):
    """Training would not take these annotations as they are. The report has been logged."""


@dataclass(frozen=True)
class Problem:
    """kind: one of KINDS. where: file and row. text: what is wrong."""

    kind: str
    where: str
    text: str


@dataclass
class Findings:
    """What a piece of the rows gave. cut: rows whose text is cut off. longest: tokens of the longest row."""

    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    media: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    longest: int = 0

    def add(self, other: Findings) -> None:
        """Take in what another piece gave."""
        self.problems += other.problems
        self.rows += other.rows
        self.media += other.media
        self.cut += other.cut
        self.longest = max(self.longest, other.longest)


def validate(cfg: ValidateConfig) -> str:
    """Look at every row and return the report.

    Raises InvalidAnnotationsError, with the report logged, when anything is wrong; ValueError for settings.
    """
    cfg.validate()
    DECODERS.get(cfg.decoder)
    files = _files(cfg.annotations, "--annotations")
    val_files = _files(cfg.val_annotations, "--val_annotations") if cfg.val_annotations else []
    findings = Findings()
    tables = [_read(file, cfg.media_root, findings) for file in files]
    val_root = cfg.val_media_root or cfg.media_root
    val_tables = [_read(file, val_root, findings) for file in val_files]
    checker = Checker(cfg, [*tables, *val_tables])
    for table in checker.tables:
        findings.add(_check_all(checker, table, cfg.num_workers))
    findings.problems += _leaks(tables, val_tables)
    if cfg.output is not None:
        write_rows(cfg.output, (asdict(problem) for problem in findings.problems))
    report = _report(cfg, checker, findings, [*files, *val_files])
    if findings.problems:
        log.info("%s", report)
        kinds = Counter(problem.kind for problem in findings.problems)
        told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        raise InvalidAnnotationsError(f"{_problems(findings)} in {findings.rows:,} rows: {told}")
    return report


class Checker:
    """Looks at one row. Cheap to fork; holds the tokenizer and the sizes of the model, not its weights."""

    def __init__(self, cfg: ValidateConfig, tables: list[RecordTable]) -> None:
        self.cfg, self.tables = cfg, tables
        self.dataset: ClipDataset | None = None
        if cfg.model is not None and any(len(table) for table in tables):
            data = DatasetConfig(decoder=cfg.decoder)
            run = PretrainConfig(model=cfg.model, dataset=data, stage=cfg.stage, hf_token=cfg.hf_token)
            vlm, _ = without_weights(run, tables)
            self.dataset = build_dataset(data, tables, cfg=run, vlm=vlm, train=False)
        self.read = (
            self.dataset.read
            if self.dataset is not None
            else MediaReader(cfg.num_frames, ImageSpec(resolution=224), decoder=cfg.decoder)
        )
        # Woven epochs show the same files again and again.
        self._medium_problem = lru_cache(maxsize=200_000)(self._look_at)

    def check(self, record: Record) -> Findings:
        """Everything that is wrong with a row, without raising."""
        found = Findings(rows=1, media=Counter(medium.kind for medium in record.media) or Counter(["text only"]))
        for medium in record.media:
            problem = self._medium_problem(medium)
            if problem is not None:
                kind, text = problem
                found.problems.append(Problem(kind, record.source, text))
        if self.dataset is not None:
            try:
                tokens = self.dataset.tokens_of(record)
                found.cut, found.longest = int(tokens.cut > 0), len(tokens.input_ids)
            except ZeroLabelsError as error:
                found.problems.append(Problem("labels", record.source, str(error)))
            except ContextError as error:
                found.problems.append(Problem("context", record.source, str(error)))
            except ValueError as error:
                found.problems.append(Problem("tokens", record.source, str(error)))
        return found

    def check_rows(self, table: int, start: int) -> Findings:
        """Rows `start` and following of a table."""
        found = Findings()
        for record in self.tables[table][start : start + ROWS_AT_A_TIME]:
            found.add(self.check(record))
        return found

    def _look_at(self, medium: Medium) -> tuple[str, str] | None:
        missing = check_media([Record("", (medium,), (), "")])
        if missing:
            return "media", missing[0].removeprefix(": ")
        if not self.cfg.decode:
            return None
        try:
            self.read.read(medium, np.random.default_rng(0))
        except (ValueError, OSError) as error:
            return "decode", str(error)
        return None


def _files(given: Path | list[Path], flag: str) -> list[Path]:
    files = given if isinstance(given, list) else [given]
    for file in files:
        if not file.exists():
            raise ValueError(f"{flag} {file}: no such file")
    return files


def _read(file: Path, media_root: Path, findings: Findings) -> RecordTable:
    """The rows that can be understood; the others become problems."""
    root = MediaRoot(url_of(media_root) or media_root)

    def records() -> Iterator[Record]:
        parts = read_parts(file, 0, partial(FileRows.open, root=root))  # a large file is not read whole
        rows = (part.rows[at] for part in parts for at in part.chosen)
        for row in tqdm(rows, total=sum(len(part.chosen) for part in parts), unit="row", desc=f"reading {file.name}"):
            try:
                yield parse_row(row, root)
            except AnnotationError as error:
                text = str(error).removeprefix(f"{row.source}: ")
                findings.problems.append(Problem("row", row.source, text))
                findings.rows += 1

    return RecordTable(records())


_checker: Checker | None = None  # of a worker process


def _start(checker: Checker) -> None:
    global _checker
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _checker = checker


def _work(job: tuple[int, int]) -> Findings:
    assert _checker is not None
    return _checker.check_rows(*job)


def _work_one(place: tuple[int, int]) -> Findings:
    assert _checker is not None
    return _checker.check(_checker.tables[place[0]][place[1]])


def _pool(checker: Checker, processes: int) -> ProcessPoolExecutor:
    """Processes forked from this one, so that nothing is copied."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(checker,))


def _check_all(checker: Checker, table: RecordTable, num_workers: int) -> Findings:
    """The rows of one table, in order. A row whose process dies is a problem of that row, not of the check."""
    number = next(i for i, t in enumerate(checker.tables) if t is table)
    jobs = [(number, start) for start in range(0, len(table), ROWS_AT_A_TIME)]
    found = Findings()
    with tqdm(total=len(table), unit="row", desc="checking") as bar:

        def add(result: Findings) -> None:
            found.add(result)
            bar.update(result.rows)

        if not num_workers or "fork" not in multiprocessing.get_all_start_methods():
            for job in jobs:
                add(checker.check_rows(*job))
            return found
        done = 0
        while done < len(jobs):
            with _pool(checker, num_workers) as pool:
                try:
                    for result in pool.map(_work, jobs[done:]):
                        add(result)
                        done += 1
                except BrokenProcessPool:
                    # It was at these rows or at some that follow; then the next turn ends there.
                    add(_one_by_one(checker, table, jobs[done]))
                    done += 1
    return found


def _one_by_one(checker: Checker, table: RecordTable, job: tuple[int, int]) -> Findings:
    found = Findings()
    number, start = job
    place, end = start, min(start + ROWS_AT_A_TIME, len(table))
    while place < end:
        with _pool(checker, 1) as pool:
            try:
                while place < end:
                    found.add(pool.submit(_work_one, (number, place)).result())
                    place += 1
            except BrokenProcessPool:
                text = "the process that looked at it died; one of its media crashes the decoder"
                found.add(Findings([Problem("decode", table[place].source, text)], rows=1))
                place += 1
    return found


def _leaks(tables: Sequence[RecordTable], val_tables: Sequence[RecordTable]) -> Iterator[Problem]:
    """Validation videos in training rows: by the ids that a row joins, and by the files."""
    if not val_tables:
        return
    ids: dict[str, str] = {}
    paths: dict[str, str] = {}
    for record in (record for table in val_tables for record in table):
        ids.update((video_id, record.source) for video_id in _video_ids(record))
        paths.update((path, record.source) for medium in record.media for path in medium.paths)
    for record in (record for table in tables for record in table):
        shared = [video_id for video_id in _video_ids(record) if video_id in ids]
        files = [path for medium in record.media for path in medium.paths if path in paths]
        if shared:
            yield Problem("leak", record.source, f"video {shared[0]} is also in {ids[shared[0]]}")
        elif files:
            yield Problem("leak", record.source, f"{files[0]} is also in {paths[files[0]]}")


def _problems(findings: Findings) -> str:
    return f"{len(findings.problems):,} problem{'' if len(findings.problems) == 1 else 's'}"


def _video_ids(record: Record) -> list[str]:
    """None for a text-only row, nor for a row that is named by its place in the file: such names mean nothing."""
    by_place = record.id.isdecimal() and record.source.endswith(f", row {int(record.id) + 1}")
    return ids_of(record.id) if record.media and not by_place else []


def _report(cfg: ValidateConfig, checker: Checker, findings: Findings, files: list[Path]) -> str:
    media = ", ".join(f"{count:,} {kind}" for kind, count in findings.media.most_common())
    lines = [f"{', '.join(map(str, files))}: {findings.rows:,} rows; media: {media or 'none'}"]
    if checker.dataset is None:
        lines.append("lengths: not looked at (--model.type ID does)")
    else:
        room = checker.dataset.context_length
        lines.append(
            f"lengths: the longest row has {findings.longest:,} of {'any number of' if room is None else f'{room:,}'} "
            f"tokens; the text of {findings.cut:,} rows is cut off at {checker.dataset.max_length:,}"
        )
    lines.append(f"media files: {'decoded' if cfg.decode else 'looked for, not opened (--decode true does)'}")
    if not cfg.val_annotations:
        lines.append("validation videos in training rows: not looked for (--val_annotations FILE does)")
    for kind, meaning in KINDS.items():
        of_kind = [problem for problem in findings.problems if problem.kind == kind]
        if of_kind:
            lines.append(f"{len(of_kind):,} {kind}: {meaning}")
            lines += [f"  {problem.where}: {problem.text}" for problem in of_kind[: cfg.show]]
            lines += [f"  ... and {len(of_kind) - cfg.show:,} more"] if len(of_kind) > cfg.show else []
    return "\n".join([*lines, _problems(findings)])
