"""What `bench_loader.py` races: the older code, video libraries, webdataset and litdata over the same clips."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_decode import Decode
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from prismatic.types import ImageSpec
from prismatic.webvid.frames import FrameSpec

SPEC = ImageSpec(resolution=224)
STORES: dict[str, dict[str, Any]] = {
    "shard": {"image_format": "jpeg", "short_side": 224},
    "square": {"image_format": "jpeg", "square": SPEC, "resize_strategy": "letterbox"},
    "raw": {"image_format": "ppm", "square": SPEC, "resize_strategy": "letterbox"},
}
"""Shards, as `webvid.py extract` writes their frames."""
Pass = Callable[[int], list[torch.Tensor]]
"""So many epochs over all clips; gives frames or features of each, in order, of the last one."""


@dataclass(frozen=True)
class Material:
    """root: with a folder or file of each source. clips, frames: how many. workers: reading processes."""

    root: Path
    clips: int
    frames: int
    workers: int


class Clips(Dataset[torch.Tensor]):
    """One clip an item, by `read`."""

    def __init__(self, count: int, read: Callable[[int], torch.Tensor]) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.read(number)


def loaded(material: Material, read: Callable[[int], torch.Tensor]) -> Pass:
    """A plain DataLoader of whole clips."""
    return epochs_of(lambda: Clips(material.clips, read), material.workers)


def epochs_of(data: Callable[[], Dataset[Any]], workers: int) -> Pass:
    """Passes over `data` with processes that stay for all their epochs."""

    def run(epochs: int) -> list[torch.Tensor]:
        more: dict[str, Any] = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
        loader = DataLoader(data(), batch_size=None, num_workers=workers, **more)
        for _ in range(epochs - 1):
            for _clip in loader:
                pass
        return list(loader)

    return run


def letterboxed(image: Image.Image) -> Image.Image:
    """As the older code prepares a frame, but for fp32."""
    from torchvision.transforms import functional as F

    image = image.convert("RGB")
    side = max(image.size)
    across, down = (side - image.width) // 2, (side - image.height) // 2
    image = F.pad(image, [across, down, across, down], fill=127)
    return F.center_crop(F.resize(image, 224, InterpolationMode.BICUBIC), [224, 224])


def floated(images: list[Image.Image]) -> torch.Tensor:
    """fp32 [T, 3, R, R], normalised."""
    return torch.stack([F.normalize(F.to_tensor(letterboxed(i)), [0.5] * 3, [0.5] * 3) for i in images])


def plain(material: Material, source: str) -> Pass:
    """The older code's dataset over the frames that were extracted before, as PNG or JPEG."""
    kind, end = ("jpeg", "jpg") if source == "jpeg" else ("png", "png")

    def read(number: int) -> torch.Tensor:
        folder = material.root / kind / str(number)
        return floated([Image.open(folder / f"{i:04d}.{end}") for i in range(material.frames)])

    return loaded(material, read)


def decoder(material: Material, decode: Decode) -> Pass:
    """A video library, then what the older code does to frames."""
    indices = np.linspace(0, 299, material.frames).astype(int).tolist()

    def read(number: int) -> torch.Tensor:
        return floated([Image.fromarray(f) for f in decode(material.root / f"mp4/{number}.mp4", indices)])

    return loaded(material, read)


def webdataset(material: Material, source: str) -> Pass:
    """webdataset over the same shards, one after another (there is one: one worker reads it)."""
    names = [f"{i:04d}{FrameSpec(1, **STORES[source]).suffix}" for i in range(material.frames)]

    def data() -> Dataset[Any]:
        import webdataset as wds

        found = wds.WebDataset(str(material.root / source / "000000.tar"), shardshuffle=False, empty_check=False)
        return found.decode("pil").map(lambda sample: floated([sample[name] for name in names]))

    return epochs_of(data, min(1, material.workers))


def litdata(material: Material, source: str) -> Pass:
    """litdata's own chunk of the same bytes, a clip an item (there is one chunk: one worker reads it)."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = material.root / f"{source}-litdata"
    suffix = FrameSpec(1, **STORES[source]).suffix
    with tarfile.open(material.root / source / "000000.tar") as tar:
        frames = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    writer = BinaryWriter(str(folder), chunk_bytes=1 << 30)
    for clip in range(material.clips):
        writer[clip] = {f"{i:04d}": frames[f"{clip:04d}.{i:04d}{suffix}"] for i in range(material.frames)}
    writer.done()
    writer.merge()

    class Decoded(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> torch.Tensor:
            item = super().__getitem__(index)
            return floated([Image.open(io.BytesIO(item[name])) for name in sorted(item)])

    return epochs_of(lambda: Decoded(str(folder)), min(1, material.workers))
