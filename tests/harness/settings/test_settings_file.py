"""beit3-bench.toml: where it is looked for, what it may say, and how it is refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.harness.settings.files import (
    NAME,
    TEMPLATE,
    Settings,
    find_files,
    line_of,
    read_settings,
    user_file,
)


def written(folder: Path, text: str, name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


# ---- where ---------------------------------------------------------------------------------------------------------------


def test_nearest_file_above_counts_and_then_the_users_own(tmp_path):
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "own")}
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    assert find_files(deep, environment) == []
    own = written(tmp_path / "own" / "beit3-bench", "", "config.toml")
    assert find_files(deep, environment) == [own]
    far = written(tmp_path / "a", "")
    assert find_files(deep, environment) == [far, own]
    near = written(deep, "")
    assert find_files(deep, environment) == [near, own]


def test_a_folder_of_that_name_is_no_file(tmp_path):
    (tmp_path / "a" / NAME).mkdir(parents=True)
    above = written(tmp_path, "")
    assert find_files(tmp_path / "a", {"XDG_CONFIG_HOME": str(tmp_path / "none")}) == [above]


def test_a_relative_folder_for_configuration_is_ignored_as_its_specification_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "here"}):
        assert user_file(environment) == tmp_path / ".config" / "beit3-bench" / "config.toml"


def test_paths_are_below_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    said = read_settings(written(tmp_path / "a", 'tokenizer = "weights/x.spm"'))
    assert said.place(said.settings.tokenizer) == tmp_path / "a" / "weights" / "x.spm"
    assert said.place("../b") == tmp_path / "b"
    assert said.place("/c") == Path("/c")
    assert said.place("~/d") == Path("/home/me/d")


# ---- what ----------------------------------------------------------------------------------------------------------------


def test_every_key_is_read(tmp_path):
    text = """
    tokenizer = "t.spm"
    device = "cuda:1"
    dtype = "bf16"
    workers = 0
    image-cache = "images"
    features = "features"
    output = "out"
    [data]
    root = "/data"
    coco = "/elsewhere"
    nlvr2 = "/there"
    [checkpoints]
    root = "weights"
    coco-det = "detectron/model_final.pth"
    """
    assert read_settings(written(tmp_path, text)).settings == Settings(
        data={"root": Path("/data"), "coco": Path("/elsewhere"), "nlvr2": Path("/there")},
        checkpoints={"root": "weights", "coco-det": "detectron/model_final.pth"},
        tokenizer=Path("t.spm"),
        device="cuda:1",
        dtype="bf16",
        workers=0,
        image_cache=Path("images"),
        features=Path("features"),
        output=Path("out"),
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('# device\n\ndevcie = "cpu"', ":3: no key 'devcie'; did you mean 'device'?"),
        ('[data]\nroot = "/x"\ncocoo = "/y"', ":3: [data] has no key 'cocoo'; did you mean 'coco'?"),
        ('[checkpoints]\ncoco = "/y"', ":2: [checkpoints] has no key 'coco'; did you mean"),
        ('note = """\ndevice = 3\n"""', ":1: no key 'note'; "),
        ('dtype = "fp32"\nworkers = "4"', ":2: workers: '4' is not a whole number; write it without quotes"),
        ("workers = true", ":1: workers: True is not a whole number"),
        ("\nworkers = -1", ":2: workers: -1 is below 0"),
        ('dtype = "fp8"', ":1: dtype: 'fp8'; choose one of: fp32, bf16, fp16"),
        ("device = 0", ":1: device: 0 is not a text"),
        ("[data]\n\nroot = 3", ":3: data: root: 3 is not a path"),
        ("data = 3", ":1: data is neither a path in quotes nor a table of such"),
        ('checkpoints = ["a"]', ":1: checkpoints is neither a path in quotes nor a table of such"),
        ('data = ""', ":1: data: is empty"),
        ('[data]\nroot = ""', ":2: data: root: is empty"),
        ('device = "cpu"\ndevice = "cuda"', ":2: is not valid TOML (Cannot overwrite a value)"),
        ('device = "cpu\n', ":1: is not valid TOML"),
        ('[[run]]\ntask = "nlvr2"', ":1: no key 'run'; "),
    ],
)
def test_what_it_does_not_know_is_refused_with_file_line_and_mend(tmp_path, text, line):
    file = written(tmp_path, text)
    with pytest.raises(BenchError) as refused:
        read_settings(file)
    assert str(refused.value).startswith(f"{file}{line}")


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"\xff\xfed\0", "UTF-16"), (b'device = "\xff"', "not UTF-8"), (b"PK\x03\x04", "zip archive")],
)
def test_what_is_no_text_is_refused(tmp_path, content, line):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(BenchError, match=line):
        read_settings(tmp_path / NAME)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a = 1\nb = 2", ("b",), 2),
        ("# b = 1\nb = 2", ("b",), 2),
        ('a = """\nb = 1\n"""\nb = 2', ("b",), 4),
        ("a = [\n 1,\n 2]\nb = [\n 3,\n]", ("b",), 4),
        ("[t]\nb = 1\n[u]\nb = 2", ("u", "b"), 4),
        ("[[run]]\nb = 1\n[[run]]\n\nb = 2", ("run", 1, "b"), 5),
        ("[[run]]\nb = 1\n[[run]]\n\nb = 2", ("run", 1), 3),
        ("a.b = 1\na.c = 2", ("a", "c"), 2),
        ('"\\u0062" = 1', ("b",), None),
        ("a = 1", ("b",), None),
    ],
)
def test_line_of_a_key(text, key, line):
    assert line_of(text, key) == line


# ---- init ----------------------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_says_nothing_until_it_is_edited(here):
    done = invoke("init")
    assert (done.exit_code, done.stdout) == (0, f"{NAME}\n")
    assert read_settings(here / NAME).settings == Settings()


def test_what_init_comments_out_is_what_can_be_said(tmp_path):
    """Each of its examples is taken, and all keys have one."""
    lines = TEMPLATE.read_text().splitlines()
    examples = [
        line.removeprefix("# ") for line in lines if line.startswith("# ") and (" = " in line or line[2] == "[")
    ]
    examples = [line for line in examples if not line.startswith(("data =", "checkpoints ="))]
    first_table = next(i for i, line in enumerate(examples) if line.startswith("["))
    plain = [line for line in examples[first_table:] if line.split(" = ")[0] in Settings.__dataclass_fields__]
    tables = [line for line in examples if line not in plain]
    text = "\n".join([*plain, *tables])
    assert {*tomllib.loads(text)} == {*Settings.__dataclass_fields__}
    assert read_settings(written(tmp_path, text)).settings.workers == 8


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_init_replaces_nothing(here, kind):
    other = here / "other"
    if kind == "file":
        (here / NAME).write_text("mine")
    elif kind == "link":
        (here / NAME).symlink_to(other)
    else:
        (here / NAME).mkdir()
    done = invoke("init")
    assert done.exit_code == 2
    assert done.stderr == f"error: {NAME}: is there already, and is not replaced; edit it, or move it away\n"
    assert not other.exists()
    assert kind != "file" or (here / NAME).read_text() == "mine"


def test_init_of_the_user(here):
    done = invoke("init", "--user")
    file = here.parent / "own" / "beit3-bench" / "config.toml"
    assert done.stdout == f"{file}\n"
    assert file.read_bytes() == TEMPLATE.read_bytes()
    assert find_files(here, os.environ) == [file]
