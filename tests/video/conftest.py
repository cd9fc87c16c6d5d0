"""Video files of every kind, written once per run and only when a test asks for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.video.files import KINDS


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind (a key of KINDS) -> path of such a file."""
    folder = tmp_path_factory.mktemp("videos")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = Path(KINDS[kind](folder))
        return made[kind]

    return get
