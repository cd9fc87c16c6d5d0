"""Exported folders against the models that they were made of, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prismatic.export import hf
from prismatic.export.errors import ExportError
from prismatic.export.verify import verify
from tests.export.conftest import FAMILIES, TOWERS

EXPORTED = [family for family in FAMILIES if family not in ("gemma2", "phi3")]


def _export(vlm, folder: Path) -> hf.HFExport:
    export = hf.prepare(vlm)
    hf.write(vlm, export, folder, name="test", dtype=torch.float32)
    return export


@pytest.mark.parametrize("family", EXPORTED)
@pytest.mark.parametrize("tower", TOWERS)
def test_logits_and_answers_are_the_same(make_vlm, family: str, tower: str, tmp_path: Path) -> None:
    vlm = make_vlm(family, tower, spare=0 if tower == "clip" else 70)
    parity = verify(vlm, _export(vlm, tmp_path), tmp_path)
    assert parity.logits < 1e-4 and parity.pixels < 1e-5 and len(parity.texts) == 2
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["vision_feature_layer"], config["model_type"]) == (-2, "llava")
    assert config["text_config"]["architectures"] == [type(vlm.llm_backbone.llm).__name__]
    rows = vlm.llm_backbone.llm.get_input_embeddings().weight.shape[0]
    assert config["text_config"]["vocab_size"] == (rows if tower == "siglip" else -(-(rows + 1) // 64) * 64)
    for name in ("README.md", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("layout", ["after-bos", "inline"])
@pytest.mark.parametrize("resize", ["resize-naive", "resize-crop", "letterbox"])
def test_layouts_and_resize_strategies(make_vlm, layout: str, resize: str, tmp_path: Path) -> None:
    vlm = make_vlm("mistral", "clip", layout=layout, resize=resize)
    export = _export(vlm, tmp_path)
    assert verify(vlm, export, tmp_path).logits < 1e-4
    assert export.processor.exact == (resize == "resize-naive") == (not export.processor.notes)


@pytest.mark.parametrize("resize", ["resize-crop", "letterbox"])
def test_pixels_are_those_of_training_where_the_sizes_are_even(make_vlm, resize: str) -> None:
    import numpy as np

    from prismatic.export.processor import export_processor
    from prismatic.models.vision.base import normalise
    from prismatic.video.transforms import resize as resized

    vlm = make_vlm(resize=resize)
    prepared = hf.prepare(vlm)
    spec = replace(vlm.vision_backbone.image_spec, crop_pct=1.0)
    processor = export_processor(spec, resize, prepared.tower, prepared.tokenizer.tokenizer).processor
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    theirs = processor.image_processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, normalise(resized(picture[None], spec, resize), spec), atol=1e-5, rtol=0)


def test_transformers_needs_nothing_of_ours(make_vlm, tmp_path: Path) -> None:
    vlm = make_vlm("llama", "siglip")
    _export(vlm, tmp_path / "model")
    frames = [Image.new("RGB", (40 + i, 33), (60 * i, 200 - 50 * i, 90)) for i in range(4)]
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    code = """
import sys
sys.modules["prismatic"] = None
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
model = LlavaForConditionalGeneration.from_pretrained("model")
processor = AutoProcessor.from_pretrained("model", backend="pil")
content = [{"type": "image", "image": Image.open(f"{i}.png")} for i in range(4)]
content.append({"type": "text", "text": "What happens?"})
inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                       tokenize=True, return_dict=True, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1]:]
print(processor.decode(ids, skip_special_tokens=True).strip().encode())
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", "What happens?")
    assert done.stdout.strip() == repr(vlm.generate(frames, builder.get_prompt(), max_new_tokens=20).encode())


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_weights_have_the_names_of_published_llava_checkpoints(make_vlm, tower: str, tmp_path: Path) -> None:
    _export(make_vlm("llama", tower), tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    beginnings = ("vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.layers.")
    others = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight", "language_model.model.norm.")
    assert all(name.startswith((*beginnings, *others)) for name in names)
    assert all(any(name.startswith(beginning) for name in names) for beginning in (*beginnings, *others))


def _tamper_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    key = next(k for k in weights if "linear_2.bias" in k)
    save_file({**weights, key: weights[key] + 0.05}, path, metadata={"format": "pt"})


def _tamper_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("USER: ", "HUMAN: "))


def _tamper_processor(folder: Path) -> None:
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["image_mean"] = [0.1, 0.1, 0.1]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("tamper", "said"),
    [(_tamper_weights, "logits differ"), (_tamper_template, "tokens"), (_tamper_processor, "pixels differ")],
)
def test_a_difference_is_found(make_vlm, tamper, said: str, tmp_path: Path) -> None:
    vlm = make_vlm()
    export = _export(vlm, tmp_path)
    tamper(tmp_path)
    with pytest.raises(ExportError, match=f"parity failed: .*{said}"):
        verify(vlm, export, tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "phi3"}, "family phi3"),
        ({"family": "gemma2"}, "family gemma2"),
        ({"projector": "linear"}, "gelu-mlp"),
        ({"projector": "fused-gelu-mlp"}, "gelu-mlp"),
        ({"aggregator": "mean"}, "which is concat"),
    ],
)
def test_refused_with_the_reason(make_vlm, changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        hf.prepare(make_vlm(**changes))


def test_adapters_are_refused_until_merged(make_vlm) -> None:
    pytest.importorskip("peft")
    from prismatic.models.llm import lora

    vlm = make_vlm()
    lora.add_adapter(vlm.llm_backbone, rank=2, alpha=4, dropout=0, target_modules=("q_proj",))
    with pytest.raises(ExportError, match="--merge_lora true"):
        hf.prepare(vlm)
    lora.merge_adapter(vlm.llm_backbone)
    hf.prepare(vlm)


def test_fast_vlm(make_vlm, tmp_path: Path) -> None:
    from prismatic.models.projectors import build_projector
    from prismatic.models.vision.fastvit_hd import FastViTHDSpec

    vlm = make_vlm("qwen2")
    vlm.vision_backbone = FastViTHDSpec(64).build(pretrained=False, seed=0)
    vlm.projector = build_projector("gelu-mlp", 3072, 32)
    export = _export(vlm, tmp_path)
    assert verify(vlm, export, tmp_path).logits < 1e-4
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["FastVlmForConditionalGeneration"]
    assert config["vision_config"]["architecture"] == "fastvit_mci3"
