"""`webvid.py report`: a page that shows clusters and the examples woven of them, and the same pictures as PNG.

Owns what is shown and how much of it; numbers, drawings, pictures and the page's look have files of their own.
"""

from __future__ import annotations

import base64
import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid import WeaveConfig
from prismatic.conf.webvid_report import ReportConfig
from prismatic.data.annotations import load_records
from prismatic.data.media_paths import MediaRoot
from prismatic.types import Medium, Record
from prismatic.webvid.catalog import Catalog, read_catalog
from prismatic.webvid.confined import video_path
from prismatic.webvid.files import clear_dead, whole_file, write_rows
from prismatic.webvid.report_data import Clusters, Likeness, measure, principal_plane, read_cluster_rows, skipped
from prismatic.webvid.report_figures import Shown, cohesion_png, map_png, sizes_png
from prismatic.webvid.report_page import PAGE
from prismatic.webvid.report_pictures import Strip, contact_sheet, strip
from prismatic.webvid.weave import weave

log = logging.getLogger(__name__)

KINDS = ("best", "median", "worst")
CLUSTERS_A_KIND = 3
VIDEOS_A_CLUSTER = 8
FRAMES_A_VIDEO = 3
WOVEN = 3
MEDIA_OF_A_WOVEN = 16  # clips of a woven example that are shown
FRAMES_OF_A_STRIP = 32
MAP_VIDEOS = 3000
REASONS = 40
LONGEST_TEXT = 4000  # characters of a caption, a question, an answer


@dataclass(frozen=True)
class Sheet:
    """A cluster on the page. more: its videos that are not shown."""

    kind: str
    name: str
    worth: float | None
    strips: list[Strip]
    more: int


@dataclass(frozen=True)
class Woven:
    """An example as training reads it."""

    id: str
    question: str
    answer: str
    strips: list[Strip]
    more: int


def report(cfg: ReportConfig) -> str:
    """Write cfg.output and its folder of PNGs and return a summary. Raises ValueError for input that cannot be used."""
    import jinja2

    cfg.validate()
    catalog = read_catalog(cfg.catalog)
    clusters = read_cluster_rows(cfg.clusters, catalog)
    likeness = measure(cfg.embeddings, clusters, catalog, cfg.seed) if cfg.embeddings is not None else None
    files = files_folder(cfg)
    files.mkdir(parents=True, exist_ok=True)
    for old in files.glob("*.png"):
        old.unlink()
    chosen = _chosen(clusters, likeness, cfg.seed)
    figures = _figures(clusters, likeness, chosen, cfg.seed)
    sheets = _sheets(catalog, clusters, likeness, chosen)
    woven = [_woven(record) for record in woven_records(cfg, catalog, clusters)]
    for name, data in figures.items():
        (files / f"{name}.png").write_bytes(data)
    numbers: Counter[str] = Counter()
    for sheet in sheets:
        numbers[sheet.kind] += 1
        contact_sheet(sheet.strips, files / f"{sheet.kind}-{numbers[sheet.kind]}.png")
    for number, example in enumerate(woven, start=1):
        contact_sheet(example.strips, files / f"woven-{number}.png")
    folders = {"embeddings": cfg.embeddings, "frames": cfg.frames}
    reasons = skipped(catalog, clusters, folders, files / "skipped.jsonl")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(PAGE).render(
        title=cfg.clusters.name,
        tiles=_tiles(catalog, clusters, likeness),
        figures={n: "data:image/png;base64," + base64.b64encode(d).decode("ascii") for n, d in figures.items()},
        sheets=sheets,
        kinds=KINDS if likeness is not None else ("some",),
        woven=woven,
        form=cfg.form,
        total_frames=cfg.total_frames,
        reasons=reasons[:REASONS],
        more_reasons=len(reasons) - REASONS,
        listed=f"{files.name}/skipped.jsonl",
        map_videos=min(MAP_VIDEOS, len(clusters.members)),
    )
    clear_dead(cfg.output)
    with whole_file(cfg.output) as file:
        file.write(page)
    without = sum(bool(s.problem) for sheet in sheets for s in sheet.strips)
    told = f"{cfg.output}: {len(clusters.names)} clusters, {len(sheets)} of them and {len(woven)} woven examples shown"
    return f"{told}; PNGs in {files}" + (f"; {without} videos shown could not be read" if without else "")


def files_folder(cfg: ReportConfig) -> Path:
    """Where the page's pictures and rows lie as files of their own."""
    return cfg.output.with_name(f"{cfg.output.stem}_files")


def _chosen(clusters: Clusters, likeness: Likeness | None, seed: int) -> list[tuple[str, int]]:
    """(kind, number of the cluster) of those to show: by cohesion, or a few at random. None comes twice."""
    count = len(clusters.names)
    if likeness is None:
        some = np.random.default_rng(seed).permutation(count)[: 2 * CLUSTERS_A_KIND]
        return [("some", int(i)) for i in np.sort(some)]
    order = np.argsort(-likeness.found, kind="stable")
    each = max(1, min(CLUSTERS_A_KIND, count // len(KINDS)))  # of few clusters, fewer of every kind
    first = (count - each) // 2
    picks = {"best": order[:each], "worst": order[::-1][:each], "median": order[first : first + each]}
    taken: dict[int, str] = {}
    for kind in ("best", "worst", "median"):
        for i in picks[kind].tolist():
            taken.setdefault(i, kind)
    return [(kind, i) for kind in KINDS for i, of in taken.items() if of == kind]


def _figures(
    clusters: Clusters, likeness: Likeness | None, chosen: list[tuple[str, int]], seed: int
) -> dict[str, bytes]:
    figures = {"sizes": sizes_png(clusters.sizes)}
    if likeness is None:
        return figures
    figures["cohesion"] = cohesion_png(likeness.found, likeness.chance, likeness.bound)
    count = len(likeness.vectors)
    owner = np.repeat(np.arange(len(clusters.ends)), clusters.sizes)
    sample = np.sort(np.random.default_rng(seed).choice(count, min(MAP_VIDEOS, count), replace=False))
    ringed = [np.arange(count)[clusters.span(i)] for _, i in chosen]
    places = principal_plane(likeness.vectors, np.concatenate([sample, *ringed]), seed)
    ends = np.cumsum([len(sample), *map(len, ringed)])
    pieces = np.split(places, ends[:-1])
    shown = [Shown(kind, piece) for (kind, _), piece in zip(chosen, pieces[1:], strict=True)]
    figures["map"] = map_png(pieces[0], likeness.found[owner[sample]], shown)
    return figures


def _sheets(
    catalog: Catalog, clusters: Clusters, likeness: Likeness | None, chosen: list[tuple[str, int]]
) -> list[Sheet]:
    sheets = []
    root = MediaRoot(catalog.videos)
    for kind, i in tqdm(chosen, unit="cluster", desc="contact sheets"):
        rows = clusters.rows(i)
        strips = [
            _strip(root, catalog.paths[row], _short(catalog.ids[row]), _short(catalog.captions[row]))
            for row in rows[:VIDEOS_A_CLUSTER]
        ]
        worth = None if likeness is None else float(likeness.found[i])
        sheets.append(Sheet(kind, clusters.names[i], worth, strips, max(0, len(rows) - VIDEOS_A_CLUSTER)))
    return sheets


def _strip(root: MediaRoot, path: str, name: str, caption: str) -> Strip:
    try:
        found = video_path(root, path)
    except ValueError as error:
        return Strip(name, caption, [], [], f"{path}: {error}" if path else f"{name} (missing)")
    return strip(Medium("video", (str(found),)), FRAMES_A_VIDEO, name, caption)


def woven_records(cfg: ReportConfig, catalog: Catalog, clusters: Clusters) -> list[Record]:
    """A few of the clusters through `webvid.py weave` and the reader of training."""
    bad = np.add.reduceat(~catalog.ok[clusters.members], clusters.ends - clusters.sizes)
    whole = np.flatnonzero(bad == 0).tolist()
    picked = np.random.default_rng(cfg.seed).permutation(len(whole))[:WOVEN]
    if not len(picked):
        return []
    root = cfg.frames if cfg.frames is not None else catalog.videos
    output = files_folder(cfg) / "woven.json"
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "clusters.json")
        write_rows(
            few,
            (
                {"video_id": catalog.ids[row], "caption": catalog.captions[row], "cluster": clusters.names[whole[i]]}
                for i in sorted(picked.tolist())
                for row in clusters.rows(whole[i])
            ),
        )
        weave(
            WeaveConfig(
                clusters=few,
                catalog=cfg.catalog,
                frames=cfg.frames,
                total_frames=cfg.total_frames,
                form=cfg.form,
                prompt=cfg.prompt,
                output=output,
                seed=cfg.seed,
            )
        )
    return list(load_records(output, root))


def _woven(record: Record) -> Woven:
    strips = []
    for medium in record.media[:MEDIA_OF_A_WOVEN]:
        shown = medium
        if medium.kind == "frames":
            shown = Medium("frames", medium.paths[:FRAMES_OF_A_STRIP])
        elif (medium.num_frames or 1) > FRAMES_OF_A_STRIP:
            shown = Medium(medium.kind, medium.paths, FRAMES_OF_A_STRIP)
        name = Path(medium.paths[0]).name if medium.kind == "video" else f"{len(medium.paths)} frames"
        strips.append(strip(shown, 1, name, ""))
    said = {"human": "", "gpt": ""}
    for turn in record.turns[:2]:
        said[turn.role] = _short(turn.text)
    more = max(0, len(record.media) - MEDIA_OF_A_WOVEN)
    return Woven(_short(record.id), said["human"], said["gpt"], strips, more)


def _short(text: str) -> str:
    """Whatever captions there are, the page stays small."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ..."


def _tiles(catalog: Catalog, clusters: Clusters, likeness: Likeness | None) -> list[tuple[str, str]]:
    """(number, what it is), the few that a reader looks for first."""
    sizes = clusters.sizes.tolist()
    each = f"of {sizes[0]} videos each" if len(set(sizes)) == 1 else f"of {min(sizes)} to {max(sizes)} videos"
    tiles = [(f"{len(sizes):,}", f"clusters, {each}")]
    if likeness is not None:
        tiles.append((f"{likeness.found.mean():.3f}", f"mean cohesion; random clusters {likeness.chance.mean():.3f}"))
        if likeness.bound is not None:
            tiles.append((f"{likeness.bound:.3f}", "about the most that clusters of this size can have"))
    tiles.append((f"{sum(sizes):,}", f"videos in clusters, of {len(catalog.ids):,} in the catalog"))
    bad = len(catalog.ids) - len(catalog.usable())
    tiles.append((f"{bad:,}", "videos of the catalog that cannot be used"))
    return tiles
