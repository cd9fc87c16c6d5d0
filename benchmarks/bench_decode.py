"""Decoding T frames of a clip: ours beside decord, torchcodec and plain PyAV, each at its best threading.

    python benchmarks/bench_decode.py --T 4,8,16,32 --gop 60,250

The clips (H.264, 10 s, 596x336, drifting noise) are made on the spot. Opening the file counts. The gate: ours gives
exactly the pixels of a plain sequential PyAV decode; a peer whose frames differ by more than rounding of the colour
conversion gets no ratio. Last, --dataset.sampler keyframes on longer clips with just as many keyframes as frames are
taken, beside the exact choice that it stands for, of ours and of the peers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from common import Several, best_of, report
from numpy.typing import NDArray

from prismatic.video.decode import open_video
from prismatic.video.sampling import ClipFacts, sample

Frames = NDArray[np.uint8]
Decode = Callable[[Path, list[int]], Frames]
WIDTH, HEIGHT, FPS, SECONDS = 596, 336, 30, 10
SAME_FRAME = 1.5  # mean difference in levels: another frame of these clips differs by more than 5


def make_clip(path: Path, gop: int, seed: int, frames: int = FPS * SECONDS) -> None:
    """A clip whose content moves, with a keyframe every `gop` frames and B-frames between."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (HEIGHT // 8 + 60, WIDTH // 8 + 60, 3), np.uint8)
    picture = small.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(gop), "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(frames):
            at = abs((i + FPS * SECONDS) % (2 * FPS * SECONDS) - FPS * SECONDS)  # there and back
            view = np.ascontiguousarray(picture[at : at + HEIGHT, at : at + WIDTH])
            for packet in stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def ours(threads: int) -> Decode:
    def run(path: Path, indices: list[int]) -> Frames:
        with open_video(path, "pyav", threads=threads) as clip:
            return clip.get(indices)

    return run


def plain_pyav(threads: int) -> Decode:
    """Every frame up to the last one wanted, decoded in order."""

    def run(path: Path, indices: list[int]) -> Frames:
        wanted = set(indices)
        found = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "AUTO" if threads != 1 else "NONE", threads
            for i, frame in enumerate(container.decode(stream)):
                if i in wanted:
                    found.append(frame.to_ndarray(format="rgb24"))
                if i == max(wanted):
                    break
        return np.stack(found)

    return run


def decord(threads: int) -> Decode:
    from decord import VideoReader

    def run(path: Path, indices: list[int]) -> Frames:
        return VideoReader(str(path), num_threads=threads).get_batch(indices).asnumpy()

    return run


def torchcodec(threads: int) -> Decode:
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)

    def run(path: Path, indices: list[int]) -> Frames:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
        return decoder.get_frames_at(indices).data.numpy()

    return run


def decoders(names: list[str], threads: list[int], clip: Path) -> Iterator[tuple[str, Decode]]:
    """(name, decode) of ours, and of every peer that opens `clip` here, at every number of threads."""
    known = {"ours": ours, "pyav": plain_pyav, "decord": decord, "torchcodec": torchcodec}
    for name in ("ours", *names):
        try:
            known[name](1)(clip, [0])
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name} cannot be used here: {str(error).strip().splitlines()[0]}")
            continue
        for count in threads:
            yield f"{name}, {count} thread{'s' * (count > 1)}", known[name](count)


def run(clips: list[Path], gop: int, count: int, args: argparse.Namespace) -> None:
    """One setting: the gate, the measurement, its two lines."""
    indices = np.linspace(0, FPS * SECONDS - 1, count).astype(int).tolist()
    truth = [plain_pyav(1)(clip, indices) for clip in clips]
    found = dict(decoders(args.peers, args.threads, clips[0]))
    apart: dict[str, float] = {}
    for name, decode in found.items():
        given = [decode(clip, indices) for clip in clips]
        if name.startswith("ours") and not all((a == b).all() for a, b in zip(given, truth, strict=True)):
            raise SystemExit(f"{name}: pixels are not those of a sequential decode")
        pairs = zip(given, truth, strict=True)
        apart[name] = max(float(np.abs(a.astype(np.int16) - b).mean(axis=(1, 2, 3)).max()) for a, b in pairs)
    jobs = [lambda d=decode: [d(clip, indices).shape for clip in clips] for decode in found.values()]
    costs = {n: cost for n, (_, cost) in zip(found, best_of(args.repeats, *jobs), strict=True)}
    per_clip = {name: 1000 * cost.cpu / len(clips) for name, cost in costs.items()}
    best: dict[str, tuple[float, str]] = {}
    for name, value in per_clip.items():
        kind = name.split(",")[0]
        best[kind] = min(best.get(kind, (value, name)), (value, name))
    told = []
    values: dict[str, object] = {}
    for kind, (value, name) in best.items():
        same = apart[name] <= SAME_FRAME
        ratio = value / best["ours"][0]
        told.append(f"{name} {value:.0f} CPU-ms" + (f" ({ratio:.2f}x)" if same and kind != "ours" else ""))
        told[-1] += "" if same else " (other frames: no ratio)"
        values |= {f"{kind}_cpu_ms": value, f"{kind}_at": name, f"{kind}_difference": apart[name]}
        values[f"{kind}_wall_ms"] = 1000 * costs[name].wall / len(clips)
        if same and kind != "ours":
            values[f"{kind}_ratio"] = ratio
    line = f"T={count}, a keyframe every {gop}, {WIDTH}x{HEIGHT}, {SECONDS} s: {'; '.join(told)}"
    report("decode", line, frames=count, gop=gop, clips=len(clips), **values)


def run_keyframes(clips: list[Path], gop: int, count: int, args: argparse.Namespace) -> None:
    """Keyframes instead of exact frames: the gate, the measurement, its two lines."""
    with open_video(clips[0]) as clip:
        facts = ClipFacts.of(clip)
    rng = np.random.default_rng(0)
    exact, snapped = (sample(facts, count, name, rng).tolist() for name in ("uniform", "keyframes"))
    for clip in clips:
        if not (ours(1)(clip, snapped) == plain_pyav(1)(clip, snapped)).all():
            raise SystemExit("keyframes: pixels are not those of a sequential decode")
    found = dict(decoders(args.peers, [1], clips[0]))
    wanted = [(ours(1), snapped), *((decode, exact) for decode in found.values())]
    jobs = [lambda d=decode, i=indices: [d(clip, i).shape for clip in clips] for decode, indices in wanted]
    costs = [1000 * cost.cpu / len(clips) for _, cost in best_of(args.repeats, *jobs)]
    names = ["keyframes", *(f"{name.split(',')[0]} exact" for name in found)]
    told = [
        f"{name} {cost:.1f} CPU-ms ({cost / costs[0]:.1f}x)" for name, cost in zip(names[1:], costs[1:], strict=True)
    ]
    asked = f"keyframes {snapped} of {facts.num_frames} frames, T={count}, one every {gop}"
    line = f"{asked}: {costs[0]:.1f} CPU-ms; {'; '.join(told)}"
    values = {f"{name.replace(' ', '_')}_cpu_ms": cost for name, cost in zip(names, costs, strict=True)}
    report("decode", line, frames=count, gop=gop, clips=len(clips), indices=snapped, **values)


def main() -> None:
    """Parse flags and run every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--T", action=Several, read=int, default=[4, 8, 16, 32], help="frames taken of a clip")
    parser.add_argument("--gop", action=Several, read=int, default=[60, 250], help="frames from keyframe to keyframe")
    parser.add_argument(
        "--threads", action=Several, read=int, default=[1, 2], help="of each decoder; the best one counts"
    )
    known = ["pyav", "decord", "torchcodec"]
    parser.add_argument("--peers", action=Several, default=known, choices=known)
    parser.add_argument("--clips", type=int, default=4, help="clips of a run")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for gop in args.gop:
            clips = [Path(folder, f"{gop}-{i}.mp4") for i in range(args.clips)]
            for i, clip in enumerate(clips):
                make_clip(clip, gop, i)
            for count in args.T:
                run(clips, gop, count, args)
        for gop in args.gop:
            clips = [Path(folder, f"keys-{gop}-{i}.mp4") for i in range(min(2, args.clips))]
            for i, clip in enumerate(clips):
                make_clip(clip, gop, i, gop * min(args.T))
            run_keyframes(clips, gop, min(args.T), args)


if __name__ == "__main__":
    main()
