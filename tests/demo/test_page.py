"""The page's own files: they fit together, and they are installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from prismatic.demo.answers import _KINDS
from prismatic.demo.app import App
from prismatic.demo.server import STATIC

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "prismatic" / "demo"
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js"))


def test_all_files_are_served_and_packaged() -> None:
    files = {path.name for path in PAGE.iterdir() if path.is_file() and path.suffix != ".py"}
    assert files == {name for name, _ in STATIC.values()}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path.name for pattern in patterns["prismatic.demo"] for path in PAGE.glob(pattern)}
    assert packaged == files


def test_scripts_and_page_speak_of_the_same_elements_and_settings() -> None:
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPTS)) <= ids
    settings = re.search(r"const SETTINGS = \[(.*?)\]", SCRIPTS)[1]
    assert set(re.findall(r'"(\w+)"', settings)) == set(_KINDS) <= ids


def test_scripts_ask_for_what_there_is(app: App) -> None:
    called = set(re.findall(r'\b(?:post|ask|stream)\("(\w+)"', SCRIPTS)) | {"leave"}
    assert {f"POST /api/{name}" for name in called - {"enter"}} == set(app.requests)


def test_nothing_is_made_into_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", SCRIPTS)
