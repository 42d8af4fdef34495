"""Every native task through the command line: values that must not depend on how the work is cut, and bad input."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest
from exactness import assert_same_rows, row_lines
from native import ROOTS, edit_json, invoke, run_words
from ranks import run_ranks
from run_requests import run_request

from beit3_bench.backbones.reading import NativeReader
from beit3_bench.harness.reading import prepare
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.registry import get_task

TASKS = list(ROOTS)
HARNESS = [sys.executable, "-m", "beit3_bench.harness"]


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
    """METEOR starts Java, which takes seconds and is tested elsewhere."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def evaluate(native, task, folder, batch_size=4, limit=None, task_class=None, split=None):
    request = run_request(
        task=task,
        checkpoint=native.checkpoint(task),
        data_root=native.root(task),
        batch_size=batch_size,
        device="cpu",
        workers=0,
        limit=limit,
        split=split,
        output=folder,
        overwrite=True,
    )
    return run_task(request, task_class or get_task(task)).result


def values(result):
    return {name: metric["value"] for name, metric in result["metrics"].items()}


@pytest.mark.isa
@pytest.mark.parametrize("task", TASKS)
def test_rows_and_metrics_depend_neither_on_batch_size_nor_on_the_order_of_the_data(native, task, tmp_path):
    class Permuted(get_task(task)):
        def read(self, split):
            whole = super().read(split)
            return whole.of(random.Random(1).sample(whole.examples, len(whole.examples)))

    expected = values(evaluate(native, task, tmp_path / "a", 1))
    rows = row_lines(tmp_path / "a")
    assert expected
    assert len(rows) == len(set(rows)) > 0
    for size, task_class in ((3, None), (16, None), (5, Permuted)):
        folder = tmp_path / str(size)
        assert values(evaluate(native, task, folder, size, task_class=task_class)) == pytest.approx(expected, abs=1e-9)
        assert_same_rows(folder, tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_rows_are_the_same_on_several_processes(native, world, size, tmp_path):
    """Processes of one thread each, against one process with the threads of this machine."""
    words = [word for task in TASKS for flag, where in (("--checkpoint", native.checkpoint), ("--data-root", native.root))
             for word in (flag, f"{task}={where(task)}")]  # fmt: skip
    command = ["run", "--task", ",".join(TASKS), *words, "--device", "cpu", "--workers", 0]
    finished = run_ranks([[*HARNESS, *command, "--batch-size", size, "--output", tmp_path / "many"]] * world)
    assert [f.code for f in finished] == [0] * world, [f.err for f in finished]
    for task in TASKS:
        split = get_task(task).default_split
        expected = values(evaluate(native, task, tmp_path / "one", 5))
        found = tmp_path / "many" / f"{task}-{split}"
        # A process whose share holds no batch writes no file: 16 of a tiny split's samples are most of it.
        assert len(list(found.glob("rows/*.jsonl"))) == world or size == 16
        assert values(json.loads((found / "result.json").read_text())) == pytest.approx(expected, abs=1e-9)
        assert_same_rows(found, tmp_path / "one", 1)


@pytest.mark.parametrize("task", TASKS)
def test_a_limit_keeps_whole_samples_and_is_recorded(native, task, tmp_path):
    full = evaluate(native, task, tmp_path / "full")
    part = evaluate(native, task, tmp_path / "part", limit=4)
    assert full["subset"] is None
    assert part["subset"] == {"limit": 4}
    assert part["world"] == "tiny"
    asked = "questions" in full["counts"] or "images" not in full["counts"]  # of which several are about a picture
    unit = next(iter(full["counts"])) if asked else "images"
    assert part["counts"][unit] == 4 < full["counts"][unit]


@pytest.mark.parametrize("task", TASKS)
def test_an_image_is_decoded_once(native, task, tmp_path, monkeypatch):
    from beit3_bench.backbones import preprocess

    opened: list[str] = []
    original = preprocess.decode
    monkeypatch.setattr(preprocess, "decode", lambda path, *more: opened.append(str(path)) or original(path, *more))
    evaluate(native, task, tmp_path / "run", batch_size=64)
    prepared = prepare(get_task(task)(native.root(task)), None)
    files = {file for e in prepared.split.examples for file in e.images}
    assert set(opened) == files
    # A batch boundary may fall between two questions of an image, or two sentences of a pair.
    assert len(opened) <= len(files) * 1.35


def test_what_a_library_prints_stays_out_of_the_json(native, tmp_path, monkeypatch):
    collate = NativeReader.collate
    monkeypatch.setattr(NativeReader, "collate", lambda self, items: print("loading") or collate(self, items))
    done = invoke(*run_words(native, "imagenet-linear"), "--workers", 0, "--output", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["task"] == "imagenet-linear"
    assert "loading" in done.stderr


def test_the_throughput_line_counts_images_and_text_tokens(native, tmp_path):
    words = [*run_words(native, "vqav2"), "--output", tmp_path / "run"]
    done = invoke(*words, "--overwrite")
    assert done.exit_code == 0
    assert "images decoded (" in done.stdout
    assert "text tokens computed, " in done.stdout
    timing = json.loads((tmp_path / "run" / "result.json").read_text())["timing"]
    assert timing["images_decoded"] >= timing["images_distinct"] > 0
    assert timing["images_encoded"] == json.loads((tmp_path / "run" / "result.json").read_text())["counts"]["questions"]
    assert timing["text_tokens"] >= timing["text_tokens_real"] > 0


# ---- bad input: one line, exit code 2, no result ----------------------------------------------------------------------


def spoil(name, change):
    return lambda root: edit_json(root / name, change)


def remove(name):
    return lambda root: (root / name).unlink()


def truncate(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[: (root / name).stat().st_size // 2])


def break_image(folder, pattern):
    def change(root):
        for path in (root / folder).glob(pattern):
            path.write_bytes(path.read_bytes()[:200])

    return change


def drop(key):
    return lambda content: [record.pop(key) for record in content["images"][:1]] and None


CASES = [
    ("flickr30k", remove("dataset_flickr30k.json"), "dataset_flickr30k.json"),
    ("flickr30k", truncate("dataset_flickr30k.json"), "not valid JSON"),
    ("flickr30k", spoil("dataset_flickr30k.json", drop("sentences")), "'sentences' is missing"),
    ("flickr30k", spoil("dataset_flickr30k.json", lambda c: c["images"].append(c["images"][0])), "listed twice"),
    (
        "flickr30k",
        spoil("dataset_flickr30k.json", lambda c: {**c, "images": [i for i in c["images"] if i["split"] != "test"]}),
        "no image of split test",
    ),
    ("flickr30k", spoil("dataset_flickr30k.json", lambda c: [c]), "expected an object"),
    (
        "flickr30k",
        spoil("dataset_flickr30k.json", lambda c: [i.update(sentences=[]) for i in c["images"]] and None),
        "has no sentences",
    ),
    ("flickr30k", break_image("flickr30k-images", "*.jpg"), "does not decode"),
    ("coco-retrieval", lambda root: [p.unlink() for p in (root / "val2014").glob("*.jpg")], "image files are missing"),
    ("imagenet", lambda root: (root / "val").rename(root / "validation"), "folder not found"),
    (
        "imagenet",
        lambda root: next((root / "val").iterdir()).rename(root / "val" / "n00000000"),
        "not a WordNet id",
    ),
    ("imagenet-linear", lambda root: (root / "val" / "n99999999").mkdir(), "has 11 class folders"),
    (
        "vqav2",
        spoil("vqa/v2_mscoco_val2014_annotations.json", lambda c: c["annotations"].pop() and None),
        "has no annotation",
    ),
    (
        "vqav2",
        spoil(
            "vqa/v2_mscoco_val2014_annotations.json",
            lambda c: (
                [a.update(question_id=a["image_id"] * 10 + n % 10) for n, a in enumerate(c["annotations"])][:0]
                or {**c, "annotations": list({a["question_id"]: a for a in c["annotations"]}.values())}
            ),
        ),
        "VQA v1",
    ),
    (
        "vqav2",
        spoil("vqa/v2_mscoco_val2014_annotations.json", lambda c: c["annotations"].append(c["annotations"][0])),
        "listed twice",
    ),
    ("vqav2", lambda root: [p.unlink() for p in (root / "val2014").glob("*.jpg")], "image files are missing"),
    ("nlvr2", lambda root: (root / "data/test1.json").write_text('{"identifier": 3}'), "'identifier' should be str"),
    (
        "nlvr2",
        lambda root: (root / "data/test1.json").write_text('{"identifier":"a-1-0-0","sentence":"x","label":"maybe"}'),
        "neither True nor False",
    ),
    ("nlvr2", lambda root: (root / "data/test1.json").write_text(""), "holds no examples"),
    ("coco-caption", spoil("dataset_coco.json", drop("filename")), "'filename' is missing"),
    (
        "nocaps",
        spoil("nocaps_val_4500_captions.json", lambda c: c.update(annotations=c["annotations"][:3])),
        "no captions",
    ),
    (
        "nocaps",
        spoil("nocaps_val_4500_captions.json", lambda c: [a.update(image_id=99999) for a in c["annotations"]] and None),
        "not among the images",
    ),
]


@pytest.mark.parametrize(("task", "change", "message"), CASES, ids=[f"{t}-{m}" for t, _, m in CASES])
def test_bad_data_is_one_line_exit_code_2_and_no_result(native, task, change, message, tmp_path):
    root = native.copy(task, tmp_path)
    change(root)
    outcome = invoke(*run_words(native, task, root), "--output", tmp_path / "run")
    assert outcome.exit_code == 2
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, outcome.stderr
    assert message in lines[0]
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_tokenizer_that_is_none_is_refused(native, tmp_path):
    fake = tmp_path / "beit3.spm"
    fake.write_text("these are not the pieces")
    outcome = invoke(*run_words(native, "flickr30k"), "--tokenizer", fake, "--output", tmp_path / "run")
    assert outcome.exit_code == 2
    assert "not a SentencePiece model" in outcome.stderr


def test_a_checkpoint_of_another_task_is_refused(native, tmp_path):
    words = run_words(native, "flickr30k")
    words[words.index("--checkpoint") + 1] = native.checkpoint("vqav2")
    outcome = invoke(*words, "--output", tmp_path / "run")
    assert outcome.exit_code == 2
    assert "vqav2 head" in outcome.stderr


def test_half_a_checkpoint_is_refused(native, tmp_path):
    half = tmp_path / "half.pth"
    half.write_bytes(native.checkpoint("flickr30k").read_bytes()[:20000])
    words = run_words(native, "flickr30k")
    words[words.index("--checkpoint") + 1] = half
    outcome = invoke(*words, "--tokenizer", native.world / "beit3.spm", "--output", tmp_path / "run")
    assert outcome.exit_code == 2
    assert "not a whole PyTorch checkpoint" in outcome.stderr


# ---- an estimate --------------------------------------------------------------------------------------------------------


def test_imagenet_by_its_class_texts_stops_early_and_goes_on_to_the_whole(native, tmp_path):
    root = native.copy("imagenet", tmp_path)
    for path in sorted((root / "val").rglob("*.JPEG")):
        for n in range(6):
            shutil.copy(path, path.with_name(f"{path.stem}_{n}.JPEG"))
    words = [*run_words(native, "imagenet", root), "--output", tmp_path / "run", "--json"]
    stopped = json.loads(invoke(*words, "--until-ci", 25).stdout)
    estimate, (low, high) = stopped["subset"]["estimate"], stopped["metrics"]["top1"]["ci95"]
    assert estimate["examples"] == stopped["counts"]["images"] < estimate["of_examples"] == 140
    assert stopped["counts"]["classes"] == stopped["counts"]["class texts"]
    assert 100 * (high - low) < 25
    whole = json.loads(invoke(*words).stdout)
    plain = json.loads(invoke(*words[:-2], tmp_path / "plain", "--json").stdout)
    assert whole["subset"] is None
    assert whole["counts"]["images"] == 140
    assert whole["metrics"] == plain["metrics"]
    assert low <= whole["metrics"]["top1"]["value"] <= high
