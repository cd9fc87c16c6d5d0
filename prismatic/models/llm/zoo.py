"""The LLMs by id: one row each. Any other causal LM is an id too: a hub name (`owner/name`) or a local folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismatic.registry import Registry, UnknownIdError

FLAG = "--model.llm_backbone_id"


@dataclass(frozen=True)
class LLMSpec:
    """A row of the zoo.

    hf_path: hub name or local folder of weights and tokenizer; None for an LLM that exists only with random weights.
    template: prompt template id; None takes the tokenizer's own chat template ("pure" when it has none).
    pad_token: padding token to add to the vocabulary, as published checkpoints had it; None keeps the tokenizer's, and
    adds one only where there is none. pad_to_multiple: rows of the embedding are filled up to a multiple of this when
    pad_token was added: the shapes of published checkpoints depend on it.
    model_type, shape: Transformers' configuration class and what differs from its defaults. With it the model can be
    built from random weights without a network.
    vocab_size: most tokens of a tokenizer that is trained on the spot.
    """

    hf_path: str | None = None
    template: str | None = None
    pad_token: str | None = None
    pad_to_multiple: int = 64
    model_type: str | None = None
    shape: dict[str, Any] = field(default_factory=dict, hash=False)
    vocab_size: int = 8192


LLMS: Registry[LLMSpec] = Registry("LLM", flag=FLAG)

PAD, PHI_PAD = "<PAD>", "<|pad|>"
LLAMA_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
LLAMA3_8B = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
PHI3_4K = {"sliding_window": 2047}
GEMMA_2B = {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
QWEN2_ROPE = {"rope_type": "default", "rope_theta": 1000000.0}


def _llama2(hf_path: str, template: str, big: bool = False) -> LLMSpec:
    shape = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **(LLAMA_13B if big else {})}
    return LLMSpec(hf_path, template, PAD, model_type="llama", shape=shape)


def _mistral(hf_path: str, template: str, **shape: Any) -> LLMSpec:
    sizes = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
    return LLMSpec(hf_path, template, PAD, model_type="mistral", shape={**sizes, **shape})


def _gemma(hf_path: str, template: str, pad: str | None = None, **shape: Any) -> LLMSpec:
    return LLMSpec(hf_path, template, pad, model_type="gemma", shape=shape)


def _sizes(hidden: int, inner: int, layers: int, heads: tuple[int, int], vocab: int, context: int) -> dict[str, Any]:
    """The sizes that every family names alike. heads: of the queries, and of keys and values."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "max_position_embeddings": context,
    }


def _qwen2(hf_path: str, hidden: int, inner: int, layers: int, heads: tuple[int, int], **shape: Any) -> LLMSpec:
    sizes = {**_sizes(hidden, inner, layers, heads, 151936, 32768), "rope_parameters": QWEN2_ROPE}
    return LLMSpec(hf_path, "qwen-2", model_type="qwen2", shape={**sizes, **shape})


def _qwen3(hf_path: str, hidden: int, inner: int, layers: int, heads: int, tied: bool = True) -> LLMSpec:
    sizes = _sizes(hidden, inner, layers, (heads, 8), 151936, 40960)
    more = {"head_dim": 128, "tie_word_embeddings": tied, "rope_parameters": QWEN2_ROPE}
    return LLMSpec(hf_path, model_type="qwen3", shape={**sizes, **more})


def _smollm2(
    hf_path: str, hidden: int, inner: int, layers: int, heads: tuple[int, int], theta: float = 100000.0
) -> LLMSpec:
    sizes = _sizes(hidden, inner, layers, heads, 49152, 8192)
    rope = {"rope_type": "default", "rope_theta": theta}
    more = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_parameters": rope}
    return LLMSpec(hf_path, model_type="llama", shape={**sizes, **more})


def _llama32(hf_path: str, hidden: int, layers: int, heads: int, head_dim: int) -> LLMSpec:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = _sizes(hidden, 8192, layers, (heads, 8), 128256, 131072)
    more = {"head_dim": head_dim, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_parameters": rope}
    return LLMSpec(hf_path, "llama3-instruct", model_type="llama", shape={**sizes, **more})


def _gemma2(hf_path: str, hidden: int, inner: int, layers: int, heads: tuple[int, int]) -> LLMSpec:
    more = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
    sizes = _sizes(hidden, inner, layers, heads, 256000, 8192)
    return LLMSpec(hf_path, "gemma-instruct", model_type="gemma2", shape={**sizes, **more})


def _gemma3(hf_path: str, hidden: int, inner: int, layers: int) -> LLMSpec:
    more = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512}
    sizes = _sizes(hidden, inner, layers, (4, 1), 262144, 32768)
    return LLMSpec(hf_path, "gemma-instruct", model_type="gemma3_text", shape={**sizes, **more})


# Templates that end in -compat have the strings, typing errors included, that checkpoints of these ids learned.
ROWS: dict[str, LLMSpec] = {
    "llama2-7b-pure": _llama2("meta-llama/Llama-2-7b-hf", "pure"),
    "llama2-13b-pure": _llama2("meta-llama/Llama-2-13b-hf", "pure", big=True),
    "llama2-7b-chat": _llama2("meta-llama/Llama-2-7b-chat-hf", "llama2-chat-compat"),
    "llama2-13b-chat": _llama2("meta-llama/Llama-2-13b-chat-hf", "llama2-chat-compat", big=True),
    "vicuna-v15-7b": _llama2("lmsys/vicuna-7b-v1.5", "vicuna-v15"),
    "vicuna-v15-13b": _llama2("lmsys/vicuna-13b-v1.5", "vicuna-v15", big=True),
    "mistral-v0.1-7b-pure": _mistral("mistralai/Mistral-7B-v0.1", "pure"),
    "mistral-v0.1-7b-instruct": _mistral("mistralai/Mistral-7B-Instruct-v0.1", "mistral-instruct"),
    "mistral-v0.2-7b-instruct": _mistral(
        "mistralai/Mistral-7B-Instruct-v0.2",
        "mistral-instruct",
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "phi-2-3b": LLMSpec(
        "microsoft/phi-2",
        "phi-2",
        PHI_PAD,
        model_type="phi",
        shape={
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
        },
    ),
    "llama3-8b-pure": LLMSpec("meta-llama/Meta-Llama-3-8B", "pure", PAD, model_type="llama", shape=LLAMA3_8B),
    "llama3-8b-instruct": LLMSpec(
        "meta-llama/Meta-Llama-3-8B-Instruct", "llama3-instruct-compat", PAD, model_type="llama", shape=LLAMA3_8B
    ),
    "phi-3-instruct-4b": LLMSpec(
        "microsoft/Phi-3-mini-4k-instruct", "phi-3-compat", PHI_PAD, model_type="phi3", shape=PHI3_4K
    ),
    # Published checkpoints of these two were trained on the plain format, not on Gemma's own.
    "gemma-2b-instruct": _gemma("google/gemma-2b-it", "pure", PAD, **GEMMA_2B),
    "gemma-8b-instruct": _gemma("google/gemma-7b-it", "pure", PAD),
    # With their publishers' chat formats, and their tokenizers as they are.
    "gemma-2b-it": _gemma("google/gemma-2b-it", "gemma-instruct", **GEMMA_2B),
    "gemma-7b-it": _gemma("google/gemma-7b-it", "gemma-instruct"),
    "phi-3-mini-instruct": LLMSpec("microsoft/Phi-3-mini-4k-instruct", "phi-3", model_type="phi3", shape=PHI3_4K),
    # Its long-context RoPE has a factor for each frequency, which come with its published configuration; random
    # weights do without them.
    "phi-3.5-mini-instruct": LLMSpec(
        "microsoft/Phi-3.5-mini-instruct",
        "phi-3",
        model_type="phi3",
        shape={"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144},
    ),
    "qwen2-0.5b-instruct": _qwen2("Qwen/Qwen2-0.5B-Instruct", 896, 4864, 24, (14, 2), tie_word_embeddings=True),
    "qwen2-1.5b-instruct": _qwen2("Qwen/Qwen2-1.5B-Instruct", 1536, 8960, 28, (12, 2), tie_word_embeddings=True),
    "qwen2-7b-instruct": _qwen2("Qwen/Qwen2-7B-Instruct", 3584, 18944, 28, (28, 4), vocab_size=152064),
    "qwen2.5-0.5b-instruct": _qwen2("Qwen/Qwen2.5-0.5B-Instruct", 896, 4864, 24, (14, 2), tie_word_embeddings=True),
    "qwen2.5-1.5b-instruct": _qwen2("Qwen/Qwen2.5-1.5B-Instruct", 1536, 8960, 28, (12, 2), tie_word_embeddings=True),
    "qwen2.5-3b-instruct": _qwen2("Qwen/Qwen2.5-3B-Instruct", 2048, 11008, 36, (16, 2), tie_word_embeddings=True),
    "qwen2.5-7b-instruct": _qwen2("Qwen/Qwen2.5-7B-Instruct", 3584, 18944, 28, (28, 4), vocab_size=152064),
    "qwen3-0.6b": _qwen3("Qwen/Qwen3-0.6B", 1024, 3072, 28, 16),
    "qwen3-1.7b": _qwen3("Qwen/Qwen3-1.7B", 2048, 6144, 28, 16),
    "qwen3-4b": _qwen3("Qwen/Qwen3-4B", 2560, 9728, 36, 32),
    "qwen3-8b": _qwen3("Qwen/Qwen3-8B", 4096, 12288, 36, 32, tied=False),
    "smollm2-135m-instruct": _smollm2("HuggingFaceTB/SmolLM2-135M-Instruct", 576, 1536, 30, (9, 3)),
    "smollm2-360m-instruct": _smollm2("HuggingFaceTB/SmolLM2-360M-Instruct", 960, 2560, 32, (15, 5)),
    "smollm2-1.7b-instruct": _smollm2("HuggingFaceTB/SmolLM2-1.7B-Instruct", 2048, 8192, 24, (32, 32), 130000.0),
    "llama3.2-1b-instruct": _llama32("meta-llama/Llama-3.2-1B-Instruct", 2048, 16, 32, 64),
    "llama3.2-3b-instruct": _llama32("meta-llama/Llama-3.2-3B-Instruct", 3072, 28, 24, 128),
    "gemma2-2b-instruct": _gemma2("google/gemma-2-2b-it", 2304, 9216, 26, (8, 4)),
    "gemma2-9b-instruct": _gemma2("google/gemma-2-9b-it", 3584, 14336, 42, (16, 8)),
    "gemma3-270m-instruct": _gemma3("google/gemma-3-270m-it", 640, 2048, 18),
    "gemma3-1b-instruct": _gemma3("google/gemma-3-1b-it", 1152, 6912, 26),
    "tiny-llama": LLMSpec(
        template="pure",
        model_type="llama",
        shape={
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 2048,
            # With the usual 10000 most rotations are too slow for a hundred positions, and order is learned late.
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
            "initializer_range": 0.03,
        },
        vocab_size=512,
    ),
}

for _id, _spec in ROWS.items():
    LLMS.add(_id, _spec)


def llm_spec(llm_id: str) -> LLMSpec:
    """The row of an id, or a new one for a local folder or a hub name. Downloads nothing.

    Raises UnknownIdError (a ValueError) with the nearest ids, ValueError for a folder that holds no model.
    """
    if llm_id in LLMS:
        return LLMS.get(llm_id)
    folder = Path(llm_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{FLAG} {llm_id}: the folder has no config.json, so it is not a Transformers model")
        return LLMSpec(str(folder))
    if llm_id.startswith((".", "/", "~")):
        raise ValueError(f"{FLAG} {llm_id}: no such folder")
    owner, slash, name = llm_id.partition("/")
    if not slash or not owner or not name or "/" in name:
        try:
            return LLMS.get(llm_id)
        except UnknownIdError as error:
            hint = " A hub name (owner/name) or a local folder works too."
            raise UnknownIdError(f"{error}{hint}") from None
    return LLMSpec(llm_id)
