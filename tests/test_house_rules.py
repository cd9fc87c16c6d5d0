"""Rules of the house that no linter knows: file sizes, no paths of one machine, scripts that only parse and call."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("prismatic/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/**/*.py")])
MAX_LINES, MAX_SCRIPT_LINES, MAX_TRACKED_KIB = 350, 60, 512


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_keeps_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    limit = MAX_SCRIPT_LINES if path.parent.name == "scripts" else MAX_LINES
    assert len(lines) <= limit, f"{len(lines)} lines; at most {limit}: does the file hold one idea?"
    assert not re.search(r"[\"'(= ](/home|/root|/mnt|/tmp|/work|/opt|/vision|/data)/\w", text), "a path of one machine"
    assert text.startswith('"""'), "a module docstring says what the file owns"


def test_top_level_is_as_designed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    if tracked == [""]:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked if name}
    allowed = {
        *(
            "prismatic",
            "scripts",
            "experiment_scripts",
            "tests",
            "benchmarks",
            "docs",
            "pyproject.toml",
            "run_pretrain.sh",
        ),
        *("Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
        *(".ci", ".gitignore", ".pre-commit-config.yaml"),
    }
    assert top <= allowed, f"unexpected at the top level: {sorted(top - allowed)}"
    large = [n for n in tracked if n and (ROOT / n).is_file() and (ROOT / n).stat().st_size > MAX_TRACKED_KIB * 1024]
    assert not large, f"too large for git: {large}"
