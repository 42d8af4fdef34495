"""Data sets and checkpoints in folders that hold several."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from native import ROOTS

from beit3_bench.backbones.released import released_files
from beit3_bench.errors import BenchError
from beit3_bench.harness.settings.places import NotThere, data_folders, find_checkpoint, find_data
from beit3_bench.tasks.registry import BUILT_IN, get_task

ALL_ROOTS = {**ROOTS, "aro": "aro", "coco-det": "coco", "ade20k-seg": "ADEChallengeData2016"}


# ---- data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [task for task in BUILT_IN if not get_task(task).own_data])
def test_data_of_every_task_is_the_same_folder_by_its_parent_and_by_itself(native, task):
    root = native.world / ALL_ROOTS[task]
    assert find_data(task, native.world) == root
    assert find_data(task, root) == root
    assert ALL_ROOTS[task] in data_folders(task)


@pytest.mark.parametrize(("task", "name"), [("nlvr2", "NLVR2"), ("coco-caption", "MSCOCO"), ("ade20k-seg", "ade20k")])
def test_other_usual_names(native, tmp_path, task, name):
    (tmp_path / name).symlink_to(native.world / ALL_ROOTS[task])
    assert find_data(task, tmp_path) == tmp_path / name


def test_two_folders_of_one_data_set_are_named(native, tmp_path):
    shutil.copytree(native.world / "nlvr2" / "data", tmp_path / "nlvr2" / "data")
    shutil.copytree(native.world / "nlvr2" / "data", tmp_path / "NLVR2" / "data")
    with pytest.raises(
        BenchError, match=r"holds nlvr2 and NLVR2, and either may be the data of nlvr2; say which: --data-root"
    ):
        find_data("nlvr2", tmp_path)
    shutil.rmtree(tmp_path / "NLVR2")
    (tmp_path / "NLVR2").symlink_to(tmp_path / "nlvr2")  # one folder under two names
    assert find_data("nlvr2", tmp_path) == tmp_path / "nlvr2"


def test_an_empty_folder_beside_the_data_is_passed_over(native, tmp_path):
    (tmp_path / "COCO").symlink_to(native.world / "coco")
    (tmp_path / "coco").mkdir()
    assert find_data("coco-caption", tmp_path) == tmp_path / "COCO"


def test_a_clone_of_nlvr_with_its_pictures_beside_it_is_the_root(native, tmp_path):
    clone = tmp_path / "nlvr-master"
    shutil.copytree(native.world / "nlvr2" / "data", clone / "nlvr2" / "data")
    shutil.copytree(native.world / "nlvr2" / "images", clone / "images")
    assert find_data("nlvr2", clone) == clone


def test_what_is_no_folder_or_incomplete_is_for_the_reader_to_judge(tmp_path):
    assert find_data("nlvr2", tmp_path / "none") == tmp_path / "none"
    (tmp_path / "file.tar").write_bytes(b"")
    assert find_data("nlvr2", tmp_path / "file.tar") == tmp_path / "file.tar"
    (tmp_path / "nlvr2").mkdir()
    assert find_data("nlvr2", tmp_path) == tmp_path / "nlvr2"


def test_a_folder_without_the_data_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        NotThere, match=r"has no data of nocaps: neither its files .* nor a folder nocaps, NoCaps; check"
    ):
        find_data("nocaps", tmp_path)


# ---- checkpoints ---------------------------------------------------------------------------------------------------------


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("file", [f for f in released_files() if f.task in BUILT_IN], ids=lambda f: f.name)
def test_every_released_file_is_the_checkpoint_of_its_task(tmp_path, file):
    folder = touched(tmp_path, file.file, "beit3.spm", "beit3_base_patch16_224.pth", "notes.txt")
    assert find_checkpoint(file.task, str(folder)) == str(folder / file.file)


def test_weights_as_they_were_pretrained_stand_in_where_none_are_fine_tuned(tmp_path):
    folder = touched(tmp_path, "beit3_base_itc_patch16_224.pth", "beit3_base_patch16_384_coco_retrieval.pth")
    assert find_checkpoint("imagenet", str(folder)).endswith("itc_patch16_224.pth")
    assert find_checkpoint("flickr30k", str(folder)).endswith("itc_patch16_224.pth")
    assert find_checkpoint("coco-retrieval", str(folder)).endswith("coco_retrieval.pth")


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("coco-det.pth", "coco-det.pth"),
        ("coco-det.safetensors", "coco-det.safetensors"),
        ("coco-det.ckpt", "coco-det.ckpt"),
        ("coco-det/best.pth", "coco-det/best.pth"),
        ("coco-det/model_final.pth", "coco-det/model_final.pth"),
        ("model_final.pth", "model_final.pth"),
        ("coco-det/any_name.bin", "coco-det/any_name.bin"),
        ("coco-det/model.safetensors.index.json", "coco-det"),
    ],
)
def test_files_under_the_name_of_the_task(tmp_path, name, checkpoint):
    folder = touched(tmp_path, name, "nlvr2.pth")
    assert find_checkpoint("coco-det", str(folder)) == str(folder / checkpoint)


def test_of_a_training_folder_the_best_weights_count(tmp_path):
    folder = touched(tmp_path, "vqav2/best.pth", "vqav2/last.pth", "vqav2/state.pt")
    assert find_checkpoint("vqav2", str(folder)) == str(folder / "vqav2" / "best.pth")


@pytest.mark.parametrize(
    "names",
    [
        ("nlvr2.pth", "nlvr2.bin"),
        ("nlvr2.pth", "beit3_base_patch16_224_nlvr2.pth"),
        ("beit3_base_patch16_224_nlvr2.pth", "beit3_large_patch16_224_nlvr2.pth"),
        ("nlvr2/a.pth", "nlvr2/b.pth"),
    ],
)
def test_two_candidates_are_refused_and_named(tmp_path, names):
    with pytest.raises(BenchError) as refused:
        find_checkpoint("nlvr2", str(touched(tmp_path, *names)))
    assert str(refused.value).startswith(
        f"{tmp_path}: has 2 checkpoints for task nlvr2: {names[0]} and {names[1]}; say which: "
    )
    assert not isinstance(refused.value, NotThere)


def test_one_file_under_two_names_is_one(tmp_path):
    folder = touched(tmp_path, "beit3_base_patch16_224_nlvr2.pth")
    (folder / "nlvr2.pth").symlink_to(folder / "beit3_base_patch16_224_nlvr2.pth")
    assert find_checkpoint("nlvr2", str(folder)) == str(folder / "nlvr2.pth")


def test_a_folder_that_is_one_checkpoint_a_file_and_a_family_are_left_as_they_are(tmp_path):
    folder = touched(tmp_path, "model.safetensors.index.json", "nlvr2.pth")
    for text in (str(folder), str(folder / "nlvr2.pth"), str(folder / "none.pth"), f"openclip:{folder}"):
        assert find_checkpoint("nlvr2", text) == text


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        NotThere, match=r"no nlvr2.pth, no nlvr2/best.pth, no released file of it such as beit3_base_patch16_224_nlvr2"
    ):
        find_checkpoint("nlvr2", str(touched(tmp_path, "vqav2.pth", "beit3_base_patch16_224.pth")))


def test_tasks_share_the_names_of_their_data() -> None:
    assert all(get_task(task) for task in BUILT_IN)
    assert data_folders("imagenet-linear") == data_folders("imagenet")
