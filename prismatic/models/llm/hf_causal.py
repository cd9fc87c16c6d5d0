"""Any Transformers causal LM behind one small face: what the VLM needs of an LLM, and nothing about vision.

Owns the loss, the context length and where the decoder layers are; building is build.py's. Family differences (masks,
soft-capping, scaled embeddings) stay inside the family's own forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from prismatic.models.llm.attention import OURS, borders_of, packed
from prismatic.models.llm.last_layer import ROWS
from prismatic.models.llm.lora import adapter_parameters
from prismatic.models.llm.rope import context_length, rope_factor
from prismatic.models.rotary import KeepsFrequencies

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prismatic.models.llm.context import ContextShards


SEPARATES_BY_POSITION = frozenset(
    "cohere ernie4_5 exaone4 gemma gemma2 gemma3_text glm4 gpt2 gpt_neox gptj granite llama mistral mixtral olmo2 "
    "olmo3 phi phi3 qwen2 qwen3 qwen3_moe smollm3 stablelm starcoder2".split()
)
"""Families in which attention stops where positions restart (each is tested). Others, such as ALiBi and state-space
models, let packed examples see each other without a word, so their rows are taken apart first."""

HEAD_ROWS = 1024
"""Positions whose logits exist at a time: 0.5 GB in fp32 for a vocabulary of 128 000. More are taken in chunks."""


class HFCausalLM(KeepsFrequencies):
    """A causal LM with its tokenizer.

    llm: the Transformers model (state-dict prefix `llm.`). tokenizer: pads on the right with a token of its own.
    template_id: prompt template of its row; None for the tokenizer's own chat template. adapter: settings of the LoRA
    adapters inside `llm`, None without (lora.py). context: where the processes share sequences, this one's part of
    them (context.py).
    """

    def __init__(
        self, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template_id: str | None = None
    ) -> None:
        super().__init__()
        self.llm = llm
        self.tokenizer = tokenizer
        self.template_id = template_id
        self.adapter: LoraConfig | None = None
        self.context: ContextShards | None = None
        self.embed_dim = int(llm.get_input_embeddings().weight.shape[1])
        self._layers_name = _find_layers(llm)
        self.shortened = False  # whether the last layer works at label positions alone (last_layer.py)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        return self.llm.get_submodule(self._layers_name)

    @property
    def context_length(self) -> int:
        """Most positions, text and visual, that the model can attend to; RoPE scaling is counted."""
        return context_length(self.llm.config) or int(self.tokenizer.model_max_length)

    @property
    def rope_factor(self) -> float | None:
        """By how much RoPE scaling stretches the context, 1 for not at all; None where it cannot."""
        return rope_factor(self.llm.config)

    @property
    def separates(self) -> bool:
        """Whether attention stops where position ids restart."""
        return self.llm.config.get_text_config().model_type in SEPARATES_BY_POSITION

    @property
    def packs(self) -> bool:
        """Whether examples may share one row: attention stops between them, and makes no mask of the whole row.

        Such a mask would grow with the square of the row, above what the examples take one by one.
        """
        own = self._one_row or self.context is not None
        return self.separates and (own or self.llm.config._attn_implementation == "flex_attention")

    def used_parameters(self) -> Iterable[nn.Parameter]:
        """What a stage that trains the LLM trains: all of it, or its adapters alone where it has some."""
        return self.parameters() if self.adapter is None else adapter_parameters(self)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids int64 [B, S] to embeddings [B, S, D]."""
        return self.llm.get_input_embeddings()(ids)

    def token_losses(
        self, embeds: torch.Tensor, position_ids: torch.Tensor | None, places: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the negative log-likelihoods of `targets`, an fp32 scalar; 0 when there are none.

        embeds: [B, S, D]. position_ids: int64 [B, S] where rows hold several examples, else None; no attention crosses
        a restart of the positions. places: int64 [L], where in the flattened [B S] the hidden states stand that
        predict targets [L]. The head is applied at these places only, to HEAD_ROWS at a time.
        """
        borders = None
        if self.context is not None:
            embeds, position_ids, places, targets, borders = self.context.take(embeds, position_ids, places, targets)
        elif position_ids is not None:
            borders = self._borders(position_ids)
            embeds, position_ids, places = self._separate(embeds, position_ids, places)
        whole = len(places) <= HEAD_ROWS
        # With context parallelism a layer's keys and values are spread over processes, of which some have no labels.
        few = self.shortened and self.context is None and 0 < 2 * len(places) <= embeds.shape[:2].numel()
        body: Any = None
        hidden = embeds

        def gather(module: nn.Module, inputs: Any, output: Any) -> Any:
            nonlocal body, hidden
            hidden = output.last_hidden_state.flatten(0, 1)
            body, hidden = output, hidden if few else hidden[places]  # [L, D]
            assert len(hidden) == len(places)
            return _with_hidden(output, hidden if whole else hidden[:0])

        # Gathered between the body and the head, so that the family's own head code (soft-capping, logit scales) sees
        # just L positions. No 2-D mask: with one, Transformers stops separating packed examples by their positions.
        hook = self.llm.base_model.register_forward_hook(gather)
        try:
            more = {} if position_ids is None else {"position_ids": position_ids}
            if few:
                more[ROWS] = places
            with packed(borders):
                output = self.llm(inputs_embeds=embeds, use_cache=False, return_dict=True, **more)
        finally:
            hook.remove()
        if body is not None and not whole:
            return self._chunked_losses(_with_hidden(body, None), hidden, targets)
        # A family whose head does not go through its base model's forward (OPT) has computed all logits.
        logits = output.logits[0] if body is not None else output.logits.flatten(0, 1)[places]
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def _chunked_losses(self, body: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of losses of hidden states [L, D]; logits of one chunk exist at a time, and anew in the backward pass.

        body: what the base model's forward returned, without its hidden states.
        """

        def losses(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            with _standing_in(self.llm.base_model, _with_hidden(body, rows)):
                logits = self.llm(inputs_embeds=rows[None], use_cache=False, return_dict=True).logits[0]
            return F.cross_entropy(logits.float(), wanted, reduction="sum")

        chunks = zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True)
        if not torch.is_grad_enabled():
            return torch.stack([losses(*chunk) for chunk in chunks]).sum()
        sums = [checkpoint(losses, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return torch.stack(sums).sum()

    @property
    def _one_row(self) -> bool:
        """Whether packed examples must lie in one row: so want our own attention, and Transformers' flash attention."""
        name = self.llm.config._attn_implementation
        return name in OURS.values() or "flash" in name

    def _borders(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        """Borders of packed examples, where our own attention is told them; of [4, B, S], the first are the text's."""
        if not self.separates or self.llm.config._attn_implementation not in OURS.values():
            return None
        return borders_of((position_ids if position_ids.ndim == 2 else position_ids[0]).flatten())

    def _separate(
        self, embeds: torch.Tensor, position_ids: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The same packed rows in a form in which this model keeps examples apart."""
        if self.separates and self._one_row:
            return embeds.flatten(0, 1)[None], position_ids.flatten()[None], places
        if self.separates:
            return embeds, position_ids, places
        at = position_ids.flatten()
        example, length = (at == 0).cumsum(0) - 1, int(at.max()) + 1
        into = example * length + at
        rows = embeds.new_zeros(int(example[-1] + 1) * length, embeds.shape[-1]).index_copy(
            0, into, embeds.flatten(0, 1)
        )
        return rows.unflatten(0, (-1, length)), None, into[places]

    def save_definition(self, folder: Path) -> None:
        """Write tokenizer and configuration (no weights), from which `build_llm(tokenizer=folder)` builds the same."""
        self.tokenizer.save_pretrained(folder)
        self.llm.config.save_pretrained(folder)


def _with_hidden(output: Any, hidden: torch.Tensor | None) -> Any:
    """The output of a base model with other hidden states, [L, D] in one row, or none."""
    return type(output)(**{**output, "last_hidden_state": None if hidden is None else hidden[None]})


@contextmanager
def _standing_in(module: nn.Module, output: Any) -> Iterator[None]:
    """Inside, `module` computes nothing and returns `output`."""
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward


def _find_layers(llm: nn.Module) -> str:
    """Name of the list of decoder layers: the longest ModuleList of the model that is not inside another one."""
    lists = [(name, m) for name, m in llm.named_modules() if isinstance(m, nn.ModuleList)]
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    if not outer:
        raise ValueError(f"{type(llm).__name__} has no list of layers; is it a decoder-only transformer?")
    return max(outer, key=lambda item: len(item[1]))[0]
