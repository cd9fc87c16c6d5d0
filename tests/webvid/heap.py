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
        # Equal shades, lengths and sizes come together again after 600: the rate tells those apart.
        look = {"shade": (i * 7) % 200, "size": (32, 32 + 16 * (i % 3)), "fps": 5 + i // 600}
        write_video(folder / f"{i:03d}.mp4", frames=3 + i % 4, **look)
    return {f"{i:03d}": f"grey number {i}" for i in range(first, first + count)}


KINDS = {
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
"""Of each kind of broken file what its status must say. The last two are sound in the catalog."""


def write_broken(folder: Path, copies: int = 1) -> dict[str, str]:
    """`copies` files of each of ten kinds, "empty.mp4", "empty-1.mp4", ...; returns {id: what its status must say}."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for copy in range(copies):
        names = {kind: kind if not copy else f"{kind}-{copy}" for kind in KINDS}
        _write_kinds({kind: folder / f"{name}.mp4" for kind, name in names.items()}, copy)
        made.update({name: KINDS[kind] for kind, name in names.items()})
    return made


def _write_kinds(paths: dict[str, Path], copy: int) -> None:
    source = files.write_video(paths["empty"].with_name("source.mp4"), "libx264", 20, muxer={"movflags": "faststart"})
    paths["empty"].write_bytes(b"")
    files.truncate(source, paths["truncated"], 0.02)
    paths["magic"].write_bytes(b"%PDF-1.7 this is a document" * (40 + copy))
    with av.open(str(paths["zero"]), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    files.write_audio_only(paths["audio"])
    if os.geteuid():
        paths["secret"].write_bytes(source.read_bytes())
        paths["secret"].chmod(0)
    else:  # who may read everything
        paths["secret"].symlink_to(paths["secret"].parent / "nowhere" / "gone.mp4")
    paths["directory"].mkdir()
    _huge(paths["huge"])
    source.unlink()
    ticks = [(1 + copy) * i * i for i in range(20)]
    files.write_video(paths["vfr"], "libx264", 20, options=files.X264, ticks=ticks)
    write_video(paths["vanishing"], shade=201, frames=5 + copy)


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
