"""Folders of images: torchvision's rules, and what systems and editors leave behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from native import invoke, run_words
from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.tasks.ade20k import ADE20K
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.image_folders import (
    IMAGE_SUFFIXES,
    ImageFiles,
    class_folders,
    images_below,
    is_hidden,
    left_out_line,
)
from beit3_bench.tasks.imagenet import ImageNetLinear

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(76)
LITTER = ("._n02165456.JPEG", ".DS_Store", "Thumbs.db", "desktop.ini", "THUMBS.DB")
HIDDEN_FOLDERS = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".Trash-1000")


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_suffixes_are_those_of_torchvision():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMAGE_SUFFIXES) == set(IMG_EXTENSIONS)


@pytest.mark.parametrize(
    "name", [*LITTER, *HIDDEN_FOLDERS, "._x.png", "lost+found", "#recycle", "__pycache__", "Icon\r"]
)
def test_what_systems_leave_is_hidden(name):
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["n01440764", "a._b.jpg", "_x.jpg", "MACOSX", "thumbs", "0"])
def test_ordinary_names_are_not_hidden(name):
    assert not is_hidden(name)


def test_order_and_contents_are_those_of_torchvisions_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    names = [
        *(
            "b/2.JPEG",
            "b/10.jpeg",
            "b/sub/1.png",
            "b/sub-a/1.png",
            "b/sub/deep/0.bmp",
            "b/x.TIF",
            "b/y.Tiff",
            "b/z.webp",
        ),
        *("a/1.ppm", "a/1.pgm", "a/notes.txt", "a/Z.jpg", "a/z.jpg", "a/é.jpg"),
    ]
    for name in names:
        touch(tmp_path / name)
    expected = [(Path(path).relative_to(tmp_path).as_posix(), label) for path, label in ImageFolder(tmp_path).samples]
    classes = class_folders(tmp_path)
    ours = [
        (f"{name}/{file}", label) for label, name in enumerate(classes) for file in images_below(tmp_path / name).names
    ]
    assert ours == expected
    assert images_below(tmp_path / "a").left_out == ["notes.txt"]


def test_links_to_folders_are_followed_but_not_round_in_circles(tmp_path):
    touch(tmp_path / "val" / "a" / "1.jpg")
    touch(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "val" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "val" / "a" / "self").symlink_to(tmp_path / "val" / "a")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    assert images_below(tmp_path / "val" / "a").names == ["1.jpg", "linked/2.jpg"]


def test_what_is_left_out_is_counted_by_suffix_with_an_example(tmp_path):
    names = ["a/1.gif", "a/2.GIF", "b/3.gif", "b/list.txt", "README"]
    assert left_out_line(Path("val"), names) == (
        "val: 5 files are left out: 3 .gif (such as a/1.gif), 1 .txt (such as b/list.txt), 1 no suffix (such as README)"
    )
    assert left_out_line(Path("val"), []) is None
    assert left_out_line(Path("val"), ["a\x1b[2J\n.gif\n"]) == (
        r"val: 1 file is left out: 1 '.gif\n' (such as 'a\x1b[2J\n.gif\n')"
    )


def test_two_files_of_one_name_are_refused():
    files = ImageFiles(["1.jpg", "1.png"])
    with pytest.raises(BenchError, match=r"folder: 1\.jpg and 1\.png differ by their suffix alone; keep one"):
        files.by_stem(Path("folder"))


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path):
    try:
        touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(BenchError, match="is not UTF-8; rename it"):
        images_below(tmp_path)


# ---- ImageNet -----------------------------------------------------------------------------------------------------------


def litter(folder: Path) -> None:
    """What notebooks, macOS, Windows and file servers leave in a tree of class folders."""
    for name in HIDDEN_FOLDERS:
        touch(folder / name / "x.JPEG")
    for place in (folder, *(p for p in folder.iterdir() if not is_hidden(p.name))):
        for name in LITTER:
            touch(place / name, APPLE_DOUBLE)


def test_hidden_files_are_no_classes_and_no_images(native, tmp_path):
    root = native.copy("imagenet-linear", tmp_path)
    clean = ImageNetLinear(root)
    expected = [(e.id, e.target) for e in clean.read("val").examples], clean.classes()
    litter(root / "val")
    littered = ImageNetLinear(root)
    assert ([(e.id, e.target) for e in littered.read("val").examples], littered.classes()) == expected
    assert littered.read("val").left_out is None
    assert littered.read("train").examples


@pytest.mark.parametrize("task", ["imagenet", "imagenet-linear"])
def test_results_are_those_without_hidden_files(native, tmp_path, task):
    root = native.copy(task, tmp_path)
    words = [*run_words(native, task, root), "--limit", 12, "--json"]
    clean = json.loads(invoke(*words, "--output", tmp_path / "clean").stdout)
    litter(root / "val")
    outcome = invoke(*words, "--output", tmp_path / "littered")
    assert outcome.exit_code == 0, outcome.stderr
    again = json.loads(outcome.stdout)
    assert (again["metrics"], again["counts"]) == (clean["metrics"], clean["counts"])


def test_other_suffixes_and_nested_folders_are_read_and_the_rest_is_named(native, tmp_path):
    root = native.copy("imagenet-linear", tmp_path)
    before = len(ImageNetLinear(root).read("val").examples)
    folder = next(p for p in sorted((root / "val").iterdir()) if p.is_dir())
    picture = Image.open(next(folder.glob("*.JPEG")))
    for name in ("a.TIF", "b.webp", "c.PNG", "images/d.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture.save(folder / name)
    picture.save(folder / "e.gif")
    touch(root / "val" / "wnids.txt")
    task = ImageNetLinear(root)
    assert len(task.read("val").examples) == before + 4
    assert f"image:{folder.name}/images/d.jpg" in {e.id for e in task.read("val").examples}
    line = task.read("val").left_out
    assert "2 files are left out" in line
    assert f"1 .gif (such as {folder.name}/e.gif)" in line
    assert "1 .txt (such as wnids.txt)" in line

    outcome = invoke(*run_words(native, "imagenet-linear", root), "--output", tmp_path / "run", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"warning: {line}\n" in outcome.stderr
    assert line in json.loads(outcome.stdout)["notes"]
    assert line in invoke("data", "verify", "--task", "imagenet-linear", "--data-root", root, "--json").stdout


def test_classes_of_train_alone_are_left_out_and_named(native, tmp_path):
    root = native.copy("imagenet-linear", tmp_path)
    before = len(ImageNetLinear(root).read("train").examples)
    name = class_folders(root / "val")[-1]
    (root / "val" / name).rename(root / "elsewhere")
    task = ImageNetLinear(root)
    gone = before - len(task.read("train").examples)
    assert gone > 0
    assert f"{gone} files are left out: {gone} .jpeg (such as {name}/" in task.read("train").left_out


def test_a_tree_without_any_image_says_what_is_there(tmp_path):
    touch(tmp_path / "val" / "n01440764" / "1.gif")
    with pytest.raises(
        BenchError, match=r"no images \(\.jpg, .*1 file is left out: 1 \.gif \(such as n01440764/1\.gif\)"
    ):
        ImageNetLinear(tmp_path).read("val")


# ---- ADE20K -------------------------------------------------------------------------------------------------------------


def test_hidden_files_are_no_label_maps_and_no_predictions(native, tmp_path):
    source = native.world / "ADEChallengeData2016" / "annotations" / "validation"
    for side in ("predictions", "annotations"):
        for path in sorted(source.glob("*.png"))[:3]:
            touch(tmp_path / side / path.name, path.read_bytes())
    inputs = ScoreInputs(tmp_path / "predictions", tmp_path / "annotations")
    expected = ADE20K.score_file(inputs).metrics
    for side in ("predictions", "annotations"):
        touch(tmp_path / side / "._ADE_val_00000001.png", APPLE_DOUBLE)
        touch(tmp_path / side / ".ipynb_checkpoints" / "ADE_val_00000001-checkpoint.png")
        touch(tmp_path / side / "__MACOSX" / "x.png", APPLE_DOUBLE)
        touch(tmp_path / side / "Thumbs.db")
    assert ADE20K.score_file(inputs).metrics == expected


def test_segmentation_images_follow_the_same_rules(native, tmp_path):
    import shutil

    root = tmp_path / "ADEChallengeData2016"
    shutil.copytree(native.world / "ADEChallengeData2016", root)
    expected = [e.id for e in ADE20K(root).read("val").examples]
    images, labels = root / "images" / "validation", root / "annotations" / "validation"
    touch(images / "._ADE_val_00000001.jpg", APPLE_DOUBLE)
    touch(labels / "._ADE_val_00000001.png", APPLE_DOUBLE)
    touch(images / "Thumbs.db")
    assert [e.id for e in ADE20K(root).read("val").examples] == expected
    first = sorted(images.glob("ADE*"))[0]
    first.rename(first.with_suffix(".JPG"))
    label = labels / f"{first.stem}.png"
    label.rename(label.with_suffix(".PNG"))
    touch(images / "notes.txt")
    task = ADE20K(root)
    examples = task.read("val").examples
    assert [e.id for e in examples] == expected
    assert examples[0].target.endswith(".PNG")
    assert "1 .txt (such as notes.txt)" in task.read("val").left_out
