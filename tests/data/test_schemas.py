"""Rows that fit no schema are named with file, row and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismatic.data.annotations import AnnotationError, load_records
from tests.data.annotation_rows import CHAT, TEXT, write


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("text", "expected an object with `conversations`, got 'text'"),
        ({"id": "a", "image": "a.jpg"}, r"no `conversations` \(the row has: id, image\)"),
        ({"conversations": []}, "must be a list of turns that is not empty"),
        ({"conversations": "Q"}, "must be a list of turns"),
        ({"conversations": [{"from": "human"}]}, "turn 1 .* must hold texts `from` and `value`"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 1 .* must hold texts"),
        ({"conversations": [TEXT[1]]}, "turn 1 .* must be from 'human' or 'user', not 'gpt'"),
        ({"conversations": [TEXT[0], TEXT[0]]}, "turn 2 .* must be from 'gpt' or 'assistant', not 'human'"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "not 'tool'"),
        ({"messages": [{"role": "system", "content": "S"}]}, "no turn of a human"),
        ({"video_id": "1", "caption": "c", "cluster": "0"}, r"no training row.*scripts/webvid\.py weave"),
        ({"conversations": CHAT}, "1 <image>/<video> placeholders but 0 images or videos"),
        ({"image": "a.jpg", "conversations": [CHAT[0], CHAT[1], *CHAT]}, "2 <image>/<video> placeholders but 1 images"),
        (
            {"videos": ["a.mp4"], "num_frames_per_video": 0, "conversations": TEXT},
            "must be a count of 1 or more, or a list of them, got 0",
        ),
        ({"videos": ["a.mp4"], "num_frames_per_video": "4", "conversations": TEXT}, "must be a count"),
        ({"videos": ["a.mp4"], "num_frames_per_video": [4, 4], "conversations": TEXT}, "lists 2 counts for 1 videos"),
        ({"frames": "a.png", "conversations": TEXT}, "`frames` must be a list"),
        ({"frames": [["a.png"], []], "conversations": TEXT}, "is an empty list"),
        ({"image": "", "conversations": CHAT}, "must be a text that is not empty"),
        ({"image": {"path": "a.jpg"}, "conversations": CHAT}, "must be a text that is not empty"),
    ],
)
def test_bad_row_is_named_with_its_reason(root: Path, row: Any, said: str) -> None:
    path = write(root.parent, [{"conversations": TEXT}, row])
    with pytest.raises(AnnotationError, match=said) as caught:
        load_records(path, root)
    assert str(caught.value).startswith(f"{path}, row 2: ")
