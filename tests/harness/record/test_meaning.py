"""What a checkpoint's outputs mean: checked where anything tells, noted where nothing does."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from native import edit_json, invoke, run_words

from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.coco_det import COCO_IDS, CocoDetection
from beit3_bench.tasks.contract import Split
from beit3_bench.tasks.nlvr2 import NLVR2
from beit3_bench.tasks.vqav2 import FIRST_ANSWERS, VQAv2


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def with_metadata(native, task: str, to: Path, **metadata) -> Path:
    content = torch.load(native.checkpoint(task), weights_only=True)
    content[METADATA_KEY].update(metadata)
    torch.save(content, to)
    shutil.copy(native.world / "beit3.spm", to.parent)
    return to


def run(native, task, root, file, *more):
    words = run_words(native, task, root)
    words[words.index("--checkpoint") + 1] = file
    return invoke(*words, *more, "--json")


# ---- answers ---------------------------------------------------------------------------------------------------------


def reorder(root):
    edit_json(root / "vqa" / "v2_mscoco_train2014_annotations.json", lambda c: c["annotations"].reverse())
    return root


def test_answers_in_another_order_than_the_checkpoint_has_are_refused(native, tmp_path):
    root = native.copy("vqav2", tmp_path)
    answers = VQAv2(root).vocabulary()
    hashed = hashlib.sha256("\n".join(answers).encode()).hexdigest()
    for n, known in enumerate(({"labels": answers}, {"vocabulary": hashed})):
        (tmp_path / str(n)).mkdir()
        file = with_metadata(native, "vqav2", tmp_path / str(n) / "m.pth", **known)
        done = run(native, "vqav2", root, file, "--split", "minival")
        assert done.exit_code == 0, done.output
        assert not any("answer list" in note for note in json.loads(done.stdout)["notes"])
    reorder(root)
    done = run(native, "vqav2", root, tmp_path / "0" / "m.pth", "--split", "minival")
    assert done.exit_code == 2
    assert "was trained for other answers than those of" in done.stderr
    assert "in the checkpoint, " in done.stderr
    done = run(native, "vqav2", root, tmp_path / "1" / "m.pth", "--split", "minival")
    assert done.exit_code == 2
    assert "was fine-tuned for other answers, or another order of them" in done.stderr


def test_a_checkpoint_without_answers_is_noted(native, tmp_path):
    done = run(native, "vqav2", native.root("vqav2"), native.checkpoint("vqav2"), "--split", "minival")
    note = "the checkpoint carries no answer list: its outputs are taken to be those of the train and val annotations"
    assert any(line.startswith(note) for line in json.loads(done.stdout)["notes"])


def asked(task, labels, outputs, source=Path("there")):
    """What a task says to a file's outputs on data that takes them to mean ``labels``."""
    return task.check_outputs(Split("a", (), tuple(labels), source), outputs)


def test_released_heads_want_the_official_order(tmp_path):
    released, mine = tmp_path / "beit3_base_patch16_480_vqa.pth", tmp_path / "mine.pth"
    task = VQAv2(tmp_path)
    official = [*FIRST_ANSWERS, *(f"answer {n}" for n in range(3129 - len(FIRST_ANSWERS)))]
    head = Outputs(released, count=3129, released=True)
    assert asked(task, official, head) == []
    with pytest.raises(BenchError, match="the answers of released heads begin with net, pitcher, orange"):
        asked(task, sorted(official), head)
    assert "carries no answer list" in asked(task, sorted(official), Outputs(mine, count=3129))[0]
    with pytest.raises(BenchError, match=r"its head has 3129 answers, .* has 3128"):
        asked(task, official[:-1], head)


# ---- categories and labels -------------------------------------------------------------------------------------------


def test_categories_are_compared_by_name(tmp_path):
    task = CocoDetection(tmp_path)

    def checked(truth, outputs):
        split = Split("val2017", (), tuple(c["name"] for c in truth), tmp_path / "instances.json", truth)
        return task.check_outputs(split, outputs)

    own = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert checked(own, Outputs(tmp_path / "m.pth", ("cat", "dog"))) == []
    with pytest.raises(BenchError, match=r"other categories than .* output 1 is 'cow' in the checkpoint, 'dog' here"):
        checked(own, Outputs(tmp_path / "m.pth", ("cat", "cow")))
    assert "carries no categories" in checked(own, Outputs(tmp_path / "m.pth"))[0]
    official = [{"id": i, "name": str(i)} for i in COCO_IDS]
    assert len(COCO_IDS) == 80
    assert checked(official, Outputs(tmp_path / "m.pth")) == []


def test_truth_values_of_nlvr2_have_an_order(native, tmp_path):
    task = NLVR2(native.root("nlvr2"))
    split = task.read("dev")
    assert task.check_outputs(split, Outputs(tmp_path / "m.pth", ("False", "True"), 2)) == []
    with pytest.raises(BenchError, match="output 0 is 'True' in the checkpoint, 'False' here"):
        task.check_outputs(split, Outputs(tmp_path / "m.pth", ("True", "False"), 2))
