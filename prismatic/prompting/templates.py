"""Chat templates: the strings around the messages of a conversation, and which of them a model learns to write.

A template is a row of strings, never a class of its own. Ids that end in `-compat` hold strings with the mistakes that
published checkpoints were trained on; they are kept to load those checkpoints, and not for new training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prismatic.registry import Registry
from prismatic.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDERS = ("<image>", "<video>")
"""Both stand for "the next medium of the row"; the name says nothing about the kind."""

_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))
_OPENING = re.compile(rf"\A\s*(?:(?:{_PLACEHOLDER.pattern})\s*)+")

EOS_FIELD = "{eos}"
"""In `ChatTemplate.end`: the tokenizer's own end token, filled in by `for_tokenizer`."""


@dataclass(frozen=True)
class Segment:
    """One string of a conversation, tokenized on its own.

    learned: its tokens are labels. context: text in front of it in whose company it is tokenized, because some
    tokenizers drop or add a blank after a special token; the tokens of the context itself are not kept.
    slot_context: the same for text right behind the slots of a medium.
    """

    text: str
    learned: bool
    context: str = ""
    slot_context: str = ""


def strip_placeholders(message: str) -> str:
    """The message without placeholders and without blanks around it, as every published checkpoint saw it."""
    for placeholder in PLACEHOLDERS:
        message = message.replace(placeholder, "")
    return message.strip()


@dataclass(frozen=True)
class ChatTemplate:
    """The strings of a chat format. `{message}` and `{system}` are filled in as plain text.

    first: human turn that opens a conversation without a system prompt. A form without `{message}` drops the message.
    with_system: the same with a system prompt; None when the format has no place for one. system: the default prompt.
    later: human turns after the first; None when they look like `first`.
    head, end: what the model writes before and after each answer, learned like the answer.
    bos: the string of the begin token; a prompt is returned without it. adds_bos: token sequences start with the
    tokenizer's begin token, exactly once, when the tokenizer has one.
    strips: blanks between a human turn and the answer belong to neither (the older rule, right for tokenizers that put
    a blank in front of each text). joined: later human turns are tokenized in the company of `end`.
    stop: strings that end an answer, besides the tokenizer's end token.
    medium: what stands around the visual tokens (`{slots}`) of each medium, for models with a format of their own; ""
    for the others, whose messages stay as they are. before_text: what the format puts between the media that open a
    message and its text. slot_token: the model's own placeholder, in whose company text behind a medium is tokenized.
    """

    first: str
    end: str
    with_system: str | None = None
    later: str | None = None
    system: str = ""
    head: str = ""
    bos: str = "<s>"
    adds_bos: bool = True
    strips: bool = True
    joined: bool = False
    stop: tuple[str, ...] = ()
    medium: str = ""
    before_text: str = ""
    slot_token: str = ""

    def human(self, message: str, *, first: bool, system_prompt: str | None = None) -> str:
        """The string of a human turn, ready to be answered. system_prompt: None for the template's own, "" for none.

        Raises ValueError when the template has no place for a system prompt and one is given.
        """
        if not first:
            return self._fill(self.first if self.later is None else self.later, message)
        system = self.system if system_prompt is None else system_prompt
        if not system:
            return self._fill(self.first, message)
        if self.with_system is None:
            raise ValueError(
                f"this prompt template has no place for a system prompt (got {system[:40]!r}); leave it out and say it "
                "in the first message, or choose another --model.prompt_template"
            )
        return self._fill(self.with_system, message, system)

    def answer(self, message: str) -> str:
        """The string of an answer with its end. An empty answer becomes one blank."""
        assert EOS_FIELD not in self.end, "call for_tokenizer() first"
        return f"{self.head}{message or ' '}{self.end}"

    def segments(self, turns: Sequence[Turn], system_prompt: str | None = None) -> list[Segment]:
        """Every string of the conversation in order, without the begin token (`adds_bos` says whether it goes first).

        Messages are taken as they are. Raises ValueError when roles do not alternate, human first.
        """
        out: list[Segment] = []
        for index, turn in enumerate(turns):
            check_role(turn.role, index)
            if turn.role == "gpt":
                out.append(Segment(self.answer(turn.text), learned=True))
                continue
            text = self.human(turn.text, first=index == 0, system_prompt=system_prompt)
            text = text.removeprefix(self.bos) if index == 0 else text
            text = text.rstrip() if self.strips else text
            context = self.end if self.joined and index else ""
            out.append(Segment(text, learned=False, context=context, slot_context=self.slot_token))
        return out

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """This template with an end token that the tokenizer knows as one token.

        A template's own end stays when it is a token of the vocabulary; otherwise the tokenizer's end token takes its
        place, so that a model learns to stop. Raises ValueError when the tokenizer has no end token either.
        """
        end = self.end.strip()
        if end != EOS_FIELD and _is_token(tokenizer, end):
            return self
        if not tokenizer.eos_token:
            raise ValueError(
                f"the tokenizer knows neither the template's end {end!r} nor an end token of its own; "
                "choose another --model.prompt_template"
            )
        return replace(self, end=self.end.replace(end, tokenizer.eos_token), stop=(tokenizer.eos_token,))

    def _fill(self, form: str, text: str, system: str = "") -> str:
        # Not str.format: messages and the templates of tokenizers hold braces.
        before, field, after = form.partition("{message}")
        before = before.replace("{system}", system)
        if self.medium:
            media, text = self._media(text)
            before = before.removesuffix(self.before_text) + media + self.before_text
        return before + (text if field else "") + after

    def _media(self, message: str) -> tuple[str, str]:
        """The placeholders that open a message, in the model's own format, and the rest of the message."""
        opening = _OPENING.match(message)
        media = _PLACEHOLDER.findall(opening[0]) if opening else []
        rest = message[opening.end() :] if opening else message
        inside = self.medium.strip("\n")
        rest = _PLACEHOLDER.sub(lambda match: inside.replace("{slots}", match[0]), rest)
        return "".join(self.medium.replace("{slots}", placeholder) for placeholder in media), rest


def check_role(role: str, index: int) -> None:
    """Raises ValueError unless turn `index` (from 0) has the role that is due: human, gpt, human, ..."""
    due = "gpt" if index % 2 else "human"
    if role != due:
        raise ValueError(f"turn {index + 1} of the conversation must be from '{due}', not '{role}' (human begins)")


def _is_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    found = tokenizer.convert_tokens_to_ids(text)
    return found is not None and (found != tokenizer.unk_token_id or text == tokenizer.unk_token)


TEMPLATES: Registry[ChatTemplate] = Registry("prompt template", flag="--model.prompt_template")

_VISION_ASSISTANT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
# The missing blank after the second sentence is in the original.
_VIDEO_CHATGPT = (
    "You are Video-ChatGPT, a large vision-language assistant. You are able to understand the video content that the "
    "user provides, and assist the user with a variety of tasks using natural language.Follow the instructions "
    "carefully and explain your answers in detail based on the provided video."
)
_USER_ASSISTANT = "USER: {message} ASSISTANT: "
_LLAMA2 = "[INST] {message} [/INST] "
_LLAMA3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{message}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
# The published strings: one line break after a header, one after the system prompt.
_LLAMA3_COMPAT = "<|start_header_id|>user<|end_header_id|>\n{message}<|eot_id|>"
_LLAMA3_COMPAT_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n{system}\n<|eot_id|>"
_PHI3 = "<|user|>\n{message}<|end|>\n<|assistant|>\n"
_GEMMA = "<start_of_turn>user\n{message}<end_of_turn>\n<start_of_turn>model\n"
_QWEN2 = "<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"

_PHI2 = ChatTemplate(
    first="<|endoftext|>Input: {message}\nOutput: ",
    end="\n<|endoftext|>",
    bos="<|endoftext|>",
    stop=("<|endoftext|>",),
)
_LLAMA2_CHAT = ChatTemplate(
    first=_LLAMA2,
    with_system=_LLAMA2.replace("{message}", "<<SYS>>\n{system}\n<</SYS>>\n\n{message}"),
    system=_VISION_ASSISTANT,
    end="</s>",
    stop=("</s>",),
)
_LLAMA3_INSTRUCT = ChatTemplate(
    first=_LLAMA3,
    with_system=_LLAMA3_SYSTEM + _LLAMA3,
    system=_VISION_ASSISTANT,
    end="<|eot_id|>",
    bos="<|begin_of_text|>",
    strips=False,
    joined=True,
    stop=("<|eot_id|>",),
)

TEMPLATES.add("pure", ChatTemplate(first="In: {message}\nOut: ", end="</s>", stop=("</s>",)))
TEMPLATES.add(
    "vicuna-v15",
    ChatTemplate(
        first=_USER_ASSISTANT,
        with_system="{system} " + _USER_ASSISTANT,
        system=_CURIOUS_USER,
        end="</s>",
        stop=("</s>",),
    ),
)
TEMPLATES.add("llama2-chat", _LLAMA2_CHAT)
TEMPLATES.add(
    "llama2-chat-compat",
    replace(_LLAMA2_CHAT, with_system=_LLAMA2.replace("{message}", "<<SYS>\n{system}\n<</SYS>>\n\n{message}")),
)
TEMPLATES.add("mistral-instruct", ChatTemplate(first=_LLAMA2, end="</s>", stop=("</s>",)))
TEMPLATES.add("phi-2", _PHI2)
TEMPLATES.add(
    "phi-3",
    ChatTemplate(
        first=_PHI3,
        with_system="<|system|>\n{system}<|end|>\n" + _PHI3,
        later="\n" + _PHI3,
        end="<|end|>",
        strips=False,
        joined=True,
        stop=("<|end|>",),
    ),
)
TEMPLATES.add("phi-3-compat", _PHI2)
TEMPLATES.add("llama3-instruct", _LLAMA3_INSTRUCT)
# The published prompt ends before the header of the assistant, so the model has to learn to write that header.
TEMPLATES.add(
    "llama3-instruct-compat",
    replace(
        _LLAMA3_INSTRUCT,
        first=_LLAMA3_COMPAT,
        with_system=_LLAMA3_COMPAT_SYSTEM + _LLAMA3_COMPAT,
        head="<|start_header_id|>assistant<|end_header_id|>\n",
        strips=True,
        joined=False,
    ),
)
TEMPLATES.add(
    "gemma-instruct",
    ChatTemplate(
        first=_GEMMA,
        # Gemma has no role for a system prompt; its own template puts one in front of the first message.
        with_system=_GEMMA.replace("{message}", "{system}\n\n{message}"),
        later="\n" + _GEMMA,
        end="<end_of_turn>",
        bos="<bos>",
        strips=False,
        joined=True,
        stop=("<end_of_turn>",),
    ),
)
TEMPLATES.add(
    "qwen-2",
    ChatTemplate(
        first=_QWEN2,
        with_system="<|im_start|>system\n{system}<|im_end|>\n" + _QWEN2,
        later="\n" + _QWEN2,
        system="You are a helpful assistant.",
        end="<|im_end|>",
        bos="<|endoftext|>",
        adds_bos=False,
        strips=False,
        joined=True,
        stop=("<|im_end|>",),
    ),
)
TEMPLATES.add(
    "video-chatgpt-v1",
    ChatTemplate(
        first=_USER_ASSISTANT,
        with_system="{system} " + _USER_ASSISTANT,
        system=_VIDEO_CHATGPT,
        end="</s>",
        stop=("</s>",),
    ),
)
# The align stage: the caption alone, no question.
TEMPLATES.add("caption", ChatTemplate(first="", end=EOS_FIELD))
