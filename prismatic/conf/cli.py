"""From a command line to a configuration, and from an error to one clear line.

Owns what a person sees of draccus: a `--help` without walls of ids, suggestions for misspelt flags and ids, and the
rule that a script ends on bad input with one line and a non-zero exit code.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import draccus.argparsing
import yaml
from draccus.help_formatter import SimpleHelpFormatter
from draccus.utils import DraccusException

from prismatic.conf.help import choice_fields, comments_as_help, one_of_each_kind, teach
from prismatic.registry import import_plugins, unknown_id_message

C = TypeVar("C")

TRACEBACK_VARIABLE = "PRISMATIC_TRACEBACK"
"""Set it to 1 to see the traceback behind an error line."""


ERROR_FILE_VARIABLE = "PRISMATIC_ERROR_FILE"
"""A file that error lines are added to as well: under torchrun they drown in its own report."""

USAGE = "%(prog)s [--config_path FILE] [--FLAG VALUE ...]"


class CommandLineError(ValueError):
    """The command line cannot be understood; the text says what to type."""


class _Formatter(SimpleHelpFormatter):
    """Long lists of ids are named, not printed: `python -m prismatic list` prints them."""

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        return super()._format_usage(
            usage or "%(prog)s [--config_path FILE] [--FLAG VALUE ...]", actions, groups, prefix
        )

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        if action.choices is not None and len(list(action.choices)) > 12:
            return lambda size: ("ID",) * size
        return super()._metavar_formatter(action, default_metavar)


def parse(config_class: type[C], args: Sequence[str] | None = None, prog: str | None = None) -> C:
    """The configuration that the arguments describe (default: sys.argv).

    `--plugins` is imported first, so that ids registered by plug-ins can be chosen. `--help` prints and exits.
    Raises CommandLineError for an unknown flag, id or value.
    """
    argv = list(sys.argv[1:] if args is None else args)
    plugins = _value_of(argv, "--plugins")
    if plugins:
        import_plugins(plugins)
    choices = choice_fields(config_class)
    chosen = {name: _value_of(argv, f"--{name}.type") for name in choices}
    with comments_as_help(), one_of_each_kind(config_class, chosen):
        parser = draccus.argparsing.ArgumentParser(config_class, formatter_class=_Formatter, prog=prog)
    for name, base in choices.items():
        parser.parser._option_string_actions[f"--{name}.type"].choices = list(base.get_known_choices())
    _check_ids(parser.parser, argv)
    _check_file(_value_of(argv, "--config_path"))
    if "--help" in argv or "-h" in argv:
        teach(parser.parser, config_class, chosen)
    parser.parser.error = lambda message: _explain(parser.parser, argv, message)
    try:
        return parser.parse_args(_quote_strings(parser.parser, argv))
    except (DraccusException, yaml.YAMLError, FileNotFoundError, IsADirectoryError) as error:
        raise CommandLineError(_explained(" ".join(str(error).split()), argv)) from error


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a script's main and exit with its code; bad input (ValueError, OSError) is one line on stderr and code 2."""
    # Read by OpenMP when torch is imported, which scripts do later. Waiting threads that spin make a CPU run ten times
    # slower as soon as anything else wants the cores (decoding workers, for one); when all is quiet it costs nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = main() or 0
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        # A command line that no process understands is reported once, not once per process.
        if rank == "0" or not isinstance(error, CommandLineError):
            prefix = f"[rank {rank}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
            sys.stderr.write(f"{prefix}error: {error}\n")
            _keep(f"{prefix}error: {error}\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 128 + signal.SIGINT
    sys.exit(code)


def _keep(text: str) -> None:
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, which is the one that counts."""
    value = None
    for position, arg in enumerate(argv):
        if arg == flag and position + 1 < len(argv):
            value = argv[position + 1]
        elif arg.startswith(flag + "="):
            value = arg[len(flag) + 1 :]
    return value


def _check_file(path: str | None) -> None:
    """Raises CommandLineError when `--config_path` names no file of settings."""
    if path is None or path.endswith(".toml"):
        return
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CommandLineError(f"--config_path {path} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CommandLineError(f"--config_path {path} is no YAML or JSON: {reason}") from error
    if settings is not None and not isinstance(settings, dict):
        raise CommandLineError(
            f"--config_path {path} must hold settings by name (`seed: 7`), not a {type(settings).__name__}"
        )


def _quote_strings(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Quote the values of string fields: draccus reads them as YAML, where `What: a cat?` is a mapping and 007 is 7."""
    quoted: list[str] = []
    flag = ""
    for arg in argv:
        name, equals, value = arg.partition("=")
        if _takes_string(parser, flag):
            arg = _quote(arg)
        elif equals and _takes_string(parser, name):
            arg = f"{name}={_quote(value)}"
        flag = "" if flag else arg
        quoted.append(arg)
    return quoted


def _quote(value: str) -> str:
    return value if value in ("null", "") else json.dumps(value)


def _takes_string(parser: argparse.ArgumentParser, flag: str) -> bool:
    action = parser._option_string_actions.get(flag)
    return action is not None and action.choices is None and action.type in (str, str | None)


def _check_ids(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    for flag, action in parser._option_string_actions.items():
        value = _value_of(argv, flag)
        if action.choices is not None and value is not None and value not in [str(c) for c in action.choices]:
            kind = {"--model.type": "model", "--dataset.type": "dataset", "--val_dataset.type": "dataset"}.get(
                flag, "value"
            )
            raise CommandLineError(unknown_id_message(kind, value, [str(c) for c in action.choices], flag))


def _explain(parser: argparse.ArgumentParser, argv: Sequence[str], message: str) -> NoReturn:
    known = list(parser._option_string_actions)
    unknown = [a.split("=")[0] for a in argv if a.startswith("--") and a.split("=")[0] not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=2, cutoff=0.6)
        same_name = [flag for flag in known if flag.split(".")[-1] == unknown[0].lstrip("-").split(".")[-1]]
        hints = list(dict.fromkeys(same_name + near))[:3]
        text = f"unknown flag {unknown[0]}"
        text += f"; did you mean {' or '.join(hints)}?" if hints else "; --help lists all flags"
        raise CommandLineError(text)
    raise CommandLineError(message + _bracket_hint(argv))


def _explained(text: str, argv: Sequence[str]) -> str:
    """What draccus says of a value, with how such values are written."""
    mapping = re.match(r"`([^`]+)`: Failed when parsing value='(.*)' into field .* of type [dD]ict\[", text)
    if mapping:
        flag, value = mapping.groups()
        return f"""--{flag} takes values by name, in braces: --{flag} '{{"NAME": VALUE}}', got {value}"""
    field = re.match(r"`([^`]+?)(\.\d+)?`", text)  # without the number of an entry
    return text + _bracket_hint([f"--{field[1]}"] if field else argv)


def _bracket_hint(argv: Sequence[str]) -> str:
    listed = ("components", "trackers", "augmentations", "target_modules", "curriculum", "freeze")
    if any(arg.startswith("--") and arg.split("=")[0].endswith(listed) for arg in argv):
        return """ (lists are written in brackets and quotes, for example --trackers '["jsonl"]')"""
    return ""
