"""One registry for everything that is picked by id: backbones, projectors, aggregators, samplers, decoders, templates.

Owns names and look-up. Does not own construction: an entry is whatever was registered (a function, a class, or a
frozen dataclass row), and it is never changed by a look-up.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownIdError(ValueError):
    """The id asked for is not registered. The text lists near names and how to see all of them."""


class Registry(Generic[T]):
    """Maps ids to entries of one kind.

    Args:
        kind: what the entries are, in the user's words ("vision backbone"); used in error texts.
        package: dotted name of a package whose modules register entries when imported. They are imported at the first
            look-up, so a new file in that package is enough to add an entry.
        flag: the command-line flag that takes these ids, named in error texts.
    """

    def __init__(self, kind: str, *, package: str | None = None, flag: str | None = None) -> None:
        self.kind = kind
        self.flag = flag
        self._package = package
        self._entries: dict[str, T] = {}

    def register(self, *ids: str) -> Callable[[T], T]:
        """Decorator that files an entry under one or more ids. Raises ValueError when an id is taken."""

        def file(entry: T) -> T:
            for name in ids:
                self.add(name, entry)
            return entry

        return file

    def add(self, name: str, entry: T) -> None:
        """File `entry` under `name`. Raises ValueError when the id is taken by another entry."""
        if name in self._entries and self._entries[name] is not entry:
            raise ValueError(f"{self.kind} id '{name}' is registered twice: {self._entries[name]!r} and {entry!r}")
        self._entries[name] = entry

    def get(self, name: str, flag: str | None = None) -> T:
        """The entry of an id. Raises UnknownIdError (a ValueError) with the nearest ids. flag: that the id came from,
        where it is not the registry's own.
        """
        self._discover()
        if name not in self._entries:
            raise UnknownIdError(unknown_id_message(self.kind, name, self._entries, flag or self.flag))
        return self._entries[name]

    def names(self) -> list[str]:
        """All ids, in the order of registration."""
        self._discover()
        return list(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """All (id, entry) pairs, in the order of registration."""
        self._discover()
        return iter(list(self._entries.items()))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)

    def _discover(self) -> None:
        if self._package is None:
            return
        # Cleared first: a module of the package may look something up while it is being imported.
        package_name, self._package = self._package, None
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package_name}.{module.name}")


def unknown_id_message(
    kind: str, name: str, known: Iterable[str], flag: str | None = None, lister: str = "python -m prismatic list"
) -> str:
    """The text of an unknown-id error: nearest ids first, all ids when they are few, otherwise the command `lister`."""
    ids = list(known)
    near = difflib.get_close_matches(name, ids, n=3, cutoff=0.5) or [i for i in ids if name.lower() in i.lower()][:3]
    text = f"unknown {kind} '{name}'"
    if flag:
        text += f" for {flag}"
    if near:
        text += "; did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    if len(ids) <= 12:
        return f"{text} (known: {', '.join(ids)})"
    return f"{text} ({len(ids)} are known; `{lister}` prints them)"


def import_plugins(modules: str) -> None:
    """Import the user's own modules (`--plugins a.b,c.d`), so that their entries register.

    Raises ValueError when a module is not importable.
    """
    for name in filter(None, (part.strip() for part in modules.split(","))):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--plugins: module '{name}' could not be imported ({error}); it must be on PYTHONPATH, for example "
                f"`PYTHONPATH=. python scripts/pretrain.py --plugins {name} ...`"
            ) from error
