"""Registry: look-up, refusal of duplicates, suggestions, discovery of a package's modules, plug-ins."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismatic.registry import Registry, UnknownIdError, import_plugins


def _registry() -> Registry[int]:
    registry: Registry[int] = Registry("number", flag="--number")
    registry.add("one", 1)
    registry.register("two", "zwei")(2)
    return registry


def test_get_names_and_aliases() -> None:
    registry = _registry()
    assert registry.get("zwei") == 2
    assert registry.names() == ["one", "two", "zwei"]
    assert "one" in registry and "three" not in registry and len(registry) == 3


def test_duplicate_id_is_refused() -> None:
    registry = _registry()
    with pytest.raises(ValueError, match="'one' is registered twice"):
        registry.add("one", 11)
    assert registry.get("one") == 1


def test_unknown_id_suggests_and_names_the_flag() -> None:
    with pytest.raises(UnknownIdError, match=r"unknown number 'ones' for --number; did you mean 'one'\?"):
        _registry().get("ones")


def test_unknown_id_without_a_near_one_lists_all() -> None:
    with pytest.raises(UnknownIdError, match=r"\(known: one, two, zwei\)"):
        _registry().get("xxxxxxxx")


def test_package_modules_are_imported_at_first_look_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "zoo_for_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from prismatic.registry import Registry\nZOO = Registry('animal', package=__name__)\n"
    )
    (package / "cat.py").write_text("from zoo_for_test import ZOO\nZOO.add('cat', 'meow')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    assert importlib.import_module("zoo_for_test").ZOO.get("cat") == "meow"


def test_plugins_are_imported_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_plugin_for_test.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_plugins("my_plugin_for_test, ")
    import sys

    assert sys.modules["my_plugin_for_test"].LOADED
    with pytest.raises(ValueError, match="--plugins: module 'not_there_at_all' could not be imported"):
        import_plugins("not_there_at_all")
