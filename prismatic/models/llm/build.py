"""Building an LLM from its id: configuration, tokenizer, weights, rows of the vocabulary, RoPE scaling."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch

from prismatic.models.errors import first_line
from prismatic.models.hub import NotHereError, explain
from prismatic.models.llm.hf_causal import HFCausalLM
from prismatic.models.llm.rope import scale_rope
from prismatic.models.llm.tokenizer import ensure_pad_token, has_tokenizer, load_tokenizer, train_tokenizer
from prismatic.models.llm.zoo import FLAG, LLMSpec, llm_spec
from prismatic.models.pickle_scan import check_pickles
from prismatic.models.seeding import seeded

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

TextSource = Callable[[], Iterable[str]]


class HubOptions(TypedDict, total=False):
    """How to get and hold a model. hf_token, cache_dir: of the hub. trust_remote_code: run code of the repository.

    fetch: without pretrained weights, still take the published configuration and tokenizer: a checkpoint will bring
    the weights, and none are made up (they are left as they come).
    dtype: of the weights (default fp32). attention: Transformers' attn_implementation (default "sdpa", and "eager"
    where a family has no SDPA).
    """

    hf_token: str | None
    cache_dir: str | Path | None
    trust_remote_code: bool
    fetch: bool
    dtype: torch.dtype
    attention: str


@dataclass(frozen=True)
class _Source:
    """Where the parts of one LLM come from. definition: a folder that `save_definition` wrote, if there is one."""

    llm_id: str
    spec: LLMSpec
    pretrained: bool
    hub: HubOptions
    definition: Path | None

    @property
    def folder(self) -> Path | None:
        path = Path(self.spec.hf_path) if self.spec.hf_path else None
        return path if path and path.is_dir() else None

    @property
    def from_shape(self) -> bool:
        """The configuration is that of the row: random weights, and no folder that says more."""
        known = self.pretrained or self.fetch or self.folder or self.definition
        return not known and self.spec.model_type is not None

    @property
    def fetch(self) -> bool:
        """Whether configuration and tokenizer are the published ones, though the weights come from elsewhere."""
        return self.hub.get("fetch", False) and self.spec.hf_path is not None

    def options(self) -> dict[str, Any]:
        """Keywords of from_pretrained."""
        given = {"token": self.hub.get("hf_token"), "cache_dir": self.hub.get("cache_dir")}
        options: dict[str, Any] = {name: str(value) for name, value in given.items() if value is not None}
        options["trust_remote_code"] = bool(self.hub.get("trust_remote_code", False))
        if not (self.pretrained or self.fetch):
            options["local_files_only"] = True
        return options


def build_llm(
    llm_id: str,
    *,
    pretrained: bool,
    rope_scaling_factor: float | None = None,
    rope_scaling_type: str = "dynamic",
    max_length: int = 2048,
    tokenizer: str | Path | None = None,
    texts: TextSource | None = None,
    seed: int = 0,
    **hub: Unpack[HubOptions],
) -> HFCausalLM:
    """The LLM of an id of the zoo, a hub name or a local folder.

    Args:
        pretrained: False for random weights that depend on `seed` only; then no weights are downloaded, and with
            `texts` or a tokenizer folder nothing at all.
        rope_scaling_factor, rope_scaling_type: stretch the context by this factor, the "dynamic", "linear" or "yarn"
            way (see rope.py).
        max_length: most text tokens (`--model.llm_max_length`), set on the tokenizer.
        tokenizer: folder or hub name of the tokenizer to use in place of the model's. A folder that `save_definition`
            wrote also gives the configuration when pretrained is False.
        texts: gives the texts that a tokenizer is trained on for random weights; called only where one is needed.
            Without it a row of the zoo takes its published tokenizer.

    Raises ValueError (UnknownIdError for an unknown id) saying what to check or type.
    """
    spec = llm_spec(llm_id)
    if pretrained and spec.hf_path is None:
        raise ValueError(f"{FLAG} {llm_id} has no pretrained weights; pass --model.pretrained_backbones false")
    saved = tokenizer is not None and not pretrained and (Path(tokenizer) / "config.json").is_file()
    source = _Source(llm_id, spec, pretrained, hub, Path(tokenizer) if saved and tokenizer else None)
    config = _config(source)
    tok = _tokenizer(source, tokenizer, texts, config)
    tok.model_max_length = max_length
    added = ensure_pad_token(tok, spec.pad_token)
    # Not yet the padding token's: its row is added to the embedding below.
    config.pad_token_id = None
    if source.from_shape:
        config.bos_token_id, config.eos_token_id = tok.bos_token_id, tok.eos_token_id
        config.vocab_size = _vocabulary_rows(spec, len(tok), config.vocab_size)
    if rope_scaling_factor is not None:
        scale_rope(llm_id, config, rope_scaling_factor, rope_scaling_type)
    llm = _model(source, config, seed)
    rows = llm.get_input_embeddings().weight.shape[0]
    wanted = _vocabulary_rows(spec, len(tok), rows)
    if added and wanted != rows:
        with seeded(seed):
            # The mean of all rows would need their covariance; a padding token is never attended to or predicted.
            llm.resize_token_embeddings(wanted, mean_resizing=False)
    llm.config.pad_token_id = tok.pad_token_id
    if llm.generation_config is not None:
        llm.generation_config.pad_token_id = tok.pad_token_id
    return HFCausalLM(llm, tok, spec.template)


def _vocabulary_rows(spec: LLMSpec, tokens: int, rows: int) -> int:
    """Rows of the embedding for a tokenizer of `tokens`, the model having `rows`.

    A row of the zoo that adds a padding token fits the embedding to the tokenizer, downwards too: the shapes of
    published checkpoints (32064 for Llama-2, 50304 for Phi-2). So does one that has no weights at all.
    """
    if spec.pad_token is None and spec.hf_path is not None and tokens <= rows:
        return rows
    return -(-tokens // spec.pad_to_multiple) * spec.pad_to_multiple


def _config(source: _Source) -> PretrainedConfig:
    from transformers import AutoConfig

    if source.from_shape:
        # The class's own token ids may lie outside a small vocabulary.
        no_ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        return AutoConfig.for_model(source.spec.model_type, **no_ids, **source.spec.shape)
    path = source.definition or source.spec.hf_path
    try:
        return AutoConfig.from_pretrained(str(path), **source.options())
    except (OSError, ValueError) as error:
        hint = (
            "check the name, the network and --hf_token, or give a local folder"
            if source.pretrained or source.fetch
            else "random weights need its configuration here: download the model once, or give a local folder"
        )
        if "custom code" in str(error):
            hint = "if you trust it, pass --model.trust_remote_code true"
        raise NotHereError(
            f"{FLAG} {source.llm_id}: cannot load the configuration of '{path}': {explain(error, str(path))}; {hint}"
        ) from error


def _tokenizer(
    source: _Source, path: str | Path | None, texts: TextSource | None, config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    if path is not None:
        # Named by the caller, so it may be fetched, also for random weights.
        return load_tokenizer(path, {**source.options(), "local_files_only": Path(path).is_dir()})
    trained_here = source.from_shape or (source.folder and not has_tokenizer(source.folder))
    if not trained_here:
        return load_tokenizer(str(source.spec.hf_path), source.options())
    if texts is None and source.spec.hf_path is not None and source.folder is None:
        # Weights will come from a checkpoint, which was trained with the published tokenizer.
        return load_tokenizer(source.spec.hf_path, {**source.options(), "local_files_only": False})
    if texts is None:
        raise ValueError(f"{FLAG} {source.llm_id} has no tokenizer here; name one, or give texts to train one on")
    most = source.spec.vocab_size if source.from_shape else config.vocab_size
    tok = train_tokenizer(texts(), most)
    log.info("Trained a tokenizer of %d tokens", len(tok))
    return tok


def _model(source: _Source, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    def build(attention: str) -> PreTrainedModel:
        common = {"dtype": source.hub.get("dtype", torch.float32), "attn_implementation": attention}
        return _with_weights(source, config, common) if source.pretrained else _random(source, config, common, seed)

    try:
        return build(source.hub.get("attention", "sdpa"))
    except ValueError as error:
        if "attention" in source.hub or "scaled_dot_product" not in str(error):
            raise
        log.info("%s has no SDPA attention; taking eager", source.llm_id)
        return build("eager")


def _random(source: _Source, config: PretrainedConfig, common: dict[str, Any], seed: int) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    trust = source.options()["trust_remote_code"]
    with seeded(seed), no_init_weights() if source.fetch else nullcontext():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust, **common)


def _with_weights(source: _Source, config: PretrainedConfig, common: dict[str, Any]) -> PreTrainedModel:
    """The pretrained model. Raises ValueError when its weights cannot be had, or are another model's."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    path = source.spec.hf_path
    try:
        for file in source.folder.glob("*.bin") if source.folder else ():
            check_pickles(file)
        llm, found = AutoModelForCausalLM.from_pretrained(
            path, config=config, output_loading_info=True, **common, **source.options()
        )
    except (OSError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{FLAG} {source.llm_id}: cannot load the weights of '{path}': {explain(error, str(path))}; check the "
            "network and --hf_token, or build it with random weights: --model.pretrained_backbones false"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{FLAG} {source.llm_id}: the weights of '{path}' are not those of its configuration: {first_line(error)}"
        ) from error
    # Transformers makes up what is missing, with a warning.
    wrong = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if wrong:
        raise ValueError(
            f"{FLAG} {source.llm_id}: the weights of '{path}' are not those of a {config.model_type} model as its "
            f"configuration has it: {len(wrong)} are missing or of another shape, for example {min(wrong)}"
        )
    return llm
