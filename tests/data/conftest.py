"""Annotation files are read whole when small, row by row when large: their tests run with both."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismatic.data import row_index


@pytest.fixture(params=["in memory", "indexed"])
def root(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A media folder; every test runs with files that are read whole, and with files that are read row by row."""
    if request.param == "indexed":
        monkeypatch.setattr(row_index, "INDEXED_FROM", 1)
    media = tmp_path / "media"
    media.mkdir()
    return media
