"""What a model remembers of the questions before: visual tokens of clips, and keys and values of prompts.

Owns when something remembered may be used again. It is keyed by the content of the clip and the tokens of the prompt,
all of it is forgotten as soon as the weights are others (or in another dtype or place), and its size has a limit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from prismatic.models.media import EncodedClip
from prismatic.types import VISUAL_SLOT

if TYPE_CHECKING:
    from prismatic.models.kv_cache import PromptCache

CPU_LIMIT_BYTES = 1 << 30
GPU_LIMIT_SHARE = 0.1  # of the memory of the device
SHORTEST_PREFIX = 8  # positions; fewer are computed again sooner than they are found
_SAMPLES = 8  # values of each tensor that are looked at
_CLIP_STRIDE = 1 << 24  # more than the visual tokens of a clip


def identity(ids: Sequence[int], media: Sequence[EncodedClip]) -> np.ndarray:
    """What stands at each position of a prompt, int64 [S]: the id of a token, or a negative number for each visual
    token of each clip.
    """
    names = np.asarray(ids, dtype=np.int64)
    slots = names == VISUAL_SLOT
    if slots.any():
        visual = [-_CLIP_STRIDE * (clip.uid + 1) + np.arange(len(clip.tokens)) for clip in media]
        names[slots] = np.concatenate(visual)
    return names


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """In how many positions from the start two sequences [..., S] are alike."""
    shorter = min(a.shape[-1], b.shape[-1])
    alike = (a[..., :shorter] == b[..., :shorter]).reshape(-1, shorter).all(axis=0)
    return shorter if alike.all() else int(alike.argmin())


@dataclass(eq=False)
class Remembered:
    """A sequence whose keys and values (one row) are known. names: see `identity`. places: int64 [3, S] in time,
    height and width, of models that have such positions.
    """

    names: np.ndarray
    places: np.ndarray | None
    cache: PromptCache

    def common(self, names: np.ndarray, places: np.ndarray | None) -> int:
        """How many positions of another sequence, never all, could be taken from this one."""
        length = min(common_length(self.names, names), len(names) - 1)
        if places is None or self.places is None:
            return length if places is self.places else 0
        return min(length, common_length(self.places, places))


class Memory:
    """Bounded by `limit_bytes` (None: 1 GiB, or a tenth of a GPU); 0 switches it off. Least recently used goes first.

    A model in training mode remembers nothing, and neither does one whose weights are sharded over processes: these
    must all do the same.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.weights: bytes | None = None
        self._clips: OrderedDict[object, EncodedClip] = OrderedDict()
        self._prompts: list[Remembered] = []
        self._limit = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self.limit_bytes)

    def __reduce__(self) -> tuple[type[Self], tuple[int | None]]:
        return type(self), (self.limit_bytes,)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is remembered."""
        return sum(held.nbytes for part in self._parts() for held in part)

    def forget(self) -> None:
        """Forget all of it."""
        self._clips.clear()
        self._prompts.clear()
        self.weights = None

    def refresh(self, model: nn.Module, device: torch.device) -> None:
        """To be called before anything is looked up: forgets what other weights have made."""
        self._limit = _limit(device) if self.limit_bytes is None else self.limit_bytes
        now = weights_mark(model) if self._limit else None
        if now is None or now != self.weights:
            self.forget()
        self.weights = now

    def clip(self, key: object) -> EncodedClip | None:
        """The clip that was kept under a key."""
        if key in self._clips:
            self._clips.move_to_end(key)
        return self._clips.get(key)

    def keep_clip(self, key: object, clip: EncodedClip) -> None:
        """Remember an encoded clip."""
        if self.weights is not None:
            self._clips[key] = clip
            self._shrink()

    def find(self, names: np.ndarray, places: np.ndarray | None) -> tuple[Remembered | None, int]:
        """The sequence that begins as another one for longest, and for how many positions."""
        best, length = None, SHORTEST_PREFIX - 1
        for prompt in self._prompts:
            common = prompt.common(names, places)
            if common > length:
                best, length = prompt, common
        if best is None:
            return None, 0
        self._prompts.remove(best)
        self._prompts.append(best)
        return best, length

    def take(self, names: np.ndarray, places: np.ndarray | None, room: int) -> PromptCache | None:
        """Keys and values of the longest known beginning of a sequence, to be written to.

        A sequence about the same clips is given away, not copied: it will come back, longer, by `keep`.
        """
        found, length = self.find(names, places)
        if found is None:
            return None
        if (found.names[length:] < 0).any():  # it holds a clip that this one has not
            return found.cache.beginning(length, room)
        self._prompts.remove(found)
        found.cache.cut(length)
        return found.cache

    def keep(self, prompt: Remembered) -> None:
        """Remember a sequence."""
        if self.weights is not None and prompt.cache.nbytes <= self._limit:
            self._prompts.append(prompt)
            self._shrink()

    def _parts(self) -> tuple[list[EncodedClip], list[PromptCache]]:
        return list(self._clips.values()), [prompt.cache for prompt in self._prompts]

    def _shrink(self) -> None:
        # From what there is more of: an evaluation goes through many clips, each with a prompt to keep for a while.
        clips, prompts = (sum(held.nbytes for held in part) for part in self._parts())
        while clips + prompts > self._limit:
            if prompts >= clips:
                prompts -= self._prompts.pop(0).cache.nbytes
            else:
                clips -= self._clips.popitem(last=False)[1].nbytes


def _limit(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * GPU_LIMIT_SHARE)
    return CPU_LIMIT_BYTES


def weights_mark(model: nn.Module) -> bytes | None:
    """Changes with every change of weights and buffers, their place and dtype, and with adapters switched on or off.

    Besides the places and the counters of in-place operations, some values of each tensor are looked at: writing to
    `.data` counts nowhere. None for weights that are sharded over processes, or that are not there yet.
    """
    from torch.distributed.tensor import DTensor

    modules = list(model.modules())
    held = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
    tensors = [t.detach() for t in held]
    if any(isinstance(t, DTensor) or t.is_meta for t in tensors):
        return None
    digest = hashlib.blake2b(digest_size=16)
    samples: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for t in tensors:
        count = 0 if t.is_inference() else t._version
        digest.update(f"{t.data_ptr()} {count} {t.dtype} {t.device} {tuple(t.shape)};".encode())
        if t.numel():
            samples.setdefault((t.dtype, t.device), []).append(_some_values(t))
    for parts in samples.values():
        digest.update(torch.cat(parts).view(torch.uint8).cpu().numpy().tobytes())
    for module in modules:
        if hasattr(type(module), "disable_adapters"):  # asked of the class: a module's own look-up is slow
            digest.update(f"{module.disable_adapters} {module.active_adapters};".encode())
    return digest.digest()


def _some_values(t: torch.Tensor) -> torch.Tensor:
    """A few elements [n] at even distances, the first among them."""
    if not t.is_contiguous():
        return t.reshape(-1)[:: max(1, t.numel() // _SAMPLES)][:_SAMPLES]
    count = min(_SAMPLES, t.numel())
    step = (t.numel() - 1) // (count - 1) if count > 1 else 1
    return t.as_strided((count,), (step,), t.storage_offset())
