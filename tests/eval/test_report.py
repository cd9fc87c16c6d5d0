"""report.html: what it shows, what it says is missing, and that it needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismatic.eval.metrics import score_shapes
from prismatic.eval.report import find_run_dir, summary, write_report
from prismatic.eval.report_gallery import NUM_CARDS, NUM_MISTAKES, difference
from prismatic.report.history import read_history
from tests.eval.shapes import NUM_VAL, render_clips

CONFIG = "model:\n  vision_backbone_id: tiny-vit\n  num_frames: 8\nstage: finetune\nseed: 7\nval_dataset: null\n"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_clips(tmp_path_factory.mktemp("data"))


def _run(tmp_path: Path) -> Path:
    run_dir = tmp_path / "my+run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(CONFIG)
    return run_dir


def _log(run_dir: Path, steps: int) -> None:
    rows = [{"Finetune/Step": i, "Finetune/Loss (Raw)": 3.0 / i, "Finetune/Loss": 3.0 / i} for i in range(1, steps + 1)]
    rows.append({"Finetune/Step": steps, "Finetune/Validation Loss": 0.4321})
    (run_dir / "log-name.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "run-metrics.jsonl").write_text(json.dumps({"run_id": "log-name", "hparams": {}}) + "\n")


def _evaluation(run_dir: Path, name: str, rows: list[dict[str, Any]], root: Path, **metrics: Any) -> None:
    folder = run_dir / name
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"num_frames": 8, "num_rows": len(rows), "num_scored": len(rows), "num_skipped": 0, "metric": None}
    (folder / "metrics.json").write_text(json.dumps({**facts, "media_root": str(root), **metrics}))


def _rows(shapes: Path, wrong: set[int]) -> list[dict[str, Any]]:
    rows = []
    for i, row in enumerate(json.loads((shapes / "val.json").read_text())):
        truth = row["conversations"][1]["value"]
        answer = truth.replace("moves", "rolls") if i in wrong else truth
        fields = {"question": "What happens?", "prediction": answer, "reference": truth}
        rows.append({"id": row["id"], "media": row["videos"], "num_frames": 8, **fields})
    return rows


class _Page(HTMLParser):
    """Checks that tags are closed in order, and collects what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "path", "circle"):
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "circle"):
            return
        assert self.open.pop() == tag


def _check(page: str) -> None:
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    # References inside the drawing of the curve, and pictures in the page itself.
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in parser.fetched)
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)|https?:", page)


def test_a_whole_run(tmp_path: Path, shapes: Path) -> None:
    run_dir = _run(tmp_path)
    _log(run_dir, 200)
    rows = _rows(shapes, wrong={2})
    texts = [r["prediction"] for r in rows], [r["reference"] for r in rows]
    _evaluation(run_dir, "evaluation", rows, shapes, **{**score_shapes(*texts), "metric": "moving-shapes"})
    one = [{**row, "num_frames": 1, "prediction": "A small red star."} for row in rows]
    scores = score_shapes([r["prediction"] for r in one], texts[1])
    _evaluation(run_dir, "evaluation-one-frame", one, shapes, **{**scores, "metric": "moving-shapes", "num_frames": 1})
    path = write_report(run_dir)
    page = path.read_text()
    _check(page)
    assert path == run_dir / "report.html"
    assert len(page) < 3_000_000
    assert "<svg" in page
    assert "0.4321" in page
    assert "8 frames a video" in page
    assert "1 frame a video" in page
    assert page.count('class="card">\n<p class="file">') == NUM_VAL
    assert page.count("data:image/jpeg") == 8 * NUM_VAL
    # Right and wrong by a sign as well as by colour.
    assert "&#10003; direction" in page
    assert '<span class="missed">rolls</span>' in page
    assert "vision_backbone_id: tiny-vit" in page
    assert not list(run_dir.glob("*.partial"))


def test_a_run_without_anything_says_so(tmp_path: Path) -> None:
    page = write_report(_run(tmp_path)).read_text()
    _check(page)
    assert "No step log was found" in page
    assert "This run has not been evaluated" in page
    assert "None" not in page.split("the whole config.yaml")[0]


def test_media_that_are_gone_and_texts_that_are_html(tmp_path: Path) -> None:
    run_dir = _run(tmp_path)
    row = {"id": "1", "media": ["gone.mp4"], "num_frames": 8, "question": "<script>alert(1)</script>"}
    rows = [
        {**row, "prediction": "<b>x</b>", "reference": "y"},
        {**row, "media": [], "prediction": "", "reference": "y"},
    ]
    _evaluation(run_dir, "evaluation", rows, tmp_path, num_skipped=3, num_rows=5, exact_match=0.0)
    page = write_report(run_dir).read_text()
    _check(page)
    assert "<script>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "no such file" in page
    assert "(nothing)" in page
    assert "3 of 5 rows could not be read" in page


def test_evaluations_of_other_data_stand_apart(tmp_path: Path) -> None:
    run_dir = _run(tmp_path)
    row = {"id": "1", "media": [], "num_frames": 0, "question": "?", "prediction": "ours", "reference": "a"}
    _evaluation(run_dir, "evaluation", [row], tmp_path, annotations="a.json", accuracy=0.25)
    _evaluation(
        run_dir, "evaluation-b", [{**row, "prediction": "theirs"}], tmp_path, annotations="b.json", accuracy=0.75
    )
    page = write_report(run_dir).read_text()
    assert "8 frames a video, evaluation-b" in page
    assert "75.0%" in page
    assert "theirs" not in page  # rows of one number in two files are not the same row


def test_settings_are_those_of_the_stage(tmp_path: Path) -> None:
    run_dir = _run(tmp_path)
    (run_dir / "config.yaml").write_text("stage: align\nmodel: {align_epochs: 31, finetune_epochs: 57}\n")
    page = write_report(run_dir).read_text().split("the whole config.yaml")[0]
    assert "<dd>31</dd>" in page
    assert "57" not in page.split("<h2>Settings</h2>")[1]


def test_missing_scores_are_named(tmp_path: Path) -> None:
    run_dir = _run(tmp_path)
    _evaluation(run_dir, "evaluation", [], tmp_path, cider=3.5, bleu=None, unavailable={"bleu": "pip install it"})
    page = write_report(run_dir).read_text()
    assert "bleu (pip install it)" in page
    assert "3.50" in page


def test_many_rows_make_a_page_of_bounded_size(tmp_path: Path, shapes: Path) -> None:
    run_dir = _run(tmp_path)
    _evaluation(run_dir, "evaluation", _rows(shapes, wrong=set(range(NUM_VAL))) * 20, shapes)
    page = write_report(run_dir).read_text()
    assert page.count('<p class="file">') == NUM_CARDS + NUM_MISTAKES


def test_pictures_and_lists_of_frames(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), i * 90, np.uint8)).save(tmp_path / f"{i}.png")
    run_dir = _run(tmp_path)
    row = {"id": "1", "num_frames": 4, "question": "?", "prediction": "a", "reference": "a"}
    rows = [{**row, "media": ["0.png", ["0.png", "1.png", "2.png"]]}]
    _evaluation(run_dir, "evaluation", rows, tmp_path)
    assert write_report(run_dir).read_text().count("data:image/jpeg") == 4


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        write_report(tmp_path)
    assert find_run_dir(tmp_path) is None
    run_dir = _run(tmp_path)
    assert find_run_dir(run_dir / "evaluation") == run_dir.resolve()
    assert find_run_dir(run_dir) == run_dir.resolve()


def test_a_log_that_was_cut_off_and_one_that_is_none(tmp_path: Path) -> None:
    run_dir = _run(tmp_path)
    _log(run_dir, 3)
    log = run_dir / "log-name.jsonl"
    log.write_text(log.read_text() + '{"Finetune/Step": 4, "Fine')
    history = read_history(run_dir)
    assert history.curve("Loss (Raw)").steps == [1, 2, 3]
    assert history.curve("Validation Loss").means == [0.4321]
    log.write_text("no json\n{}\n")
    with pytest.raises(ValueError, match=r"log-name.jsonl, line 1: not JSON"):
        read_history(run_dir)


def test_difference_marks_words() -> None:
    answer, truth = difference("A red cat sits.", "a blue cat sits down")
    assert [(s.text, s.same) for s in answer] == [("A", True), ("red", False), ("cat sits.", True)]
    assert [(s.text, s.same) for s in truth] == [("a", True), ("blue", False), ("cat sits", True), ("down", False)]
    assert difference("", "x") == ([], difference("y", "x")[1])


def test_summary_is_plain_text() -> None:
    metrics = {"num_scored": 2, "num_frames": 1, "num_skipped": 1, "exact_match": 0.5, "unavailable": {"bleu": "no"}}
    text = summary({**metrics, "attributes": {"shape": 0.5}, "attribute_accuracy": 0.5})
    assert "2 rows, 1 frame(s) a video, 1 skipped" in text
    assert "bleu: not measured (no)" in text
    assert "50.0% (shape 50.0%)" in text
