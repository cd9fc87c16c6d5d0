"""Fetch or render a dataset: `python scripts/preprocess.py --dataset_id moving-shapes --root_dir data`.

With `--cache_features FOLDER` encode a dataset's clips once, for all training to come. `--help` explains every flag.
"""

import logging

from prismatic.conf import cli
from prismatic.conf.features import cache_folder
from prismatic.conf.run import PreprocessConfig


def main() -> None:
    """Parse and call."""
    cfg = cli.parse(PreprocessConfig)
    cfg.validate()
    if cache_folder(cfg.cache_features, cfg.dataset) is None:
        from prismatic.data.download import prepare_dataset

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        print(prepare_dataset(cfg.dataset_id, cfg.root_dir, seed=cfg.seed, num_workers=cfg.num_workers))
        return

    from prismatic import dist
    from prismatic.features import cache_features

    world = dist.start(cfg.device)
    dist.setup_logging(world)
    failed = True
    try:
        summary = cache_features(cfg, world)
        if dist.rank_zero():
            print(summary)
        failed = False
    finally:
        dist.stop(failed=failed)


if __name__ == "__main__":
    cli.run(main)
