"""A native VLM is written as it came: the official class loads it, with the same logits; adapters are merged first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prismatic.export import native
from prismatic.export.errors import ExportError
from prismatic.models.llm.lora import add_adapter, merge_adapter
from prismatic.models.native.build import NativeSource, build_native
from tests.models.native.folders import FOLDERS, write_folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    source = write_folder(kind, tmp_path / "source")
    vlm = build_native(NativeSource(str(source)), num_frames=4)
    keys = list(vlm.state_dict())
    native.write(vlm, tmp_path / "out")
    assert list(vlm.state_dict()) == keys, "the model is what it was"
    first, again = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert first.keys() == again.keys() and all(first[key].equal(again[key]) for key in first)
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.mul_(1.02)
    with pytest.raises(ExportError, match="parity failed"):
        native.verify(vlm, tmp_path / "out")
    native.write(vlm, tmp_path / "out")
    assert "verified" in native.verify(vlm, tmp_path / "out")


def test_adapters_and_the_older_layout(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    vlm = build_native(NativeSource(str(write_folder("qwen2_vl", tmp_path / "source"))), num_frames=4)
    add_adapter(vlm.llm_backbone, rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"])
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with pytest.raises(ExportError, match="--merge_lora true"):
        native.check(vlm, "hf")
    merge_adapter(vlm.llm_backbone)
    native.check(vlm, "hf")
    native.write(vlm, tmp_path / "out")
    native.verify(vlm, tmp_path / "out")
    with pytest.raises(ExportError, match="--format hf"):
        native.check(vlm, "prismatic")
