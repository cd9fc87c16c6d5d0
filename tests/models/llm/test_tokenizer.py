"""The tokenizer that is trained on the spot."""

from __future__ import annotations

import pytest

from prismatic.models.llm.tokenizer import ensure_pad_token, train_tokenizer

TEXTS = ["A red circle moves to the left and stops."] * 4


def test_any_text_survives_and_bos_goes_first():
    tok = train_tokenizer(TEXTS, 400)
    for text in (
        "A red circle",
        "  two  blanks\n\ttab",
        "Gr\u00fc\u00dfe, \u65e5\u672c\u8a9e \U0001f600",
        "<s> not a token?",
    ):
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert tok.decode(ids) == text
    assert tok("red")["input_ids"][0] == tok.bos_token_id == 0
    assert (tok.eos_token, tok.pad_token, tok.padding_side) == ("</s>", "<PAD>", "right")
    assert len(tok(TEXTS[0])["input_ids"]) < 15


def test_size_is_bounded():
    assert len(train_tokenizer(TEXTS, 270)) == 270
    with pytest.raises(ValueError, match="at least 259 tokens, got 100"):
        train_tokenizer(TEXTS, 100)


def test_saved_and_loaded(tmp_path):
    from transformers import AutoTokenizer

    tok = train_tokenizer(TEXTS, 300)
    tok.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"] == tok(TEXTS[0])["input_ids"]


def test_padding_token():
    tok = train_tokenizer(TEXTS, 300)
    assert not ensure_pad_token(tok, None) and tok.pad_token == "<PAD>"
    before = len(tok)
    assert ensure_pad_token(tok, "<|pad|>") and tok.pad_token == "<|pad|>" and len(tok) == before + 1
