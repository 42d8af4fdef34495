"""Which class folder is which output: what is known, what is noted, and what nobody can know."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import torch
from native import invoke, run_words

from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.class_folders import (
    check_class_folders,
    imagenet_classes,
    imagenet_lemmas,
    in_order,
    listed_order,
    names_by_number,
)
from beit3_bench.tasks.imagenet import ImageNet, ImageNetLinear


def renamed(native, tmp_path, name):
    """The tiny ImageNet with folder i, in sorted order, called ``name(i)``."""
    root = native.copy("imagenet-linear", tmp_path)
    for split in ("val", "train"):
        for i, folder in enumerate(sorted((root / split).iterdir())):
            folder.rename(root / split / name(i))
    return root


def checkpoint(native, tmp_path, metadata=None, raw=False):
    content = torch.load(native.checkpoint("imagenet-linear"), weights_only=True)
    if raw:
        content[METADATA_KEY] = {"config": content[METADATA_KEY]["config"]}
    content[METADATA_KEY].update(metadata or {})
    torch.save(content, tmp_path / "m.pth")
    return tmp_path / "m.pth"


def run(native, root, file, *more):
    words = run_words(native, "imagenet-linear", root)
    words[words.index("--checkpoint") + 1] = file
    return invoke(*words, *more, "--json")


def own(native):
    return {"labels": sorted(p.name for p in (native.root("imagenet-linear") / "val").iterdir()), "head_arguments": {}}


def test_numbers_are_sorted_as_numbers_and_everything_else_as_text():
    assert in_order(["10", "9", "1", "2"]) == ["1", "2", "9", "10"]
    assert in_order(["0010", "0009"]) == ["0009", "0010"]
    assert in_order(["n02", "n01", "10"]) == ["10", "n01", "n02"]
    with pytest.raises(BenchError, match="are the same number"):
        in_order(["1", "01"])


@pytest.mark.parametrize("name", [str, "{:03d}".format])
def test_folders_numbered_from_zero_are_the_outputs_of_that_number_and_noted(native, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = checkpoint(native, tmp_path, own(native))
    right = json.loads(run(native, native.root("imagenet-linear"), file).stdout)
    assert right["notes"] == []
    numbered = json.loads(run(native, renamed(native, tmp_path, name), file).stdout)
    assert numbered["metrics"]["top1"]["value"] == right["metrics"]["top1"]["value"]
    assert "class folders are named by number: folder N is taken to be output N of the head" in numbered["notes"]


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        (lambda i: str(i + 1), True, "class folders are numbered 1..10, and nothing says which output"),
        (lambda i: str(i + 1), False, "class folders are numbered 1..10, and nothing says which output"),
        (lambda i: str(2 * i), True, "class folders are numbered 0..18, and nothing says which output"),
        (
            "class {}".format,
            True,
            "was trained for other classes than .*output 0 is 'n.*' in the checkpoint, 'class 0' here",
        ),
        ("class {}".format, False, "class folder 'class 0' is no WordNet id, and the checkpoint carries no class list"),
        (lambda i: f"n{i:08d}", True, "was trained for other classes than"),
    ],
)
def test_an_order_that_cannot_be_known_is_refused(native, tmp_path, name, metadata, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = checkpoint(native, tmp_path, own(native)) if metadata else checkpoint(native, tmp_path, raw=True)
    done = run(native, renamed(native, tmp_path, name), file)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    import re

    assert re.search(message, done.stderr), done.stderr


def test_a_list_says_which_output_a_folder_is(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = checkpoint(native, tmp_path, own(native))
    right = json.loads(run(native, native.root("imagenet-linear"), file).stdout)
    names = ["nine", "eight", "seven", "six", "five", "four", "three", "two", "one", "zero"]
    root = renamed(native, tmp_path, names.__getitem__)
    (tmp_path / "list.json").write_text(json.dumps(names))
    listed = json.loads(run(native, root, file, "-o", f"class_names={tmp_path / 'list.json'}").stdout)
    assert listed["metrics"]["top1"]["value"] == right["metrics"]["top1"]["value"]
    assert listed["notes"][-1] == "class folders are paired with the outputs as list.json lists them"
    (tmp_path / "list.json").write_text(json.dumps(names[:-1]))
    refused = run(native, root, file, "-o", f"class_names={tmp_path / 'list.json'}")
    assert refused.exit_code == 2
    assert "'zero' is in the folders only" in refused.stderr


def test_a_list_that_contradicts_the_checkpoint_is_refused(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = own(native)["labels"]
    (tmp_path / "list.json").write_text(json.dumps(labels[::-1]))
    done = run(
        native,
        native.root("imagenet-linear"),
        checkpoint(native, tmp_path, own(native)),
        "-o",
        f"class_names={tmp_path / 'list.json'}",
    )
    assert done.exit_code == 2
    assert "is not the checkpoint's own order" in done.stderr


def test_a_checkpoint_without_classes_is_noted(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(native, native.root("imagenet-linear"), checkpoint(native, tmp_path, raw=True))
    assert json.loads(done.stdout)["notes"] == [
        "the checkpoint carries no class list: its outputs are taken to be the class folders in sorted order"
    ]


@pytest.mark.parametrize("there", [True, False])
def test_lemmas_are_those_of_timm_wherever_it_keeps_them(there, monkeypatch):
    from timm.data import ImageNetInfo

    info, find = ImageNetInfo("imagenet-1k"), importlib.util.find_spec
    imagenet_lemmas.cache_clear()
    with monkeypatch.context() as patched:
        if not there:
            patched.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
        lemmas = imagenet_lemmas()
    imagenet_lemmas.cache_clear()
    assert list(lemmas) == info.label_names()
    assert list(lemmas.values()) == info.label_descriptions()


def test_classes_of_imagenet_are_known_without_the_import_of_timm():
    code = (
        "import sys; from beit3_bench.tasks.class_folders import readable_names\n"
        "print(readable_names(['n01440764', 'n00000000', 'n03126707', 'n02012849']), 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['tench', 'n00000000', 'crane', 'crane'] False\n"


def test_released_heads_have_the_classes_of_imagenet(tmp_path):
    classes = imagenet_classes()
    assert len(classes) == 1000
    released = Outputs(tmp_path / "beit3_base_patch16_224_in1k.pth", count=1000, released=True)
    mine = Outputs(tmp_path / "mine.pth", count=1000)
    for of in (released, mine):
        assert check_class_folders(classes, None, tmp_path, of) == []
    others = sorted([*classes[1:], "n99999999"])
    with pytest.raises(BenchError, match=f"output 0 is '{classes[0]}' in the checkpoint, '{classes[1]}' here"):
        check_class_folders(others, None, tmp_path, released)
    assert "no class list" in check_class_folders(others, None, tmp_path, mine)[0]
    numbers = [str(i) for i in range(1000)]  # as ImageNet-V2 comes
    assert "named by number" in check_class_folders(numbers, None, tmp_path, released)[0]
    with pytest.raises(BenchError, match=r"ILSVRC's own numbers 1\.\.1000"):
        check_class_folders([str(i + 1) for i in range(1000)], None, tmp_path, released)


def test_what_an_earlier_version_fine_tuned_on_numbers_is_refused(tmp_path):
    folders = [str(i) for i in range(12)]
    outputs = Outputs(tmp_path / "m.pth", count=12, metadata={"head_arguments": {"num_classes": 12}})
    with pytest.raises(BenchError, match=r"sorted the folders of .* as text"):
        check_class_folders(folders, None, tmp_path, outputs)


def test_a_head_of_another_size_names_the_folder_and_gives_no_advice_that_ends_in_a_random_head(
    native, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root = native.copy("imagenet-linear", tmp_path)
    (root / "val" / "spoons").mkdir()
    file = checkpoint(native, tmp_path, own(native))
    done = run(native, root, file)
    assert done.exit_code == 2
    assert "its head tells 10 classes apart" in done.stderr
    assert "has 11 class folders (is 'spoons' a class?)" in done.stderr
    assert "allow-missing" not in done.stderr
    shutil.rmtree(root / "val" / sorted(own(native)["labels"])[0])
    shutil.rmtree(root / "val" / "spoons")
    done = run(native, root, file)
    assert done.exit_code == 2
    assert "has 9 class folders; give the data set that it was trained for" in done.stderr


def test_a_random_head_is_a_note_in_the_result_and_on_the_terminal(native, tmp_path):
    file = checkpoint(native, tmp_path, own(native))
    content = torch.load(file, weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if not k.startswith("head")}
    torch.save(content, file)
    words = run_words(native, "imagenet-linear")
    words[words.index("--checkpoint") + 1] = file
    done = invoke(*words, "--allow-missing", "head.*", "--output", tmp_path / "run")
    note = "2 tensors kept random values (head.weight, head.bias): this measures no trained model"
    assert f"note: {note}" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["notes"][-1] == note
    assert note in invoke("table", "--runs", tmp_path).stdout


def test_a_head_that_is_loaded_is_checked_whatever_may_be_missing(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = checkpoint(native, tmp_path, own(native))
    done = run(native, renamed(native, tmp_path, "class {}".format), file, "--allow-missing", "head.*")
    assert done.exit_code == 2
    assert "was trained for other classes" in done.stderr


# ---- class texts -----------------------------------------------------------------------------------------------------


def folders(tmp_path, names):
    for name in names:
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.jpg").touch()


def texts(tmp_path, names):
    (tmp_path / "names.json").write_text(json.dumps(names))
    found = ImageNet(tmp_path, {"class_names": str(tmp_path / "names.json")}).class_texts()
    return {folder: text for folder, (text,) in found.items()}


def test_a_list_in_label_order_gives_folder_ten_the_name_ten(tmp_path):
    folders(tmp_path, [str(i) for i in range(12)])
    names = [f"name{i}" for i in range(12)]
    assert texts(tmp_path, names) == {str(i): f"name{i}" for i in range(12)}
    shutil.rmtree(tmp_path / "val" / "3")  # a part of the classes
    assert texts(tmp_path, names)["10"] == "name10"
    with pytest.raises(BenchError, match="has 11 names, the class folders are numbered up to 11"):
        texts(tmp_path, names[:-1])


def test_a_list_beside_folders_from_one_or_by_name_is_refused_and_an_object_taken(tmp_path):
    folders(tmp_path / "one", [str(i + 1) for i in range(12)])
    with pytest.raises(BenchError, match="numbered from 1; give an object by folder name"):
        texts(tmp_path / "one", [f"name{i}" for i in range(12)])
    assert texts(tmp_path / "one", {str(i + 1): f"name{i}" for i in range(12)})["10"] == "name9"
    folders(tmp_path / "words", ["cat", "dog"])
    with pytest.raises(BenchError, match="a folder like 'cat'; give an object by folder name"):
        texts(tmp_path / "words", ["a cat", "a dog"])
    with pytest.raises(BenchError, match="are numbered up to 9"):
        names_by_number(["9"], ["a"], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 0}, "expected a JSON list"),
        (["a", "a"], "twice"),
        (["a", "c"], "'b' is in the folders"),
        ([1], "JSON list"),
    ],
)
def test_a_class_list_holds_every_folder_once(tmp_path, content, message):
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=message):
        listed_order(["a", "b"], tmp_path / "list.json")


def test_training_and_evaluation_order_folders_alike(tmp_path):
    folders(tmp_path, [str(i) for i in range(12)])
    task = ImageNetLinear(tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / "train")
    for split in (task.read("val"), task.training_split()):
        assert split.labels == tuple(str(i) for i in range(12))
        assert {e.id: e.target for e in split.examples}["image:10/a.jpg"] == 10
        assert task.check_outputs(split, Outputs(tmp_path / "m.pth", split.labels, 12)) == []
