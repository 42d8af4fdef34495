"""`beit3-bench compare`: what is refused, and what the numbers of a paired comparison must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_task
from click.testing import CliRunner
from native import invoke, run_words
from run_requests import run_request
from toy_task import ToyTask, write_toy_data

from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.evidence.compare import (
    BOOTSTRAP,
    MCNEMAR,
    SHARED_CLUSTERS,
    MetricComparison,
    compare,
    verdict,
)
from beit3_bench.harness.evidence.flips import readable
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.registry import get_task
from beit3_bench.tasks.scores import ClusterTable, Scores


class Graded(ToyTask):
    """Every second positive number is missed where ``bias`` is not 0; values per sample under the metric's name."""

    alone = True

    def rows(self, examples, values, split, ahead):
        rows = super().rows(examples, values, split, ahead)
        for row in rows:
            if self.options.bias and int(row["id"]) % 4 == 0:
                row["positive"] = not row["positive"]
            row["said"] = "up" if row["positive"] else "down"
        return rows

    def score(self, rows, split):
        examples = split.examples
        right = np.array([rows[e.id]["positive"] == e.target for e in examples], dtype=float)
        clusters = [e.id if self.alone else e.cluster for e in examples]
        table = ClusterTable.collect(clusters, {"right": right, "n": np.ones(len(right))})
        samples = {"accuracy": dict(zip([e.id for e in examples], right.tolist(), strict=True))}
        return Scores({"accuracy": float(right.mean())}, {"numbers": len(examples)}, table, samples=samples)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Make a run of the graded toy: ``toy(name, bias=..., ...) -> folder``."""
    toy_task.register(monkeypatch.setattr)
    monkeypatch.setitem(toy_task.TASKS, "toy", Graded)
    monkeypatch.setattr(Graded, "alone", True)

    def make(name, bias="0", data="data", count=40, **request):
        root = tmp_path / data
        if not root.exists():
            write_toy_data(root, count)
        options = {"bias": bias}
        asked = run_request(
            "toy", root / "toy.pth", root, device="cpu", workers=0, output=tmp_path / name, options=options, **request
        )
        return run_task(asked, Graded).folder

    return make


def test_mcnemar_counts_and_effect_are_those_of_the_samples(toy):
    a, b = toy("a"), toy("b", bias="1e-9")
    comparison = compare(a, b)
    (one,) = [m for m in comparison.metrics if m.metric == "accuracy"]
    assert (one.a, one.b, one.difference) == (1.0, 0.75, pytest.approx(-0.25))
    assert (one.only_a, one.only_b, one.changed, one.test) == (10, 0, 10, MCNEMAR)
    assert one.p_value == pytest.approx(2 / 2**10)
    assert one.ci95[0] <= -0.25 <= one.ci95[1] < 0
    assert [flip.id for flip in one.flips] == [f"{i:03d}" for i in range(0, 40, 4)]
    assert one.flips[0].predicted_a == {"positive": True, "said": "up"}
    assert one.flips[0].predicted_b == {"positive": False, "said": "down"}
    assert one.notes == []
    assert verdict(one) == "A is better"
    turned = compare(b, a).metrics[0]
    assert (turned.difference, turned.only_b) == (pytest.approx(0.25), 10)
    assert turned.p_value == one.p_value
    assert verdict(turned) == "B is better"


def test_samples_that_share_a_cluster_are_marked(toy, monkeypatch):
    monkeypatch.setattr(Graded, "alone", False)
    one = compare(toy("a"), toy("b", bias="1e-9")).metrics[0]
    assert one.notes == [SHARED_CLUSTERS]
    assert one.p_value != one.p_bootstrap


def test_a_run_against_itself_does_not_differ(toy):
    one = compare(toy("a"), toy("a2")).metrics[0]
    assert (one.difference, one.ci95, one.p_value, one.changed) == (0.0, (0.0, 0.0), 1.0, 0)
    assert verdict(one) == "no difference at 5%"


def test_number_of_listed_flips_is_as_asked(toy):
    a, b = toy("a"), toy("b", bias="1e-9")
    assert [len(compare(a, b, flips=n).metrics[0].flips) for n in (0, 3, 99)] == [0, 3, 10]
    assert compare(a, b, flips=0).metrics[0].changed == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "hidden"}, r"is not scored \(to upload\)"),
        ({"limit": 8}, r"different parts of the split, all of it and its first 8 samples"),
        ({"data": "other", "count": 41}, r"different data, \w{12}\.\.\. in .*data and \w{12}\.\.\. in .*other"),
    ],
)
def test_runs_over_different_samples_are_refused_and_told_why(toy, change, message):
    a, b = toy("a"), toy("b", **change)
    with pytest.raises(BenchError, match=message):
        compare(a, b)


def test_other_task_unfinished_run_and_no_run_are_refused(toy, tmp_path):
    a, b = toy("a"), toy("b")
    content = json.loads((b / "result.json").read_text())
    (b / "result.json").write_text(json.dumps({**content, "task": "nlvr2"}))
    with pytest.raises(BenchError, match="different tasks, toy and nlvr2"):
        compare(a, b)
    (b / "result.json").unlink()
    with pytest.raises(BenchError, match="is not finished"):
        compare(a, b)
    with pytest.raises(BenchError, match="not a run folder"):
        compare(a, tmp_path)
    with pytest.raises(BenchError, match=r"'accuarcy' cannot be compared in pairs here; these can: accuracy"):
        compare(a, a, ["accuarcy"])


def test_table_that_is_not_stored_is_made_from_the_rows(toy):
    """As for AP, whose table is no sum over clusters."""
    a, b = toy("a"), toy("b", bias="1e-9")
    expected = compare(a, b, data_root=a.parent / "data").metrics
    for folder in (a, b):
        np.savez_compressed(folder / "samples.npz", cluster_ids=np.array(["000"]))
    with pytest.raises(BenchError, match=rf"beit3-bench compare {a} {b} --data-root"):
        compare(a, b)  # the card's data is not opened unasked
    assert compare(a, b, data_root=a.parent / "data").metrics == expected


def test_text_and_json_say_the_same(toy):
    a, b = toy("a"), toy("b", bias="1e-9")
    words = ["compare", str(a), str(b), "--flips", "2"]
    text = CliRunner().invoke(main, words)
    assert text.exit_code == 0
    assert "B-A  -25.00" in text.stdout
    assert "(exact McNemar)" in text.stdout
    assert "A is better" in text.stdout
    assert "10 samples changed (only A right: 10, only B right: 0)" in text.stdout
    assert "000  1 -> 0   True, up -> False, down" in text.stdout
    assert "... and 8 more" in text.stdout
    parsed = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert parsed["metrics"][0]["only_a"] == 10
    refused = CliRunner().invoke(main, ["compare", str(a), str(Path("nope"))])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"id": "7", "question_id": 7, "answer": "two"}, {"answer": "two"}),
        ({"id": "7", "label": True, "margin": 0.5}, {"label": True}),
        ({"id": "7", "top5": [3, 1, 9, 2, 4]}, {"top5": [3, 1, 9, 2, 4]}),
        ({"id": "7", "top5": np.array([3, 1])}, {"top5": [3, 1]}),
        ({"id": "7", "embedding": np.ones(3, np.float32), "counts": np.ones(150, int)}, {}),
    ],
)
def test_of_a_row_what_a_person_reads_is_shown(row, shown):
    assert readable(row) == shown


@pytest.mark.parametrize(
    ("p_value", "p_bootstrap", "difference", "higher", "words"),
    [
        (0.01, 0.2, 1.0, True, "no difference at 5%"),
        (0.01, 0.02, 1.0, False, "A is better"),
        (None, None, 1.0, True, "no difference at 5%"),
        (0.04, None, 1.0, True, "B is better"),
    ],
)
def test_verdict_needs_both_tests(p_value, p_bootstrap, difference, higher, words):
    one = MetricComparison("m", "percent", 1, higher, 1, 2, difference, None, p_value, BOOTSTRAP, p_bootstrap)
    assert verdict(one) == words


@pytest.mark.parametrize(
    ("task", "metric", "test"),
    [
        ("vqav2", "vqa_accuracy", BOOTSTRAP),
        ("nlvr2", "accuracy", MCNEMAR),
        ("imagenet-linear", "top1", MCNEMAR),
        ("coco-retrieval", "TR@1", MCNEMAR),
        ("coco-retrieval", "IR@10", MCNEMAR),
        ("coco-caption", "CIDEr", BOOTSTRAP),
    ],
)
def test_native_tasks_keep_what_a_comparison_needs(native, other, task, metric, test, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folders = []
    for name, checkpoint in (("a", native.checkpoint(task)), ("b", other(task))):
        words = run_words(native, task)
        words[words.index("--checkpoint") + 1] = checkpoint
        done = invoke(*words, "--output", tmp_path / name, *(["-o", "max_length=6"] if task == "coco-caption" else []))
        assert done.exit_code == 0, done.stderr
        folders.append(tmp_path / name)
    (one,) = compare(*folders, [metric]).metrics
    if task == "vqav2":  # questions are right by tenths, but a mini world may have only 0 and 100
        values = [v for f in folders for v in RunStore.read(f).samples()[1][metric].values()]
        test = MCNEMAR if set(values) <= {0.0, 100.0} else BOOTSTRAP
    assert one.test == test
    assert one.changed is not None
    assert one.difference == pytest.approx(one.b - one.a, abs=1e-9)
    if test == MCNEMAR:
        top = 100 if one.unit == "percent" else 1
        kept = np.load(folders[0] / "samples.npz")[f"sample/{metric}"]
        assert one.a == pytest.approx(kept.mean(), abs=1e-9)
        assert one.difference == pytest.approx(top * (one.only_b - one.only_a) / len(kept), abs=1e-9)


def two_runs(native, task, other, tmp_path, *more):
    """Run folders of a task's checkpoint and of another one."""
    for name, checkpoint in (("a", native.checkpoint(task)), ("b", other(task))):
        words = run_words(native, task)
        words[words.index("--checkpoint") + 1] = checkpoint
        done = invoke(*words, "--output", tmp_path / name, *more)
        assert done.exit_code == 0, done.stderr
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize(
    ("task", "metric"), [("vqav2", "vqa_accuracy"), ("coco-retrieval", "TR@1"), ("imagenet", "top1")]
)
def test_flips_tell_question_images_truth_and_both_answers(native, other, task, metric, tmp_path):
    folders, root = two_runs(native, task, other, tmp_path), native.root(task)
    (one,) = compare(*folders, [metric], flips=5, data_root=root).metrics
    prepared = get_task(task)(root)
    split = prepared.read(prepared.default_split)
    display = prepared.display(RunStore.read(folders[0]).rows(), split, {})
    examples = display.examples
    assert one.flips
    for flip in one.flips:
        assert flip.text == (examples[flip.id].text or "")
        assert flip.images == examples[flip.id].images
        assert flip.truth == display.truth(examples[flip.id]) != ""
        (said_a,), (said_b,) = flip.predicted_a.values(), flip.predicted_b.values()
        assert said_a
        right = said_a if flip.a > flip.b else said_b
        if task == "imagenet":
            assert (said_a == flip.truth, said_b == flip.truth) == (flip.a == 1, flip.b == 1)
        elif task == "vqav2":
            assert right in flip.truth
        else:
            assert right in flip.truth
            assert (said_a if flip.a < flip.b else said_b) not in flip.truth
    text = invoke("compare", *folders, "--metric", metric, "--flips", 1, "--data-root", root)
    assert f"      image: {one.flips[0].images[0]}" in text.stdout
    assert "\n      truth: " in text.stdout
    assert ("\n      text: " in text.stdout) == (task == "vqav2")
    bare = invoke("compare", *folders, "--metric", metric, "--flips", 1)
    assert "--data-root or --data, as of the runs, adds what was asked" in bare.stdout
    assert "truth: " not in bare.stdout


def test_flips_take_the_data_from_settings_if_it_is_that_of_the_runs(native, other, tmp_path, monkeypatch):
    folders = two_runs(native, "vqav2", other, tmp_path)
    monkeypatch.chdir(tmp_path)
    for place, told in ((native.world, True), (tmp_path, False)):
        (tmp_path / "beit3-bench.toml").write_text(f'data = "{place}"\n')
        done = invoke("compare", *folders, "--flips", 2)
        assert done.exit_code == 0, done.stderr
        assert ("\n      truth: " in done.stdout) == told
    with pytest.raises(BenchError, match="v2_OpenEnded"):
        compare(*folders, data_root=tmp_path)  # who names it, means it


def test_other_class_texts_on_the_same_images_are_compared_and_said(native, other, tmp_path):
    (tmp_path / "templates.json").write_text('["a photo of a {}."]')
    words = run_words(native, "imagenet")
    for name, more in (("a", []), ("b", ["-o", f"templates={tmp_path / 'templates.json'}"]), ("c", ["--limit", "9"])):
        assert invoke(*words, *more, "--output", tmp_path / name).exit_code == 0
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [one.metric for one in found.metrics] == ["top1", "top5"]
    assert found.notes[0].startswith("the texts of the classes differ")
    assert sum("texts of the classes" in note for note in compare(tmp_path / "a", tmp_path / "a").notes) == 0
    with pytest.raises(BenchError, match="different parts of the split"):
        compare(tmp_path / "a", tmp_path / "c")
    card = json.loads((tmp_path / "b" / "config.json").read_text())
    card["fingerprints"]["images and labels"] = "0" * 64
    (tmp_path / "b" / "config.json").write_text(json.dumps(card))
    with pytest.raises(BenchError, match="different data"):
        compare(tmp_path / "a", tmp_path / "b")


@pytest.fixture
def other(native, tmp_path):
    """A second checkpoint of a task: the first with its tensors scaled and turned."""
    import torch

    def make(task):
        content = torch.load(native.checkpoint(task), weights_only=True)
        generator = torch.Generator().manual_seed(1)
        for value in content["model"].values():
            if value.is_floating_point() and value.ndim > 1:
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.5)
        torch.save(content, tmp_path / "other.pth")
        (tmp_path / "beit3.spm").write_bytes((native.checkpoints / "beit3.spm").read_bytes())
        return tmp_path / "other.pth"

    return make


def test_the_command_compares_several_runs_with_the_first_and_plans(toy):
    a, b, c = toy("a"), toy("b", bias="1e-9"), toy("c", bias="1e-9")
    text = invoke("compare", a, b, c, "--plan", 1)
    assert text.exit_code == 0, text.output
    assert "p values of 2 comparisons, corrected (Holm)" in text.stdout
    assert "plan: accuracy: to see a difference of 1.00 (power 0.8):" in text.stdout
    content = json.loads(invoke("compare", a, b, c, "--plan", 1, "--json").stdout)
    assert len(content["comparisons"]) == len(content["holm"]["accuracy"]) == 2
    assert content["comparisons"][0]["plan"][0]["clusters"] > 0
    alone = json.loads(invoke("compare", a, b, "--json").stdout)
    assert alone["metrics"][0]["metric"] == "accuracy"
    assert "plan" not in alone
    assert invoke("compare", a, b, "--plan", 0).exit_code == 2
