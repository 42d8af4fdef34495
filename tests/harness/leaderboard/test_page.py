"""The HTML page: complete and self-contained as text, and working in a real browser (headless Chromium)."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
from pathlib import Path

import pytest
from browser import browser
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_cases import metric, result, retrieval_metrics

from beit3_bench.harness.leaderboard.board import Section, Table, TableRow, build_table
from beit3_bench.harness.leaderboard.page import chart_of, size_of, system_of, to_html
from beit3_bench.harness.record.results import Run
from beit3_bench.results.published.values import load_published


@pytest.fixture(scope="module")
def table() -> Table:
    base = {"weight": "beit3_base_patch16_384_coco_retrieval", "image_size": 384}
    linear = {"weight": "beit3_base_patch16_224_in1k", "image_size": 224}
    top1 = {"top1": metric(0.8537, unit="fraction", ci95=[0.851, 0.857])}
    runs = [
        Run("coco", result("coco-retrieval", "test", base, metrics=retrieval_metrics(79.4, 61.5))),
        Run("coco-2", result("coco-retrieval", "test", {"preset": "large"}, metrics=retrieval_metrics(70.0, 50.0))),
        Run("in1k", result("imagenet-linear", "val", linear, metrics=top1)),
        Run("<b>tiny</b>", result("imagenet-linear", "val", world="tiny", metrics=top1, chance=0.125)),
    ]
    return build_table(runs, load_published())


class Page(html.parser.HTMLParser):
    """Collects tags and checks nesting."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_nests_and_asks_for_nothing_from_the_network(table: Table) -> None:
    page = Page(to_html(table))
    assert page.open == []
    loads = [attrs.get(key) for tag, attrs in page.tags for key in ("src", "href") if tag != "a" and attrs.get(key)]
    assert loads == ["data:,"]
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_every_row_and_number_is_on_the_page_without_a_script(table: Table) -> None:
    text = to_html(table)
    assert text.count("<tr ") == sum(len(section.rows) for section in table.sections) + len(table.apart)
    assert "reproduces 85.4" in text
    assert "within noise of 79.1 (+0.30)" in text
    assert text.count('class="whisker"') == sum(
        cell.low is not None for section in table.sections for row in section.rows for cell in row.cells.values()
    ) + len(table.apart)
    assert text.count('class="chart"') == len(table.sections)


def test_names_from_files_are_text_not_markup(table: Table) -> None:
    text = to_html(table)
    assert "<b>tiny</b>" not in text
    assert "&lt;b&gt;tiny&lt;/b&gt;" in text


def test_no_text_of_a_result_or_a_source_becomes_markup_or_hides_characters() -> None:
    evil = "</td><script>x</script>\x1b\u202e{{ 1 }}"
    model = {"preset": evil, "checkpoint": evil, "family": evil, "protocol": evil, "allow_missing": [evil]}
    told = {"metrics": {evil: metric(1.0, ci95=[0.5, 1.5])}, "notes": [evil], "counts": {evil: 1}}
    changes = [{}, {"world": "tiny"}, {"status": "to upload", "metrics": {}}]
    runs = [
        Run(f"{evil}{number}", result(evil, evil, model, **{**told, **change}))  # type: ignore[arg-type]
        for number, change in enumerate(changes)
    ]
    text = to_html(build_table(runs, []))
    assert Page(text).open == []
    assert [tag for tag, _ in Page(text).tags].count("script") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("&lt;script&gt;x&lt;/script&gt;\\x1b\\u202e{{ 1 }}") > 15


@given(st.floats(-1000, 1000), st.floats(1.0, 500))
def test_ticks_of_a_chart_are_few_round_and_inside(low: float, span: float) -> None:
    row = TableRow(True, "a", "b", "", "", "", "", score=low)
    other = TableRow(False, "c", "d", "", "", "", "", score=low + span)
    chart = chart_of(Section("t", "s", "r", "t", [], ("m",), [row, other]))
    assert chart is not None
    values = [float(text) for _, text in chart.ticks]
    assert 2 <= len(values) <= 6
    assert len({round(b - a, 6) for a, b in itertools.pairwise(values)}) == 1
    assert all(350 <= x <= 840 for x, _ in chart.ticks)
    assert all(350 <= dot.x <= 840 for dot in chart.dots)


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


# ---- in a browser ----------------------------------------------------------------------------------------------------

PROBE = """
<script>
const told = {errors: [], steps: {}};
const shown = selector => [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length > 0);
const column = (section, index) => shown(`#${section} tbody tr`).map(row => row.cells[index].textContent.trim());
function step(name, value) { told.steps[name] = value; }
const set = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input", {bubbles: true}));
};
try {
  const headers = section => [...document.querySelectorAll(`#${section} th button`)];
  const header = (section, text) => headers(section).find(button => button.textContent === text);
  const index = (section, text) => header(section, text).closest("th").cellIndex;
  const tr = index("s0", "TR@1"), system = index("s0", "system");
  header("s0", "TR@1").click(); step("descending", column("s0", tr).map(parseFloat));
  header("s0", "TR@1").click(); step("ascending", column("s0", tr).map(parseFloat));
  header("s0", "mean_recall").click(); step("blanks", column("s0", index("s0", "mean_recall")));
  header("s0", "system").click(); step("names", column("s0", system));
  step("before", shown("tbody tr").length);
  set("origin", "measured"); step("measured", shown("tbody tr").map(row => row.className));
  step("dots", shown(".chart g").map(g => g.getAttribute("class")));
  set("origin", ""); set("size", "large"); step("large", shown("tbody tr").map(row => row.dataset.size));
  set("size", ""); set("system", "BLIP"); step("system", shown("tbody tr").map(row => row.dataset.system));
  set("system", ""); set("task", "imagenet-linear"); step("task", shown("main section h2").map(h => h.textContent));
  set("task", ""); set("regime", "zero-shot"); step("regime", shown("main section").map(s => s.dataset.regime || s.id));
  set("regime", ""); set("find", "beit3_base_patch16_224_in1k");
  step("find", shown("tbody tr").map(row => row.textContent));
  set("find", ""); step("after", shown("tbody tr").length);
  step("size", [document.documentElement.scrollWidth <= window.innerWidth]);
} catch (error) { told.errors.push(String(error)); }
const out = document.createElement("pre");
out.id = "probe"; out.textContent = JSON.stringify(told);
document.body.append(out);
</script>
"""


@pytest.fixture(scope="module")
def told(table: Table, tmp_path_factory: pytest.TempPathFactory) -> dict:
    page = tmp_path_factory.mktemp("html") / "board.html"
    page.write_text(to_html(table).replace("</body>", PROBE + "</body>"))
    profile = tmp_path_factory.mktemp("profile")
    done = browser(f"--user-data-dir={profile}", "--dump-dom", page.as_uri())
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    answer["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return answer


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
    blank = [text == "" for text in steps["blanks"]]
    assert any(blank)
    assert blank == sorted(blank)
    assert [name.lower()[0] for name in steps["names"]] == sorted(name.lower()[0] for name in steps["names"])


def test_filters_hide_rows_sections_and_dots_and_give_them_back(told: dict) -> None:
    steps = told["steps"]
    assert steps["measured"] == ["measured"] * 4
    assert steps["dots"] == ["measured"] * 3
    assert set(steps["large"]) == {"large"}
    assert set(steps["system"]) == {"BLIP"}
    assert steps["task"] == ["ImageNet-1K, linear head, val, fine-tuned", "Not comparable with published numbers"]
    assert set(steps["regime"]) == {"zero-shot"}
    assert steps["find"]
    assert all("beit3_base_patch16_224_in1k" in text for text in steps["find"])
    assert steps["after"] == steps["before"]


def test_the_page_does_not_scroll_sideways(told: dict) -> None:
    assert told["steps"]["size"] == [True]


def test_a_screenshot_is_kept(table: Table, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The picture stays in pytest's cache folder, ``.pytest_cache/d/leaderboard``, where pytest keeps one."""
    page = tmp_path / "board.html"
    page.write_text(to_html(table))
    cache = getattr(request.config, "cache", None)  # not there with `-p no:cacheprovider`
    picture = (cache.mkdir("leaderboard") if cache is not None else tmp_path) / "leaderboard.png"
    picture.unlink(missing_ok=True)
    browser(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", page.as_uri())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
