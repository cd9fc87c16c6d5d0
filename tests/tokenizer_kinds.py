"""Small tokenizers, trained on the spot, one of each kind that LLMs come with. No downloads."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "A chat between a curious user and an assistant. USER: what happens in the video? ASSISTANT: a red circle moves",
    "In: describe the image\nOut: two small squares turn blue and stop. [INST] hello [/INST] Input: Output: user model",
    "The quick brown fox jumps over the lazy dog; system assistant helpful answers to the questions of the user.",
]
_BYTES = [f"<0x{value:02X}>" for value in range(256)]


def _train(tokenizer: Tokenizer, special: list[str], alphabet: list[str], **kwargs: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False, **kwargs
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def _sentencepiece(special: list[str]) -> Tokenizer:
    """BPE with byte fallback, as SentencePiece makes it; every single byte is a token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    _train(tokenizer, [*special, *_BYTES], [])
    tokenizer.pre_tokenizer = None
    # The byte tokens were needed as words of the vocabulary only; as special tokens the decoder would drop them.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in _BYTES]
    return Tokenizer.from_str(json.dumps(state))


def _llama2(legacy: bool) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _sentencepiece(["<unk>", "<s>", "</s>"])
    if legacy:  # a blank in front of every piece of text, also behind special tokens
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:  # a blank in front of the first piece only
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def _gemma() -> tuple[Tokenizer, dict[str, Any]]:
    special = ["<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = _sentencepiece(special)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # no blank in front
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tokenizer, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _byte_level(special: list[str], bos: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    return tokenizer


def _phi3() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer, names = _llama2(legacy=True)
    # The published ones swallow blanks and line breaks on their right.
    tokens = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True, normalized=False) for token in tokens])
    return tokenizer, {**names, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


KINDS = ("llama2-legacy", "llama2", "gemma", "llama3", "gpt2", "qwen2", "phi3")


def make(kind: str):
    """A tokenizer of a kind, as transformers wraps it: a copy of its own, to which a test may add tokens."""
    return copy.deepcopy(_made(kind))


@cache
def _made(kind: str):
    from transformers import PreTrainedTokenizerFast

    if kind in ("llama2-legacy", "llama2"):
        tokenizer, names = _llama2(kind == "llama2-legacy")
    elif kind == "gemma":
        tokenizer, names = _gemma()
    elif kind == "phi3":
        tokenizer, names = _phi3()
    elif kind == "llama3":
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer = _byte_level(special, "<|begin_of_text|>")
        names = {"bos_token": special[0], "eos_token": special[4], "pad_token": special[1]}
    elif kind == "gpt2":  # also Phi-2: a begin token that the tokenizer does not put there by itself
        tokenizer = _byte_level(["<|endoftext|>"], None)
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    else:
        tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None)
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
