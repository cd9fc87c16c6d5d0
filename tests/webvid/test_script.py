"""scripts/webvid.py as a person calls it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prismatic.conf import cli
from prismatic.conf.webvid import CatalogConfig, ClusterConfig, WeaveConfig
from prismatic.conf.webvid_media import EmbedConfig, ExtractConfig, SplitConfig
from prismatic.conf.webvid_rows import ROW_SUBCOMMANDS
from tests.webvid.heap import write_heap

ROOT = Path(__file__).parent.parent.parent


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/webvid.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_help_lists_the_subcommands_and_an_example_for_each() -> None:
    listed = _run("--help")
    assert listed.returncode == 0
    for name in ("catalog", "extract", "split", "embed", "cluster", "weave", "report", *ROW_SUBCOMMANDS):
        assert name in listed.stdout
        told = _run(name, "--help")
        assert told.returncode == 0
        assert f"python scripts/webvid.py {name}" in told.stdout
        assert "--output" in told.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["clutser"], "error: unknown subcommand 'clutser'; did you mean 'cluster'?"),
        (["weave", "--frame", "x"], "error: unknown flag --frame; did you mean"),
        (["catalog", "--videos", "not-there"], "error: --videos not-there: no such folder"),
    ],
)
def test_bad_input_is_one_line(args: list[str], said: str) -> None:
    done = _run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "config"), [(name, config) for name, (config, _) in ROW_SUBCOMMANDS.items()])
def test_examples_of_row_tools_parse(name: str, config: type) -> None:
    words = shlex.split((config.__doc__ or "").split("scripts/webvid.py ", 1)[1].split("\n")[0])
    assert words[0] == name
    cli.parse(config, words[1:]).validate()


def test_examples_in_the_help_parse() -> None:
    for config in (CatalogConfig, ExtractConfig, SplitConfig, EmbedConfig, ClusterConfig, WeaveConfig):
        text = (config.__doc__ or "").split("scripts/webvid.py ", 1)[1].replace("\\\n", " ")
        words = text.split("\n", 1)[0].replace("\\", " ").split()
        # A docstring's backslash at the end of a line has joined it to the next already.
        assert words[0] == config.__name__.removesuffix("Config").lower()
        assert "--output" in words
        cli.parse(config, words[1:]).validate()


def test_a_heap_of_videos_to_frames_and_vectors(tmp_path: Path) -> None:
    captions = write_heap(tmp_path / "v", 4)
    (tmp_path / "t.json").write_text(json.dumps([{"id": i, "caption": c} for i, c in captions.items()]))
    catalog, vision = ("--catalog", f"{tmp_path}/c.parquet"), ("--vision_backbone_id", "tiny-vit")
    frames = ["extract", *catalog, "--num_frames", "2", "--output", f"{tmp_path}/f"]
    for args, said in (
        (["catalog", "--videos", f"{tmp_path}/v", "--captions", f"{tmp_path}/t.json", "--output", catalog[1]], "4 ok"),
        (frames, "4 done now, 0 from before, 0 failed"),
        (frames, "0 done now, 4 from before"),
        (["embed", *catalog, *vision, "--pretrained_backbones", "false", "--output", f"{tmp_path}/e"], "float16 [4, "),
        (["split", *catalog, "--val_size", "1", "--output", f"{tmp_path}/s"], "1 in val.parquet"),
    ):
        done = _run(*args)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
