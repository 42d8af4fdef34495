"""`beit3-bench data verify`: what is found in spoilt data, and nothing in whole data."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from native import ROOTS, edit_json, invoke
from PIL import Image

from beit3_bench.harness.cli import main
from beit3_bench.harness.evidence import verify as module
from beit3_bench.harness.evidence.verify import verify
from beit3_bench.harness.evidence.verify_images import image_files
from beit3_bench.harness.record.released import digest_of_ids, git_blobs
from beit3_bench.tasks.facts import Counts, Facts, ReleasedData, read_facts
from beit3_bench.tasks.registry import get_task

DENSE = {"coco-det": "coco", "ade20k-seg": "ADEChallengeData2016"}


@pytest.fixture(autouse=True)
def own_pins(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def spoilt(native, tmp_path):
    """A copy of a task's data outside of its tiny world, so that it is taken for real data."""
    return lambda task: native.copy(task, tmp_path)


@pytest.fixture
def no_counts(monkeypatch):
    """The released counts and checksums do not hold for the mini world; everything else does."""

    def without(task):
        data = read_facts(task).data
        karpathy = data.karpathy and replace(data.karpathy, training_images={})
        needs = tuple(replace(need, git_blob="") for need in data.needs)
        return Facts(data=replace(data, needs=needs, splits={}, ids={}, karpathy=karpathy))

    monkeypatch.setattr(module, "read_facts", without)


def lines(found):
    return [(finding.check, finding.line) for finding in found.findings]


@pytest.mark.parametrize("task", [*ROOTS, *DENSE])
def test_whole_data_has_no_finding(native, task):
    root = native.world / {**ROOTS, **DENSE}[task]
    found = verify(get_task(task), root, all_images=True)
    assert lines(found) == []
    assert found.world == "tiny"
    there = [split for split in found.splits if split.there]
    assert [split.name for split in found.splits] == list(get_task(task).splits)
    assert all(split.images > 0 for split in there)
    assert sum(split.decoded for split in there) == len({
        path for s in there for e in get_task(task)(root).read(s.name).examples for path in image_files(e)
    })  # fmt: skip


@pytest.mark.parametrize("task", ROOTS)
def test_whole_data_outside_of_a_tiny_world_lacks_only_the_released_counts(spoilt, task, no_counts):
    found = verify(get_task(task), spoilt(task))
    assert lines(found) == []
    assert found.world == "real"
    assert {file.checksum for file in found.files} <= {"new"}


@pytest.mark.parametrize("task", ["vqav2", "nlvr2", "coco-retrieval", "nocaps", "imagenet-linear"])
def test_other_counts_than_the_released_are_found_per_split(spoilt, task):
    found = verify(get_task(task), spoilt(task), sample=0)
    counts = [line for check, line in lines(found) if check == "counts"]
    default = get_task(task).default_split
    assert any(f"split {default} has" in line and "the release" in line for line in counts)


# ---- spoilt data --------------------------------------------------------------------------------------------------------


def images_of(content, split):
    return [image for image in content["images"] if image["split"] == split]


def _first_of_test_dev(root):
    path = root / "vqa/v2_OpenEnded_mscoco_test-dev2015_questions.json"
    return json.loads(path.read_text())["questions"][0]["question_id"]


def replace_image(root, pattern, image, form="PNG"):
    path = min(root.rglob(pattern))
    image.save(path, form)
    return path


def ramp(dtype, top):
    return Image.fromarray(np.linspace(0, top, 80 * 60).reshape(60, 80).astype(dtype))


CASES = {
    "missing annotation file": (
        "vqav2",
        lambda root: (root / "vqa/v2_OpenEnded_mscoco_val2014_questions.json").unlink(),
        "files",
        "v2_OpenEnded_mscoco_val2014_questions.json: not found; download it",
    ),
    "file that does not parse": (
        "flickr30k",
        lambda root: (root / "dataset_flickr30k.json").write_text("{"),
        "reader",
        "not valid JSON",
    ),
    "missing images": (
        "coco-retrieval",
        lambda root: [p.unlink() for p in (root / "val2014").glob("*.jpg")],
        "images",
        "image files are missing",
    ),
    "broken image": (
        "nlvr2",
        lambda root: [p.write_bytes(p.read_bytes()[:100]) for p in sorted(root.rglob("test1-*-img0.png"))[:1]],
        "decode",
        "1 of",
    ),
    "16-bit grey png": (
        "flickr30k",
        lambda root: replace_image(root, "*.jpg", ramp(np.uint16, 65535)),
        "depth",
        "(16-bit grey); convert them to 8 bits",
    ),
    "16-bit grey tiff": (
        "imagenet",
        lambda root: replace_image(root, "*.JPEG", ramp(np.uint16, 65535), "TIFF"),
        "depth",
        "(16-bit grey); convert",
    ),
    "32-bit grey tiff": (
        "nocaps",
        lambda root: replace_image(root / "val", "*.jpg", ramp(np.int32, 65535), "TIFF"),
        "depth",
        "(32-bit grey); convert",
    ),
    "tiff of floats": (
        "nlvr2",
        lambda root: replace_image(root, "test1-*-img1.png", ramp(np.float32, 1), "TIFF"),
        "depth",
        "1 of",
    ),
    "image too large": (
        "nocaps",
        lambda root: min((root / "val").glob("*.jpg")).write_bytes(b"P6 15000 13000 255\n"),
        "size",
        "make them smaller, or leave them out",
    ),
    "postscript called jpg": (
        "flickr30k",
        lambda root: min(root.rglob("*.jpg")).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        "decode",
        "not an image: PostScript",
    ),
    "question id twice": (
        "vqav2",
        lambda root: edit_json(
            root / "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
            lambda c: c["questions"].append(c["questions"][0]),
        ),
        "reader",
        "is listed twice; remove the duplicate",
    ),
    "nine answers": (
        "vqav2",
        lambda root: edit_json(
            root / "vqa/v2_mscoco_val2014_annotations.json", lambda c: c["annotations"][0]["answers"].pop() and None
        ),
        "captions",
        "1 samples of split val have other than 10 references",
    ),
    "four captions": (
        "flickr30k",
        lambda root: edit_json(
            root / "dataset_flickr30k.json", lambda c: images_of(c, "test")[0]["sentences"].pop() and None
        ),
        "captions",
        "have other than 5 references",
    ),
    "caption of nocaps lost": (
        "nocaps",
        lambda root: edit_json(root / "nocaps_val_4500_captions.json", lambda c: c["annotations"].pop() and None),
        "captions",
        "have other than 10 references",
    ),
    "image in two splits": (
        "coco-caption",
        lambda root: edit_json(
            root / "dataset_coco.json",
            lambda c: images_of(c, "test")[0].update(
                {key: images_of(c, "val")[0][key] for key in ("filename", "filepath")}
            ),
        ),
        "splits",
        "1 images are in split test and in val",
    ),
    "one image under two ids": (
        "coco-caption",
        lambda root: edit_json(
            root / "dataset_coco.json",
            lambda c: images_of(c, "train")[0].update(
                {key: images_of(c, "train")[1][key] for key in ("filename", "filepath")}
            ),
        ),
        "splits",
        "listed under several ids",
    ),
    "split of another name": (
        "coco-retrieval",
        lambda root: edit_json(root / "dataset_coco.json", lambda c: images_of(c, "train")[0].update(split="training")),
        "splits",
        "splits of other names (training)",
    ),
    "sentence pair in two splits": (
        "nlvr2",
        lambda root: (root / "data/dev.json").write_text((root / "data/test1.json").read_text()),
        "splits",
        "ids are in split test-P and in dev",
    ),
    "test-dev is no part of test-std": (
        "vqav2",
        lambda root: edit_json(
            root / "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
            lambda c: c.update(questions=[q for q in c["questions"] if q["question_id"] != _first_of_test_dev(root)]),
        ),
        "splits",
        "1 ids of split test-dev are not in test-std",
    ),
    "class folder lost": (
        "imagenet",
        lambda root: (root / "val").rename(root / "validation"),
        "files",
        "val: not found",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_spoilt_data_is_found_in_one_line_with_its_mend(spoilt, name, no_counts):
    task, spoil, check, words = CASES[name]
    root = spoilt(task)
    spoil(root)
    found = verify(get_task(task), root, all_images=True)
    matching = [line for kind, line in lines(found) if kind == check and words in line]
    assert matching, lines(found)
    assert all("\n" not in finding.line and "; " in finding.line for finding in found.findings)


def test_label_map_that_is_none_is_found(native, tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    shutil.copytree(native.world / "ADEChallengeData2016", root)
    path = min((root / "annotations" / "validation").glob("*.png"))
    Image.open(path).convert("RGB").save(path)
    found = verify(get_task("ade20k-seg"), root, all_images=True)
    assert [line for check, line in lines(found) if check == "label map" and "is an image of mode RGB" in line]


def test_split_that_nobody_asked_for_may_be_absent(spoilt, no_counts):
    root = spoilt("vqav2")
    (root / "vqa/v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    found = verify(get_task("vqav2"), root, sample=0)
    assert lines(found) == []
    assert [s.name for s in found.splits if not s.there] == ["test-std"]
    asked = verify(get_task("vqav2"), root, split="test-std", sample=0)
    assert [check for check, _ in lines(asked)] == ["files", "reader"]


def test_released_counts_with_other_ids_are_found(spoilt, monkeypatch):
    root = spoilt("nlvr2")
    task = get_task("nlvr2")(root)
    counts = Counts(samples=len(task.read("dev").examples))
    own = digest_of_ids(e.id for e in task.read("dev").examples)
    needs = tuple(replace(need, git_blob="") for need in read_facts("nlvr2").data.needs)
    for digest, expected in ((own, []), ("0" * 64, ["ids"])):
        facts = Facts(data=ReleasedData(needs, {"dev": counts}, {"dev": (digest,)}))
        monkeypatch.setattr(module, "read_facts", lambda task, facts=facts: facts)
        found = verify(get_task("nlvr2"), root, split="dev", sample=0)
        assert [check for check, _ in lines(found)] == expected


def test_split_file_with_restval_moved_to_train_is_found_and_still_evaluated(spoilt):
    root = spoilt("coco-retrieval")

    def move(content):
        for image in images_of(content, "restval"):
            image["split"] = "train"

    edit_json(root / "dataset_coco.json", move)
    found = verify(get_task("coco-retrieval"), root, sample=0)
    assert any("split restval has 0 images, the released file 30,504" in line for _, line in lines(found))
    assert get_task("coco-retrieval")(root).read("test").examples


# ---- checksums ----------------------------------------------------------------------------------------------------------


def test_annotation_file_is_pinned_and_a_change_is_found(spoilt, no_counts):
    root = spoilt("flickr30k")

    def check():
        found = verify(get_task("flickr30k"), root, sample=0)
        return [file.checksum for file in found.files], lines(found)

    assert check() == (["new"], [])
    assert check() == (["pinned"], [])
    edit_json(root / "dataset_flickr30k.json", lambda c: c.update(dataset="other"))
    (how,), ((kind, line),) = check()
    assert (how, kind) == ("changed", "checksum")
    assert "differs from the one pinned for data:" in line
    assert "delete the entry" in line


def test_official_checksum_is_that_of_git(tmp_path):
    path = tmp_path / "dev.json"
    path.write_bytes(b'{"identifier": "dev-1-0-0"}\n' * 7)
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert git_blobs(path)[0] == git.stdout.strip()


def test_file_that_is_not_the_official_one_is_found(spoilt):
    found = verify(get_task("nlvr2"), spoilt("nlvr2"), sample=0)
    wrong = [line for check, line in lines(found) if check == "checksum"]
    assert len(wrong) == 3
    assert all("differs from the official file" in line for line in wrong)
    assert {file.checksum for file in found.files} == {"changed"}
    assert all(len(file.sha256) == 64 for file in found.files)


def test_official_file_passes(spoilt, monkeypatch):
    root = spoilt("nlvr2")
    own = {path.name: git_blobs(path)[0] for path in (root / "data").glob("*.json")}
    needs = tuple(replace(need, git_blob=own[need.path]) for need in read_facts("nlvr2").data.needs)
    monkeypatch.setattr(module, "read_facts", lambda task: Facts(data=ReleasedData(needs, {"dev": Counts()})))
    found = verify(get_task("nlvr2"), root, sample=0)
    assert lines(found) == []
    assert {file.checksum for file in found.files} == {"official"}


# ---- the facts of the released data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*ROOTS, *DENSE])
def test_facts_name_only_splits_and_files_that_the_task_has(native, task):
    data, known = read_facts(task).data, get_task(task)
    root = native.world / {**ROOTS, **DENSE}[task]
    assert {*data.splits, *data.ids, *data.within, *data.within.values()} <= set(known.splits)
    assert {split for need in data.needs for split in need.splits} == set(known.splits)
    assert {split for need in data.needs if need.find(root) is None for split in need.splits} <= {"test"}


def test_counts_of_the_readers_are_those_of_the_facts():
    from beit3_bench.tasks import karpathy, vqav2

    counts = read_facts("vqav2").data.splits
    assert counts["train"].samples + counts["val"].samples == vqav2.RELEASED_ANNOTATIONS
    assert counts["minival"].images == vqav2.MINIVAL_IMAGES
    for task in ("coco-retrieval", "coco-caption", "flickr30k"):
        data = read_facts(task).data
        assert {*data.karpathy.training_images, *data.splits} <= set(karpathy.SPLITS)


# ---- the verb -----------------------------------------------------------------------------------------------------------


def test_verb_prints_json_and_exits_with_2_where_it_finds_something(native, spoilt):
    good = invoke("data", "verify", "--task", "flickr30k", "--data-root", native.root("flickr30k"), "--json")
    assert good.exit_code == 0
    parsed = json.loads(good.stdout)
    assert (parsed["whole"], parsed["findings"]) == (True, [])
    digest = hashlib.sha256((native.root("flickr30k") / "dataset_flickr30k.json").read_bytes()).hexdigest()
    assert [file["sha256"] for file in parsed["files"]] == [digest]
    root = spoilt("flickr30k")
    bad = invoke("data", "verify", "--task", "flickr30k", "--data-root", root)
    assert bad.exit_code == 2
    told = [line for line in bad.stdout.splitlines() if line.startswith("finding (")]
    assert told
    assert bad.stderr == f"error: {root}: {len(told)} findings for task flickr30k; see the lines above\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "flikr30k", "--data-root", "."], "did you mean 'flickr30k'"),
        (["--task", "flickr30k", "--data-root", "nowhere"], "nowhere: folder not found; check --data-root"),
        (["--task", "flickr30k", "--data-root", ".", "--split", "tset"], "did you mean 'test'"),
    ],
)
def test_bad_request_is_one_line(words, line):
    result = CliRunner().invoke(main, ["data", "verify", *words])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert line in result.stderr
