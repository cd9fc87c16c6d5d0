"""Arrows between rooms go one way, configurations import no torch, and every module imports without optional extras."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "prismatic"

# From the bottom up: a room may import rooms of a lower number, and itself.
LAYERS = {
    "registry": 0,
    "types": 0,
    "dist": 0,
    "conf": 1,
    "prompting": 2,
    "video": 2,
    "data": 3,
    "models": 3,
    "report": 3,
    "train": 4,
    "webvid": 4,
    "eval": 4,
    "export": 4,
    "build_data": 5,
    "build": 6,
    "load": 7,
    "features": 7,
    "preview": 7,
    "estimate": 4,
    "start": 4,
    "listing": 8,
    "check": 8,
    "ask": 8,
    "publish": 8,
    "demo": 9,
    "__init__": 9,
    "__main__": 9,
}
OPTIONAL = ("torchcodec", "flash_attn", "sacrebleu", "rouge_score", "faiss", "ray", "peft")
OPTIONAL += ("schedulefree", "torchao")


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_one_way(path: Path) -> None:
    room = _room(path)
    assert room in LAYERS, f"a new room '{room}' needs a place in LAYERS"
    for name in _imports(path):
        if not name.startswith("prismatic."):
            continue
        other = name.split(".")[1]
        allowed = other == room or LAYERS[other] < LAYERS[room] or room == "__init__"
        assert allowed, f"{path.relative_to(ROOT)} imports {name}: {room} may not import {other}"


def test_data_and_models_do_not_import_each_other() -> None:
    for path in MODULES:
        room = _room(path)
        other = {"data": "models", "models": "data"}.get(room)
        if other:
            assert not any(name.startswith(f"prismatic.{other}") for name in _imports(path)), path


def test_import_prismatic_and_conf_without_torch() -> None:
    code = "import sys, prismatic, prismatic.conf.run, prismatic.conf.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_and_training_import_no_compiler() -> None:
    """Seconds, which only a run that compiles has to pay for."""
    code = "import sys, prismatic; prismatic.load; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_imports_without_optional_packages() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.name != "__main__.py"
    ]
    code = (
        "import sys, importlib\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_load_is_a_function_whatever_was_imported_before() -> None:
    """Importing the module `prismatic.load` puts it in the place of the function of that name."""
    for first in ("", "import prismatic.load; ", "prismatic.load; "):
        code = f"import prismatic; {first}prismatic.load; prismatic.load('no/such.pt')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "CheckpointLoadError" in done.stderr, done.stderr[-500:]
