"""The leaderboard for a terminal: as wide as it is, with every name and number whole."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_cases import metric, result, retrieval_metrics

from beit3_bench.harness.console import Toned
from beit3_bench.harness.leaderboard.board import Table, build_table
from beit3_bench.harness.leaderboard.terminal import columns_of, to_text, toned, wrapped
from beit3_bench.harness.record.results import Run
from beit3_bench.results.published.values import load_published


@pytest.fixture(scope="module")
def table() -> Table:
    base = {"weight": "beit3_base_patch16_384_coco_retrieval", "image_size": 384, "protocol": "re-ranked 16"}
    tiny = result("vqav2", "minival", world="tiny", chance=31.3, notes=["half of it was read"])
    runs = [
        Run("coco", result("coco-retrieval", "test", base, metrics=retrieval_metrics(79.4, 61.5))),
        Run("tiny", tiny),
        Run("later", result(status="to upload", metrics={})),
    ]
    return build_table(runs, load_published())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(table: Table, width: int) -> None:
    lines = to_text(table, width).splitlines()
    assert max(map(columns_of, lines)) <= width


@pytest.mark.parametrize("width", [40, 80, 200])
def test_scores_intervals_and_sources_are_there_at_any_width(table: Table, width: int) -> None:
    text = re.sub(r"\s+", " ", to_text(table, width))
    assert "TR@1 79.4 [78.8, 80.0]" in text
    assert "re-ranked 16; run coco" in text
    assert "half of it was read" in text
    assert "later: vqav2 test-dev: to upload" in text
    scored = [row for section in table.sections for row in section.rows]
    assert all(row.cells["IR@1"].text in text for row in scored if "IR@1" in row.cells)


def test_columns_without_room_are_named_and_on_a_wide_terminal_all_are_there(table: Table) -> None:
    narrow, wide = to_text(table, 60), to_text(table, 200)
    assert "No room at 60 columns for mean_recall," in narrow
    assert "No room" not in wide
    header = next(line for line in wide.splitlines() if " TR@1 " in line and "system" in line)
    assert header.split() == [
        "#",
        "system",
        "TR@1",
        "IR@1",
        "mean_recall",
        "TR@5",
        "TR@10",
        "IR@5",
        "IR@10",
        "params",
        "input",
    ]


def test_numbers_end_where_their_header_ends(table: Table) -> None:
    lines = to_text(table, 200).splitlines()
    at = next(number for number, line in enumerate(lines) if " TR@1 " in line and "system" in line)
    end = lines[at].index("TR@1") + len("TR@1")
    values = [line[end - 4 : end] for line in lines[at + 1 : at + 9]]
    assert all(re.fullmatch(r"\d\d\.\d", value) for value in values)


def test_measured_rows_are_marked(table: Table) -> None:
    marked = [line for line in to_text(table, 120).splitlines() if line.startswith(">")]
    assert [line.split()[2:4] for line in marked] == [["BEiT-3", "base,"]]


def test_titles_and_measured_rows_stand_out(table: Table) -> None:
    text = to_text(table, 120)
    parts = toned(text)
    assert "".join(map(str, parts)) == text
    bold = [str(part) for part in parts if isinstance(part, Toned)]
    assert "COCO retrieval (Karpathy 5K), test, fine-tuned\n" in bold
    assert len([line for line in bold if line.startswith(">")]) == 1
    assert len(bold) == 1 + text.count("\n---")


def test_a_column_that_no_row_fills_is_not_there(table: Table) -> None:
    apart = to_text(Table([], table.apart, []), 120)
    assert "chance" in apart
    for item in table.apart:
        item.row.chance = None
    assert "chance" not in to_text(Table([], table.apart, []), 120)


def test_nothing_to_show_is_said() -> None:
    assert to_text(Table([], [], []), 80) == "Nothing to show: no result and no published row fits.\n"


def test_control_characters_are_written_out() -> None:
    evil = "a\x1b[2J\nb\u202e"
    content = result(
        evil, evil, {"preset": evil, "checkpoint": evil}, metrics={evil: metric(1.0)}, notes=[evil], world="tiny"
    )
    text = to_text(build_table([Run(evil, content)], []), 80)
    assert not {c for c in text if c != "\n" and (c < " " or c == "\u202e")}
    assert r"\x1b[2J" in text


@given(st.text("ab _-/界é́", max_size=40), st.integers(2, 12))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert all(columns_of(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("界", 2), ("é", 1), ("e\u0301", 1), ("", 0)])
def test_letters_take_the_columns_of_a_terminal(text: str, columns: int) -> None:
    assert columns_of(text) == columns
