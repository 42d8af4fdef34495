"""Files that are broken in hundreds of ways: a reader or a scorer refuses in one line, or succeeds; nothing else.

A reader goes as far as a run does before the model: examples, image check, fingerprint, tokens.
"""

from __future__ import annotations

import codecs
import json
import pickle
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import Spoil, spoil_bytes, spoil_csv, spoil_json, spoil_json_lines, spoil_npz
from native import invoke, run_words

from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.errors import BenchError
from beit3_bench.harness.reading import prepare
from beit3_bench.harness.record.fingerprints import data_fingerprint
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.registry import get_task

FEW, MANY = 100, 500
AMOUNT = [pytest.param(range(FEW), id="few"), pytest.param(range(FEW, MANY), id="many", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


def broken_ways(path: Path, spoil: Spoil, use: Callable[[], Any], seeds: range, name: str) -> tuple[list[str], int]:
    """Spoil a file again and again and use it: what went wrong otherwise than by a `BenchError`, and the refusals."""
    whole = path.read_bytes()
    failures, refused = [], 0
    for seed in seeds:
        path.write_bytes(spoil(random.Random(f"{name} {seed}"), whole))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", DeprecationWarning)
                use()
        except BenchError as error:
            refused += 1
            if len(str(error).strip()) < 10:
                failures.append(f"seed {seed}: says only {str(error)!r}")
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    path.write_bytes(whole)
    use()  # the whole file is still good
    return failures, refused


# ---- annotations --------------------------------------------------------------------------------------------------------

ANNOTATIONS: dict[str, tuple[str, str, str, Spoil]] = {
    "flickr30k": ("flickr30k", "test", "dataset_flickr30k.json", spoil_json),
    "coco-retrieval": ("coco-retrieval", "test", "dataset_coco.json", spoil_json),
    "coco-caption": ("coco-caption", "val", "dataset_coco.json", spoil_json),
    "nocaps val": ("nocaps", "val", "nocaps_val_4500_captions.json", spoil_json),
    "nocaps test": ("nocaps", "test", "nocaps_test_image_info.json", spoil_json),
    "vqav2 questions": ("vqav2", "val", "vqa/v2_OpenEnded_mscoco_val2014_questions.json", spoil_json),
    "vqav2 minival": ("vqav2", "minival", "vqa/v2_OpenEnded_mscoco_val2014_questions.json", spoil_json),
    "vqav2 annotations": ("vqav2", "val", "vqa/v2_mscoco_val2014_annotations.json", spoil_json),
    "nlvr2": ("nlvr2", "test-P", "data/test1.json", spoil_json_lines),
    "coco-det": ("coco-det", "val2017", "annotations/instances_val2017.json", spoil_json),
    "coco-det test-dev": ("coco-det", "test-dev", "annotations/image_info_test-dev2017.json", spoil_json),
}
FOLDERS = {"coco-det": "coco"}
GUESSES: dict[str, dict[str, Any]] = {
    "flickr30k": {"embedding": np.ones(1, np.float32)},
    "coco-retrieval": {"embedding": np.ones(1, np.float32)},
    "vqav2": {"answer": "yes"},
    "nlvr2": {"label": True},
}
"""A row for tasks that say what guessing scores on their data."""


@pytest.mark.parametrize("seeds", AMOUNT)
@pytest.mark.parametrize("name", ANNOTATIONS)
def test_broken_annotations_are_refused_in_words(native, name, seeds, tmp_path):
    import shutil

    from beit3_bench.backbones.beit3.tokenizer import Tokenizer

    task, split, file, spoil = ANNOTATIONS[name]
    if task in FOLDERS:
        root = tmp_path / FOLDERS[task]
        shutil.copytree(native.world / FOLDERS[task], root)
    else:
        root = native.copy(task, tmp_path)
    tokenizer = Tokenizer.load(native.world / "beit3.spm")

    def use():
        reading = get_task(task)(root)
        whole = prepare(reading, split).split
        data_fingerprint(whole.examples, root)
        NativeReader(Preprocessing(32), tokenizer).prepare([reading.item(e) for e in whole.examples])
        if task in GUESSES and any(e.target is not None for e in whole.examples):
            assert (
                reading.score({e.id: {"id": e.id, **GUESSES[task]} for e in whole.examples}, whole).chance is not None
            )

    failures, refused = broken_ways(root / file, spoil, use, seeds, name)
    assert not failures, f"{len(failures)} of {len(seeds)}: " + "\n".join(failures[:5])
    assert refused > len(seeds) / 3


@pytest.mark.parametrize("seeds", AMOUNT)
@pytest.mark.parametrize("option", ["class_names", "templates", "answer_vocab"])
def test_broken_option_files_are_refused_in_words(native, option, seeds, tmp_path):
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(native.world / "beit3.spm")
    task = "vqav2" if option == "answer_vocab" else "imagenet"
    root, path = native.root(task), tmp_path / "option.json"
    if option == "answer_vocab":
        answers = get_task("vqav2")(root).vocabulary()
        path.write_text("\n".join(json.dumps({"answer": a, "label": n}) for n, a in enumerate(answers)))
    elif option == "templates":
        path.write_text(json.dumps(["a photo of a {}", "a drawing of a {}."]))
    else:
        path.write_text(json.dumps({name: name.upper() for name in get_task("imagenet")(root).classes()}))

    def use():
        reading = get_task(task)(root, {option: str(path)})
        if option == "answer_vocab":
            reading.vocabulary()
            return
        items = [reading.item(e) for e in reading.read("val").examples]
        NativeReader(Preprocessing(32), tokenizer).prepare(items)

    spoil = spoil_json_lines if option == "answer_vocab" else spoil_json
    failures, refused = broken_ways(path, spoil, use, seeds, option)
    assert not failures, f"{len(failures)} of {len(seeds)}: " + "\n".join(failures[:5])
    assert refused > len(seeds) / 3


# ---- prediction files ---------------------------------------------------------------------------------------------------


@dataclass
class Files:
    """What a scorer takes; the file called ``spoilt`` is broken."""

    inputs: ScoreInputs
    spoilt: Path
    spoil: Spoil


def caption_files(native, folder):
    content = json.loads((native.root("nocaps") / "nocaps_val_4500_captions.json").read_text())
    kept = {image["id"] for image in content["images"][:6]}
    references = {
        "images": content["images"][:6],
        "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
    }
    (folder / "truth.json").write_text(json.dumps(references))
    predictions = [{"image_id": i, "caption": "a red circle on a table"} for i in sorted(kept)]
    (folder / "predictions.json").write_text(json.dumps(predictions))
    return ScoreInputs(folder / "predictions.json", folder / "truth.json")


def vqa_files(native, folder):
    root = native.root("vqav2") / "vqa"
    for kind, name in (
        ("questions", "v2_OpenEnded_mscoco_val2014_questions"),
        ("annotations", "v2_mscoco_val2014_annotations"),
    ):
        content = json.loads((root / f"{name}.json").read_text())
        (folder / f"{kind}.json").write_text(
            json.dumps({kind: sorted(content[kind], key=lambda r: r["question_id"])[:12]})
        )
    ids = [q["question_id"] for q in json.loads((folder / "questions.json").read_text())["questions"]]
    (folder / "predictions.json").write_text(json.dumps([{"question_id": i, "answer": "yes"} for i in ids]))
    return ScoreInputs(folder / "predictions.json", folder / "annotations.json", folder / "questions.json")


def nlvr2_files(native, folder):
    lines = (native.root("nlvr2") / "data" / "dev.json").read_text().splitlines()[:12]
    (folder / "truth.json").write_text("\n".join(lines))
    ids = [json.loads(line)["identifier"] for line in lines]
    (folder / "predictions.csv").write_text("".join(f"{i},True\n" for i in ids))
    return ScoreInputs(folder / "predictions.csv", folder / "truth.json")


def retrieval_files(native, folder):
    rng = np.random.default_rng(0)
    arrays = {
        "image_embeddings": rng.normal(size=(4, 8)).astype(np.float32),
        "image_ids": np.arange(4),
        "text_embeddings": rng.normal(size=(9, 8)).astype(np.float32),
        "text_image_ids": np.arange(9) % 4,
    }
    np.savez(folder / "embeddings.npz", **arrays)
    return ScoreInputs(folder / "embeddings.npz")


def detection_files(native, folder):
    content = json.loads((native.world / "coco" / "annotations" / "instances_val2017.json").read_text())
    kept = {image["id"] for image in content["images"][:5]}
    truth = {
        "images": content["images"][:5],
        "categories": content["categories"],
        "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    found = [
        {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5}
        for a in truth["annotations"]
    ]
    (folder / "predictions.json").write_text(json.dumps(found))
    return ScoreInputs(folder / "predictions.json", folder / "truth.json", iou_type="bbox")


def segmentation_files(native, folder):
    import shutil

    source = native.world / "ADEChallengeData2016" / "annotations" / "validation"
    for name in ("truth", "predictions"):
        (folder / name).mkdir()
        for path in sorted(source.iterdir())[:2]:
            shutil.copy(path, folder / name / path.name)
    return ScoreInputs(folder / "predictions", folder / "truth")


def first_of(folder):
    return next(iter(sorted(folder.iterdir())))


SCORERS: dict[str, tuple[str, Callable, Callable[[ScoreInputs], Path], Spoil]] = {
    "vqav2 predictions": ("vqav2", vqa_files, lambda i: i.predictions, spoil_json),
    "vqav2 annotations": ("vqav2", vqa_files, lambda i: i.annotations, spoil_json),
    "vqav2 questions": ("vqav2", vqa_files, lambda i: i.questions, spoil_json),
    "nlvr2 predictions": ("nlvr2", nlvr2_files, lambda i: i.predictions, spoil_csv),
    "nlvr2 annotations": ("nlvr2", nlvr2_files, lambda i: i.annotations, spoil_json_lines),
    "coco-caption predictions": ("coco-caption", caption_files, lambda i: i.predictions, spoil_json),
    "coco-caption annotations": ("coco-caption", caption_files, lambda i: i.annotations, spoil_json),
    "coco-retrieval embeddings": ("coco-retrieval", retrieval_files, lambda i: i.predictions, spoil_npz),
    "coco-det predictions": ("coco-det", detection_files, lambda i: i.predictions, spoil_json),
    "coco-det annotations": ("coco-det", detection_files, lambda i: i.annotations, spoil_json),
    "ade20k-seg predictions": ("ade20k-seg", segmentation_files, lambda i: first_of(i.predictions), spoil_bytes),
    "ade20k-seg annotations": ("ade20k-seg", segmentation_files, lambda i: first_of(i.annotations), spoil_bytes),
}


@pytest.mark.parametrize("seeds", AMOUNT)
@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
def test_broken_prediction_files_are_refused_in_words(native, name, partial, seeds, tmp_path):
    task, make, spoilt, spoil = SCORERS[name]
    inputs = make(native, tmp_path)
    inputs.allow_partial = partial
    path = spoilt(inputs)

    def use():
        scores = get_task(task).score_file(inputs)
        assert all(isinstance(value, float) for value in scores.metrics.values())

    failures, refused = broken_ways(path, spoil, use, seeds[: len(seeds) // 2], f"{name} {partial}")
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:5])
    assert refused > len(seeds) / 8


@pytest.mark.parametrize(
    "name", [name for name, scorer in SCORERS.items() if scorer[3] not in (spoil_npz, spoil_bytes)]
)
def test_a_byte_order_mark_changes_no_score_and_utf_16_is_named(native, name, tmp_path):
    task, make, spoilt, _ = SCORERS[name]
    inputs = make(native, tmp_path)
    path = spoilt(inputs)
    expected = get_task(task).score_file(inputs).metrics
    text = path.read_text()
    path.write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
    assert get_task(task).score_file(inputs).metrics == expected
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(BenchError, match=rf"{path.name}: is UTF-16 text .*; save it as UTF-8"):
        get_task(task).score_file(inputs)


@pytest.mark.parametrize("name", SCORERS)
def test_command_line_refuses_broken_files_in_one_line_with_exit_code_2(native, name, tmp_path):
    task, make, spoilt, spoil = SCORERS[name]
    inputs = make(native, tmp_path)
    path = spoilt(inputs)
    whole = path.read_bytes()
    words = ["score", "--task", task, "--predictions", inputs.predictions, "--json"]
    for option in ("annotations", "questions", "iou_type"):
        if getattr(inputs, option):
            words += [f"--{option.replace('_', '-')}", getattr(inputs, option)]
    assert invoke(*words).exit_code == 0
    refused = 0
    for seed in range(12):
        path.write_bytes(spoil(random.Random(f"cli {name} {seed}"), whole))
        outcome = invoke(*words)
        if outcome.exit_code == 0:
            json.loads(outcome.stdout)
            continue
        refused += 1
        assert outcome.exit_code == 2, outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert outcome.stdout == ""
        assert "Traceback" not in outcome.output
    assert refused


# ---- images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", AMOUNT)
@pytest.mark.parametrize("pattern", ["coco/val2014/*.jpg", "nlvr2/**/*.png"])
def test_broken_images_are_refused_in_words(native, pattern, seeds, tmp_path):
    from beit3_bench.backbones.preprocess import decode

    path = tmp_path / "image"
    path.write_bytes(first_match(native.world, pattern).read_bytes())
    failures, _ = broken_ways(path, spoil_bytes, lambda: decode(path), seeds, pattern)
    assert not failures, "\n".join(failures[:5])


def first_match(root, pattern):
    return min(root.glob(pattern))


# ---- files that want to be executed ----------------------------------------------------------------------------------------


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle", "inside a whole checkpoint"])
def test_malicious_checkpoint_executes_nothing_and_leaves_nothing(native, form, tmp_path):
    import torch

    mark, path = tmp_path / "executed", tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Touch(mark)}))
    elif form == "torch":
        torch.save({"model": Touch(mark)}, path)
    else:
        content = torch.load(native.checkpoint("flickr30k"), weights_only=True)
        torch.save({**content, "args": Touch(mark)}, path)
    words = run_words(native, "flickr30k")
    words[words.index("--checkpoint") + 1] = path
    outcome = invoke(*words, "--tokenizer", native.world / "beit3.spm", "--output", tmp_path / "run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert "nothing was executed" in outcome.stderr or "not a whole PyTorch checkpoint" in outcome.stderr
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(Touch(mark)))  # it would have worked
    assert mark.exists()


def test_malicious_arrays_execute_nothing(tmp_path):
    mark = tmp_path / "executed"
    evil = np.empty(1, dtype=object)
    evil[0] = Touch(mark)
    names = ("image_embeddings", "image_ids", "text_embeddings", "text_image_ids")
    np.savez(tmp_path / "evil.npz", **dict.fromkeys(names, evil))
    outcome = invoke("score", "--task", "coco-retrieval", "--predictions", tmp_path / "evil.npz")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert not mark.exists()
