"""Train and ask video-language models composed from registries.

Arrows between rooms go one way (tests/test_imports.py checks it):

    scripts > load > build > train | webvid | eval | export > data | models > video, prompting
        > conf | registry, types, dist
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prismatic.load import available_model_ids, available_model_ids_and_names, get_model_description, load

__version__ = "0.1.0"

__all__ = ["available_model_ids", "available_model_ids_and_names", "get_model_description", "load"]


def __getattr__(name: str) -> Any:
    """Loads the public functions at first use: `import prismatic` alone does not import torch."""
    if name in __all__:
        return getattr(importlib.import_module("prismatic.load"), name)
    raise AttributeError(f"module 'prismatic' has no attribute '{name}'")
