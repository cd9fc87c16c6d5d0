"""`scripts/generate.py`: one question, and a conversation at the prompt."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scripts.conftest import Script


def _clip(data_root: Path) -> str:
    rows = json.loads((data_root / "moving-shapes" / "val.json").read_text())
    return str(data_root / "moving-shapes" / rows[0]["videos"][0])


def test_one_question(trained: Path, data_root: Path, call: Script) -> None:
    import prismatic

    clip = _clip(data_root)
    done = call(
        "generate.py",
        *("--model_path", str(trained), "--media", clip, "--prompt", "What moves: a {shape}?"),
        *("--max_new_tokens", "8"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    vlm = prismatic.load(trained, num_frames=4)
    builder = vlm.get_prompt_builder()
    builder.add_turn(role="human", message="What moves: a {shape}?")
    assert done.stdout.strip() == vlm.generate(clip, builder.get_prompt(), max_new_tokens=8, do_sample=False).strip()


def test_conversation(trained: Path, data_root: Path, call: Script) -> None:
    clip = _clip(data_root)
    lines = ["What?", "nowhere.mp4", clip, "What moves?", "And then?", "n", "p Be brief.", "i missing.png", "h", "q"]
    done = call("generate.py", "--model_path", str(trained), "--max_new_tokens", "6", text="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "error: no image or video yet" in done.stdout
    assert f"looking at {clip}" in done.stdout
    assert "there is no image, video or frame folder at missing.png" in done.stdout
    assert done.stdout.count(f"[{Path(clip).name}] > ") == 7


def test_end_of_input_ends_the_conversation(trained: Path, call: Script) -> None:
    done = call("generate.py", "--model_path", str(trained), text="")
    assert done.returncode == 0, done.stderr[-2000:]
