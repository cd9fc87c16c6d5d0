"""Fetch or render a dataset: `python scripts/preprocess.py --dataset_id moving-shapes --root_dir data`."""

import logging

from prismatic.conf import cli
from prismatic.conf.run import PreprocessConfig
from prismatic.data.download import prepare_dataset


def main() -> None:
    """Parse and call."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = cli.parse(PreprocessConfig)
    print(prepare_dataset(cfg.dataset_id, cfg.root_dir, seed=cfg.seed, num_workers=cfg.num_workers))


if __name__ == "__main__":
    cli.run(main)
