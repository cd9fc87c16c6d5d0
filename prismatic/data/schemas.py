"""What a row of an annotation file means: every accepted schema, told apart by its fields, to a checked Record.

* `conversations` [{from, value}], with `image`, `images`, `video`, `videos` or `frames`, or text only: LLaVA, FastVLM,
  Video-LLaVA, VideoWeave and its woven rows
* `conversations` [{images, user, assistant}]: lines of WebVid-10M
* `messages` [{role, content}], with `images` or `videos`: sharegpt rows of LLaMA-Factory
* `video_id`, `q`, `a`: Video-ChatGPT

A value of a media field is a path, a list of paths (one medium each), or for `frames` the ordered pictures of one clip
(a list of lists: of several clips). Whether a file is a picture or a video is told by its extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prismatic.data.annotation_files import AnnotationError, RawRow
from prismatic.data.media_paths import MediaRoot, kind_of
from prismatic.prompting import PLACEHOLDERS, check_placeholders
from prismatic.prompting.placement import find_placeholders
from prismatic.types import Medium, Record, Role, Turn

_ROLES: dict[str, Role] = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_SYSTEM = "system"
_IMAGE, _VIDEO = PLACEHOLDERS


def parse_row(row: RawRow, root: MediaRoot) -> Record:
    """The Record of a row. Raises AnnotationError that names file and row when it fits no schema.

    A system message is put in front of the first human message, with an empty line between: chat formats differ in
    whether they have a place for one, rows do not.
    """
    try:
        value = _canonical(row, root)
        turns = _turns(value, row)
        media = _media(value, turns, root)
        check_placeholders([turn.text for turn in turns if turn.role == "human"], len(media))
    except ValueError as error:
        raise AnnotationError(f"{row.source}: {error}") from error
    return Record(_id(value, row), media, turns, row.source)


def _canonical(row: RawRow, root: MediaRoot) -> dict[str, Any]:
    """The row with the field names of LLaVA. Raises ValueError for what is no training row."""
    value = row.value
    if not isinstance(value, dict):
        raise ValueError(f"expected an object with `conversations`, got {value!r:.60}")
    for name, column in row.columns.items():
        if column in value:
            value = {**value, name: value[column]}
    if "q" in value and "a" in value and "video_id" in value:
        return _video_chatgpt(value, row.number, root)
    if "messages" in value and ("conversations" not in value or row.columns):
        value = {**value, "conversations": value["messages"]}
    if "conversations" not in value:
        if "cluster" in value:
            raise ValueError(
                "this row tells the cluster of a video and is no training row; make training rows of the file with "
                "`python scripts/webvid.py weave --clusters FILE ...`"
            )
        known = ", ".join(list(value)[:8])
        raise ValueError(f"no `conversations` (the row has: {known or 'no fields'})")
    said = value["conversations"]
    if not isinstance(said, list) or not said:
        raise ValueError(f"`conversations` must be a list of turns that is not empty, got {said!r:.60}")
    if isinstance(said[0], dict) and "user" in said[0] and "assistant" in said[0]:
        return _webvid10m(value, said[0])
    return value


def _webvid10m(value: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Schema of the converted WebVid-10M lines: the first conversation, the id without its split."""
    return {
        "id": str(value.get("id", "")).removeprefix("train-"),
        "frames": said.get("images"),
        "conversations": [{"from": "human", "value": said["user"]}, {"from": "gpt", "value": said["assistant"]}],
    }


def _video_chatgpt(value: dict[str, Any], number: int, root: MediaRoot) -> dict[str, Any]:
    """A question about the video that is named by its id; the placeholder stands behind and before in turn."""
    question = value["q"]
    if not isinstance(question, str) or not isinstance(value["video_id"], str):
        raise ValueError("`video_id` and `q` must be texts")
    question = f"{question}\n{_VIDEO}" if number % 2 == 0 else f"{_VIDEO}\n{question}"
    return {
        "id": value["video_id"],
        "video": f"{value['video_id']}.pkl",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": value["a"]}],
    }


def _turns(value: dict[str, Any], row: RawRow) -> tuple[Turn, ...]:
    tags = row.tags
    role_tag, text_tag = tags.get("role_tag"), tags.get("content_tag")
    roles = dict(_ROLES)
    roles |= {tags[name]: role for name, role in (("user_tag", "human"), ("assistant_tag", "gpt")) if name in tags}
    system_role = tags.get("system_tag", _SYSTEM)
    system = value.get(_SYSTEM) if isinstance(value.get(_SYSTEM), str) else ""
    turns: list[Turn] = []
    for number, said in enumerate(value["conversations"], start=1):
        role_name, text = _said(said, role_tag, text_tag, number)
        if role_name == system_role and not turns and not system:
            system = text
            continue
        due: Role = "gpt" if len(turns) % 2 else "human"
        role = roles.get(role_name)
        if role != due:
            expected = " or ".join(f"'{name}'" for name, meaning in roles.items() if meaning == due)
            raise ValueError(f"turn {number} of `conversations` must be from {expected}, not '{role_name}'")
        turns.append(Turn(role, f"{system}\n\n{text}" if system and not turns else text))
    if not turns:
        raise ValueError("`conversations` has no turn of a human")
    return tuple(turns)


def _said(said: object, role_tag: str | None, text_tag: str | None, number: int) -> tuple[str, str]:
    if isinstance(said, dict):
        role = said.get(role_tag) if role_tag else said.get("from", said.get("role"))
        text = said.get(text_tag) if text_tag else said.get("value", said.get("content"))
        if isinstance(role, str) and isinstance(text, str):
            return role, text
    raise ValueError(f"turn {number} of `conversations` must hold texts `from` and `value`, got {said!r:.80}")


def _media(value: dict[str, Any], turns: Sequence[Turn], root: MediaRoot) -> tuple[Medium, ...]:
    frames = value.get("frames") or []
    if not isinstance(frames, list):
        raise ValueError(f"`frames` must be a list of pictures in order, got {frames!r:.60}")
    clips = frames if frames and isinstance(frames[0], list) else [frames] if frames else []
    media = [_frames(clip, root) for clip in clips]
    named = [item for name in ("video", "videos") for item in _items(value, name)]
    counts = _frame_counts(value.get("num_frames_per_video"), len(named))
    videos = [_medium(item, count, root) for item, count in zip(named, counts, strict=True)]
    shared = counts[0] if counts else _frame_counts(value.get("num_frames_per_video"), 1)[0]
    images = [_medium(item, shared, root) for name in ("image", "images") for item in _items(value, name)]
    if videos and images:
        marks = find_placeholders([turn.text for turn in turns if turn.role == "human"], len(videos) + len(images))
        if marks.count(_VIDEO) == len(videos) and marks.count(_IMAGE) == len(images):
            queues = {_VIDEO: iter(videos), _IMAGE: iter(images)}
            return (*media, *(next(queues[mark]) for mark in marks))
    return (*media, *videos, *images)


def _frame_counts(asked: object, num_videos: int) -> list[int | None]:
    """Frames of each video that `num_frames_per_video` asks for: one count for all, or a list of one a video."""
    counts = asked if isinstance(asked, list) else [asked] * num_videos
    if any(c is not None and (not isinstance(c, int) or isinstance(c, bool) or c < 1) for c in counts):
        raise ValueError(f"`num_frames_per_video` must be a count of 1 or more, or a list of them, got {asked!r:.60}")
    if len(counts) != num_videos:
        raise ValueError(f"`num_frames_per_video` lists {len(counts)} counts for {num_videos} videos")
    return counts


def _items(value: dict[str, Any], name: str) -> list[Any]:
    """The media of a field: none when it is missing or null, or an empty list (what table exports write)."""
    items = value.get(name)
    if items is None:
        return []
    return items if isinstance(items, list) else [items]


def _medium(item: object, count: int | None, root: MediaRoot) -> Medium:
    if isinstance(item, list):
        return _frames(item, root)
    if isinstance(item, str) and item.endswith(".pkl"):  # features of Video-ChatGPT: the video they were made of
        return Medium("video", (root.find_video(item.removesuffix(".pkl")),), count)
    path = root.resolve(item)  # type: ignore[arg-type]  which refuses what is no text
    return Medium("video", (path,), count) if kind_of(path) == "video" else Medium("image", (path,))


def _frames(pictures: list[Any], root: MediaRoot) -> Medium:
    if not pictures:
        raise ValueError("a clip of `frames` is an empty list")
    return Medium("frames", tuple(root.resolve(picture) for picture in pictures))


def _id(value: dict[str, Any], row: RawRow) -> str:
    found = value.get("id")
    return str(found) if found not in (None, "") else str(row.number)
