"""The report's pictures: a few frames of a clip as small JPEGs, and contact sheets of whole clusters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from prismatic.report.pictures import Picture, data_uri, thumbnail
from prismatic.types import Medium
from prismatic.video.decode import MediaError, open_frames, open_video, read_image
from prismatic.video.sampling import ClipFacts, sample

log = logging.getLogger(__name__)

SIDE = 176  # longest side of a picture, pixels
JPEG_QUALITY = 78
GAP = 4
BAR = 16  # height of the line with a clip's name on a sheet
PAGE_COLOUR, INK = (246, 247, 249), (70, 80, 96)


@dataclass(frozen=True)
class Strip:
    """Frames of one clip in time. problem: why there are none."""

    name: str
    caption: str
    pictures: list[Picture]
    images: list[Image.Image]
    problem: str = ""


def strip(medium: Medium, count: int, name: str, caption: str) -> Strip:
    """`count` frames of a clip as training takes them by default (`--dataset.sampler uniform`), made small.

    A file that cannot be read gives a strip that says so.
    """
    try:
        frames, times = _frames(medium, count)
    except MediaError as error:
        log.warning("report: %s", error)
        return Strip(name, caption, [], [], str(error))
    images = [thumbnail(frame, SIDE) for frame in frames]
    pictures = [Picture(data_uri(i, JPEG_QUALITY), t) for i, t in zip(images, times, strict=True)]
    return Strip(name, caption, pictures, images)


def _frames(medium: Medium, count: int) -> tuple[Sequence[np.ndarray], list[str]]:
    if medium.kind == "image":
        return read_image(medium.paths[0]), [""]
    if medium.kind == "frames":
        with open_frames(medium.paths) as clip:
            return clip.get(np.arange(len(clip))), [""] * len(clip)
    with open_video(medium.paths[0]) as clip:
        facts = ClipFacts.of(clip)
        taken = sample(facts, medium.num_frames or count, "uniform", np.random.default_rng(0))
        seconds = facts.seconds()[taken]
        return clip.get(taken), [f"{second:.1f} s" for second in seconds]


def contact_sheet(strips: Sequence[Strip], file: Path) -> None:
    """All strips below each other in one PNG, each below its name."""
    columns = max((len(s.images) for s in strips), default=0) or 1
    wide = GAP + max((image.width for s in strips for image in s.images), default=2 * SIDE)
    sheet = Image.new("RGB", (columns * wide + GAP, sum(_height(s) for s in strips) + GAP), PAGE_COLOUR)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for one in strips:
        text = one.name if not one.problem else f"{one.name}: {one.problem}"
        draw.text((GAP, top), text.encode("ascii", "replace").decode(), fill=INK)
        for column, image in enumerate(one.images):
            sheet.paste(image, (GAP + column * wide, top + BAR))
        top += _height(one)
    sheet.save(file, "PNG", optimize=True)


def _height(one: Strip) -> int:
    return BAR + max((image.height for image in one.images), default=0) + GAP
