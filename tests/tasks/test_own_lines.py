"""Files of one's own data: what a line may hold, and that each fault is told with file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from own_files import write_lines
from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.tasks.registry import get_task

TASKS = ("classify", "retrieval", "caption", "vqa")
GOOD = {
    "classify": [{"image": "a.png", "label": "cat"}, {"image": "b.png", "label": "dog"}],
    "retrieval": [{"image": "a.png", "caption": "a cat"}, {"image": "b.png", "captions": ["a dog", "dogs"]}],
    "caption": [{"image": "a.png", "captions": ["a cat"]}, {"image": "b.png", "caption": "a dog"}],
    "vqa": [
        {"image": "a.png", "question": "what?", "answer": "cat"},
        {"image": "a.png", "question": "how?", "answers": ["so"]},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def read(folder: Path, task: str, records: list, **options: str):
    file = write_lines(folder / "mine.jsonl", records)
    return get_task(task)(file, options).read("mine")


@pytest.mark.parametrize("task", TASKS)
def test_a_good_file_is_read_with_the_numbers_of_its_lines_as_ids(folder, task):
    split = read(folder, task, GOOD[task])
    images = [e for e in split.examples if e.images]
    assert [e.id.removeprefix("image:") for e in images] == ["1", "2"]
    assert all(Path(e.images[0]).parent == folder for e in images)
    assert all(e.target is not None for e in images)
    assert split.own == read(folder, task, GOOD[task]).own != read(folder, task, GOOD[task][::-1]).own


def test_what_the_tasks_take_from_a_line(folder):
    retrieval = read(folder, "retrieval", GOOD["retrieval"])
    assert [(e.id, e.text, e.target) for e in retrieval.examples if e.kind == "text"] == [
        ("text:1:0", "a cat", "1"),
        ("text:2:0", "a dog", "2"),
        ("text:2:1", "dogs", "2"),
    ]
    classify = read(folder, "classify", GOOD["classify"][::-1])
    assert [(e.text, e.target) for e in classify.examples if e.kind == "text"] == [("cat", 0), ("dog", 1)]
    assert [e.target for e in classify.examples if e.kind == "image"] == [1, 0]
    assert "2 classes: the labels of the data, sorted" in classify.notes[0]
    vqa = read(folder, "vqa", GOOD["vqa"])
    assert [(e.text, e.target) for e in vqa.examples] == [("what?", ["cat"]), ("how?", ["so"])]
    assert len({e.cluster for e in vqa.examples}) == 1
    bare = read(folder, "caption", [{"image": "a.png"}, {"image": "sub/../b.png"}])
    assert [(e.target, e.cluster) for e in bare.examples] == [(None, "a.png"), (None, "b.png")]


def test_ids_of_ones_own_and_absolute_paths(folder):
    records = [{"image": str(folder / "a.png"), "id": "x"}, {"image": "b.png", "id": 7}]
    assert [e.id for e in read(folder, "caption", records).examples] == ["x", "7"]


BAD = {
    "no JSON": ("caption", [{"image": "a.png"}, "{image"], r"mine\.jsonl:2: not valid JSON"),
    "no object": ("caption", [{"image": "a.png"}, [1]], r"mine\.jsonl:2: expected an object such as .*, found list"),
    "unknown key": ("caption", [{"imge": "a.png"}], r"mine\.jsonl:1: no key 'imge' .*did you mean 'image'"),
    "key of another task": (
        "caption",
        [{"image": "a.png", "label": "x"}],
        r"mine\.jsonl:1: no key 'label' in a line of caption",
    ),
    "no image": ("caption", [{"captions": ["a"]}], r"mine\.jsonl:1: key 'image' is missing"),
    "empty image": ("caption", [{"image": " "}], r"mine\.jsonl:1: 'image' is empty"),
    "null in image": ("caption", [{"image": "a\0.png"}], r"mine\.jsonl:1: 'image' is empty"),
    "missing image": (
        "caption",
        [{"image": "a.png"}, {"image": "c.png"}, {"image": "d.png"}],
        r"mine\.jsonl:2: image c\.png not found in .* \(2 of 3 lines",
    ),
    "no label": ("classify", [{"image": "a.png"}], r"mine\.jsonl:1: key 'label' is missing"),
    "no captions": ("retrieval", [{"image": "a.png"}], r"mine\.jsonl:1: key 'captions' is missing"),
    "empty captions": ("retrieval", [{"image": "a.png", "captions": []}], r"mine\.jsonl:1: 'captions' is empty"),
    "empty caption": (
        "retrieval",
        [{"image": "a.png", "captions": ["a", " "]}],
        r"mine\.jsonl:1: 'captions\[1\]' is an empty",
    ),
    "number as caption": (
        "retrieval",
        [{"image": "a.png", "captions": [3]}],
        r"mine\.jsonl:1: 'captions\[0\]' should be str",
    ),
    "text as captions": (
        "retrieval",
        [{"image": "a.png", "captions": "a"}],
        r"mine\.jsonl:1: 'captions' should be list",
    ),
    "both": (
        "retrieval",
        [{"image": "a.png", "caption": "a", "captions": ["a"]}],
        r"mine\.jsonl:1: has both 'caption' and",
    ),
    "number as answer": (
        "vqa",
        [{"image": "a.png", "question": "?", "answer": 3}],
        r"mine\.jsonl:1: 'answer' should be str",
    ),
    "no question": ("vqa", [{"image": "a.png", "answer": "3"}], r"mine\.jsonl:1: key 'question' is missing"),
    "id twice": (
        "caption",
        [{"image": "a.png", "id": "7"}, {"image": "b.png", "id": 7}],
        r"mine\.jsonl:2: id 7 is that of line 1, too",
    ),
    "image twice": (
        "caption",
        [{"image": "a.png"}, {"image": "./a.png"}],
        r"mine\.jsonl:2: image a\.png is that of line 1",
    ),
    "empty id": ("caption", [{"image": "a.png", "id": ""}], r"mine\.jsonl:1: 'id' is empty"),
    "some ids": (
        "caption",
        [{"image": "a.png", "id": "1"}, {"image": "b.png"}],
        r"mine\.jsonl:2: has no 'id', line 1 has",
    ),
    "some references": (
        "caption",
        [{"image": "a.png"}, {"image": "b.png", "caption": "b"}],
        r"mine\.jsonl:2: has 'captions', line 1 has none",
    ),
    "some answers": (
        "vqa",
        [{"image": "a.png", "question": "?", "answer": "a"}, {"image": "a.png", "question": "?"}],
        r"mine\.jsonl:2: has no 'answers', line 1 has",
    ),
    "nothing": ("caption", [], r"mine\.jsonl: holds no samples"),
    "one class": ("classify", [{"image": "a.png", "label": "cat"}], r"mine\.jsonl: all labels are 'cat'"),
    "half a character": (
        "retrieval",
        ['{"image": "a.png", "caption": "\\ud800"}'],
        r"mine\.jsonl:1: .*half a character",
    ),
    "key twice": ("caption", ['{"image": "a.png", "image": "b.png"}'], r"mine\.jsonl:1: key 'image' comes twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_told_with_file_and_line(folder, case):
    task, records, message = BAD[case]
    with pytest.raises(BenchError, match=message):
        read(folder, task, records)


def test_a_folder_and_no_file_are_told(folder):
    with pytest.raises(BenchError, match="is a folder; give the file"):
        get_task("caption")(folder).read("mine")
    with pytest.raises(BenchError, match=r"none\.jsonl: caption data file not found; check its name"):
        get_task("caption")(folder / "none.jsonl").read("none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["cat"], r"mine\.jsonl:2: label 'dog' is no class of .*names\.json"),
        (["cat", "dogs"], r"mine\.jsonl:2: label 'dog' is no class of .*did you mean 'dogs'"),
        (["cat", "cat"], "class cat is listed twice"),
        ([1, 2], "expected a JSON list of class names"),
        ({"cat": ""}, "expected a JSON list of class names"),
        ([], "expected a JSON list of class names"),
    ],
)
def test_a_file_of_classes_must_hold_the_labels(folder, content, message):
    (folder / "names.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=message):
        read(folder, "classify", GOOD["classify"], class_names=str(folder / "names.json"))


def test_more_classes_and_other_words_for_them_come_from_a_file(folder):
    (folder / "names.json").write_text(json.dumps({"dog": "hound", "cat": "cat", "bird": "bird"}))
    (folder / "templates.json").write_text(json.dumps(["a {}.", "the {}."]))
    options = {"class_names": str(folder / "names.json"), "templates": str(folder / "templates.json")}
    split = read(folder, "classify", GOOD["classify"], **options)
    texts = [(e.target, e.text) for e in split.examples if e.kind == "text"]
    assert texts[:3] == [(0, "a hound."), (0, "the hound."), (1, "a cat.")]
    assert len(texts) == 6
    assert [e.target for e in split.examples if e.kind == "image"] == [1, 0]
    assert "3 classes: those of" in split.notes[0]
    assert "in 2 templates of" in split.notes[0]


@pytest.mark.parametrize(
    ("name", "good"), [("shop 1.2", True), ("größe", True), ("a/b", False), ("", False), ("a\n", False), (7, False)]
)
def test_a_name_of_data_can_stand_in_a_folders_name(name, good):
    task = get_task("caption")
    if good:
        assert task.split_of(name, Path("x.jsonl")) == name
    else:
        with pytest.raises(BenchError, match="cannot be that of data"):
            task.split_of(name, Path("x.jsonl"))
    assert task.split_of(None, Path("some/shop.jsonl")) == "shop"
    with pytest.raises(BenchError, match=r"the file's name '\.hidden' .*--data-name"):
        task.split_of(None, Path(".hidden"))


def test_a_moved_file_with_its_pictures_is_the_same_data(folder, tmp_path_factory):
    from beit3_bench.harness.record.fingerprints import data_fingerprint

    before = read(folder, "caption", GOOD["caption"])
    other = tmp_path_factory.mktemp("other")
    for file in folder.iterdir():
        shutil.copy(file, other)
    after = get_task("caption")(other / "mine.jsonl").read("mine")
    prints = [data_fingerprint(s.examples, f / "mine.jsonl") for s, f in ((before, folder), (after, other))]
    assert prints[0] == prints[1]
    assert before.own == after.own
