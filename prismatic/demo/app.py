"""What the page can ask the server for, without HTTP: each request's meaning, and what it may be."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from prismatic.ask import Conversation
from prismatic.conf.demo import DemoConfig
from prismatic.conf.run import GenerateConfig
from prismatic.demo import answers
from prismatic.demo.desk import Desk, Event, Job
from prismatic.demo.shelf import Shelf
from prismatic.demo.visitors import Visitor, Visitors
from prismatic.video.sampling import SAMPLERS

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

Reply = dict[str, Any] | Iterator[Event]
MB = 1 << 20


class App:
    """The model with its line, the visitors, and the folder they may choose from."""

    def __init__(self, vlm: PrismaticVLM, cfg: DemoConfig) -> None:
        self.cfg, self.vlm = cfg, vlm
        self.defaults = cfg.asking(vlm.num_frames)
        self.shelf = None if cfg.media_root is None else Shelf(cfg.media_root)
        self.desk = Desk()
        self.visitors = Visitors(lambda: Conversation(vlm, self.defaults), cfg.max_visitors)
        self.upload_limit = cfg.max_upload_mb * MB
        self.requests: dict[str, Callable[[Visitor, Mapping[str, Any]], Reply]] = {
            "POST /api/choose": self.choose,
            "POST /api/files": self.files,
            "POST /api/see": self.see,
            "POST /api/ask": self.ask,
            "POST /api/weigh": self.weigh,
            "POST /api/stop": self.stop,
            "POST /api/restart": self.restart,
            "POST /api/leave": self.leave,
        }

    def close(self, timeout_s: float) -> bool:
        """Stop the model and delete all uploads; whether the model is at rest within `timeout_s`."""
        at_rest = self.desk.close(timeout_s)
        self.visitors.close()
        return at_rest

    def enter(self) -> dict[str, Any]:
        """A page opens: its token, what the model is, and what can be set."""
        visitor = self.visitors.enter()
        settings = ("num_frames", "sampler", "max_new_tokens", "do_sample", "temperature")
        parameters = sum(p.numel() for p in self.vlm.parameters())
        return {
            "token": visitor.token,
            "model": Path(self.cfg.model_path).name or self.cfg.model_path,
            "facts": [
                f"{_rounded(parameters)} parameters",
                f"frames of {self.vlm.vision_backbone.image_spec.resolution} pixels",
                f"context of {self.vlm.llm_backbone.context_length:,} tokens",
                str(self.vlm.device),
            ],
            "settings": {name: getattr(self.defaults, name) for name in settings},
            "samplers": SAMPLERS.names(),
            "shelf": self.shelf is not None,
            "upload_limit": self.upload_limit,
        }

    def upload(self, visitor: Visitor, source: BinaryIO, length: int, name: str) -> dict[str, Any]:
        """Take in a file of at most `upload_limit` bytes and look at it."""
        with visitor.alone():
            visitor.receive(source, length, Path(name).name)
        return {"name": visitor.name}

    def choose(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """Look at what lies at `path` below --media_root."""
        path = _text(body, "path").strip()
        with visitor.alone():
            visitor.look_at(self._shelf().find(path), Path(path).name)
        return {"name": visitor.name}

    def files(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """What lies in `folder` below --media_root."""
        return asdict(self._shelf().list(_text(body, "folder")))

    def see(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """The frames that the model sees of the file, under `settings`."""
        return self._events(visitor, answers.see(visitor.conversation, self._settings(body)))

    def ask(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """The answer to `question`, as it is written."""
        question = _text(body, "question")
        return self._events(visitor, answers.answer(visitor.conversation, self._settings(body), question))

    def weigh(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """How likely each of `choices` is as the answer to `question`."""
        choices = body.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise ValueError(f"choices must be a list of texts, got {choices!r}")
        cfg, per_token = self._settings(body), bool(body.get("per_token"))
        work = answers.weigh(visitor.conversation, cfg, _text(body, "question"), choices, per_token)
        return self._events(visitor, work)

    def stop(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """End the answer that is being written."""
        visitor.stop()
        return {}

    def restart(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """Forget the turns, keep the file."""
        with visitor.alone():
            visitor.conversation.start_over()
        return {}

    def leave(self, visitor: Visitor, body: Mapping[str, Any]) -> Reply:
        """The page is closed."""
        self.visitors.leave(visitor)
        return {}

    def playable(self, visitor: Visitor) -> tuple[Path, str]:
        """The file that the visitor looks at, and its MIME type, for the browser to play. Raises ValueError."""
        path = visitor.conversation.media
        if path is None or not path.is_file():
            raise ValueError("there is no file to play")
        if path.stat().st_size > self.upload_limit:
            raise ValueError(f"the file is larger than {self.cfg.max_upload_mb} MB")
        return path, mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    def _events(self, visitor: Visitor, work: Callable[[Job], None]) -> Iterator[Event]:
        with visitor.alone():
            yield from visitor.events(self.desk, work)

    def _settings(self, body: Mapping[str, Any]) -> GenerateConfig:
        asked = body.get("settings", {})
        if not isinstance(asked, dict):
            raise ValueError(f"settings must be an object, got {asked!r}")
        return answers.chosen_settings(self.defaults, asked)

    def _shelf(self) -> Shelf:
        if self.shelf is None:
            raise ValueError("no folder is served here; start the demo with --media_root FOLDER, or upload a file")
        return self.shelf


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r}")
    return value


def _rounded(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:,}"
