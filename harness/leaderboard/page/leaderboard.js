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
  const task = chosen("task"), regime = chosen("regime"), size = chosen("size"), origin = chosen("origin"),
    system = chosen("system");
  const words = chosen("find").trim().toLowerCase();
  const fits = item => (!system || item.dataset.system === system) && (!size || item.dataset.size === size) && (!origin || item.dataset.origin === origin)
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
