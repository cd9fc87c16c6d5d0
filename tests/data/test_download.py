"""Fetching and unpacking, against a server on this machine that breaks off, changes files and refuses."""

from __future__ import annotations

import io
import re
import shutil
import socket
import stat
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from PIL import Image

from prismatic.data import download as d
from prismatic.data.download import DownloadError, Part


class Server(ThreadingHTTPServer):
    """Serves `files`; each request is noted, and the first `break_off` answers stop half way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.etag = '"1"'
        self.break_off = 0
        self.status: int | None = None
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.status is not None or self.path not in server.files:
            self.send_error(server.status or 404)
            return
        data, start = server.files[self.path], 0
        if wanted and self.headers.get("If-Range") == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        body = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if server.break_off:
            server.break_off -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(d.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def _zip(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def _picture(kind: str) -> bytes:
    data = io.BytesIO()
    Image.new("P" if kind == "GIF" else "RGBA", (4, 3)).save(data, kind)
    return data.getvalue()


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    server.files["/f.bin"] = content
    server.break_off = 2
    d.download(f"{server.url}/f.bin", tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == content
    assert [r for _, r in server.requests] == [None, f"bytes={len(content) // 2}-", f"bytes={len(content) * 3 // 4}-"]
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]
    d.download(f"{server.url}/f.bin", tmp_path / "f.bin")
    assert len(server.requests) == 3


def test_a_file_that_changed_in_between_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"old half")
    (tmp_path / "f.part.etag").write_text('"0"')
    server.files["/f"] = b"new content, all of it"
    d.download(f"{server.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"new content, all of it"


def test_no_server_is_said_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(d.time, "sleep", waits.append)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot be reached.*or put the file at .*f\.zip by hand"):
        d.download(f"http://127.0.0.1:{port}/f.zip", tmp_path / "f.zip")
    assert waits == [1, 2, 4, 8, 16]


def test_what_the_server_refuses_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="answers 404"):
        d.download(f"{server.url}/none", tmp_path / "none")
    assert len(server.requests) == 1
    server.status = 503
    with pytest.raises(DownloadError, match="503"):
        d.download(f"{server.url}/none", tmp_path / "none")
    assert len(server.requests) == 1 + d.ATTEMPTS


def test_a_full_disk_is_said_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/f.zip"] = _zip({"a": b"x" * 5000})
    monkeypatch.setattr(d.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DownloadError, match="are free at"):
        d.download(f"{server.url}/f.zip", tmp_path / "f.zip")
    (tmp_path / "f.zip").write_bytes(server.files["/f.zip"])
    with pytest.raises(DownloadError, match=r"unpacks to 0\.0 GB more"):
        d.unpack(tmp_path / "f.zip", tmp_path / "out", unwrap=False)


def test_a_part_is_fetched_unpacked_marked_and_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/train2017.zip"] = _zip({"train2017/1.jpg": b"1", "train2017/deep/2.jpg": b"2"})
    part = Part("coco/train2017", f"{server.url}/train2017.zip", zipped=True)
    assert d.fetch_part(part, tmp_path, num_workers=1)
    assert (tmp_path / "coco/train2017/deep/2.jpg").read_bytes() == b"2"
    assert not (tmp_path / ".archives/train2017.zip").exists()
    assert not d.fetch_part(part, tmp_path, num_workers=1)
    assert len(server.requests) == 1


def test_pictures_without_a_folder_of_their_own_go_into_the_dataset(server: Server, tmp_path: Path) -> None:
    server.files["/images.zip"] = _zip({"00000/1.jpg": b"1"})
    d.fetch_part(Part("", f"{server.url}/images.zip", zipped=True), tmp_path, num_workers=1)
    assert (tmp_path / "00000/1.jpg").is_file()


def test_a_single_file_gets_the_name_of_its_target(server: Server, tmp_path: Path) -> None:
    server.files["/blip.json"] = b"[]"
    assert d.fetch_part(Part("chat.json", f"{server.url}/blip.json"), tmp_path, num_workers=1)
    assert (tmp_path / "chat.json").read_bytes() == b"[]"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(_zip({"good": b"", name: b"x"}))
    with pytest.raises(DownloadError, match="leads out of the folder"):
        d.unpack(tmp_path / "a.zip", tmp_path / "out", unwrap=False)
    assert not (tmp_path / "out").exists()


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "elsewhere")
    with pytest.raises(DownloadError, match="is a link"):
        d.unpack(tmp_path / "a.zip", tmp_path / "out", unwrap=False)


def test_unpacking_goes_on_and_damage_is_said(tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    archive.write_bytes(_zip({"top/one": b"1", "top/two": b"22"}))
    out.mkdir()
    (out / "one").write_bytes(b"1")
    before = (out / "one").stat().st_mtime_ns
    assert d.unpack(archive, out, unwrap=True) == 2
    assert (out / "one").stat().st_mtime_ns == before
    assert (out / "two").read_bytes() == b"22"
    data = bytearray(_zip({"top/one": b"1" * 500}))
    data[40:44] = b"\xff\xff\xff\xff"
    archive.write_bytes(data)
    shutil.rmtree(out)
    with pytest.raises(DownloadError, match="'top/one' is damaged"):
        d.unpack(archive, out, unwrap=True)
    assert not any(path.is_file() for path in out.rglob("*"))
    archive.write_text("<html>sign in</html>")
    with pytest.raises(DownloadError, match="is not a zip archive"):
        d.unpack(archive, out, unwrap=True)


def test_gif_and_png_become_jpg(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(_picture("GIF"))
    (tmp_path / "b.PNG").write_bytes(_picture("PNG"))
    (tmp_path / "c.png").write_text("none")
    assert d.to_jpeg(tmp_path, num_workers=2) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "b.jpg", "c.png"]
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (4, 3))


def test_a_whole_dataset_goes_where_training_looks_for_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismatic.conf.data import DatasetConfig
    from prismatic.conf.run import PretrainConfig

    assert PretrainConfig().dataset.dataset_id == "webvid"
    parts = []
    for part in d.ARCHIVES["llava-laion-cc-sbu-558k"]:
        path = "/" + part.url.rsplit("/", 1)[-1]
        server.files[path] = _zip({"00000/1.jpg": b"1"}) if part.zipped else b"[]"
        parts.append(Part(part.target, server.url + path, part.zipped))
    monkeypatch.setitem(d.ARCHIVES, "llava-laion-cc-sbu-558k", tuple(parts))
    told = d.prepare_dataset("llava-laion-cc-sbu-558k", tmp_path, seed=7, num_workers=1)
    assert "2 of 2 parts fetched" in told
    cfg = DatasetConfig.get_choice_class("llava-v15")(dataset_root_dir=tmp_path)
    (annotations,), media = cfg.components("align")
    assert annotations.is_file()
    assert (media / "00000/1.jpg").is_file()
    assert "0 of 2 parts" in d.prepare_dataset("llava-laion-cc-sbu-558k", tmp_path, seed=7, num_workers=1)


def test_unknown_dataset_and_no_permission(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'moving-shapes'"):
        d.prepare_dataset("moving-shape", tmp_path, seed=7, num_workers=1)
    with pytest.raises(ValueError, match="--num_workers must be at least 1"):
        d.prepare_dataset("moving-shapes", tmp_path, seed=7, num_workers=0)
    (tmp_path / "download").write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match=r"cannot write chat\.json"):
        d.prepare_dataset("llava-laion-cc-sbu-558k", tmp_path, seed=7, num_workers=1)
