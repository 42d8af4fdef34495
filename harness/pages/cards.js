"use strict";
{
  const control = name => document.querySelector(`[data-control="${name}"]`);
  const value = name => control(name) ? control(name).value : "";
  const cards = [...document.querySelectorAll("[data-cards] > .card")];
  const places = new Map(cards.map((card, place) => [card, place]));
  const classes = new Map(cards.map(card => [card, JSON.parse(card.dataset.classes)]));

  function filter() {
    const words = value("find").trim().toLowerCase(), wanted = value("class"), why = value("why"), section = value("section");
    let shown = 0;
    for (const card of cards) {
      const fits = (!words || card.dataset.words.includes(words)) && (!wanted || classes.get(card).includes(wanted))
        && (!why || card.dataset.why === why) && (!section || card.dataset.section === section);
      card.hidden = !fits;
      shown += fits;
    }
    const count = document.querySelector("[data-count]");
    if (count) count.textContent = shown === cards.length ? `${shown} samples` : `${shown} of ${cards.length} samples`;
  }

  function order() {
    const [key, way] = value("order").split(" ");
    const sign = way === "down" ? -1 : 1;
    const number = card => key && key in card.dataset ? Number(card.dataset[key]) : null;
    const sorted = [...cards].sort((a, b) => {
      const [x, y] = [number(a), number(b)];
      if (x === null || y === null) return (x === null) - (y === null) || places.get(a) - places.get(b);
      return sign * (x - y) || places.get(a) - places.get(b);
    });
    document.querySelector("[data-cards]").append(...sorted);
  }

  function marks() {
    if (!control("score")) return;
    const least = Number(value("score"));
    document.querySelector('[data-output="score"]').textContent = least.toFixed(2);
    const on = name => !control(name) || control(name).checked;
    for (const mark of document.querySelectorAll(".marks .mark")) {
      const score = "score" in mark.dataset ? Number(mark.dataset.score) : null;
      if (mark.dataset.kind === "object") {
        const found = score !== null && score >= least;
        mark.classList.toggle("truth", found);
        mark.classList.toggle("missed", !found);
        mark.toggleAttribute("hidden", !on("objects"));
      } else if (mark.dataset.kind === "detection") {
        mark.toggleAttribute("hidden", !on("detections") || score < least);
      } else {
        mark.toggleAttribute("hidden", !on("objects") || (score !== null && score < least));
      }
    }
    for (const mask of document.querySelectorAll(".marks .mask")) mask.toggleAttribute("hidden", !on("masks"));
  }

  function layers() {
    if (!control("layer")) return;
    for (const item of document.querySelectorAll(".card [data-layer]")) item.hidden = item.dataset.layer !== value("layer");
    document.documentElement.style.setProperty("--opacity", value("opacity"));
  }

  function update() { filter(); marks(); layers(); }

  // A permalink leads to its sample also where a filter hides it.
  function follow() {
    const id = location.hash.slice(1);
    const target = id && (document.getElementById(id) || document.getElementById(decodeURIComponent(id)));
    if (!target || !target.classList.contains("card")) return;
    if (target.hidden) {
      for (const name of ["find", "class", "why", "section"]) if (control(name)) control(name).value = "";
      filter();
    }
    target.scrollIntoView();
    target.focus({ preventScroll: true });
  }

  function step(by) {
    const shown = [...document.querySelectorAll("[data-cards] > .card")].filter(card => !card.hidden);
    const at = shown.findIndex(card => card.contains(document.activeElement));
    const next = shown[Math.min(Math.max(at < 0 ? 0 : at + by, 0), shown.length - 1)];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "start" }); }
  }

  for (const tools of document.querySelectorAll("[data-tools]")) {
    tools.addEventListener("input", event => { if (event.target.dataset.control === "order") order(); else update(); });
    tools.addEventListener("submit", event => event.preventDefault());
  }
  addEventListener("hashchange", follow);
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || (event.target instanceof Element && event.target.matches("input, select, textarea"))) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "/" && control("find")) { event.preventDefault(); control("find").focus(); }
  });
  update();
  follow();
}
