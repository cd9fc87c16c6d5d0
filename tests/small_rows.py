"""The rows of a published composition made small: same families, same key names, a few thousand weights.

Imported by tests, and by scripts as `--plugins tests.small_rows`; `apply()` changes the registries.
"""

from __future__ import annotations

from dataclasses import replace

from prismatic.models.llm.zoo import LLMS
from prismatic.models.vision.timm_vit import ViTSpec
from prismatic.models.vision.zoo import VISION

LLAMA_REPO = "meta-llama/Llama-2-7b-hf"
TIMM_REPO = "timm/vit_large_patch14_clip_336.openai"
LLAMA = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "vocab_size": 487, "max_position_embeddings": 512, "rms_norm_eps": 1e-5},
}


def small_entries() -> tuple[tuple[object, str, object], ...]:
    """(registry, id, small row) of each backbone of `prism-clip+7b`."""
    clip = ViTSpec(
        "vit_large_patch14_clip_quickgelu_336.openai",
        image_size=32,
        kwargs={"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8},
    )
    llama = replace(LLMS.get("llama2-7b-pure"), shape=LLAMA)
    return (VISION, "clip-vit-l-336px", clip), (LLMS, "llama2-7b-pure", llama)


def apply() -> None:
    """Put the small rows in place of the real ones, for the rest of the process."""
    for registry, name, entry in small_entries():
        registry._entries[name] = entry
