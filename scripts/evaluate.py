"""Answer every row of a dataset with a trained model and score the answers. `--help` explains every flag."""

from __future__ import annotations

import logging

from prismatic.conf import cli
from prismatic.conf.run import EvaluateConfig
from prismatic.data.annotation_files import require_files


def main() -> None:
    """Check the rows, load the model, answer, score."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = cli.parse(EvaluateConfig)
    cfg.validate()
    require_files(cfg.dataset.components("finetune")[0])

    from prismatic.ask import load_for_asking
    from prismatic.eval.evaluate import evaluate, rows_to_answer
    from prismatic.eval.report import summary

    records = rows_to_answer(cfg)
    vlm = load_for_asking(cfg.model_path, num_frames=cfg.num_frames, hf_token=cfg.hf_token, device=cfg.device)
    metrics = evaluate(cfg, vlm, records)
    print(summary(metrics))
    print(f"{cfg.output_dir}: metrics.json, predictions.jsonl, skipped.jsonl")


if __name__ == "__main__":
    cli.run(main)
