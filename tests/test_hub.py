"""Published models through a hub on this machine: what is fetched, how often, with which token, and what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import prismatic
from prismatic.build import build_vlm, read_token
from prismatic.conf.models import ModelConfig
from prismatic.models.llm.build import build_llm
from prismatic.models.vision.zoo import build_vision
from tests import hub_stand_in, small_rows
from tests.hub_stand_in import STRANGER, TOKEN, Hub
from tests.models.vision import official
from tests.tokenizer_kinds import make

MODEL_ID = "prism-clip+7b"
CHECKPOINT = f"TRI-ML/prismatic-vlms/{MODEL_ID}/checkpoints/latest-checkpoint.pt"
LLM_WEIGHTS = f"{small_rows.LLAMA_REPO}/model.safetensors"
VISION_WEIGHTS = f"{small_rows.TIMM_REPO}/model.safetensors"
# What an older config.json says of its model.
OLDER = {
    "type": "prism-clip+7b",
    "model_id": "prism-clip+7b",
    "vision_backbone_id": "clip-vit-l-336px",
    "llm_backbone_id": "llama2-7b-pure",
    "arch_specifier": "no-align+gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "llm_max_length": 2048,
    "finetune_epochs": 2,
}


def publish(root: Path) -> None:
    """The repositories of a published model: the LLM, timm's weights, and the older run folder."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = root / small_rows.LLAMA_REPO
    tokenizer = make("llama2")
    torch.manual_seed(0)
    # 488 tokens with <PAD>: 512 rows, a multiple of 64.
    assert len(tokenizer) == small_rows.LLAMA["vocab_size"]
    official.lively(LlamaForCausalLM(LlamaConfig(**small_rows.LLAMA))).save_pretrained(llama)
    tokenizer.save_pretrained(llama)
    _, state, _, _ = official.clip()
    timm_repo = root / small_rows.TIMM_REPO
    timm_repo.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in {**state, "visual.proj": torch.zeros(24, 768)}.items()},
        timm_repo / "model.safetensors",
    )
    (timm_repo / "config.json").write_text("{}")
    write_older_run(root / "TRI-ML/prismatic-vlms" / MODEL_ID)


def write_older_run(run: Path, *modules: str, **changes: object) -> None:
    """An older run folder with random weights: config.json and {"model": {module: state}}, in bf16 as they were."""
    modules = modules or ("projector", "llm_backbone")

    config = ModelConfig(
        **{k: v for k, v in {**OLDER, **changes, "pretrained_backbones": False}.items() if k != "type"}
    )
    vlm = build_vlm(config, seed=5, texts=lambda: ["A circle."])
    llm = vlm.llm_backbone.llm
    llm.resize_token_embeddings(512)
    official.lively(vlm, seed=7)
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"model": {**OLDER, **changes}, "seed": 7}))
    state = {name: {k: v.bfloat16() for k, v in getattr(vlm, name).state_dict().items()} for name in modules}
    torch.save({"model": state}, run / "checkpoints" / "latest-checkpoint.pt")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The repositories, made once."""
    before = [(registry, name, registry.get(name)) for registry, name, _ in small_rows.small_entries()]
    small_rows.apply()
    root = tmp_path_factory.mktemp("hub")
    publish(root)
    for registry, name, entry in before:
        registry._entries[name] = entry
    return root


@pytest.fixture
def hub(published, tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub that this process talks to, with an empty cache, and small rows."""
    for registry, name, entry in small_rows.small_entries():
        monkeypatch.setitem(registry._entries, name, entry)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    root = tmp_path / "repositories"
    shutil.copytree(published, root)
    with hub_stand_in.stand_in(root) as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        yield server


def point_at(url: str, cache: Path, monkeypatch) -> None:
    """What HF_ENDPOINT, HF_HOME and no HF_HUB_OFFLINE would have done when the library was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # It tries five times, and waits 23 seconds in all.
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


def go_offline(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def answer(vlm) -> torch.Tensor:
    """Logits of a picture and a question, in which every part of the model has a share."""
    frames = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    ids = torch.tensor([[1, *[-200] * 16, 300, 301]])
    with torch.no_grad():
        embeds = vlm.splice(ids, vlm.encode(frames, (1,)))
        return vlm.llm_backbone.llm(inputs_embeds=embeds).logits


def test_a_published_model_is_fetched_once_and_without_the_llms_weights(hub, monkeypatch):
    first = prismatic.load(MODEL_ID)
    assert hub.downloads[CHECKPOINT] == hub.downloads[VISION_WEIGHTS] == 1
    assert hub.downloads[LLM_WEIGHTS] == 0, "the checkpoint brings the LLM's weights"
    before = dict(hub.downloads)
    second = prismatic.load("Prism-CLIP 7B", num_frames=2)
    assert dict(hub.downloads) == before, "nothing is downloaded twice"
    assert second.num_frames == 2 and first.num_frames == 8
    torch.testing.assert_close(answer(first), answer(second), rtol=0, atol=0)
    go_offline(monkeypatch)
    hub.close()
    torch.testing.assert_close(answer(prismatic.load(MODEL_ID)), answer(first), rtol=0, atol=0)
    run = hub.root / "TRI-ML/prismatic-vlms" / MODEL_ID
    for place in (
        run,
        str(run),
        run / "checkpoints/latest-checkpoint.pt",
        str(run / "checkpoints/latest-checkpoint.pt"),
    ):
        torch.testing.assert_close(answer(prismatic.load(place)), answer(first), rtol=0, atol=0)
    saved = torch.load(run / "checkpoints/latest-checkpoint.pt")["model"]
    assert torch.equal(first.llm_backbone.llm.lm_head.weight, saved["llm_backbone"]["llm.lm_head.weight"].float())
    assert not any(p.is_meta or not p.isfinite().all() for p in first.parameters())


def test_another_cache_folder_holds_everything(hub, tmp_path):
    prismatic.load(MODEL_ID, cache_dir=tmp_path / "mine")
    assert {p.name for p in (tmp_path / "mine").glob("models--*")} == {
        f"models--{name.replace('/', '--')}"
        for name in ("TRI-ML/prismatic-vlms", small_rows.LLAMA_REPO, small_rows.TIMM_REPO)
    }
    assert not list((tmp_path / "cache").glob("models--*"))


def test_full_finetune_brings_its_vision_weights(hub):
    run = hub.root / "TRI-ML/prismatic-vlms/full-ft-one-stage+7b"
    write_older_run(run, "vision_backbone", "projector", "llm_backbone")
    vlm = prismatic.load("Finetune ViT (Single-Stage)")
    saved = torch.load(run / "checkpoints/latest-checkpoint.pt")["model"]["vision_backbone"]
    state = vlm.vision_backbone.state_dict()
    assert state.keys() == saved.keys() and all(torch.equal(state[k], saved[k].float()) for k in saved)
    assert hub.downloads[VISION_WEIGHTS] == hub.downloads[LLM_WEIGHTS] == 0


def test_gated_llm(hub, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    hub.gated.add(small_rows.LLAMA_REPO)
    what_to_do = rf"'{small_rows.LLAMA_REPO}' is gated: accept its terms .*--hf_token, which takes a file"
    with pytest.raises(ValueError, match=what_to_do) as caught:
        prismatic.load(MODEL_ID)
    assert "no access to it yet" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=what_to_do + ".*the token in use has no access to it yet"):
        prismatic.load(MODEL_ID, hf_token=STRANGER)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    prismatic.load(MODEL_ID, hf_token=str(file))
    assert hub.tokens == {STRANGER, TOKEN}
    printed = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in printed and STRANGER not in printed
    assert "HF_TOKEN" not in os.environ


def test_gated_timm_weights_use_the_token_too(hub):
    hub.gated.add(small_rows.TIMM_REPO)
    with pytest.raises(ValueError, match=rf"'{small_rows.TIMM_REPO}' is gated.*--hf_token"):
        build_vision("clip-vit-l-336px", pretrained=True)
    build_vision("clip-vit-l-336px", pretrained=True, hf_token=TOKEN)
    assert hub.tokens == {TOKEN}


def test_token_by_file_variable_and_default_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_token(".hf_token") is None
    (tmp_path / ".hf_token").write_text(f" {TOKEN}\n")
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    assert read_token(".hf_token") == read_token("MY_TOKEN") == read_token(str(tmp_path / ".hf_token")) == TOKEN
    (tmp_path / "two").write_text(f"{TOKEN} {STRANGER}")
    for bad in (TOKEN, "two"):
        with pytest.raises(ValueError, match="--hf_token") as caught:
            read_token(bad)
        assert TOKEN not in str(caught.value)


def test_timm_repositories(hub):
    _, state, architecture, options = official.dinov2()
    official.write_timm_folder(hub.repo("somebody/small-dino"), state, architecture, options)
    vision = build_vision("timm:hf-hub:somebody/small-dino", pretrained=True)
    weight = vision.featurizer.blocks[1].attn.qkv.weight
    assert torch.equal(weight, state["blocks.1.attn.qkv.weight"]) and vision.image_spec.mean == (0.4, 0.5, 0.6)
    build_vision("video-timm:hf-hub:somebody/small-dino", pretrained=True)
    assert hub.downloads["somebody/small-dino/model.safetensors"] == 1
    with pytest.raises(ValueError, match="has no repository 'somebody/smal-dino', or it is a private one"):
        build_vision("timm:hf-hub:somebody/smal-dino", pretrained=True)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda hub: setattr(hub, "broken", 503), r"refused 'TRI-ML/prismatic-vlms' with status 503|is out of reach"),
        (lambda hub: setattr(hub, "broken", 403), r"with status 403: the token in use is not valid|out of reach"),
        (
            lambda hub: hub.close(),
            r"the hub at http://127.0.0.1:\d+ is out of reach, and 'TRI-ML/prismatic-vlms' is not",
        ),
        (lambda hub: shutil.rmtree(hub.root / "TRI-ML"), "has no repository 'TRI-ML/prismatic-vlms'"),
        (lambda hub: shutil.rmtree(hub.root / "TRI-ML/prismatic-vlms" / MODEL_ID), "is not on the hub"),
        (lambda hub: shutil.rmtree(hub.root / small_rows.LLAMA_REPO), f"has no repository '{small_rows.LLAMA_REPO}'"),
        (lambda hub: shutil.rmtree(hub.root / small_rows.TIMM_REPO), f"has no repository '{small_rows.TIMM_REPO}'"),
    ],
    ids=["503", "403", "unreachable", "no repository", "no folder", "no LLM", "no vision"],
)
def test_what_goes_wrong_is_one_line(break_it, said, hub):
    break_it(hub)
    with pytest.raises(ValueError, match=said) as caught:
        prismatic.load(MODEL_ID)
    assert "\n" not in str(caught.value)


def test_offline_and_nothing_cached(hub, monkeypatch):
    go_offline(monkeypatch)
    with pytest.raises(ValueError, match="is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"):
        prismatic.load(MODEL_ID)
    assert not hub.requests


def test_code_of_a_repository_is_not_run(hub, tmp_path):
    folder = hub.repo("somebody/custom")
    ran = tmp_path / "ran"
    (folder / "config.json").write_text(
        json.dumps({"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}})
    )
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"pass --model[.]trust_remote_code true"):
        build_llm("somebody/custom", pretrained=True)
    # A known architecture whose tokenizer wants to bring code.
    other = hub.repo("somebody/tokenizer")
    for file in (hub.root / small_rows.LLAMA_REPO).iterdir():
        shutil.copy(file, other)
    (other / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    saved = json.loads((other / "tokenizer_config.json").read_text())
    saved |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.T", "code.T"]}}
    (other / "tokenizer_config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"pass --model[.]trust_remote_code true"):
        build_llm("somebody/tokenizer", pretrained=True)
    assert not ran.exists()
