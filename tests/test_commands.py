"""Documents are tests: the real dataclasses parse every command in the README, the docs and the shell scripts."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from prismatic.conf import cli
from prismatic.conf.demo import DemoConfig
from prismatic.conf.run import EvaluateConfig, ExportConfig, GenerateConfig, PreprocessConfig, PretrainConfig

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "scripts/pretrain.py": PretrainConfig,
    "scripts/generate.py": GenerateConfig,
    "scripts/evaluate.py": EvaluateConfig,
    "scripts/preprocess.py": PreprocessConfig,
    "scripts/export.py": ExportConfig,
    "scripts/demo.py": DemoConfig,
}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = [ROOT / "run_pretrain.sh", *sorted((ROOT / "experiment_scripts").glob("*.sh"))]
# What the variables of the shell scripts hold, where a number is parsed.
VALUES = {"NGPU": "1", "frames": "16", "batch": "2", "L": "2", "T": "16", "STEPS": "10"}


def _substitute(match: re.Match[str]) -> str:
    name = re.match(r"\w+", match.group(1) or match.group(2))
    return VALUES.get(name.group(0), "value") if name else "value"


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each call of a script in a shell text, variables filled in."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        match = re.search(r"(scripts/\w+\.py)\s(.*)$", line)
        if not match or "python -c" in line:
            continue
        rest = match.group(2).replace('"${rope[@]}"', "--model.rope_scaling_factor 3.0").replace('"$@"', "")
        if "$(" in line:
            rest = rest.rsplit(")", 1)[0]
        rest = re.sub(r"\$\{([^}]*)\}|\$(\w+)", _substitute, rest)
        found.append((match.group(1), shlex.split(rest)))
    return found


def _code_blocks(markdown: str) -> str:
    return "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", markdown, flags=re.DOTALL))


def _all() -> list[tuple[str, str, list[str]]]:
    cases = []
    for path in [*DOCUMENTS, *SHELL]:
        text = path.read_text(encoding="utf-8")
        for script, args in _commands(text if path.suffix == ".sh" else _code_blocks(text)):
            cases.append((str(path.relative_to(ROOT)), script, args))
    return cases


@pytest.mark.parametrize(("document", "script", "args"), _all())
def test_command_parses(document: str, script: str, args: list[str]) -> None:
    assert (ROOT / script).is_file(), f"{document} calls {script}, which is not there"
    if script == "scripts/webvid.py":
        subcommands = runpy.run_path(str(ROOT / script))["SUBCOMMANDS"]
        assert args[0] in subcommands, f"{document}: scripts/webvid.py has no '{args[0]}'"
        cli.parse(subcommands[args[0]][0], args[1:])
    else:
        cli.parse(CONFIGS[script], args)


def test_there_are_commands_to_check() -> None:
    assert {script for _, script, _ in _all()} == {*CONFIGS, "scripts/webvid.py"}


@pytest.mark.parametrize("path", SHELL, ids=lambda p: p.name)
def test_shell_scripts_are_recipes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text and '"$@"' in text
    assert path.stat().st_mode & 0o111, "not executable"


def test_links_in_documents_exist() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
