"""`run` on checkpoints as they are in the world gives the plain file's rows, and says what it chose."""

from __future__ import annotations

import argparse
import gc
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from native import invoke, run_words
from safetensors.torch import save_file

from beit3_bench import load
from beit3_bench.backbones.checkpoints import METADATA_KEY

Content = dict[str, Any]


def prefixed(prefix: str) -> Callable[[Content], Content]:
    return lambda c: {**c, "model": {prefix + name: value for name, value in c["model"].items()}}


FORMS: dict[str, Callable[[Content], Content]] = {
    "_orig_mod.": prefixed("_orig_mod."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "state_dict, model.": lambda c: {METADATA_KEY: c[METADATA_KEY], "state_dict": prefixed("model.")(c)["model"]},
    "numpy number": lambda c: {**c, "epoch": 3, "best_acc": np.float64(87.3)},
    "paths": lambda c: {**c, "args": argparse.Namespace(output_dir=pathlib.PosixPath("/x"))},
}


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted((folder / "rows").glob("*.jsonl"))
        for line in path.read_text().split("\n")
        if line
    ]
    return [line for line in lines if "id" in line]


@pytest.fixture(scope="module")
def content(native) -> Content:
    return torch.load(native.checkpoint("flickr30k"), weights_only=True)


@pytest.fixture(scope="module")
def run(native) -> Callable[[pathlib.Path, pathlib.Path], Any]:
    def execute(checkpoint: pathlib.Path, output: pathlib.Path) -> Any:
        words = [
            *run_words(native, "flickr30k"),
            "--tokenizer",
            native.world / "beit3.spm",
            "--limit",
            2,
            "--output",
            output,
        ]
        words[words.index("--checkpoint") + 1] = checkpoint
        return invoke(*words)

    return execute


@pytest.fixture(scope="module")
def expected(native, run, tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert run(native.checkpoint("flickr30k"), folder).exit_code == 0
    return rows(folder)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_rows_of_the_plain_file(content, run, expected, tmp_path, form):
    path = tmp_path / "x.pth"
    torch.save(FORMS[form](content), path)
    outcome = run(path, tmp_path / "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert rows(tmp_path / "run") == expected


@pytest.mark.parametrize("form", ["one file", "folder", "index"])
def test_safetensors_and_sets_of_shards_give_the_rows_of_the_plain_file(native, content, run, expected, tmp_path, form):
    named = {f"_orig_mod.{name}": value for name, value in content["model"].items()}
    metadata = {METADATA_KEY: json.dumps(content[METADATA_KEY])}
    folder = tmp_path / "weights"
    folder.mkdir()
    if form == "one file":
        path = folder / "x.safetensors"
        save_file(named, path, metadata=metadata)
    else:
        names = list(named)
        places = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(names)}
        for file in set(places.values()):
            save_file({n: named[n] for n in names if places[n] == file}, folder / file, metadata=metadata)
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": places}))
    outcome = run(folder if form == "folder" else path, tmp_path / "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert rows(tmp_path / "run") == expected
    words = run_words(native, "flickr30k")
    named = ["--checkpoint", folder if form == "folder" else path, "--data-root", words[words.index("--data-root") + 1]]
    again = invoke("replay", tmp_path / "run", *named, "--tokenizer", native.world / "beit3.spm")
    assert again.exit_code == 0, again.stderr


def test_which_weights_were_read_is_said_and_kept_in_the_result(content, run, expected, tmp_path):
    averaged = {name: value + 1 for name, value in content["model"].items()}
    torch.save({"model_ema": averaged, **content}, tmp_path / "x.pth")
    outcome = run(tmp_path / "x.pth", tmp_path / "run")
    assert outcome.exit_code == 0, outcome.stderr
    note = "'model' was read, not 'model_ema'"
    assert note in outcome.stderr
    assert any(note in line for line in json.loads((tmp_path / "run" / "result.json").read_text())["notes"])
    assert rows(tmp_path / "run") == expected


def test_a_training_says_which_weights_it_starts_from(native, content, tmp_path):
    averaged = {name: value + 1 for name, value in content["model"].items()}
    torch.save({"model_ema": averaged, **content}, tmp_path / "x.pth")
    words = [
        "finetune",
        *run_words(native, "flickr30k")[1:],
        "--preset",
        "tiny",
        "--tokenizer",
        native.world / "beit3.spm",
    ]
    words[words.index("--checkpoint") + 1] = tmp_path / "x.pth"
    options = {"steps": 1, "batch": 4, "warmup_steps": 0, "warmup_epochs": 0}
    named = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    outcome = invoke(*words, *named, "--output", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert "note: the checkpoint holds several sets of weights: 'model' was read, not 'model_ema'" in outcome.stdout


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("x.pth", lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
        ("x.pth", lambda p: p.write_bytes(b"<!DOCTYPE html>"), "web page"),
        ("x.pth", lambda p: p.mkdir(), "is a folder"),
        (
            "x.pth",
            lambda p: torch.save({"model": {"mine.beit3.x": torch.ones(1)}}, p),
            "one of its names: 'mine.beit3.x'",
        ),
    ],
)
def test_what_is_no_checkpoint_is_one_line(run, tmp_path, name, make, message):
    make(tmp_path / name)
    outcome = run(tmp_path / name, tmp_path / "run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert message in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_loaded_model_has_the_only_copy_of_its_weights(native, tmp_path, form):
    """The file is mapped while tensors are copied out of it, and let go: a giant model would else count twice."""
    plain = native.checkpoint("imagenet-linear")
    if form == "safetensors":
        content = torch.load(plain, weights_only=True)
        file = tmp_path / "model.safetensors"
        save_file({name: value.contiguous() for name, value in content["model"].items()}, file)
    else:
        file = pathlib.Path(shutil.copy(plain, tmp_path / "model.pth"))
    options = {} if form == "pth" else {"num_heads": 4}
    model = load(f"beit3:{file}", "imagenet-linear", device="cpu", **options)
    gc.collect()
    mapped = pathlib.Path("/proc/self/maps")
    assert len(model.module.state_dict()) > 20
    assert not mapped.exists() or str(file) not in mapped.read_text()
