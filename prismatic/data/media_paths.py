"""Media paths of annotation rows: joined to the media folder, and never outside it.

Rows are other people's data, so a path may try to leave the folder: by `..`, as an absolute path, through a link, as a
URL. Folders are looked at (links in them, where they really lie); no file is looked at by itself.

The folder itself may be a URL that fsspec understands: then its rows' paths are below that URL, and nowhere else.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote

from prismatic.video.decode import is_video
from prismatic.video.images import PICTURE_EXTENSIONS
from prismatic.video.shards import MARK, index_path, is_shard_path
from prismatic.video.storage import is_dir, is_url

# A path of only such characters, without `..`, needs no normalizing. Most rows of most files have one.
_PLAIN = re.compile(r"[\w\-+=,@()\[\]&'!#%~. /]+", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(::[A-Za-z0-9+.\-]*)*://|data:|file:")
_KEPT_FOLDERS = 4096
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class MediaPathError(ValueError):
    """A path that may not be read. The text says why, without file and row."""


class MediaRoot:
    """The folder that all media of an annotation file lie in; need not exist yet. root: a path, or a URL (a str)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._is_url = is_url(root)
        self.root = str(root).rstrip("/") if self._is_url else os.path.abspath(root)
        self._real = self.root if self._is_url else os.path.realpath(self.root)
        self._odd: dict[str, frozenset[str]] = {}  # folder -> names in it of links, and of folders named like files
        self._videos: dict[str, str] | None = None

    def resolve(self, path: str) -> str:
        """Absolute path of a medium. Raises MediaPathError when it is no path, or lies outside the folder.

        `shards/000000.tar#ID` is a clip in a shard: the shard has to lie in the folder, ID is no path.
        """
        if isinstance(path, str) and MARK in path:
            tar, _, clip_id = path.partition(MARK)
            tar += MARK[:-1]
            self.resolve(index_path(tar))  # it is read as well, and may be a link of its own
            return f"{self.resolve(tar)}#{clip_id}"
        if self._is_url:
            return f"{self.root}/{self._normalize(path)}"
        if not isinstance(path, str) or not _PLAIN.fullmatch(path) or ".." in path or "//" in path or path[0] == "/":
            path = self._normalize(path)
        full = f"{self.root}/{path}"
        folder, _, name = full.rpartition("/")
        odd = self._odd.get(folder)
        if odd is None:
            if len(self._odd) >= _KEPT_FOLDERS:  # of millions of folders, one a clip, none is met again soon
                self._odd.clear()
            odd = self._odd[folder] = self._look_at(folder, path)
        if name in odd and not self._holds(os.path.realpath(full)):
            raise self._outside(path, f"a link to {os.path.realpath(full)}")
        if name in odd or _may_be_folder(name):
            self._look_into(full, path)
        return full

    def find_video(self, stem: str) -> str:
        """The video `stem` with any video extension, anywhere below the folder.

        Gives `stem`.mp4 when there is none, so that the file is reported as missing where it would be read.
        """
        if is_video(stem):
            return self.resolve(stem)
        if self._videos is None:
            self._videos = {} if self._is_url else dict(self._walk())
        return self.resolve(self._videos.get(stem, f"{stem}.mp4"))

    def _walk(self) -> Iterator[tuple[str, str]]:
        """(name without extension, path below the root) of all videos; of two of one name the first in order wins."""
        found = []
        for folder, _, names in os.walk(self._real):
            inside = os.path.relpath(folder, self._real)
            found += [
                (name.rpartition(".")[0], os.path.normpath(f"{inside}/{name}")) for name in names if is_video(name)
            ]
        return iter(sorted(found, reverse=True))

    def _normalize(self, path: str) -> str:
        if not isinstance(path, str) or not path.strip():
            raise MediaPathError(f"a media path must be a text that is not empty, got {path!r}")
        if "\0" in path:
            raise MediaPathError(f"media path {path!r} holds a NUL character")
        if _URL.match(path):
            raise MediaPathError(f"media path {path!r} is a URL; download it below {self.root} and name the file")
        if _DRIVE.match(path):
            raise MediaPathError(f"media path {path!r} is absolute on another system; make it relative to {self.root}")
        if self._is_url:
            return self._normalize_below_url(path)
        full = os.path.normpath(os.path.join(self.root, path))
        if os.path.isabs(path) and not _is_below(full, self.root) and _is_below(full, self._real):
            full = os.path.join(self.root, os.path.relpath(full, self._real))
        if not _is_below(full, self.root):
            raise self._outside(path, "an absolute path" if os.path.isabs(path) else "'..'")
        return os.path.relpath(full, self.root)

    def _normalize_below_url(self, path: str) -> str:
        # A server may read %2e%2e as "..", and what follows "?" as another question.
        inside = posixpath.normpath(unquote(path))
        if inside.startswith(("/", "..")) or "\\" in inside or "::" in path or "?" in path:
            raise self._outside(path, "an absolute path" if inside.startswith("/") else "'..', '?' or '::'")
        return posixpath.normpath(path)

    def _look_at(self, folder: str, path: str) -> frozenset[str]:
        real = os.path.realpath(folder)
        if not self._holds(real):
            raise self._outside(path, f"a link to {real}")
        try:
            with os.scandir(real) as entries:
                return frozenset(entry.name for entry in entries if _is_odd(entry))
        except OSError:  # no such folder: its files are reported as missing where they would be read
            return frozenset()

    def _look_into(self, folder: str, path: str) -> None:
        """Frames of a clip may be links, too."""
        try:
            with os.scandir(folder) as entries:
                links = [entry.path for entry in entries if entry.is_symlink()]
        except OSError:  # no folder, or none that can be read: reading it says so
            return
        for link in links:
            if not self._holds(os.path.realpath(link)):
                raise self._outside(path, f"{os.path.basename(link)} in it is a link to {os.path.realpath(link)}")

    def _holds(self, real: str) -> bool:
        return real == self._real or _is_below(real, self._real)

    def _outside(self, path: str, how: str) -> MediaPathError:
        return MediaPathError(
            f"media path {path!r} leaves the media folder {self.root} ({how}); paths are relative to that folder, the "
            "second part of --dataset.finetune_stage_components (or align_stage_components)"
        )


def kind_of(path: str) -> str:
    """ "video" or "image", by the extension; without a known one a folder of frames or a clip in a shard is a video."""
    extension = os.path.splitext(path)[1].lower()
    if _is_video_extension(extension) or is_shard_path(path):
        return "video"
    return "video" if extension not in PICTURE_EXTENSIONS and is_dir(path) else "image"


def _is_odd(entry: os.DirEntry[str]) -> bool:
    """Whether what lies under a name may be elsewhere, or is a folder though it is named like a file."""
    return entry.is_symlink() or (entry.is_dir() and not _may_be_folder(entry.name))


def _may_be_folder(name: str) -> bool:
    extension = os.path.splitext(name)[1].lower()
    return extension not in PICTURE_EXTENSIONS and extension != ".tar" and not _is_video_extension(extension)


@cache
def _is_video_extension(extension: str) -> bool:
    return is_video(f"x{extension}")


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")
