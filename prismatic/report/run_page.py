"""The page of a training run: a Jinja template. All text is escaped; drawings and ready-made sections are not."""

from __future__ import annotations

from prismatic.report.style import STYLE

_MACROS = """
{% macro figure(title, svg) %}{% if svg %}<div class="card"><h3>{{ title }}</h3>{{ svg | safe }}</div>
{% endif %}{% endmacro %}
"""

_HEAD = """
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{% if state and state.state == 'running' %}<meta http-equiv="refresh" content="30">{% endif %}
<title>{{ run_id }}</title><style>{{ style }}</style></head><body><main>
<header><p>prismatic training run</p><h1>{{ run_id }}</h1></header>
{% if state %}<div class="state">
<span class="chip {{ {'running': 'busy', 'finished': 'good'}.get(state.state, 'bad') }}">{{ state_text }}</span>
{% if state.total_steps %}<span class="progress"><i style="--w: {{ '%.1f' | format(100 * state.step \
/ state.total_steps) }}%"></i></span><span>step {{ '{:,}'.format(state.step) }} of \
{{ '{:,}'.format(state.total_steps) }}</span>{% endif %}
<span>written {{ state.written }}</span></div>
{% if state.message %}<p class="problem">{{ state.message }}</p>{% endif %}{% endif %}
{% if tiles %}<section class="tiles">
{% for number, name in tiles %}<div class="tile"><b>{{ number }}</b><span>{{ name }}</span></div>
{% endfor %}</section>{% endif %}
"""

_CURVES = """
<h2>Loss</h2>
{% if charts.loss %}<p class="note">Mean over the answer tokens of each optimizer step{% if stride > 1 %}; a point is \
the mean of {{ stride }} steps, the band their lowest and highest{% endif %}.</p>
<div class="card">{{ charts.loss | safe }}</div>
{% else %}<p class="note">No step log was found in this run folder.</p>{% endif %}
{% if charts.loss %}<div class="charts">
{% for title, svg in small %}{{ figure(title, svg) }}{% endfor %}
</div>{% endif %}
"""

_VALIDATION = """
{% if validation %}<h2>Validation during training</h2>
<div class="card"><table><thead><tr><th>figure</th><th class="number">newest</th><th class="number">best</th></tr>
</thead><tbody>{% for row in validation %}<tr><th>{{ row.name }}</th>
<td class="number">{{ '%.4f' | format(row.last) }}</td><td class="number">{{ '%.4f' | format(row.best) }} \
{% if row.lower_is_better %}(lowest){% else %}(highest){% endif %}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if answers %}<p class="note">Newest answers, step {{ '{:,}'.format(answers[0].step) }}:</p>
<div class="card"><table><thead><tr><th>id</th><th>question</th><th>answer</th><th>truth</th></tr></thead><tbody>
{% for row in answers %}<tr><td class="id">{{ row.id | truncate(24) }}</td><td class="text">{{ row.question }}</td>
<td class="text">{{ row.prediction }}</td><td class="text">{{ row.reference }}</td></tr>{% endfor %}</tbody>
</table></div>{% endif %}
"""

_TROUBLE = """
{% if reasons %}<h2>Skipped samples</h2>
<p class="note">{{ '{:,}'.format(reasons | sum(attribute='count')) }} samples could not be used and were replaced. \
Names and numbers in a reason are left out here; skipped.jsonl lists each.</p>
<div class="card"><table><thead><tr><th class="number">samples</th><th>reason</th><th>such as</th></tr></thead><tbody>
{% for reason in reasons[:shown_reasons] %}<tr><td class="number">{{ '{:,}'.format(reason.count) }}</td>
<td class="text">{{ reason.text }}</td><td class="text">{{ reason.examples | join(', ') }}</td></tr>
{% endfor %}</tbody></table>
{% if reasons | length > shown_reasons %}<p class="note">and {{ reasons | length - shown_reasons }} more reasons</p>\
{% endif %}</div>{% endif %}
{% if skipped_steps %}<h2>Steps left out</h2>
<p class="note">{{ num_skipped_steps }} steps changed no weight (--on_nan skip); the newest:</p>
<div class="card"><table><thead><tr><th class="number">step</th><th>reason</th><th>samples</th></tr></thead><tbody>
{% for row in skipped_steps %}<tr><td class="number">{{ '{:,}'.format(row.step) }}</td>
<td class="text">{{ row.reason }}</td><td class="text">{{ row.ids | join(', ') }}</td></tr>{% endfor %}</tbody>
</table></div>{% endif %}
{% if spikes %}<h2>Loss spikes</h2>
<p class="note">{{ num_spikes }} steps whose loss stood far above those before; the newest, with the samples of their \
worst micro-batch. spikes.jsonl has all.</p>
<div class="card"><table><thead><tr><th class="number">step</th><th class="number">loss</th>
<th class="number">usual</th><th>samples</th></tr></thead><tbody>
{% for row in spikes %}<tr><td class="number">{{ '{:,}'.format(row.step) }}</td>
<td class="number">{{ '%.4f' | format(row.loss) }}</td><td class="number">{{ '%.4f' | format(row.usual) }}</td>
<td class="text">{{ row.micro_batches[0].ids | join(', ') if row.micro_batches else '' }}</td></tr>
{% endfor %}</tbody></table></div>{% endif %}
"""

_SETTINGS = """
<h2>Settings</h2>
<div class="card"><dl class="settings">
{% for name, value in settings %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
<details><summary>the whole config.yaml</summary><pre>{{ config_text }}</pre></details></div>
{% if card %}<h2>To get this run again</h2>
<div class="card"><dl>{% for name, value in card %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
<details><summary>the whole reproducibility.json</summary><pre>{{ card_text }}</pre></details></div>{% endif %}
</main></body></html>
"""

PAGE = (
    _MACROS
    + (_HEAD + _CURVES + _VALIDATION).replace("{{ style }}", STYLE).lstrip()
    + "{% for section in sections %}{{ section | safe }}{% endfor %}"
    + _TROUBLE
    + _SETTINGS
)
