"""Tokenizers: loading one with its padding token, or training a small one on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismatic.models.hub import NotHereError, explain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS, EOS, PAD = "<s>", "</s>", "<PAD>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, trained on `texts`; any text survives the round trip.

    Special tokens are <s> (put first by default), </s> and <PAD>. The same texts give the same tokenizer. Raises
    ValueError when vocab_size cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 3:
        raise ValueError(f"a byte-level tokenizer needs at least {len(alphabet) + 3} tokens, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    # Sorted and counted: the outcome must not depend on the order in which files were read.
    tokenizer.train_from_iterator(sorted(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder holds a tokenizer."""
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
    return any((folder / name).is_file() for name in names)


def load_tokenizer(source: str | Path, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, padding on the right. options: keywords of `from_pretrained`.

    Raises ValueError, saying what to check, when it cannot be had.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), padding_side="right", **options)
    except (OSError, ValueError) as error:
        hint = "; if you trust it, pass --model.trust_remote_code true" if "custom code" in str(error) else ""
        raise NotHereError(f"cannot load the tokenizer of '{source}': {explain(error, str(source))}{hint}") from error


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, pad_token: str | None) -> bool:
    """Give the tokenizer `pad_token`, or, with None, some padding token if it has none. True when one was set here.

    The padding token is never the end token: its label would be lost with the padding.
    """
    if pad_token is None:
        if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
            return False
        pad_token = PAD
    tokenizer.add_special_tokens({"pad_token": pad_token})
    return True
