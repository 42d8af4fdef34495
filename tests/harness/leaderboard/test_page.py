"""The HTML page: complete and self-contained as text; sorting, filters, folds and copies in headless Chromium."""

from __future__ import annotations

import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from axe import violations
from browser import asked, browser
from html_page import Parsed
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_cases import metric, result, retrieval_metrics, write_run

from beit3_bench.harness.leaderboard.board import Section, Table, TableRow, build_table
from beit3_bench.harness.leaderboard.page import input_of, size_of, system_of, to_html
from beit3_bench.harness.leaderboard.page.drawing import (
    _box,
    _overlap,
    _Taken,
    cost_text,
    profiles_of,
    scatters_of,
    section_scale,
    short_name,
    strip_of,
)
from beit3_bench.harness.leaderboard.page.links import Links, index_beside, links_of
from beit3_bench.harness.pages.index import META, facts_of_page, write_index
from beit3_bench.harness.record.results import Run, read_results
from beit3_bench.results.published.values import load_published

CARD = {"hardware": {"gpus": ["Card A"]}, "device": "cuda:0", "dtype": "bf16"}


@pytest.fixture(scope="module")
def table() -> Table:
    base = {"weight": "beit3_base_patch16_384_coco_retrieval", "image_size": 384, "params": 222_000_000}
    linear = {"weight": "beit3_base_patch16_224_in1k", "image_size": 224}
    large = {"preset": "large", "protocol": "re-ranked 16", "params": 676_000_000}
    top1 = {"top1": metric(0.8537, unit="fraction", ci95=[0.851, 0.857])}
    fast = {
        "timing": {"samples_per_second": 800.0, "gflop_per_sample": {"image": 52.0, "text": 7.0}},
        "provenance": CARD,
    }
    slow = {"timing": {"samples_per_second": 90.0, "gflop_per_sample": {"image": 180.0}}, "provenance": CARD}
    runs = [
        Run("coco", result("coco-retrieval", "test", base, metrics=retrieval_metrics(79.4, 61.5), **fast)),
        Run("coco-2", result("coco-retrieval", "test", large, metrics=retrieval_metrics(70.0, 50.0), **slow)),
        Run("in1k", result("imagenet-linear", "val", linear, metrics=top1)),
        Run("<b>tiny</b>", result("imagenet-linear", "val", world="tiny", metrics=top1, chance=0.125)),
    ]
    return build_table(runs, load_published())


@pytest.fixture(scope="module")
def page(table: Table) -> str:
    links = {"coco": Links("pages/coco.html", "runs/coco/config.json", "runs/coco/result.json", "runs/coco")}
    return to_html(table, links)


# ---- as text ---------------------------------------------------------------------------------------------------------


def test_the_page_nests_and_asks_for_nothing_from_the_network(page: str) -> None:
    parsed = Parsed(page)
    loads = [attrs.get(key) for tag, attrs in parsed.tags for key in ("src", "href") if tag != "a" and attrs.get(key)]
    assert loads == ["data:,"]
    policy = next(attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_row_and_number_is_on_the_page_without_a_script(table: Table, page: str) -> None:
    parsed = Parsed(page)
    rows = [row for section in table.sections for row in section.rows]
    assert len(parsed.all("tbody")) == len(rows) + len(table.apart)
    assert len(parsed.all("tr", class_="details")) == len(rows) + len(table.apart)
    assert not any("hidden" in attrs for attrs in parsed.all("tr"))  # the script folds them
    for section in table.sections:
        for row in section.rows:
            assert all(f">{cell.text}" in page for cell in row.cells.values())
    assert "top1 reproduces 85.4" in page
    assert "within noise of 79.1 (+0.30)" in page
    scored = [row for row in rows if row.score is not None]
    assert page.count('<svg class="strip" aria-hidden="true">') == len(scored)


def test_columns_that_no_row_fills_are_not_there(table: Table) -> None:
    def headers(section: Section) -> list[str]:
        parsed = Parsed(to_html(Table([section], [], [])))
        names = "".join(parsed.text).split("\n")
        return [name for name in ("params", "input px") if any(name in line for line in names if "#" in line)]

    coco = next(section for section in table.sections if section.task == "coco-retrieval")
    assert headers(coco) == ["params", "input px"]
    bare = [
        TableRow(False, "a", "b", "", "", "", "s", score=1.0),
        TableRow(False, "c", "d", "", "", "", "s", score=2.0),
    ]
    assert headers(Section("t", "s", "r", "t", [], ("m",), bare)) == []


def test_a_row_has_as_many_cells_as_the_head(page: str) -> None:
    for piece in page.split("<table>")[1:]:
        head, _, body = piece.partition("</thead>")
        count = head.count('<th scope="col"')
        rows = re.findall(r"<tbody [^>]*>(.*?)<tr class=\"details\".*?colspan=\"(\d+)\"", body, re.S)
        assert {(row.count("<td") + row.count("<th "), int(span)) for row, span in rows} == {(count, count)}


def test_measured_rows_link_to_what_is_there_and_say_how_to_make_a_page(page: str, table: Table) -> None:
    assert 'href="pages/coco.html"' in page
    assert 'href="runs/coco/config.json"' in page
    bare = to_html(table, {"coco": Links("", "", "", "runs/coco")})
    assert "beit3-bench show runs/coco" in bare
    assert ">page<" not in bare


def test_what_sets_a_measured_row_apart_is_marked_beside_its_name(page: str) -> None:
    assert '<span class="mark">re-ranked 16</span>' in page


def test_names_from_files_are_text_not_markup(page: str) -> None:
    assert "<b>tiny</b>" not in page
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page


def test_no_text_of_a_result_or_a_source_becomes_markup_or_hides_characters() -> None:
    evil = "</td><script>x</script>\x1b\u202e{{ 1 }}"
    model = {"preset": evil, "checkpoint": evil, "family": evil, "protocol": evil, "allow_missing": [evil]}
    made_with = {"device": evil, "dtype": evil}
    told = {
        "metrics": {evil: metric(1.0, ci95=[0.5, 1.5])},
        "notes": [evil],
        "counts": {evil: 1},
        "provenance": made_with,
    }
    told["timing"] = {"samples_per_second": 2.0, "gflop_per_sample": {evil: 3.0}}
    changes = [{}, {"world": "tiny"}, {"status": "to upload", "metrics": {}}, {}]
    runs = [
        Run(f"{evil}{number}", result(evil, evil, model, **{**told, **change}))  # type: ignore[arg-type]
        for number, change in enumerate(changes)
    ]
    links = {run.name: Links("", "", "", evil) for run in runs}
    text = to_html(build_table(runs, []), links, index="index.html")
    assert len(Parsed(text).all("script")) == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("&lt;script&gt;x&lt;/script&gt;\\x1b\\u202e{{ 1 }}") > 30


@pytest.mark.parametrize(
    ("name", "variant", "size"),
    [
        ("BEiT-3 base", "model.pth", "base"),
        ("BEiT-3", "beit3_large_patch16_480_vqa", "large"),
        ("BEiT-3", "giant (ViT-g layout, patch 14)", "giant"),
        ("BLIP", "ViT-L 129M", "other systems"),
        ("BEiT", "base (pt22k_ft22k)", "other systems"),
        ("BEiT-3 custom", "x.pth", "custom"),
    ],
)
def test_rows_are_filtered_by_the_size_of_the_model(name: str, variant: str, size: str) -> None:
    assert size_of(TableRow(True, name, variant, "", "", "", "")) == size


@pytest.mark.parametrize(
    ("measured", "name", "system"),
    [
        (True, "BEiT-3 base", "BEiT-3"),
        (True, "open_clip ViT-B-32", "open_clip"),
        (True, "VLMo custom", "VLMo"),
        (True, "mine custom", "mine"),
        (False, "BEiT v2", "BEiT v2"),
    ],
)
def test_rows_are_filtered_by_system_and_family(measured: bool, name: str, system: str) -> None:
    assert system_of(TableRow(measured, name, "", "", "", "", "")) == system


@pytest.mark.parametrize(
    ("text", "shown"), [("480x480", "480"), ("1024x800", "1024x800"), ("not stated", "not stated"), ("", "")]
)
def test_a_square_input_is_written_as_its_side(text: str, shown: str) -> None:
    assert input_of(text) == shown


# ---- places of drawings ----------------------------------------------------------------------------------------------


@given(st.floats(-1000, 1000), st.floats(1.0, 500))
def test_ticks_of_a_table_are_few_round_and_inside(low: float, span: float) -> None:
    row = TableRow(True, "a", "b", "", "", "", "", score=low, half_width=span / 7)
    other = TableRow(False, "c", "d", "", "", "", "", score=low + span)
    section = Section("t", "s", "r", "t", [], ("m",), [row, other])
    scale = section_scale(section)
    assert scale is not None
    values = [float(text) for _, text in scale.ticks]
    assert 2 <= len(values) <= 8
    assert len({round(b - a, 6) for a, b in itertools.pairwise(values)}) == 1
    assert all(-1e-6 <= x <= 100 + 1e-6 for x, _ in scale.ticks)
    for one in section.rows:
        strip = strip_of(one, scale)
        assert strip is not None
        assert 0 <= strip.low <= strip.at <= strip.high <= 100


def test_one_score_alone_stands_on_the_whole_scale() -> None:
    scale = section_scale(
        Section("t", "s", "r", "t", [], ("m",), [TableRow(True, "a", "", "", "", "", "", score=30.0)])
    )
    assert scale is not None
    assert (scale.low, scale.high, scale.place(30.0)) == (0.0, 100.0, 30.0)


def test_one_model_across_tasks_is_drawn_on_the_scale_of_each(table: Table) -> None:
    (profile,) = profiles_of(table)
    assert (profile.model, profile.why) == ("BEiT-3 base", "")
    assert [line.title.partition(",")[0] for line in profile.lines] == ["COCO retrieval (Karpathy 5K)", "ImageNet-1K"]
    coco, imagenet = profile.lines
    assert (coco.metric, coco.text) == ("mean of TR@1 and IR@1", f"{(79.4 + 61.5) / 2:.1f}")
    assert (imagenet.text, imagenet.interval, imagenet.note) == ("85.4", "[85.1, 85.7]", "reproduces 85.4")
    published = [row for row in table.sections[0].rows if not row.measured and row.score is not None]
    assert len(coco.others) == len(published)


def test_score_stands_against_every_cost_that_two_rows_have(table: Table) -> None:
    plots = {plot.cost: plot for plot in scatters_of(table.sections[0])}
    assert list(plots) == ["parameters", "GFLOP per image", "samples per second on Card A, bf16"]  # one alone has texts
    assert len(plots["GFLOP per image"].dots) == 2
    assert [dot.row.run for dot in plots["GFLOP per image"].dots if dot.best] == ["coco"]
    for plot in plots.values():
        assert len(plot.x) >= 2
        assert all(0 <= dot.x <= 100 and 0 <= dot.y <= plot.height for dot in plot.dots)
        places = [(round(x, 2), round(y, 1)) for line in plot.steps for x, y in (line[:2], line[2:])]
        best = {(round(dot.x, 2), round(dot.y, 1)) for dot in plot.dots if dot.best}
        assert len(best) < 2 or best <= set(places)


@given(st.lists(st.tuples(st.floats(-40, 400), st.floats(0, 230), st.floats(1, 190)), max_size=30))
def test_a_label_is_free_where_it_covers_no_other(places: list[tuple[float, float, float]]) -> None:
    boxes = [_box(*place) for place in places]
    for number, box in enumerate(boxes):
        assert _Taken(boxes[:number]).free(box) is not any(_overlap(box, other) for other in boxes[:number])


@pytest.mark.parametrize(
    ("value", "text"), [(222e6, "222M"), (1.9e9, "1.9B"), (35.14, "35.1"), (0.5, "0.5"), (2e3, "2K")]
)
def test_costs_are_written_short(value: float, text: str) -> None:
    assert cost_text(value) == text


def test_names_in_a_scatter_are_short_and_tell_sizes_apart() -> None:
    def name(measured: bool, system: str, variant: str) -> str:
        return short_name(TableRow(measured, system, variant, "", "", "", ""))

    assert name(False, "BEiT-3", "beit3_large_patch16_480_vqa") == "BEiT-3 large"
    assert name(False, "SigLIP", "ViT-L-16") == "SigLIP ViT-L-16"
    assert name(True, "BEiT-3 base", "model.pth") == "BEiT-3 base"


# ---- links -----------------------------------------------------------------------------------------------------------


def board_of(root: Path, base: Path) -> dict[str, Links]:
    return links_of(read_results(root), root, base)


def test_links_lead_from_the_page_to_the_run_wherever_both_lie(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "a b/coco#1", result())
    for name in ("page.html", "config.json"):
        (folder / name).write_text("{}")
    links = board_of(tmp_path / "runs", tmp_path / "site" / "deep")["a b/coco#1"]
    assert links.page == "../../runs/a%20b/coco%231/page.html"
    assert links.card == "../../runs/a%20b/coco%231/config.json"
    assert links.folder == str(folder)


def test_a_page_beside_the_leaderboard_is_the_one_that_is_linked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "x/coco", result())
    (folder / "page.html").write_text("")
    facts = {"kind": "run", "name": "coco", "task": "vqav2", "split": "test-dev", "checkpoint": "model.pth", "time": ""}
    site = tmp_path / "site"
    site.mkdir()

    def write(**changes: str) -> None:
        content = html.escape(json.dumps({**facts, **changes}))
        (site / "coco.html").write_text(f'<meta name="{META}" content="{content}">')

    write()
    assert board_of(tmp_path / "runs", site)["x/coco"].page == "coco.html"
    write(checkpoint="another.pth")  # of another run of that name
    assert board_of(tmp_path / "runs", site)["x/coco"].page == "../runs/x/coco/page.html"


def test_what_is_not_there_is_not_linked(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "coco", result())
    links = board_of(tmp_path / "runs", tmp_path)["coco"]
    assert (links.page, links.card, links.result) == ("", "", "runs/coco/result.json")


def test_a_file_of_a_run_that_lies_elsewhere_is_linked_where_it_lies(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "coco", result())
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    (folder / "page.html").symlink_to(tmp_path / "nowhere.html")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    links = board_of(tmp_path / "link", tmp_path)["coco"]
    assert (links.page, links.card, links.result) == ("", "elsewhere.json", "runs/coco/result.json")


def test_a_folder_that_is_a_run_itself_is_linked(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "coco", result())
    assert board_of(folder, tmp_path)["coco"].result == "coco/result.json"


def test_an_index_of_pages_names_the_leaderboard(tmp_path: Path, table: Table) -> None:
    (tmp_path / "board.html").write_text(to_html(table))
    assert index_beside(tmp_path) == ""
    index = write_index(tmp_path)
    assert index_beside(tmp_path) == "index.html"
    assert 'href="board.html"' in index.read_text()
    facts = facts_of_page(tmp_path / "board.html")
    assert facts == {"kind": "leaderboard", "name": "Leaderboard", "title": "4 measured rows"}


# ---- in a browser ----------------------------------------------------------------------------------------------------

STEPS = """
const rows = () => shown("tbody");
const control = name => document.querySelector(`[data-control="${name}"]`);
const set = (name, value) => {
  const one = control(name);
  if (one.type === "checkbox") one.checked = value; else one.value = value;
  one.dispatchEvent(new Event("input", { bubbles: true }));
};
const first = document.querySelector("main section table");
const header = text => [...first.querySelectorAll("th button")].find(button => button.textContent === text);
const column = text => [...first.tBodies].map(body => body.rows[0].cells[header(text).closest("th").cellIndex].textContent.trim());
"""


@pytest.fixture(scope="module")
def told(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("html") / "board.html"
    file.write_text(page)
    script = """
    step("ranked", column("#").map(Number));
    header("TR@1").click(); step("descending", column("TR@1").map(parseFloat));
    header("TR@1").click(); step("ascending", column("TR@1").map(parseFloat));
    header("mean_recall").click(); step("blanks", column("mean_recall"));
    header("params").click(); step("params", [...first.tBodies].map(body => body.querySelector('[data-label="params"]').dataset.value));
    header("system").click();
    step("names", [...first.tBodies].map(body => body.querySelector(".name").textContent));
    set("first", true); step("first", [...first.tBodies].map(body => body.dataset.origin)); set("first", false);
    step("before", rows().length); step("count", document.querySelector("[data-count]").textContent);
    set("origin", "measured"); step("measured", rows().map(row => row.dataset.origin));
    set("origin", ""); set("size", "large"); step("large", rows().map(row => row.dataset.size));
    set("size", ""); set("system", "BLIP"); step("system", rows().map(row => row.dataset.system));
    step("some", document.querySelector("[data-count]").textContent);
    set("system", ""); set("task", "imagenet-linear"); step("task", shown("main section h2").map(h => h.textContent));
    set("task", ""); set("regime", "zero-shot"); step("regime", shown("main section[data-regime]").map(s => s.dataset.regime));
    set("regime", ""); set("find", "beit3_base_patch16_224_in1k"); step("find", rows().map(row => row.textContent));
    set("find", ""); step("after", rows().length);
    step("folded", shown("tr.details").length);
    const fold = document.querySelector(".fold");
    fold.click(); step("unfolded", [shown("tr.details").length, fold.getAttribute("aria-expanded")]);
    set("unfold", true); step("all", shown("tr.details").length); set("unfold", false);
    step("copies", [...document.querySelector(".copies").querySelectorAll("pre")].map(pre => pre.textContent));
    """
    return asked(file, STEPS + script, tmp_path_factory.mktemp("profile") / "p")


def test_an_error_on_the_console_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing.at.all</script>")
    assert "CONSOLE" in browser(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()).stderr


def test_the_console_of_a_real_browser_shows_no_error(told: dict) -> None:
    assert told["errors"] == []
    assert told["console"] == []


def test_a_click_sorts_numbers_both_ways_and_names_by_letters(told: dict) -> None:
    steps = told["steps"]
    assert len(steps["descending"]) > 5
    assert steps["descending"] == sorted(steps["descending"], reverse=True)
    assert steps["ascending"] == sorted(steps["ascending"])
    for name in ("blanks", "params"):
        blank = [text == "" for text in steps[name]]
        assert any(blank)
        assert blank == sorted(blank)
    sizes = [float(text) for text in steps["params"] if text]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) > 1e9 > min(sizes)
    assert [name.lower()[0] for name in steps["names"]] == sorted(name.lower()[0] for name in steps["names"])


def test_own_rows_come_first_on_request(told: dict) -> None:
    origins = told["steps"]["first"]
    assert origins[:2] == ["measured"] * 2
    assert "measured" not in origins[2:]


def test_filters_hide_rows_and_sections_and_give_them_back(told: dict) -> None:
    steps = told["steps"]
    assert steps["measured"] == ["measured"] * 4
    assert set(steps["large"]) == {"large"}
    assert set(steps["system"]) == {"BLIP"}
    assert steps["task"] == [
        "One model across tasks",
        "ImageNet-1K, linear head, val, fine-tuned",
        "Not comparable with published numbers",
    ]
    assert set(steps["regime"]) == {"zero-shot"}
    assert steps["find"]
    assert all("beit3_base_patch16_224_in1k" in text for text in steps["find"])
    assert steps["after"] == steps["before"]
    assert steps["count"] == f"{steps['before']} rows"
    assert steps["some"] == f"{len(steps['system'])} of {steps['before']} rows"


def test_details_are_folded_and_open_one_by_one_or_all(told: dict) -> None:
    steps = told["steps"]
    assert steps["folded"] == 0
    assert steps["unfolded"] == [1, "true"]
    assert steps["all"] == steps["before"]


def test_what_is_copied_is_the_table_of_the_section(told: dict, table: Table) -> None:
    from beit3_bench.harness.leaderboard.latex import section_latex
    from beit3_bench.harness.leaderboard.text import section_csv

    latex, csv = told["steps"]["copies"]
    assert latex.strip() == section_latex(table.sections[0]).strip()
    assert csv.strip() == section_csv(table.sections[0]).strip()
    assert csv.count("\n") > 10


@pytest.mark.parametrize("width", [1400, 800, 500])
def test_the_page_does_not_scroll_sideways(width: int, page: str, tmp_path: Path) -> None:
    file = tmp_path / "board.html"
    file.write_text(page)
    script = 'step("wide", [document.documentElement.scrollWidth, window.innerWidth]);'
    answer = asked(file, script, tmp_path / "p", width=width)
    wide, window = answer["steps"]["wide"]
    assert wide <= window


def test_on_a_phone_a_row_is_a_block_in_which_names_and_dots_have_the_whole_width(page: str, tmp_path: Path) -> None:
    file = tmp_path / "board.html"
    file.write_text(page)
    script = """
    const row = document.querySelector("tbody.measured tr"), whole = row.getBoundingClientRect().width;
    const share = selector => row.querySelector(selector).getBoundingClientRect().width / whole;
    step("shares", [share("th.system"), share("td.scale")]);
    const first = row.querySelector("th.system").getBoundingClientRect(), next = row.querySelector("td.scale").getBoundingClientRect();
    step("below", next.top >= first.bottom);
    step("label", getComputedStyle(row.querySelector('[data-label="TR@1"]'), "::before").content);
    """
    steps = asked(file, script, tmp_path / "p", width=500)["steps"]
    assert min(steps["shares"]) > 0.85
    assert steps["below"]
    assert steps["label"] == '"TR@1"'


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(scheme: str, page: str, tmp_path: Path) -> None:
    assert violations(page, scheme, tmp_path, browser) == []


def test_screenshots_are_kept(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The pictures stay in pytest's cache folder, ``.pytest_cache/d/leaderboard``, where pytest keeps one."""
    file = tmp_path / "board.html"
    file.write_text(page)
    cache = getattr(request.config, "cache", None)  # not there with `-p no:cacheprovider`
    folder = cache.mkdir("leaderboard") if cache is not None else tmp_path
    for name, width, flags in (
        ("1400", 1400, []),
        ("dark", 1400, ["--blink-settings=preferredColorScheme=0"]),
        ("500", 500, []),
    ):
        picture = folder / f"leaderboard-{name}.png"
        picture.unlink(missing_ok=True)
        browser(*flags, f"--user-data-dir={tmp_path / name}", f"--screenshot={picture}", file.as_uri(), width=width)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000
