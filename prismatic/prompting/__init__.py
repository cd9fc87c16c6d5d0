"""Conversations into strings and ids: chat templates, PromptBuilder, and where the visual tokens stand."""

from __future__ import annotations

from prismatic.prompting.builder import Conversation, Prompt, PromptBuilder
from prismatic.prompting.from_processor import processor_template
from prismatic.prompting.from_tokenizer import tokenizer_template
from prismatic.prompting.placement import check_placeholders, place_turns, tokenize_prompt, tokenize_segments
from prismatic.prompting.templates import PLACEHOLDERS, TEMPLATES, ChatTemplate, Segment, strip_placeholders

__all__ = [
    "PLACEHOLDERS",
    "TEMPLATES",
    "ChatTemplate",
    "Conversation",
    "Prompt",
    "PromptBuilder",
    "Segment",
    "check_placeholders",
    "place_turns",
    "processor_template",
    "strip_placeholders",
    "tokenize_prompt",
    "tokenize_segments",
    "tokenizer_template",
]
