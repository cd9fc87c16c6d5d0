"""A heap of small videos with a catalog, some of them broken in every way there is."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import av
from PIL import Image

from prismatic.conf.webvid import CatalogConfig
from prismatic.webvid.catalog import catalog
from tests.video import files
from tests.webvid.videos import write_video


def write_heap(folder: Path, count: int, first: int = 0) -> dict[str, str]:
    """`count` sound videos "000.mp4", ... of different looks and lengths; returns {id: caption}."""
    for i in range(first, first + count):
        write_video(folder / f"{i:03d}.mp4", frames=3 + i % 4, shade=(i * 7) % 200, size=(32, 32 + 16 * (i % 3)))
    return {f"{i:03d}": f"grey number {i}" for i in range(first, first + count)}


def write_broken(folder: Path) -> dict[str, str]:
    """One file of each of ten kinds; returns {id: what its status must say}. The last two are sound in the catalog."""
    folder.mkdir(parents=True, exist_ok=True)
    source = files.write_video(folder / "source.mp4", "libx264", 20, muxer={"movflags": "faststart"})
    (folder / "empty.mp4").write_bytes(b"")
    files.truncate(source, folder / "truncated.mp4", 0.02)
    (folder / "magic.mp4").write_bytes(b"%PDF-1.7 this is a document" * 40)
    with av.open(str(folder / "zero.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    files.write_audio_only(folder / "audio.mp4")
    if os.geteuid():
        (folder / "secret.mp4").write_bytes(source.read_bytes())
        (folder / "secret.mp4").chmod(0)
    else:  # who may read everything
        (folder / "secret.mp4").symlink_to(folder / "nowhere" / "gone.mp4")
    (folder / "directory.mp4").mkdir()
    _huge(folder / "huge.mp4")
    source.unlink()
    files.write_video(folder / "vfr.mp4", "libx264", 20, options=files.X264, ticks=[i * i for i in range(20)])
    write_video(folder / "vanishing.mp4", shade=201, frames=5)
    return {
        "empty": "empty",
        "truncated": "broken",
        "magic": "is no video",
        "zero": "broken",
        "audio": "no video stream",
        "secret": "ermission" if os.geteuid() else "No such file",
        "directory": "no image",
        "huge": "exceed",
        "vfr": "ok",
        "vanishing": "ok",
    }


def _huge(path: Path) -> None:
    """One picture of 90 million pixels: few bytes, much memory."""
    picture = io.BytesIO()
    Image.new("L", (10000, 9000)).save(picture, "JPEG", quality=10)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 10000, 9000, "yuvj420p"
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
        container.mux(packet)


def make_catalog(root: Path, captions: dict[str, str], name: str = "c", **flags: object) -> Path:
    """The catalog root/NAME.parquet of root/v with these captions."""
    table = root / f"{name}.json"
    table.write_text(json.dumps([{"id": i, "caption": text} for i, text in captions.items()]))
    output = root / f"{name}.parquet"
    catalog(CatalogConfig(videos=root / "v", captions=table, output=output, **flags))  # type: ignore[arg-type]
    return output


def tree(folder: Path, *without: str) -> dict[str, bytes]:
    """Relative path -> bytes of all files below a folder, databases left out."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if ".sqlite" not in name and name not in without:
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found
