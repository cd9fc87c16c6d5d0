"""The report's page: a Jinja template with its style inside. Everything but the page's own text is escaped."""

from __future__ import annotations

_STYLE = """
:root { color-scheme: light; --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #5b6676; --line: #e3e7ed;
  --best: #1a7f4b; --median: #e07b1a; --worst: #c22f36; --some: #2563c9; --bad: #c22f36; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 20px 64px; }
header p { color: var(--soft); margin: 0; }
h1 { font-size: 26px; line-height: 1.25; margin: 2px 0 22px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; }
h3 { font-size: 15px; margin: 0; font-weight: 600; }
.note { color: var(--soft); margin: 0 0 14px; max-width: 52em; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); }
.card, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; line-height: 1.35; display: block; }
.card { padding: 16px 18px; margin-bottom: 14px; }
.pair { display: grid; gap: 14px; grid-template-columns: 1fr 1fr; }
.pair .card { margin: 0; }
.drawing { width: 100%; height: auto; display: block; }
.head { display: flex; align-items: baseline; gap: 10px; margin-bottom: 12px; }
.chip { border-radius: 99px; padding: 1px 10px; font-size: 12.5px; color: #fff; background: var(--c); }
.head span.worth { color: var(--soft); font-size: 13px; margin-left: auto; font-variant-numeric: tabular-nums; }
.clips { display: grid; gap: 14px 18px; grid-template-columns: repeat(2, 1fr); }
.strip { display: flex; gap: 4px; }
.strip figure { margin: 0; flex: 1 1 0; min-width: 0; max-width: 176px; }
.strip img { width: 100%; display: block; border-radius: 5px; background: var(--line); }
.strip figcaption { font-size: 11px; color: var(--soft); text-align: center; font-variant-numeric: tabular-nums; }
.clip p { margin: 4px 0 0; font-size: 13.5px; line-height: 1.4; overflow-wrap: anywhere; }
.clip .name, .more { color: var(--soft); font-size: 12px; }
.more { margin: 12px 0 0; }
.woven { display: flex; flex-wrap: wrap; gap: 10px 14px; }
.woven .clip { border-top: 3px solid var(--line); padding-top: 6px; }
.woven .strip figure { flex: 0 0 auto; width: 104px; }
.woven .strip { flex-wrap: wrap; }
.woven .strip img { width: 104px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 14px 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.problem { color: var(--bad); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tbody tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.where { white-space: nowrap; }
td.ids { color: var(--soft); font-size: 12.5px; }
@media (max-width: 760px) { .pair, .clips { grid-template-columns: 1fr; } }
"""

_MACROS = """
{% macro strip(one) %}
{% if one.problem %}<p class="problem">{{ one.problem }}</p>{% endif %}
<div class="strip">
{% for picture in one.pictures %}<figure><img src="{{ picture.uri }}" alt="">
<figcaption>{{ picture.when }}</figcaption></figure>{% endfor %}
</div>
{% endmacro %}
"""

_SECTIONS = """
<h2>Clusters</h2>
<p class="note">{% if figures.cohesion is defined %}Cohesion is the mean cosine of a cluster's videos to their mean: 1
when all are the same. Grey are random clusters of the same videos{% else %}Without --embeddings there is no
cohesion and no map{% endif %}.</p>
<div class="pair">
{% for name in ("sizes", "cohesion") if figures[name] is defined %}
<div class="card"><img class="drawing" src="{{ figures[name] }}" alt="histogram of {{ name }}"></div>
{% endfor %}
</div>
{% if figures.map is defined %}
<h2>Map</h2>
<p class="note">{{ "{:,}".format(map_videos) }} videos on the plane that shows most of how they differ (the two first
principal components). Near on the map need not be near in full: lines join the videos of the clusters shown below.</p>
<div class="card"><img class="drawing" src="{{ figures.map }}" alt="map of the videos"></div>
{% endif %}
{% for kind in kinds %}
<h2>{{ {"best": "Best clusters", "median": "Median clusters", "worst": "Worst clusters",
"some": "Some clusters"}[kind] }}</h2>
<p class="note">{{ {"best": "The most alike by cohesion: near-duplicates stand here.", "median": "What a cluster
usually looks like.", "worst": "The least alike: what was left when all others had found company.",
"some": "Drawn at random."}[kind] }}</p>
{% for sheet in sheets if sheet.kind == kind %}
<article class="card">
<div class="head"><h3>Cluster {{ sheet.name }}</h3><span class="chip" style="--c: var(--{{ kind }})">{{ kind }}</span>
{% if sheet.worth is not none %}<span class="worth">cohesion {{ "%.3f" | format(sheet.worth) }}</span>{% endif %}</div>
<div class="clips">
{% for one in sheet.strips %}
<div class="clip">{{ strip(one) }}<p>{{ one.caption }} <span class="name">{{ one.name }}</span></p></div>
{% endfor %}
</div>
{% if sheet.more %}<p class="more">and {{ sheet.more }} more videos</p>{% endif %}
</article>
{% else %}<p class="note">There are too few clusters to show one here.</p>
{% endfor %}
{% endfor %}
<h2>Woven examples</h2>
<p class="note">Some clusters after `weave --form {{ form }} --total_frames {{ total_frames }}`, read as training reads
them: these frames, in this order, before this question.</p>
{% for example in woven %}
<article class="card">
<div class="woven">
{% for one in example.strips %}<div class="clip">{{ strip(one) }}<span class="name">{{ one.name }}</span></div>
{% endfor %}
</div>
{% if example.more %}<p class="more">and {{ example.more }} more clips</p>{% endif %}
<dl><dt>prompt</dt><dd>{{ example.question }}</dd><dt>answer</dt><dd>{{ example.answer }}</dd></dl>
</article>
{% else %}<p class="note">No cluster has only usable videos.</p>
{% endfor %}
<h2>Skipped</h2>
{% if reasons %}
<p class="note">Videos of the catalog that are in no cluster, by reason. Names and numbers in a reason are left out;
<a href="{{ listed }}">{{ listed }}</a> names each video.</p>
<div class="card"><table><thead><tr><th class="number">videos</th><th>where</th><th>reason</th><th>such as</th></tr>
</thead><tbody>
{% for reason in reasons %}<tr><td class="number">{{ "{:,}".format(reason.count) }}</td>
<td class="where">{{ reason.where }}</td>
<td>{{ reason.text }}</td><td class="ids">{{ reason.examples | join(", ") }}</td></tr>
{% endfor %}
</tbody></table>
{% if more_reasons > 0 %}<p class="more">and {{ more_reasons }} more reasons</p>{% endif %}
</div>
{% else %}<p class="note">Nothing was skipped.</p>{% endif %}
"""

PAGE = f"""{_MACROS}<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{{{ title }}}}: clusters and woven examples</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><p>Clusters and woven examples</p><h1>{{{{ title }}}}</h1></header>
<section class="tiles">
{{% for number, what in tiles %}}
<div class="tile"><b>{{{{ number }}}}</b><span>{{{{ what }}}}</span></div>
{{% endfor %}}
</section>
{_SECTIONS}
</main>
</body>
</html>
"""
