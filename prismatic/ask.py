"""Asking a model: one question, or a conversation about an image or a video at a prompt."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch

from prismatic.conf.run import GenerateConfig
from prismatic.load import load
from prismatic.models.generation import check_context

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM
    from prismatic.prompting import PromptBuilder

HELP = """\
  a path or URL   look at this image, video, or folder of frames, and begin a new conversation
  i PATH          the same
  p TEXT          set the system prompt and begin a new conversation (p alone: the template's own)
  n               begin a new conversation about the same media
  h               this help
  q               quit
  anything else   a question"""
DOWNLOAD_TIMEOUT_S, DOWNLOAD_LIMIT_BYTES = 30, 2 << 30


def load_for_asking(path: str, *, num_frames: int | None, hf_token: str, device: str) -> PrismaticVLM:
    """A trained model on the device asked for ("auto", "cpu", "cuda"), in bf16 on a GPU.

    Raises ValueError when CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA GPU here; pass --device cpu")
    vlm = load(path, hf_token=hf_token, num_frames=num_frames)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        vlm.to("cuda", dtype=torch.bfloat16)
    return vlm


@dataclass(frozen=True)
class Seen:
    """What the model sees of a file. frames: uint8 [T, 3, R, R]. seconds: float64 [T], when each is shown, from the
    first frame of the file on; [0] for an image. num_tokens: visual tokens of them together.
    """

    frames: torch.Tensor
    seconds: np.ndarray
    num_tokens: int


class Conversation:
    """Questions and answers about one image or video; the model sees all earlier turns.

    cfg may be replaced between two questions. Without cfg.num_frames the model's own number is used: several
    conversations with one model each name theirs.
    """

    def __init__(self, vlm: PrismaticVLM, cfg: GenerateConfig) -> None:
        self.vlm, self.cfg = vlm, cfg
        self.system_prompt = cfg.system_prompt
        self.media: Path | None = None
        self.builder: PromptBuilder = vlm.get_prompt_builder(system_prompt=self.system_prompt)
        self._seen: tuple[object, Seen] | None = None
        self._downloads: tempfile.TemporaryDirectory[str] | None = None

    def open(self, media: str) -> None:
        """Look at another file (or http(s) URL) from now on. Raises ValueError when it is not there."""
        path = self._download(media) if media.startswith(("http://", "https://")) else Path(media).expanduser()
        if not path.exists():
            raise ValueError(f"there is no image, video or frame folder at {path}")
        self.media, self._seen = path, None
        self.start_over()

    def start_over(self) -> None:
        """Forget the turns, keep the media."""
        self.builder = self.vlm.get_prompt_builder(system_prompt=self.system_prompt)

    def see(self) -> Seen:
        """What the model sees of the media, encoded for the questions to come.

        Raises ValueError (MediaError) when it cannot be read, or its visual tokens do not fit into the LLM's context.
        """
        path, vlm = self._look(), self.vlm
        key = (path, vlm.num_frames, vlm.sampler)
        if self._seen is None or self._seen[0] != key:
            seconds = vlm.clip_reader.seconds(path)
            # Before anything is decoded.
            check_context(vlm, vlm.tokens_per_clip(len(seconds)), 1)
            clip = vlm.encode_clips(path)[0]
            assert clip.frames is not None, "an unsharded model remembers its clips"
            self._seen = key, Seen(clip.frames, seconds, len(clip.tokens))
        return self._seen[1]

    def ask(self, question: str, **more: Any) -> str:
        """The answer to one more question; a question that fails leaves the conversation as it was.

        more: further keywords of `generate`, such as a streamer.
        """
        media, prompt = self._look(), self._prompt(question)
        answer = self.vlm.generate(media, prompt, **self._generation(), **more)
        self.builder.add_turn("human", question)
        self.builder.add_turn("gpt", answer)
        return answer

    def score(self, question: str, choices: Sequence[str], per_token: bool = False) -> list[float]:
        """How likely each choice is as the answer to one more question, see `score_choices`; no turn is added."""
        return self.vlm.score_choices(self._look(), self._prompt(question), choices, per_token)

    def _look(self) -> str:
        """The path of the media, which the model will now sample as this conversation wants it."""
        if self.media is None:
            raise ValueError("no image or video yet: give its path first")
        self.vlm.sampler = self.cfg.sampler
        self.vlm.num_frames = self.cfg.num_frames or self.vlm.num_frames
        return str(self.media)

    def _prompt(self, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is empty; pass one with --prompt")
        return self.builder.get_potential_prompt(question)

    def _generation(self) -> dict[str, Any]:
        names = ("do_sample", "max_new_tokens", "num_beams", "min_length", *(["temperature"] * self.cfg.do_sample))
        return {name: getattr(self.cfg, name) for name in names}

    def interact(self, source: TextIO, sink: TextIO) -> int:
        """Read lines until `q` or the end of the input; errors are shown and the conversation goes on."""

        def say(text: str) -> None:
            sink.write(text + "\n")
            sink.flush()

        say(f"Ask about an image or a video ({self.vlm.num_frames} frames are taken from a video).\n{HELP}")
        while True:
            sink.write("> " if self.media is None else f"[{self.media.name}] > ")
            sink.flush()
            line = source.readline()
            if not line or line.strip() == "q":
                say("")
                return 0
            try:
                self._line(line.strip(), say)
            except (ValueError, OSError) as error:
                say(f"error: {error}")

    def _line(self, line: str, say: Callable[[str], None]) -> None:
        key, _, rest = line.partition(" ")
        if not line:
            return
        if line == "h":
            say(HELP)
        elif line == "n":
            self.start_over()
            say("a new conversation")
        elif key == "i" or line.startswith(("http://", "https://")) or _is_path(line):
            self.open(rest.strip() if key == "i" else line)
            say(f"looking at {self.media}")
        elif key == "p":
            builder = self.vlm.get_prompt_builder(system_prompt=rest.strip() or None)
            self.system_prompt, self.builder = rest.strip() or None, builder
            say(f"a new conversation, system prompt: {self.system_prompt or 'the usual one'}")
        else:
            say(self.ask(line))

    def _download(self, url: str) -> Path:
        if self._downloads is None:
            self._downloads = tempfile.TemporaryDirectory(prefix="prismatic-")
        target = Path(self._downloads.name) / (Path(url.split("?", 1)[0]).name or "media")
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as reply, target.open("wb") as file:
                if int(reply.headers.get("Content-Length") or 0) > DOWNLOAD_LIMIT_BYTES:
                    raise ValueError(f"{url} is larger than 2 GiB")
                shutil.copyfileobj(reply, file)
        except (urllib.error.URLError, TimeoutError) as error:
            raise ValueError(f"{url} could not be fetched: {error}") from error
        return target


def _is_path(line: str) -> bool:
    try:
        return Path(line).expanduser().exists()
    except (OSError, RuntimeError):
        return False
