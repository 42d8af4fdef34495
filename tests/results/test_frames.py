"""Runs, rows, samples and published values as data frames: what is in the folders, no more and no less."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from leaderboard_cases import metric, result, retrieval_metrics, write_run

from beit3_bench.errors import BenchError
from beit3_bench.harness.record.store import RunStore
from beit3_bench.results import frames
from beit3_bench.results.published.values import COLUMNS, load_published
from beit3_bench.tasks.scores import Scores

RELEASED = {"weight": "beit3_base_patch16_384_coco_retrieval", "image_size": 384}


def finished(folder: Path, rows: list[dict[str, Any]], samples: dict[str, dict[str, float]], content: dict) -> Path:
    """A whole run folder as `run` leaves it."""
    with RunStore.open(folder, {"task": content["task"], "fingerprints": {}}) as store:
        store.append(rows[:1])
        store.append(rows[1:])
        store.write_result(content, Scores({}, {"images": len(rows)}, samples=samples))
    return folder


@pytest.fixture
def predicted() -> list[dict[str, Any]]:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    return [
        {"id": "image-2", "embedding": vectors[0], "score": 0.5, "boxes": []},
        {"id": "image-1", "embedding": vectors[1], "score": 1, "boxes": [[1, 2]], "note": "\ud800 half a character"},
    ]


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_a_row_with_what_its_result_says(tmp_path: Path) -> None:
    made = {"dtype": "bf16", "device": "cuda:0", "time": "2026-01-01T00:00:00+00:00", "seed": 0}
    timing = {"seconds": {"read": 1.0, "total": 12.5}, "samples_per_second": 8, "peak_device_memory_bytes": None}
    content = result(
        "coco-retrieval",
        "test",
        RELEASED,
        metrics=retrieval_metrics(),
        notes=["a line", "another"],
        counts={"images": 5000, "texts": 25010},
        provenance=made,
        timing=timing,
        chance=0.1,
    )
    write_run(tmp_path, "nested/coco", content)
    frame = frames.runs(str(tmp_path))
    assert len(frame) == 1
    row = frame.iloc[0]
    expected = {
        "run": "nested/coco",
        "task": "coco-retrieval",
        "split": "test",
        "status": "scored",
        "family": "beit3",
        "model": "BEiT-3 base",
        "preset": "base",
        "checkpoint": "model.pth",
        "weight": RELEASED["weight"],
        "protocol": "",
        "image_size": 384,
        "params": 228_123_456,
        "data": "",
        "comparable": True,
        "headline": "mean_recall",
        "value": content["metrics"]["mean_recall"]["value"],
        "unit": "percent",
        "low": content["metrics"]["mean_recall"]["ci95"][0],
        "chance": 0.1,
        "counts": {"images": 5000, "texts": 25010},
        "dtype": "bf16",
        "device": "cuda:0",
        "time": made["time"],
        "seconds": 12.5,
        "samples_per_second": 8.0,
        "notes": ["a line", "another"],
    }
    assert {key: row[key] for key in expected} == expected
    assert row["subset"] is pandas.NA
    assert np.isnan([row["images_per_second"], row["peak_device_memory_bytes"]]).all()


@pytest.mark.parametrize(
    ("change", "subset", "data"),
    [
        ({"world": "tiny"}, pandas.NA, ""),
        ({"subset": {"limit": 8}}, 8, ""),
        ({"counts": {"images": 20, "texts": 100}}, pandas.NA, "other data: 20 of 5,000 images"),
    ],
)
def test_what_stands_apart_in_the_table_is_not_comparable(
    tmp_path: Path, change: dict, subset: object, data: str
) -> None:
    whole = {"metrics": retrieval_metrics(), "counts": {"images": 5000, "texts": 25010}}
    write_run(tmp_path, "r", result("coco-retrieval", "test", RELEASED, **{**whole, **change}))
    row = frames.runs(tmp_path).iloc[0]
    assert not row["comparable"]
    assert row["subset"] is subset or row["subset"] == subset
    assert row["data"].startswith(data)
    assert bool(row["data"]) == bool(data)


def test_a_model_of_another_family_and_its_protocol_are_told(tmp_path: Path) -> None:
    model = {"family": "albef", "protocol": "re-ranked 256", "preset": "flickr30k"}
    write_run(tmp_path, "r", result("flickr30k", "test", model, metrics=retrieval_metrics()))
    row = frames.runs(tmp_path).iloc[0]
    assert (row["family"], row["model"], row["protocol"]) == ("albef", "albef flickr30k", "re-ranked 256")


def test_a_run_without_a_score_has_no_headline(tmp_path: Path) -> None:
    write_run(tmp_path, "r", result(status="to upload", metrics={}))
    row = frames.runs(tmp_path).iloc[0]
    assert (row["status"], row["headline"], row["unit"]) == ("to upload", "", "")
    assert np.isnan([row["value"], row["low"], row["high"], row["chance"]]).all()
    assert frames.metrics(tmp_path).empty


def test_frames_of_no_run_have_the_columns_and_kinds_of_others(tmp_path: Path) -> None:
    write_run(tmp_path / "some", "r", result())
    for read in (frames.runs, frames.metrics):
        none = read(tmp_path / "nothing")
        assert none.empty
        assert none.dtypes.equals(read(tmp_path / "some").dtypes)


def test_a_damaged_run_is_left_out_with_a_warning_that_names_it(tmp_path: Path) -> None:
    write_run(tmp_path, "whole", result())
    folder = write_run(tmp_path, "half", result())
    (folder / "result.json").write_text('{"schema": 1')
    for read in (frames.runs, frames.metrics):
        with pytest.warns(UserWarning, match=r"half/result\.json: not a readable result file .*left out") as caught:
            assert set(read(tmp_path)["run"]) == {"whole"}
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="is a file"):
        frames.runs(tmp_path / "file")


@pytest.mark.parametrize("folder", [None, 3, ["runs"], b"runs", "a\0b"])
@pytest.mark.parametrize("read", [frames.runs, frames.metrics, frames.rows, frames.samples])
def test_what_is_no_path_is_refused(read, folder) -> None:
    with pytest.raises(BenchError, match="the folder: "):
        read(folder)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_one_line_each_in_their_own_unit(tmp_path: Path) -> None:
    top = metric(0.8537, unit="fraction", ci95=[0.851, 0.857])
    write_run(tmp_path, "b", result("imagenet-linear", "val", metrics={"top1": top}))
    write_run(tmp_path, "a", result("coco-retrieval", "test", metrics=retrieval_metrics()))
    frame = frames.metrics(tmp_path)
    assert list(frame["run"]) == ["a"] * 7 + ["b"]
    last = frame.iloc[-1]
    assert (last["metric"], last["value"], last["unit"]) == ("top1", 0.8537, "fraction")
    assert (last["low"], last["high"], last["decimals"]) == (0.851, 0.857, 1)
    assert list(frame.loc[frame["headline"], "metric"]) == ["mean_recall", "top1"]
    wide = frame.pivot(index="run", columns="metric", values="value")
    assert wide.loc["a", "TR@1"] == 79.1


def test_the_largest_numbers_that_a_result_may_hold_stay_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, "r", result(model={"params": 10**15 - 1}, metrics={"a": metric(10**299)}))
    assert frames.metrics(tmp_path)["value"].tolist() == [1e299]
    assert frames.runs(tmp_path)["params"].tolist() == [10**15 - 1]


# ---- rows and samples ------------------------------------------------------------------------------------------------


def test_rows_come_back_with_their_arrays_bit_for_bit(tmp_path: Path, predicted: list[dict[str, Any]]) -> None:
    folder = finished(tmp_path / "run", predicted, {}, result())
    frame = frames.rows(str(folder))
    assert list(frame.columns) == ["id", "embedding", "score", "boxes", "note"]
    assert list(frame["id"]) == ["image-2", "image-1"]
    for stored, row in zip(predicted, frame["embedding"], strict=True):
        assert row.dtype == np.float32
        assert np.array_equal(row, stored["embedding"])
    assert frame["score"].dtype == np.float64
    assert list(frame["boxes"]) == [[], [[1, 2]]]
    assert frame["note"].isna().tolist() == [True, False]


def test_rows_of_an_unfinished_run_can_be_read(tmp_path: Path, predicted: list[dict[str, Any]]) -> None:
    with RunStore.open(tmp_path / "run", {"fingerprints": {}}) as store:
        assert list(frames.rows(tmp_path / "run").columns) == ["id"]
        store.append(predicted)
        assert len(frames.rows(tmp_path / "run")) == 2


def test_samples_are_long_and_join_with_rows(tmp_path: Path, predicted: list[dict[str, Any]]) -> None:
    values = {"top1": {"image-1": 1.0, "image-2": 0.0}, "top5": {"image-1": 1.0}}
    folder = finished(tmp_path / "run", predicted, values, result())
    frame = frames.samples(str(folder))
    assert frame.to_dict("list") == {
        "metric": ["top1", "top1", "top5"],
        "id": ["image-1", "image-2", "image-1"],
        "value": [1.0, 0.0, 1.0],
    }
    joined = frames.rows(folder).merge(frame.query("metric == 'top1'"), on="id")
    assert joined.set_index("id")["value"].to_dict() == {"image-1": 1.0, "image-2": 0.0}


def test_a_run_without_samples_has_an_empty_frame(tmp_path: Path, predicted: list[dict[str, Any]]) -> None:
    folder = finished(tmp_path / "run", predicted, {}, result())
    assert frames.samples(folder).empty
    assert list(frames.samples(folder).columns) == ["metric", "id", "value"]


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path, predicted: list[dict[str, Any]]) -> None:
    with pytest.raises(BenchError, match="not a run folder"):
        frames.rows(tmp_path)
    with pytest.raises(BenchError, match="not finished"):
        frames.samples(tmp_path)
    folder = finished(tmp_path / "run", predicted, {}, result())
    shard = folder / "rows" / "rank-00000.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"image-1", b"image-9"))
    with pytest.raises(BenchError, match=r"rank-00000\.jsonl: damaged or edited"):
        frames.rows(folder)


# ---- published values ------------------------------------------------------------------------------------------------


def test_every_published_value_is_a_row_with_its_number(tmp_path: Path) -> None:
    frame, values = frames.published(), load_published()
    assert set(COLUMNS) <= set(frame.columns)
    assert list(frame["id"]) == [value.id for value in values]
    assert list(frame["value"]) == [value.value for value in values]
    assert list(frame["printed"]) == [value.printed for value in values]
    assert not frame.isna().any(axis=None)


# ---- what the documentation promises -----------------------------------------------------------------------------------


def test_the_examples_run_as_they_are_written(
    tmp_path: Path, predicted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("imagenet", "nlvr2"):
        values = {"top1": {"image-1": float(name == "nlvr2"), "image-2": 0.5}}
        finished(tmp_path / "results" / "runs" / name, predicted, values, result())
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(frames)
    assert outcome.failed == 0
    assert outcome.attempted >= 8


def test_importing_the_module_imports_no_pandas() -> None:
    program = "import sys, beit3_bench.results.frames; print({'pandas', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def test_frames_can_be_written_as_json_lines_and_read_back(tmp_path: Path) -> None:
    write_run(tmp_path, "r", result(notes=["x"]))
    lines = frames.runs(tmp_path).to_json(orient="records", lines=True).splitlines()
    assert json.loads(lines[0])["counts"] == {"questions": 107_394}
