"use strict";
{
  document.documentElement.classList.add("js");
  const control = name => document.querySelector(`[data-control="${name}"]`);
  const value = name => control(name) ? control(name).value : "";
  const sections = [...document.querySelectorAll("main section")].filter(section => section.querySelector("table"));
  const places = new Map([...document.querySelectorAll("tbody")].map((body, place) => [body, place]));

  function key(body, column) {
    const cell = body.rows[0].cells[column];
    if ("value" in cell.dataset) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return (cell.querySelector(".name") ? [...cell.querySelectorAll(".name, .variant")].map(part => part.textContent).join(" ") : cell.textContent).trim().toLowerCase() || null;
  }
  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  }
  function order(table) {
    const sorted = table.querySelector("th[aria-sort]");
    const column = sorted ? sorted.cellIndex : -1, sign = sorted && sorted.getAttribute("aria-sort") === "descending" ? -1 : 1;
    const first = control("first").checked;
    const bodies = [...table.tBodies].map(body => [column < 0 ? null : key(body, column), body]);
    bodies.sort(([a, one], [b, other]) => (first ? one.classList.contains("published") - other.classList.contains("published") : 0)
      || (a === null || b === null ? compare(a, b) : sign * compare(a, b)) || places.get(one) - places.get(other));
    table.append(...bodies.map(([, body]) => body));
  }
  function sort(header) {
    const table = header.closest("table");
    const numeric = [...table.tBodies].some(body => typeof key(body, header.cellIndex) === "number");
    const first = numeric && !header.classList.contains("rank") ? "descending" : "ascending";
    const next = header.getAttribute("aria-sort") === first ? { ascending: "descending", descending: "ascending" }[first] : first;
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", next);
    order(table);
  }

  function filter() {
    const words = value("find").trim().toLowerCase();
    const same = (item, name) => !value(name) || !(name in item.dataset) || item.dataset[name] === value(name);
    let shown = 0;
    for (const section of sections) {
      let here = 0;
      for (const body of section.querySelectorAll("tbody")) {
        body.hidden = !(["task", "regime", "system", "size", "origin"].every(name => same(body, name))
          && (!words || body.textContent.toLowerCase().includes(words)));
        here += !body.hidden;
      }
      section.hidden = here === 0 || !same(section, "task") || !same(section, "regime");
      shown += section.hidden ? 0 : here;
    }
    document.querySelector("[data-count]").textContent = shown === places.size ? `${shown} rows` : `${shown} of ${places.size} rows`;
  }

  function fold(button, open) {
    button.setAttribute("aria-expanded", open);
    document.getElementById(button.getAttribute("aria-controls")).classList.toggle("open", open);
  }
  const folds = [...document.querySelectorAll(".fold")];
  for (const button of folds) {
    fold(button, false);
    button.addEventListener("click", () => fold(button, button.getAttribute("aria-expanded") !== "true"));
  }

  async function copy(button) {
    const text = button.parentElement.querySelector("pre");
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: copy it with the keyboard";
    }
    setTimeout(() => { button.textContent = before; }, 2000);
  }

  for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => sort(button.closest("th")));
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
  document.querySelector("[data-tools]").addEventListener("submit", event => event.preventDefault());
  document.querySelector("[data-tools]").addEventListener("input", event => {
    const name = event.target.dataset.control;
    if (name === "first") for (const section of sections) order(section.querySelector("table"));
    else if (name === "unfold") for (const button of folds) fold(button, event.target.checked);
    else filter();
  });
  filter();
}
