"""The files that visitors may choose without uploading them: what lies below --media_root, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from prismatic.data.media_paths import MediaPathError, MediaRoot
from prismatic.video.decode import is_video
from prismatic.video.images import PICTURE_EXTENSIONS

MOST_LISTED = 2000  # entries of one folder


@dataclass(frozen=True)
class Listing:
    """A folder below the root: names of the folders and of the media in it. more: how many are left out. frames: it
    holds pictures, so that it can itself be opened, as the frames of one clip.
    """

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    more: int = 0
    frames: bool = False


class Shelf:
    """root: the folder. Links in it are looked at each time, since they may be new."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def find(self, path: str) -> Path:
        """The file or folder at a path below the root. Raises ValueError when it lies elsewhere, or is not there."""
        try:
            found = Path(MediaRoot(self.root).resolve(path.removesuffix("/")))
        except MediaPathError as error:
            raise ValueError(f"'{path}' is not below the folder that is served here") from error
        if not found.exists():
            raise ValueError(f"there is no '{path}' in the folder that is served here")
        return found

    def list(self, folder: str) -> Listing:
        """What can be chosen in a folder ("" is the root itself). Raises ValueError as `find`, or for no folder."""
        path = self.find(folder) if folder.strip("/") else self.root
        if not path.is_dir():
            raise ValueError(f"'{folder}' is no folder")
        folders, files = [], []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                kept = folders if entry.is_dir() else files if _is_media(entry.name) else None
                if kept is not None and (not entry.is_symlink() or self._holds(os.path.join(folder, entry.name))):
                    kept.append(entry.name)
        left_out = max(0, len(folders) - MOST_LISTED) + max(0, len(files) - MOST_LISTED)
        pictures = any(_is_picture(name) for name in files)
        return Listing(sorted(folders)[:MOST_LISTED], sorted(files)[:MOST_LISTED], left_out, pictures)

    def _holds(self, path: str) -> bool:
        try:
            self.find(path)
        except ValueError:
            return False
        return True


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURE_EXTENSIONS


def _is_media(name: str) -> bool:
    return is_video(name) or _is_picture(name)
