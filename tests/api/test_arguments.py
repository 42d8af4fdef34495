"""What the Python API is given wrongly is one line that says how it is instead; nothing that was given is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from native import invoke
from PIL import Image

from beit3_bench import evaluate, load
from beit3_bench.errors import BenchError
from beit3_bench.tasks.registry import get_task

PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))


@pytest.fixture(scope="module")
def models(native):
    tasks = ("coco-retrieval", "vqav2", "nlvr2", "imagenet-linear")
    return {t: load(native.checkpoint(t), t, native.root(t), device="cpu") for t in tasks}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": None}, "a task is named by a text"),
        ({"source": None}, "source: is a NoneType"),
        ({"tokenizer": 3}, "tokenizer: is a int"),
        ({"data_root": 3}, "data_root: is a int"),
        ({"device": None}, "device: is a NoneType"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not known; give one of: fp32, bf16, fp16"),
        ({"dtype": torch.float32}, "give one of: fp32"),
        ({"image_size": 0}, "image_size is 0; give pixels"),
        ({"image_size": True}, "image_size: True is not a whole number"),
        ({"image_size": 10**9}, "not enough memory"),
        ({"preset": 3}, "preset: 3 is not a text"),
        ({"allow_missing": 3}, "allow_missing: 3 is not"),
        ({"answers": ["yes"]}, "asks embed, and has none"),
        ({"num_heads": 2}, "has 4 attention heads, not 2"),
    ],
)
def test_what_load_cannot_take_is_refused(native, options, words):
    given = {"source": native.checkpoint("coco-retrieval"), "task": "coco-retrieval", "device": "cpu", **options}
    with pytest.raises(BenchError, match=words):
        load(**given)


def test_a_pattern_of_tensors_is_no_list_of_letters(native, tmp_path):
    content = torch.load(native.checkpoint("coco-retrieval"), weights_only=True)
    missing = [name for name in content["model"] if "layers.1" in name]
    for name in missing:
        del content["model"][name]
    torch.save(content, tmp_path / "x.pth")
    given = {"device": "cpu", "tokenizer": native.checkpoints / "beit3.spm"}
    with pytest.raises(BenchError, match="missing"):
        load(tmp_path / "x.pth", "coco-retrieval", allow_missing="logit*", **given)
    model = load(tmp_path / "x.pth", "coco-retrieval", allow_missing="*.layers.1.*", **given)
    assert set(model.model.missing) == set(missing)
    folder = tmp_path / "run"
    evaluate(model, "coco-retrieval", native.root("coco-retrieval"), limit=2, output=folder)
    assert json.loads((folder / "result.json").read_text())["model"]["allow_missing"] == ["*.layers.1.*"]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"yes", "no"}, "a set has no order"),
        ({"yes": 0}, "a dict has no order"),
        (3, "a int has no order"),
        (["yes", 3], r"answers\[1\]: is a int"),
        (["yes"] * 14, "'yes' is there twice"),
        (["yes"], "its head has 14 answers, answers has 1"),
        ("/nowhere/answer2label.txt", "not found"),
    ],
)
def test_answers_without_an_order_or_of_another_number_are_refused(native, answers, words):
    with pytest.raises(BenchError, match=words):
        load(native.checkpoint("vqav2"), "vqav2", answers=answers, device="cpu")


def test_the_file_of_answers_stands_for_the_data(native, models, tmp_path):
    labels = get_task("vqav2")(native.root("vqav2")).read("val").labels
    file = tmp_path / "answer2label.txt"
    file.write_text("".join(json.dumps({"answer": a, "label": n}) + "\n" for n, a in enumerate(labels[::-1])))
    model = load(native.checkpoint("vqav2"), "vqav2", answers=file, device="cpu")
    assert model.labels == labels[::-1]
    place = labels.index(models["vqav2"].answer([PICTURE], ["what?"])[0])
    assert model.answer([PICTURE], ["what?"]) == [labels[::-1][place]]
    result = evaluate(
        model, "vqav2", native.root("vqav2"), limit=3, output=tmp_path / "run"
    )  # the file's, not the data's
    assert set(result.rows()["answer"]) <= set(labels)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["given_options"] == {"answer_vocab": str(file)}


def test_a_model_of_other_answers_than_the_data_is_not_scored_by_them(native):
    labels = get_task("vqav2")(native.root("vqav2")).read("val").labels
    model = load(native.checkpoint("vqav2"), "vqav2", answers=labels[::-1], device="cpu")
    with pytest.raises(BenchError, match=r"was loaded for other answers.*output 0 is"):
        evaluate(model, "vqav2", native.root("vqav2"), limit=3)


@pytest.mark.parametrize(
    ("task", "method", "given", "words"),
    [
        ("coco-retrieval", "embed", {"images": "cat.jpg"}, "images: is a str; give a list"),
        ("coco-retrieval", "embed", {"images": Path("cat.jpg")}, "give a list"),
        ("coco-retrieval", "embed", {"images": PICTURE}, "images: is a Image; give a list"),
        ("coco-retrieval", "embed", {"images": {"a": 1}}, "images: is a dict"),
        ("coco-retrieval", "embed", {"images": [None]}, r"images\[0\]: is a NoneType"),
        ("coco-retrieval", "embed", {"images": [np.zeros((8, 8, 3), np.uint8)]}, "Image.fromarray"),
        ("coco-retrieval", "embed", {"images": [b"x"]}, "is a bytes"),
        ("coco-retrieval", "embed", {"images": [(PICTURE, PICTURE)]}, "holds 2 images"),
        ("coco-retrieval", "embed", {"images": [Image.new("RGB", (0, 5))]}, "0 x 5"),
        ("coco-retrieval", "embed", {"images": [Image.new("La", (5, 5))]}, "mode La"),
        ("coco-retrieval", "embed", {"images": ["/nowhere/cat.jpg"]}, "not found"),
        ("coco-retrieval", "embed", {"texts": "a cat"}, "texts: is a str"),
        ("coco-retrieval", "embed", {"texts": [None]}, r"texts\[0\]: is a NoneType"),
        ("coco-retrieval", "embed", {"texts": ["a", ""]}, "no tokens"),
        ("coco-retrieval", "embed", {"texts": ["\ud800"]}, "lone surrogates"),
        ("vqav2", "answer", {"images": [PICTURE], "questions": [None]}, r"questions\[0\]: is a NoneType"),
        ("vqav2", "answer", {"images": [PICTURE], "questions": "w"}, "questions: is a str"),
        ("vqav2", "answer", {"images": [(PICTURE, PICTURE)], "questions": ["w"]}, "holds 2 images"),
        ("nlvr2", "classify", {"images": [PICTURE], "texts": ["w"]}, "holds 1 images; 2 images, as a pair"),
        ("nlvr2", "classify", {"images": [()], "texts": ["w"]}, "holds 0 images"),
        ("nlvr2", "classify", {"images": [(PICTURE, PICTURE)]}, "give a text per image"),
        ("imagenet-linear", "classify", {"images": [PICTURE], "texts": ["w"]}, "give images alone"),
        ("imagenet-linear", "classify", {"images": [(PICTURE, PICTURE)]}, "holds 2 images"),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused(models, task, method, given, words):
    ask = {"embed": models[task].embed if task == "coco-retrieval" else None}
    ask |= {"answer": models[task].answer, "classify": models[task].classify}
    with pytest.raises(BenchError, match=words):
        ask[method](**given)


def test_a_closed_or_damaged_picture_is_refused(native, models, tmp_path):
    PICTURE.save(tmp_path / "x.png")
    closed = Image.open(tmp_path / "x.png")
    closed.close()
    (tmp_path / "y.png").write_bytes((tmp_path / "x.png").read_bytes()[:-30])
    with Image.open(tmp_path / "y.png") as damaged:
        for picture in (closed, damaged):
            with pytest.raises(BenchError, match=r"images\[1\]: image does not decode"):
                models["coco-retrieval"].embed(images=[PICTURE, picture])


def test_anything_that_can_be_gone_through_is_a_list(models):
    model = models["coco-retrieval"]
    vectors = model.embed(images=(PICTURE for _ in range(3)))
    assert vectors.shape == (3, 32)
    assert np.array_equal(model.embed(texts=np.array(["a", "b"])), model.embed(texts=["a", "b"]))
    assert models["vqav2"].answer(iter([PICTURE]), iter(["what?"])) == models["vqav2"].answer([PICTURE], ["what?"])
    assert model.embed(images=[]).shape == (0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16", "CMYK", "1", "LA"])
def test_a_picture_of_any_mode_is_what_its_file_is(models, tmp_path, mode):
    picture = Image.new("I;16", (40, 30), 900) if mode == "I;16" else PICTURE.convert(mode)
    file = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    picture.save(file)
    model = models["coco-retrieval"]
    assert np.array_equal(model.embed(images=[picture]), model.embed(images=[file]))


# ---- evaluate -----------------------------------------------------------------------------------------------------------


class Always:
    def classify(self, *, images, texts=None):
        return [("True", 0.9)] * len(images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": "3"}, "limit is '3'"),
        ({"limit": 2.5}, "limit is 2.5"),
        ({"limit": True}, "limit is True"),
        ({"split": 3}, "a split is named by a text"),
        ({"split": "test"}, "did you mean"),
        ({"data_root": None}, "reads a data set; give data_root"),
        ({"output": 3}, "output: is a int"),
        ({"model": Always}, "Always: is a class"),
        ({"model": None}, "NoneType: task nlvr2 asks classify"),
        ({"num_heads": 3}, "num_heads: says how a file is loaded"),
        ({"foo": 3}, "no option 'foo'"),
    ],
)
def test_what_evaluate_cannot_take_is_refused(native, options, words):
    given = {"model": Always(), "task": "nlvr2", "data_root": native.root("nlvr2"), **options}
    with pytest.raises(BenchError, match=words):
        evaluate(**given)


def test_options_of_the_load_are_those_of_the_run(native, tmp_path):
    root, checkpoint = native.root("coco-caption"), native.checkpoint("coco-caption")
    model = load(checkpoint, "coco-caption", device="cpu", num_beams=1, max_length=6, image_size=48)
    with pytest.raises(BenchError, match="loaded with num_beams=1, not 3; load it again"):
        evaluate(model, "coco-caption", root, limit=3, num_beams=3)
    folder = tmp_path / "run"
    evaluate(model, "coco-caption", root, limit=3, num_beams=1, output=folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["given_options"] == {"num_beams": "1", "max_length": "6"}
    assert config["given"]["image_size"] == 48
    done = invoke("replay", folder, "--checkpoint", checkpoint, "--data-root", root, "--workers", 0)
    assert done.exit_code == 0, done.output


def test_the_family_that_was_named_is_the_run_s(native, tmp_path):
    checkpoint, root = native.checkpoint("nlvr2"), native.root("nlvr2")
    evaluate(load(f"beit3:{checkpoint}", "nlvr2", device="cpu"), "nlvr2", root, limit=2, output=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["source"] == f"beit3:{checkpoint}"
