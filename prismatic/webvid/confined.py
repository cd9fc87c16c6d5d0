"""Where a catalog's video lies. Catalogs are files that other people may have written: their paths stay confined."""

from __future__ import annotations

import os
from pathlib import Path

from prismatic.data.media_paths import MediaPathError, MediaRoot


def video_path(root: MediaRoot, path: str) -> Path:
    """The file of a path of a catalog. Raises ValueError for one that leaves the folder of the videos, `root`, by
    itself or by a link, as training would refuse it.
    """
    try:
        return Path(root.resolve(path))
    except MediaPathError as error:
        inside = path.strip() and not os.path.isabs(path) and not os.path.normpath(path).startswith("..")
        what = "link" if inside and os.path.lexists(os.path.join(root.root, path.replace("\0", ""))) else "path"
        raise ValueError(f"a {what} that leaves the folder of the videos") from error
