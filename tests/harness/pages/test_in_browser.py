"""Pages in headless Chromium: sorting, filters, the slider, permalinks, keys; no error, no contrast that cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from axe import violations
from browser import asked, browser
from test_other_pages import training

from beit3_bench.harness.pages.image import image_page
from beit3_bench.harness.pages.run import run_page
from beit3_bench.harness.pages.training import training_page

SET = """
const cards = () => shown("[data-cards] > .card");
const control = name => document.querySelector(`[data-control="${name}"]`);
const set = (name, value) => {
  const one = control(name);
  if (one.type === "checkbox") one.checked = value; else one.value = value;
  one.dispatchEvent(new Event("input", { bubbles: true }));
};
const key = name => document.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
"""


@pytest.fixture(scope="module")
def pages(runs, world, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("html")
    made = {
        "vqav2": run_page(runs("vqav2"), n=12).html,
        "coco-det": run_page(runs("coco-det"), n=24).html,
        "ade20k-seg": run_page(runs("ade20k-seg"), n=6).html,
        "flickr30k": run_page(runs("flickr30k"), n=12).html,
        "flips": run_page(runs("vqav2"), against=runs("vqav2", "b"), n=12).html,
    }
    made["training"] = training_page(training(folder / "t", 3)).html
    image = json.loads((world / "coco" / "annotations" / "instances_val2017.json").read_text())["images"][0]["id"]
    made["image"] = image_page(str(image), [runs("coco-det")]).html
    for name, html in made.items():
        (folder / f"{name}.html").write_text(html)
    return {name: folder / f"{name}.html" for name in made}


def ask(page: Path, script: str, tmp_path: Path, fragment: str = "", width: int = 1400) -> dict[str, Any]:
    answer = asked(page, SET + script, tmp_path / "profile", fragment, width)
    assert answer["errors"] == []
    assert answer["console"] == []
    return answer["steps"]


def test_filters_orders_and_the_count_work(pages, tmp_path):
    steps = ask(
        pages["vqav2"],
        """
        step("all", cards().length);
        set("order", "score up"); step("up", cards().map(card => Number(card.dataset.score)));
        set("order", "score down"); step("down", cards().map(card => Number(card.dataset.score)));
        set("order", ""); step("chosen", cards().map(card => card.dataset.why));
        set("class", "yes/no"); step("class", cards().map(card => JSON.parse(card.dataset.classes)));
        step("count", document.querySelector("[data-count]").textContent);
        set("class", ""); set("why", "best"); step("best", cards().map(card => card.dataset.why));
        set("why", ""); set("find", "IS THE"); step("find", cards().map(card => card.textContent.toLowerCase()));
        set("find", "no such text at all"); step("none", cards().length);
        set("find", ""); step("again", cards().length);
        """,
        tmp_path,
    )
    assert steps["all"] == steps["again"] == 12
    assert steps["up"] == sorted(steps["up"])
    assert steps["down"] == sorted(steps["down"], reverse=True)
    assert len(set(steps["up"])) > 1
    assert steps["chosen"] == ["worst"] * 4 + ["best"] * 4 + ["random"] * 4
    assert 0 < len(steps["class"]) < 12
    assert all("yes/no" in classes for classes in steps["class"])
    assert steps["count"] == f"{len(steps['class'])} of 12 samples"
    assert set(steps["best"]) == {"best"}
    assert steps["find"]
    assert all("is the" in text for text in steps["find"])
    assert steps["none"] == 0


def test_the_slider_hides_faint_detections_and_turns_what_they_found_into_missed(pages, tmp_path):
    steps = ask(
        pages["coco-det"],
        """
        const detections = () => [...document.querySelectorAll('.mark[data-kind="detection"]')].filter(m => !m.hasAttribute("hidden"));
        const objects = name => document.querySelectorAll(`.mark[data-kind="object"].${name}`).length;
        const look = name => step(name, [detections().map(m => Number(m.dataset.score)), objects("missed"), objects("truth")]);
        set("score", 0); look("low"); set("score", 0.9); look("high"); set("score", 1); look("top");
        step("output", document.querySelector('[data-output="score"]').textContent);
        set("score", 0); set("detections", false); look("off"); set("detections", true);
        step("masks", document.querySelectorAll(".mask:not([hidden])").length > 0);
        set("masks", false); step("bare", document.querySelectorAll(".mask:not([hidden])").length);
        """,
        tmp_path,
    )
    low, high, top = steps["low"], steps["high"], steps["top"]
    assert len(low[0]) > len(high[0]) > 0
    assert min(high[0]) >= 0.9
    assert low[1] < high[1] <= top[1]
    assert low[1] + low[2] == high[1] + high[2] == top[1]
    assert low[2] > 0
    assert steps["output"] == "1.00"
    assert steps["off"][0] == []
    assert (steps["masks"], steps["bare"]) == (True, 0)


def test_layers_of_label_maps_are_shown_one_at_a_time(pages, tmp_path):
    steps = ask(
        pages["ade20k-seg"],
        """
        const layers = () => shown("img.layer").map(image => image.dataset.layer);
        step("first", layers()); set("layer", "truth"); step("truth", layers());
        step("legend", shown("ul.legend").map(list => list.dataset.layer));
        set("layer", ""); step("none", layers());
        set("layer", "truth"); set("opacity", 1); step("opacity", getComputedStyle(shown("img.layer")[0]).opacity);
        """,
        tmp_path,
    )
    assert set(steps["first"]) == {"prediction"}
    assert set(steps["truth"]) == set(steps["legend"]) == {"truth"}
    assert steps["none"] == []
    assert steps["opacity"] == "1"


def test_a_permalink_leads_to_its_sample_and_keys_lead_on(pages, tmp_path):
    steps = ask(
        pages["flickr30k"],
        """
        const target = document.getElementById(location.hash.slice(1));
        step("target", document.activeElement.id);
        set("find", "no such text at all"); const hidden = target.hidden;
        window.dispatchEvent(new HashChangeEvent("hashchange"));
        step("found", [hidden, target.hidden, document.activeElement.id]);
        const all = cards(); all[0].focus(); key("j"); step("j", document.activeElement === all[1]);
        key("k"); step("k", document.activeElement === all[0]);
        key("/"); step("slash", document.activeElement === control("find"));
        """,
        tmp_path,
        fragment="#" + _third(pages["flickr30k"]),
    )
    third = _third(pages["flickr30k"])
    assert steps["target"] == third
    assert steps["found"] == [True, False, third]
    assert (steps["j"], steps["k"], steps["slash"]) == (True, True, True)


def _third(page: Path) -> str:
    """Anchor of the third sample; it holds a colon, which stands as %3A in it."""
    anchor = page.read_text().split('<article class="card" id="')[3].partition('"')[0]
    assert "%3A" in anchor
    return anchor


@pytest.mark.parametrize("width", [1400, 800, 500])
@pytest.mark.parametrize("name", ["vqav2", "coco-det", "flickr30k", "flips", "training", "image"])
def test_no_page_scrolls_sideways(name, width, pages, tmp_path):
    script = 'step("wide", [document.documentElement.scrollWidth, window.innerWidth]);'
    wide, window = ask(pages[name], script, tmp_path, width=width)["wide"]
    assert wide <= window


def test_a_picture_across_tasks_has_a_slider_too(pages, tmp_path):
    left = """set("score", 0); step("low", shown(".marks .mark").length); set("score", 1); step("high", shown(".marks .mark").length);"""
    steps = ask(pages["image"], left, tmp_path)
    assert steps["low"] >= steps["high"] > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["vqav2", "coco-det", "ade20k-seg", "flickr30k", "flips", "training", "image"])
def test_axe_finds_nothing_to_mend(name, scheme, pages, tmp_path):
    assert violations(pages[name].read_text(), scheme, tmp_path, browser) == []


def test_screenshots_are_kept(pages, tmp_path, request):
    """They stay in pytest's cache folder, ``.pytest_cache/d/pages``, where pytest keeps one."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("pages") if cache is not None else tmp_path
    for width in (1400, 800, 500):
        picture = folder / f"coco-det-{width}.png"
        picture.unlink(missing_ok=True)
        profile = tmp_path / f"profile-{width}"
        browser(f"--user-data-dir={profile}", f"--screenshot={picture}", pages["coco-det"].as_uri(), width=width)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000
        shutil.rmtree(profile, ignore_errors=True)
