"""What `--help` says of the fields behind a choice (`--model.*`, `--dataset.*`).

A field's help is the comment beside it. Presets are made from rows and have no source of their own, so their help is
taken from the class that they vary, and the defaults shown are those of the preset that the command line names.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import io
import linecache
import re
import sys
import tokenize
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from draccus.choice_types import ChoiceType
from draccus.utils import is_choice_type
from draccus.wrappers import docstring

_FOR_LINTERS = re.compile(r"^#\s*(noqa: [A-Z]+\d+\s*)?")  # What stands in front of a comment for people


def choice_fields(config_class: type) -> dict[str, type[ChoiceType]]:
    """Fields of a configuration whose class is picked by an id, with the class that lists the ids."""
    hints = typing.get_type_hints(config_class)
    found = {}
    for field in dataclasses.fields(config_class):
        for hint in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(hint, type) and is_choice_type(hint):
                found[field.name] = hint
    return found


def teach(parser: argparse.ArgumentParser, config_class: type, chosen: dict[str, str | None]) -> None:
    """Put each field's comment beside its flag, and show one group of flags for each choice with its preset's values.

    chosen: for each choice field the id on the command line, or None.
    """
    comments = field_comments(config_class)
    for action in parser._actions:
        if action.dest in comments:
            action.help = comments[action.dest].replace("%", "%%")
    for name, base in choice_fields(config_class).items():
        choice = chosen.get(name) or base.default_choice_name()
        if choice not in base.get_known_choices():
            continue
        preset = base.get_choice_class(choice)()
        about = comments.get(name) or " ".join((base.__doc__ or "").split())
        groups = [group for group in parser._action_groups if f"['{name}']" in (group.title or "")]
        # draccus adds a group for each preset: one for the choice itself, the chosen preset's, and all the others.
        kept = [
            group for group in groups if group.title.split(" [")[0] in (base.__qualname__, type(preset).__qualname__)
        ]
        parser._action_groups = [g for g in parser._action_groups if g not in groups or g in kept]
        kept[0].title, kept[0].description = name, about
        kept[1].title, kept[1].description = f"{name}: fields, with the values of --{name}.type {choice}", None
        for action in [*kept[0]._group_actions, *kept[1]._group_actions]:
            _explain_field(action, preset, action.dest.split(".", 1)[1], choice)
        _teach_nested(parser, name, preset)


def _teach_nested(parser: argparse.ArgumentParser, name: str, preset: Any) -> None:
    """One group for each dataclass inside the preset, where draccus makes one for each preset, and no file flags."""
    nested = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    for field, value in nested.items():
        if not dataclasses.is_dataclass(value):
            continue
        flag = f"{name}.{field}"
        *others, last = [group for group in parser._action_groups if f"['{flag}']" in (group.title or "")]
        parser._action_groups = [group for group in parser._action_groups if group not in others]
        last.title, last.description = flag, " ".join((type(value).__doc__ or "").split())
        for action in last._group_actions:
            _explain_field(action, value, action.dest.rsplit(".", 1)[1], "")
        for group in parser._action_groups:
            group._group_actions = [action for action in group._group_actions if action.dest not in (field, flag)]


def _explain_field(action: argparse.Action, preset: Any, field: str, choice: str) -> None:
    if field == "type":
        action.help, action.default = "One of the ids that `python -m prismatic list` prints", choice
        return
    docs = (field_comments(cls).get(field) for cls in type(preset).__mro__)
    action.help = next(filter(None, docs), field).replace("%", "%%")
    value = getattr(preset, field)
    # ArgumentDefaultsHelpFormatter would print the repr of a Path and nothing for an empty string.
    action.default = [str(v) for v in value] if isinstance(value, tuple) else str(value)


@contextmanager
def one_of_each_kind(config_class: type, chosen: dict[str, str | None]) -> Iterator[None]:
    """Inside, draccus sees one id of those that have the same fields (as nearly all presets do), and the flags are the
    same: for each of 60 presets it took longer than everything else a script does before it starts.

    chosen: as `teach` has it; these are always seen, and last, so that their types count.
    """
    wanted: dict[type[ChoiceType], list[str]] = {}
    for name, base in choice_fields(config_class).items():
        wanted.setdefault(base, []).append(chosen.get(name) or base.default_choice_name() or "")
    for base, ids in wanted.items():
        known = base.get_known_choices()
        kinds = {tuple((f.name, f.type) for f in dataclasses.fields(cls)): id_ for id_, cls in known.items()}
        names = dict.fromkeys([*kinds.values(), *ids])
        seen = {id_: known[id_] for id_ in sorted(names, key=ids.__contains__) if id_ in known}
        base.get_known_choices = lambda seen=seen: seen
    try:
        yield
    finally:
        for base in wanted:
            del base.get_known_choices


def field_comments(cls: type) -> dict[str, str]:
    """The comment on the last line of each annotated field of a class body; empty where there is no source."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    return _comments_in(file).get(cls.__qualname__, {}) if file else {}


@lru_cache
def _comments_in(file: str) -> dict[str, dict[str, str]]:
    """Those of all classes at the top of a file, by name. A file is read once: for each class, as `inspect` does it,
    it took longer than everything else about `--help`.
    """
    source = "".join(linecache.getlines(file))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: _FOR_LINTERS.sub("", t.string) for t in tokens if t.type == tokenize.COMMENT}
    return {
        found.name: {
            node.target.id: comments[node.end_lineno]
            for node in found.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in comments
        }
        for found in ast.parse(source).body
        if isinstance(found, ast.ClassDef)
    }


@contextmanager
def comments_as_help() -> Iterator[None]:
    """Inside, draccus takes help texts from `field_comments` instead of reading the source of every preset itself."""

    def comment(cls: type, field: str) -> docstring.AttributeDocString:
        found = (field_comments(base).get(field) for base in cls.__mro__)
        return docstring.AttributeDocString(comment_inline=next(filter(None, found), ""))

    theirs = docstring.get_attribute_docstring
    docstring.get_attribute_docstring = comment
    try:
        yield
    finally:
        docstring.get_attribute_docstring = theirs
