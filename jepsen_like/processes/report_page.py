"""The HTML around a report: style, the script that draws, and places for ``report`` to fill."""

from __future__ import annotations

from typing import Final

_STYLE: Final = """
:root { --ink:#1c2430; --soft:#667085; --line:#e4e7ec; --paper:#fff; --back:#f6f7f9;
  --ok:#2e7d5b; --fail:#d9822b; --info:#8b5cf6; --bad:#c0362c; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#98a2b3; --line:#2c3442;
  --paper:#171c25; --back:#0f131a; --ok:#4fb286; --fail:#f0a54c; --info:#a78bfa; --bad:#ef6a5f; } }
* { box-sizing:border-box }
body { margin:0; background:var(--back); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif }
main { max-width:1160px; margin:0 auto; padding:28px 24px 60px }
h1 { font-size:24px; margin:0 0 18px; display:flex; align-items:center; gap:14px }
h2 { font-size:16px; margin:0 0 10px }
.badge { font-size:13px; font-weight:600; letter-spacing:.04em; text-transform:uppercase;
  color:#fff; padding:3px 12px; border-radius:20px; background:var(--soft) }
.valid .badge { background:var(--ok) } .invalid .badge { background:var(--bad) }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px;
  padding:16px 20px; margin:0 0 16px }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(112px,1fr)); gap:12px }
.tiles b { display:block; font-size:19px; font-variant-numeric:tabular-nums }
.tiles i { font-style:normal; color:var(--soft); font-size:13px }
.columns { display:grid; grid-template-columns:1fr 1fr; gap:16px }
@media (max-width:800px) { .columns { grid-template-columns:1fr } }
pre { margin:0; white-space:pre-wrap; overflow-wrap:anywhere;
  font:13px/1.45 ui-monospace,monospace }
.problems { margin:0; padding-left:22px } .problems li { margin:0 0 10px }
table { border-collapse:collapse; width:100%; font-size:13.5px }
td,th { text-align:left; padding:3px 10px 3px 0; border-bottom:1px solid var(--line);
  vertical-align:top; overflow-wrap:anywhere }
td:not(:last-child) { white-space:nowrap; overflow-wrap:normal }
td.n { text-align:right; font-variant-numeric:tabular-nums; width:70px; padding-right:16px }
.scroll { max-height:340px; overflow:auto }
.dot { display:inline-block; width:10px; height:10px; border-radius:3px; margin-right:8px }
figure { margin:0 0 16px; overflow:auto; background:#fff; border:1px solid var(--line);
  border-radius:10px; padding:8px }
svg.chart { display:block; width:100%; height:auto }
.chart text { font-size:11px; fill:var(--soft) }
.chart .axis { stroke:var(--line); stroke-width:1 }
.legend { color:var(--soft); font-size:13px; display:flex; gap:16px;
  flex-wrap:wrap; margin:6px 0 0 }
footer { color:var(--soft); font-size:13px }
"""

_SCRIPT: Final = r"""
const D = JSON.parse(document.getElementById('data').textContent);
const W = 1110, L = 52, R = 8, NS = 'http://www.w3.org/2000/svg';
const span = Math.max(D.end, 1), x = s => L + s / span * (W - L - R);
const css = n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim();
const HUES = {kill:0, pause:32, rolling:48, partition:212, slow:190, reset:262, clients:232,
  clock:292, disk:122, join:160, promote:160, remove:160, transfer:75};
const colour = kind => { const k = kind.split('-')[0];
  const h = k in HUES ? HUES[k] : [...kind].reduce((a, c) => (a * 31 + c.charCodeAt(0)) % 360, 7);
  return `hsl(${h} 62% 52%)`; };
function el(parent, name, attributes, text) {
  const e = document.createElementNS(NS, name);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  if (text !== undefined) e.textContent = text;
  parent.appendChild(e); return e; }
function chart(id, height) {
  const svg = el(document.getElementById(id), 'svg', {viewBox:`0 0 ${W} ${height}`, class:'chart'});
  const step = [1,2,5,10,15,30,60,120,300,600,1800].find(s => span / s <= 14) || 3600;
  for (let s = 0; s <= span; s += step) {
    el(svg, 'line', {x1:x(s), x2:x(s), y1:4, y2:height - 18, class:'axis'});
    el(svg, 'text', {x:x(s), y:height - 4, 'text-anchor':'middle'}, s + ' s'); }
  return svg; }
const shade = .16 / Math.max(1, Math.sqrt(
  D.bands.reduce((sum, b) => sum + b.to - b.from, 0) / span));
function bands(svg, top, bottom) {
  for (const b of D.bands) {
    const r = el(svg, 'rect', {x:x(b.from), width:Math.max(x(b.to) - x(b.from), 1.5), y:top,
      height:bottom - top, fill:colour(b.kind), opacity:shade});
    el(r, 'title', {}, `${b.kind}: ${b.what} (${b.from} to ${b.to} s)`); } }

function drawLatency() {
  const H = 320, top = 8, bottom = H - 22, svg = chart('latency', H);
  const lows = D.points.map(p => p[1]), most = lows.reduce((a, b) => Math.max(a, b), 1);
  const least = Math.min(.1, lows.reduce((a, b) => Math.min(a, b), 1));
  const a = Math.log10(least), b = Math.log10(most * 1.3);
  const y = ms => bottom - (Math.log10(Math.max(ms, least)) - a) / (b - a) * (bottom - top);
  bands(svg, top, bottom);
  for (let e = Math.ceil(a); e <= b; e++) {
    el(svg, 'line', {x1:L, x2:W - R, y1:y(10 ** e), y2:y(10 ** e), class:'axis'});
    const ms = 10 ** e, shown = ms >= 1000 ? ms / 1000 + ' s' : +ms.toFixed(3) + ' ms';
    el(svg, 'text', {x:L - 6, y:y(ms) + 4, 'text-anchor':'end'}, shown); }
  ['ok', 'fail', 'info'].forEach((name, type) => {
    const d = D.points.filter(p => p[2] === type)
      .map(p => `M${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}h2v2h-2z`).join('');
    el(svg, 'path', {d, fill:css(name), opacity:type ? .9 : .45}); });
  const width = Math.max(span / 90, .5), bins = [];
  for (const p of D.points) if (p[2] === 0) (bins[Math.floor(p[0] / width)] ||= []).push(p[1]);
  for (const [q, dash] of [[.5, ''], [.99, '5 3']]) {
    let d = '', last = -9;
    bins.forEach((bin, i) => { bin.sort((m, n) => m - n);
      const at = x((i + .5) * width), v = y(bin[Math.floor(bin.length * q)]);
      d += `${i - last > 1 ? 'M' : 'L'}${at.toFixed(1)} ${v.toFixed(1)}`; last = i; });
    if (d) el(svg, 'path', {d, fill:'none', stroke:css('ink'),
      'stroke-width':1.3, 'stroke-dasharray':dash, opacity:.75}); } }

function drawRate() {
  const H = 170, top = 8, bottom = H - 22, svg = chart('rate', H), width = Math.max(span / 120, .5);
  const bins = Array.from({length:Math.ceil(span / width) + 1}, () => [0, 0, 0]);
  for (const p of D.points) bins[Math.floor(p[0] / width)][p[2]] += D.step / width;
  const most = bins.reduce((m, b) => Math.max(m, b[0] + b[1] + b[2]), 1);
  bands(svg, top, bottom);
  for (const part of [.5, 1]) { const v = most * part, h = bottom - part * (bottom - top);
    el(svg, 'line', {x1:L, x2:W - R, y1:h, y2:h, class:'axis'});
    el(svg, 'text', {x:L - 6, y:h + 4, 'text-anchor':'end'}, Math.round(v) + '/s'); }
  bins.forEach((bin, i) => { let at = bottom;
    ['ok', 'fail', 'info'].forEach((name, type) => {
      const h = bin[type] / most * (bottom - top); at -= h;
      if (h > 0) el(svg, 'rect', {x:x(i * width) + .4, y:at, height:h,
        width:Math.max(x(width) - L - .8, .8), fill:css(name), opacity:.85}); }); }); }

function drawFaults() {
  const kinds = [...new Set(D.bands.map(b => b.kind))].sort();
  if (!kinds.length) { document.getElementById('gantt').textContent = 'None.'; return; }
  const H = kinds.length * 20 + 30, svg = chart('gantt', H);
  kinds.forEach((kind, row) => {
    for (const b of D.bands) if (b.kind === kind) {
      const r = el(svg, 'rect', {x:x(b.from), width:Math.max(x(b.to) - x(b.from), 2.5),
        y:row * 20 + 6, height:15, rx:3, fill:colour(kind), opacity:.8});
      el(r, 'title', {}, `${b.what} (${b.from} to ${b.to} s)`); }
    el(svg, 'text', {x:L + 4, y:row * 20 + 18, style:'pointer-events:none;paint-order:stroke',
      stroke:css('paper'), 'stroke-width':3}, kind); }); }

drawLatency(); drawRate(); drawFaults();
for (const dot of document.querySelectorAll('.dot'))
  dot.style.background = colour(dot.dataset.kind);
for (const key of document.querySelectorAll('[data-key]')) key.style.color = css(key.dataset.key);
"""

#: ``@@name@@`` stands where a part goes.
PAGE: Final = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>@@title@@</title><style>"""
    + _STYLE
    + """</style></head>
<body class="@@word@@"><main>
<h1>@@heading@@ <span class="badge">@@word@@</span></h1>
<section class="tiles">@@summary@@</section>
@@problems@@
@@picture@@
<section><h2>Latency of operations, under faults</h2><div id="latency"></div>
<div class="legend"><span><b data-key="ok">■</b> ok</span>
<span><b data-key="fail">■</b> failed</span><span><b data-key="info">■</b> unknown</span>
<span>— median</span><span>┄ 99th percentile</span>
<span>shaded: a fault holds (point at it)</span></div></section>
<section><h2>Operations begun per second, by outcome</h2><div id="rate"></div></section>
<section><h2>Faults</h2><div id="gantt"></div></section>
<div class="columns"><section><h2>Faults, counted</h2>@@faults@@</section>
<section><h2>What the checkers saw</h2>@@facts@@</section></div>
<section><h2>Faults, one by one</h2><div class="scroll">@@events@@</div></section>
<footer>The whole history stands beside this file, one event a line, in history.jsonl.</footer>
</main>
<script type="application/json" id="data">@@data@@</script>
<script>"""
    + _SCRIPT
    + """</script></body></html>
"""
)
