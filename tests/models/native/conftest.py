"""A tiny checkpoint folder of each family: official model, tokenizer, processor, as save_pretrained writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.native.folders import FOLDERS, write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of a tiny checkpoint, written once."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = write_folder(family, tmp_path_factory.mktemp(family))
        return made[family]

    return find


@pytest.fixture(scope="session")
def native(folder: Callable[[str], Path]) -> Callable[..., Any]:
    """family -> NativeVLM of that folder, 4 frames a video."""
    from prismatic.models.native.build import NativeSource, build_native

    def build(family: str, **options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            return build_native(NativeSource(str(folder(family))), **{"num_frames": 4, **options}).eval()

    return build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `native_family` runs for each of them."""
    if "native_family" in metafunc.fixturenames:
        metafunc.parametrize("native_family", FOLDERS)
