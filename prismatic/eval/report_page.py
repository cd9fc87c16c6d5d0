"""The sections that evaluations add to a run's page: scores, and held-out clips. Everything is escaped."""

from __future__ import annotations

_MACROS = """
{% macro bar(cell, index) %}
{% if cell is none %}<span class="note">not measured</span>{% else %}
<div class="bar"><i style="--w: {{ '%.1f' | format(100 * cell[0]) }}%; \
--c: var(--{{ 'one' if index == 0 else 'two' }})"></i><span>{{ cell[1] }}</span></div>
{% endif %}
{% endmacro %}
{% macro score_table(lines, first) %}
<table class="scores"><thead><tr><th>{{ first }}</th>
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

_SCORES = """
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
"""

SECTIONS = _MACROS + _SCORES
