"""What is done to layers before they are sharded: recomputing them in the backward pass, then compiling them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from prismatic.models.llm.attention import keep_out_of_graphs

log = logging.getLogger(__name__)

RECOMPUTE = ("none", "full", "selective")
_GRAPHS = 64  # of one function: layers of a kind share theirs, but towers, masks, training and validation differ


def checkpoint_layers(layers: nn.ModuleList, how: str) -> None:
    """Wrap the layers in place. how: of RECOMPUTE; the names of weights in state dicts stay as they are.

    full: only a layer's input is kept, all of it is computed again. selective: results of matrix products and of
    attention are kept too, the rest (norms, activations, rotations, sums) is computed again: most of the memory for a
    few percent of the time.
    """
    assert how in RECOMPUTE
    if how == "none":
        return
    options: dict[str, Any] = {}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy(_expensive()))
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT, **options)


def compile_layers(layers: Iterable[nn.Module]) -> int:
    """Let each layer be compiled at its first call, in place (no name changes); returns how many.

    Sizes are symbols from the start, so that another length of sequence needs no other graph.
    """
    # The limit is per function, and all layers have the same one: nn.Module's call.
    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    keep_out_of_graphs()
    # A compiled layer returns a view of what its graph made; nothing here or in Transformers changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # "No CUDA runtime is found": PyTorch's compiler looks for one, on machines without a GPU too.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    count = 0
    for layer in layers:
        layer.compile(dynamic=True)
        count += 1
    log.info(f"{count} layers will be compiled at the first step, which takes minutes longer")
    return count


def use_tf32(wanted: bool, device: torch.device) -> None:
    """Let fp32 matrix products of a GPU round their factors to TF32 (10 bits of mantissa), and say so."""
    if not wanted:
        return
    if device.type != "cuda":
        log.info("--model.tf32 has no effect on a CPU, which computes in fp32")
        return
    torch.set_float32_matmul_precision("high")
    log.info("fp32 matrix products are computed in TF32")


def _policy(kept: frozenset[Any]) -> Any:
    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def _expensive() -> frozenset[Any]:
    """The operators whose results are kept: matrix products and attention, as far as this PyTorch has them."""
    aten = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention")
    aten += ("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
    aten += ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable")
    names = [("aten", name) for name in aten]
    # oneDNN's linear layer (models/linear.py), attention by blocks (models/llm/causal.py); attention over borders:
    # PyTorch's, and that of the package flash-attn.
    names += [("mkldnn", "_linear_pointwise"), ("prismatic", "linear"), ("prismatic", "causal_attention")]
    names += [("torch_attn", "_varlen_attn")]
    names += [("flash_attn", "_flash_attn_forward"), ("flash_attn", "_flash_attn_varlen_forward")]
    found = (getattr(getattr(torch.ops, space), name, None) for space, name in names)
    return frozenset(op.default for op in found if op is not None)
