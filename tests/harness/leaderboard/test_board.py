"""The leaderboard as a pure function of result files and results/published."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from click.testing import CliRunner
from leaderboard_cases import metric, result, retrieval_metrics, write_run

from beit3_bench.backbones.beit3.weights import WEIGHTS
from beit3_bench.backbones.released import find_released, released_files
from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.table import command
from beit3_bench.harness.leaderboard.board import Table, build_table
from beit3_bench.harness.leaderboard.latex import to_latex
from beit3_bench.harness.leaderboard.numbers import published_numbers
from beit3_bench.harness.leaderboard.overview import PAPER_TABLE_1, build_overview
from beit3_bench.harness.leaderboard.page import to_html
from beit3_bench.harness.leaderboard.page.drawing import profiles_of
from beit3_bench.harness.leaderboard.text import apart_csv, section_csv, to_csv, to_json, to_markdown
from beit3_bench.harness.pages.index import write_index
from beit3_bench.harness.record.results import Run, read_results
from beit3_bench.results.published.values import COLUMNS, OVERVIEW_SOURCE, SOURCE_KINDS, PublishedValue, load_published
from beit3_bench.tasks.facts import published_names, read_facts

RETRIEVAL = "beit3_base_patch16_384_coco_retrieval"


@pytest.fixture(scope="module")
def published() -> list[PublishedValue]:
    return load_published()


def released(name: str, **changes: object) -> dict:
    weight = find_released(name)
    assert weight is not None
    return {
        "weight": name,
        "checkpoint": weight.file,
        "image_size": weight.image_size,
        "preset": weight.preset,
        **changes,
    }


def retrieval_run(
    name: str = "coco", weight: str = RETRIEVAL, tr: float = 79.1, ir: float = 61.4, **changes: object
) -> Run:
    content = result("coco-retrieval", "test", released(weight), metrics=retrieval_metrics(tr, ir), **changes)
    return Run(name, content)


def cells(table: Table, section: int = 0) -> list[str]:
    return [f"{row.name}/{row.variant}" for row in table.sections[section].rows]


# ---- results/published -----------------------------------------------------------------------------------------------


def test_all_published_values_are_there_with_their_sources(published: list[PublishedValue]) -> None:
    assert len(published) == 1938
    assert len({value.system for value in published}) == 67
    assert all(value.source for value in published)


def test_published_values_of_a_released_file_agree_with_its_registry_record(published: list[PublishedValue]) -> None:
    ours = [v for v in published if v.checkpoint and find_released(v.checkpoint).family == "beit3"]
    readme = [v for v in ours if "README" in v.source]
    found = set()
    for value in readme:
        for task, names in published_names().items():
            for name, theirs in names.metrics.items():
                weight = find_released(value.checkpoint)
                if theirs == (value.task, value.metric) and weight.task == task:
                    split = next(ours for ours, theirs in names.splits.items() if value.split in theirs)
                    found.add((weight.name, split, name, value.value))
                    assert value.image_size == weight.image_size
    assert found == {(w.name, s.split, s.metric, s.value) for w in WEIGHTS for s in w.published}


def test_published_scores_of_every_other_released_file_stand_in_the_tables(published: list[PublishedValue]) -> None:
    # ALBEF's paper was not at hand: its values stand as others quote them.
    printed = {(v.checkpoint, v.task, v.metric, v.value) for v in published if v.source_kind in SOURCE_KINDS[:4]}
    others = [file for file in released_files() if file.family != "beit3"]
    assert len(others) >= 75
    for file in others:
        for score in file.published:
            task, metric = published_names()[score.task].metrics[score.metric]
            assert (file.name, task, metric, score.value) in printed
    named = {v.checkpoint for v in published if v.checkpoint}
    assert named >= {file.name for file in others if file.published}


def test_values_of_a_released_file_stand_at_its_resolution(published: list[PublishedValue]) -> None:
    for value in published:
        if value.checkpoint:
            assert value.image_size == find_released(value.checkpoint).image_size, value.id


def test_a_measured_file_of_another_family_is_judged_by_its_own_values(published: list[PublishedValue]) -> None:
    name = "ViT-B-32.openai"
    model = {**released(name), "family": "openclip", "protocol": "dual encoder"}
    content = result("coco-retrieval", "test", model, metrics=retrieval_metrics(50.12, 30.2), setting="zero-shot")
    sections = build_table([Run("clip", content)], published).sections
    rows = next(section.rows for section in sections if section.regime == "zero-shot")
    verdicts = next(row for row in rows if row.measured).verdicts
    assert verdicts["TR@1"].kind == "reproduces"
    assert verdicts["IR@1"].reference.value == 30.44


def test_every_name_of_the_mapping_has_published_values(published: list[PublishedValue]) -> None:
    printed = {(v.task, v.metric) for v in published}
    splits = {(v.task, v.split) for v in published}
    for names in published_names().values():
        for ours, theirs in names.printed.items():
            assert theirs in printed or ours in names.derived
        tasks = {task for task, _ in names.metrics.values()}
        assert all(any((task, s) in splits for task in tasks) for group in names.splits.values() for s in group)
        assert set(names.order_by) <= set(names.metrics)
    assert all(line.published in printed for line in PAPER_TABLE_1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "about 80"}, "record 1: value 'about 80' is not a number"),
        ({"value": "nan"}, "is not a number"),
        ({"regime": "few-shot"}, "regime 'few-shot'"),
        ({"source_kind": "rumour"}, "source_kind 'rumour'"),
        ({"source": ""}, "column source is empty"),
    ],
)
def test_a_bad_published_row_is_named(tmp_path: Path, change: dict, message: str) -> None:
    row = {c: "x" for c in COLUMNS} | {"value": "80.1", "regime": "zero-shot", "source_kind": "primary"} | change
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerow(row)
    with pytest.raises(BenchError, match=message):
        load_published(tmp_path)


def test_a_published_id_stands_once_and_columns_are_checked(tmp_path: Path) -> None:
    row = {c: "x" for c in COLUMNS} | {"value": "80.1", "regime": "zero-shot", "source_kind": "primary"}
    for name in ("a.csv", "b.csv"):
        with open(tmp_path / name, "w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerow(row)
    with pytest.raises(BenchError, match=r"b\.csv: record 1: id x stands in a\.csv too"):
        load_published(tmp_path)
    (tmp_path / "b.csv").write_text("id,system\n1,X\n")
    with pytest.raises(BenchError, match=r"b\.csv:1: columns differ"):
        load_published(tmp_path)
    with pytest.raises(BenchError, match="no csv file"):
        load_published(tmp_path / "nothing")


# ---- result files ----------------------------------------------------------------------------------------------------


def test_results_are_found_by_folder_and_an_absent_folder_holds_none(tmp_path: Path) -> None:
    write_run(tmp_path, "b/deep", result())
    write_run(tmp_path, "a", result())
    (tmp_path / "unfinished" / "rows").mkdir(parents=True)
    assert [run.name for run in read_results(tmp_path)] == ["a", "b/deep"]
    assert [run.name for run in read_results(tmp_path / "a")] == ["a"]
    assert read_results(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"task": None}, "key 'task'"),
        ({"world": "moon"}, "world 'moon'"),
        ({"status": "fine"}, "status 'fine'"),
        ({"metrics": {}}, "exactly one headline"),
        ({"metrics": {"a": metric(1.0), "b": metric(2.0)}}, "exactly one headline"),
        ({"metrics": {"a": {"value": 1.0}}}, r"metrics\['a'\]: key 'unit' is missing"),
        ({"metrics": {"a": metric(1.0, unit="points")}}, "neither percent nor fraction"),
        ({"metrics": {"a": metric(1.0, ci95=[2.0, 1.0])}}, r"is not \[low, high\]"),
        ({"metrics": {"a": metric(1.0, ci95=["1", "2"])}}, r"ci95\[0\]' holds '1' of another kind"),
        ({"metrics": {"a": metric(1e999)}}, "Infinity"),
        ({"metrics": {"a": metric(10**400)}}, "not a finite number"),
        ({"metrics": {"a": metric(1.0, ci95=[-(10**400), 1])}}, "not a finite number"),
        ({"metrics": {"a": metric(1.0, decimals=-1)}}, "decimals -1"),
        ({"metrics": {"a": metric(1.0, decimals=10**9)}}, "decimals 1000000000"),
        ({"chance": 10**400}, "chance is not a finite number"),
        ({"model": {**result()["model"], "params": 10**400}}, "params 1000"),
        ({"metrics": {"a": metric(True)}}, "another kind"),
        ({"model": {"preset": "base"}}, "model: key 'checkpoint' is missing"),
        ({"subset": {}}, "subset says neither limit nor estimate"),
        ({"data": {"counts": {}}}, "data: key 'ids' is missing"),
        ({"data": {"counts": {"images": "20"}, "ids": "other"}}, "holds '20' of another kind"),
    ],
)
def test_a_damaged_result_is_one_line_that_names_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    write_run(tmp_path, "r", {**result(), **change})
    with pytest.raises(BenchError, match=message) as caught:
        read_results(tmp_path)
    assert str(tmp_path / "r" / "result.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": NaN}'])
def test_a_result_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(BenchError, match=r"result\.json"):
        read_results(tmp_path)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_a_measured_row_stands_beside_the_published_rows_of_its_task(published: list[PublishedValue]) -> None:
    table = build_table([retrieval_run(tr=79.14, ir=62.5)], published)
    section = table.sections[0]
    row = next(row for row in section.rows if row.measured)
    assert (section.task, section.split, section.regime) == ("coco-retrieval", "test", "fine-tuned")
    assert row.verdicts["TR@1"].text == "reproduces 79.1"
    assert row.verdicts["IR@1"].text == "differs by +1.10 from 61.4"
    assert {"BEiT-3", "BLIP"} <= {r.name for r in section.rows if not r.measured}
    assert {s.task for s in table.sections} == {"coco-retrieval"}


def test_metrics_of_a_view_have_a_table_of_their_own(published: list[PublishedValue]) -> None:
    view = published_names()["coco-retrieval"].views["false negatives"]
    annotated = {
        name: metric(20.0 + n, headline=False, ci95=[19.0 + n, 21.0 + n]) for n, name in enumerate(view.metrics)
    }
    model = {**released("ViT-L-14.openai"), "family": "openclip", "protocol": "dual encoder"}
    content = result(
        "coco-retrieval", "test", model, metrics=retrieval_metrics(56.3, 36.5) | annotated, setting="zero-shot"
    )
    bare = Run("bare", {**content, "metrics": retrieval_metrics()})
    table = build_table([Run("clip", content), bare], published)
    usual, own = (s for s in table.sections if s.regime == "zero-shot")
    assert (usual.view, own.view, own.title) == ("", "false negatives", f"{usual.title}: false negatives")
    assert own.metrics == list(view.metrics)
    assert not set(own.metrics) & {*usual.metrics, *(name for row in usual.rows for name in row.cells)}
    assert [(row.measured, row.variant) for row in own.rows] == [(False, "ViT-L-14.openai"), (True, "ViT-L-14.openai")]
    measured = own.rows[1]
    assert measured.score == pytest.approx((20 + 23) / 2)
    assert measured.half_width == pytest.approx(1.0)
    assert measured.verdicts["eccv/TR-mAP@R"].reference.value == 23.99
    assert [row.run for row in usual.rows if row.measured] == ["bare", "clip"]
    lines = [line for line in to_csv(table).splitlines() if "run clip" in line]
    assert len(lines) == len(content["metrics"])
    page = to_html(table)
    ids = re.findall(r'<section id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert own.title in page
    assert len(profiles_of(build_table([Run("clip", content)], published))) == 0  # one task, though two tables


def test_rows_are_ordered_by_score_and_ranked_among_all_published_rows(published: list[PublishedValue]) -> None:
    few = build_table([retrieval_run()], published).sections[0]
    every = build_table([retrieval_run()], published, systems=["all"]).sections[0]
    scores = [row.score for row in every.rows if row.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert few.hidden + len(few.rows) == len(every.rows)
    rank = {row.variant: row.rank for row in every.rows if row.measured}
    assert rank == {row.variant: row.rank for row in few.rows if row.measured}


def test_a_measured_row_and_the_published_row_that_it_reproduces_share_a_rank(published: list[PublishedValue]) -> None:
    rows = build_table([retrieval_run()], published).sections[0].rows
    same = [row for row in rows if row.variant == RETRIEVAL]
    assert [row.measured for row in same] == [True, False]
    assert same[0].rank == same[1].rank


def test_mean_recall_of_published_rows_is_their_six_recalls(published: list[PublishedValue]) -> None:
    rows = build_table([], published, tasks=["flickr30k"]).sections[0].rows
    giant = next(row for row in rows if row.variant.startswith("giant") and row.cells["TR@1"].value == 98.0)
    assert giant.cells["mean_recall"].value == pytest.approx((98.0 + 100 + 100 + 90.3 + 98.7 + 99.5) / 6)
    assert giant.cells["mean_recall"].text.endswith("*")
    base = next(row for row in rows if row.variant == "beit3_base_patch16_384_f30k_retrieval")
    assert "mean_recall" not in base.cells


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"world": "tiny"}, "tiny world"),
        ({"subset": {"limit": 8}}, "--limit 8"),
        ({"world": "tiny", "subset": {"limit": 8}}, "tiny world, --limit 8"),
    ],
)
def test_tiny_and_limited_rows_never_stand_beside_published_ones(
    published: list[PublishedValue], change: dict, why: str
) -> None:
    table = build_table([retrieval_run(chance=0.5, **change)], published)
    assert not any(row.measured for section in table.sections for row in section.rows)
    assert [(item.why, item.headline, item.row.chance) for item in table.apart] == [(why, "mean_recall", 0.5)]
    assert table.apart[0].row.verdicts["TR@1"].kind == "no published value"
    text = to_markdown(table)
    assert text.index("## Not comparable") > text.index("Karpathy 5K")


@pytest.mark.parametrize("task", ["ade20k-seg", "another"])
def test_metrics_of_hundreds_of_classes_stay_out_of_the_tables_to_read(task: str) -> None:
    classes = {f"IoU/class {c}": metric(0.5, unit="fraction", headline=False) for c in range(150)}
    declared = {"mIoU": metric(0.5, unit="fraction"), "mAcc": metric(0.6, unit="fraction", headline=False)}
    run = Run("r", result(task, "val", metrics=declared | classes, world="tiny"))  # type: ignore[arg-type]
    table = build_table([run], [])
    assert table.apart[0].also[0] == "mAcc"
    for form in (to_markdown, to_html, to_latex):
        assert "class 149" not in form(table)
    assert to_csv(table).count("class 149") == 1
    assert '"IoU/class 149"' in to_json(table)


def test_fractions_are_shown_times_100_with_the_paper_s_rounding(published: list[PublishedValue]) -> None:
    content = result(
        "imagenet-linear",
        "val",
        released("beit3_base_patch16_224_in1k"),
        metrics={"top1": metric(0.85372, unit="fraction", ci95=[0.851, 0.857])},
        chance=0.001,
    )
    table = build_table([Run("in1k", content)], published)
    row = next(row for row in table.sections[0].rows if row.measured)
    assert (row.cells["top1"].text, row.cells["top1"].low, row.chance) == ("85.4", pytest.approx(85.1), 0.1)
    assert row.verdicts["top1"].kind == "reproduces"
    assert "85.4 [85.1, 85.7]" in to_markdown(table)


def test_zero_shot_and_fine_tuned_rows_have_tables_of_their_own(published: list[PublishedValue]) -> None:
    itc = Run(
        "zs",
        result(
            "flickr30k",
            "test",
            released("beit3_large_itc_patch16_224"),
            metrics=retrieval_metrics(90.7, 78.0),
            setting="zero-shot",
        ),
    )
    table = build_table([itc], published, setting="zero-shot")
    assert [section.regime for section in table.sections] == ["zero-shot"]
    row = next(row for row in table.sections[0].rows if row.measured)
    assert row.verdicts["TR@1"].text == "reproduces 90.7 (third-party measurement)"
    assert "ALBEF" not in {
        r.name for r in build_table([itc], published, systems=["all"]).sections[1].rows if not r.measured
    }


def test_a_checkpoint_tuned_on_coco_is_not_a_zero_shot_row_of_flickr30k(published: list[PublishedValue]) -> None:
    run = Run("t", result("flickr30k", "test", released(RETRIEVAL), metrics=retrieval_metrics(), setting="zero-shot"))
    table = build_table([run], published, systems=["all"])
    assert [s.regime for s in table.sections if any(r.measured for r in s.rows)] == ["transfer"]
    transfer = next(s for s in table.sections if s.regime == "transfer")
    assert {"ALBEF", "BLIP"} <= {row.name for row in transfer.rows}


def test_quotes_of_a_row_that_is_there_from_its_origin_are_left_out(published: list[PublishedValue]) -> None:
    rows = build_table([], published, tasks=["vqav2"], systems=["CoCa"]).sections[0].rows
    assert [row.cells["vqa_accuracy"].text for row in rows] == ["82.3"]
    assert rows[0].source_kind == "primary"


def test_both_scales_of_a_segmentation_model_are_one_row(published: list[PublishedValue]) -> None:
    rows = build_table([], published, tasks=["ade20k-seg"], systems=["BEiT-3"]).sections[0].rows
    assert [(r.cells["mIoU"].text, r.cells["mIoU_ms"].text) for r in rows] == [("62.0", "62.8")]


def test_no_published_value_is_lost_when_metrics_are_set_side_by_side(published: list[PublishedValue]) -> None:
    lines = published_numbers(published)
    table = build_table([], published, systems=["all"])
    named = {(task, *theirs) for task, names in published_names().items() for theirs in names.printed.values()}
    assert {line.published_id for line in lines} == {
        value.id
        for value in published
        if value.source != OVERVIEW_SOURCE
        and any(
            (task, value.task, value.metric) in named
            and value.regime in names.regimes
            and any(value.split in group for group in names.splits.values())
            for task, names in published_names().items()
        )
    }
    assert len({(line.row, line.metric) for line in lines}) == len(
        lines
    )  # what shares a row and a metric would hide another
    shown = {cell.published_id for section in table.sections for row in section.rows for cell in row.cells.values()}
    primary = {value.id for value in published if value.source_kind in SOURCE_KINDS[:3]}
    assert primary & {line.published_id for line in lines} <= shown


def test_box_and_mask_ap_of_a_detector_are_one_row(published: list[PublishedValue]) -> None:
    rows = build_table([], published, tasks=["coco-det"], systems=["ViTDet"]).sections[0].rows
    assert ("51.6", "45.9") in [(r.cells["bbox/AP"].text, r.cells["segm/AP"].text) for r in rows]


def test_weights_with_missing_tensors_say_so_in_the_table(published: list[PublishedValue]) -> None:
    content = result(model=released("beit3_base_patch16_480_vqa", allow_missing=["head.*"]))
    text = to_markdown(build_table([Run("r", content)], published))
    assert "WITHOUT the tensors head.*" in text
    assert "no published value (tensors were missing from the checkpoint)" in text


def test_a_model_of_another_family_stands_under_its_family_s_name(published: list[PublishedValue]) -> None:
    model = {"family": "albef", "preset": "base", "protocol": "re-ranked 256"}
    other = Run("albef", result("coco-retrieval", "test", model, metrics=retrieval_metrics(73.0, 56.0)))
    named = {"family": "beit3", "protocol": ""}
    first = Run("first", result("coco-retrieval", "test", released(RETRIEVAL), metrics=retrieval_metrics()))
    second = Run("second", result("coco-retrieval", "test", released(RETRIEVAL, **named), metrics=retrieval_metrics()))
    rows = {row.source: row for row in build_table([other, first, second], published).sections[0].rows if row.measured}
    assert (rows["run albef"].name, rows["run albef"].protocol) == ("albef base", "fine-tuned; re-ranked 256")
    assert rows["run first"].name == rows["run second"].name == "BEiT-3 base"
    assert rows["run first"].protocol == rows["run second"].protocol == "fine-tuned"


@pytest.mark.parametrize("form", [to_markdown, to_latex, to_html], ids=["markdown", "latex", "html"])
@pytest.mark.parametrize("world", ["real", "tiny"])
def test_rows_of_another_protocol_are_marked_where_they_are_ranked(form: Callable[[Table], str], world: str) -> None:
    def table(*protocols: str) -> str:
        runs = [Run(f"r{i}", result(model={"protocol": p}, world=world)) for i, p in enumerate(protocols)]
        return form(build_table(runs, [])).casefold().replace(",protocol,", ",")  # a csv has the column in any case

    differing = table("", "ranking 128")
    assert "protocol" in differing
    assert "ranking 128" in differing
    assert "protocol" not in table("", "")


def test_runs_without_a_score_are_listed_with_their_notes(published: list[PublishedValue]) -> None:
    content = result(status="to upload", metrics={}, notes=["upload submission/results.json"])
    table = build_table([Run("r", content)], published)
    assert table.pending == ["r: vqav2 test-dev: to upload; upload submission/results.json"]
    assert table.pending[0] in to_markdown(table)


def test_a_task_of_another_package_has_a_table_of_its_own_results(published: list[PublishedValue]) -> None:
    content = result(
        "my-task", "test", metrics={"error": metric(3.0, higher_is_better=False), "x": metric(1, headline=False)}
    )
    better = {**content, "metrics": {**content["metrics"], "error": metric(2.0, higher_is_better=False)}}
    section = build_table([Run("a", content), Run("b", better)], published).sections[0]
    assert (section.title, section.metrics) == ("my-task, test, fine-tuned", ["error", "x"])
    assert [(row.source, row.rank) for row in section.rows] == [("run b", 1), ("run a", 2)]


def test_the_table_does_not_depend_on_the_order_of_its_inputs(published: list[PublishedValue]) -> None:
    runs = [retrieval_run("a"), retrieval_run("b", tr=80.0), retrieval_run("c", world="tiny")]
    forward = build_table(runs, published, systems=["all"])
    backward = build_table(runs[::-1], published[::-1], systems=["all"])
    assert cells(forward) == cells(backward)
    assert [row.rank for row in forward.sections[0].rows] == [row.rank for row in backward.sections[0].rows]


# ---- forms -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(published: list[PublishedValue]) -> Table:
    return build_table([retrieval_run(), retrieval_run("tiny", world="tiny", chance=3.1)], published)


def test_csv_holds_every_number_at_full_precision(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    measured = [row for row in rows if row["measured"] == "1" and row["metric"] == "mean_recall"]
    assert [row["section"].split(":")[0] for row in measured] == [
        "COCO retrieval (Karpathy 5K), test, fine-tuned",
        "not comparable",
    ]
    assert (
        float(measured[0]["value"])
        == table.sections[0].rows[[r.measured for r in table.sections[0].rows].index(True)].cells["mean_recall"].value
    )
    one = next(row for row in rows if row["measured"] == "1" and row["metric"] == "TR@1")
    assert (one["verdict"], one["reference"]) == ("reproduces", "79.1")
    assert all(row["source"] for row in rows)


def test_the_csv_form_is_one_tidy_frame(table: Table) -> None:
    frame = pandas.read_csv(
        io.StringIO(to_csv(table)), keep_default_na=False, na_values={"low": [""]}, dtype={"value": str}
    )
    assert to_csv(Table([], [], [])) == ",".join(frame.columns) + "\n"
    wide = frame.query("measured == 1 and regime == 'fine-tuned'").pivot(
        index="source", columns="metric", values="value"
    )
    assert wide.loc["run coco", "TR@1"] == repr(79.1)
    assert frame["low"].notna().sum() == 14  # both runs have intervals, the published rows have none
    assert frame.loc[frame["published_id"] != "", "published_id"].is_unique


def test_the_csv_of_the_sections_is_that_of_the_table(table: Table) -> None:
    pieces = [*map(section_csv, table.sections), apart_csv(table.apart)]
    assert "".join(piece.partition("\n")[2] for piece in pieces) == to_csv(table).partition("\n")[2]


def test_json_can_be_read_back_and_holds_the_sections(table: Table) -> None:
    read = json.loads(to_json(table))
    assert read["sections"][0]["task"] == "coco-retrieval"
    assert read["apart"][0]["why"] == "tiny world"


def test_markdown_tables_have_as_many_cells_in_every_line(table: Table) -> None:
    widths: list[set[int]] = [set()]
    for line in to_markdown(table).splitlines():
        if line.startswith("|"):
            widths[-1].add(line.replace("\\|", "").count("|"))
        elif widths[-1]:
            widths.append(set())
    assert [len(width) for width in widths if width] == [1] * sum(bool(width) for width in widths)
    assert sum(bool(width) for width in widths) >= 3


def test_latex_escapes_and_balances(table: Table) -> None:
    text = to_latex(table)
    assert r"beit3\_base\_patch16\_384\_coco\_retrieval" in text
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\caption")


# ---- the verb --------------------------------------------------------------------------------------------------------


def run(*args: str) -> str:
    outcome = CliRunner().invoke(command, list(args))
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.stdout


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_suffix_says_what_is_written_and_markdown_goes_into_a_pipe(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "r", retrieval_run().result)
    text = run("--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out" / "board.md"))
    assert (tmp_path / "out" / "board.md").read_text() == text
    assert text.startswith("# Leaderboard")
    assert files_of(tmp_path / "out") == ["board.md"]


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("text", ".txt"), ("latex", ".tex"), ("json", ".json"), ("csv", ".csv"), ("html", ".html"), ("html", ".HTM")],
)
def test_every_form_is_printed_and_written(tmp_path: Path, form: str, suffix: str) -> None:
    write_run(tmp_path / "runs", "r", retrieval_run().result)
    printed = run("--runs", str(tmp_path / "runs"), "--format", form)
    run("--runs", str(tmp_path / "runs"), "--output", str(tmp_path / f"board{suffix}"))
    written = (tmp_path / f"board{suffix}").read_text()
    assert re.sub(r'href="[^"]*result.json"|beit3-bench show [^<]*', "", written) == re.sub(
        r'href="[^"]*result.json"|beit3-bench show [^<]*', "", printed
    )
    assert files_of(tmp_path) == [f"board{suffix}", "runs"]


def test_without_a_suffix_markdown_csv_and_the_format_are_written(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "r", retrieval_run().result)
    assert run("--runs", str(tmp_path / "runs"), "--format", "html", "--output", str(tmp_path / "board")) == ""
    assert files_of(tmp_path) == ["board.csv", "board.html", "board.md", "runs"]


def test_a_table_in_a_folder_of_pages_is_in_its_index_and_does_not_take_its_place(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "r", retrieval_run().result)
    (tmp_path / "site").mkdir()
    index = write_index(tmp_path / "site")
    args = ["--runs", str(tmp_path / "runs"), "--output"]
    run(*args, str(tmp_path / "site" / "board.html"))
    assert 'href="board.html"' in index.read_text()
    assert 'href="index.html"' in (tmp_path / "site" / "board.html").read_text()
    before = index.read_text()
    with pytest.raises(BenchError, match="is the index of the pages there"):
        run(*args, str(index))
    assert index.read_text() == before


def test_without_results_the_published_tables_of_all_tasks_are_shown(tmp_path: Path) -> None:
    text = run("--runs", str(tmp_path))
    assert all(read_facts(task).title in text for task in published_names())


def test_filters_choose_tasks_and_systems(tmp_path: Path) -> None:
    text = run("--runs", str(tmp_path), "--tasks", "nlvr2", "--systems", "vilt")
    assert "ViLT" in text
    assert "BEiT-3" not in text
    assert "VQAv2" not in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "nlvr"], "no task 'nlvr' in the table; did you mean 'nlvr2'"),
        (["--systems", "BLIPP"], "no system 'BLIPP' in the table; did you mean 'BLIP'"),
        (
            ["--paper-table", "1", "--format", "json"],
            "--paper-table prints and writes markdown, csv or latex, not json",
        ),
        (["--paper-table", "1", "--output", "x.html"], "markdown, csv or latex, not html"),
        (["--cost", "--output", "x.tex"], "--cost prints and writes markdown or csv, not latex"),
        (["--cost", "--paper-table", "1"], "leave one of them out"),
        (
            ["--output", "x.xlsx"],
            "x.xlsx: no table is written as .xlsx; --output takes .txt, .md, .csv, .json, .tex, .html, or no",
        ),
    ],
)
def test_unknown_names_get_a_hint(tmp_path: Path, args: list[str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        run("--runs", str(tmp_path), *args)


def test_runs_given_as_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="takes the folder"):
        run("--runs", str(tmp_path / "file"))


def test_the_paper_s_overview_has_our_columns(tmp_path: Path) -> None:
    write_run(tmp_path, "r", retrieval_run(tr=80.0, ir=62.0).result)
    write_run(tmp_path, "t", retrieval_run(tr=99.0, ir=99.0, world="tiny").result)
    rows = {
        line[0]: line[1:]
        for line in csv.reader(io.StringIO(run("--runs", str(tmp_path), "--paper-table", "1", "--format", "csv")))
    }
    assert rows["benchmark"] == ["previous best", "BEiT-3 giant", "released base", "released large", "measured base"]
    assert rows["COCO retrieval, mean R@1"] == ["72.5 (Florence)", "76.0", "70.2", "72.8", "71.0"]
    assert rows["COCO caption CIDEr"] == ["145.3 (OFA)", "147.6", "135.0", "143.2", ""]
    assert "84.3 (third party)" in rows["Flickr30K retrieval zero-shot, mean R@1"]
    assert len(rows) == 1 + len(PAPER_TABLE_1)
    assert r"\toprule" in run("--runs", str(tmp_path), "--paper-table", "1", "--format", "latex")


def test_the_paper_s_overview_has_a_column_for_every_model_that_was_measured(published: list[PublishedValue]) -> None:
    other = result("coco-retrieval", "test", {"family": "albef", "preset": "base"}, metrics=retrieval_metrics(73, 57))
    overview = build_overview([retrieval_run(tr=80.0, ir=62.0), Run("albef", other)], published)
    assert overview.header[-2:] == ["measured base", "measured albef base"]
    assert next(line for line in overview.lines if line[0] == "COCO retrieval, mean R@1")[-2:] == ["71.0", "65.0"]


def test_the_table_needs_neither_torch_nor_pandas(tmp_path: Path) -> None:
    write_run(tmp_path, "r", retrieval_run().result)
    program = (
        "import sys; from beit3_bench.harness.commands.table import command\n"
        f"[command(['--runs', {str(tmp_path)!r}, '--format', form], standalone_mode=False) for form in ('text', 'markdown', 'csv')]\n"
        "heavy = {'torch', 'timm', 'numpy', 'pandas', 'jinja2'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "COCO retrieval" in done.stdout
