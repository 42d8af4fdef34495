"""What a model gives is a value of its ability, or is refused with the row's name: from an object, and from a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from native import invoke, run_words

from beit3_bench import evaluate
from beit3_bench.backbones.abilities import Caption, Captions, Classifies, Detects, Embeds, Segments
from beit3_bench.errors import BenchError


class Given:
    """Gives what a function of the number of its items makes, whatever it is asked."""

    def __init__(self, make: Callable[[int], Any]):
        self.make, self.calls = make, 0

    def embed(self, *, images=None, texts=None):
        self.calls += 1
        return self.make(len(images if images is not None else texts))

    def answer(self, *, images, questions):
        return self.make(len(images))

    def caption(self, *, images):
        return self.make(len(images))

    def classify(self, *, images, texts=None):
        return self.make(len(images))


def of(kind):
    """An ability of a kind, to look at values with."""
    return type(kind.__name__, (kind,), {"predict": lambda self, batch: []})(None, None)


def evaluated(native, task, make, **options):
    return evaluate(Given(make), task, native.root(task), **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: np.full((n, 10), np.nan), "not finite"),
        (lambda n: np.where(np.arange(10) == 1, np.inf, np.ones((n, 10))), "not finite"),
        (lambda n: np.ones((n, 11)), "11 scores for 10 labels"),
        (lambda n: np.ones((n, 9)), "9 scores for 10 labels"),
        (lambda n: np.ones((n, 0)), r"shape \(0,\)"),
        (lambda n: np.ones(n), r"shape \(\)"),
        (lambda n: np.ones((n, 1, 10)), r"shape \(1, 10\)"),
        (lambda n: [("n02165456", float("nan"))] * n, "not finite"),
        (lambda n: [("n02165456", None)] * n, "scores of type list"),
        (lambda n: [("n02165456", "0.5")] * n, "scores of type"),
        (lambda n: [(True, 0.5)] * n, "name a label as text"),
        (lambda n: [(1, 0.5)] * n, "may be two scores"),
        (lambda n: ["n02165456"] * n, "scores of type"),
        (lambda n: None, "gave a NoneType"),
        (lambda n: {i: 0 for i in range(n)}, "gave a dict"),
    ],
)
def test_scores_that_are_none_are_refused(native, make, words):
    with pytest.raises(BenchError, match=words):
        evaluated(native, "imagenet-linear", make)


def test_a_number_for_a_label_is_no_pair_of_scores(native):
    with pytest.raises(BenchError, match="name a label as text, such as 'False'"):
        evaluated(native, "nlvr2", lambda n: [(True, 0.5)] * n)


@pytest.mark.parametrize(
    "make", [lambda n: torch.ones(n, 2, requires_grad=True), lambda n: [[0, 1]] * n, lambda n: [["True", 1]] * n]
)
def test_scores_may_be_tensors_lists_and_pairs(native, make):
    assert evaluated(native, "nlvr2", make).metrics["accuracy"].value == 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: np.full((n, 4), np.nan), "not finite"),
        (lambda n: np.full((n, 4), 1e300), "not finite"),
        (lambda n: np.ones((n, 4)) * 1j, "complex"),
        (lambda n: [list(range(1 + i)) for i in range(n)], "one length"),
        (lambda n: "x" * n, "gave a str"),
        (lambda n: ["x"] * n, "of type <U1"),
        (lambda n: np.ones((n, 4, 1)), r"shape \(4, 1\)"),
        (lambda n: np.ones((4, n)), "gave 4 values"),
    ],
)
def test_embeddings_that_are_none_are_refused(native, make, words):
    with pytest.raises(BenchError, match=words):
        evaluated(native, "flickr30k", make)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_embeddings_of_any_number_type_are_kept_in_float32(native, dtype):
    result = evaluated(native, "flickr30k", lambda n: (vector for vector in torch.eye(60)[:n].to(dtype)))
    assert {row["embedding"].dtype for row in result.predictions.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is a NoneType"),
        (3, "is a int"),
        (b"yes", "is a bytes"),
        (("yes", 0.5), "is a tuple"),
        ("\ud800", "Unicode"),
    ],
)
@pytest.mark.parametrize("task", ["vqav2", "coco-caption"])
def test_words_that_are_none_are_refused(native, task, value, words):
    with pytest.raises(BenchError, match=rf"row .*{words}"):
        evaluated(native, task, lambda n: [value] * n, limit=3)


BOXES = {"boxes": np.ones((2, 4), np.float32), "scores": np.ones(2, np.float32), "classes": np.zeros(2, int)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": np.array([0, 3])}, "3 is no position in 3 labels"),
        ({"classes": np.array([0, -1])}, "-1 is no position"),
        ({"classes": np.array([0, 0.5])}, "not of whole numbers"),
        ({"classes": np.array(["cat", "dog"])}, "not of whole numbers"),
        ({"classes": np.zeros(1, int)}, "classes"),
        ({"scores": np.ones(1)}, "four numbers and a score per box"),
        ({"boxes": np.ones((2, 3))}, "four numbers and a score per box"),
        ({"masks": np.ones((1, 3, 3), bool)}, "masks"),
        ({"masks": np.ones((2, 3, 3))}, "masks are float64"),
    ],
)
def test_detections_that_are_none_are_refused(change, words):
    ability = of(Detects)
    ability.labels = ("cat", "dog", "bird")
    with pytest.raises(ValueError, match=words):
        ability.checked({**BOXES, **change})


def test_detections_may_be_lists_and_may_be_none():
    detections = of(Detects).checked({name: value.tolist() for name, value in BOXES.items()})
    assert detections["boxes"].shape == (2, 4)
    assert of(Detects).checked({"boxes": [], "scores": [], "classes": []})["boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match="no 'classes'"):
        of(Detects).checked({"boxes": [], "scores": []})
    with pytest.raises(ValueError, match="no 'boxes'"):
        of(Detects).checked(None)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.full((2, 2), -1), "-1 is no position"),
        (np.full((2, 2), 2), "2 is no position in 2 labels"),
        (np.zeros((2, 2)), "not of whole numbers"),
        (np.zeros((2, 2, 1), np.uint8), "shape"),
        (None, "not of whole numbers"),
    ],
)
def test_label_maps_that_are_none_are_refused(value, words):
    ability = of(Segments)
    ability.labels = ("sky", "tree")
    with pytest.raises(ValueError, match=words):
        ability.checked(value)


def test_what_is_a_value_stays_as_it_is():
    vector = np.ones(4, np.float32)
    assert of(Embeds).checked(vector) is vector
    assert of(Classifies).checked(vector) is vector
    caption = Caption("a cat", (1, 2))
    assert of(Captions).checked(caption) is caption


@pytest.mark.parametrize("task", ["imagenet-linear", "vqav2", "nlvr2", "coco-caption", "flickr30k", "imagenet"])
def test_weights_that_are_not_finite_give_no_number(native, task, tmp_path):
    content = torch.load(native.checkpoint(task), weights_only=True)
    for tensor in content["model"].values():
        tensor.fill_(float("nan"))
    torch.save(content, tmp_path / "nan.pth")
    words = run_words(native, task)
    words[words.index(native.checkpoint(task))] = tmp_path / "nan.pth"
    tokenizer = native.checkpoints / "beit3.spm"
    done = invoke(*words, "--tokenizer", tokenizer, "--limit", 3, "--output", tmp_path / "run")
    assert done.exit_code == 2
    assert "not finite" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "result.json").exists()
