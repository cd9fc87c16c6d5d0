"""Longer contexts from RoPE scaling: what is written into an LLM's configuration, and what it says of the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KINDS = ("dynamic", "linear", "yarn")


def scale_rope(llm_id: str, config: PretrainedConfig, factor: float, kind: str) -> None:
    """Let the configuration stretch the context by `factor`; the same again changes nothing.

    dynamic (NTK-aware): frequencies grow with the sequence, and nothing changes inside the original context. linear
    (position interpolation, arXiv:2306.15595): positions are divided by the factor, everywhere. yarn
    (arXiv:2309.00071): slow frequencies are interpolated, fast ones kept, and attention is rescaled. The last two want
    training at the new length. Raises ValueError for an LLM whose RoPE is scaled in a way of its own, or absent.
    """
    if kind not in KINDS:
        raise ValueError(f"--model.rope_scaling_type must be {', '.join(KINDS)}, got '{kind}'")
    if factor < 1:
        raise ValueError(f"--model.rope_scaling_factor must be at least 1, got {factor}")
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == kind and rope.get("factor") == factor:
        return  # a saved configuration that has it already
    if rope_factor(text) is None or rope.get("rope_type", "default") not in ("default", "dynamic"):
        found = f"'{rope['rope_type']}'" if "rope_type" in rope else "of several kinds" if rope else "absent"
        raise ValueError(
            f"--model.rope_scaling_factor: the RoPE of {llm_id} is {found}, which cannot stretch; leave the flag out"
        )
    scaled = {**rope, "rope_type": kind, "factor": float(factor)}
    if kind != "dynamic":
        # As published configurations have it: the length that counts is the stretched one. Dynamic scaling reads its
        # starting point from there, so it leaves it alone.
        if kind == "yarn":
            scaled["original_max_position_embeddings"] = text.max_position_embeddings
        text.max_position_embeddings = int(text.max_position_embeddings * factor)
    text.rope_parameters = scaled


def rope_factor(config: PretrainedConfig) -> float | None:
    """By how much the context is stretched already, 1 for not at all; None for an LLM that cannot be stretched."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if "rope_theta" not in rope:  # none, or one for each kind of layer
        return None
    kind = rope.get("rope_type", "default")
    return 1.0 if kind == "default" else float(rope["factor"]) if kind in KINDS else None


def context_length(config: PretrainedConfig) -> int | None:
    """Most positions that the configuration allows, RoPE scaling counted; None where it names no bound."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    rope = getattr(text, "rope_parameters", None) or {}
    # The other kinds with a factor have raised max_position_embeddings already.
    factor = rope.get("factor", 1.0) if rope.get("rope_type") == "dynamic" else 1.0
    return int(length * factor) if length else None
