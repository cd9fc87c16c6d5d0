"""`scripts/preprocess.py` below its command line: fetch or render a dataset into its folder.

Owns the table of what each dataset is made of, downloads that go on where they were cut off, and unpacking that lets
nothing out of its folder. A finished part leaves a mark in `.complete/`, so a second call does only what is missing.
"""

from __future__ import annotations

import http.client
import json
import logging
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from prismatic.registry import Registry

log = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60
ATTEMPTS = 6  # each goes on where the one before it stopped; waits 1, 2, 4, ... seconds between them


class DownloadError(ValueError):
    """A dataset cannot be fetched or unpacked. The text names the URL and file, and says what to do."""


@dataclass(frozen=True)
class Part:
    """One file or zip archive of a dataset.

    target: where it ends up below the dataset's folder; "" unpacks into the folder itself. zipped: unpack it; the one
    folder that holds everything in the archive, if there is one, becomes the target. to_jpeg: turn gif and png pictures
    into jpg afterwards, because the annotations name them so.
    """

    target: str
    url: str
    zipped: bool = False
    to_jpeg: bool = False


_HUB = "https://huggingface.co/datasets"
ARCHIVES: dict[str, tuple[Part, ...]] = {
    "llava-laion-cc-sbu-558k": (
        Part("chat.json", f"{_HUB}/liuhaotian/LLaVA-Pretrain/resolve/main/blip_laion_cc_sbu_558k.json"),
        Part("", f"{_HUB}/liuhaotian/LLaVA-Pretrain/resolve/main/images.zip", zipped=True),
    ),
    "llava-v1.5-instruct": (
        Part("llava_v1_5_mix665k.json", f"{_HUB}/liuhaotian/LLaVA-Instruct-150K/resolve/main/llava_v1_5_mix665k.json"),
        Part("coco/train2017", "http://images.cocodataset.org/zips/train2017.zip", zipped=True),
        Part("gqa/images", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", zipped=True),
        Part("ocr_vqa/images", f"{_HUB}/qnguyen3/ocr_vqa/resolve/main/ocr_vqa.zip", zipped=True, to_jpeg=True),
        Part("textvqa/train_images", "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip", zipped=True),
        Part("vg/VG_100K", "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip", zipped=True),
        Part("vg/VG_100K_2", "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip", zipped=True),
    ),
}

Prepare = Callable[[Path, int, int], str]
"""(root folder, seed, number of workers) -> one line that says what is there now."""
PREPARE: Registry[Prepare] = Registry("dataset", flag="--dataset_id")


@PREPARE.register("moving-shapes")
def prepare_moving_shapes(root: Path, seed: int, num_workers: int) -> str:
    """Render the embedded dataset into root/moving-shapes."""
    from prismatic.data.moving_shapes_render import render

    done = render(root / "moving-shapes", seed, num_workers=num_workers)
    return f"{done.root}: {done.num_train} train and {done.num_val} val clips, {done.num_rendered} of them rendered now"


def _prepare_archives(dataset_id: str) -> Prepare:
    def prepare(root: Path, _seed: int, num_workers: int) -> str:
        folder = root / "download" / dataset_id
        fetched = [fetch_part(part, folder, num_workers) for part in ARCHIVES[dataset_id]]
        return f"{folder}: {sum(fetched)} of {len(fetched)} parts fetched, the rest were there"

    return prepare


for _dataset_id in ARCHIVES:
    PREPARE.add(_dataset_id, _prepare_archives(_dataset_id))


def fetch_part(part: Part, folder: Path, num_workers: int) -> bool:
    """Bring one part of a dataset into `folder`; False when it was already complete.

    Raises DownloadError when it cannot be fetched, does not fit on the disk, or is not what it should be.
    """
    name = part.url.rsplit("/", 1)[-1]
    mark = folder / ".complete" / (part.target or name).replace("/", "+")
    if mark.is_file():
        return False
    try:
        if part.zipped:
            archive = folder / ".archives" / name
            download(part.url, archive)
            target = folder / part.target
            count = unpack(archive, target, unwrap=bool(part.target))
            if part.to_jpeg:
                count = to_jpeg(target, num_workers)
            archive.unlink()
            summary: dict[str, Any] = {"url": part.url, "files": count}
        else:
            download(part.url, folder / part.target)
            summary = {"url": part.url, "bytes": (folder / part.target).stat().st_size}
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(summary) + "\n", encoding="utf-8")
    except OSError as error:
        raise DownloadError(f"{folder}: cannot write {part.target or name} ({error})") from error
    return True


def download(url: str, target: Path) -> None:
    """Fetch `url` into `target`, going on where `target`.part ends. Nothing is done when `target` exists.

    A file that has changed on the server in between is fetched anew. Raises DownloadError after ATTEMPTS failures in a
    row without a new byte, OSError for what the disk refuses.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _fetch(url, partial)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
            problem = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", "") or error or type(error).__name__)
        grown = partial.exists() and partial.stat().st_size > before
        failures = 1 if grown else failures + 1
        if failures >= ATTEMPTS:
            raise DownloadError(
                f"{url} cannot be reached ({problem}). Run the same command again to go on where it stopped, or put "
                f"the file at {target} by hand"
            )
        log.warning("%s: %s; going on in %d s", url, problem, 2 ** (failures - 1))
        time.sleep(2 ** (failures - 1))
    partial.replace(target)
    _tag_file(partial).unlink(missing_ok=True)


def _tag_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


def _fetch(url: str, partial: Path) -> None:
    """One request; appends to `partial`. Returns when the file is whole, raises on anything else."""
    start = partial.stat().st_size if partial.exists() else 0
    tag_file = _tag_file(partial)
    headers = {"User-Agent": "prismatic"}
    if start and tag_file.is_file():
        # If-Range: the server sends the rest only when its file is still the one that was begun.
        headers |= {"Range": f"bytes={start}-", "If-Range": tag_file.read_text(encoding="utf-8")}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as response:
        appending = response.status == 206
        start = start if appending else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        free = shutil.disk_usage(partial.parent).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"{url} needs {(total - start) / 1e9:.1f} GB more, but only {free / 1e9:.1f} GB are free at "
                f"{partial.parent}"
            )
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            tag_file.write_text(tag, encoding="utf-8")
        else:
            tag_file.unlink(missing_ok=True)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1])
        with partial.open("ab" if appending else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def unpack(archive: Path, target: Path, *, unwrap: bool) -> int:
    """Unpack a zip archive into `target` and return the number of its files. Files already there whole are kept.

    unwrap: when one folder holds everything in the archive, its contents go to `target` itself. Raises DownloadError
    for an archive that is damaged, too large for the disk, or has an entry that is a link or leads out of `target`.
    """
    if not zipfile.is_zipfile(archive):
        raise DownloadError(f"{archive} is not a zip archive; delete it and run the same command again")
    with zipfile.ZipFile(archive) as source:
        members = [info for info in source.infolist() if not info.is_dir()]
        places = [_member_path(archive, info) for info in members]
        tops = {place.parts[0] for place in places}
        skip = 1 if unwrap and len(tops) == 1 and all(len(place.parts) > 1 for place in places) else 0
        files = [target.joinpath(*place.parts[skip:]) for place in places]
        missing = [
            (i, f) for i, f in zip(members, files, strict=True) if not f.is_file() or f.stat().st_size != i.file_size
        ]
        target.mkdir(parents=True, exist_ok=True)
        needed, free = sum(info.file_size for info, _ in missing), shutil.disk_usage(target).free
        if needed > free:
            raise DownloadError(
                f"{archive} unpacks to {needed / 1e9:.1f} GB more, but only {free / 1e9:.1f} GB are free at {target}"
            )
        for info, file in tqdm(missing, unit="file", desc=f"unpack {archive.name}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(file.name + ".partial")
            try:
                with source.open(info) as packed, temporary.open("wb") as out:
                    shutil.copyfileobj(packed, out, CHUNK)
                temporary.replace(file)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise DownloadError(f"{archive}: '{info.filename}' is damaged ({error}); delete the archive") from error
            finally:
                temporary.unlink(missing_ok=True)
    return len(members)


def _member_path(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    name = info.filename
    place = PurePosixPath(name.replace("\\", "/"))
    unsafe = place.is_absolute() or ".." in place.parts or "\0" in name or ":" in name or not place.parts
    if unsafe or stat.S_ISLNK(info.external_attr >> 16):
        raise DownloadError(f"{archive}: the entry {name!r} is a link or leads out of the folder; nothing was unpacked")
    return place


def to_jpeg(folder: Path, num_workers: int) -> int:
    """Turn every gif (its first picture) and png below `folder` into a jpg beside it, remove the original, and return
    the number of pictures. Left as they are: a file that is no picture, with a warning, and one that has a jpg already.
    """
    originals = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".gif", ".png"))

    def convert(path: Path) -> None:
        target, temporary = path.with_suffix(".jpg"), path.with_suffix(".jpg.partial")
        if target.exists():
            return
        try:
            with Image.open(path) as image:
                image.convert("RGB").save(temporary, "JPEG", quality=95)
        except (UnidentifiedImageError, SyntaxError, ValueError) as error:
            log.warning("%s is no picture that can be read (%s), left as it is", path, error)
            temporary.unlink(missing_ok=True)
            return
        temporary.replace(target)
        path.unlink()

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        list(tqdm(pool.map(convert, originals), total=len(originals), unit="picture", desc="convert to jpg"))
    return sum(path.suffix.lower() in (".jpg", ".jpeg") for path in folder.rglob("*"))


def prepare_dataset(dataset_id: str, root: Path, *, seed: int, num_workers: int) -> str:
    """Fetch or render a dataset below `root` and return a line that says what is there.

    Raises ValueError for an unknown id (with suggestions) and what the dataset's own preparation raises.
    """
    if num_workers < 1:
        raise ValueError(f"--num_workers must be at least 1, got {num_workers}")
    return PREPARE.get(dataset_id)(root, seed, num_workers)


def dataset_ids() -> Sequence[str]:
    """What --dataset_id takes."""
    return PREPARE.names()
