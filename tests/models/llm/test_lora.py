"""LoRA adapters: what they change, peft's own files, merging."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("peft")
from prismatic.models.llm import lora


def _logits(backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.llm(input_ids=torch.arange(3, 19)[None]).logits


def _add(backbone, **changes) -> None:
    options = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("q_proj", "v_proj"), **changes}
    lora.add_adapter(backbone, **options)


def _train(backbone) -> None:
    for number, parameter in enumerate(lora.adapter_parameters(backbone)):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))


def _save(backbone, folder: Path) -> None:
    folder.mkdir()
    state = {f"llm_backbone.llm.{k}": v for k, v in backbone.llm.state_dict().items()}
    save_file(lora.to_file(state), folder / lora.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    lora.write_config(backbone, folder)


@pytest.mark.parametrize("target", [("q_proj", "v_proj"), ("all-linear",)])
def test_merged_equals_unmerged_and_new_adapters_change_nothing(make_llm, family: str, target: tuple[str, ...]) -> None:
    if family == "phi3" and target != ("all-linear",):
        target = ("qkv_proj",)
    backbone = make_llm(family).eval()
    plain, names = _logits(backbone), list(backbone.llm.state_dict())
    _add(backbone, target_modules=target)
    torch.testing.assert_close(_logits(backbone), plain, atol=1e-6, rtol=0)
    _train(backbone)
    adapted = _logits(backbone)
    assert (adapted - plain).abs().max() > 0.1
    lora.merge_adapter(backbone)
    assert backbone.adapter is None and list(backbone.llm.state_dict()) == names
    torch.testing.assert_close(_logits(backbone), adapted, atol=2e-4, rtol=1e-4)


def test_peft_reads_the_files_and_so_do_we(make_llm, tmp_path: Path) -> None:
    from peft import PeftModel

    ours, plain = make_llm(), make_llm()
    _add(ours)
    _train(ours)
    _save(ours, tmp_path / "a")
    theirs = PeftModel.from_pretrained(copy.deepcopy(plain.llm), tmp_path / "a").eval()
    expected = _logits(ours.eval())
    with torch.no_grad():
        assert theirs(input_ids=torch.arange(3, 19)[None]).logits.equal(expected)
    again = make_llm().eval()
    lora.load_adapter(again, tmp_path / "a")
    assert _logits(again).equal(expected)


def test_we_read_what_peft_saves(make_llm, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_llm().llm, LoraConfig(r=3, target_modules=["o_proj"], init_lora_weights=False))
    model.eval().save_pretrained(str(tmp_path))
    ours = make_llm().eval()
    lora.load_adapter(ours, tmp_path)
    with torch.no_grad():
        assert _logits(ours).equal(model(input_ids=torch.arange(3, 19)[None]).logits)


def test_only_adapters_are_trained(make_vlm) -> None:
    vlm = make_vlm()
    _add(vlm.llm_backbone)
    vlm.freeze("finetune")
    trained = {name for name, p in vlm.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or n.startswith("projector.") for n in trained)
    assert sum(".lora_" in n for n in trained) == 2 * 2 * len(vlm.llm_backbone.layers)
    vlm.freeze("align")
    assert vlm.trainable_modules() == ["projector"]


def test_the_seed_decides(make_llm) -> None:
    def first(seed: int) -> torch.Tensor:
        backbone = make_llm()
        _add(backbone, seed=seed)
        return next(iter(lora.adapter_parameters(backbone)))

    assert first(1).equal(first(1)) and not first(1).equal(first(2))


def test_refusals(make_llm, tmp_path: Path) -> None:
    with pytest.raises(lora.AdapterError, match=r"no layer 'qproj'; it has .*q_proj"):
        _add(make_llm(), target_modules=("qproj",))
    backbone = make_llm()
    _add(backbone)
    with pytest.raises(lora.AdapterError, match="adapters already"):
        _add(backbone)
    with pytest.raises(lora.AdapterError, match="cannot be read as a LoRA adapter"):
        lora.load_adapter(make_llm(), tmp_path)
    _save(backbone, tmp_path / "a")
    config = json.loads((tmp_path / "a" / lora.ADAPTER_CONFIG).read_text())
    (tmp_path / "a" / lora.ADAPTER_CONFIG).write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(lora.AdapterError, match="kind IA3"):
        lora.load_adapter(make_llm(), tmp_path / "a")
    (tmp_path / "a" / lora.ADAPTER_CONFIG).write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(lora.AdapterError, match="do not fit"):
        lora.load_adapter(make_llm(), tmp_path / "a")
    (tmp_path / "a" / lora.ADAPTER_WEIGHTS).write_bytes(b"short")
    with pytest.raises(lora.AdapterError, match="cannot be read"):
        lora.load_adapter(make_llm(), tmp_path / "a")


def test_the_base_is_held_in_less_and_the_adapters_in_full(make_vlm) -> None:
    backbone = make_vlm().llm_backbone
    _add(backbone)
    lora.cast_base(backbone, torch.bfloat16)
    kinds = {(lora.is_adapter_key(name), p.dtype) for name, p in backbone.llm.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
