"""ALBEF and BLIP through the command line: rows that do not depend on how the work is cut, scoring, and bad input."""

from __future__ import annotations

import json

import pytest
from exactness import assert_same_rows
from fusion_golden import heads, write_file
from native import invoke

from beit3_bench import load
from beit3_bench.harness.record.store import RunStore

RUNS = {
    "albef-vqav2": ("albef", "vqa", "vqav2", "ranking 128"),
    "albef-nlvr2": ("albef", "nlvr", "nlvr2", "classification"),
    "albef-imagenet": ("albef", "retrieval", "imagenet", "dual encoder"),
    "blip-vqav2": ("blip", "vqa", "vqav2", "ranking 128"),
    "blip-generate": ("blip", "vqa", "vqav2", "generation"),
    "blip-nlvr2": ("blip", "nlvr", "nlvr2", "classification"),
    "blip-caption": ("blip", "caption", "coco-caption", "3 beams"),
    "blip-nocaps": ("blip", "caption", "nocaps", "3 beams"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: write_file(folder / family, family, head) for name, (family, head, _, _) in RUNS.items()}


def finished(native, files, name, to, *more):
    family, head, task, _ = RUNS[name]
    options = [word for key, n in heads(family, head).items() for word in ("-o", f"{key}={n}")]
    options += ["-o", "answer_mode=generate"] if name == "blip-generate" else []
    named = ("--task", task, "--checkpoint", files[name], "--data-root", native.root(task), "--output", to)
    done = invoke("run", *named, *options, "--device", "cpu", "--workers", 0, "--limit", 20, *more, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


SCORED_BY_JAVA = ("blip-caption", "blip-nocaps")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SCORED_BY_JAVA else ()) for n in RUNS])
def test_rows_and_metrics_do_not_depend_on_the_batch_size(native, files, name, tmp_path):
    results = {size: finished(native, files, name, tmp_path / str(size), "--batch-size", size) for size in (1, 7)}
    values = [{n: m["value"] for n, m in result["metrics"].items()} for result in results.values()]
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert_same_rows(tmp_path / "1", tmp_path / "7")
    model = results[1]["model"]
    assert (model["family"], model["protocol"]) == (RUNS[name][0], RUNS[name][3])
    if name == "blip-nlvr2":
        assert any("swaps the two images of a random half" in note for note in results[1]["notes"])


@pytest.mark.parametrize("name", ["albef-vqav2", "blip-vqav2", "blip-nlvr2"])
def test_answers_differ(native, files, name, tmp_path):
    finished(native, files, name, tmp_path / "run")
    rows = RunStore.read(tmp_path / "run").rows().values()
    key = {"vqav2": "answer", "nlvr2": "margin"}[RUNS[name][2]]
    assert len({row[key] for row in rows}) > 1


def test_what_decides_an_answer_is_in_the_fingerprint_of_the_model(native, files, tmp_path):
    prints = {}
    for more in ((), ("-o", "answer_candidates=3")):
        result = finished(native, files, "blip-vqav2", tmp_path / str(len(more)), *more)
        prints[more] = result["provenance"]["fingerprints"]["model"]
    prints["generate"] = finished(native, files, "blip-generate", tmp_path / "g")["provenance"]["fingerprints"]["model"]
    assert len(set(prints.values())) == 3


def test_a_caption_does_not_depend_on_the_images_beside_it(native, files):
    images = sorted(native.root("coco-caption").rglob("*.jpg"))[:7]
    model = load(files["blip-caption"], "coco-caption", device="cpu", **heads("blip", "caption"))
    together = model.caption(images)
    assert together == [model.caption([image])[0] for image in images]
    assert len(set(together)) > 1


def test_half_precision(native, files):
    images = sorted(native.root("coco-caption").rglob("*.jpg"))[:2]
    for name, more in (("blip-caption", {}), ("blip-vqav2", {"answers": ["yes", "no", "red", "a dog"]})):
        family, head, task, _ = RUNS[name]
        model = load(files[name], task, device="cpu", dtype="bf16", **heads(family, head), **more)
        said = model.caption(images) if task == "coco-caption" else model.answer(images, ["what?", "is it red?"])
        assert len(said) == 2
