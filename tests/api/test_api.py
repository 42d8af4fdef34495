"""`beit3_bench.load` and `evaluate`: the same numbers as the command line, from any object that can be asked."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from native import invoke, run_words
from PIL import Image

import beit3_bench
from beit3_bench import evaluate, load
from beit3_bench.errors import BenchError
from beit3_bench.tasks.registry import get_task

TASKS = ("coco-retrieval", "imagenet", "vqav2", "nlvr2", "coco-caption", "imagenet-linear")


def loaded(native, task, **options):
    return load(str(native.checkpoint(task)), task, str(native.root(task)), device="cpu", **options)


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_gives_what_the_command_line_gives(native, task, tmp_path):
    done = invoke(*run_words(native, task), "--limit", 12, "--output", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    expected = json.loads(done.stdout)
    result = evaluate(loaded(native, task), task, str(native.root(task)), limit=12)
    assert {n: m.value for n, m in result.metrics.items()} == {n: m["value"] for n, m in expected["metrics"].items()}
    for name, metric in result.metrics.items():
        bounds = expected["metrics"][name]["ci95"]
        assert metric.ci95 == (None if bounds is None else tuple(bounds))
    assert (result.counts, result.chance, result.folder) == (expected["counts"], expected["chance"], None)
    assert result.record["model"]["sha256"] == expected["model"]["sha256"]
    frame = result.rows()
    assert len(frame) == len(result.predictions) > 0
    assert set(frame["id"]) == set(result.predictions)


def test_embed_gives_unit_vectors_in_the_order_asked(native):
    model = loaded(native, "coco-retrieval")
    split = get_task("coco-retrieval")(native.root("coco-retrieval")).read("test")
    files = [e.images[0] for e in split.examples if e.kind == "image"][:10]
    texts = [e.text for e in split.examples if e.kind == "text"][:30]
    images, words = model.embed(images=files), model.embed(texts=texts)
    assert images.dtype == words.dtype == np.float32
    assert images.shape == (10, 32)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    assert np.array_equal(model.embed(images=files[::-1]), images[::-1])
    assert np.allclose(model.embed(texts=texts[:1]), words[:1], atol=1e-6)
    with Image.open(files[0]) as picture:
        assert np.array_equal(model.embed(images=[picture])[0], images[0])
    assert model.module.encode_image is not None
    assert model.identity.tokens is not None
    assert (model.card.family, model.card.protocol) == ("beit3", "dual encoder")
    with pytest.raises(BenchError, match="was loaded to embed, not to answer"):
        model.answer(files[:1], ["what?"])
    with pytest.raises(BenchError, match="one of them"):
        model.embed(images=files, texts=texts)


def test_answers_captions_and_labels_are_words(native, tmp_path):
    root = native.root("vqav2")
    split = get_task("vqav2")(root).read("val")
    files, questions = [e.images[0] for e in split.examples[:9]], [e.text for e in split.examples[:9]]
    model = loaded(native, "vqav2")
    answers = model.answer(files, questions)
    assert len(answers) == 9
    assert set(answers) <= set(split.labels)
    listed = load(native.checkpoint("vqav2"), "vqav2", answers=list(split.labels), device="cpu")
    assert listed.answer(files, questions) == answers
    file = tmp_path / "answer2label.txt"
    file.write_text("".join(json.dumps({"answer": a, "label": n}) + "\n" for n, a in enumerate(split.labels)))
    assert (
        load(native.checkpoint("vqav2"), "vqav2", root, answers=str(file), device="cpu").answer(files, questions)
        == answers
    )
    nameless = load(native.checkpoint("vqav2"), "vqav2", device="cpu")
    with pytest.raises(BenchError, match="does not say which answers its outputs are"):
        nameless.answer(files, questions)
    with pytest.raises(BenchError, match="9 images and 8 texts"):
        model.answer(files, questions[:-1])

    captions = load(native.checkpoint("coco-caption"), "coco-caption", device="cpu", num_beams=1, max_length=8).caption(
        files
    )
    assert len(captions) == 9
    assert all(isinstance(caption, str) for caption in captions)
    pairs = load(native.checkpoint("nlvr2"), "nlvr2", device="cpu").classify([(files[0], files[1])] * 2, ["a", "b"])
    assert all(label in ("False", "True") and 0.5 <= p <= 1 for label, p in pairs)
    classes = loaded(native, "imagenet-linear").classify(files)
    assert all(label.startswith("n") and 0.1 <= p <= 1 for label, p in classes)


def test_options_that_nobody_knows_and_images_that_are_none_are_refused(native, tmp_path):
    with pytest.raises(BenchError, match="did you mean 'num_beams'"):
        load(native.checkpoint("coco-caption"), "coco-caption", num_beam=3)
    with pytest.raises(BenchError, match="num_beams is 0"):
        load(native.checkpoint("coco-caption"), "coco-caption", num_beams=0)
    model = load(native.checkpoint("coco-caption"), "coco-caption", device="cpu")
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(BenchError, match=r"x\.jpg"):
        model.caption([str(tmp_path / "x.jpg")])


# ---- any object -----------------------------------------------------------------------------------------------------


class Oracle:
    """Knows the truth of a split by image files and text."""

    def __init__(self, split):
        self.of = {(e.images, e.text): e.target for e in split.examples if e.images}
        self.split = split

    def classify(self, *, images, texts=None):
        files = [image if isinstance(image, tuple) else (image,) for image in images]
        pairs = zip(files, texts or [None] * len(files), strict=True)
        return [(self.split.labels[int(self.of[pair])], 0.9) for pair in pairs]


class Scores(Oracle):
    def classify(self, *, images, texts=None):
        best = [label for label, _ in super().classify(images=images, texts=texts)]
        return np.array([[float(name == label) for name in self.split.labels] for label in best])


@pytest.mark.parametrize("kind", [Oracle, Scores])
@pytest.mark.parametrize(("task", "metric"), [("nlvr2", "accuracy"), ("imagenet-linear", "top1")])
def test_an_object_that_knows_the_truth_is_always_right(native, task, metric, kind, tmp_path):
    split = get_task(task)(native.root(task)).read(get_task(task).default_split)
    result = evaluate(kind(split), task, native.root(task), output=tmp_path / "run")
    assert result.metrics[metric].value == 1.0
    assert result.folder == tmp_path / "run"
    assert result.record["model"]["checkpoint"] == kind.__name__
    places = ("--checkpoint", native.checkpoint(task), "--data-root", native.root(task))
    done = invoke("replay", tmp_path / "run", *places)
    assert (done.exit_code, "made by a Python object" in done.stderr) == (2, True)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(BenchError, match="differs from this one"):
        evaluate(kind(split), task, native.root(task), output=tmp_path / "run")


class Letters:
    """A text is its image's number where it says one; else its letters."""

    def __init__(self, split):
        owners = [e.target for e in split.examples if e.kind == "image"]
        self.place = {owner: n for n, owner in enumerate(owners)}
        self.image = {e.images[0]: self.place[e.target] for e in split.examples if e.kind == "image"}
        self.text = {e.text: self.place[e.target] for e in split.examples if e.kind == "text"}

    def embed(self, *, images=None, texts=None):
        places = [self.image[i] for i in images] if images is not None else [self.text[t] for t in texts]
        return np.eye(len(self.place), dtype=np.float64)[places]


def test_an_object_with_embed_is_ranked(native):
    split = get_task("flickr30k")(native.root("flickr30k")).read("test")
    result = evaluate(Letters(split), "flickr30k", native.root("flickr30k"))
    assert result.metrics["TR@1"].value > 50


def test_an_object_without_the_method_or_with_too_few_values_is_refused(native):
    root = native.root("nlvr2")
    split = get_task("nlvr2")(root).read("test-P")
    with pytest.raises(BenchError, match="Letters: task nlvr2 asks classify"):
        evaluate(Letters(get_task("flickr30k")(native.root("flickr30k")).read("test")), "nlvr2", root)

    class Short(Oracle):
        def classify(self, *, images, texts=None):
            return super().classify(images=images, texts=texts)[1:]

    with pytest.raises(BenchError, match=r"Short.classify: gave \d+ values for \d+ items"):
        evaluate(Short(split), "nlvr2", root)

    class Strange(Oracle):
        def classify(self, *, images, texts=None):
            return [("maybe", 0.9)] * len(images)

    with pytest.raises(BenchError, match="label 'maybe' is none of the data's"):
        evaluate(Strange(split), "nlvr2", root)


def test_a_model_for_another_task_is_refused(native):
    model = loaded(native, "nlvr2")
    with pytest.raises(BenchError, match="was loaded for nlvr2, vqav2 asks answer"):
        evaluate(model, "vqav2", native.root("vqav2"))


# ---- the package ----------------------------------------------------------------------------------------------------


def test_importing_the_package_costs_nothing():
    program = "import sys, beit3_bench; assert not {'torch', 'numpy', 'click', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_says_its_version_and_its_names():
    assert beit3_bench.__version__.count(".") == 2
    assert dir(beit3_bench) == ["__version__", "evaluate", "load"]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        beit3_bench.lod  # noqa: B018
