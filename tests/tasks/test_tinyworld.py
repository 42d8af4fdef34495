"""The tiny world: equal bytes from equal seeds, and annotation files that are true of the pictures."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit3_bench.backbones.archives.members import exists
from beit3_bench.errors import BenchError
from beit3_bench.tasks.tinyworld import write_tiny_world
from beit3_bench.tasks.tinyworld.geometry import area, coco_polygons, parts, polygon_area
from beit3_bench.tasks.tinyworld.nlvr2 import statements
from beit3_bench.tasks.tinyworld.plan import PRESETS
from beit3_bench.tasks.tinyworld.render import run_lengths, stamp
from beit3_bench.tasks.tinyworld.scenes import NOVEL_SHAPES, SHAPES, Thing

KNOBS = {"coco_train": 300, "coco_restval": 40}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "tiny"
    write_tiny_world(root, size="mini", **KNOBS)
    return root


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def digest(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def coco_from(path: Path):
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# ---- the folder as a whole ----------------------------------------------------------------------------------------


def test_same_seed_writes_the_same_bytes_in_another_process_and_another_seed_does_not(
    world: Path, tmp_path: Path
) -> None:
    code = (
        "from beit3_bench.tasks.tinyworld import write_tiny_world as w; import sys; "
        f"w(sys.argv[1], size='mini', **{KNOBS!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=environment)
    first = digest(world)
    assert digest(tmp_path / "again") == first
    write_tiny_world(tmp_path / "other", seed=1, size="mini", **KNOBS)
    other = digest(tmp_path / "other")
    kept = {"coco/dataset_coco.json", "nlvr2/data/dev.json", "beit3.spm", "flickr30k/dataset_flickr30k.json"}
    assert all(other[name] != first[name] for name in kept)


def test_importing_the_package_loads_neither_numpy_nor_pillow() -> None:
    code = (
        "import sys; import beit3_bench.tasks.tinyworld; "
        "sys.exit(', '.join(m for m in ('numpy', 'PIL', 'torch', 'sentencepiece') if m in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_manifest_counts_what_was_written(world: Path) -> None:
    manifest = load(world / "tiny_world.json")
    assert manifest["seed"] == 0
    assert manifest["splits"]["flickr30k"] == {"train": 40, "val": 10, "test": 10}
    names = [p for p in world.rglob("*") if p.is_file() and p.name != "tiny_world.json"]
    assert manifest["files"] == len(names)
    assert manifest["bytes"] == sum(p.stat().st_size for p in names)
    assert not (world / "tiny_world.started.json").exists()


def test_complete_world_is_kept_and_incomplete_ones_are_written_anew(tmp_path: Path) -> None:
    root = tmp_path / "w"
    steps: list[tuple[str, int, int]] = []
    manifest = write_tiny_world(root, size="mini", progress=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == list(range(len(steps)))
    assert steps[-1][1] == steps[-1][2]
    before = digest(root)

    steps.clear()
    assert write_tiny_world(root, size="mini", progress=lambda *step: steps.append(step)) == manifest
    assert not steps, "a complete world was written again"

    next((root / "flickr30k" / "flickr30k-images").iterdir()).unlink()
    write_tiny_world(root, size="mini")
    assert digest(root) == before, "a lost picture was not noticed"

    def stop(folder: str, done: int, total: int) -> None:
        if folder == "nlvr2":
            raise KeyboardInterrupt

    half = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        write_tiny_world(half, size="mini", progress=stop)
    assert not (half / "tiny_world.json").exists()
    (half / "coco" / "stale.json").write_text("{}")
    write_tiny_world(half, size="mini")
    assert digest(half) == before, "an interrupted world was not written anew"


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("foreign", "not a tiny world"),
        ("file", "is a file"),
        ("other seed", "seed 0"),
        ("other knobs", "other counts"),
        ("bad manifest", "not a readable manifest"),
        ("unknown knob", "no knob 'coco_trian'"),
        ("unknown size", "no size 'huge'"),
        ("small knob", "nlvr2_dev is 0"),
        ("negative seed", "seed is -1"),
    ],
)
def test_bad_targets_and_knobs_are_refused_and_left_alone(world: Path, tmp_path: Path, case: str, told: str) -> None:
    root, options = tmp_path / "out", {}
    if case == "foreign":
        root.mkdir()
        (root / "thesis.tex").write_text("precious")
    elif case == "file":
        root.write_text("precious")
    elif case == "other seed":
        root, options = world, {"size": "mini", "seed": 3, **KNOBS}
    elif case == "other knobs":
        root, options = world, {"size": "mini", **KNOBS, "nlvr2_dev": 5}
    elif case == "bad manifest":
        root.mkdir()
        (root / "tiny_world.json").write_text("{")
    else:
        options = {
            "unknown knob": {"coco_trian": 5},
            "unknown size": {"size": "huge"},
            "small knob": {"nlvr2_dev": 0},
            "negative seed": {"seed": -1},
        }[case]
    before = digest(root) if root.is_dir() else root.read_text() if root.exists() else None
    with pytest.raises(BenchError, match=told) as raised:
        write_tiny_world(root, **options)
    assert "\n" not in str(raised.value)
    after = digest(root) if root.is_dir() else root.read_text() if root.exists() else None
    assert after == before


def test_every_picture_decodes(world: Path) -> None:
    pictures = [p for p in world.rglob("*") if p.suffix in (".jpg", ".JPEG", ".png")]
    assert len(pictures) > 600
    modes: Counter[str] = Counter()
    for path in pictures:
        with Image.open(path) as image:
            image.load()
            modes[image.mode] += 1
            assert min(image.size) >= 72
    assert modes["RGB"] > 0.9 * sum(modes.values())
    assert modes["CMYK"] == 1
    assert modes["L"] >= 1


def test_splits_share_no_picture(world: Path) -> None:
    folders = {
        "coco": ("train2014", "val2014", "test2015"),
        "imagenet": ("train", "val"),
        "nlvr2": ("images/train", "dev", "test1"),
        "nocaps": ("val", "test"),
        "ADEChallengeData2016/images": ("training", "validation"),
    }
    for root, splits in folders.items():
        owner: dict[str, str] = {}
        for split in splits:
            for path in (world / root / split).rglob("*.*"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                assert owner.setdefault(content, split) == split, path


# ---- captions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["coco", "flickr30k"])
def test_karpathy_file_is_consistent(world: Path, dataset: str) -> None:
    content = load(world / dataset / f"dataset_{dataset}.json")
    assert content["dataset"] == dataset
    images = content["images"]
    assert [i["imgid"] for i in images] == list(range(len(images)))
    sentences = [s for i in images for s in i["sentences"]]
    assert sorted(s["sentid"] for s in sentences) == list(range(len(sentences)))
    for image in images:
        assert image["sentids"] == [s["sentid"] for s in image["sentences"]]
        assert {s["imgid"] for s in image["sentences"]} == {image["imgid"]}
        folder = world / "coco" / image["filepath"] if dataset == "coco" else world / "flickr30k" / "flickr30k-images"
        assert (folder / image["filename"]).is_file()
        for sentence in image["sentences"]:
            assert "".join(sentence["tokens"]) == "".join(c for c in sentence["raw"].lower() if c.isalnum())
    splits = Counter(i["split"] for i in images)
    expected = {
        "coco": {"train": 300, "restval": 40, "val": 12, "test": 12},
        "flickr30k": {"train": 40, "val": 10, "test": 10},
    }
    assert splits == expected[dataset]
    numbers = Counter(len(i["sentences"]) for i in images)
    assert set(numbers) == ({5, 6, 7} if dataset == "coco" else {5})
    if dataset == "coco":
        assert all(i["filename"] == f"COCO_{i['filepath']}_{i['cocoid']:012d}.jpg" for i in images)
        assert all((i["filepath"] == "train2014") == (i["split"] == "train") for i in images)
        assert len({i["cocoid"] for i in images}) == len(images)


@pytest.mark.parametrize("dataset", ["coco", "flickr30k"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_captions_tell_the_pictures_of_a_gallery_apart(world: Path, dataset: str, split: str) -> None:
    images = [i for i in load(world / dataset / f"dataset_{dataset}.json")["images"] if i["split"] == split]
    silent = {"a", "an", "big", "small", "on", "in", "the", "picture", "of", "there", "is", "with", "shapes"}
    told = [frozenset(frozenset(s["tokens"]) - silent for s in i["sentences"]) for i in images]
    for i, first in enumerate(told):
        for second in told[:i]:
            assert first != second


def test_captions_val2014_holds_the_sentences_of_the_karpathy_file(world: Path) -> None:
    api = coco_from(world / "coco" / "annotations" / "captions_val2014.json")
    karpathy = [i for i in load(world / "coco" / "dataset_coco.json")["images"] if i["filepath"] == "val2014"]
    assert set(api.imgs) == {i["cocoid"] for i in karpathy}
    for image in karpathy:
        official = {a["id"]: a["caption"] for a in api.loadAnns(api.getAnnIds(imgIds=[image["cocoid"]]))}
        assert official == {s["sentid"]: s["raw"] for s in image["sentences"]}


def test_nocaps_has_ten_captions_per_picture_and_every_domain(world: Path) -> None:
    content = load(world / "nocaps" / "nocaps_val_4500_captions.json")
    per_image: dict[int, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        per_image[annotation["image_id"]].append(annotation["caption"])
    assert set(per_image) == {i["id"] for i in content["images"]}
    assert all(len(captions) == 10 for captions in per_image.values())
    assert Counter(i["domain"] for i in content["images"]) == {"in-domain": 3, "near-domain": 3, "out-domain": 3}
    for image in content["images"]:
        text = " ".join(per_image[image["id"]]).lower()
        novel, known = (
            any(s in text for s in group)
            for group in (NOVEL_SHAPES, ("circle", "square", "triangle", "star", "ring", "cross"))
        )
        expected = {"in-domain": (False, True), "near-domain": (True, True), "out-domain": (True, False)}
        assert (novel, known) == expected[image["domain"]]
        with Image.open(world / "nocaps" / "val" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    test = load(world / "nocaps" / "nocaps_test_image_info.json")
    assert "annotations" not in test
    assert all("domain" not in i and (world / "nocaps" / "test" / i["file_name"]).is_file() for i in test["images"])


# ---- instances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", ["train2017", "val2017"])
def test_instances_are_true_to_their_pictures(world: Path, subset: str) -> None:
    api = coco_from(world / "coco" / "annotations" / f"instances_{subset}.json")
    ids = sorted(api.cats)
    assert ids == [1, 3, 7, 16, 37, 90], "category ids must have gaps"
    assert {a["image_id"] for a in api.anns.values()} < set(api.imgs), "some pictures have no object"
    crowds = several = 0
    for image in api.imgs.values():
        with Image.open(world / "coco" / subset / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    for annotation in api.anns.values():
        image = api.imgs[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= image["width"] + 1e-6
        assert y + height <= image["height"] + 1e-6
        mask = api.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        if annotation["iscrowd"]:
            crowds += 1
            assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
            assert sum(annotation["segmentation"]["counts"]) == image["height"] * image["width"]
            assert mask.sum() == annotation["area"]
        else:
            several += len(annotation["segmentation"]) > 1
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.12, abs=12)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        # The tips of stars and triangles cover no whole pixel: hence the tolerance.
        found = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        assert found == pytest.approx(annotation["bbox"], abs=3.5)
    if subset == "train2017":
        assert crowds > 0
        assert several > 0


def test_2017_folders_hold_the_2014_pictures_and_test_pictures_stay_out_of_training(world: Path) -> None:
    images = load(world / "coco" / "dataset_coco.json")["images"]
    for image in images:
        folder = "val2017" if image["split"] in ("val", "test") else "train2017"
        old = world / "coco" / image["filepath"] / image["filename"]
        assert old.read_bytes() == (world / "coco" / folder / f"{image['cocoid']:012d}.jpg").read_bytes()
    test_dev = load(world / "coco" / "annotations" / "image_info_test-dev2017.json")
    assert "annotations" not in test_dev
    assert [c["id"] for c in test_dev["categories"]] == [1, 3, 7, 16, 37, 90]
    assert 0 < len(test_dev["images"]) < len(list((world / "coco" / "test2017").iterdir()))
    assert all((world / "coco" / "test2017" / i["file_name"]).is_file() for i in test_dev["images"])


def test_mask_color_is_the_color_that_the_captions_name(world: Path) -> None:
    """Ties boxes, masks, pictures and captions together: the pixels of a lone object have the colour that is told."""
    from beit3_bench.tasks.tinyworld.scenes import COLORS

    api = coco_from(world / "coco" / "annotations" / "instances_train2017.json")
    images = {i["cocoid"]: i for i in load(world / "coco" / "dataset_coco.json")["images"]}
    checked = 0
    for image_id in api.imgs:
        annotations = api.loadAnns(api.getAnnIds(imgIds=[image_id]))
        if len(annotations) != 1 or annotations[0]["iscrowd"]:
            continue
        with Image.open(world / "coco" / "train2017" / f"{image_id:012d}.jpg") as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=float)[api.annToMask(annotations[0]) > 0]
        nearest = min(COLORS, key=lambda name: np.abs(np.median(pixels, axis=0) - COLORS[name]).sum())
        shape = api.cats[annotations[0]["category_id"]]["name"]
        assert all({nearest, shape} <= set(s["tokens"]) for s in images[image_id]["sentences"])
        checked += 1
    assert checked > 30


# ---- VQA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", ["train2014", "val2014"])
def test_vqa_annotations_belong_to_questions_and_have_ten_answers(world: Path, subset: str) -> None:
    folder = world / "coco" / "vqa"
    questions = load(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json")
    annotations = load(folder / f"v2_mscoco_{subset}_annotations.json")
    assert questions["task_type"] == "Open-Ended"
    assert questions["data_type"] == annotations["data_type"] == "mscoco"
    assert questions["data_subtype"] == annotations["data_subtype"] == subset
    by_id = {q["question_id"]: q for q in questions["questions"]}
    assert len(by_id) == len(questions["questions"]) == len(annotations["annotations"])
    unanimous = 0
    for annotation in annotations["annotations"]:
        question = by_id.pop(annotation["question_id"])
        assert question["image_id"] == annotation["image_id"] == annotation["question_id"] // 1000
        assert (world / "coco" / subset / f"COCO_{subset}_{question['image_id']:012d}.jpg").is_file()
        assert question["question"].lower().startswith(annotation["question_type"])
        said = [a["answer"] for a in annotation["answers"]]
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        assert {a["answer_confidence"] for a in annotation["answers"]} <= {"yes", "maybe", "no"}
        assert Counter(said).most_common(1)[0][0] == annotation["multiple_choice_answer"]
        kind = {"yes": "yes/no", "no": "yes/no", "0": "number", "1": "number", "2": "number", "3": "number"}
        assert annotation["answer_type"] == kind.get(annotation["multiple_choice_answer"], "other")
        unanimous += len(set(said)) == 1
    assert not by_id
    assert 0.2 < unanimous / len(annotations["annotations"]) < 0.7


def test_vqa_answers_are_frequent_but_for_a_few_out_of_vocabulary_ones(world: Path) -> None:
    answers: dict[str, Counter[str]] = {}
    for subset in ("train2014", "val2014"):
        annotations = load(world / "coco" / "vqa" / f"v2_mscoco_{subset}_annotations.json")["annotations"]
        answers[subset] = Counter(a["multiple_choice_answer"] for a in annotations)
    total = answers["train2014"] + answers["val2014"]
    rare = {a: n for a, n in answers["val2014"].items() if total[a] < 9}
    assert 0 < sum(rare.values()) < 0.03 * answers["val2014"].total()
    assert all(" " in answer for answer in rare), "only the deliberate answers may be rare"
    assert 0.75 < answers["train2014"]["yes"] / answers["train2014"]["no"] < 1.3


def test_vqa_test_dev_is_a_part_of_test(world: Path) -> None:
    folder = world / "coco" / "vqa"
    test, dev = (load(folder / f"v2_OpenEnded_mscoco_{s}_questions.json") for s in ("test2015", "test-dev2015"))
    assert (test["data_subtype"], dev["data_subtype"]) == ("test2015", "test-dev2015")
    ids = {q["question_id"] for q in test["questions"]}
    assert 0 < len(dev["questions"]) < len(ids)
    assert {q["question_id"] for q in dev["questions"]} < ids
    assert all(
        (world / "coco" / "test2015" / f"COCO_test2015_{q['image_id']:012d}.jpg").is_file() for q in test["questions"]
    )
    assert not (folder / "v2_mscoco_test2015_annotations.json").exists()


# ---- the others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "sets"), [("train", 8), ("dev", 4), ("test1", 4)])
def test_nlvr2_sentences_hold_for_two_of_four_pairs(world: Path, split: str, sets: int) -> None:
    rows = [json.loads(line) for line in (world / "nlvr2" / "data" / f"{split}.json").read_text().splitlines()]
    assert len({r["identifier"] for r in rows}) == len(rows) == sets * 16
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        name, set_id, pair, sentence = row["identifier"].split("-")
        assert name == split
        groups[set_id, sentence].append(row)
        folder = (
            world / "nlvr2" / "images" / "train" / str(row["directory"])
            if split == "train"
            else world / "nlvr2" / split
        )
        for side in (0, 1):
            assert (folder / f"{split}-{set_id}-{pair}-img{side}.png").is_file()
    for group in groups.values():
        assert len({r["sentence"] for r in group}) == 1
        assert Counter(r["label"] for r in group) == {"True": 2, "False": 2}
        assert sorted(r["identifier"].split("-")[2] for r in group) == ["0", "1", "2", "3"]


def test_nlvr2_statements_are_distinct_and_judge_scenes() -> None:
    from random import Random

    from beit3_bench.tasks.tinyworld.scenes import sample_scene

    claims = {text: claim for text, claim, _ in statements()}
    assert len(claims) == len(statements())
    rng = Random(4)
    for _ in range(50):
        pair = sample_scene(rng), sample_scene(rng)
        colors = [{t.color for t in scene.things} for scene in pair]
        assert claims["The left image contains a red shape."](pair) == ("red" in colors[0])
        assert claims["Both images contain a red shape."](pair) == ("red" in colors[0] & colors[1])
        assert claims["There is a red shape in at least one image."](pair) == ("red" in colors[0] | colors[1])
        assert claims["The right image shows exactly two shapes."](pair) == (len(pair[1].things) == 2)


def test_imagenet_folders_are_real_wordnet_ids_with_their_lemmas(world: Path) -> None:
    from timm.data import ImageNetInfo

    from beit3_bench.tasks.tinyworld.imagenet import CLASSES

    info = ImageNetInfo("imagenet-1k")
    for split, number in (("train", 4), ("val", 2)):
        folders = sorted((world / "imagenet" / split).iterdir())
        assert [f.name for f in folders] == sorted(CLASSES)
        assert all(len(list(f.glob("*.JPEG"))) == number for f in folders)
    assert {wnid: info.label_name_to_description(wnid) for wnid in CLASSES} == {w: c[0] for w, c in CLASSES.items()}
    names = load(world / "imagenet" / "classnames.json")
    assert names == [CLASSES[wnid][0].split(", ")[0] for wnid in sorted(CLASSES)]
    assert all(t.count("{}") == 1 for t in load(world / "imagenet" / "templates.json"))


@pytest.mark.parametrize(("split", "stem", "number"), [("training", "train", 12), ("validation", "val", 6)])
def test_ade20k_label_maps_are_grey_of_the_pictures_size_and_hold_known_classes(
    world: Path, split: str, stem: str, number: int
) -> None:
    from beit3_bench.tasks.tinyworld.ade20k import OBJECTS, STUFF

    root = world / "ADEChallengeData2016"
    seen: set[int] = set()
    for i in range(1, number + 1):
        name = f"ADE_{stem}_{i:08d}"
        with Image.open(root / "images" / split / f"{name}.jpg") as picture:
            size = picture.size
        with Image.open(root / "annotations" / split / f"{name}.png") as labels:
            assert labels.mode == "L"
            assert labels.size == size
            seen |= set(np.unique(np.asarray(labels)).tolist())
    assert (
        len(list((root / "images" / split).iterdir())) == len(list((root / "annotations" / split).iterdir())) == number
    )
    assert seen <= {0, *STUFF.values(), *OBJECTS.values()}
    assert len(seen) > 6
    if split == "training":
        assert 0 in seen, "no unlabelled pixels"


def test_ade20k_class_list_names_150_classes(world: Path) -> None:
    lines = (world / "ADEChallengeData2016" / "objectInfo150.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Name"]
    rows = [line.split("\t") for line in lines[1:]]
    assert [int(r[0]) for r in rows] == list(range(1, 151))
    names = {int(r[0]): r[4] for r in rows}
    assert {names[i] for i in (1, 3, 7, 42, 47, 67, 115, 120, 140, 143)} == {
        "wall", "sky", "road", "box", "sand", "flower", "tent", "ball", "fan", "plate",
    }  # fmt: skip
    assert sum(float(r[1]) for r in rows) == pytest.approx(1, abs=0.01)
    assert int(rows[0][2]) + int(rows[2][2]) == 12, "every training picture has a wall or a sky"


def test_spm_spells_any_english_and_has_whole_words_for_the_worlds_own(world: Path) -> None:
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=str(world / "beit3.spm"))
    assert [spm.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert 150 < spm.get_piece_size() <= 400
    for text in ("A purple star above an orange ring.", "Zebra crossing @ 7:45 (why?) t-shirt {x}~"):
        assert spm.unk_id() not in spm.encode(text)
        assert spm.decode(spm.encode(text)) == text
    for word in ("red", "yellow", "circle", "triangle", "background", "gray"):
        assert spm.encode(f"a {word}", out_type=str)[-1] == f"▁{word}"


def test_default_world_is_large_enough_for_galleries_of_a_hundred() -> None:
    counts = PRESETS["tiny"]
    assert min(counts.coco_test, counts.flickr30k_test) >= 100
    assert counts.coco_train + counts.coco_restval >= 2000


# ---- geometry and rendering ---------------------------------------------------------------------------------------


def thing(shape: str, gap: float = 0.0) -> Thing:
    return Thing(shape, "red", "big", 0, 31.3, 28.7, 21.0, 0.1, (255, 0, 0), gap)


@pytest.mark.parametrize("shape", [*SHAPES, *NOVEL_SHAPES])
def test_label_map_and_pycocotools_agree_on_a_shape(shape: str) -> None:
    from pycocotools import mask as rle

    drawn = stamp((64, 56), [(thing(shape), 9)])
    merged = rle.merge(rle.frPyObjects(coco_polygons(thing(shape)), 56, 64))
    polygon = rle.decode(merged) > 0
    both, either = ((drawn == 9) & polygon).sum(), ((drawn == 9) | polygon).sum()
    assert both / either > 0.9
    assert drawn.astype(bool).sum() == pytest.approx(area(thing(shape)), rel=0.03)


def test_hole_of_a_ring_is_no_part_of_it() -> None:
    drawn = stamp((64, 56), [(thing("ring"), 1)])
    assert drawn[29, 31] == 0
    assert area(thing("ring")) == pytest.approx(np.pi * 21**2 * (1 - 0.52**2), rel=0.02)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_slit_cuts_a_shape_into_two_polygons(shape: str) -> None:
    whole, cut = thing(shape), thing(shape, gap=0.14)
    assert len(coco_polygons(cut)) == len(parts(cut)) == 2
    assert 0.7 * area(whole) < area(cut) < 0.95 * area(whole)
    assert polygon_area(parts(cut)[0][0]) == pytest.approx(polygon_area(parts(cut)[1][0]), rel=1e-6)


@pytest.mark.parametrize("first", [0, 1])
def test_run_lengths_decode_to_the_mask(first: int) -> None:
    from pycocotools import mask as rle

    mask = np.random.default_rng(3).random((7, 5)) < 0.4
    mask[0, 0] = bool(first)
    counts = run_lengths(mask)
    decoded = rle.decode(rle.frPyObjects({"counts": counts, "size": [7, 5]}, 7, 5))
    assert (decoded == mask).all()


# ---- read by the tasks themselves ---------------------------------------------------------------------------------

FOLDER_OF = {
    "vqav2": "coco",
    "nlvr2": "nlvr2",
    "snli-ve": "flickr30k",
    "coco-caption": "coco",
    "nocaps": "nocaps",
    "sugarcrepe": "coco",
    "winoground": "winoground",
    "aro": "aro",
    "flickr30k": "flickr30k",
    "coco-retrieval": "coco",
    "imagenet": "imagenet",
    "imagenet-linear": "imagenet",
    "coco-det": "coco",
    "ade20k-seg": "ADEChallengeData2016",
}


def test_every_built_in_task_reads_every_split_of_its_folder(world: Path) -> None:
    from beit3_bench.tasks.registry import BUILT_IN, get_task, task_locations

    available = [name for name in BUILT_IN if name in task_locations() and not get_task(name).own_data]
    assert set(available) <= set(FOLDER_OF), "a new task has no folder in the tiny world"
    assert len(available) >= 9
    for name in available:
        task = get_task(name)
        for split in task.splits:
            if (name, split) == ("ade20k-seg", "test"):
                continue  # the official test images are a download of their own, which the tiny world does not have
            examples = task(world / FOLDER_OF[name]).read(split).examples
            assert examples, f"{name} {split}"
            assert all(exists(image) for example in examples for image in example.images), f"{name} {split}"


@pytest.mark.parametrize("name", ["tiny_world.started.json", "coco", "imagenet"])
def test_world_is_written_through_no_link(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "world", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").write_text("precious")
    (root / "tiny_world.started.json").write_text("{}")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(outside / "file" if name.endswith("json") else outside)
    with pytest.raises(BenchError, match=f"{name}: is a link"):
        write_tiny_world(root, size="mini")
    assert (outside / "file").read_text() == "precious"
    assert len(list(outside.iterdir())) == 1
