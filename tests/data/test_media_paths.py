"""Paths of rows stay below the media folder, whatever they say and whatever links lie there."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismatic.data.annotations import AnnotationError
from tests.data.annotation_rows import CHAT, media, one


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../secret.jpg", r"leaves the media folder .* \('\.\.'\)"),
        ("a/../../secret.jpg", "leaves the media folder"),
        ("..", "leaves the media folder"),
        ("/etc/passwd.jpg", r"leaves the media folder .* \(an absolute path\)"),
        ("a\0.jpg", "NUL"),
        ("http://host/a.mp4", "is a URL"),
        ("file:///etc/a.mp4", "is a URL"),
        ("C:\\videos\\a.mp4", "absolute on another system"),
        ("\\\\host\\a.mp4", "absolute on another system"),
    ],
)
@pytest.mark.parametrize("key", ["image", "videos", "frames"])
def test_path_may_not_leave_its_folder(root: Path, key: str, path: str, said: str) -> None:
    row = {key: path if key == "image" else [path], "conversations": CHAT}
    with pytest.raises(AnnotationError, match=f"row 1: .*{said}"):
        one(root, row)


def test_links_that_leave_are_refused_and_links_that_stay_are_fine(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "a.jpg").touch()
    (root / "inside").mkdir()
    (root / "file.jpg").symlink_to(outside / "a.jpg")
    (root / "folder").symlink_to(outside, target_is_directory=True)
    (root / "fine").symlink_to(root / "inside", target_is_directory=True)
    for path in ("file.jpg", "folder/a.jpg"):
        with pytest.raises(AnnotationError, match=r"leaves the media folder .* \(a link to"):
            one(root, {"image": path, "conversations": CHAT})
    assert media(root, {"image": "fine/a.jpg", "conversations": CHAT})[0][1] == ["fine/a.jpg"]


def test_media_folder_may_be_a_link_itself_and_absolute_paths_into_it_are_fine(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root, target_is_directory=True)
    for path in (str(link / "a.jpg"), str(root / "a.jpg"), "./x/../a.jpg"):
        record = one(link, {"image": path, "conversations": CHAT})
        assert record.media[0].paths == (str(link / "a.jpg"),)


def test_odd_but_honest_names(root: Path) -> None:
    for path in ("a..b.jpg", "caf\u00e9/\u6f22.mp4", "a:b.jpg", "x//y.jpg", "~/z.jpg"):
        found = one(root, {"image": path, "conversations": CHAT}).media[0].paths[0]
        assert found == str(root / path)
