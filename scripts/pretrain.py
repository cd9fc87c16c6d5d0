"""Train a video-language model. `--help` explains every flag.

torchrun --standalone --nproc-per-node K scripts/pretrain.py --model.type ID --dataset.type ID ...; without torchrun it
is one process.
"""

from __future__ import annotations

import os

from prismatic.conf import cli
from prismatic.conf.run import PretrainConfig
from prismatic.data.annotation_files import require_files


def main() -> int:
    """Parse, build, fit. After a signal it saves first; SIGTERM is no failure (0), Ctrl-C is 130."""
    cfg = cli.parse(PretrainConfig)
    cfg.validate(world_size=int(os.environ.get("WORLD_SIZE", "1")))
    for data in filter(None, (cfg.dataset, cfg.val_dataset)):
        require_files(data.components(cfg.stage)[0])

    from prismatic import dist
    from prismatic.build import build_trainer
    from prismatic.preview import describe
    from prismatic.train.signals import EXIT_CODES

    world = dist.start(cfg.device)
    dist.setup_logging(world)
    trainer, failed = None, True
    try:
        if cfg.dry_run:
            print(describe(cfg))
            failed = False
            return 0
        trainer = build_trainer(cfg, world)
        stop = trainer.fit()
        failed = False
        return EXIT_CODES[stop] if stop is not None else 0
    finally:
        holders = [trainer] if trainer is not None else []
        del trainer
        dist.stop(*holders, failed=failed)


if __name__ == "__main__":
    cli.run(main)
