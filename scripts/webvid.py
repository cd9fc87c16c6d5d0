"""From a heap of videos with captions to woven examples: `python scripts/webvid.py --help`."""

import importlib
import logging
import sys

from prismatic.conf import cli
from prismatic.conf.webvid import CatalogConfig, ClusterConfig, WeaveConfig
from prismatic.conf.webvid_media import EmbedConfig, ExtractConfig, SplitConfig
from prismatic.conf.webvid_report import ReportConfig
from prismatic.conf.webvid_rows import ROW_SUBCOMMANDS
from prismatic.registry import unknown_id_message

# subcommand: (its configuration, where its function is)
SUBCOMMANDS = {
    "catalog": (CatalogConfig, "prismatic.webvid.catalog"),
    "extract": (ExtractConfig, "prismatic.webvid.extract"),
    "split": (SplitConfig, "prismatic.webvid.split"),
    "embed": (EmbedConfig, "prismatic.webvid.embed"),
    "cluster": (ClusterConfig, "prismatic.webvid.cluster"),
    "weave": (WeaveConfig, "prismatic.webvid.weave"),
    **ROW_SUBCOMMANDS,
    "report": (ReportConfig, "prismatic.webvid.report"),
}


def _usage() -> str:
    lines = [
        f"  {name:10}{(config.__doc__ or '').strip().splitlines()[0]}" for name, (config, _) in SUBCOMMANDS.items()
    ]
    text = [
        "usage: webvid.py SUBCOMMAND [--FLAG VALUE ...]",
        "",
        *lines,
        "",
        "webvid.py SUBCOMMAND --help lists its flags",
    ]
    return "\n".join(text)


def main() -> None:
    """Parse the arguments of the subcommand and call its function."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name not in SUBCOMMANDS:
        raise cli.CommandLineError(unknown_id_message("subcommand", name, SUBCOMMANDS, lister="webvid.py --help"))
    config, module = SUBCOMMANDS[name]
    cfg = cli.parse(config, sys.argv[2:], prog=f"webvid.py {name}")
    print(getattr(importlib.import_module(module), name)(cfg))


if __name__ == "__main__":
    cli.run(main)
