"""The leaderboard as one self-contained HTML page: sortable, filterable, with charts; it needs no network.

Tables and charts are complete without JavaScript; the script only sorts and hides rows. A content security policy in
the page forbids every request.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from beit3_bench.harness.leaderboard.board import BEIT3, ApartRow, Cell, Section, Table, TableRow
from beit3_bench.harness.leaderboard.text import APART_LEGEND, LEGEND, row_label, row_protocol
from beit3_bench.text import visible

SIZES = ("tiny", "base", "large", "giant", "custom")


def to_html(table: Table) -> str:
    """The whole page."""
    tasks = dict.fromkeys([s.task for s in table.sections] + [a.task for a in table.apart])
    regimes = dict.fromkeys([s.regime for s in table.sections] + [a.regime for a in table.apart])
    blocks = [_section(index, section) for index, section in enumerate(table.sections)]
    if table.apart:
        blocks.append(_apart(table.apart))
    if table.pending:
        lines = "".join(f"<li>{escape(line)}</li>" for line in table.pending)
        blocks.append(f"<section><h2>Without a score of their own</h2><ul>{lines}</ul></section>")
    filters = [
        _select("task", "Task", tasks),
        _select("regime", "Setting", regimes),
        _select("size", "Size", [*SIZES, "other systems"]),
        _select("origin", "Origin", ["measured", "published"]),
        '<label>Find <input id="find" type="search" placeholder="system, source"></label>',
    ]
    return _PAGE.format(
        style=_STYLE,
        script=_SCRIPT,
        legend=escape(LEGEND.replace("Bold rows", "Marked rows")),
        filters="\n".join(filters),
        blocks="\n".join(blocks),
    )


def escape(text: str) -> str:
    """Text as HTML, of an element or an attribute; control characters are written out."""
    return html.escape(visible(text))


def size_of(row: TableRow) -> str:
    """Preset of a BEiT-3 row, measured or published; ``other systems`` for the rest."""
    if not row.name.startswith(BEIT3):
        return "other systems"
    words = f"{row.name} {row.variant}".replace("_", " ").split()
    return next((size for size in SIZES if size in words), "custom")


def _select(name: str, label: str, values: Iterable[str]) -> str:
    options = "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in values)
    return f'<label>{label} <select id="{name}"><option value="">all</option>{options}</select></label>'


def _attributes(row: TableRow) -> str:
    origin = "measured" if row.measured else "published"
    return f'class="{origin}" data-origin="{origin}" data-size="{escape(size_of(row))}"'


def _header(names: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _text(value: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(value)}</td>' if kind else f"<td>{escape(value)}</td>"


def _number(cell: Cell | None, low: float = 0.0, high: float = 100.0) -> str:
    """A number, sorted by its full value; with an interval, a whisker on the scale of its column."""
    if cell is None:
        return '<td class="number"></td>'
    if cell.low is None or cell.high is None:
        return f'<td class="number" data-value="{cell.value!r}">{escape(cell.text)}</td>'
    digits = len(cell.text.partition(".")[2])
    interval = f"[{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    left, middle, right = (_scaled(x, low, high, 60.0) for x in (cell.low, cell.value, cell.high))
    whisker = (
        f'<svg class="whisker" viewBox="-2 0 64 8" width="64" height="8" aria-hidden="true"><title>{interval}</title>'
        f'<path d="M{left:.1f} 4H{right:.1f}M{left:.1f} 1V7M{right:.1f} 1V7"/>'
        f'<circle cx="{middle:.1f}" cy="4" r="2"/></svg>'
    )
    return (
        f'<td class="number" data-value="{cell.value!r}">{escape(cell.text)} '
        f'<span class="interval">{interval}</span>{whisker}</td>'
    )


def _scaled(value: float, low: float, high: float, width: float) -> float:
    return width / 2 if high <= low else width * (value - low) / (high - low)


def _range(cells: Iterable[Cell]) -> tuple[float, float]:
    """Smallest and largest number of a column, intervals included."""
    ends = [x for cell in cells for x in (cell.value, cell.low, cell.high) if x is not None]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _verdict(row: TableRow, section: Section) -> str:
    told = [f"{name}: {row.verdicts[name].text}" for name in section.order_by if name in row.verdicts]
    return f'<td class="verdict">{"<br>".join(escape(line) for line in told)}</td>'


def _source(row: TableRow) -> str:
    text = escape(row.source)
    if row.url.startswith("https://") and " " not in row.url:
        text = f'<a href="{escape(row.url)}" rel="noreferrer">{text}</a>'
    notes = f"<br><small>{escape('; '.join(row.notes))}</small>" if row.notes else ""
    return f'<td class="long">{text}<br><small>{escape(row.source_kind)}</small>{notes}</td>'


def _section(index: int, section: Section) -> str:
    ranges = {m: _range(row.cells[m] for row in section.rows if m in row.cells) for m in section.metrics}
    lines = []
    for row in section.rows:
        numbers = "".join(_number(row.cells.get(name), *ranges[name]) for name in section.metrics)
        rank = "" if row.rank is None else str(row.rank)
        lines.append(
            f'<tr {_attributes(row)}><td class="number" data-value="{rank}">{rank}</td>{_text(row_label(row))}{numbers}'
            f"{_verdict(row, section)}{_text(row.params)}{_text(row.resolution)}"
            f"{_text(row_protocol(row, section.regime), 'long')}{_source(row)}</tr>"
        )
    header = _header(["#", "system", *section.metrics, "verdict", "params", "resolution", "protocol", "source"])
    body = "\n".join(lines)
    more = f'<p class="more">{section.hidden} more published rows with --systems all.</p>' if section.hidden else ""
    return (
        f'<section id="s{index}" data-task="{escape(section.task)}" data-regime="{escape(section.regime)}">'
        f"<h2>{escape(section.title)}</h2>{_chart(section)}"
        f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>{more}</section>'
    )


def _chart(section: Section) -> str:
    """Measured against published: a dot per row on the scale of the ordering metric, with whiskers for intervals."""
    rows = [row for row in section.rows if row.score is not None]
    if not rows:
        return ""
    ends = [
        x for row in rows if row.score is not None for x in (row.score - row.half_width, row.score + row.half_width)
    ]
    pad = max(0.05 * (max(ends) - min(ends)), 0.5)
    low, high = min(ends) - pad, max(ends) + pad
    left, width, step = 330.0, 500.0, 18
    bottom = step * len(rows) + 8
    shapes = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        x = left + width * tick / 4
        shapes.append(f'<path class="grid" d="M{x:.1f} 0V{bottom}"/>')
        shapes.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:.1f}</text>')
    for number, row in enumerate(rows):
        y = step * number + 12
        label = row_label(row)
        label = label if len(label) <= 52 else f"{label[:51]}…"
        assert row.score is not None
        x, a, b = (left + _scaled(row.score + d, low, high, width) for d in (0.0, -row.half_width, row.half_width))
        whisker = (
            f'<path d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {y - 4}V{y + 4}M{b:.1f} {y - 4}V{y + 4}"/>'
            if row.half_width
            else ""
        )
        shapes.append(
            f'<g {_attributes(row)}><text x="{left - 8:.0f}" y="{y + 4}" text-anchor="end">{escape(label)}</text>'
            f'{whisker}<circle cx="{x:.1f}" cy="{y}" r="4"><title>{escape(label)}: {row.score:.2f}</title></circle></g>'
        )
    what = " and ".join(section.order_by)
    caption = f"mean of {what}" if len(section.order_by) > 1 else what
    return (
        f'<figure><svg class="chart" viewBox="0 0 860 {bottom + 20}" role="img" '
        f'aria-label="{escape(section.title)}: {escape(caption)}">{"".join(shapes)}</svg>'
        f"<figcaption>{escape(caption)}, percent</figcaption></figure>"
    )


def _apart(items: list[ApartRow]) -> str:
    lines = []
    for item in items:
        row = item.row
        chance = "" if row.chance is None else f"{row.chance:.1f}"
        others = ", ".join(f"{name} {row.cells[name].text}" for name in item.also)
        counts = ", ".join(f"{count} {what}" for what, count in row.counts.items())
        lines.append(
            f'<tr {_attributes(row)} data-task="{escape(item.task)}" data-regime="{escape(item.regime)}">'
            f"{_text(item.why)}{_text(f'{item.task}, {item.split}, {item.regime}')}{_text(item.headline)}"
            f"{_number(row.cells[item.headline])}"
            f'<td class="number" data-value="{chance}">{chance}</td>{_text(others, "long")}{_text(counts)}'
            f"{_text(row_label(row))}{_text(row.source)}</tr>"
        )
    header = _header(["data", "task", "metric", "measured", "chance", "also", "samples", "model", "run"])
    body = "\n".join(lines)
    return (
        f'<section id="apart"><h2>Not comparable with published numbers</h2><p>{escape(APART_LEGEND)}</p>'
        f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div></section>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>BEiT-3 leaderboard</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>BEiT-3 leaderboard</h1>
<p>{legend}</p>
<form id="filters">
{filters}
</form>
</header>
<main>
{blocks}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --mark: #0a6ed1; --soft: #0a6ed118; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1600px; padding: 0 1rem 3rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; padding: .6rem 0; }
form { position: sticky; top: 0; background: Canvas; z-index: 1; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; color: inherit; }
th button { cursor: pointer; white-space: nowrap; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.long { min-width: 17rem; }
td.verdict { min-width: 11rem; }
tr.measured { background: var(--soft); font-weight: 600; }
.interval, small { opacity: .75; font-weight: 400; }
.whisker { display: block; margin-left: auto; }
.whisker path, .chart g path { stroke: var(--mark); stroke-width: 1.2; fill: none; }
.whisker circle, .chart .measured circle { fill: var(--mark); }
figure { margin: 0 0 .8rem; max-width: 900px; }
figcaption, .more { opacity: .75; font-size: .9em; }
.chart text { font-size: 11px; fill: currentColor; }
.chart .grid { stroke: var(--line); }
.chart .published circle { fill: Canvas; stroke: currentColor; }
.chart .measured text { font-weight: 700; }
[hidden] { display: none !important; }
"""

_SCRIPT = """
"use strict";
const chosen = id => document.getElementById(id).value;
function value(row, column) {
  const cell = row.cells[column];
  if ("value" in cell.dataset) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" ? null : text.toLowerCase();
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
function sort(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const numeric = [...body.rows].some(row => typeof value(row, column) === "number");
  const first = numeric && column > 0 ? "descending" : "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? second : first;
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map(row => [value(row, column), row]);
  rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
  body.append(...rows.map(([, row]) => row));
}
function filter() {
  const task = chosen("task"), regime = chosen("regime"), size = chosen("size"), origin = chosen("origin");
  const words = chosen("find").trim().toLowerCase();
  const fits = item => (!size || item.dataset.size === size) && (!origin || item.dataset.origin === origin)
    && (!task || !item.dataset.task || item.dataset.task === task)
    && (!regime || !item.dataset.regime || item.dataset.regime === regime)
    && (!words || item.textContent.toLowerCase().includes(words));
  for (const section of document.querySelectorAll("main section")) {
    let shown = 0;
    for (const item of section.querySelectorAll("tbody tr, .chart g")) {
      item.toggleAttribute("hidden", !fits(item));
      if (item.tagName === "TR" && fits(item)) shown += 1;
    }
    const other = (task && section.dataset.task && section.dataset.task !== task)
      || (regime && section.dataset.regime && section.dataset.regime !== regime);
    section.toggleAttribute("hidden", Boolean(other) || (section.querySelector("table") !== null && shown === 0));
  }
}
for (const header of document.querySelectorAll("th")) header.addEventListener("click", () => sort(header));
document.getElementById("filters").addEventListener("input", filter);
document.getElementById("filters").addEventListener("submit", event => event.preventDefault());
"""
