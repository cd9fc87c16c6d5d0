"""Reading checkpoints: hostile, truncated and foreign files; weights that fit, and what is said of others."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prismatic.conf.hub import HUB_MODELS, RYLAN, TRI_ML, hub_model
from prismatic.models.checkpoints import (
    CheckpointLoadError,
    apply_weights,
    name_keys,
    read_weights,
    resolve_source,
)
from tests.models import hostile


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_code_in_a_checkpoint_is_not_run(kind, tmp_path, monkeypatch):
    file, marker = tmp_path / "latest-checkpoint.pt", tmp_path / "ran"
    hostile.write(kind, file, marker)
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: (asked.append(kwargs), load(*args, **kwargs))[1])
    started = time.process_time()
    with pytest.raises(CheckpointLoadError) as caught:
        read_weights(file)
    assert time.process_time() - started < 1
    assert not marker.exists()
    assert len(asked) <= 1 and all(kwargs["weights_only"] is True for kwargs in asked), "no second, laxer try"
    text = str(caught.value)
    assert str(file) in text and "\n" not in text and "weights_only" not in text


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", hostile.COSTLY)
def test_a_pickle_that_costs_more_than_its_size_says(kind, zipped, tmp_path, monkeypatch):
    file = tmp_path / "latest-checkpoint.pt"
    hostile.write_costly(kind, file, zipped)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch was asked"))
    started = time.process_time()
    with pytest.raises(CheckpointLoadError, match="nothing in it was run: it has "):
        read_weights(file)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(("count", "zipped"), [(8000, True), (500, False)])
def test_thousands_of_tensors_are_no_cost(count, zipped, tmp_path):
    """As many as a mixture of experts has, beside the state of an optimizer, with whole numbers for keys."""
    state = {f"llm.model.layers.{i}.mlp.up_proj.weight": torch.zeros(1) for i in range(count)}
    moments = {"state": {i: {"step": 1, "exp_avg": torch.zeros(1)} for i in range(100)}, "betas": (0.9, 0.95)}
    content = {"model": {"llm_backbone": state}, "optimizer": moments}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert len(read_weights(tmp_path / "a.pt")) == count


@pytest.mark.parametrize("kind", hostile.SAFETENSORS)
def test_a_header_that_lies(kind, tmp_path):
    file = tmp_path / "latest-checkpoint.safetensors"
    hostile.write_safetensors(kind, file)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointLoadError, match="cannot be read as a checkpoint") as caught:
        read_weights(file)
    assert time.process_time() - started < 1 and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB"


@pytest.mark.parametrize("kind", ["packed", "doubled", "overlapping"])
def test_an_archive_that_grows(kind, tmp_path):
    file = tmp_path / "latest-checkpoint.pt"
    hostile.write_growing_archive(kind, file)
    assert file.stat().st_size < 1 << 20
    started = time.process_time()
    with pytest.raises(CheckpointLoadError, match="archive"):
        read_weights(file)
    assert time.process_time() - started < 1


def test_weights_of_a_backbone_are_read_with_the_same_care(tmp_path):
    """A folder in the place of an LLM's id, with weights in the older format."""
    from transformers import LlamaConfig

    from prismatic.models.llm.build import build_llm
    from prismatic.models.llm.tokenizer import train_tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(vocab_size=300, **sizes).save_pretrained(tmp_path)
    train_tokenizer(["a b c"], 300).save_pretrained(tmp_path)
    marker = tmp_path / "ran"
    hostile.write("reduce of os.system", tmp_path / "pytorch_model.bin", marker)
    with pytest.raises(ValueError):
        build_llm(str(tmp_path), pretrained=True)
    assert not marker.exists()
    hostile.write_costly("a key that is hashed for ever", tmp_path / "pytorch_model.bin", zipped=True)
    with pytest.raises(ValueError, match="tuples in tuples"):
        build_llm(str(tmp_path), pretrained=True)


def test_the_hostile_files_would_run(tmp_path):
    """Otherwise the test above could not fail."""
    ran = 0
    for number, kind in enumerate(hostile.KINDS):
        file, marker = tmp_path / f"{number}.pt", tmp_path / f"ran-{number}"
        hostile.write(kind, file, marker)
        try:
            if kind in ("global and reduce, protocol 0", "inst", "obj", "stack global", "pickle"):
                import pickle

                pickle.loads(file.read_bytes())
            elif "antigravity" not in kind and kind not in ("import", "zip in a zip", "tar", "newobj", "two pickles"):
                torch.load(file, weights_only=False)
        except Exception:  # noqa: BLE001  whatever the payload's end is
            pass
        ran += marker.exists()
    assert ran >= 10


def test_a_script_module_is_refused(tmp_path):
    scripted = torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1))
    scripted.save(str(tmp_path / "latest-checkpoint.pt"))
    with pytest.raises(CheckpointLoadError):
        read_weights(tmp_path / "latest-checkpoint.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated(suffix, share, tmp_path):
    file = tmp_path / f"latest-checkpoint{suffix}"
    weights = {"projector.0.weight": torch.randn(64, 64)}
    if suffix == ".pt":
        torch.save({"model": {"projector": weights}}, file)
    else:
        save_file({f"projector.{k}": v for k, v in weights.items()}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointLoadError, match=r"cannot be read|no checkpoint") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *({}, {"model": 3}, {"model": {"projector": 3}}, {"model": {"projector": {"w": 3}}}, [1], torch.zeros(1)),
        {"state_dict": {"w": torch.zeros(1)}},
    ],
    ids=str,
)
def test_tensors_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointLoadError, match="is no prismatic checkpoint"):
        read_weights(tmp_path / "a.pt")


def test_both_older_formats_are_read(tmp_path):
    state = {"model": {"projector": {"projector.weight": torch.randn(2, 3)}}}
    for zipped in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        read = read_weights(tmp_path / "a.pt")
        assert torch.equal(read["projector.projector.weight"], state["model"]["projector"]["projector.weight"])


def test_every_missing_and_unexpected_key_is_named(make_vlm):
    vlm = make_vlm()
    state = dict(vlm.state_dict())
    apply_weights(vlm, {**state, "llm_backbone.llm.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1)}, "x")
    for i in range(2):
        del state[f"llm_backbone.llm.model.layers.{i}.mlp.up_proj.weight"]
    del state["projector.projector.0.bias"]
    state["vision_backbone.extra"] = torch.zeros(1)
    state["llm_backbone.llm.lm_head.weight"] = torch.zeros(3, 32)
    with pytest.raises(CheckpointLoadError) as caught:
        apply_weights(vlm, state, "somewhere.pt")
    text = str(caught.value)
    for said in (
        "3 missing (llm_backbone.llm.model.layers.{0-1}.mlp.up_proj.weight; projector.projector.0.bias)",
        "1 unexpected (vision_backbone.extra)",
        "1 of another shape (llm_backbone.llm.lm_head.weight: checkpoint (3, 32), model",
        "another vocabulary or width of the LLM: is --model.llm_backbone_id",
    ):
        assert said in text
    with pytest.raises(CheckpointLoadError, match="unknown modules: head"):
        apply_weights(vlm, {"head.w": torch.zeros(1)}, "somewhere.pt")


def test_keys_by_pattern():
    keys = [f"a.{i}.b.{j}.w" for i in (0, 1, 2, 5) for j in (0, 1)] + ["c", "a.9.w"]
    assert name_keys(keys) == ["a.9.w", "a.{0,1,2,5}.b.0.w", "a.{0,1,2,5}.b.1.w", "c"]


def test_the_published_ids_and_their_names():
    by_repo: dict[str, list[str]] = {}
    for name, model in HUB_MODELS.items():
        by_repo.setdefault(model.repo_id, []).append(name)
        assert name == model.model_id and hub_model(name) is model
        for paper_name in model.names:
            assert hub_model(paper_name) is model, f"{paper_name} stands for two models"
    assert len(by_repo[RYLAN]) == 18 and all(n == f"prism-{hub_model(n).folder}" for n in by_repo[RYLAN])
    assert all(hub_model(n).folder == n for n in by_repo[TRI_ML])
    assert hub_model("Prism-SigLIP 13B (Controlled)").folder == "prism-siglip-controlled+13b"
    assert hub_model("Prism 7B (Controlled)").model_id == "prism-dinosiglip-controlled+7b"


def test_places(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"model": {}}))
    file = run / "checkpoints" / "latest-checkpoint.pt"
    with pytest.raises(CheckpointLoadError, match="has the run saved a checkpoint yet"):
        resolve_source(run)
    file.write_bytes(b"")
    for place in (run, str(run), file, str(file)):
        source = resolve_source(place)
        assert source.weights == file and source.config == run / "config.json" and source.files == [file]
    assert source.llm_definition is None
    (run / "llm_backbone").mkdir()
    assert resolve_source(Path(run)).llm_definition == run / "llm_backbone"
    with pytest.raises(ValueError, match=r"did you mean .*'prism-clip\+7b'"):
        resolve_source("prism-clip+8b")
