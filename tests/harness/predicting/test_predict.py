"""`beit3-bench predict` on pictures of one's own: every task, text and JSON, drawn pictures, bad input in one line."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from native import invoke
from PIL import Image
from random_detector import save_detector

from beit3_bench import load
from beit3_bench.errors import BenchError
from beit3_bench.tasks.registry import get_task


@pytest.fixture(scope="module")
def photos(native, tmp_path_factory):
    """Three photographs: one stored on its side, one in a folder below; and a text."""
    folder = tmp_path_factory.mktemp("photos")
    split = get_task("flickr30k")(native.root("flickr30k")).read("test")
    files = [e.images[0] for e in split.examples if e.kind == "image"][:3]
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "more").mkdir()
    for name, file in zip(["a.jpg", "b.jpg", "more/c.jpg"], files, strict=True):
        with Image.open(file) as image:
            picture = image.convert("RGB").resize((90, 60))
        if name == "b.jpg":
            picture.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif, quality=95)
        else:
            picture.save(folder / name, quality=95)
    (folder / "notes.txt").write_text("three pictures")
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector") / "det.pth")


def predict(task, checkpoint, *words):
    return invoke("predict", "--task", task, "--checkpoint", checkpoint, "--device", "cpu", *words)


def objects(done):
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def answers(native):
    return ("--data-root", native.root("vqav2"))


def asked_words(native, task):
    """Words that a task needs beside a picture."""
    texts = {
        "vqav2": ["what is it?"],
        "nlvr2": ["both are red"],
        "snli-ve": ["it is red"],
        "flickr30k": ["red", "blue"],
    }.get(task, [])
    return [*(answers(native) if task == "vqav2" else ()), *(w for text in texts for w in ("--text", text))]


KEYS = {
    "vqav2": {"image", "question", "answer"},
    "nlvr2": {"images", "text", "label", "probability"},
    "snli-ve": {"image", "text", "label", "probability"},
    "coco-caption": {"image", "caption"},
    "nocaps": {"image", "caption"},
    "flickr30k": {"image", "texts"},
    "imagenet": {"image", "classes"},
    "imagenet-linear": {"image", "classes"},
}


@pytest.mark.parametrize("task", KEYS)
def test_every_task_says_what_it_sees_and_draws_it(native, photos, tmp_path, task):
    images = ["--image", photos / "a.jpg", *(["--image", photos / "b.jpg"] if task == "nlvr2" else [])]
    words = [*images, *asked_words(native, task)]
    (record,) = objects(predict(task, native.checkpoint(task), *words, "--json", "--output", tmp_path / "a.png"))
    assert set(record) == KEYS[task] | {"picture"}
    with Image.open(tmp_path / "a.png") as drawn:
        assert (drawn.mode, drawn.format) == ("RGB", "PNG")
        assert min(drawn.size) >= 400
    if task in ("imagenet", "imagenet-linear"):
        assert len(record["classes"]) == 5
        scores = [next(v for v in one.values() if isinstance(v, float)) for one in record["classes"]]
        assert scores == sorted(scores, reverse=True)


def test_without_output_the_words_are_read_and_a_hint_stands_on_stderr(native, photos):
    done = predict("vqav2", native.checkpoint("vqav2"), "--image", photos / "a.jpg", *asked_words(native, "vqav2"))
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first == str(photos / "a.jpg")
    assert second.startswith("  what is it?  ")
    assert "--output" in done.stderr
    assert "--json" in done.stderr


def test_the_python_api_says_the_same(native, photos):
    (record,) = objects(
        predict("coco-caption", native.checkpoint("coco-caption"), "--image", photos / "b.jpg", "--json")
    )
    model = load(native.checkpoint("coco-caption"), "coco-caption", device="cpu")
    with Image.open(photos / "b.jpg") as image:
        from_path, from_image = model.predict([photos / "b.jpg", image])
    assert from_path.record() == record
    assert from_image.caption == from_path.caption == model.caption([from_path.asked.images[0]])[0]
    assert from_path.asked.images[0].size == (90, 60)
    assert from_path._repr_png_().startswith(b"\x89PNG")
    assert str(from_path) == f"{photos / 'b.jpg'}\n  {from_path.caption}"
    with pytest.raises(BenchError, match="looks at pictures alone"):
        model.predict([photos / "a.jpg"], ["what?"])


def test_a_picture_on_its_side_is_seen_as_the_upright_one(native, photos):
    model = load(native.checkpoint("flickr30k"), "flickr30k", device="cpu")
    with Image.open(photos / "b.jpg") as image:
        upright = image.transpose(Image.Transpose.ROTATE_270)
    (one,) = model.predict([photos / "b.jpg"], ["red", "blue"])
    given = model.compare([upright], ["red", "blue"])[0]
    assert dict(zip(one.names, one.scores, strict=True)) == pytest.approx({"red": given[0], "blue": given[1]}, abs=1e-6)
    as_stored = model.compare([str(photos / "b.jpg")], ["red", "blue"])[0]
    assert not np.allclose(given, as_stored, atol=1e-5)  # what an evaluation sees


def test_one_text_and_many_pictures_are_a_search(native, photos, tmp_path):
    words = ["--image", photos, "--text", "a red ring"]
    done = predict("flickr30k", native.checkpoint("flickr30k"), *words, "--json", "--output", tmp_path / "found")
    records = objects(done)
    assert [r["rank"] for r in records] == [1, 2, 3]
    assert [r["cosine"] for r in records] == sorted((r["cosine"] for r in records), reverse=True)
    model = load(native.checkpoint("flickr30k"), "flickr30k", device="cpu")
    names = [str(photos / n) for n in ("a.jpg", "b.jpg", "more/c.jpg")]
    cosines = [p.scores[0] for p in model.predict(names, ["a red ring"])]
    assert {r["image"]: r["cosine"] for r in records} == pytest.approx(dict(zip(names, cosines, strict=True)), abs=1e-5)
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["a.png", "b.png", "c.png"]
    assert "1 .txt (such as notes.txt)" in done.stderr
    best = predict("flickr30k", native.checkpoint("flickr30k"), *words, "--top", 1, "--output", tmp_path / "best.jpg")
    assert best.stdout.splitlines()[0] == "a red ring: the best of 3 pictures first"
    assert len(best.stdout.splitlines()) == 2
    assert (tmp_path / "best.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_classes_of_ones_own_by_text_or_by_file(native, photos, tmp_path):
    (tmp_path / "names.json").write_text('["red ring", "blue disk"]')
    where = ["--image", photos / "a.jpg", "--json"]
    checkpoint = native.checkpoint("imagenet")
    (by_text,) = objects(predict("imagenet", checkpoint, *where, "--text", "red ring", "--text", "blue disk"))
    (by_file,) = objects(predict("imagenet", checkpoint, *where, "-o", f"class_names={tmp_path / 'names.json'}"))
    assert by_text == by_file
    assert {c["name"] for c in by_text["classes"]} == {"red ring", "blue disk"}
    (tmp_path / "templates.json").write_text('["a {}", "the {}"]')
    templates = ["-o", f"templates={tmp_path / 'templates.json'}"]
    (worded,) = objects(
        predict("imagenet", checkpoint, *where, "--text", "red ring", "--text", "blue disk", *templates)
    )
    assert worded != by_text
    done = predict("imagenet", checkpoint, *where, "--text", "red", "-o", f"class_names={tmp_path / 'names.json'}")
    assert (done.exit_code, "classes are given as texts, too" in done.stderr) == (2, True)


def test_objects_are_listed_with_boxes_and_masks(detector, photos, tmp_path):
    words = ["--image", photos / "b.jpg", "--json", "--output", tmp_path / "drawn", "--min-score", 0.3]
    (record,) = objects(predict("coco-det", detector, *words))
    assert (record["width"], record["height"]) == (90, 60)
    assert record["detections"]
    scores = [d["score"] for d in record["detections"]]
    assert scores == sorted(scores, reverse=True)
    for one in record["detections"]:
        assert one["label"].startswith("class ")
        assert 0 <= one["box"][0] <= one["box"][2] <= 90
        assert one["mask"]["size"] == [60, 90]
    assert record["picture"] == str(tmp_path / "drawn" / "b.png")
    done = predict("coco-det", detector, "--image", photos / "b.jpg", "--min-score", 1)
    assert "nothing of score 1 or above; the best is class" in done.stdout


def test_heads_of_public_data_sets_are_named_and_it_is_said():
    assert get_task("coco-det")(".").customary_labels(80)[::79] == ("person", "toothbrush")
    assert get_task("coco-det")(".").customary_labels(6) is None
    linear = get_task("imagenet-linear")(".")
    assert linear.customary_labels(1000)[0] == "n01440764"
    assert linear.words("n02096051") == "Airedale, Airedale terrier"
    assert (linear.words("n99999999"), linear.words("7")) == ("n99999999", "7")


def test_several_pictures_make_a_sheet_or_a_folder(native, photos, tmp_path):
    words = ["--image", photos, "--image", photos / "a.jpg"]
    checkpoint = native.checkpoint("imagenet-linear")
    sheet = predict("imagenet-linear", checkpoint, *words, "--output", tmp_path / "sheet.png")
    assert sheet.exit_code == 0
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 3 * 640
    assert len(objects(predict("imagenet-linear", checkpoint, *words, "--json", "--output", tmp_path / "all"))) == 4
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a-2.png", "a.png", "b.png", "c.png"]


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_read_are_named_and_the_others_answered(native, photos, tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    words = ["--image", tmp_path, "--image", photos / "a.jpg", "--json"]
    done = predict("imagenet-linear", native.checkpoint("imagenet-linear"), *words)
    assert done.exit_code == 2
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [str(photos / "a.jpg")]
    assert "empty.jpg: image does not decode (not an image: an empty file" in done.stderr
    assert "2 of 3 pictures could not be read; the others are done" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("task", "words", "line"),
    [
        ("vqav2", ["a.jpg"], "answers a question about the picture; give it as a text"),
        ("nlvr2", ["a.jpg", "--text", "x"], "is about two pictures; 1 are given"),
        ("nlvr2", ["a.jpg", "--image", "b.jpg"], "judges a sentence about the picture"),
        ("snli-ve", ["a.jpg"], "judges a sentence about the picture; give it as a text"),
        ("flickr30k", ["a.jpg"], "compares pictures with texts; give at least one text"),
        ("coco-caption", ["a.jpg", "--text", "x"], "looks at pictures alone; leave the text out"),
        ("flickr30k", ["a.jpg", "--text", " "], "a text is empty"),
        ("coco-caption", ["none.jpg"], "none.jpg: picture not found; check the name"),
        ("coco-caption", ["notes.txt"], "notes.txt: image does not decode (not an image"),
        ("coco-caption", ["ftp://host/a.jpg"], "over http and https alone"),
        ("coco-caption", ["a.jpg", "--output", "a.jpg"], "is one of the pictures given, and would be replaced"),
        ("coco-caption", ["a.jpg", "--output", "x.pdf"], "pictures are written as .png, .jpg"),
        ("coco-caption", ["a.jpg", "--output", "link"], "is a link, and nothing is written through links"),
        ("coco-caption", ["a.jpg", "--output", "link/below"], "is a link, and nothing is written through links"),
        ("coco-caption", ["a.jpg", "--output", "notes.txt/x.png"], "a file stands where a folder is needed"),
        ("coco-caption", ["bare"], "bare: holds no pictures"),
        ("coco-captoin", ["a.jpg"], "did you mean 'coco-caption'?"),
        ("coco-caption", ["a.jpg", "-o", "num_beam=3"], "did you mean 'num_beams'?"),
    ],
)
def test_bad_input_is_one_line(native, photos, tmp_path, monkeypatch, task, words, line):
    for name in ("a.jpg", "b.jpg", "notes.txt"):
        (tmp_path / name).write_bytes((photos / name).read_bytes())
    (tmp_path / "bare").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    checkpoint = native.checkpoint(task) if task in KEYS else "none.pth"
    before = {name: (tmp_path / name).read_bytes() for name in ("a.jpg", "b.jpg")}
    done = predict(task, checkpoint, "--image", *words)
    assert done.exit_code == 2
    (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line in error
    assert not done.stdout
    assert not any((tmp_path / "elsewhere").iterdir())
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_head_that_does_not_say_its_answers_names_the_way_out(native, photos):
    done = predict("vqav2", native.checkpoint("vqav2"), "--image", photos / "a.jpg", "--text", "what?")
    assert done.exit_code == 2
    assert "does not say which answers its outputs are" in done.stderr
