"""Copies of data sets as people have them: other folder names, official archives, Kaggle's trees; and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from containers import image, tar_folder, write_rows, write_shards, zip_folder
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.harness.record.fingerprints import data_fingerprint, same_data
from beit3_bench.tasks.ade20k import ADE20K
from beit3_bench.tasks.captioning import CocoCaption, NoCaps
from beit3_bench.tasks.coco_det import CocoDetection
from beit3_bench.tasks.files import check_images
from beit3_bench.tasks.imagenet import ImageNetLinear
from beit3_bench.tasks.nlvr2 import NLVR2
from beit3_bench.tasks.retrieval import Flickr30K
from beit3_bench.tasks.vqav2 import VQAv2

KAGGLE = "ILSVRC/Data/CLS-LOC"


def fingerprint(task, split=None) -> str:
    examples = task.read(split or task.default_split).examples
    check_images((path for e in examples for path in e.images), task.data_root)
    return data_fingerprint(examples, task.data_root)


def refusal(task, split=None) -> str:
    with pytest.raises(BenchError) as caught:
        fingerprint(task, split)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line
    return line


# ---- ImageNet ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def imagenet(native, tmp_path) -> Path:
    return native.copy("imagenet", tmp_path)


def flatten(root: Path, to: str = "flat") -> dict[str, str]:
    """Move the images of val into one folder; their classes by name."""
    truth = {}
    (root / to).mkdir(parents=True)
    for file in sorted((root / "val").rglob("*.JPEG")):
        truth[file.stem] = file.parent.name
        shutil.move(file, root / to / file.name)
    shutil.rmtree(root / "val")
    return truth


def devkit(truth: dict[str, str]) -> dict[str, bytes]:
    """The devkit's two files: numbers in another order than WordNet ids, and classes with children that have none of them."""
    from scipy.io import savemat

    wnids = sorted(set(truth.values()), reverse=True)
    numbers = {wnid: n for n, wnid in enumerate(wnids, 1)}
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(n, w, "a thing", 0) for w, n in numbers.items()] + [(len(wnids) + 1, "n00000001", "things", 3)]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    last = max(int(name[-8:]) for name in truth)
    lines = [numbers[truth.get(f"ILSVRC2012_val_{n:08d}", wnids[0])] for n in range(1, last + 1)]
    text = "".join(f"{n}\n" for n in lines)
    return {"ILSVRC2012_validation_ground_truth.txt": text.encode(), "meta.mat": buffer.getvalue()}


def write_devkit(root: Path, files: dict[str, bytes], packed: bool) -> None:
    inner = "ILSVRC2012_devkit_t12/data"
    if packed:
        with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{inner}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return
    (root / inner).mkdir(parents=True)
    for name, content in files.items():
        (root / inner / name).write_bytes(content)


@pytest.mark.parametrize("form", ["devkit", "devkit.tar.gz", "names", "caffe", "wnids", "kaggle"])
def test_flat_validation_images_get_their_classes_from_any_truth(imagenet, tmp_path, form):
    expected = fingerprint(ImageNetLinear(imagenet))
    truth, options = flatten(imagenet), {}
    tar_folder(imagenet / "flat", imagenet / "ILSVRC2012_img_val.tar", "")
    shutil.rmtree(imagenet / "flat")
    file = tmp_path / "truth.txt"
    if form.startswith("devkit"):
        write_devkit(imagenet, devkit(truth), form.endswith("gz"))
    elif form == "kaggle":
        lines = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in truth.items()]
        (imagenet / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    else:
        from beit3_bench.tasks.class_folders import imagenet_classes

        order = imagenet_classes()
        last = max(int(name[-8:]) for name in truth)
        text = {
            "names": "".join(f"{name}.JPEG {wnid}\n" for name, wnid in truth.items()),
            "caffe": "".join(f"{name}.JPEG {order.index(wnid)}\n" for name, wnid in truth.items()),
            "wnids": "".join(
                truth.get(f"ILSVRC2012_val_{n:08d}", min(truth.values())) + "\n" for n in range(1, last + 1)
            ),
        }
        file.write_text(text[form])
        options = {"truth": str(file)}
    assert fingerprint(ImageNetLinear(imagenet, options)) == expected


def test_kaggles_tree_of_imagenet(imagenet):
    expected = {split: fingerprint(ImageNetLinear(imagenet), split) for split in ("val", "train")}
    truth = flatten(imagenet, f"{KAGGLE}/val")
    shutil.move(imagenet / "train", imagenet / KAGGLE / "train")
    lines = [f"{name},{wnid} 1 2 3 4" for name, wnid in truth.items()]
    (imagenet / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    assert {split: fingerprint(ImageNetLinear(imagenet), split) for split in expected} == expected


def test_the_official_training_tar(imagenet, tmp_path):
    expected = fingerprint(ImageNetLinear(imagenet), "train")
    with tarfile.open(imagenet / "ILSVRC2012_img_train.tar", "w") as outer:
        for folder in sorted((imagenet / "train").iterdir()):
            outer.add(tar_folder(folder, tmp_path / "inner.tar", ""), f"{folder.name}.tar")
    shutil.rmtree(imagenet / "train")
    assert fingerprint(ImageNetLinear(imagenet), "train") == expected


def test_flat_images_without_a_truth_are_refused_with_the_ways(imagenet):
    flatten(imagenet, "new")
    shutil.move(imagenet / "new", imagenet / "val")
    line = refusal(ImageNetLinear(imagenet))
    assert "-o truth=FILE" in line
    assert "ILSVRC2012_devkit_t12.tar.gz" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("ILSVRC2012_val_00000001.JPEG cat", "neither a WordNet id nor a label"),
        ("ILSVRC2012_val_00000001.JPEG 1000", "neither a WordNet id nor a label"),
        ("490\n361\n", "put that beside it"),
        ("ILSVRC2012_val_00000001.JPEG n01751748\n", "says no class of"),
        ("a.JPEG n01751748\na.JPEG n01440764\n", "has two classes"),
    ],
)
def test_a_truth_that_says_something_else_is_refused(imagenet, tmp_path, text, told):
    flatten(imagenet, "ILSVRC2012_img_val")
    file = tmp_path / "truth.txt"
    file.write_text(text)
    line = refusal(ImageNetLinear(imagenet, {"truth": str(file)}))
    assert line.startswith(str(file))
    assert told in line


@pytest.mark.parametrize("damage", ["meta", "cut", "empty"])
def test_a_damaged_devkit_is_refused(imagenet, damage):
    truth = flatten(imagenet, "ILSVRC2012_img_val")
    files = devkit(truth)
    write_devkit(
        imagenet, files | {"meta.mat": b"no mat file"} if damage == "meta" else {} if damage == "empty" else files, True
    )
    archive = imagenet / "ILSVRC2012_devkit_t12.tar.gz"
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:200])
    assert refusal(ImageNetLinear(imagenet)).startswith(str(archive))


# ---- COCO, Flickr30K, NLVR2, ADE20K ----------------------------------------------------------------------------------------


def as_2017(root: Path, held_out: int = 3) -> None:
    """The images of train2014 and val2014 as those of 2017, where val2017 is a part of val2014."""
    for name in ("train2017", "val2017"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    files = sorted((root / "val2014").iterdir())
    for n, file in enumerate([*files, *(root / "train2014").iterdir()]):
        shutil.move(file, root / ("val2017" if n < held_out else "train2017") / file.name.rpartition("_")[2])
    shutil.rmtree(root / "val2014")
    shutil.rmtree(root / "train2014")


@pytest.mark.parametrize("packed", [False, True])
def test_the_folders_of_2017_hold_the_images_of_2014(native, tmp_path, packed):
    root = native.copy("coco-caption", tmp_path)
    expected = [
        fingerprint(task(root), split) for task, split in ((CocoCaption, "test"), (VQAv2, "val"), (VQAv2, "train"))
    ]
    as_2017(root)
    if packed:
        for name in ("train2017", "val2017"):
            zip_folder(root / name, root / f"{name}.zip")
            shutil.rmtree(root / name)
    found = [
        fingerprint(task(root), split) for task, split in ((CocoCaption, "test"), (VQAv2, "val"), (VQAv2, "train"))
    ]
    assert found == expected


def test_one_folder_of_2017_alone_is_refused(native, tmp_path):
    root = native.copy("coco-caption", tmp_path)
    as_2017(root)
    shutil.rmtree(root / "val2017")
    assert "the others are in val2017; put it beside it" in refusal(VQAv2(root))


@pytest.mark.parametrize("name", ["flickr30k_images", "flickr30k_images/flickr30k_images", "Images", "images"])
def test_kaggles_names_of_flickr30k(native, tmp_path, name):
    root = native.copy("flickr30k", tmp_path)
    expected = fingerprint(Flickr30K(root))
    shutil.move(root / "flickr30k-images", tmp_path / "moved")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tmp_path / "moved", root / name)
    assert fingerprint(Flickr30K(root)) == expected
    zip_folder(root / name, root / "kept.zip", name)
    shutil.rmtree(root / name.partition("/")[0])
    (root / "kept.zip").rename(root / f"{name.partition('/')[0]}.zip")
    assert fingerprint(Flickr30K(root)) == expected


@pytest.mark.parametrize("top", ["dev", "", "nlvr2/dev", "whatever"])
def test_the_official_archive_of_nlvr2_wherever_the_folder_is_in_it(native, tmp_path, top):
    root = native.copy("nlvr2", tmp_path)
    expected = fingerprint(NLVR2(root), "dev")
    zip_folder(root / "dev", root / "dev_img.zip", top)
    shutil.rmtree(root / "dev")
    assert fingerprint(NLVR2(root), "dev") == expected


def test_a_data_set_below_images_is_the_same_data_also_for_runs_of_earlier_versions(native, tmp_path):
    root = native.copy("nlvr2", tmp_path)
    expected = fingerprint(NLVR2(root), "dev")
    shutil.move(root / "dev", root / "images/dev")
    examples = NLVR2(root).read("dev").examples
    assert data_fingerprint(examples, root) == expected
    earlier = data_fingerprint(examples, root, as_they_lie=True)
    assert earlier != expected
    assert same_data({"data": earlier, "code": ""}, examples, root)
    assert not same_data({"data": "0" * 64, "code": ""}, examples, root)


def test_the_official_archive_of_ade20k(native, tmp_path):
    root = tmp_path / "ade"
    root.mkdir()
    world = native.world / "ADEChallengeData2016"
    zip_folder(world, root / "ADEChallengeData2016.zip")
    assert fingerprint(ADE20K(root)) == fingerprint(ADE20K(world))


def test_a_run_finds_data_of_which_only_archives_are_there(native, tmp_path):
    """`--data-root` of several data sets: what each reader finds in its own folder."""
    from beit3_bench.harness.settings.places import find_data

    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/ILSVRC2012_img_val.tar").touch()
    (tmp_path / "ADEChallengeData2016").mkdir()
    (tmp_path / "ADEChallengeData2016/ADEChallengeData2016.zip").touch()
    assert find_data("imagenet", tmp_path) == tmp_path / "imagenet"
    assert find_data("ade20k-seg", tmp_path) == tmp_path / "ADEChallengeData2016"


# ---- what is refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(native, tmp_path) -> Path:
    root = native.copy("coco-caption", tmp_path)
    for name in ("val2017", "val2014"):
        zip_folder(root / name, root / f"{name}.zip")
        shutil.rmtree(root / name)
    return root


def test_a_missing_member_is_counted_as_a_missing_file(coco):
    with zipfile.ZipFile(coco / "val2017.zip") as whole, zipfile.ZipFile(coco / "part.zip", "w") as part:
        images = [name for name in whole.namelist() if name.endswith(".jpg")]
        for name in images[1:]:
            part.writestr(name, whole.read(name))
    (coco / "part.zip").replace(coco / "val2017.zip")
    line = refusal(CocoDetection(coco))
    assert line.startswith("1 of ")
    assert f"{coco}/val2017.zip!{images[0]}" in line


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("cut", "is no whole zip archive"),
        ("nested", "holds archives"),
        ("two", "either may be meant"),
        ("empty", "holds no files"),
    ],
)
def test_an_archive_that_does_not_hold_the_images_is_refused(coco, tmp_path, damage, told):
    path = coco / "val2017.zip"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "nested":
        shutil.move(path, tmp_path / "inner.zip")
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "inner.zip", "val2017.zip")
    elif damage == "two":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("a/val2017/x.jpg", b"x")
            archive.writestr("b/val2017/x.jpg", b"x")
            names = [n for n in archive.namelist() if n.startswith("val2017/")]
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("a", "b"):
                archive.writestr(f"{name}/val2017/{names[-1]}", b"x")
            archive.writestr("a/val2017/y.jpg", b"x")
            archive.writestr("b/val2017/y.jpg", b"x")
    else:
        zipfile.ZipFile(path, "w").close()
    line = refusal(CocoDetection(coco))
    assert line.startswith(str(path))
    assert told in line


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".7z"])
def test_an_archive_that_cannot_be_read_in_place_is_named(coco, suffix):
    (coco / "val2017.zip").rename(coco / f"val2017{suffix}")
    line = refusal(CocoDetection(coco))
    assert line.startswith(f"{coco}/val2017{suffix}: ")
    assert "unpack it" in line


def test_data_verify_tells_of_a_damaged_archive_in_one_line(coco):
    path = coco / "val2017.zip"
    path.write_bytes(path.read_bytes()[:-100])
    result = invoke("data", "verify", "--task", "coco-det", "--data-root", coco, "--split", "val2017")
    assert result.exit_code == 2
    assert sum("is no whole zip archive" in line for line in result.output.splitlines()) == 1
    assert "Traceback" not in result.output


# ---- exports with other columns ------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(native) -> dict:
    pytest.importorskip("pyarrow")
    return image(next((native.world / "nocaps/val").iterdir()))


def test_an_export_with_other_columns_is_refused_with_those_it_has(tmp_path, picture):
    file = write_rows(tmp_path / "data/validation-00000-of-00001.parquet", [{"image": picture, "text": "a", "id": 1}])
    for task in (VQAv2, NoCaps, ImageNetLinear, CocoCaption):
        line = refusal(task(tmp_path), "val")
        assert line.startswith(str(file))
        assert "has no column" in line
        assert "(found: image, text, id)" in line


def test_flickr30k_without_karpathys_split_is_refused(tmp_path, picture):
    """As lmms-lab/flickr30k."""
    row = {"image": picture, "caption": ["a"], "sentids": ["0"], "img_id": "0", "filename": "1.jpg"}
    write_shards(tmp_path / "data", "test", [row], 1)
    assert "has no column 'split', Karpathy's split, which the protocol stands on" in refusal(Flickr30K(tmp_path))


def test_the_whole_ade20k_is_not_scene_parse_150(tmp_path, picture):
    """As 1aurent/ADE20K: other label maps; and one that counts its classes from 0."""
    row = {"image": picture, "segmentations": [picture], "filename": "ADE_val_00000001.jpg"}
    file = write_rows(tmp_path / "data/validation-00000-of-00001.parquet", [row])
    assert (
        "has no column 'annotation' or 'label' or 'mask', the label maps (found: image, segmentations, filename)"
        in refusal(ADE20K(tmp_path))
    )
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(buffer, "PNG")
    file.unlink()
    write_rows(file, [{**row, "annotation": {"bytes": buffer.getvalue(), "path": None}}])
    assert "of another numbering" in refusal(ADE20K(tmp_path))


def test_rows_that_do_not_say_their_file_are_refused(tmp_path, picture):
    nameless = {**picture, "path": None}
    write_shards(tmp_path / "data", "validation", [{"image": nameless, "label": 1, "annotation": picture}], 1)
    assert "says no file name" in refusal(ImageNetLinear(tmp_path))
    assert "says no file name" in refusal(ADE20K(tmp_path))


def test_a_row_without_image_is_refused_before_the_run(tmp_path, picture):
    rows = [
        {"image": picture | {"bytes": None}, "image_file_name": "a.jpg", "image_id": 1, "annotations_captions": ["a"]}
    ]
    rows.append(rows[0] | {"image": picture, "image_file_name": "b.jpg", "image_id": 2})
    write_shards(tmp_path / "data", "validation", rows, 1)
    assert "row 0 has no bytes in column 'image'" in refusal(NoCaps(tmp_path))


def test_the_labels_of_an_imagenet_export_count_its_wordnet_ids(tmp_path, picture):
    rows = [
        {"image": {**picture, "path": f"ILSVRC2012_val_0000000{n}_{wnid}.JPEG"}, "label": label}
        for n, (wnid, label) in enumerate((("n02165456", 0), ("n01440764", 1)))
    ]
    write_shards(tmp_path / "data", "validation", rows, 1)
    assert "do not count the WordNet ids in order" in refusal(ImageNetLinear(tmp_path))


def test_a_coco_export_with_a_row_per_image_or_captions_alone(native, tmp_path, picture):
    """As HuggingFaceM4/COCO, 2014_captions, in the hub's own conversion; as yerevann/coco-karpathy beside the image folders."""
    expected = fingerprint(CocoCaption(native.root("coco-caption")))
    records = json.loads((native.root("coco-caption") / "dataset_coco.json").read_text())["images"]
    rows = []
    for r in records:
        same = {k: r[k] for k in ("filepath", "filename", "imgid", "split", "cocoid", "sentids")}
        rows.append(same | {"texts": [s["raw"] for s in r["sentences"]], "ids": [s["sentid"] for s in r["sentences"]]})
    full = tmp_path / "full"
    for split in ("test", "val", "train"):
        chosen = [r for r in rows if r["split"] == split or (split == "train" and r["split"] == "restval")]
        cells = [
            {k: v for k, v in r.items() if k not in ("texts", "ids")}
            | {"sentences_raw": r["texts"], "sentences_sentid": r["ids"]}
            | {"image": image(native.root("coco-caption") / r["filepath"] / r["filename"])}
            for r in chosen
        ]
        write_rows(full / f"2014_captions/partial-{split}/0000.parquet", cells)
    assert fingerprint(CocoCaption(full)) == expected
    alone = native.copy("coco-caption", tmp_path)
    (alone / "dataset_coco.json").unlink()
    write_shards(
        alone / "data",
        "test",
        [{k: v for k, v in r.items() if k not in ("texts", "ids")} | {"sentences": r["texts"]} for r in rows],
    )
    assert fingerprint(CocoCaption(alone)) == expected
