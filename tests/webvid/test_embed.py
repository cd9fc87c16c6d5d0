"""Vectors of videos and captions: what they are, where they stand, and that a kill changes no byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prismatic.conf.webvid_media import EmbedConfig
from prismatic.models.vision.zoo import build_vision
from prismatic.video.decode import open_video
from prismatic.video.transforms import resize
from prismatic.webvid import embed as embed_module
from prismatic.webvid.cluster import read_embeddings
from prismatic.webvid.embed import embed
from tests.webvid.heap import make_catalog, tree, write_heap


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with seven videos v/000.mp4, ... and their catalog c.parquet."""
    root = tmp_path_factory.mktemp("heap")
    make_catalog(root, write_heap(root / "v", 7))
    return root


def _cfg(heap: Path, output: Path, **changes: object) -> EmbedConfig:
    flags = {"vision_backbone_id": "tiny-vit", "pretrained_backbones": False, "num_frames": 2, "device": "cpu"}
    return EmbedConfig(catalog=heap / "c.parquet", output=output, **{**flags, **changes})  # type: ignore[arg-type]


def test_a_vector_is_the_mean_feature_of_the_frames(heap: Path, tmp_path: Path) -> None:
    assert "7 videos: 7 done now, 0 from before, 0 failed\n  embeddings.npy float16 [7, 96]" in embed(
        _cfg(heap, tmp_path / "e")
    )
    ids, matrix = read_embeddings(tmp_path / "e")
    assert ids == [f"{i:03d}" for i in range(7)]
    assert isinstance(matrix, np.memmap) and matrix.dtype == np.float16
    model = build_vision("tiny-vit", pretrained=False, seed=7)
    for i in (0, 5):
        with open_video(heap / f"v/{i:03d}.mp4") as clip:
            frames = resize(clip.get([0, len(clip) - 1]), model.image_spec, "resize-naive")
        with torch.inference_mode():
            expected = model(frames).mean(dim=(0, 1)).numpy()
        assert np.allclose(matrix[i], expected, atol=2e-3)
    assert "0 done now, 7 from before" in embed(_cfg(heap, tmp_path / "e"))


def test_the_number_of_processes_and_a_kill_change_no_byte(
    heap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "BATCH", 2)
    embed(_cfg(heap, tmp_path / "whole", num_workers=1))
    real = embed_module.ENGINES.get("local")

    def dying(*args: object) -> object:
        for count, done in enumerate(real(*args)):  # type: ignore[arg-type]
            if count == 2:
                raise KeyboardInterrupt
            yield done

    with monkeypatch.context() as patch:
        patch.setitem(embed_module.ENGINES._entries, "local", dying)
        with pytest.raises(KeyboardInterrupt):
            embed(_cfg(heap, tmp_path / "cut", num_workers=3))
    assert not (tmp_path / "cut/embeddings.npy").exists()
    assert "3 done now, 4 from before" in embed(_cfg(heap, tmp_path / "cut", num_workers=3))
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_grown_catalog_and_failures(tmp_path: Path) -> None:
    captions = write_heap(tmp_path / "v", 3)
    make_catalog(tmp_path, captions)
    good = (tmp_path / "v/001.mp4").read_bytes()
    (tmp_path / "v/001.mp4").write_bytes(b"gone bad")
    assert "3 videos: 2 done now, 0 from before, 1 failed" in embed(_cfg(tmp_path, tmp_path / "e"))
    ids, matrix = read_embeddings(tmp_path / "e")
    assert ids == ["000", "002"]
    first = np.array(matrix)
    failed = json.loads((tmp_path / "e/failed.jsonl").read_text())
    assert failed["id"] == "001" and "no video" in failed["reason"]
    (tmp_path / "v/001.mp4").write_bytes(good)
    make_catalog(tmp_path, captions | write_heap(tmp_path / "v", 1, first=3))
    # A file that is another one now counts as new; the rest is known.
    assert "4 videos: 2 done now, 2 from before, 0 failed" in embed(_cfg(tmp_path, tmp_path / "e"))
    ids, matrix = read_embeddings(tmp_path / "e")
    assert ids == ["000", "001", "002", "003"]
    assert np.array_equal(matrix[[0, 2]], first)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small BERT and its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "grey", "number", *map(str, range(10))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    return str(folder)


def test_captions_by_a_text_encoder(heap: Path, tmp_path: Path, encoder: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    cfg = _cfg(heap, tmp_path / "t", text_encoder=encoder, pretrained_backbones=True)
    assert "embeddings.npy float16 [7, 16]" in embed(cfg)
    matrix = read_embeddings(tmp_path / "t")[1]
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    with torch.inference_mode():
        expected = model(**tokenizer("grey number 3", return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    # Digits "000" and "003" of the captions are the same word; "grey number 3" is row 3.
    assert np.allclose(matrix[3], expected.numpy(), atol=2e-3)
    assert len(np.unique(np.asarray(matrix), axis=0)) == 7
    assert "0 done now, 7 from before" in embed(cfg)
    cfg.vision_backbone_id = "clip-vit-l"  # which captions do not go through
    assert "0 done now" in embed(cfg)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_backbone_id": "tiny-vti"}, "for --vision_backbone_id; did you mean 'tiny-vit'"),
        ({"pretrained_backbones": True}, "no pretrained weights; pass --pretrained_backbones false"),
        ({"image_resize_strategy": "x"}, "resize strategy"),
        ({"precision": "fp8"}, "--precision must be fp32 or bf16"),
        ({"text_encoder": "no/such-model"}, "--text_encoder no/such-model"),
    ],
)
def test_bad_settings(heap: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        embed(_cfg(heap, tmp_path / "x", **changes))


def test_other_settings_need_another_folder(heap: Path, tmp_path: Path) -> None:
    embed(_cfg(heap, tmp_path / "e"))
    with pytest.raises(ValueError, match=r"made with other settings: num_frames 2 \(now 3\)"):
        embed(_cfg(heap, tmp_path / "e", num_frames=3))


def test_settings_that_did_not_work_bind_nobody(heap: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--pretrained_backbones false"):
        embed(_cfg(heap, tmp_path / "e", pretrained_backbones=True))
    assert "done now" in embed(_cfg(heap, tmp_path / "e"))
