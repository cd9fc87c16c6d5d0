"""Ask a trained model about an image or a video: once with --media, otherwise in a conversation."""

from __future__ import annotations

import sys

from prismatic.conf import cli
from prismatic.conf.run import GenerateConfig


def main() -> int:
    """Load the model, then answer one question or open the prompt."""
    cfg = cli.parse(GenerateConfig)
    cfg.validate()

    from prismatic.ask import Conversation, load_for_asking
    from prismatic.video.sampling import SAMPLERS

    SAMPLERS.get(cfg.sampler)
    vlm = load_for_asking(cfg.model_path, num_frames=cfg.num_frames, hf_token=cfg.hf_token, device=cfg.device)
    conversation = Conversation(vlm, cfg)
    if cfg.media is not None:
        conversation.open(cfg.media)
        print(conversation.ask(cfg.prompt))
        return 0
    return conversation.interact(sys.stdin, sys.stdout)


if __name__ == "__main__":
    cli.run(main)
