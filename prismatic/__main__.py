"""`python -m prismatic list [KIND]`: the ids there are, in a table."""

from __future__ import annotations

import sys

from prismatic.conf import cli
from prismatic.listing import KINDS, text_of
from prismatic.registry import unknown_id_message

USAGE = "usage: python -m prismatic list [KIND] [--plugins a.b,c.d]"


def main() -> int:
    """Print the tables asked for; all of them without a KIND."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(f"{USAGE}\nKIND: {', '.join(KINDS)}; all without one")
        return 0
    if args[0] != "list":
        raise ValueError(f"unknown command '{args[0]}'; {USAGE}")
    args = args[1:]
    if "--plugins" in args:
        position = args.index("--plugins")
        cli.import_plugins(",".join(args[position + 1 : position + 2]))
        del args[position : position + 2]
    for kind in args or list(KINDS):
        if kind not in KINDS:
            raise ValueError(unknown_id_message("kind", kind, KINDS))
        print(text_of(KINDS[kind]()))
        print()
    return 0


if __name__ == "__main__":
    cli.run(main)
