"""The look of a run's page: light and dark, no fonts and no scripts from anywhere."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --soft: #5b6676; --faint: #b9c1cd; --line: #e3e7ed;
  --one: #2563c9; --two: #e07b1a; --three: #1a8a6b; --four: #8a4fc4; --five: #c22f6b;
  --good: #1a7f4b; --good-bg: #e3f4ea; --bad: #c22f36; --bad-bg: #fbe6e6; --busy: #2563c9; --busy-bg: #e4edfb; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #1a2029; --ink: #e6eaf0; --soft: #9aa6b6; --faint: #4b5768; --line: #2a323e;
  --one: #6ea3ff; --two: #f2a65a; --three: #5fd0ac; --four: #bb90f0; --five: #ff86b3;
  --good: #6fd3a0; --good-bg: #16332a; --bad: #ff8d8d; --bad-bg: #3a2024; --busy: #8fb8ff; --busy-bg: #1b2c4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
header p { color: var(--soft); margin: 0; }
h1 { font-size: 26px; line-height: 1.25; margin: 2px 0 10px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
.state { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin: 0 0 22px; color: var(--soft); }
.progress { flex: 1 1 120px; max-width: 320px; height: 8px; border-radius: 4px; background: var(--line); }
.progress i { display: block; height: 100%; border-radius: 4px; background: var(--one); width: var(--w); }
.note { color: var(--soft); margin: 0 0 14px; max-width: 46em; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.card { padding: 16px 18px; margin-bottom: 14px; }
.charts { display: grid; gap: 14px; grid-template-columns: 1fr 1fr; }
.charts .card { margin: 0; }
svg { width: 100%; height: auto; display: block; }
.chart .grid { stroke: var(--line); stroke-width: 1; fill: none; }
.chart .mark { stroke: var(--bad); stroke-width: 1; stroke-dasharray: 2 3; fill: none; opacity: 0.7; }
.chart .line { stroke-width: 1.8; fill: none; stroke-linejoin: round; stroke-linecap: round; }
.chart .band { opacity: 0.18; stroke: none; }
.chart text { fill: var(--soft); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 8px; padding: 0; list-style: none; font-size: 13px;
  color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  background: var(--c); margin-right: 6px; vertical-align: middle; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 0; }
tbody th { color: var(--ink); font-weight: 400; font-size: 15px; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; font-size: 14px; }
td.id { white-space: nowrap; font-size: 14px; }
table.scores td { width: 38%; }
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
.busy { color: var(--busy); background: var(--busy-bg); }
.file { color: var(--soft); font-size: 12px; margin: 0 0 8px; overflow-wrap: anywhere; display: flex; gap: 10px;
  justify-content: space-between; }
.problem { color: var(--bad); margin: 0 0 10px; overflow-wrap: anywhere; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); }
pre { overflow: auto; font-size: 12.5px; margin: 10px 0 0; }
.settings { grid-template-columns: max-content 1fr max-content 1fr; }
@media (max-width: 720px) { .strip { grid-template-columns: repeat(4, 1fr); } .settings { grid-template-columns:
  max-content 1fr; } table.scores td { width: auto; } .charts { grid-template-columns: 1fr; } }
"""
