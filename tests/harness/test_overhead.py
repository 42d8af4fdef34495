"""`bench --overhead`: every case at a tiny size, through the code of a run, and its report whole."""

from __future__ import annotations

import json

import pytest
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.harness.bench.overhead import PARTS, Recipe, make, measure, measure_overhead, recipes, table
from beit3_bench.harness.reading import prepare
from beit3_bench.harness.record.rows import encode_row
from beit3_bench.harness.record.shards import committed
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.madeup import PLACES, made_up
from beit3_bench.tasks.registry import get_task

HEADLINES = {
    "vqav2": ("vqa_accuracy", 20.0, 90.0),
    "coco-retrieval": ("mean_recall", 50.0, 100.0),
    "nocaps": ("CIDEr", 0.05, 10.0),
    "imagenet": ("top1", 0.3, 1.0),
    "ade20k-seg": ("mIoU", 0.2, 0.95),
    "coco-det": ("bbox/AP", 0.2, 0.9),
}
"""Metric, and between what it lies: a made-up model that is neither blind nor perfect, so that scoring has something to do."""


@pytest.mark.parametrize("task", list(PLACES))
def test_a_made_up_set_is_read_by_its_task_and_scored_between_chance_and_perfection(task, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java: METEOR and SPICE take seconds to start
    make(Recipe(task, 60), tmp_path)
    reader = get_task(task)(tmp_path / "data")
    split = prepare(reader, None).split
    kinds = {example.kind for example in split.examples}
    assert sum(bool(e.images) for e in split.examples) == 60
    rows = RunStore.read(tmp_path / "run").rows()
    assert set(rows) == {example.id for example in split.examples}
    scores = reader.score(rows, split)
    metric, low, high = HEADLINES[task]
    assert low < scores.metrics[metric] < high
    assert kinds <= {"image", "text", "pair"}


@pytest.mark.parametrize("task", ["coco-retrieval", "ade20k-seg"])
def test_a_case_has_all_parts_and_their_sum(task, tmp_path):
    make(Recipe(task, 12), tmp_path)
    row = measure(Recipe(task, 12), tmp_path)
    assert list(row["parts"]) == list(row["cpu_parts"]) == list(PARTS)
    assert row["seconds"] == pytest.approx(sum(row["parts"].values()))
    assert row["parts"]["reading"] > 0
    assert row["parts"]["scoring"] > 0
    assert (row["parts"]["tokenising"] > 0) == (task == "coco-retrieval")
    assert row["peak_memory_bytes"] > 2**20
    assert (row["task"], row["samples"]) == (task, 12)
    assert [len(line) for line in table([row])] == [5 + len(PARTS)] * 2


def test_the_report_of_the_verb_is_json_with_processes_of_their_own(tmp_path):
    words = ["bench", "--overhead", "--task", "ade20k-seg,coco-det", "--samples", 6, "--keep", tmp_path / "made"]
    outcome = invoke(*words, "--json", "--output", tmp_path / "perf" / "overhead.json")
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.stdout)
    assert [case["task"] for case in report["cases"]] == ["ade20k-seg", "coco-det"]
    for case in report["cases"]:
        assert set(case) >= {"task", "seconds", "peak_memory_bytes", "parts"}
        assert case["seconds"] > 0
        assert case["peak_memory_bytes"] > 2**24  # of the measured process
    assert json.loads((tmp_path / "perf" / "overhead.json").read_text()) == report
    assert (tmp_path / "made" / "coco-det-6" / "made.json").exists()


def test_kept_data_is_used_again_and_foreign_files_stay(tmp_path):
    case = Recipe("ade20k-seg", 3)
    make(case, tmp_path / "a")
    shard = tmp_path / "a" / "run" / "rows" / "rank-00000.jsonl"
    before = shard.stat().st_mtime_ns
    make(case, tmp_path / "a")
    assert shard.stat().st_mtime_ns == before
    make(Recipe("ade20k-seg", 4), tmp_path / "a")  # another size: made anew
    assert len(committed(shard)[0]) == 4
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(BenchError, match=r"holds thesis\.tex, which is no made-up data"):
        make(case, tmp_path / "b")
    assert (tmp_path / "b" / "thesis.tex").read_text() == "mine"


def test_made_up_data_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        make(Recipe("coco-retrieval", 8), tmp_path / name)
    of_a, of_b = (RunStore.read(tmp_path / name / "run").rows() for name in ("a", "b"))
    assert [encode_row(row) for row in of_a.values()] == [encode_row(row) for row in of_b.values()]
    files = [tmp_path / name / "data" / "dataset_coco.json" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_sizes_are_those_of_the_released_sets():
    assert {case.task: case.samples for case in recipes(None, None)} == {
        "vqav2": 214_354,
        "coco-retrieval": 5_000,
        "nocaps": 4_500,
        "imagenet": 50_000,
        "ade20k-seg": 2_000,
        "coco-det": 5_000,
    }
    assert made_up("vqav2").samples == recipes(["vqav2"], None)[0].samples
    assert recipes(["vqav2"], 7) == [Recipe("vqav2", 7)]


def test_what_a_case_raises_in_its_process_is_told(tmp_path):
    (tmp_path / "ade20k-seg-3").mkdir()
    (tmp_path / "ade20k-seg-3" / "other").write_text("")
    with pytest.raises(BenchError, match="holds other, which is no made-up data"):
        measure_overhead([Recipe("ade20k-seg", 3)], tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--overhead", "--task", "vqa2"], "'vqa2'"),
        (["--overhead", "--scale"], "leave one of them out"),
        (["--keep", "made"], "give both, or neither"),
    ],
)
def test_words_that_do_not_go_together_are_refused_in_one_line(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = invoke("bench", *words)
    assert outcome.exit_code == 2
    assert told in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
