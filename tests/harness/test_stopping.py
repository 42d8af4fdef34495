"""`run --until-ci`: where it stops, that nothing but the data decides it, how the number is labelled, and how a run goes on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_task
from click.testing import CliRunner
from ranks import run_ranks
from run_requests import run_request, with_settings
from toy_task import ToyAbility, ToyTask

from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.draw import Draw, part_evaluated
from beit3_bench.harness.evidence.compare import compare
from beit3_bench.harness.evidence.replay import Overrides, replay
from beit3_bench.harness.evidence.rescore import intervals_again, rescore
from beit3_bench.harness.leaderboard.board import build_table
from beit3_bench.harness.pages.opened import open_run
from beit3_bench.harness.progress import Lines, Reporting
from beit3_bench.harness.record.results import Run, read_result
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.harness.stopping import Looks
from beit3_bench.results.frames import runs
from beit3_bench.tasks.contract import Example, Split
from beit3_bench.tasks.imagenet import ImageNet, text_examples
from beit3_bench.tasks.own.questions import OwnQuestions
from beit3_bench.tasks.registry import get_task as builtin_task

SIZES = (1, 2, 3)
CLUSTERS = 500


def write_data(root: Path) -> Path:
    """500 clusters of 1 to 3 numbers; with a bias of 0.2, the model is wrong about a fifth of them."""
    root.mkdir()
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (CLUSTERS, max(SIZES))).tolist()
    letters = "abcdefghijklmnopqrstuvwxyz"
    records = [
        {"id": f"{letters[c // 26]}{letters[c % 26]}{n}", "value": values[c][n]}
        for c in range(CLUSTERS)
        for n in range(SIZES[c % len(SIZES)])
    ]
    (root / "toy.json").write_text(json.dumps(records))
    (root / "toy.pth").write_bytes(b"weights")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_task.register(monkeypatch.setattr)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def run_words(data):
    return ["run", "--task", "toy", "--checkpoint", data / "toy.pth", "--data-root", data]


@pytest.fixture
def request_(data, tmp_path):
    return run_request("toy", data / "toy.pth", data, output=tmp_path / "run", until_ci=10, options={"bias": "0.2"},
                       batch_size=32, reporting=Reporting("none"))  # fmt: skip


def estimate_of(outcome) -> dict:
    return outcome.result["subset"]["estimate"]


def headline_of(result) -> tuple[float, list[float]]:
    metric = result["metrics"]["accuracy"]
    return metric["value"], metric["ci95"]


# ---- stopping -----------------------------------------------------------------------------------------------------------


def test_a_run_stops_at_the_first_look_whose_interval_is_narrow_enough(request_, data):
    outcome = run_task(request_, ToyTask)
    estimate, (value, (low, high)) = estimate_of(outcome), headline_of(outcome.result)
    assert 100 * (high - low) < 10
    assert low < value < high
    rows = RunStore.read(outcome.folder).rows()
    assert len(rows) == estimate["examples"] < estimate["of_examples"]
    draw = Draw.of(task := ToyTask(data), task.read("test"), 0)
    at = draw.looks.index(estimate["clusters"])
    drawn = {name[:2] for name in rows}
    assert drawn == set(draw.clusters[: draw.looks[at]])
    looks = Looks(task, draw, RunStore.read(outcome.folder))
    widths = [100 * (high - low) for low, high in (looks.look(n) for n in draw.looks[: at + 1])]
    assert widths[-1] == pytest.approx(100 * (high - low))
    assert min(widths[:-1]) >= 10


def test_whole_clusters_are_drawn_and_the_estimate_is_theirs(request_, data):
    outcome = run_task(request_, ToyTask)
    split = ToyTask(data).read("test")
    sizes = {name: sum(e.cluster == name for e in split.examples) for name in {e.cluster for e in split.examples}}
    rows = RunStore.read(outcome.folder).rows()
    for name in {row[:2] for row in rows}:
        assert sum(row[:2] == name for row in rows) == sizes[name]
    right = [rows[e.id]["positive"] == e.target for e in split.examples if e.id in rows]
    assert headline_of(outcome.result)[0] == np.mean(right)
    assert outcome.result["counts"] == {"numbers": len(rows)}


def test_the_order_is_random_and_the_seed_s(data):
    task = ToyTask(data)
    split = task.read("test")
    orders = [Draw.of(task, split, seed).clusters for seed in (0, 0, 1)]
    turned = Draw.of(task, split.of(split.examples[::-1]), 0).clusters
    assert orders[0] == orders[1] == turned
    assert orders[0] != orders[2]
    ranks = [sorted(orders[0]).index(name) for name in orders[0]]
    assert abs(np.corrcoef(ranks, range(CLUSTERS))[0, 1]) < 0.15


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_do_not_move_the_stop(request_, tmp_path, size):
    expected = run_task(request_, ToyTask).result
    other = run_task(with_settings(request_, batch_size=size, output=tmp_path / "other"), ToyTask).result
    assert (other["subset"], other["metrics"]) == (expected["subset"], expected["metrics"])


def test_processes_do_not_move_the_stop(request_, tmp_path, data):
    expected = run_task(request_, ToyTask).result
    words = [
        sys.executable,
        toy_task.__file__,
        *run_words(data),
    ]
    words += ["--workers", 0, "--device", "cpu", "--batch-size", 5, "-o", "bias=0.2", "--output", tmp_path / "two"]
    finished = run_ranks([[*words, "--until-ci", 10, "--json"]] * 2)
    assert [f.code for f in finished] == [0, 0], [f.err for f in finished]
    result = json.loads(finished[0].out)
    assert (result["subset"], result["metrics"]) == (expected["subset"], expected["metrics"])
    assert finished[1].out == ""


def test_a_run_that_was_killed_stops_where_it_would_have(request_, tmp_path, monkeypatch):
    expected = run_task(request_, ToyTask).result
    predict, left = ToyAbility.predict, [4]

    def dying(self, batch):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return predict(self, batch)

    again = with_settings(request_, output=tmp_path / "killed", batch_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(ToyAbility, "predict", dying)
        with pytest.raises(KeyboardInterrupt):
            run_task(again, ToyTask)
    assert RunStore.read(tmp_path / "killed").done()
    result = run_task(again, ToyTask).result
    assert result["timing"]["resumed_samples"] > 0
    assert (result["subset"], result["metrics"]) == (expected["subset"], expected["metrics"])


def test_rows_of_another_order_do_not_count(request_, tmp_path):
    """A run over the whole split was killed: its rows are used where they are drawn, and not scored where they are not."""
    expected = run_task(request_, ToyTask).result
    whole = with_settings(request_, output=tmp_path / "whole", until_ci=None)
    run_task(whole, ToyTask)
    (tmp_path / "whole" / "result.json").unlink()
    outcome = run_task(with_settings(whole, until_ci=10), ToyTask)
    assert outcome.result["timing"]["batch_size"] == 32
    assert (outcome.result["subset"], outcome.result["metrics"]) == (expected["subset"], expected["metrics"])
    assert rescore(outcome.folder, request_.data_root)[0].metrics["accuracy"] == headline_of(expected)[0]


# ---- going on -----------------------------------------------------------------------------------------------------------


def counting(monkeypatch) -> list[int]:
    asked: list[int] = []
    predict = ToyAbility.predict
    monkeypatch.setattr(
        ToyAbility, "predict", lambda self, batch: asked.append(len(batch["values"])) or predict(self, batch)
    )
    return asked


def test_without_the_flag_the_run_goes_on_to_the_whole_split(request_, tmp_path, monkeypatch):
    alone = run_task(with_settings(request_, until_ci=None, output=tmp_path / "alone"), ToyTask).result
    first = estimate_of(run_task(request_, ToyTask))
    asked = counting(monkeypatch)
    outcome = run_task(with_settings(request_, until_ci=None), ToyTask)
    assert not outcome.was_finished
    assert outcome.result["subset"] is None
    assert outcome.result["metrics"] == alone["metrics"]
    assert outcome.result["timing"]["resumed_samples"] == first["examples"]
    assert sum(asked) - first["of_examples"] + first["examples"] <= 1  # the sample whose operations are counted
    again = run_task(request_, ToyTask)  # and a whole run answers every width
    assert again.was_finished
    assert again.result["subset"] is None


def test_another_width_goes_on_or_is_there_already(request_, monkeypatch):
    first = run_task(request_, ToyTask)
    asked = counting(monkeypatch)
    wider = run_task(with_settings(request_, until_ci=20), ToyTask)
    assert (wider.was_finished, wider.result) == (True, first.result)
    assert not asked
    narrower = run_task(with_settings(request_, until_ci=6), ToyTask)
    assert estimate_of(narrower)["examples"] > estimate_of(first)["examples"]
    low, high = headline_of(narrower.result)[1]
    assert 100 * (high - low) < 6


def test_the_default_folder_is_that_of_the_whole_run(request_):
    first = run_task(with_settings(request_, output=None), ToyTask)
    second = run_task(with_settings(request_, output=None, until_ci=None), ToyTask)
    assert first.folder == second.folder
    assert second.result["subset"] is None


def test_a_width_that_is_never_reached_runs_the_whole_split(request_, capsys):
    outcome = run_task(with_settings(request_, until_ci=0.01), ToyTask)
    assert outcome.result["subset"] is None
    assert "not narrower than 0.01 points before the end of the split" in capsys.readouterr().err


def test_few_clusters_are_told(tmp_path, capsys):
    data = toy_task.write_toy_data(tmp_path / "few")
    outcome = run_task(run_request("toy", data / "toy.pth", data, until_ci=50), ToyTask)
    assert outcome.result["subset"] is None
    assert "4 clusters (such as the questions of an image) are too few" in capsys.readouterr().err


# ---- how it is labelled ---------------------------------------------------------------------------------------------------


@pytest.fixture
def estimated(request_):
    return run_task(request_, ToyTask)


def label(outcome) -> str:
    estimate = estimate_of(outcome)
    return f"estimate, {estimate['examples']:,} of {estimate['of_examples']:,} examples"


def test_the_row_stands_apart_with_its_n(estimated):
    table = build_table([Run("x", read_result(estimated.folder / "result.json"))], [], ["toy"])
    assert not table.sections
    assert [row.why for row in table.apart] == [label(estimated)]
    assert table.apart[0].row.rank is None


def test_result_list_page_and_frame_say_so(estimated, data, tmp_path, monkeypatch):
    monkeypatch.setattr("beit3_bench.harness.pages.opened.get_task", lambda name: ToyTask)
    shown = CliRunner().invoke(main, ["runs", "--runs", str(tmp_path)])
    assert label(estimated) in shown.stdout
    page = CliRunner().invoke(main, ["show", str(estimated.folder), "--data-root", str(data), "--output", "page.html"])
    assert page.exit_code == 0, page.output
    assert label(estimated) in Path("page.html").read_text()
    frame = runs(tmp_path).iloc[0]
    assert (frame["subset"], frame["estimate"], frame["comparable"]) == (
        estimate_of(estimated)["examples"],
        True,
        False,
    )
    opened = open_run(estimated.folder, data)
    assert (len(opened.samples.ids), opened.warnings) == (estimate_of(estimated)["examples"], [])


def test_the_command_prints_the_label_and_json_holds_the_estimate(data, tmp_path):
    words = [
        *run_words(data),
        "--until-ci",
        "10",
        "-o",
        "bias=0.2",
    ]
    words = [str(word) for word in [*words, "--workers", 0, "--device", "cpu", "--output", tmp_path / "run"]]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0, said.output
    told = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)["subset"]["estimate"]
    assert f"estimate, {told['examples']:,} of 999 examples" in said.stdout
    assert "the same command without --until-ci goes on to the whole split" in said.stdout
    assert (told["width"], told["of_clusters"], told["seed"]) == (10, CLUSTERS, 0)


def test_only_ratios_have_an_interval(estimated):
    metrics = estimated.result["metrics"]
    assert metrics["accuracy/kind/x"]["ci95"] is None
    assert metrics["accuracy"]["ci95"] is not None


def test_the_width_is_shown_as_the_run_goes(request_, capsys):
    run_task(with_settings(request_, reporting=Reporting("lines", interval=0.0), batch_size=8), ToyTask)
    lines = capsys.readouterr().err.splitlines()
    assert any("width " in line and " of 10" in line for line in lines)
    meter = Lines("x", "sample", 10, interval=0.0)
    meter.show(width="2.0 of 1")
    meter.advance(1)
    assert "width 2.0 of 1" in capsys.readouterr().err


def test_an_estimate_is_neither_compared_nor_replayed(estimated, request_, tmp_path):
    other = run_task(with_settings(request_, output=tmp_path / "b"), ToyTask)
    with pytest.raises(BenchError, match=r"is an estimate, .* is not compared; give its command without --until-ci"):
        compare(estimated.folder, other.folder)
    with pytest.raises(BenchError, match="is not replayed"):
        replay(estimated.folder, overrides=Overrides(request_.checkpoint, request_.data_root))


def test_scoring_the_folder_again_gives_the_same(estimated, data):
    scores, task = rescore(estimated.folder, data)
    value, bounds = headline_of(estimated.result)
    assert scores.metrics["accuracy"] == value
    assert list(intervals_again(estimated.folder, task, scores)["accuracy"]) == bounds
    assert scores.notes[0].startswith("estimate: --until-ci 10 stopped after")


def test_other_data_than_was_drawn_from_is_refused(estimated, data):
    task = ToyTask(data)
    split = task.read("test")
    with pytest.raises(BenchError, match="has other samples than those that the run drew from"):
        part_evaluated(estimated.result, task, split.of(split.examples[1:]))


def test_a_result_that_is_both_a_beginning_and_an_estimate_is_refused(estimated):
    path = estimated.folder / "result.json"
    path.write_text(json.dumps({**estimated.result, "subset": {**estimated.result["subset"], "limit": 3}}))
    with pytest.raises(BenchError, match="subset says neither limit nor estimate, or both"):
        read_result(path)


# ---- what cannot stop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 5}, "--limit takes its first examples; leave out one of them"),
        ({"until_ci": math.nan}, "give a width in points"),
        ({"until_ci": 0}, "give a width in points"),
        ({"until_ci": 101}, "give a width in points"),
        ({"split": "hidden"}, "the truth of split 'hidden' of task toy is not there"),
    ],
)
def test_what_cannot_be_asked_for(request_, change, said):
    with pytest.raises(BenchError, match=said):
        run_task(with_settings(request_, **change), ToyTask)
    assert not request_.output.exists()


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("coco-caption", "its headline CIDEr weighs words"),
        ("coco-det", "bbox/AP ranks the detections of all images"),
        ("ade20k-seg", "mIoU is a mean over classes"),
        ("coco-retrieval", "mean_recall looks for each sample among all others"),
    ],
)
def test_tasks_that_cannot_stop_say_why(task, why, data):
    request = run_request(task, data / "toy.pth", data, until_ci=1)
    with pytest.raises(BenchError, match=f"task {task} cannot stop early, .*{why}.*; leave it out"):
        run_task(request, builtin_task(task))


# ---- tasks with more than samples -----------------------------------------------------------------------------------------


def test_class_texts_are_in_every_part_and_images_are_drawn(tmp_path):
    random = np.random.default_rng(0)
    texts = text_examples({name: [f"a {name}", f"the {name}"] for name in ("n1", "n2", "n3")})
    images = [Example(f"image:{n}", (f"{n}.jpg",), cluster=str(n), target=n % 3, kind="image") for n in range(300)]
    task, split = ImageNet(tmp_path), Split("val", (*images, *texts))
    draw = Draw.of(task, split, 0)
    assert (len(draw.clusters), len(draw.always)) == (300, 6)
    assert [e.id for e in draw.part(60).examples if e.kind == "text"] == [e.id for e in texts]
    assert draw.estimate(60, 1.0)["of_examples"] == 300
    corners = np.eye(3, dtype=np.float32)
    with RunStore.open(tmp_path / "run", {"fingerprints": {}}) as store:
        store.append({"id": e.id, "embedding": corners[e.target]} for e in texts)
        vectors = corners[np.arange(300) % 3] + random.normal(0, 0.6, (300, 3)).astype(np.float32)
        store.append({"id": e.id, "embedding": v} for e, v in zip(images, vectors, strict=True))
        looks = Looks(task, draw, store)
        low, high = [looks.look(n) for n in draw.looks[:5]][-1]
    part = draw.part(draw.looks[4])
    drawn = [int(e.id.partition(":")[2]) for e in part.examples if e.kind == "image"]
    right = np.mean([vectors[n].argmax() == n % 3 for n in drawn])
    assert len(drawn) == draw.looks[4]
    assert low < right < high < 1


def test_the_headline_of_own_questions_is_that_of_the_whole_file(tmp_path):
    task = OwnQuestions(tmp_path / "own.jsonl")
    ten, one = (Example(str(n), target=["yes"] * n) for n in (10, 1))
    assert task.headline(Split("own", (ten,))).name == "vqa_accuracy"
    assert task.headline(Split("own", (ten, one))).name == "exact_match"
