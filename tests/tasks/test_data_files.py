"""Readers of text: encodings, what a file is instead, and mends that fit the file."""

from __future__ import annotations

import codecs
import gzip
import json

import pytest

from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import (
    field,
    identifier,
    read_csv,
    read_json,
    read_json_lines,
    read_records,
    read_text,
    whole_number,
    write_json,
    write_json_list,
)
from beit3_bench.tasks.registry import get_task

RECORDS = [{"image_id": 1, "caption": "ein Mädchen, 日本"}, {"image_id": 2, "caption": "b"}]
FORM = 'a JSON list of {"image_id": 42, "caption": "a cat"}'
READERS = {
    "json": (read_json, json.dumps(RECORDS, ensure_ascii=False)),
    "json lines": (read_json_lines, "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS)),
    "records": (read_records, json.dumps(RECORDS, ensure_ascii=False)),
    "csv": (read_csv, "dev-1-0-0,True\ndev-1-0-1,é\n"),
    "text": (read_text, "one\ntwo é\n"),
}
readers = pytest.mark.parametrize("name", READERS)


def read(reader, path):
    return reader(path, "caption results", FORM)


@readers
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_marks_and_line_ends_change_nothing(tmp_path, name, mark, end):
    reader, text = READERS[name]
    path = tmp_path / "file"
    path.write_bytes(text.encode())
    expected = read(reader, path)
    path.write_bytes(mark + text.replace("\n", end).encode())
    assert read(reader, path) == expected


@readers
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("marked", [True, False])
def test_other_unicode_is_named(tmp_path, name, encoding, marked):
    reader, text = READERS[name]
    path = tmp_path / "file"
    ascii_text = text.encode("ascii", "ignore").decode()
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-le": codecs.BOM_UTF32_LE}
    path.write_bytes((mark.get(encoding, b"") if marked else b"") + ascii_text.encode(encoding))
    with pytest.raises(BenchError, match=rf"is {encoding[:6].upper()} text( .*)?; save it as UTF-8"):
        read(reader, path)


@readers
def test_latin_1_is_told_to_be_saved_as_utf_8(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes("Mädchen,True".encode("latin-1"))
    with pytest.raises(BenchError, match=r"not UTF-8 text .* at byte 1\); save it as UTF-8$"):
        read(READERS[name][0], path)


@readers
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"[]", mtime=0), "is compressed with gzip, .*; unpack it"),
        (b"PK\x03\x04....", "is a zip archive, .*; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (bytes(300), "holds zero bytes only; expected"),
    ],
)
def test_what_a_file_is_instead_is_named(tmp_path, name, content, words):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=words):
        read(READERS[name][0], path)


@readers
def test_missing_files_and_folders_are_one_line(tmp_path, name):
    for path in (tmp_path / "no", tmp_path, "a\0b"):
        with pytest.raises(BenchError) as caught:
            read(READERS[name][0], path)
        assert "\n" not in str(caught.value)
        assert "--data-root" not in str(caught.value), "a file of one's own lies elsewhere"


BROKEN = {
    '{"a": 1': "not valid JSON",
    "": "is empty",
    "  \n": "is empty",
    '{"a": 1}\n{"a": 2}\n': "holds several JSON values, one a line",
    '{"a": NaN}': "holds NaN",
    '{"a": -Infinity}': "holds -Infinity",
    '{"a": 1, "b": 2, "a": 3}': "key 'a' comes twice",
    '[{"x": {"a": 1, "a": 1}}]': "key 'a' comes twice",
    "[" * 100_000: "nested too deeply",
    '{"a": ' * 100_000: "nested too deeply",
    "9" * 5000: "thousands of digits",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda t: t[:20])
def test_broken_json_is_one_line_and_the_mend_fits_the_file(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    for form in (FORM, None):
        with pytest.raises(BenchError, match=BROKEN[text]) as caught:
            read_json(path, "Karpathy split", form)
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(str(path))
        if form:
            assert "again" not in line
        elif "twice" not in line and "holds" not in line:
            assert "get the Karpathy split file again" in line


def test_json_lines_name_the_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": }\n')
    with pytest.raises(BenchError, match=r"x\.jsonl:3: not valid JSON \(Expecting value\)"):
        read_json_lines(path, "NLVR2")
    path.write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    with pytest.raises(BenchError, match=r"x\.jsonl:2: key 'a' comes twice"):
        read_json_lines(path, "NLVR2")
    path.write_text(json.dumps(RECORDS, indent=1))
    with pytest.raises(BenchError, match=r"x\.jsonl:1: is one JSON value over several lines; .*one JSON object a line"):
        read_json_lines(path, "NLVR2")


# ---- result files -------------------------------------------------------------------------------------------------------


def test_records_are_read_from_a_list_or_from_lines(tmp_path):
    path = tmp_path / "x"
    for text in (json.dumps(RECORDS), json.dumps(RECORDS, indent=2), "\n\n".join(map(json.dumps, RECORDS)) + "\n"):
        path.write_text(text)
        assert read_records(path, "caption results", FORM) == RECORDS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"annotations": RECORDS},
            "holds an object, whose key 'annotations' holds a list: write that list alone; expected a JSON list of",
        ),
        ({"info": {}, "results": RECORDS}, "whose key 'results' holds a list"),
        ({"images": [], "annotations": []}, r"holds an object; expected a JSON list of"),
        (RECORDS[0], "holds an object; expected"),
        ("text", 'holds "text"; expected'),
        (None, "holds null; expected"),
        ({"info": [1], "results": RECORDS}, "whose key 'results' holds a list"),
    ],
)
def test_a_list_inside_of_an_object_is_named(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BenchError, match=words):
        read_records(path, "caption results", FORM)


# ---- fields -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [7, 7.0, "7"])
def test_whole_numbers_may_be_written_in_three_ways(value):
    assert whole_number({"id": value}, "id", "x") == 7
    assert identifier({"id": value}, "id", "x") == "7"


@pytest.mark.parametrize("value", [-3, 2**53, 10**30, "-3", "0"])
def test_other_whole_numbers(value):
    assert whole_number({"id": value}, "id", "x") == int(value)


@pytest.mark.parametrize(
    "value", [None, True, 7.5, 1e300, float("inf"), float("nan"), [7], {"a": 7}, "7.0", "", "٣", "x", "9" * 30]
)
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(BenchError, match=r"x: 'id' should be int \(a whole number\), found .*; mend this record"):
        whole_number({"id": value}, "id", "x")


@pytest.mark.parametrize("value", [None, True, 7.5, 1e300, [7], {"a": 7}])
def test_what_is_no_id_is_named(value):
    with pytest.raises(BenchError, match="'id' should be str or int"):
        identifier({"id": value}, "id", "x")
    with pytest.raises(BenchError, match="lone surrogate"):
        identifier({"id": "\ud800"}, "id", "x")


def test_a_missing_key_names_those_that_are_there():
    with pytest.raises(BenchError, match=r"x: key 'caption' is missing \(found: 'image_id', 'text'\)"):
        field({"image_id": 1, "text": "a"}, "caption", str, "x")


# ---- data sets ----------------------------------------------------------------------------------------------------------

DATA_FILES = {
    "flickr30k": ("flickr30k", "test", "dataset_flickr30k.json"),
    "coco-caption": ("coco-caption", "val", "dataset_coco.json"),
    "nocaps": ("nocaps", "val", "nocaps_val_4500_captions.json"),
    "vqav2 questions": ("vqav2", "val", "vqa/v2_OpenEnded_mscoco_val2014_questions.json"),
    "vqav2 annotations": ("vqav2", "val", "vqa/v2_mscoco_val2014_annotations.json"),
    "nlvr2": ("nlvr2", "test-P", "data/test1.json"),
}


@pytest.mark.parametrize("name", DATA_FILES)
def test_files_of_data_sets_may_have_a_mark_and_line_ends_of_windows(native, tmp_path, name):
    task, split, file = DATA_FILES[name]
    root = native.copy(task, tmp_path)
    expected = get_task(task)(root).read(split).examples
    path = root / file
    text = path.read_text()
    path.write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
    assert get_task(task)(root).read(split).examples == expected
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(BenchError, match=rf"{path.name}: is UTF-16 text .*; save it as UTF-8"):
        get_task(task)(root).read(split)


def test_option_files_may_have_a_mark(native, tmp_path):
    vqa = get_task("vqav2")
    answers = vqa(native.root("vqav2")).vocabulary()
    lines = "\r\n".join(json.dumps({"answer": a, "label": n}) for n, a in enumerate(answers))
    (tmp_path / "answer2label.txt").write_bytes(codecs.BOM_UTF8 + lines.encode())
    options = {"answer_vocab": str(tmp_path / "answer2label.txt")}
    assert vqa(native.root("vqav2"), options).vocabulary() == answers
    imagenet = get_task("imagenet")
    names = {name: f"a {name}" for name in imagenet(native.root("imagenet")).classes()}
    (tmp_path / "names.json").write_bytes(codecs.BOM_UTF8 + json.dumps(names).encode())
    (tmp_path / "templates.json").write_bytes(codecs.BOM_UTF8 + b'["{}."]')
    options = {"class_names": str(tmp_path / "names.json"), "templates": str(tmp_path / "templates.json")}
    assert imagenet(native.root("imagenet"), options).class_texts() == {k: [f"{v}."] for k, v in names.items()}


@pytest.mark.parametrize("count", [0, 1, 10_000, 20_001])
def test_a_list_written_in_blocks_is_the_file_that_a_whole_one_is(tmp_path, count):
    values = [{"n": n, "text": "日本"} for n in range(count)]
    write_json(tmp_path / "whole.json", values)
    write_json_list(tmp_path / "blocks.json", (value for value in values))
    assert (tmp_path / "blocks.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
