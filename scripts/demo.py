"""Open a web page on which a trained model is asked about images and videos."""

from __future__ import annotations

from prismatic.conf import cli
from prismatic.conf.demo import DemoConfig


def main() -> int:
    """Take the port, load the model, then answer the page until Ctrl-C."""
    cfg = cli.parse(DemoConfig)
    cfg.validate()

    from prismatic.ask import load_for_asking
    from prismatic.demo.app import App
    from prismatic.demo.server import PageServer
    from prismatic.video.sampling import SAMPLERS

    SAMPLERS.get(cfg.sampler)
    server = PageServer(cfg.host, cfg.port)
    vlm = load_for_asking(cfg.model_path, num_frames=cfg.num_frames, hf_token=cfg.hf_token, device=cfg.device)
    app = App(vlm, cfg)
    if cfg.port not in (0, server.server_port):
        print(f"port {cfg.port} is taken; {server.server_port} is free")
    if not server.is_local:
        print("everybody who reaches this machine can ask the model, and see what lies below --media_root")
    print(f"{server.address} is the page; Ctrl-C ends it", flush=True)
    return server.serve(app)


if __name__ == "__main__":
    cli.run(main)
