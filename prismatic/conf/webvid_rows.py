"""Configurations of the subcommands of `scripts/webvid.py` that work on rows: captions, prompts, questions, checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import prismatic.conf.presets  # noqa: F401  registers the ids of --model.type
from prismatic.conf.models import STAGES, ModelConfig
from prismatic.conf.webvid import ClusterFiles

ROW_FILES = (".json", ".jsonl")


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"--{flag} must be {' or '.join(known)}, got '{value}'")


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")


def _row_file(output: Path) -> None:
    if output.suffix not in ROW_FILES:
        raise ValueError(f"--output must end in .json or .jsonl, got '{output}'")


@dataclass
class CaptionsConfig:
    """Put other captions (cleaned, enriched, rewritten) in place of those there are, by id.

    Example: python scripts/webvid.py captions --input data/webvid/catalog.parquet \
    --captions 'data/webvid/enriched/*.json' --output data/webvid/enriched.parquet
    --input is a catalog, a clusters file, or woven annotations; the output is of the same kind. The answer of a woven
    row is made of the new captions of all its videos, as the form joined does; to get another form, put them into the
    catalog and weave again: the same seed gives the same weave.
    """

    input: Path = Path("catalog.parquet")  # A catalog (.parquet), a clusters file, or annotations (.json, .jsonl)
    captions: str = ""  # File or pattern in quotes: JSON (list of rows, or id -> row), JSONL, CSV or Parquet
    id_column: str | None = None  # Field of the ids; default: video_id, videoid or id, or the key of a JSON object
    caption_column: str | None = None  # Field of the captions; default: cleaned_caption, enriched_caption, caption, ...
    missing: str = "keep"  # A video without a new caption: keep (its row stays as it is), or drop (its row is left out)
    output: Path = Path("captioned.parquet")  # .parquet, .json or .jsonl, as --input

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _one_of("missing", self.missing, ("keep", "drop"))
        if not self.captions:
            raise ValueError("captions needs --captions FILE (or a pattern in quotes)")
        kinds = {suffix: "catalog" if suffix == ".parquet" else "rows" for suffix in (".parquet", *ROW_FILES)}
        given, written = kinds.get(self.input.suffix), kinds.get(self.output.suffix)
        if given is None or given != written:
            raise ValueError(
                f"--input and --output must both end in .parquet, or in .json or .jsonl; got '{self.input}' and "
                f"'{self.output}'"
            )


@dataclass
class PromptsConfig:
    """Ask in other words: write each row with k different questions.

    Example: python scripts/webvid.py prompts --annotations data/webvid/woven.json --prompts prompt_list.txt --k 4 \
    --output data/webvid/woven-4-prompts.json
    A row gets --prompt and k-1 others drawn from the list, and becomes k rows; with --draw true it stays one row and
    gets one of the k. Rows that ask anything but --prompt stay as they are.
    """

    annotations: Path = Path("woven.json")  # Rows with conversations
    prompts: Path | None = None  # Questions, one a line (straight quotes are made of curly ones); none: a list of ours
    k: int = 4  # Questions of a row, --prompt among them
    prompt: str = "Describe what is happening in the video."  # The question that is varied
    draw: bool = False  # One of the k questions for each row, instead of k rows
    output: Path = Path("prompts.json")  # .json or .jsonl
    seed: int = 7  # Which questions a row gets

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least(1, k=self.k)
        _row_file(self.output)


@dataclass
class QnaConfig:
    """Make training rows of typed question files: action, object, scene, temporal, or any others.

    Example: python scripts/webvid.py qna --catalog data/webvid/catalog.parquet \
    --questions 'data/generated_qna/50k/video_questions_*.txt' --per_type 1 --output data/webvid/qna.json
    A file holds a list (JSON, JSONL, or as Python writes lists) of {file_paths or video_id, question, answer}; its type
    is a field `type`, or the word behind video_questions_ in the file's name. Entries whose video the catalog cannot
    use, and entries without question or answer, are counted and left out.
    """

    questions: str = ""  # File or pattern in quotes
    catalog: Path = Path("catalog.parquet")  # From `webvid.py catalog`; gives the videos
    frames: Path | None = None  # From `webvid.py extract`, folders or shards: rows name those, not videos
    media_root: Path | None = None  # Paths are written relative to it; default: the --videos or --frames folder
    num_frames: int | None = None  # Frames of each video; needed with --frames, otherwise the model's own number
    types: tuple[str, ...] = ()  # Only these types, in brackets: '["action","scene"]'; default: all
    per_type: int = 1  # Rows of each type for each video; drawn where there are more
    output: Path = Path("qna.json")  # .json or .jsonl
    seed: int = 7  # Which entries are drawn, and the order of the rows

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least(1, per_type=self.per_type, num_frames=self.num_frames)
        _row_file(self.output)
        if not self.questions:
            raise ValueError("qna needs --questions FILE (or a pattern in quotes)")
        if self.frames is not None and self.num_frames is None:
            raise ValueError("--frames needs --num_frames: how many of the extracted frames a row lists")
        if any(len(name) == 1 for name in self.types):
            raise ValueError("--types takes a list in brackets, for example --types '[\"action\"]'")


@dataclass
class IdsConfig:
    """Write the ids of videos, as a JSON list or one a line.

    Example: python scripts/webvid.py ids --catalog data/webvid/catalog.parquet --output data/webvid/video_ids.json
    Of a catalog the rows with status ok, in its order; of a clusters file or (woven) annotations every video once, in
    the order in which rows first name it. `extract --ids FILE` takes either.
    """

    catalog: Path | None = None  # From `webvid.py catalog`
    annotations: Path | None = None  # Or rows: a clusters file, or annotations whose ids are those of their videos
    output: Path = Path("video_ids.json")  # .json: a list; .txt: one a line

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if (self.catalog is None) == (self.annotations is None):
            raise ValueError("ids needs one of --catalog FILE and --annotations FILE")
        if self.output.suffix not in (".json", ".txt"):
            raise ValueError(f"--output must end in .json or .txt, got '{self.output}'")


@dataclass
class ConvertConfig:
    """Make clips of image rows: n pictures one after the other, each conversation with its own picture among them.

    Example: python scripts/webvid.py convert --annotations llava_v1_5_mix665k.json --num_frames 2 \
    --output llava_v1_5_mix665k_videos_2frame.json
    Image rows that follow each other make groups of n. Each conversation of a group becomes n rows, its own picture in
    each place once (for pairs: both orders of both conversations). A last group that is too small is filled with the
    pictures before it. Text rows and rows with other media stay as they are.
    """

    annotations: Path = Path("annotations.json")  # Rows with `image` and `conversations`
    num_frames: int = 2  # Pictures of a clip; 1: each picture is a clip of one frame
    orders: str = "all"  # all: a row for each place of its own picture; one: one row, the place is drawn
    shuffle: bool = False  # Group pictures at random instead of as they follow each other
    output: Path = Path("converted.json")  # .json or .jsonl
    seed: int = 7  # Groups with --shuffle, places with --orders one

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least(1, num_frames=self.num_frames)
        _one_of("orders", self.orders, ("all", "one"))
        _row_file(self.output)


@dataclass
class ConcatConfig:
    """Write rows as videos to look at: their clips one after the other, as H.264 in .mp4.

    Example: python scripts/webvid.py concat --annotations data/webvid/woven.json --media_root data/webvid/videos \
    --limit 20 --output data/webvid/look
    Beside the videos, index.jsonl says what is asked and answered about each. Videos that are there already are not
    made again.
    """

    annotations: Path = Path("woven.json")  # Rows of any kind that training reads
    media_root: Path = Path("videos")  # Folder (or URL) that media paths are relative to
    what: str = "clips"  # clips: every frame; frames: only those that the model sees
    limit: int | None = 20  # The first so many rows; null: all
    num_frames: int = 16  # With --what frames: frames of a video, where its row does not say
    fps: float | None = None  # Frames a second; default: the first clip's own, 1 with --what frames
    height: int = 256  # Pixels; the width is the first clip's, other shapes get black bars
    num_workers: int = 2  # Videos that are made at a time
    output: Path = Path("look")  # Folder

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _at_least(1, limit=self.limit, num_frames=self.num_frames, num_workers=self.num_workers)
        _at_least(16, height=self.height)
        _one_of("what", self.what, ("clips", "frames"))
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"--fps must be above 0 and at most 1000, got {self.fps}")


@dataclass
class ValidateConfig:
    """Read annotations as training would, and say everything that is wrong with them.

    Example: python scripts/webvid.py validate --annotations data/webvid/woven.json --media_root data/webvid/videos \
    --model.type tiny-video --model.num_frames 16
    Looks at every row: its schema, placeholders, paths and media; with --model.type also at the length in tokens and
    whether anything is left to learn; with --val_annotations at what training and validation share. Prints counts and
    the first rows of each kind of problem; the exit code is not 0 when there is one.
    """

    annotations: ClusterFiles = Path("woven.json")  # A file, or a list in brackets
    media_root: Path = Path("videos")  # Folder (or URL) that media paths are relative to
    model: Optional[ModelConfig] = None  # noqa: UP045  Check lengths for this model
    stage: str = "finetune"  # align, finetune, full-finetune: what of a row is learned
    val_annotations: ClusterFiles | None = None  # Validation rows: none of their videos may be in --annotations
    val_media_root: Path | None = None  # Default: --media_root
    decode: bool = False  # Also open all media and decode the frames that training would take
    decoder: str = "pyav"  # For --decode true: pyav, torchcodec, decord
    num_frames: int = 8  # Frames of a video for --decode true without a model
    show: int = 5  # Rows listed of each kind of problem
    output: Path | None = None  # Every problem as JSON lines
    num_workers: int = 2  # Processes; 0: in this one
    hf_token: str = ".hf_token"  # Token for gated models: a file, or the name of an environment variable

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        _one_of("stage", self.stage, STAGES)
        _at_least(1, num_frames=self.num_frames)
        _at_least(0, num_workers=self.num_workers, show=self.show)
        if self.model is not None:
            self.model.validate(self.stage, world_size=1)


ROW_SUBCOMMANDS = {
    "captions": (CaptionsConfig, "prismatic.webvid.join_captions"),
    "prompts": (PromptsConfig, "prismatic.webvid.prompts"),
    "qna": (QnaConfig, "prismatic.webvid.qna"),
    "ids": (IdsConfig, "prismatic.webvid.ids"),
    "convert": (ConvertConfig, "prismatic.webvid.convert"),
    "concat": (ConcatConfig, "prismatic.webvid.concat"),
    "validate": (ValidateConfig, "prismatic.check"),
}
"""subcommand: (its configuration, where its function is)."""
