"""The pages of one picture across tasks and of trainings, and a run of very many samples."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
from html_page import Parsed
from test_run_page import show, told_wrong

from beit3_bench.harness.pages.image import image_page, samples_of
from beit3_bench.harness.pages.run import run_page
from beit3_bench.harness.pages.training import training_page
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.registry import get_task

# ---- one picture across tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted", ["397133", "000000397133", "COCO_val2014_000000397133.jpg", "COCO_val2014_000000397133"]
)
def test_a_picture_is_named_by_its_number_or_its_file(wanted):
    file = "/data/val2014/COCO_val2014_000000397133.jpg"
    examples = [
        Example("image:397133", (file,), cluster="397133", kind="image"),
        Example("text:1", text="a cook", cluster="397133", kind="text"),
        Example("text:2", text="a dog", cluster="97133", kind="text"),
        Example("397133002", (file,), "who?", "397133"),
        Example("97133", ("/data/val2014/COCO_val2014_000000097133.jpg",), cluster="97133"),
    ]
    assert samples_of(wanted, {e.id: e for e in examples}) == ["image:397133", "397133002", "text:1"]


def test_one_picture_shows_what_all_tasks_measured_of_it(runs, world):
    tasks = ("coco-caption", "coco-retrieval", "coco-det")
    ids = [{e.cluster for e in get_task(t)(world / "coco").read(get_task(t).default_split).examples} for t in tasks]
    image = sorted(set.intersection(*ids))[0]
    made = image_page(image, [*map(runs, tasks), runs("nlvr2")])
    page = Parsed(made.html)
    assert len(page.all("section")) == 3
    captions = json.loads((world / "coco" / "dataset_coco.json").read_text())
    record = next(i for i in captions["images"] if str(i["cocoid"]) == image)
    assert made.cards == 1 + (1 + len(record["sentences"])) + 1
    assert all(sentence["raw"] in page.text for sentence in record["sentences"])
    assert made.warnings == [f"{runs('nlvr2')}: has no sample with this picture."]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_picture_that_no_run_has_is_one_line(runs, tmp_path):
    assert "no sample of" in told_wrong(runs("coco-caption"), "--image", "99999999", "--output", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- a training -----------------------------------------------------------------------------------------------------------------


def training(folder: Path, validations: int, task: str = "nlvr2") -> Path:
    folder.mkdir()
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", "loss", "lr", "grad_norm", "samples_per_second"])
        writer.writerows([n, n / 10, 1 / n, 1e-3 / n, "nan" if n == 3 else 2.0, 50] for n in range(1, 21))
    with open(folder / "validation.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "epoch", "accuracy", "consistency"])
        writer.writerows([20 // (validations - n), n, [0.5, 0.75, 0.625][n], 0.25] for n in range(validations))
    (folder / "config.json").write_text(
        json.dumps({"task": task, "recipe": {"lr": 1e-3, "x": "<b>"}, "notes": ["<i>note"]})
    )
    return folder


@pytest.mark.parametrize(("validations", "best"), [(1, "50.00"), (3, "75.00")])
def test_a_training_shows_its_curves_schedule_gradient_norm_and_best(validations, best, tmp_path):
    made = training_page(training(tmp_path / "t", validations))
    page = Parsed(made.html)
    titles = [
        text
        for text in page.text
        if text in ("validation", "training loss", "learning rate", "gradient norm, before clipping")
    ]
    assert len(titles) == 4
    assert made.facts["value"] == best
    assert len(page.all("tr", class_="best")) == 1
    assert len(page.all("circle")) == 2 * validations + 20 + 20 + 19 + 20  # a gradient norm is not finite
    assert "<b>" in page.text
    assert not page.all("i", class_="note")


def test_a_training_of_a_task_from_elsewhere_or_without_card_is_shown_too(tmp_path):
    assert training_page(training(tmp_path / "t", 1, "gone")).facts["title"] == "gone"
    (tmp_path / "t" / "config.json").unlink()
    assert Parsed(training_page(tmp_path / "t").html).all("circle")


def test_the_verb_knows_the_folder_of_a_training(tmp_path):
    folder = training(tmp_path / "t", 1)
    code, out, _ = show(folder, "--json")
    assert code == 0
    assert json.loads(out)["facts"]["kind"] == "training"
    assert (folder / "page.html").is_file()
    assert "training" in told_wrong(folder, "--sort", "worst")
    (folder / "log.csv").write_bytes(b"step,loss\n\xff\n")
    assert "log.csv" in told_wrong(folder)


# ---- very many samples ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_50_000_samples_make_a_page_of_the_same_size_in_seconds(runs, world, tmp_path):
    """Processor time, of which other programs take nothing."""
    count, root, run = 50_000, tmp_path / "coco", tmp_path / "run"
    (root / "val2014").mkdir(parents=True)
    small = runs("vqav2")
    images = sorted((world / "coco" / "val2014").glob("*.jpg"))[:10]
    for path in images:
        (root / "val2014" / path.name).hardlink_to(path)
    ids = [int(path.stem[-12:]) for path in images]
    questions = [
        {"question_id": ids[n % 10] * 10**6 + n, "image_id": ids[n % 10], "question": f"Is this {n}?"}
        for n in range(count)
    ]
    answers = [{"answer": "yes", "answer_id": k} for k in range(10)]
    kinds = {"question_type": "is this", "answer_type": "yes/no", "multiple_choice_answer": "yes", "answers": answers}
    for subset, some in (("val2014", questions), ("train2014", questions[:20])):
        (root / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps({"questions": some}))
        annotations = [{**kinds, "question_id": q["question_id"], "image_id": q["image_id"]} for q in some]
        (root / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    task = get_task("vqav2")(root)
    split = task.read("val")
    rows = [
        {"id": e.id, "question_id": int(e.id), "answer": "yes" if n % 3 else "no"} for n, e in enumerate(split.examples)
    ]
    config = {**json.loads((small / "config.json").read_text()), "data_root": str(root), "split": "val"}
    with RunStore.open(run, config) as store:
        store.append(rows)
        result = {**json.loads((small / "result.json").read_text()), "split": "val"}
        store.write_result(result, task.score({row["id"]: row for row in rows}, split))
    started = time.process_time()
    made = run_page(run)
    seconds = time.process_time() - started
    assert made.cards == 48
    assert len(made.html) < 3_000_000
    assert seconds < 10
    few = run_page(small)
    assert len(made.html) < 2 * len(few.html)
