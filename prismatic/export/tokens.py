"""The tokenizer of an exported model: the `<image>` token, a place for it in the vocabulary, and the chat template.

Ids must be those that the model sees here, where each string of a conversation is tokenized by itself; Transformers
tokenizes the whole text. They are compared, and what comes out different is refused or said.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from prismatic.export.chat_template import IMAGE, Gaps, jinja_template, messages
from prismatic.export.errors import ExportError
from prismatic.prompting import PromptBuilder, tokenize_prompt
from prismatic.types import VISUAL_SLOT, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prismatic.models.vlm import PrismaticVLM
    from prismatic.prompting import ChatTemplate

log = logging.getLogger(__name__)

PROBES = ("What happens in the video?", "x", "  Caption: (1) 'yes'\n(2) no ", "Qu'est-ce que c'est ? \u4ec0\u4e48")
ANSWERS = ("A red circle moves.", "yes")


@dataclass(frozen=True)
class ExportedTokenizer:
    """tokenizer: with `<image>` and the chat template. image_id: of `<image>`. rows: of the vocabulary that it needs.

    whole_chats: earlier turns of a conversation become the same ids as here, not only a first question.
    """

    tokenizer: PreTrainedTokenizerBase
    image_id: int
    rows: int
    whole_chats: bool


def export_tokenizer(vlm: PrismaticVLM) -> ExportedTokenizer:
    """The tokenizer for Transformers' processor. Raises ExportError when it would see other ids than the model here."""
    from transformers import AddedToken

    tokenizer = _without_bos(copy.deepcopy(vlm.llm_backbone.tokenizer))
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    if tokenizer(f"{IMAGE}a{IMAGE}", add_special_tokens=False)["input_ids"].count(image_id) != 2:
        raise ExportError(f"the tokenizer does not take {IMAGE} as one token")
    rows = vlm.llm_backbone.llm.get_input_embeddings().weight.shape[0]
    if image_id >= rows:
        rows = -(-(image_id + 1) // 64) * 64
    tokenizer.chat_template, whole = _chat_template(vlm, tokenizer, image_id)
    tokenizer.model_max_length = vlm.llm_backbone.context_length
    return ExportedTokenizer(tokenizer, image_id, rows, whole)


def _without_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The begin token is the chat template's to write: the tokenizer would put a second one in front."""
    for name in ("add_bos_token", "add_eos_token"):
        if hasattr(tokenizer, name):
            setattr(tokenizer, name, False)
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ExportError(
            f"{type(tokenizer).__name__} puts special tokens around every text, which cannot be turned off"
        )
    return tokenizer


def _chat_template(vlm: PrismaticVLM, tokenizer: Any, image_id: int) -> tuple[str, bool]:
    """The template with the gaps that give the ids of the model here, and whether that holds for later turns too."""
    has_bos, lead = bool(tokenizer.bos_token), ""
    if vlm.layout == "after-bos" and not (vlm.template.adds_bos and has_bos):
        lead = _lead(vlm.template, tokenizer)
    chats = [[Turn("human", text)] for text in PROBES]
    longer = [[*chat, Turn("gpt", said), Turn("human", PROBES[0])] for chat in chats for said in ANSWERS]

    def agrees(gaps: Gaps, probes: list[list[Turn]], images: int) -> bool:
        text = jinja_template(vlm.template, vlm.layout, gaps, has_bos=has_bos, lead=lead)
        return all(
            prompt_ids(vlm, turns, images, image_id) == _their_ids(tokenizer, text, turns, images) for turns in probes
        )

    media = next((m for m in ("", " ") if agrees(Gaps(m), chats, 3)), None)
    if media is None:
        raise ExportError(
            f"this tokenizer splits a text behind {IMAGE} otherwise than the model learned it with --model."
            f"visual_token_layout {vlm.layout}; Transformers would feed it other tokens"
        )
    options = [Gaps(media, answer, turn) for answer, turn in product(("", " "), repeat=2)]
    gaps = next((g for g in options if agrees(g, longer, 3)), None)
    if gaps is None:
        log.warning(
            "In conversations of several turns, Transformers splits earlier answers otherwise than training did"
        )
    return jinja_template(vlm.template, vlm.layout, gaps or Gaps(media), has_bos=has_bos, lead=lead), gaps is not None


def _lead(template: ChatTemplate, tokenizer: Any) -> str:
    """The string of the first token, behind which the visual tokens stand when there is no begin token."""
    first = template.first.removeprefix(template.bos)
    forms = [first] if template.with_system is None else [first, template.with_system.removeprefix(template.bos)]
    lead = tokenizer.decode(tokenizer(first.partition("{")[0], add_special_tokens=False)["input_ids"][:1])
    if not lead or not all(form.startswith(lead) for form in forms):
        raise ExportError(
            "this prompt template has no begin token and no constant first token for the visual tokens to stand behind"
        )
    return lead


def prompt_ids(vlm: PrismaticVLM, turns: list[Turn], frame_tokens: int, image_id: int) -> list[int]:
    """Ids of a prompt about one medium (none for 0) of `frame_tokens` visual tokens here, `image_id` for each."""
    builder = PromptBuilder(vlm.template, keep_placeholders=vlm.layout == "inline")
    for turn in turns:
        builder.add_turn(turn.role, turn.text)
    tokenizer = vlm.llm_backbone.tokenizer
    media = [frame_tokens] if frame_tokens else []
    ids = tokenize_prompt(builder.get_prompt(), media, tokenizer=tokenizer, layout=vlm.layout, template=vlm.template)
    ids += tokenizer(vlm.template.head, add_special_tokens=False)["input_ids"] if vlm.template.head else []
    return [image_id if token == VISUAL_SLOT else token for token in ids]


def _their_ids(tokenizer: Any, template: str, turns: list[Turn], images: int) -> list[int]:
    text = tokenizer.apply_chat_template(
        messages(turns, images), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]
