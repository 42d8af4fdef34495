"""VLMo through the command line: rows that do not depend on how the work is cut, stored features, and bad input."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from exactness import assert_same_rows
from native import ROOTS, edit_json, invoke
from ranks import run_ranks
from vlmo_golden import for_answers, state, write_file

from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.vqav2 import VQAv2

TASKS = {"flickr30k": "irtr", "coco-retrieval": "irtr", "imagenet": "irtr", "vqav2": "vqa", "nlvr2": "nlvr2"}


@pytest.fixture(scope="module")
def files(native, tmp_path_factory):
    """A VLMo for each task, by task."""
    folder = tmp_path_factory.mktemp("vlmo")
    answers = len(VQAv2(native.root("vqav2")).vocabulary())
    weights = {"irtr": state("relpos", "irtr"), "vqa": for_answers(answers), "nlvr2": state("relpos", "nlvr2")}
    written = {kind: write_file(folder / f"{kind}.pt", tensors) for kind, tensors in weights.items()}
    return {task: written[kind] for task, kind in TASKS.items()}


def run(native, files, task, to, *more):
    words = ("--task", task, "--checkpoint", files[task], "--data-root", native.world / ROOTS[task], "--output", to)
    return invoke("run", *words, "--device", "cpu", "--workers", 0, *more)


def finished(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("task", TASKS)
def test_rows_and_metrics_do_not_depend_on_the_batch_size(native, files, task, tmp_path):
    results = {size: finished(native, files, task, tmp_path / str(size), "--batch-size", size) for size in (1, 3, 16)}
    one = {name: metric["value"] for name, metric in results[1]["metrics"].items()}
    for size in (3, 16):
        values = {name: metric["value"] for name, metric in results[size]["metrics"].items()}
        assert values == pytest.approx(one, abs=1e-9)
        assert_same_rows(tmp_path / str(size), tmp_path / "1")
    model = results[1]["model"]
    assert (model["family"], model["image_size"]) == ("vlmo", 40)
    assert model["protocol"] == ("classification" if task in ("vqav2", "nlvr2") else "dual encoder")
    assert results[1]["provenance"]["fingerprints"]["tokenizer"] != "none"


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_rows_are_the_same_on_several_processes(native, files, world, tmp_path):
    tasks = ("flickr30k", "vqav2", "nlvr2")
    named = ((flag, f"{task}={value}") for task in tasks for flag, value in (
        ("--checkpoint", files[task]), ("--data-root", native.root(task)),
    ))  # fmt: skip
    words = [
        "run",
        "--task",
        ",".join(tasks),
        *(word for pair in named for word in pair),
        "--device",
        "cpu",
        "--workers",
        0,
    ]
    command = [sys.executable, "-m", "beit3_bench.harness", *words, "--batch-size", 3, "--output", tmp_path / "many"]
    done = run_ranks([command] * world)
    assert [d.code for d in done] == [0] * world, [d.err for d in done]
    for task in tasks:
        finished(native, files, task, tmp_path / task)
        assert_same_rows(next((tmp_path / "many").glob(f"{task}-*")), tmp_path / task, 1)


def test_answers_differ(native, files, tmp_path):
    """The models of this file do not say one thing to all."""
    for task, key in (("vqav2", "answer"), ("nlvr2", "label")):
        finished(native, files, task, tmp_path / task)
        rows = RunStore.read(tmp_path / task).rows()
        assert len({row[key] for row in rows.values()}) > 1


def test_a_second_run_takes_its_features_from_the_store(native, files, tmp_path):
    features = ("--features", tmp_path / "features")
    first = finished(native, files, "flickr30k", tmp_path / "one", *features)
    second = finished(native, files, "flickr30k", tmp_path / "two", *features)
    rows = len(RunStore.read(tmp_path / "one").rows())
    assert (first["timing"]["samples"], first["timing"]["samples_from_store"]) == (rows, 0)
    assert (second["timing"]["samples"], second["timing"]["samples_from_store"]) == (0, rows)
    assert_same_rows(tmp_path / "one", tmp_path / "two")


def test_score_gives_what_run_gave(native, files, tmp_path):
    for task in ("vqav2", "nlvr2", "flickr30k"):
        result = finished(native, files, task, tmp_path / task)
        done = invoke("score", "--run", tmp_path / task, "--data-root", native.root(task), "--json")
        assert done.exit_code == 0, done.stderr
        scored = json.loads(done.stdout)
        for name, metric in result["metrics"].items():
            assert scored[name] == pytest.approx(metric["value"])


def test_bad_input_is_one_line(native, files, tmp_path):
    def line(task, checkpoint, *more):
        done = run(native, {task: checkpoint}, task, tmp_path / "run", *more)
        assert done.exit_code == 2
        assert not (tmp_path / "run").exists()
        assert len(done.stderr.strip().splitlines()) == 1
        return done.stderr

    alone = tmp_path / "alone" / "vqa.pt"
    alone.parent.mkdir()
    shutil.copy(files["vqav2"], alone)
    assert f"there is no {alone.parent}/vocab.txt" in line("vqav2", alone)
    assert "is no text in UTF-8" in line("vqav2", alone, "--tokenizer", native.checkpoint("flickr30k"))
    other = write_file(tmp_path / "other" / "vqa.pt", state("relpos", "vqa"))
    assert "its head has 17 answers" in line("vqav2", other)
    assert "holds the head of vqav2, nlvr2 needs" in line("nlvr2", other)
    assert "this is no VLMo checkpoint with official names" in line("nlvr2", f"vlmo:{native.checkpoint('nlvr2')}")


def test_a_long_question_is_cut_and_an_empty_one_is_answered(native, files, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(native.root("vqav2"), root)
    (questions,) = root.rglob("v2_OpenEnded_mscoco_val2014_questions.json")

    def spoil(content):
        content["questions"][0]["question"] = "what is " + "very " * 60 + "red ?"
        content["questions"][1]["question"] = " "

    edit_json(questions, spoil)
    words = ("--task", "vqav2", "--checkpoint", files["vqav2"], "--data-root", root, "--output", tmp_path / "run")
    done = invoke("run", *words, "--device", "cpu", "--workers", 0)
    assert done.exit_code == 0, done.stderr


def test_half_precision_stays_close(native, files, tmp_path):
    from beit3_bench import load

    images = sorted((native.root("flickr30k")).rglob("*.jpg"))[:4]
    exact, rounded = (load(files["flickr30k"], "flickr30k", device="cpu", dtype=dtype) for dtype in ("fp32", "bf16"))
    for items in ({"images": images}, {"texts": ["a red ball", "two blue boxes on the left", "a man"]}):
        cosine = (exact.embed(**items) * rounded.embed(**items)).sum(axis=1)
        assert (cosine > 0.99).all()
    labels = VQAv2(native.root("vqav2")).vocabulary()
    answers = load(files["vqav2"], "vqav2", device="cpu", dtype="bf16", answers=labels)
    assert (
        len(answers.answer(images, ["what is red ?", "what ?", "is it big ?", "how many boxes are on the left ?"])) == 4
    )


def test_fine_tuning_is_refused(native, files, tmp_path):
    words = (
        "--task",
        "vqav2",
        "--checkpoint",
        files["vqav2"],
        "--data-root",
        native.root("vqav2"),
        "--output",
        tmp_path / "x",
    )
    done = invoke("finetune", *words, "--device", "cpu")
    assert done.exit_code == 2
    assert "VLMo models have none at all; start from another family" in done.stderr
    assert not (tmp_path / "x").exists()


def test_images_alone_are_probed_without_a_vocabulary(native, files, tmp_path):
    alone = tmp_path / "irtr.pt"
    shutil.copy(files["flickr30k"], alone)
    words = ("--checkpoint", alone, "--data-root", native.root("imagenet"), "--device", "cpu", "--workers", 0, "--json")
    done = invoke("probe", *words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]
    done = invoke("probe", *words, "--on", "patches")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["features"] == "patches"
