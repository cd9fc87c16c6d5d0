"""What may be chosen below --media_root."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismatic.demo import shelf
from prismatic.demo.shelf import Listing, Shelf


def test_listing_has_media_and_folders_and_no_way_out(media_root: Path) -> None:
    shelf = Shelf(media_root)
    assert shelf.list("") == Listing(["deep"], ["clip.mp4"])
    assert shelf.list("deep") == Listing(["frames"], [])
    assert shelf.list("deep/frames") == Listing([], ["0.png", "1.png"], frames=True)


def test_a_long_folder_is_cut(media_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MOST_LISTED", 1)
    assert Shelf(media_root).list("deep/frames") == Listing([], ["0.png"], more=1, frames=True)


def test_find(media_root: Path) -> None:
    shelf = Shelf(media_root)
    assert shelf.find("clip.mp4") == media_root / "clip.mp4"
    assert shelf.find("deep/frames/") == media_root / "deep/frames"
    assert shelf.find(str(media_root / "clip.mp4")) == media_root / "clip.mp4"


@pytest.mark.parametrize(
    "path",
    [
        *("../outside/secret.mp4", "deep/../../outside/secret.mp4", "/etc/passwd", "link.mp4", "linked/secret.mp4"),
        *("linked", "", ".", "..", "http://127.0.0.1/a.mp4", "file:///etc/passwd", "clip.mp4\0", "C:\\a.mp4"),
    ],
)
def test_nothing_outside_is_found(media_root: Path, path: str) -> None:
    with pytest.raises(ValueError, match="is not below the folder"):
        Shelf(media_root).find(path)


def test_a_link_made_after_the_first_look(media_root: Path) -> None:
    shelf = Shelf(media_root)
    shelf.find("clip.mp4")
    (media_root / "new.mp4").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is not below"):
        shelf.find("new.mp4")


def test_what_is_not_there(media_root: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no 'no.mp4'"):
        Shelf(media_root).find("no.mp4")
    with pytest.raises(ValueError, match="is no folder"):
        Shelf(media_root).list("clip.mp4")
