"""FLOPs of a step by the model's shapes, held against PyTorch's own counter and against hand-made sums."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

import prismatic.conf.presets  # noqa: F401  registers the ids
from prismatic.build import build_vlm
from prismatic.conf.models import ModelConfig
from prismatic.models.llm.hf_causal import HFCausalLM
from prismatic.models.vlm import PrismaticVLM
from prismatic.train.flops import PEAK_TFLOPS, Attention, StepFlops, count_flops, lengths_of, llm_cost, peak_flops
from prismatic.types import VISUAL_SLOT, Batch

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


@pytest.fixture(scope="module")
def vlm() -> PrismaticVLM:
    return build_vlm(ModelConfig.get_choice_class("tiny-video")(), texts=lambda: ["a red star moves left"] * 4)


def _batch(vlm: PrismaticVLM, frames: tuple[int, ...], text: int, labels: int) -> Batch:
    """One example with clips of so many frames, then `text` tokens of which the last `labels` are learned."""
    R, slots = vlm.vision_backbone.image_spec.resolution, sum(vlm.tokens_per_clip(T) for T in frames)
    ids = torch.tensor([[1] + [VISUAL_SLOT] * slots + [5] * (text - 1)])
    target = torch.full_like(ids, -100)
    target[:, ids.shape[1] - labels :] = 5
    pixels = torch.zeros(sum(frames), 3, R, R, dtype=torch.uint8)
    S = ids.shape[1]
    return Batch(ids, target, torch.arange(S)[None], pixels, frames, False, ("a",), S, lengths=(S,))


@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
def test_a_step_is_what_the_counter_counts(vlm: PrismaticVLM, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismatic.models.linear._takes", lambda *_: False)  # The counter knows no operator of oneDNN
    vlm.freeze(stage)
    batch = _batch(vlm, (3, 1), 20, 8)
    vlm.eval()
    with FlopCounterMode(display=False) as counter:
        (vlm(batch).loss_sum / 8).backward()
    vlm.zero_grad()
    counted = counter.get_total_flops()
    ours = StepFlops(vlm).step_flops([batch])
    # The counter counts the whole square of causal attention, of which we count the half that is looked at.
    cost, S = llm_cost(vlm.llm_backbone), len(batch.input_ids[0])
    square = 3 * sum(4.0 * a.width * S * S - a.flops(S) for a in cost.attention)
    assert ours + square == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "phi3"])
def test_forward_of_a_family(kind: str) -> None:
    extra = {"head_dim": 8, "sliding_window": 8} if kind == "gemma2" else {}
    config = AutoConfig.for_model(kind, **SMALL, num_key_value_heads=2, pad_token_id=0, **extra)
    llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    backbone = HFCausalLM.__new__(HFCausalLM)
    torch.nn.Module.__init__(backbone)
    backbone.llm, backbone._layers_name = llm, "model.layers"
    S = 24
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        llm(input_ids=torch.ones(1, S, dtype=torch.long))
    cost = llm_cost(backbone)
    square = sum(4.0 * a.width * S * S for a in cost.attention)
    forward = 2 * cost.linear * S + square + 2 * cost.head * S
    assert forward == pytest.approx(counter.get_total_flops(), rel=0.01)
    windows = [a.window for a in cost.attention]
    assert windows == ([8, None] if kind == "gemma2" else [None, None])


def test_attention_counts_what_is_looked_at() -> None:
    assert Attention(10, None).flops(4) == 40 * (1 + 2 + 3 + 4)
    assert Attention(10, 2).flops(4) == 40 * (1 + 2 + 2 + 2)
    assert Attention(10, 100).flops(4) == Attention(10, None).flops(4)


def test_neither_padding_nor_cached_features_count(vlm: PrismaticVLM) -> None:
    vlm.freeze("finetune")
    flops, batch = StepFlops(vlm), _batch(vlm, (2,), 12, 4)
    whole = flops.step_flops([batch])
    padded = _batch(vlm, (2,), 30, 4)
    padded.lengths = batch.lengths
    assert flops.step_flops([padded]) == whole
    vision, projector = flops.clip(2)
    assert vision == 2 * flops.clip(1)[0] and projector > 0
    batch.cache = SimpleNamespace(keys=(None,))  # types.CachedFeatures: no name to keep them under, they are there
    assert flops.step_flops([batch]) == whole - vision


def test_lengths_are_read_off_the_positions_where_they_are_not_told() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    batch = Batch(positions, positions, positions, torch.zeros(0), (), True)
    assert lengths_of(batch) == [3, 2, 5]


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e9 < peak_flops(torch.device("cpu")) < 1e14
    assert peak_flops(torch.device("cpu"), 2.5) == 2.5e12
    for name, peak in (
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GeForce RTX 3090 Ti", 71.0),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA L4", 121.0),
    ):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == pytest.approx(peak * 1e12), name
    for name in ("Some other card", "NVIDIA RTX A4000", "NVIDIA RTX A1000"):
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) is None, name
    assert len({part for part, _ in PEAK_TFLOPS}) == len(PEAK_TFLOPS)


def test_a_model_of_another_make_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="prismatic"):
        assert count_flops(torch.nn.Linear(2, 2)) is None
    assert "there is no MFU" in caplog.text
