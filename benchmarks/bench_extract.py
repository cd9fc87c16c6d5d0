"""Videos to frames, and videos to vectors: `webvid.py extract` and `embed` beside plain loops over decord with PIL.

    python benchmarks/bench_extract.py --clips 24 --frames 16
    python benchmarks/bench_extract.py --clips 8 --frames 8 --vision_backbone_id clip-vit-b --what embed

The clips (H.264, 596x336, moving) are made on the spot. Every run is a process of its own whose CPU-seconds count with
those of all processes that it starts; `starting` is what a run over a single clip costs (Python, imports, a model),
and is taken off both. The gate: both take the same frames, whose pixels differ by no more than rounding of the colour
conversion (mean of 1.5 levels), and vectors have a cosine of 0.999 or more.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_decode import FPS, SAME_FRAME, make_clip
from common import Cost, Several, report
from PIL import Image

from prismatic.conf.webvid import CatalogConfig
from prismatic.conf.webvid_media import EmbedConfig, ExtractConfig
from prismatic.video.decode import open_video

SAME_VECTOR = 0.999
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl: orphans of a run become ours, and their CPU-seconds too


def in_a_process(run: Callable[[], None]) -> Cost:
    """CPU- and wall seconds of `run` in a fork, with all processes that it starts. Raises SystemExit when it fails."""
    before, started = _children(), time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
            run()
            code = 0
        except BaseException:  # noqa: BLE001  told, and then the process ends
            traceback.print_exc()
        os._exit(code)
    failed = False
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        failed |= pid == child and status != 0
    if failed:
        raise SystemExit("a run failed")
    return Cost(_children() - before, time.perf_counter() - started)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def indices(count: int, total: int) -> list[int]:
    """Of the frames that both take."""
    return np.linspace(0, total - 1, count).astype(int).tolist()


def plain_extract(clips: list[Path], output: Path, count: int) -> None:
    """The older tool's loop: decord, PIL, PNG folders."""
    from decord import VideoReader

    for clip in clips:
        reader = VideoReader(str(clip), num_threads=1)
        folder = output / clip.stem
        folder.mkdir(parents=True)
        for number, frame in enumerate(reader.get_batch(indices(count, len(reader))).asnumpy()):
            Image.fromarray(frame).save(folder / f"{number:04d}.png")


def plain_embed(clips: list[Path], output: Path, args: argparse.Namespace) -> None:
    """decord, PIL's bicubic resize, the same backbone clip by clip on one thread."""
    import torch
    from decord import VideoReader

    from prismatic.models.vision.zoo import build_vision

    torch.set_num_threads(1)
    model = build_vision(args.vision_backbone_id, pretrained=False, seed=7)
    side = model.image_spec.resolution
    found = []
    for clip in clips:
        reader = VideoReader(str(clip), num_threads=1)
        frames = reader.get_batch(indices(args.frames, len(reader))).asnumpy()
        small = [np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BICUBIC)) for f in frames]
        with torch.inference_mode():
            features = model(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous())
            found.append(features.float().mean(dim=(0, 1)).numpy().astype(np.float16))
    output.mkdir(parents=True)
    np.save(output / "embeddings.npy", np.stack(found))


def ours_extract(catalog: Path, output: Path, args: argparse.Namespace, **flags: str) -> None:
    """Writes a folder of frames or shards."""
    from prismatic.webvid.extract import extract

    extract(
        ExtractConfig(catalog=catalog, output=output, num_frames=args.frames, num_workers=args.num_workers, **flags)
    )


def ours_embed(catalog: Path, output: Path, args: argparse.Namespace) -> None:
    """Writes embeddings.npy."""
    from prismatic.webvid.embed import embed

    embed(
        EmbedConfig(
            catalog=catalog,
            output=output,
            vision_backbone_id=args.vision_backbone_id,
            pretrained_backbones=False,
            num_frames=args.frames,
            num_workers=args.num_workers,
            device="cpu",
        )
    )


def on_disk(folder: Path) -> int:
    """Bytes that the files below a folder take, in whole blocks."""
    return sum(512 * os.stat(Path(place, name)).st_blocks for place, _, names in os.walk(folder) for name in names)


def same_frames(clips: list[Path], folder: Path, count: int) -> float:
    """Largest mean difference of a frame of the plain loop from ours. Raises SystemExit for other frames."""
    apart = 0.0
    for clip in clips:
        with open_video(clip) as source:
            wanted = indices(count, len(source))
        taken = json.loads((folder / "png-folders" / clip.stem / "manifest.json").read_text())["indices"]
        if taken != wanted:
            raise SystemExit(f"{clip.name}: ours took frames {taken}, not {wanted}")
        with open_video(folder / "png-folders" / clip.stem) as ours, open_video(folder / "plain" / clip.stem) as theirs:
            a, b = (c.get(range(count)).astype(np.int16) for c in (ours, theirs))
        here = float(np.abs(a - b).mean(axis=(1, 2, 3)).max())
        if here > SAME_FRAME:
            raise SystemExit(
                f"{clip.name}: decord's frames differ by {here:.2f} levels: not the same ones; leave it out"
            )
        apart = max(apart, here)
    return apart


def compare(name: str, folder: Path, runs: dict[str, Callable[[list[Path], Path, Path], None]], repeats: int) -> dict:
    """Cost of each run over all clips, without its start; the lowest of `repeats`, taking turns."""
    clips = sorted((folder / "v").iterdir())
    costs: dict[str, Cost] = {}
    starts: dict[str, float] = {}
    for turn in range(repeats):
        for label, run in runs.items():
            made = folder / name / label if turn == 0 else folder / name / f"{label}-{turn}"
            start = in_a_process(lambda r=run, m=made: r(clips[:1], folder / "one.parquet", m.with_name(m.name + "-1")))
            cost = in_a_process(lambda r=run, m=made: r(clips, folder / "all.parquet", m))
            cost.cpu -= start.cpu
            if label not in costs or cost.cpu < costs[label].cpu:
                costs[label], starts[label] = cost, start.cpu
    count = len(clips) - 1
    values: dict[str, object] = {}
    for label, cost in costs.items():
        key = label.replace("-", "_")
        values |= {f"{key}_clips_per_cpu_s": count / cost.cpu, f"{key}_wall_s": cost.wall}
        values[f"{key}_starting_cpu_s"] = starts[label]
        if label != "plain":
            values[f"{key}_ratio"] = costs["plain"].cpu / cost.cpu
    return values


def bench_extract(folder: Path, args: argparse.Namespace) -> None:
    """Frames: PNG folders as the plain loop writes them, and what else extract can write."""
    runs = {"plain": lambda clips, _, made: plain_extract(clips, made, args.frames)}
    for image in ("png", "jpeg"):
        for form, label in (("folder", "folders"), ("shards", "shards")):
            flags = {"format": form, "image_format": image}
            runs[f"{image}-{label}"] = lambda _, c, made, f=flags: ours_extract(c, made, args, **f)
    values = compare("extract", folder, runs, args.repeats)
    apart = same_frames(sorted((folder / "v").iterdir()), folder / "extract", args.frames)
    count = len(list((folder / "v").iterdir()))
    sizes = {label: on_disk(folder / "extract" / label) / count / 2**20 for label in runs}
    told = []
    for label in runs:
        key = label.replace("-", "_")
        ratio = f" ({values[f'{key}_ratio']:.2f}x)" if label != "plain" else ""
        told.append(
            f"{label} {values[f'{key}_clips_per_cpu_s']:.2f} clips a CPU-s{ratio}, {sizes[label]:.2f} MiB a clip"
        )
    values |= {f"{label.replace('-', '_')}_mib_a_clip": size for label, size in sizes.items()}
    line = f"extract, {args.frames} frames of {count} clips: {'; '.join(told)}; pixels apart {apart:.2f} levels"
    report("extract", line, frames=args.frames, clips=count, pixels_apart=apart, **values)


def bench_embed(folder: Path, args: argparse.Namespace) -> None:
    """Vectors of a backbone with random weights (the same ones in both)."""
    runs = {
        "plain": lambda clips, _, made: plain_embed(clips, made, args),
        "ours": lambda _, catalog, made: ours_embed(catalog, made, args),
    }
    values = compare("embed", folder, runs, args.repeats)
    a, b = (np.load(folder / "embed" / n / "embeddings.npy").astype(np.float64) for n in ("plain", "ours"))
    cosine = float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
    if a.shape != b.shape or cosine < SAME_VECTOR:
        raise SystemExit(f"vectors differ: lowest cosine {cosine:.5f}")
    rates = [f"{label} {values[f'{label}_clips_per_cpu_s']:.2f} clips a CPU-s" for label in runs]
    line = f"embed ({args.vision_backbone_id}), {args.frames} frames of {len(a)} clips: {'; '.join(rates)} "
    line += f"({values['ours_ratio']:.2f}x); lowest cosine {cosine:.5f}"
    setting = {"backbone": args.vision_backbone_id, "frames": args.frames, "clips": len(a)}
    report("embed", line, **setting, lowest_cosine=cosine, **values)


def main() -> None:
    """Parse flags, make clips and catalogs, run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=13, help="made on the spot; one of them measures the start")
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="files to take instead of made ones")
    parser.add_argument("--frames", type=int, default=16, help="frames taken of a clip")
    parser.add_argument("--vision_backbone_id", default="tiny-vit")
    parser.add_argument("--what", action=Several, default=["extract", "embed"], choices=["extract", "embed"])
    parser.add_argument("--num_workers", type=int, default=1, help="processes that decode, of ours")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("CPU-seconds of processes that outlive their parent are only counted on Linux")
    if (len(args.videos) or args.clips) < 2:
        parser.error("it takes 2 clips or more")
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_a_process(lambda: make_input(folder, args))
        for what in args.what:
            {"extract": bench_extract, "embed": bench_embed}[what](folder, args)


def make_input(folder: Path, args: argparse.Namespace) -> None:
    """v/0000.mp4, ..., all.parquet, and one.parquet with the first clip alone."""
    from prismatic.webvid.catalog import catalog

    for name in ("v", "one"):
        (folder / name).mkdir()
    for i, video in enumerate(args.videos):
        shutil.copyfile(video, folder / "v" / f"{i:04d}{video.suffix}")
    for i in range(0 if args.videos else args.clips):
        make_clip(folder / "v" / f"{i:04d}.mp4", 2 * FPS, i)
    files = sorted(path.name for path in (folder / "v").iterdir())
    shutil.copyfile(folder / "v" / files[0], folder / "one" / files[0])
    for name, taken in (("v", files), ("one", files[:1])):
        rows = [{"id": Path(file).stem, "path": file, "caption": "a clip"} for file in taken]
        table, output = folder / f"{name}.json", folder / f"{'all' if name == 'v' else name}.parquet"
        table.write_text(json.dumps(rows))
        catalog(CatalogConfig(videos=folder / name, captions=table, output=output))


if __name__ == "__main__":
    main()
