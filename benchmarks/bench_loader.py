"""Media on their way to a batch, from PNG and JPEG folders, MP4, tar shards and cached features: ours beside others.

    python benchmarks/bench_loader.py --src png,jpeg,mp4,shard,square,raw,feat --workers 2

Clips of drifting noise are made on the spot and turned into each source: shards hold JPEG whose shorter side is 224,
square and raw are shards of `webvid.py extract --vision_backbone_id`, JPEG and not compressed. Every side runs in a
DataLoader with the same number of workers; CPU-seconds are of this process and its workers. Each side is timed twice, a
few epochs long and many: the difference is what one frame more costs, and the first ratio is of that. The rest is its
start (processes, imports, opening, checking), which the rate of the few epochs contains.

The plain side does as the older code did: a PNG or JPEG of each frame, Pillow, letterbox, scaling, fp32 and normalising
on the CPU; "older" is the same with PNG of all frames, whatever ours reads. webdataset reads the same shards, litdata a
chunk of its own of the same bytes, torch.load a file for each clip. The gate: a side's pixels before fp32 are ours to
1/255 of the range, those of another video decoder to a mean difference of 1.5 levels, the rounding of the colour
conversion; features are equal.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_decode import decord, make_clip, plain_pyav, torchcodec
from common import Several, report
from loader_peers import SPEC, STORES, Material, Pass, decoder, litdata, loaded, plain, webdataset
from PIL import Image

from prismatic.data.annotations import load_records
from prismatic.data.dataset import ClipDataset
from prismatic.data.feature_cache import FeatureCache
from prismatic.data.feature_cache_reader import CachedReader
from prismatic.data.loader import StepLoader
from prismatic.data.media import MediaReader
from prismatic.data.pack import collate
from prismatic.models.llm.tokenizer import train_tokenizer
from prismatic.prompting import TEMPLATES
from prismatic.types import Medium
from prismatic.webvid.frames import FrameSpec, take_frames

FEATURES = (196, 384)  # patches and width of a ViT-S/16
TICK = 0.01  # seconds: os.times counts hundredths


def write_material(root: Path, clips: int, frames: int) -> None:
    """mp4/0.mp4, png/0/0000.png, jpeg/0/0000.jpg, and a 000000.tar in each folder of STORES."""
    (root / "mp4").mkdir(parents=True)
    for number in range(clips):
        video = root / f"mp4/{number}.mp4"
        make_clip(video, 60, number)
        indices = np.linspace(0, 299, frames).astype(int).tolist()
        for at, pixels in enumerate(plain_pyav(1)(video, indices)):
            image = Image.fromarray(pixels)
            for kind, end in (("png", "png"), ("jpeg", "jpg")):
                path = root / kind / str(number) / f"{at:04d}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, **({"quality": 95} if kind == "jpeg" else {}))
        for name, changes in STORES.items():
            store = FrameSpec(frames, **changes)
            (root / name).mkdir(exist_ok=True)
            with tarfile.open(root / name / "000000.tar", "a") as tar:
                for at, data in enumerate(take_frames(video, store).data):
                    info = tarfile.TarInfo(f"{number:04d}.{at:04d}{store.suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def ours(material: Material, source: str) -> Pass:
    """The whole way of training: rows, media, tokens, batches."""
    media: dict[str, Callable[[int], dict[str, Any]]] = {
        "mp4": lambda n: {"video": f"mp4/{n}.mp4"},
        "feat": lambda n: {"video": f"mp4/{n}.mp4"},
        "png": lambda n: {"frames": [f"png/{n}/{i:04d}.png" for i in range(material.frames)]},
        "jpeg": lambda n: {"frames": [f"jpeg/{n}/{i:04d}.jpg" for i in range(material.frames)]},
        **{name: lambda n: {"video": f"{source}/000000.tar#{n:04d}"} for name in STORES},
    }
    said = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "Noise drifts."}]
    rows = [{"id": str(n), **media[source](n), "conversations": said} for n in range(material.clips)]
    (material.root / f"{source}.json").write_text(json.dumps(rows))
    read = MediaReader(num_frames=material.frames, image_spec=SPEC)
    dataset = ClipDataset(
        [load_records(material.root / f"{source}.json", material.root)],
        read=read,
        template=TEMPLATES.get("pure"),
        tokenizer=train_tokenizer(["What happens? Noise drifts."] * 9, 300),
        layout="after-bos",
        max_length=128,
        tokens_per_clip=lambda frames: frames,
        features=CachedReader(read, features(material)) if source == "feat" else None,
    )
    dataset.check()

    def run(epochs: int) -> list[torch.Tensor]:
        loader = StepLoader(
            *(dataset, partial(collate, pad_token_id=0, packing=True), dataset.num_examples, 4, 2),
            num_workers=material.workers,
            shuffle=False,
            packing=True,
        )
        found: dict[str, torch.Tensor] = {}
        for epoch in range(epochs):
            for batch in (batch for step in loader.iterate(epoch) for batch in step):
                clips = batch.frames if batch.cache is None else batch.cache.features
                assert clips is not None
                if epoch == epochs - 1:
                    parts = clips.split(list(batch.frames_per_medium))
                    found.update(zip(filter(None, batch.ids), parts, strict=True))
        loader.close()
        return [found[str(n)] for n in range(material.clips)]

    return run


def features(material: Material) -> FeatureCache:
    """Features of the videos in a cache, and the same saved by torch.save, one file a clip."""
    cache = FeatureCache(material.root / "cache")
    cache.bind({"encoder": "random numbers"})
    read = CachedReader(MediaReader(num_frames=material.frames, image_spec=SPEC), cache)
    for number in range(material.clips):
        made = torch.randn(material.frames, *FEATURES).to(cache.torch_dtype)
        cache.put(read.clip(Medium("video", (str(material.root / f"mp4/{number}.mp4"),))).key, made)
        torch.save(made, material.root / f"{number}.pt")
    return cache


def sides(material: Material, source: str) -> Iterator[tuple[str, Pass]]:
    """Ours first, then every other side that works here."""
    yield "ours", ours(material, source)
    if source == "feat":
        yield "torch.load", loaded(material, lambda n: torch.load(material.root / f"{n}.pt", weights_only=True))
        return
    yield "older", plain(material, "png")
    if source == "jpeg":
        yield "plain", plain(material, source)
    if source == "mp4":
        yield "pyav", decoder(material, plain_pyav(1))
        for name, make in (("decord", decord), ("torchcodec", torchcodec)):
            try:
                make(1)(material.root / "mp4/0.mp4", [0])
            except (ImportError, RuntimeError, OSError) as error:
                print(f"{name} cannot be used here: {str(error).strip().splitlines()[0]}")
            else:
                yield name, decoder(material, make(1))
    if source in STORES and importlib.util.find_spec("webdataset"):
        yield "webdataset", webdataset(material, source)
    if source in STORES and importlib.util.find_spec("litdata"):
        yield "litdata", litdata(material, source)


def cpu_seconds() -> float:
    """Of this process, and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> tuple[float, float]:
    """(largest, mean) difference in levels of 255; of features, exact or infinite."""
    if a[0].dtype == b[0].dtype != torch.uint8:
        same = all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        return (0.0, 0.0) if same else (float("inf"), float("inf"))
    found = [
        (x.float() - (y * 0.5 + 0.5) * 255 if y.is_floating_point() else x.float() - y.float()).abs()
        for x, y in zip(a, b, strict=True)
    ]
    return max(float(f.max()) for f in found), float(np.mean([float(f.mean()) for f in found]))


def measure(material: Material, source: str, few: int, seconds: float, repeats: int) -> None:
    """Gate, then every side in turn; its two lines."""
    found = dict(sides(material, source))
    truth = found["ours"](1)
    apart = {name: difference(truth, run(1)) for name, run in found.items() if name != "ours"}
    costs = costs_of(found, few, seconds, repeats)
    count = material.clips * material.frames
    more, start = {}, {}
    for name, (many, cost) in costs.items():
        more[name] = max(TICK, cost[many] - cost[few]) / (many - few) / count
        start[name] = cost[few] - few * count * more[name]
    told = []
    values: dict[str, Any] = {}
    for name in found:
        rates = 1 / more[name], few * count / costs[name][1][few]
        values |= {f"{name}_frames_per_cpu_s": rates[0], f"{name}_start_cpu_s": start[name]}
        values |= {f"{name}_with_start_frames_per_cpu_s": rates[1]}
        text = f"{name} {rates[0]:,.0f} ({rates[1]:,.0f} with its start)"
        if name in apart:
            largest, mean = apart[name]
            # Other pictures than ours reads are no gate, but the same clip (another one differs by more than 30): what
            # JPEG lost, and most where it kept half of the colours of 224 x 224, or how colours were rounded.
            same = largest <= 1.01 or (source == "mp4" and mean <= 1.5) or (name == "older" and mean <= 12)
            ratios = more[name] / more["ours"], costs[name][1][few] / costs["ours"][1][few]
            text += f": {ratios[0]:.1f}x ({ratios[1]:.1f}x)" if same else ": other pixels, no ratio"
            values |= {f"{name}_largest_difference": largest, f"{name}_mean_difference": mean}
            values |= {f"{name}_ratio": ratios[0], f"{name}_ratio_with_start": ratios[1]} if same else {}
        told.append(text)
    line = f"{source}, {material.frames} frames a clip, {material.workers} workers, frames a CPU-s: {'; '.join(told)}"
    report("loader", line, source=source, clips=material.clips, frames=material.frames, epochs=few, **values)


def costs_of(found: dict[str, Pass], few: int, seconds: float, repeats: int) -> dict[str, tuple[int, dict[int, float]]]:
    """Of each side how many epochs are many, and CPU-seconds by epochs: the fewest of `repeats` turns."""
    costs: dict[str, tuple[int, dict[int, float]]] = {}
    for name, run in found.items():
        first = cpu_of(run, few)
        # The quicker a side, the more epochs, for the difference to stand out.
        costs[name] = few + max(2, math.ceil(seconds * few / first)), {few: first}
    for _ in range(repeats):
        for name, run in found.items():
            many, cost = costs[name]
            for epochs in (few, many):
                cost[epochs] = min(cost.get(epochs, math.inf), cpu_of(run, epochs))
    return costs


def cpu_of(run: Pass, epochs: int) -> float:
    """CPU-seconds."""
    began = cpu_seconds()
    run(epochs)
    return cpu_seconds() - began


def main() -> None:
    """Parse flags, make the material, measure each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["png", "jpeg", "mp4", *STORES, "feat"]
    parser.add_argument("--src", action=Several, choices=known, default=known)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=16, help="of each clip, T")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4, help="the few; many are as many more as it takes")
    parser.add_argument("--seconds", type=float, default=2.0, help="of CPU time, by which many epochs take longer")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_material(Path(folder), args.clips, args.frames)
        for source in args.src:
            material = Material(Path(folder), args.clips, args.frames, args.workers)
            measure(material, source, args.epochs, args.seconds, args.repeats)


if __name__ == "__main__":
    main()
