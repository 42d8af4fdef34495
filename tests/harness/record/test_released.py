"""Numbers on other data than the released split are labelled, kept apart, never ranked and never judged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from leaderboard_cases import metric, result, retrieval_metrics
from native import ROOTS, edit_json, invoke, run_words

from beit3_bench.backbones.released import find_released
from beit3_bench.harness.leaderboard.board import build_table
from beit3_bench.harness.leaderboard.verdict import judge
from beit3_bench.harness.record import released
from beit3_bench.harness.record.released import (
    apart,
    counts_of,
    data_notes,
    digest_of_ids,
    git_blobs,
    ids_of,
    other_data,
    read_data,
)
from beit3_bench.harness.record.results import Run
from beit3_bench.results.published.values import load_published
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.facts import Counts, Facts, Need, ReleasedData, published_names, read_facts
from beit3_bench.tasks.registry import get_task

DENSE = {"coco-det": "coco", "ade20k-seg": "ADEChallengeData2016"}


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
    """METEOR starts Java, which takes seconds and is tested elsewhere."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def copied(native, task, to):
    """The task's data outside of its tiny world, so that it is taken for real data."""
    folder = {**ROOTS, **DENSE}[task]
    shutil.copytree(native.world / folder, to / folder)
    return to / folder


def keep_first(n):
    def change(content):
        test = [image for image in content["images"] if image["split"] == "test"]
        content["images"] = [i for i in content["images"] if i["split"] != "test"] + test[:n]

    return change


# ---- what was read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*ROOTS, *DENSE])
def test_data_copied_out_of_the_tiny_world_is_labelled_with_its_counts_for_every_task(native, task, tmp_path):
    root = copied(native, task, tmp_path)
    own = get_task(task)(root)
    split = own.read(own.default_split)
    data = read_data(own, split)
    assert data is not None
    (note,) = data_notes(own, split, data)
    count = len({path for e in split.examples for path in e.images})
    stated = read_facts(task).data.splits[own.default_split].images
    assert note.startswith("other data: ")
    assert note.endswith("; not comparable with published numbers")
    assert f"{count:,} of {stated:,} images" in note
    within = get_task(task)(native.world / {**ROOTS, **DENSE}[task])
    assert read_data(within, split) is None


@pytest.mark.parametrize("task", [*ROOTS, *DENSE])
def test_a_split_of_the_stated_counts_and_ids_is_the_released_one_and_other_ids_are_not(
    native, task, tmp_path, monkeypatch
):
    own = get_task(task)(copied(native, task, tmp_path))
    split, form = own.read(own.default_split), read_facts(task).data.id_form
    digest = digest_of_ids((e.id for e in split.examples if e.images), form)
    for ids, kind, label in (
        (digest, "released", ""),
        ("0" * 64, "other", "other data: other ids than the released split's"),
    ):
        counts = {split.name: counts_of(split.examples)}
        facts = Facts(data=ReleasedData(splits=counts, ids={split.name: (ids,)}, id_form=form))
        monkeypatch.setattr(released, "read_facts", lambda task, facts=facts: facts)
        data = read_data(own, split)
        assert data["ids"] == kind
        assert data_notes(own, split, data) == ([f"{label}; not comparable with published numbers"] if label else [])


def test_a_changed_label_under_the_same_ids_is_other_data_and_another_line_end_is_not(native, tmp_path, monkeypatch):
    root = copied(native, "nlvr2", tmp_path)
    file = root / "data" / "dev.json"
    released_file = file.read_bytes()
    task = get_task("nlvr2")(root)
    examples = task.read("dev").examples
    data = ReleasedData(
        (
            Need("dev.json", ("data",), ("dev",), git_blobs(file)[0]),
            Need("train.json", ("data",), ("train",), "0" * 40),
        ),
        {"dev": counts_of(examples)},
        {"dev": (digest_of_ids(e.id for e in examples),)},
    )
    monkeypatch.setattr(released, "read_facts", lambda name: Facts(data=data))

    def words(*extra):
        done = invoke(
            *run_words(native, "nlvr2", root), "--split", "dev", "--overwrite", "--output", tmp_path / "run", *extra
        )
        assert done.exit_code == 0, done.stderr
        return done.stderr, json.loads((tmp_path / "run" / "result.json").read_text())

    for same in (released_file, b"\xef\xbb\xbf" + released_file.replace(b"\n", b"\r\n")):
        file.write_bytes(same)
        stderr, stored = words()
        assert "other data" not in stderr
        assert apart(stored) == []
    edited = b"\n".join(
        line.replace(b'"True"', b'"False"')
        if number == 0 and b'"True"' in line
        else line.replace(b'"False"', b'"True"', 1)
        for number, line in enumerate(released_file.split(b"\n"))
    )
    assert edited != released_file
    file.write_bytes(edited)
    stderr, stored = words()
    assert "warning: other data: dev.json is not the official file; not comparable with published numbers" in stderr
    assert apart(stored) == ["other data: dev.json is not the official file"]
    assert apart({**stored, "data": {"counts": {}, "ids": "released"}}) == []  # of an earlier version


def test_ids_of_the_released_validation_set_of_ade20k_are_known():
    data = read_facts("ade20k-seg").data
    names = [f"ADE_val_{n:08d}" for n in range(1, 2001)]
    assert ids_of([Example(name, (f"{name}.jpg",)) for name in names], data) in data.ids["val"]
    assert ids_of([Example(name, (f"{name}.jpg",)) for name in [*names[1:], "x"]], data) not in data.ids["val"]


@pytest.mark.parametrize("suffix", [".JPEG", ".jpg", "_n01440764.JPEG"])
def test_an_imagenet_id_is_its_class_and_its_number_whatever_the_suffix(suffix):
    form = read_facts("imagenet").data.id_form
    own = digest_of_ids([f"image:n01440764/ILSVRC2012_val_00000293{suffix}"], form)
    assert own == digest_of_ids(["n01440764/ILSVRC2012_val_00000293"])
    assert own != digest_of_ids([f"image:n01440765/ILSVRC2012_val_00000293{suffix}"], form)


@pytest.mark.parametrize("folder", ["tench", "a fish", "tench/part1"])
def test_images_of_the_released_validation_set_of_imagenet_are_known_under_any_class_names(folder):
    data = read_facts("imagenet").data
    ids = [f"image:{folder}/ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 50_001)]
    assert digest_of_ids(ids, data.id_form) in data.ids["val"]
    assert digest_of_ids([*ids[1:], "image:tench/1.jpg"], data.id_form) not in data.ids["val"]


@pytest.mark.parametrize(("folder", "label"), [("0", "0"), ("000", "0"), ("010", "10"), ("999", "999"), ("100", "100")])
def test_a_numbered_class_folder_is_its_number(folder, label):
    form = read_facts("imagenet").data.id_form
    own = digest_of_ids([f"image:{folder}/ILSVRC2012_val_00000293.JPEG"], form)
    assert own == digest_of_ids([f"{label}/ILSVRC2012_val_00000293"])


@pytest.mark.parametrize("task", [*ROOTS, *DENSE])
def test_every_split_with_published_values_has_a_count(task):
    splits = read_facts(task).data.splits
    assert all(splits[split].stated() for split in published_names()[task].splits)


# ---- run, table, judge -------------------------------------------------------------------------------------------------


def test_a_part_of_a_split_is_labelled_by_run_and_kept_apart_by_table(native, tmp_path):
    root = copied(native, "flickr30k", tmp_path)
    edit_json(root / "dataset_flickr30k.json", keep_first(3))
    label = "other data: 3 of 1,000 images, 15 of 5,000 texts"
    done = invoke(*run_words(native, "flickr30k", root), "--output", tmp_path / "runs" / "part")
    assert done.exit_code == 0, done.output
    assert f"note: {label}; not comparable with published numbers" in done.stdout
    assert f"warning: {label}" in done.stderr
    content = json.loads((tmp_path / "runs" / "part" / "result.json").read_text())
    assert content["data"] == {"counts": {"samples": 18, "images": 3, "texts": 15}, "ids": "other"}
    done = invoke(*run_words(native, "flickr30k", root), "--limit", 2, "--output", tmp_path / "runs" / "first")
    assert done.exit_code == 0, done.output
    table = json.loads(invoke("table", "--runs", tmp_path / "runs", "--format", "json").stdout)
    assert not any(row["measured"] for section in table["sections"] for row in section["rows"])
    assert [item["why"] for item in table["apart"]] == [f"--limit 2, {label}", label]
    assert all(item["row"]["rank"] is None for item in table["apart"])
    listed = json.loads(invoke("runs", "--runs", tmp_path / "runs", "--json").stdout)
    assert [run["other_data"] for run in listed] == [label, label]
    assert label in invoke("score", "--run", tmp_path / "runs" / "part", "--data-root", root).stdout


def test_runs_on_the_tiny_world_are_labelled_as_ever(native, tmp_path):
    done = invoke(*run_words(native, "flickr30k"), "--output", tmp_path / "run", "--json")
    content = json.loads(done.stdout)
    assert (content["data"], content["world"]) == (None, "tiny")
    assert not any("other data" in note for note in content["notes"])
    assert apart(content) == ["tiny world"]


OLD = {
    "flickr30k": ("test", {"images": 1000, "texts": 5000}, {"images": 20, "texts": 100}),
    "coco-retrieval": ("test", {"images": 5000, "texts": 25_010}, {"images": 5000, "texts": 25_000}),
    "coco-caption": ("test", {"images": 5000, "references": 25_010}, {"images": 10, "references": 50}),
    "nocaps": ("val", {"images": 4500, "references": 45_000}, {"images": 648, "references": 6480}),
    "vqav2": ("val", {"questions": 214_354, "images": 40_504}, {"questions": 43, "images": 9}),
    "nlvr2": ("test-P", {"examples": 6967, "sentences": 2316}, {"examples": 6982, "sentences": 2300}),
    "imagenet": ("val", {"images": 50_000, "classes": 1000}, {"images": 15, "classes": 10}),
    "imagenet-linear": ("val", {"images": 50_000, "classes": 1000}, {"images": 10_000, "classes": 1000}),
    "coco-det": ("val2017", {"images": 5000, "objects": 36_335, "detections": 9}, {"images": 4952, "objects": 36_335}),
    "ade20k-seg": ("val", {"images": 2000, "pixels": 9, "classes": 150}, {"images": 500, "pixels": 9, "classes": 99}),
}


@pytest.mark.parametrize("task", OLD)
def test_results_of_earlier_versions_are_told_by_their_counts(task):
    split, whole, other = OLD[task]
    assert other_data(result(task, split, counts=whole)) == ""
    label = other_data(result(task, split, counts=other))
    assert label.startswith("other data: ")
    assert f"{next(iter(other.values())):,}" in label
    assert other_data(result(task, split, counts=other, world="tiny")) == ""
    assert other_data(result(task, split, counts=other, subset={"limit": 20})) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"counts": {"images": 20, "texts": 100}},
        {"data": {"counts": {"images": 1000, "texts": 5000}, "ids": "other"}},
        {"data": {"counts": {"images": 1200, "texts": 6000}, "ids": "other"}},
        {"data": {"counts": {}, "ids": "released"}, "counts": {"images": 20, "texts": 100}},
    ],
)
def test_other_data_is_neither_ranked_nor_judged(change):
    weight = find_released("beit3_base_patch16_384_f30k_retrieval")
    model = {"weight": weight.name, "checkpoint": weight.file, "image_size": weight.image_size, "preset": "base"}
    metrics = {**retrieval_metrics(96.3, 86.1)}
    published = load_published()
    references = [v for v in published if v.checkpoint == weight.name and v.metric == "TR R@1"]
    good = result("flickr30k", "test", model, metrics=metrics, counts={"images": 1000, "texts": 5000})
    other = {**good, **change}
    assert judge(good, metrics["TR@1"], references).kind == "reproduces"
    assert judge(other, metrics["TR@1"], references).kind == "no published value"
    table = build_table([Run("good", good), Run("other", other)], published)
    (section,) = (s for s in table.sections if any(r.measured for r in s.rows))
    assert [row.source for row in section.rows if row.measured] == ["run good"]
    assert [(item.row.source, item.row.rank) for item in table.apart] == [("run other", None)]
    assert table.apart[0].why.startswith("other data: ")


def test_a_task_of_another_package_has_no_released_data():
    content = result("theirs", "test", counts={"images": 3}, metrics={"a": metric(1.0)})
    assert apart(content) == []
    assert apart({**content, "task": "../tasks/nlvr2", "split": "dev"}) == []


# ---- score ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "texts", "told"),
    [
        (12, 24, "other data: 12 of 1,000 images, 24 of 5,000 texts of split test; not comparable"),
        (1000, 5000, ""),
        (1014, 5070, ""),
    ],
)
def test_embeddings_of_other_data_are_scored_with_a_note(tmp_path, images, texts, told):
    rng = np.random.default_rng(0)
    owner = np.arange(texts) % images
    values = rng.normal(size=(images + texts, 4))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    arrays = {"image_embeddings": values[:images], "text_embeddings": values[images:]}
    np.savez(tmp_path / "e.npz", image_ids=np.arange(images), text_image_ids=owner, **arrays)
    done = invoke("score", "--task", "flickr30k", "--predictions", tmp_path / "e.npz")
    assert done.exit_code == 0, done.output
    assert (told in done.stdout) if told else ("note:" not in done.stdout)


def test_a_prediction_file_of_the_tiny_world_needs_no_note(native, tmp_path):
    root = copied(native, "nlvr2", tmp_path)
    lines = [json.loads(line) for line in (root / "data" / "dev.json").read_text().splitlines()]
    (tmp_path / "p.csv").write_text("".join(f"{r['identifier']},True\n" for r in lines))
    words = ["score", "--task", "nlvr2", "--predictions", tmp_path / "p.csv", "--annotations"]
    assert "note: other data: " in invoke(*words, root / "data" / "dev.json").stdout
    assert "note:" not in invoke(*words, native.root("nlvr2") / "data" / "dev.json").stdout


def test_counts_of_boxes_captions_answers_and_classes():
    boxes = [Example("1", ("a",), target=[{"iscrowd": 1}, {"iscrowd": 0}, {}]), Example("2", ("b",), target=[])]
    assert counts_of(boxes) == Counts(samples=2, images=2, objects=2)
    captions = [Example("1", ("a",), target=["x", "y"]), Example("2", ("b",), target=["z"])]
    assert counts_of(captions) == Counts(samples=2, images=2, references=3)
    answers = [Example(str(n), ("a",), target={"answers": [{}] * 10}) for n in range(2)]
    assert counts_of(answers) == Counts(samples=2, images=1, references=20)
    classes = [Example(str(n), (str(n),), target=n % 2) for n in range(4)]
    assert counts_of(classes) == Counts(samples=4, images=4, classes=2)
