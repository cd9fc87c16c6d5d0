"""Useful FLOPs of a step, counted from the shapes of the model and of each example, and what a device could do.

Useful is what the result needs: no padding, no recomputed activations, no gradient that nothing is trained by. Causal
attention counts the half of the square that is looked at. A multiplication with an addition is two FLOPs.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.utils.flop_counter import FlopCounterMode

from prismatic.models.linear import use_onednn
from prismatic.types import Batch

if TYPE_CHECKING:
    from prismatic.models.vlm import PrismaticVLM

log = logging.getLogger(__name__)

# Dense bf16 matrix TFLOP/s by the makers' data sheets (half of what they print "with sparsity"), by words in the name
# that torch.cuda.get_device_name gives; the first that fits counts. Not the clock of one card: "H100" alone is SXM.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),  # NVIDIA GB200 NVL72: 5 PFLOP/s sparse a GPU
    ("B200", 2250.0),  # NVIDIA HGX B200: 4.5 PFLOP/s sparse
    ("GH200", 989.4),  # NVIDIA GH200: as H100 SXM
    ("H200 NVL", 835.5),  # NVIDIA H200 NVL: 1,671 sparse
    ("H200", 989.4),  # NVIDIA H200 SXM: 1,979 TFLOP/s sparse
    ("H800", 989.4),  # as H100 SXM
    ("H100 PCIe", 756.5),  # NVIDIA H100 PCIe: 1,513 sparse
    ("H100 NVL", 835.5),  # NVIDIA H100 NVL: 1,671 sparse
    ("H100", 989.4),  # NVIDIA H100 SXM: 1,979 sparse
    ("H20", 148.0),  # NVIDIA H20
    ("A100", 312.0),  # NVIDIA A100
    ("A800", 312.0),  # as A100
    ("A40", 149.7),  # NVIDIA A40
    ("A30", 165.0),  # NVIDIA A30
    ("A10G", 70.0),  # NVIDIA A10G
    ("A10", 125.0),  # NVIDIA A10
    ("L40S", 362.1),  # NVIDIA L40S: 733 sparse
    ("L40", 181.1),  # NVIDIA L40
    ("L4", 121.0),  # NVIDIA L4: 242 sparse
    ("RTX 5090", 209.5),  # NVIDIA Blackwell whitepaper, fp32 accumulate; so the next ones, by Ada's and Ampere's
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("RTX 6000 Ada", 364.2),  # NVIDIA RTX 6000 Ada: 1,457 in fp8, sparse
    ("RTX A6000", 154.8),  # NVIDIA RTX A6000: 309.7 sparse
    ("MI325X", 1307.4),  # AMD Instinct MI325X
    ("MI300X", 1307.4),  # AMD Instinct MI300X
    ("MI250X", 383.0),  # AMD Instinct MI250X
)


def peak_flops(device: torch.device, given: float | None = None) -> float | None:
    """FLOP/s that one device could do at most; None where that is not known, for a device of no row above.

    given: TFLOP/s of `--peak_tflops`, which goes before the table. A CPU's is measured.
    """
    if given is not None:
        return given * 1e12
    if device.type == "cpu":
        return _cpu_peak()
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    # Whole words: an A4000 is no A40
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS if re.search(rf"\b{part}\b", name, re.I)), None)


@lru_cache(maxsize=1)
def _cpu_peak() -> float:
    """FLOP/s of large fp32 matrix products by the threads of this process, measured for about a tenth of a second."""
    side, best = 1024, math.inf
    layer = nn.Sequential(skip_init(nn.Linear, side, side, bias=False))  # draws no random numbers
    nn.init.ones_(layer[0].weight)
    use_onednn(layer)
    rows = torch.ones(side, side)
    with torch.no_grad():
        for _ in range(6):  # whatever else the machine does only makes one slower
            began = time.perf_counter()
            layer(rows)
            best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


@dataclass(frozen=True)
class Attention:
    """One layer's attention. width: heads x size of a head. window: positions looked back at, None for all."""

    width: int
    window: int | None

    def flops(self, length: int) -> float:
        """Forward FLOPs over a causal sequence of `length` positions: scores and weighted values, 2 FLOPs each."""
        window = min(length, self.window or length)
        pairs = window * (window + 1) / 2 + (length - window) * window
        return 4.0 * self.width * pairs


@dataclass(frozen=True)
class LLMCost:
    """What a causal LM computes. linear: weights that each position is multiplied with, trained: how many of them get
    gradients. head: weights of the head, head_trained: whether they are trained.
    """

    linear: float
    trained: float
    attention: tuple[Attention, ...]
    head: int
    head_trained: bool

    def step_flops(self, lengths: Sequence[int], label_tokens: int) -> float:
        """Forward and backward FLOPs over examples of these lengths.

        The gradient passes through every layer to the projector; it is computed for trained weights too.
        """
        linear = (4.0 * self.linear + 2.0 * self.trained) * sum(lengths)
        head = (6.0 if self.head_trained else 4.0) * self.head * label_tokens
        return linear + head + 3.0 * sum(_attention(self.attention, length) for length in lengths)


@lru_cache(maxsize=8192)
def _attention(layers: tuple[Attention, ...], length: int) -> float:
    return sum(layer.flops(length) for layer in layers)


def llm_cost(llm_backbone: Any) -> LLMCost:
    """The cost of the LLM inside `models.llm.hf_causal.HFCausalLM` (or of its like), by its weights and its config."""
    llm, config = llm_backbone.llm, llm_backbone.llm.config.get_text_config()
    weights = [p for layer in llm_backbone.layers for p in layer.parameters() if p.ndim >= 2]
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0
    active = (getattr(config, "num_experts_per_tok", None) or 1) / experts if experts else 1.0
    sizes = [(p.numel() * (active if p.ndim == 3 else 1.0), p.requires_grad) for p in weights]
    head = llm.get_output_embeddings()
    return LLMCost(
        linear=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        attention=_attentions(config, len(llm_backbone.layers)),
        head=head.weight.numel() if head is not None else 0,
        head_trained=head is not None and head.weight.requires_grad,
    )


def _attentions(config: Any, layers: int) -> tuple[Attention, ...]:
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return ()
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    return tuple(Attention(width, window if "sliding" in kind else None) for kind in kinds[:layers])


def count_flops(vlm: Any) -> StepFlops | None:
    """A counter for a model that is not sharded yet; None, with a word about it, for one that cannot be counted."""
    try:
        return StepFlops(vlm)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        log.info(f"FLOPs of this model are not counted, so there is no MFU ({error})")
        return None


class StepFlops:
    """Counts the useful FLOPs of batches. Make it before the model is sharded; it keeps sizes and no weights.

    Vision, aggregator and projector are run on the meta device, one clip of each length once, and PyTorch's own
    counter listens. A backbone that cannot run there is taken as 2 FLOPs a weight and patch.
    """

    def __init__(self, vlm: PrismaticVLM) -> None:
        self.llm = llm_cost(vlm.llm_backbone)
        self._vision_passes = _passes([vlm.vision_backbone])
        self._projector_passes = _passes([m for m in (vlm.aggregator, vlm.projector) if m is not None])
        self._side = vlm.vision_backbone.image_spec.resolution
        self._patch_weights = sum(p.numel() for p in vlm.vision_backbone.parameters()) * getattr(
            vlm.vision_backbone, "num_patches", vlm.tokens_per_clip(1)
        )
        self._token_weights = sum(p.numel() for p in vlm.projector.parameters())
        self._tokens_per_clip = vlm.tokens_per_clip
        self._encode = _on_meta(vlm)
        self.clip = lru_cache(maxsize=1024)(self._clip)

    def step_flops(self, batches: Sequence[Batch]) -> float:
        """Forward and backward FLOPs of the micro-batches of this process.

        Features that come from a cache (`Batch.cache`) cost nothing.
        """
        total = 0.0
        for batch in batches:
            if batch.echo:
                continue
            total += self.llm.step_flops(lengths_of(batch), batch.num_label_tokens)
            cache = getattr(batch, "cache", None)
            for number, frames in enumerate(batch.frames_per_medium):
                vision, projector = self.clip(frames)
                live = cache is None or cache.keys[number] is not None
                total += vision * self._vision_passes * live + projector * self._projector_passes
        return total

    def _clip(self, T: int) -> tuple[float, float]:
        """Forward FLOPs of a clip of T frames: of the vision backbone, and of aggregator and projector."""
        pixels = torch.zeros(T, 3, self._side, self._side, dtype=torch.uint8, device="meta")
        counter = FlopCounterMode(display=False)
        try:
            with torch.no_grad(), counter:
                self._encode(pixels, (T,))
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            log.info(f"FLOPs of the vision backbone are estimated: it does not run without data ({error})")
            return 2.0 * T * self._patch_weights, 2.0 * self._tokens_per_clip(T) * self._token_weights
        by_module = counter.get_flop_counts()
        vision = sum(count for name, of in by_module.items() if name == "VisionTower" for count in of.values())
        return float(vision), float(counter.get_total_flops() - vision)


def lengths_of(batch: Batch) -> list[int]:
    """Positions of each example of a batch. Where the batch does not tell them they are read off its position ids, in
    which padding at the end of a row counts as part of the row's last example.
    """
    if batch.lengths:
        return list(batch.lengths)
    lengths = []
    for row in batch.position_ids:
        starts = (row == 0).nonzero()[:, 0].tolist()
        lengths += [end - start for start, end in zip(starts, [*starts[1:], len(row)], strict=True)]
    return lengths


def _passes(modules: Sequence[nn.Module]) -> float:
    """How many times the forward FLOPs: once when nothing is trained, up to three times when everything is."""
    sizes = [(p.numel(), p.requires_grad) for module in modules for p in module.parameters()]
    trained = sum(size for size, grad in sizes if grad)
    return 2.0 + trained / sum(size for size, _ in sizes) if trained else 1.0


def _on_meta(vlm: PrismaticVLM) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
    """`vlm.encode` of a copy without weights."""
    memo: dict[int, Any] = {id(vlm.llm_backbone): vlm.llm_backbone}
    for module in (vlm.vision_backbone, vlm.aggregator, vlm.projector):
        for tensor in [*module.parameters(), *module.buffers()] if module is not None else ():
            empty = torch.empty_like(tensor, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(vlm, memo)
    # The counter names calls by class; under a name of its own the tower is found whatever it is.
    tower = twin.vision_backbone
    tower.__class__ = type("VisionTower", (type(tower),), {})
    return twin.encode
