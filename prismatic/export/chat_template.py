"""A ChatTemplate as the Jinja template of a tokenizer: the same strings, with `<image>` where visual tokens stand.

One image item (or `<image>` in a string) is one frame: a clip of T frames is T of them in a row. In layout after-bos
all of them go to the front of the sequence, in layout inline they stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prismatic.prompting import ChatTemplate
from prismatic.types import Turn

IMAGE = "<image>"


@dataclass(frozen=True)
class Gaps:
    """Blanks that a tokenizer needs between strings to see each as it sees it alone.

    media: behind the begin token and the visual tokens at the front. answer, turn: in front of
    an answer, of a later question.
    """

    media: str = ""
    answer: str = ""
    turn: str = ""


_READ = """\
{%- set ns = namespace(images=0, texts=[], text='', system=none) -%}
{%- for message in messages -%}
  {%- set ns.text = '' -%}
  {%- if message['content'] is string -%}
    {%- set ns.text = message['content'] -%}
  {%- else -%}
    {%- for item in message['content'] -%}
      {%- if item['type'] in ('image', 'image_url', 'input_image') -%}
        {%- set ns.text = ns.text ~ '<image>' -%}
      {%- elif item['type'] == 'text' -%}
        @BREAK@
        {%- set ns.text = ns.text ~ item['text'] -%}
      {%- else -%}
        {{- raise_exception('content of type ' ~ item['type'] ~ ': give a clip as its frames, one image item each') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'system' -%}
    {%- if not loop.first -%}{{- raise_exception('the system prompt must come first') -}}{%- endif -%}
    {%- set ns.system = ns.text -%}
  {%- else -%}
    {%- if message['role'] != ('user', 'assistant')[ns.texts | length % 2] -%}
      {{- raise_exception('roles must alternate: user, assistant, user, ...') -}}
    {%- endif -%}
    @PLACE@
    {%- set ns.texts = ns.texts + [ns.text] -%}
  {%- endif -%}
{%- endfor -%}
"""
# Media without a placeholder go in front of the first question with a line break, as in training.
_BREAK = """\
{%- if not ns.texts and ns.text and not ns.text.replace('<image>', '') and item['text'][:1] != '\\n' -%}
          {%- set ns.text = ns.text ~ '\\n' -%}
        {%- endif -%}"""
_PLACE = """\
{%- if message['role'] == 'user' -%}
      {%- set ns.images = ns.images + ns.text.split('<image>') | length - 1 -%}
      {%- set ns.text = ns.text.replace('<image>', '').replace('<video>', '').strip() -%}
    {%- endif -%}"""
_PLACE_INLINE = """\
{%- if message['role'] == 'user' -%}
      {%- set parts = ns.text.replace('<video>', '').split('<image>') -%}
      {%- set ns.text = parts[0] -%}
      {%- for part in parts[1:] -%}
        {%- set ns.text = ns.text ~ '<image>' ~ (@MEDIA@ ~ part if part else '') -%}
      {%- endfor -%}
    {%- endif -%}"""
_WRITE = """\
{%- set system = @DEFAULT@ if ns.system is none else ns.system -%}
@BOS@{{- @LEAD@ ~ '<image>' * ns.images ~ @MEDIA@ -}}
{%- for text in ns.texts -%}
  {%- if loop.index0 % 2 -%}
    {{- @ANSWER@ ~ @HEAD@ ~ (text or ' ') ~ @END@ -}}
  {%- elif not loop.first -%}
    {{- @TURN@ ~ @LATER@ -}}
  {%- elif system -%}
    @SYSTEM@
  {%- else -%}
    {{- @FIRST@ -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- @HEAD@ -}}{%- endif -%}
"""


def jinja_template(template: ChatTemplate, layout: str, gaps: Gaps = Gaps(), *, has_bos: bool, lead: str = "") -> str:
    """The Jinja text.

    has_bos: the tokenizer has a begin token; it is written where the template begins with it. lead: what the first
    human turn begins with that stands in front of the visual tokens, where there is no begin token.
    """
    template = replace(
        template,
        first=template.first.removeprefix(template.bos).removeprefix(lead),
        with_system=template.with_system and template.with_system.removeprefix(template.bos).removeprefix(lead),
        later=template.first if template.later is None else template.later,
    )
    system = "{{- raise_exception('this chat format has no place for a system prompt') -}}"
    if template.with_system is not None:
        system = "{{- " + _form(template, template.with_system) + " -}}"
    fields = {
        "BREAK": _BREAK if layout == "inline" else "",
        "PLACE": _PLACE if layout == "after-bos" else _PLACE_INLINE,
        "BOS": "{{- bos_token -}}" if template.adds_bos and has_bos else "",
        "DEFAULT": _quote(template.system),
        "MEDIA": _quote(gaps.media),
        "ANSWER": _quote(gaps.answer),
        "TURN": _quote(gaps.turn),
        "HEAD": _quote(template.head),
        "END": _quote(template.end),
        "SYSTEM": system,
        "FIRST": _form(template, template.first),
        "LATER": _form(template, template.later or ""),
        "LEAD": _quote(lead),
    }
    text = _READ + _WRITE
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text


def messages(turns: Sequence[Turn], images: int, system_prompt: str | None = None) -> list[dict[str, object]]:
    """A conversation as Transformers' messages, with `images` image items in front of the first question."""
    out: list[dict[str, object]] = []
    if system_prompt is not None:
        out.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    for index, turn in enumerate(turns):
        items: list[dict[str, str]] = [{"type": "image"}] * (0 if index else images)
        items = [*items, {"type": "text", "text": turn.text}]
        out.append({"role": "assistant" if turn.role == "gpt" else "user", "content": items})
    return out


def _form(template: ChatTemplate, form: str) -> str:
    """A Jinja expression for the string of a human turn."""
    before, field, after = form.partition("{message}")
    pieces = [_quote(piece) for piece in before.split("{system}")]
    text = " ~ system ~ ".join(pieces) + (" ~ text" if field else "") + f" ~ {_quote(after)}"
    return f"({text}).rstrip()" if template.strips else f"({text})"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)
