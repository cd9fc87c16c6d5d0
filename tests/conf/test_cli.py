"""The command line: what parses, and what is said when it does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prismatic.conf import cli
from prismatic.conf.demo import DemoConfig
from prismatic.conf.run import EvaluateConfig, GenerateConfig, PreprocessConfig, PretrainConfig


def _parse(*args: str) -> PretrainConfig:
    return cli.parse(PretrainConfig, args)


def test_choices_and_overrides() -> None:
    cfg = _parse("--model.type", "tiny-video", "--model.num_frames=5", "--dataset.type", "moving-shapes", "--seed", "8")
    assert (cfg.model.model_id, cfg.model.num_frames, cfg.dataset.dataset_id) == ("tiny-video", 5, "moving-shapes")
    assert cfg.resolved_run_id() == "moving-shapes+tiny-video+stage-finetune+x8"


def test_a_field_without_a_type_keeps_the_default_preset() -> None:
    assert _parse("--model.num_frames", "3").model.model_id == PretrainConfig().model.model_id
    assert _parse("--dataset.num_workers", "0").dataset.dataset_id == PretrainConfig().dataset.dataset_id


def test_lists_of_annotation_files_one_per_epoch() -> None:
    cfg = _parse("--dataset.finetune_stage_components", '[["e0.json","e1.json"],"frames/"]')
    files, media = cfg.dataset.components("finetune")
    assert files == [Path("data/e0.json"), Path("data/e1.json")]
    assert media == Path("data/frames")


def test_an_absolute_component_stands_alone() -> None:
    cfg = _parse("--dataset.finetune_stage_components", '["/elsewhere/a.json",""]')
    assert cfg.dataset.components("finetune") == ([Path("/elsewhere/a.json")], Path("data"))


@pytest.mark.parametrize("prompt", ["What: a {cat}?", "007", "[x", "yes", "- a\n- b", "'"])
def test_strings_are_taken_to_the_letter(prompt: str) -> None:
    assert cli.parse(GenerateConfig, ["--prompt", prompt]).prompt == prompt
    assert cli.parse(GenerateConfig, [f"--prompt={prompt}"]).prompt == prompt


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model.type", "tiny-vidoe"], "did you mean 'tiny-video'"),
        (["--model.num_frame", "3"], "unknown flag --model.num_frame; did you mean --model.num_frames"),
        (["--num_frames", "3"], "did you mean --model.num_frames"),
        (["--model.num_frames", "abc"], "Couldn't parse 'abc' into an int"),
        (["--dry_run"], "expected one argument"),
        (["--config_path", "not/there.yaml"], "not/there.yaml"),
        (["--model.frame_aggregator_options", "{a: 1"], "expected ',' or '}'"),
        (["--dataset.finetune_stage_components", '["only-one"]'], "Expected 2 items"),
        (["--model.visual_token_layout", "before"], "known: after-bos, inline"),
    ],
)
def test_what_cannot_be_parsed_is_said(args: list[str], said: str) -> None:
    with pytest.raises(cli.CommandLineError) as caught:
        _parse(*args)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ['["projector.*"]', "projector=1", "1"])
def test_values_by_name_are_said_to_be_in_braces(value: str) -> None:
    with pytest.raises(cli.CommandLineError) as caught:
        _parse("--trackers", '["jsonl"]', "--model.learning_rates", value)
    assert str(caught.value).startswith("""--model.learning_rates takes values by name, in braces: """)
    assert "field" not in str(caught.value) and value.strip('[]"') in str(caught.value)


def test_lists_are_no_advice_where_none_is_wrong() -> None:
    with pytest.raises(cli.CommandLineError) as caught:
        _parse("--trackers", '["jsonl"]', "--model.learning_rates", '{"projector.*": "fast"}')
    assert "'fast'" in str(caught.value) and "brackets" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model.num_frames", "0"], "--model.num_frames must be at least 1, got 0"),
        (["--stage", "fintune"], "--stage must be one of align, finetune, full-finetune"),
        (["--trackers", "jsonl"], """--trackers '["jsonl"]'"""),
        (["--model.finetune_global_batch_size", "100"], "for example pass --model.finetune_global_batch_size 96"),
        (["--model.finetune_warmup_ratio", "2"], "--model.finetune_warmup_ratio must be between 0 and 1"),
        (["--run_id", "../x"], "--run_id is a folder name"),
        (["--checkpoint_interval", "0"], "--checkpoint_interval must be at least 1"),
        (["--dataset.augmentations", "jitter"], "--dataset.augmentations takes a list"),
    ],
)
def test_values_that_cannot_work_are_named(args: list[str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        _parse("--model.finetune_per_device_batch_size", "16", *args).validate(world_size=2)
    assert said in str(caught.value)


def test_bad_input_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ValueError("the reason")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: the reason\n"


def test_error_line_is_kept_for_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.ERROR_FILE_VARIABLE, str(tmp_path / "errors"))
    with pytest.raises(SystemExit):
        cli.run(lambda: int("x"))
    assert (tmp_path / "errors").read_text().startswith("error: invalid literal")


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)


def test_help_names_flags_and_no_walls_of_ids(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--model.num_frames int" in out and "Frames taken from a video" in out
    assert "reproduction-llava-v15+13b" not in out and "noqa" not in out


def test_plugin_ids_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data_for_test.py").write_text(
        "from prismatic.conf.data import register\nregister('my-data', None, ('a.json', 'media'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = _parse("--plugins", "my_data_for_test", "--dataset.type", "my-data")
    assert cfg.dataset.components("finetune") == ([Path("data/a.json")], Path("data/media"))
    with pytest.raises(ValueError, match="has no annotations for stage align"):
        cfg.dataset.components("align")
    sys.modules.pop("my_data_for_test")


@pytest.mark.parametrize("config", [PretrainConfig, GenerateConfig, EvaluateConfig, PreprocessConfig, DemoConfig])
def test_every_flag_has_its_help(config: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(config, ["--help"])
    out = capsys.readouterr().out
    assert "noqa" not in out
    examples = [line for line in out.splitlines() if "python scripts/" in line or "torchrun" in line]
    assert examples and not any("  " in line.strip() for line in examples)
    paragraphs = out.split("\n  --")[1:]
    assert len(paragraphs) > 3
    flags = [paragraph.split()[0] for paragraph in paragraphs]
    assert len(flags) == len(set(flags))
    for paragraph in paragraphs:
        words = paragraph.split("\n\n")[0].split()
        assert len(" ".join(words[2:])) > 12, f"--{words[0]} is not explained: {paragraph}"
