"""ARO: the official accuracies on its four splits, rectangles of pictures wherever they are read, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
from native import invoke, run_words
from PIL import Image

from beit3_bench.backbones.archives.crops import Box, cropped
from beit3_bench.backbones.archives.members import exists, member_at
from beit3_bench.backbones.image_hashes import image_hash
from beit3_bench.backbones.preprocess import decode
from beit3_bench.errors import BenchError
from beit3_bench.harness.pages.run import run_page
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.aro import ARO, GENOME, ORDERS, estimate, symmetric_relations
from beit3_bench.tasks.metrics.choices import choice_table

# ---- rectangles -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels


def test_a_rectangle_is_read_as_pil_crops_it(photo):
    path, pixels = photo
    name = cropped(str(path), Box(5, 7, 20, 11))
    assert name.endswith("photo.png#xywh=5,7,20,11")
    assert exists(name)
    np.testing.assert_array_equal(np.asarray(decode(name)), pixels[7:18, 5:25])
    beyond = np.asarray(decode(cropped(str(path), Box(50, 30, 20, 20))))
    np.testing.assert_array_equal(beyond[:10, :10], pixels[30:, 50:])
    assert not beyond[10:].any()
    other = cropped(str(path), Box(5, 7, 20, 12))
    assert len({image_hash(path), image_hash(name), image_hash(other)}) == 3  # by which caches and features keep them


def test_a_rectangle_of_a_member_of_an_archive_and_names_that_are_files(photo, tmp_path):
    path, pixels = photo
    shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path, "photo.png")
    name = cropped(f"{tmp_path}/images.zip!photo.png", Box(0, 0, 9, 9))
    np.testing.assert_array_equal(np.asarray(decode(name)), pixels[:9, :9])
    literal = tmp_path / "photo.png#xywh=0,0,3,3"
    shutil.copy(path, literal)
    assert member_at(literal) is None
    assert decode(literal).size == (60, 40)
    assert not exists(cropped(str(tmp_path / "none.png"), Box(0, 0, 3, 3)))
    with pytest.raises(BenchError, match="image not found"):
        decode(cropped(str(tmp_path / "none.png"), Box(0, 0, 3, 3)))


# ---- accuracies -------------------------------------------------------------------------------------------------------


def test_the_official_mean_leaves_small_groups_out_of_it_and_keeps_them_in_micro():
    right = np.array([True, False, True, True, False])
    table = choice_table({"accuracy": right}, [["on"], ["on"], ["in"], [], []], list("abcde"), ["on", "in"])
    values = estimate(table.sums())
    assert values["accuracy"] == pytest.approx((0.5 + 1.0) / 2)
    assert values["micro"] == pytest.approx(3 / 5)
    resampled = estimate(table.sums(np.array([[1.0, 1, 0, 1, 1], [0, 0, 2, 0, 0]])))
    np.testing.assert_allclose(resampled["accuracy"], [0.5, 1.0])  # a group that is not drawn is not in the mean


def test_symmetric_relations_are_those_of_the_official_notebook():
    assert len(symmetric_relations()) == 157
    assert {"near", "next to", "with", "wrapped in"} <= symmetric_relations()
    assert not {"to the left of", "on", "wearing", "above"} & symmetric_relations()


@pytest.fixture(scope="module")
def world(native):
    return native.world / "aro"


def run(native, world, folder, split, *more):
    words = [*run_words(native, "winoground"), "--split", split, "--output", folder, "--json", *more]
    words[words.index("--task") + 1], words[words.index("--data-root") + 1] = "aro", world
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("split", [*GENOME, *ORDERS])
def test_a_run_scores_as_the_official_code(native, world, tmp_path, split):
    result = run(native, world, tmp_path / "run", split, "--limit", 400)
    rows = RunStore.read(tmp_path / "run").rows()
    texts = {e.text: rows[e.id]["embedding"] for e in ARO(world).read(split).examples if e.text and e.id in rows}
    groups, correct = defaultdict(list), []
    for record in json.loads((world / (GENOME | ORDERS)[split]).read_text()):
        name = record["image_path"] if split in GENOME else record["image"]
        if split in GENOME:  # evaluate_scores: argmax of (false, true) is 1
            name += "@" + ",".join(str(record[f"bbox_{side}"]) for side in "xywh")
            options, right = [record["false_caption"], record["true_caption"]], 1
            group = record["relation_name"] if split == "vg-relation" else "_".join(record["attributes"])
        else:
            options, right, group = record["caption_options"], 0, ""
        if f"image:{name}" not in rows or not all(option in texts for option in options):
            continue  # of questions beyond the limit
        scores = [float(rows[f"image:{name}"]["embedding"] @ texts[option]) for option in options]
        correct.append(int(np.argmax(scores)) == right)
        groups[group].append(correct[-1])
    if split == "vg-attribution":
        groups = {name: hits for name, hits in groups.items() if len(hits) >= 25}
    expected = np.mean([np.mean(hits) for hits in groups.values()])
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(expected)
    assert result["chance"] == pytest.approx(0.5 if split in GENOME else 0.2)
    if split in GENOME:
        assert result["metrics"]["micro"]["value"] == pytest.approx(np.mean(correct))
        assert len(correct) == 54
    else:
        assert "micro" not in result["metrics"]


def test_a_page_shows_the_rectangle_and_the_image_cache_keeps_it(native, world, tmp_path):
    run(native, world, tmp_path / "run", "vg-relation", "--image-cache", tmp_path / "cache", "--limit", 8)
    assert len(list((tmp_path / "cache").rglob("*.px"))) == 8
    page = run_page(tmp_path / "run", n=3)
    assert page.warnings == []
    assert "data:image/" in page.html
    again = run(native, world, tmp_path / "again", "vg-relation", "--image-cache", tmp_path / "cache", "--limit", 8)
    assert again["timing"]["images_decoded"] == 0


def test_a_fused_model_matches_rectangles_with_captions(native, world, tmp_path):
    from beit3_bench.backbones.registry import get_family

    texts = [e.text for e in ARO(world).read("vg-relation").examples if e.text]
    get_family("albef").write_specimens(tmp_path / "albef", texts)
    words = [*run_words(native, "winoground"), "--output", tmp_path / "run", "--json", "--limit", 10]
    words[words.index("--task") + 1], words[words.index("--data-root") + 1] = "aro", world
    words[words.index("--checkpoint") + 1] = tmp_path / "albef" / "retrieval.pth"
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"]["protocol"] == "matching"
    assert {"accuracy", "micro", "plain/accuracy", "plain/micro"} <= result["metrics"].keys()


# ---- bad input --------------------------------------------------------------------------------------------------------


def change(root, split, number=0, gone=(), **fields):
    path = root / (GENOME | ORDERS)[split]
    content = json.loads(path.read_text())
    content[number] = {key: value for key, value in {**content[number], **fields}.items() if key not in gone}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("split", "spoil", "told"),
    [
        ("vg-relation", lambda r: (r / "visual_genome_relation.json").unlink(), "ARO vg-relation not found"),
        ("vg-relation", lambda r: (r / "visual_genome_relation.json").write_text("{}"), "expected a list of records"),
        ("vg-relation", lambda r: (r / "visual_genome_relation.json").write_text("[]"), "holds no questions"),
        ("vg-relation", lambda r: change(r, "vg-relation", gone=("bbox_w",)), r"\[0\]: key 'bbox_w' is missing"),
        ("vg-relation", lambda r: change(r, "vg-relation", bbox_h=0), r"is no rectangle of a picture"),
        ("vg-relation", lambda r: change(r, "vg-relation", 3, relation_name=4), r"\[3\]: 'relation_name' should be str"),
        ("vg-relation", lambda r: change(r, "vg-relation", false_caption="x", true_caption="x"), "are the same"),
        ("vg-attribution", lambda r: change(r, "vg-attribution", attributes=["red"]), "should be two names"),
        ("coco-order", lambda r: change(r, "coco-order", caption_options=["a"]), "a caption and four shuffled ones"),
        ("vg-relation", lambda r: shutil.rmtree(r / "images"), "ARO image folder not found"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_told_in_a_line(world, tmp_path, split, spoil, told):
    root = tmp_path / "aro"
    shutil.copytree(world, root)
    spoil(root)
    with pytest.raises(BenchError, match=told) as error:
        ARO(root).read(split)
    assert "\n" not in str(error.value)


def test_the_whole_world_is_verified_though_two_splits_ask_about_the_same_pictures(world):
    done = invoke("data", "verify", "--task", "aro", "--data-root", world)
    assert done.exit_code == 0, done.output
    assert "whole: nothing found" in done.output
