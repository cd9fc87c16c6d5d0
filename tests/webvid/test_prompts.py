"""`webvid.py prompts`: k questions for each row, placeholders where they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prismatic.conf.webvid_rows import PromptsConfig
from prismatic.webvid.prompts import prompts
from prismatic.webvid.rows import split_question

DEFAULT = "Describe what is happening in the video."


def _rows(path: Path, questions: list[str]) -> Path:
    rows = [
        {"id": str(i), "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": "A."}]}
        for i, q in enumerate(questions)
    ]
    path.write_text(json.dumps(rows))
    return path


def _asked(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["conversations"][0]["value"]) for row in json.loads(path.read_text())]


def test_k_rows_of_each(tmp_path: Path) -> None:
    questions = [f"<video>\n<video>\n{DEFAULT}", f"{DEFAULT}\n<video>", "<video>\nHow many {cats}?"]
    (tmp_path / "list.txt").write_text("What\u2019s this?\n\nSay \u201cit\u201d.\nThree\nFour\nThree\n")
    cfg = PromptsConfig(
        annotations=_rows(tmp_path / "in.json", questions), prompts=tmp_path / "list.txt", output=tmp_path / "out.json"
    )
    told = prompts(cfg)
    asked = _asked(cfg.output)
    assert [i for i, _ in asked] == ["0"] * 4 + ["1"] * 4 + ["2"]
    first = [q.removeprefix("<video>\n<video>\n") for _, q in asked[:4]]
    assert first[0] == DEFAULT and len(set(first)) == 4
    assert set(first[1:]) <= {"What's this?", 'Say "it".', "Three", "Four"}
    assert all(q.endswith("\n<video>") for _, q in asked[4:8])
    assert asked[8][1] == questions[2]
    assert "9 rows of 3" in told and "1 rows ask something else than --prompt" in told
    before = cfg.output.read_bytes()
    prompts(cfg)
    assert cfg.output.read_bytes() == before
    cfg.seed = 8
    prompts(cfg)
    assert cfg.output.read_bytes() != before


def test_one_drawn_for_each_row_from_our_own_list(tmp_path: Path) -> None:
    cfg = PromptsConfig(
        annotations=_rows(tmp_path / "in.json", [f"<video>\n{DEFAULT}"] * 40), draw=True, output=tmp_path / "out.json"
    )
    prompts(cfg)
    asked = _asked(cfg.output)
    assert len(asked) == 40 and len({q for _, q in asked}) > 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nQ?", ("Q?", "<image>\n{}")),
        ("Q?<video>", ("Q?", "{}<video>")),
        ("Why <image> so?", ("Why so?", "<image>\n{}")),
        ("<video>", ("", "<video>\n{}")),
    ],
)
def test_split_question(text: str, expected: tuple[str, str]) -> None:
    assert split_question(text) == expected


def test_bad_input(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "in.json", [DEFAULT])
    values: dict[str, Any] = {"annotations": rows, "output": tmp_path / "out.json"}
    for changed, said in (
        ({"k": 99}, "--k 99 needs 98 questions beside --prompt; our list has"),
        ({"k": 0}, "--k must be at least 1"),
        ({"prompts": tmp_path / "no.txt"}, "no such file"),
        ({"output": tmp_path / "out.txt"}, "--output must end in"),
    ):
        with pytest.raises(ValueError, match=said):
            prompts(PromptsConfig(**{**values, **changed}))
    rows.write_text('[{"id": "0"}]')
    with pytest.raises(ValueError, match="row 1: expected `conversations`"):
        prompts(PromptsConfig(**values))
