"""The drop under corruption: against the clean run of the same model and samples, apart from everything published."""

from __future__ import annotations

import json

import pytest
from html_page import Parsed
from leaderboard_cases import metric, result, write_run

from beit3_bench.backbones.corruptions import NAMES, NOTE
from beit3_bench.errors import BenchError
from beit3_bench.harness.leaderboard.board import build_table
from beit3_bench.harness.leaderboard.cost import cost_table
from beit3_bench.harness.leaderboard.page import to_html
from beit3_bench.harness.leaderboard.robustness import robustness_of
from beit3_bench.harness.leaderboard.terminal import to_text
from beit3_bench.harness.leaderboard.text import to_csv, to_json, to_markdown
from beit3_bench.harness.record.results import Run, read_results
from beit3_bench.results.published.values import load_published

MADE_FROM = {"checkpoint": "c", "data": "d", "dtype": "fp32", "code": "1"}


def one(name, top1, corrupt=None, **changes):
    """A run of a released file, so that a clean one is held against its published value."""
    more = {} if corrupt is None else {"corrupt": corrupt, "notes": [f"{NOTE} {corrupt}", "a leak"]}
    made_from = {**MADE_FROM, **changes.pop("made_from", {}), **({"corruption": corrupt} if corrupt else {})}
    card = {"weight": "beit3_base_patch16_224_in1k", "image_size": 224}
    provenance = {"fingerprints": made_from, "time": changes.pop("time", "2026-01-01")}
    metrics = {"top1": metric(top1, unit="fraction")}
    content = result("imagenet-linear", "val", card, metrics=metrics, provenance=provenance, **more, **changes)
    return Run(name, content)  # type: ignore[arg-type]


CLEAN = one("clean", 0.8)
RUNS = [CLEAN, one("a", 0.7, "fog:1"), one("b", 0.5, "fog:3"), one("c", 0.6, "snow:1"), one("d", 0.2, "snow:3")]


def test_the_drop_is_against_the_clean_run():
    (found,) = robustness_of(RUNS)
    assert found.header == ["corruption", "1", "3", "mean", "change", "of clean"]
    assert found.lines() == [
        ["clean", "", "", "80.0", "", ""],
        ["snow", "60.0", "20.0", "40.0", "-40.0", "50.0%"],
        ["fog", "70.0", "50.0", "60.0", "-20.0", "75.0%"],
        ["mean of 2", "", "", "50.0", "-30.0", "62.5%"],
    ]
    assert found.told[0] == "top1; clean: run clean"
    assert found.told[1].startswith("snow is not ImageNet-C's: its flakes are blurred")
    assert found.told[2:] == ["a leak"]


def test_all_of_them_have_the_names_of_the_papers():
    runs = [one(f"{n}{s}", 0.4, f"{n}:{s}") for n in NAMES for s in range(1, 6)]
    (found,) = robustness_of([CLEAN, *runs])
    assert found.lines()[-1] == ["mean (mPC; of clean: rPC)", *[""] * 5, "40.0", "-40.0", "50.0%"]
    assert len(found.lines()) == 17
    (part,) = robustness_of([CLEAN, *runs[:-1]])
    assert [line[0] for line in part.lines()] == ["clean", *NAMES]  # unlike severities have no mean


@pytest.mark.parametrize(
    "other",
    [
        {"made_from": {"checkpoint": "another"}},
        {"made_from": {"data": "another"}},
        {"made_from": {"dtype": "bf16"}},
        {"subset": {"limit": 8}},
        {"world": "tiny"},
        {"setting": "zero-shot"},
    ],
)
def test_a_clean_run_of_something_else_is_none(other):
    (found,) = robustness_of([one("clean", 0.8, **other), one("a", 0.7, "fog:1")])
    assert found.lines() == [["fog", "70.0", "70.0", "", ""]]
    assert found.told[0].endswith(
        "no clean run of this model over the same samples: give the same command without --corrupt"
    )


def test_another_version_of_this_program_does_not_part_clean_from_corrupted():
    newer = one("a", 0.7, "fog:1", made_from={"code": "2"})
    assert robustness_of([CLEAN, newer])[0].clean == pytest.approx(80.0)


def test_of_equal_runs_the_newest_counts():
    runs = [one("new", 0.6, "fog:1", time="2026-03-01"), one("old", 0.7, "fog:1"), CLEAN]
    (found,) = robustness_of(runs)
    assert [(s.run, s.value) for s in found.suffered] == [("new", pytest.approx(60.0))]


def test_corrupted_rows_are_neither_ranked_nor_judged():
    table = build_table(RUNS, load_published())
    measured = [row for section in table.sections for row in section.rows if row.measured]
    assert [row.run for row in measured] == ["clean"]
    assert [item.why for item in table.apart] == [f"corrupted {run.result['corrupt']}" for run in RUNS[1:]]
    assert {verdict.kind for item in table.apart for verdict in item.row.verdicts.values()} == {"no published value"}


def test_every_form_shows_the_drop():
    table = build_table(RUNS, load_published())
    title = "imagenet-linear, val, fine-tuned, BEiT-3 base, beit3_base_patch16_224_in1k"
    markdown, text = to_markdown(table), to_text(table, 100)
    assert "## Under corruption\n\nThe headline metric on corrupted images" in markdown
    assert f"### {title}" in markdown
    assert "| fog        | 70.0 | 50.0 | 60.0 |  -20.0 |    75.0% |" in markdown
    assert "Not comparable" not in markdown  # they are told here
    assert "snow" in text
    assert "-40.0" in text
    assert max(map(len, text.splitlines())) <= 100
    assert json.loads(to_json(table))["robustness"][0]["clean"] == pytest.approx(80.0)
    assert "not comparable: corrupted fog:1" in to_csv(table)
    assert "corrupted fog:1, top1 70.0" in cost_table(RUNS, "markdown")
    page = to_html(table)
    assert Parsed(page)
    assert f"<h3>{title}</h3>" in page
    assert '<td class="number">-20.0</td>' in page


@pytest.mark.parametrize("label", ["fgo:1", "fog:9", "fog:1-2", ""])
def test_a_result_with_no_corruption_of_ours_is_refused(label, tmp_path):
    write_run(tmp_path, "edited", {**CLEAN.result, "corrupt": label})
    with pytest.raises(BenchError, match=r"edited/result\.json: corrupt: "):
        read_results(tmp_path)
