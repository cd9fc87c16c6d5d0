"""Curves that stay small, drawings that are whole, and the page of a run by what its folder holds."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prismatic.report.chart import Line, line_chart, number_text
from prismatic.report.history import CAPACITY, Curve, History, read_history, smoothed
from prismatic.report.run_report import write_run_report
from prismatic.report.tables import SkipReasons, validation_parts, validation_rows


@pytest.mark.parametrize("count", [1, CAPACITY, 2 * CAPACITY, 2 * CAPACITY + 1, 100_003])
def test_a_curve_of_any_length_keeps_its_shape(count: int) -> None:
    curve = Curve()
    for step in range(1, count + 1):
        curve.add(step, 100.0 if step == count // 2 + 1 else step / count)
    assert (
        len(curve.steps) <= 2 * CAPACITY and curve.steps[-1] == count and list(curve.steps) == sorted(set(curve.steps))
    )
    assert max(curve.highs) == 100.0 and min(curve.lows) >= 0  # a single spike is seen however long the run
    assert len(curve.steps) == len(curve.means) == len(curve.lows) == len(curve.highs)
    weights = [b - a for a, b in zip([0, *curve.steps[:-1]], curve.steps, strict=True)]
    mean = sum(w * m for w, m in zip(weights, curve.means, strict=True)) / count
    exact = (sum(s / count for s in range(1, count + 1)) + 100.0 - (count // 2 + 1) / count) / count
    assert mean == pytest.approx(exact, rel=1e-9)


def test_what_is_no_number_leaves_no_point() -> None:
    history = History()
    for value in (1.0, float("nan"), float("inf"), None, "text", True, 2.0):
        history.add({"Finetune/Step": 1, "Finetune/Loss": value})
    assert list(history.curve("Loss").means) == [1.0, 2.0] and not history.curve("nothing").steps


def test_smoothing_is_a_mean_of_the_last_points() -> None:
    curve = _curve(1.0, 3.0, 5.0, 7.0)
    assert list(smoothed(curve, 0.5).means) == [1.0, 2.0, 4.0, 6.0] and smoothed(curve, 0.0).means == curve.means


def _curve(*values: float) -> Curve:
    curve = Curve()
    for step, value in enumerate(values, start=1):
        curve.add(step, value)
    return curve


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ((3.0,), {}),
        ((3.0, 3.0, 3.0), {}),
        ((0.0, 0.0), {"from_zero": True}),
        ((1e-9, 5.0, 1e6), {}),
        ((-1.0, 2.0), {}),
        ((0.2, 0.9), {"percent": True}),
        ((1e12, 2e12), {"from_zero": True}),
        ((0.0, 1.0), {"log": True}),
    ],
)
def test_every_curve_lies_inside_its_drawing(values: tuple[float, ...], options: dict) -> None:
    svg = line_chart([Line("a", _curve(*values), dots=True), Line("b & c", _curve(*values), "two")], **options)
    assert "b &amp; c" in svg and "nan" not in svg and "inf" not in svg
    numbers = [float(n) for d in re.findall(r'class="line"[^>]* d="M([^"]*)"', svg) for n in re.split("[ L]", d)]
    assert all(-0.5 <= n <= 1000.5 for n in numbers[::2]) and all(-0.5 <= n <= 260.5 for n in numbers[1::2])
    ticks = re.findall(r'text-anchor="end">([^<]*)</text>', svg)
    assert len(ticks) >= 1


def test_nothing_to_draw_and_numbers_for_people() -> None:
    assert line_chart([]) == "" and line_chart([Line("a", Curve())]) == ""
    assert [number_text(v) for v in (0, 950, 12_500, 0.0123, 2e-5, 1_234_567, 9_999_999)] == [
        *("0", "950", "12.5k", "0.0123", "2e-05", "1.235M", "10M"),
    ]


def test_reasons_are_counted_without_names_and_read_once(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    reasons = SkipReasons(path)
    assert reasons.read() == []

    def add(name: str, reason: str) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"id": name, "reason": reason}) + "\n")

    for number in range(5):
        add(f"v{number}", f"/data/v{number}.mp4: decoder 'pyav': no such file")
    add("other", "pictures of 3 x 4 pixels")
    first, second = reasons.read()
    assert (first.count, second.count) == (5, 1) and "no such file" in first.text and "v1" not in first.text
    assert first.examples == ["v0", "v1", "v2"]
    with path.open("a") as file:
        file.write('{"id": "half')
    add("", "")  # completes the half row: it is no JSON any more
    assert sum(r.count for r in reasons.read()) == 6
    path.write_text(json.dumps({"id": "x", "reason": "new"}) + "\n")  # a resumed run has cut the file
    assert [r.text for r in reasons.read()] == ["new"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "my run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("stage: finetune\nseed: 3\nmodel: {num_frames: 8, finetune_epochs: 2}\n")
    rows: list[dict] = []
    for step in range(1, 101):
        row = {"Step": step, "Loss (Raw)": 3 / step, "Loss": 3 / step, "Learning Rate": 1e-3, "Tokens/s": 1e4}
        row |= {"Learning Rate (default)": 1e-3, "Learning Rate (projector.*)": 2e-3, "Host Memory": 1.5, "MFU": 0.41}
        rows.append(row)
    rows.append({"Step": 100, "Validation Loss": 0.5, "Validation Loss (a)": 0.4, "Validation Loss (a, L=1)": 0.4})
    rows[-1] |= {"Validation Loss (b)": 0.6, "Validation Loss (b, L=1)": 0.5, "Validation Loss (b, L=2)": 0.7}
    rows.append({"Step": 100, "Evaluation accuracy (a)": 0.25, "Evaluation accuracy (b)": 0.5})
    text = "".join(json.dumps({f"Finetune/{key}": value for key, value in row.items()}) + "\n" for row in rows)
    (run_dir / "my run.jsonl").write_text(text)
    return run_dir


def test_a_page_tells_all_that_the_folder_holds(tmp_path: Path) -> None:
    run_dir = _run_dir(tmp_path)
    spike = {"step": 50, "loss": 9.0, "usual": 1.0, "micro_batches": [{"loss": 30.0, "ids": ["<bad>", "b"]}]}
    (run_dir / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    left = {"step": 60, "reason": "loss nan", "ids": ["c"]}
    (run_dir / "skipped-steps.jsonl").write_text(json.dumps(left) + "\n{half")
    (run_dir / "skipped.jsonl").write_text(json.dumps({"id": "d", "reason": "empty"}) + "\n")
    answer = {"step": 100, "data": "a", "id": "e", "question": "Q?", "prediction": "<b>", "reference": "R"}
    (run_dir / "answers.jsonl").write_text(json.dumps({**answer, "step": 1, "id": "old"}) + "\n" + json.dumps(answer))
    (run_dir / "run-state.json").write_text(
        json.dumps({"state": "failed", "step": 100, "total_steps": 200, "written": "now", "message": "<oops>"})
    )
    start = {"command": ["pretrain.py", "--trackers", '["jsonl"]'], "versions": {}}
    (run_dir / "reproducibility.json").write_text(json.dumps({"starts": [start]}))
    page = write_run_report(run_dir).read_text()
    assert html.unescape(page).count("pretrain.py --trackers '[\"jsonl\"]'") == 1  # as a shell takes it
    parser = _Tags()
    parser.feed(page)
    assert parser.open == [] and not re.search(r"https?:|url\(|<script", page)
    for part in (
        *("&lt;bad&gt;, b", "9.0000", "loss nan", "empty", "&lt;b&gt;", "&lt;oops&gt;", ">failed</span>"),
        *("step 100 of 200", "41.0%", "Validation Loss (b, L=2)", "accuracy (b)", "projector.*", 'class="mark"'),
    ):
        assert part in page, part
    assert "Validation Loss (a, L=1)" not in page and ">old<" not in page
    assert page.count("<svg") >= 6


def test_figures_at_the_top_are_means_of_the_newest_steps(tmp_path: Path) -> None:
    run_dir = tmp_path / "short"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("stage: finetune\n")
    rows = [{"Step": i + 1, "Tokens/s": 900.0 + 200 * (i % 2), "Data Wait Share": 0.4 * (i % 2)} for i in range(10)]
    text = "".join(json.dumps({f"Finetune/{key}": value for key, value in row.items()}) + "\n" for row in rows)
    (run_dir / "short.jsonl").write_text(text)
    page = re.sub(r"\s*<[^>]+>\s*", "|", write_run_report(run_dir).read_text())
    assert "|20.0%|" in page and "|1000|" in page.replace(",", "")


def test_parts_of_the_validation(tmp_path: Path) -> None:
    history = read_history(_run_dir(tmp_path))
    assert list(validation_parts(history)) == ["a", "b", "b, L=1", "b, L=2"]
    rows = {row.name: row for row in validation_rows(history)}
    assert rows["accuracy (b)"].best == 0.5 and not rows["accuracy (b)"].lower_is_better
    assert rows["Validation Loss"].lower_is_better


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        write_run_report(tmp_path)
