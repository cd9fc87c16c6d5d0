"""The configuration of `scripts/demo.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prismatic.conf.run import TOKEN_GIVEN, GenerateConfig, looks_like_token


@dataclass
class DemoConfig:
    """Open a web page on which a trained model is asked about images and videos.

    Example: python scripts/demo.py --model_path runs/my-run --media_root data/my-videos/clips
    The page needs no network. Only this machine reaches it, unless --host says otherwise.
    """

    model_path: str = ""  # Run folder, checkpoint file, or model id
    media_root: Path | None = None  # Visitors may also choose what lies below this folder; none: only what they upload
    num_frames: int | None = None  # Frames taken from a video, until changed on the page; default: as trained
    sampler: str = "uniform"  # Which frames are taken, until changed on the page; `python -m prismatic list sampler`
    system_prompt: str | None = None  # Replaces the template's system prompt
    do_sample: bool = False  # Sample instead of taking the likeliest token, until changed on the page
    temperature: float = 1.0  # Sampling temperature, until changed on the page
    max_new_tokens: int = 256  # Longest answer in tokens, until changed on the page
    host: str = "127.0.0.1"  # Address to listen on; 0.0.0.0 lets everybody in who reaches this machine
    port: int = 7860  # Where to listen; when taken, a free one is chosen, as with 0
    max_upload_mb: int = 512  # Largest file that may be uploaded, MB; uploads are deleted at the end
    max_visitors: int = 32  # Conversations at a time; one more ends the one that has been silent for longest
    device: str = "auto"  # auto: a GPU where there is one; cpu; cuda
    hf_token: str = ".hf_token"  # Token for gated models: a file, or the name of an environment variable
    plugins: str = ""  # Your own modules to import before ids are resolved, comma-separated

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if not self.model_path:
            raise ValueError("--model_path is needed: a run folder, a checkpoint file, or a model id")
        if self.media_root is not None and not self.media_root.is_dir():
            raise ValueError(f"--media_root {self.media_root} is no folder")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be 0 to 65535, got {self.port}")
        for name in ("max_upload_mb", "max_visitors"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if looks_like_token(self.hf_token):
            raise ValueError(TOKEN_GIVEN)
        self.asking(self.num_frames).validate()

    def asking(self, num_frames: int | None) -> GenerateConfig:
        """The settings that a conversation begins with. num_frames: of a video."""
        return GenerateConfig(
            model_path=self.model_path,
            num_frames=num_frames,
            sampler=self.sampler,
            system_prompt=self.system_prompt,
            do_sample=self.do_sample,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
        )
