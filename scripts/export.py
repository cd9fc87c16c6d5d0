"""Take a trained model out: a Transformers folder, or the older layout. `--help` explains every flag."""

from __future__ import annotations

import logging

from prismatic.conf import cli
from prismatic.conf.run import ExportConfig


def main() -> None:
    """Parse and call."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.WARNING)
    cfg = cli.parse(ExportConfig)
    cfg.validate()

    from prismatic.publish import export

    print(export(cfg))


if __name__ == "__main__":
    cli.run(main)
