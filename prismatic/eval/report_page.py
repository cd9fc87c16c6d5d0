"""The report's page: a Jinja template with its style inside. Everything is escaped but the drawing of the curve."""

from __future__ import annotations

_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #5b6676; --faint: #b9c1cd; --line: #e3e7ed;
  --one: #2563c9; --two: #e07b1a; --good: #1a7f4b; --good-bg: #e3f4ea; --bad: #c22f36; --bad-bg: #fbe6e6; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #1a2029; --ink: #e6eaf0; --soft: #9aa6b6; --faint: #4b5768; --line: #2a323e;
  --one: #6ea3ff; --two: #f2a65a; --good: #6fd3a0; --good-bg: #16332a; --bad: #ff8d8d; --bad-bg: #3a2024; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
header p { color: var(--soft); margin: 0; }
h1 { font-size: 26px; line-height: 1.25; margin: 2px 0 22px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; }
.note { color: var(--soft); margin: 0 0 14px; max-width: 46em; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.card, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.card { padding: 16px 18px; margin-bottom: 14px; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 0; }
tbody th { color: var(--ink); font-weight: 400; font-size: 15px; white-space: nowrap; }
td { width: 38%; }
tr.mean th { font-weight: 600; }
.bar { display: flex; align-items: center; gap: 10px; font-variant-numeric: tabular-nums; }
.bar i { flex: 1; height: 10px; border-radius: 5px; background: var(--line); overflow: hidden; }
.bar i::before { content: ""; display: block; height: 100%; width: var(--w); background: var(--c); border-radius: 5px; }
.bar span { width: 4.2em; text-align: right; }
.strip { display: grid; gap: 4px; grid-template-columns: repeat(8, 1fr); margin-bottom: 12px; }
.strip figure { margin: 0; }
.strip img { width: 100%; display: block; border-radius: 5px; background: var(--line); }
.strip figcaption { font-size: 11px; color: var(--soft); text-align: center; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
dd.answer { font-weight: 600; }
.missed { text-decoration: underline wavy var(--bad); text-decoration-thickness: 1.5px; text-underline-offset: 3px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 12px; }
.chip { border-radius: 99px; padding: 1px 10px; font-size: 13px; }
.good { color: var(--good); background: var(--good-bg); } .bad { color: var(--bad); background: var(--bad-bg); }
.file { color: var(--soft); font-size: 12px; margin: 0 0 8px; overflow-wrap: anywhere; display: flex; gap: 10px;
  justify-content: space-between; }
.problem { color: var(--bad); margin: 0 0 10px; overflow-wrap: anywhere; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); }
pre { overflow: auto; font-size: 12.5px; margin: 10px 0 0; }
.settings { grid-template-columns: max-content 1fr max-content 1fr; }
@media (max-width: 720px) { .strip { grid-template-columns: repeat(4, 1fr); } .settings { grid-template-columns:
  max-content 1fr; } td { width: auto; } }
"""

_MACROS = """
{% macro bar(cell, index) %}
{% if cell is none %}<span class="note">not measured</span>{% else %}
<div class="bar"><i style="--w: {{ '%.1f' | format(100 * cell[0]) }}%; \
--c: var(--{{ 'one' if index == 0 else 'two' }})"></i><span>{{ cell[1] }}</span></div>
{% endif %}
{% endmacro %}
{% macro score_table(lines, first) %}
<table><thead><tr><th>{{ first }}</th>
{% for e in evaluations %}<th>{{ e.label }}</th>{% endfor %}</tr></thead><tbody>
{% for line in lines %}<tr{% if line.name == 'mean' %} class="mean"{% endif %}><th>{{ line.name }}</th>
{% for cell in line.cells %}<td>{{ bar(cell, loop.index0) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endmacro %}
{% macro spans(pieces) %}
{% for piece in pieces %}{% if piece.same %}{{ piece.text }} {% else %}<span class="missed">{{ piece.text }}</span> \
{% endif %}{% else %}<span class="note">(nothing)</span>{% endfor %}
{% endmacro %}
{% macro clip(card) %}
<article class="card">
<p class="file"><span>{{ card.media or 'text only' }}</span>
<span class="chip {{ 'good' if card.right else 'bad' }}">{% if card.right %}&#10003; as the reference{% else %}\
&#10007; differs{% endif %}</span></p>
{% if card.pictures %}<div class="strip">
{% for picture in card.pictures %}<figure><img src="{{ picture.uri }}" alt="frame {{ loop.index }}">
<figcaption>{{ picture.when }}</figcaption></figure>
{% endfor %}</div>{% endif %}
{% if card.problem %}<p class="problem">&#10007; {{ card.problem }}</p>{% endif %}
<dl><dt>question</dt><dd>{{ card.question }}</dd>
<dt>answer</dt><dd class="answer">{{ spans(card.answer) }}</dd>
<dt>truth</dt><dd>{{ spans(card.truth) }}</dd>
{% for label, answer in card.others %}<dt>{{ label }}</dt><dd>{{ spans(answer) }}</dd>{% endfor %}</dl>
{% if card.compared %}<div class="chips">
{% for c in card.compared %}{% if c.right %}<span class="chip good">&#10003; {{ c.name }}: {{ c.true }}</span>
{% else %}<span class="chip bad">&#10007; {{ c.name }}: {{ c.said or 'not said' }}, true: {{ c.true }}</span>
{% endif %}{% endfor %}</div>{% endif %}
</article>
{% endmacro %}
"""

_BODY = """
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run_id }}</title><style>{{ style }}</style></head><body><main>
<header><p>prismatic training run</p><h1>{{ run_id }}</h1></header>
{% if tiles %}<section class="tiles">
{% for number, name in tiles %}<div class="tile"><b>{{ number }}</b><span>{{ name }}</span></div>
{% endfor %}</section>{% endif %}

<h2>Loss</h2>
{% if loss_svg %}<p class="note">Mean over the answer tokens of each optimizer step.</p>
<div class="card">{{ loss_svg | safe }}</div>
{% else %}<p class="note">No step log was found in this run folder.</p>{% endif %}

<h2>Scores on held-out rows</h2>
{% if not evaluations %}<p class="note">This run has not been evaluated. <code>scripts/evaluate.py --output_dir \
RUN/evaluation</code> fills this part in.</p>{% endif %}
{% if attributes %}<p class="note">Share of answers whose text names the right value. An event is right only with its \
colour. Nothing but the generated text is scored.</p><div class="card">{{ score_table(attributes, 'attribute') }}</div>
{% endif %}
{% if scores %}<div class="card">{{ score_table(scores, 'score') }}</div>{% endif %}
{% for e in evaluations %}{% if e.metrics.num_skipped %}<p class="note">{{ e.name }}: {{ e.metrics.num_skipped }} of \
{{ e.metrics.num_rows }} rows could not be read and are not scored; skipped.jsonl lists them.</p>{% endif %}
{% if e.metrics.get('unavailable') %}<p class="note">{{ e.name }}: not measured:
{% for name, reason in e.metrics.unavailable.items() %}{{ name }} ({{ reason }}) {% endfor %}</p>{% endif %}{% endfor %}

{% if gallery %}<h2>Held-out clips</h2>
<p class="note">{{ gallery | length }} rows taken at even distances through the held-out data, whatever the answer. \
Pictures are evenly spaced in time. Words that differ are underlined.</p>
{% for card in gallery %}{{ clip(card) }}{% endfor %}{% endif %}
{% if mistakes %}<h2>More mistakes</h2>
<p class="note">The first rows beside those above whose answer differs from the reference.</p>
{% for card in mistakes %}{{ clip(card) }}{% endfor %}{% endif %}

<h2>Settings</h2>
<div class="card"><dl class="settings">
{% for name, value in settings %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
<details><summary>the whole config.yaml</summary><pre>{{ config_text }}</pre></details></div>
</main></body></html>
"""

PAGE = _MACROS + _BODY.replace("{{ style }}", _STYLE).lstrip()
