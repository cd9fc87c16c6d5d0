"""moving-shapes: pixels of one clip, a pure function of its attributes and seed.

Coordinates are shares of the picture's side, x to the right and y down, (0.5, 0.5) the middle. Shapes are signed
distance functions drawn with one pixel of antialiasing.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismatic.data.moving_shapes import ClipPlan

Floats = NDArray[np.float32]

SIDE = 128  # pixels; a multiple of 16, so that no codec pads it
FPS = 10
SECONDS = (2.0, 4.0)
RADIUS = {"small": 0.095, "large": 0.15}  # before a jitter of RADIUS_JITTER
RADIUS_JITTER = 0.06
# Where an object starts is drawn from the same square for every direction, so that the first frame tells nothing
# of it. The square, the longest travel and the largest radius together just keep the object in the picture.
START = (0.42, 0.58)
TRAVEL = (0.23, 0.25)  # of the whole clip at constant speed
TRAVEL_IF_CUT_SHORT = 1.8  # factor for objects that stop or turn back: quicker, so that they too get somewhere
EVENT_TIME = (0.42, 0.54)  # share of the clip
COLOUR_CHANGE_SECONDS = 0.2
SPLIT_REACH = 0.19  # way of each half to its side
SPLIT_RADIUS = 0.72  # of the radius before: two halves have about the area of the whole
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (232, 52, 62),
    "orange": (255, 146, 36),
    "yellow": (255, 222, 64),
    "green": (70, 198, 96),
    "blue": (48, 108, 244),
    "purple": (166, 72, 222),
}
BACKGROUNDS = ((132, 124, 112), (112, 124, 136), (116, 130, 118), (136, 120, 120), (122, 118, 134), (124, 124, 124))
_STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class _Motion:
    """What the seed decides of a clip."""

    num_frames: int
    start: tuple[float, float]
    travel: float
    event_time: float
    radius: float
    tilt: float  # radians
    background: tuple[int, int, int]


def draw_clip(clip: ClipPlan, side: int = SIDE) -> NDArray[np.uint8]:
    """Frames of a planned clip, uint8 [T, side, side, 3], RGB, T / FPS seconds long."""
    motion = _motion(clip)
    ground = _ground(motion.background, side)
    frames = np.empty((motion.num_frames, side, side, 3), np.uint8)
    for index in range(motion.num_frames):
        time = index / (motion.num_frames - 1)
        canvas = ground.copy()
        colour = _colour(clip, motion, time)
        pieces, radius = _pieces(clip, motion, time)
        for centre in pieces:
            _paint(canvas, clip.attributes.shape, centre, radius, motion.tilt, colour)
        frames[index] = np.rint(canvas)
    return frames


def num_frames(clip: ClipPlan) -> int:
    """Number of frames of a planned clip, without drawing it."""
    return _motion(clip).num_frames


def _motion(clip: ClipPlan) -> _Motion:
    rng = np.random.default_rng(clip.seed)
    low, high = START
    return _Motion(
        num_frames=round(rng.uniform(*SECONDS) * FPS),
        start=(rng.uniform(low, high), rng.uniform(low, high)),
        travel=rng.uniform(*TRAVEL)
        * (TRAVEL_IF_CUT_SHORT if clip.attributes.event in ("stops", "turns back") else 1.0),
        event_time=rng.uniform(*EVENT_TIME),
        radius=RADIUS[clip.attributes.size] * rng.uniform(1 - RADIUS_JITTER, 1 + RADIUS_JITTER),
        tilt=rng.uniform(-0.12, 0.12),
        background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
    )


def _ground(colour: tuple[int, int, int], side: int) -> Floats:
    """A pale background that grows a little darker towards the bottom, float32 [side, side, 3]."""
    shade = np.linspace(1.0, 0.93, side, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(shade * np.array(colour, np.float32), (side, side, 3)))


def _colour(clip: ClipPlan, motion: _Motion, time: float) -> Floats:
    """Colour at `time` (share of the clip), float32 [3]."""
    colour = np.array(PALETTE[clip.attributes.colour], np.float32)
    target = clip.attributes.target_colour
    if target is None:
        return colour
    fade = COLOUR_CHANGE_SECONDS * FPS / motion.num_frames
    weight = min(max((time - motion.event_time) / fade + 0.5, 0.0), 1.0)
    return colour + np.float32(weight) * (np.array(PALETTE[target], np.float32) - colour)


def _pieces(clip: ClipPlan, motion: _Motion, time: float) -> tuple[list[tuple[float, float]], float]:
    """Centres of the drawn pieces (one, or two once split) and their radius at `time`."""
    event, after = clip.attributes.event, max(time - motion.event_time, 0.0)
    way = min(time, motion.event_time)
    if event == "turns back":
        way -= after
    elif event != "stops":
        way += after
    dx, dy = _STEP[clip.attributes.direction]
    x, y = motion.start[0] + dx * way * motion.travel, motion.start[1] + dy * way * motion.travel
    if event != "splits" or after == 0.0:
        return [(x, y)], motion.radius
    # Apart at a right angle to the way, fast at first.
    progress = after / (1 - motion.event_time)
    apart = SPLIT_REACH * (1 - (1 - progress) ** 2)
    return [(x + dy * apart, y + dx * apart), (x - dy * apart, y - dx * apart)], motion.radius * SPLIT_RADIUS


def _paint(canvas: Floats, shape: str, centre: tuple[float, float], radius: float, tilt: float, colour: Floats) -> None:
    """Blend one object and its soft shadow into `canvas` (float32 [side, side, 3]), touching only a window of it."""
    side = canvas.shape[0]
    cx, cy, r = centre[0] * side, centre[1] * side, radius * side
    reach = r * 1.7 + 2
    x0, x1 = max(int(cx - reach), 0), min(int(cx + reach) + 2, side)
    y0, y1 = max(int(cy - reach), 0), min(int(cy + reach) + 2, side)
    window = canvas[y0:y1, x0:x1]
    x = (np.arange(x0, x1, dtype=np.float32) + 0.5 - cx)[None, :]
    y = (np.arange(y0, y1, dtype=np.float32) + 0.5 - cy)[:, None]
    shadow = np.clip(1.25 - np.hypot(x / r, (y - 0.25 * r) / r), 0.0, 0.5) * 0.5
    window *= (1.0 - shadow)[..., None]
    cos, sin = math.cos(tilt), math.sin(tilt)
    distance = _DISTANCE[shape]((x * cos + y * sin) / r, (y * cos - x * sin) / r) * r
    alpha = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    rim = np.clip(distance + 0.14 * r, 0.0, 1.0)[..., None]  # a darker edge keeps pale colours off the background
    window += alpha * (colour * (1.0 - 0.18 * rim) - window)


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 0.93


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.98


def _triangle(x: Floats, y: Floats) -> Floats:
    """Equilateral, point up, as the intersection of three half planes; centred on its middle height."""
    y = y - 0.2
    slope = math.sqrt(3.0) / 2
    return np.maximum(y, slope * np.abs(x) - 0.5 * y) - 0.6


def _star(x: Floats, y: Floats) -> Floats:
    """Five points, one up: distance to the nearest edge line of the star's one-tenth sector."""
    radius, sector = np.hypot(x, y), math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    outer, inner = 1.12, 0.5
    qx, qy = inner * math.cos(sector), inner * math.sin(sector)
    length = math.hypot(outer - qx, qy)
    return ((px - outer) * qy + py * (outer - qx)) / length


_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
