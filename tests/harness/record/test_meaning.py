"""What a checkpoint's outputs and token ids mean: checked where anything tells, noted where nothing does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from native import edit_json, invoke, run_words

from beit3_bench.backbones.beit3.config import RELEASED_PIECES, RELEASED_VOCABULARY, BEiT3Config
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.backbones.pins import pins_file
from beit3_bench.errors import BenchError
from beit3_bench.harness.inputs import compare_tokenizer
from beit3_bench.tasks.coco_det import COCO_IDS, CocoDetection
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
    task = VQAv2(root)
    for n, known in enumerate(({"labels": task.labels()}, {"vocabulary": task.vocabulary_fingerprint()})):
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


def test_released_heads_want_the_official_order(tmp_path):
    released, mine = tmp_path / "beit3_base_patch16_480_vqa.pth", tmp_path / "mine.pth"
    task = VQAv2(tmp_path)
    official = [*FIRST_ANSWERS, *(f"answer {n}" for n in range(3129 - len(FIRST_ANSWERS)))]
    task._vocabulary = official
    assert task.check_labels(released, {}, 3129) == []
    task._vocabulary = sorted(official)
    with pytest.raises(BenchError, match="the answers of released heads begin with net, pitcher, orange"):
        task.check_labels(released, {}, 3129)
    assert "carries no answer list" in task.check_labels(mine, {}, 3129)[0]
    task._vocabulary = official[:-1]
    with pytest.raises(BenchError, match=r"its head has 3129 answers, .* has 3128"):
        task.check_labels(released, {}, 3129)


def test_labels_of_another_kind_are_one_line(tmp_path):
    for labels in (3, "abc", {"a": 1}, [1, 2]):
        for task in (NLVR2(tmp_path), CocoDetection(tmp_path)):
            with pytest.raises(BenchError, match="its 'labels' are no list of names"):
                task.check_labels(tmp_path / "m.pth", {"labels": labels}, 2)


# ---- categories and labels -------------------------------------------------------------------------------------------


def test_categories_are_compared_by_name(tmp_path):
    task = CocoDetection(tmp_path)
    task.classes = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert task.check_labels(tmp_path / "m.pth", {"labels": ["cat", "dog"]}, None) == []
    with pytest.raises(BenchError, match=r"other categories than .* output 1 is 'cow' in the checkpoint, 'dog' here"):
        task.check_labels(tmp_path / "m.pth", {"labels": ["cat", "cow"]}, None)
    assert "carries no categories" in task.check_labels(tmp_path / "m.pth", {}, None)[0]
    task.classes = [{"id": i, "name": str(i)} for i in COCO_IDS]
    assert len(COCO_IDS) == 80
    assert task.check_labels(tmp_path / "m.pth", {}, None) == []


def test_truth_values_of_nlvr2_have_an_order(tmp_path):
    assert NLVR2(tmp_path).check_labels(tmp_path / "m.pth", {"labels": ["False", "True"]}, 2) == []
    with pytest.raises(BenchError, match="output 0 is 'True' in the checkpoint, 'False' here"):
        NLVR2(tmp_path).check_labels(tmp_path / "m.pth", {"labels": ["True", "False"]}, 2)


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def smaller_tokenizer(native, folder: Path) -> Path:
    """A SentencePiece model of fewer pieces, trained on the captions of the tiny world."""
    import sentencepiece

    split = json.loads((native.root("flickr30k") / "dataset_flickr30k.json").read_text())
    (folder / "captions.txt").write_text("\n".join(s["raw"] for i in split["images"] for s in i["sentences"]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "captions.txt"), model_prefix=str(folder / "other"), vocab_size=40, hard_vocab_limit=False
    )
    return folder / "other.model"


def test_a_tokenizer_that_is_smaller_than_the_token_table_is_refused(native, tmp_path):
    other = smaller_tokenizer(native, tmp_path)
    assert Tokenizer.load(other).num_pieces < Tokenizer.load(native.world / "beit3.spm").num_pieces
    done = run(native, "flickr30k", native.root("flickr30k"), native.checkpoint("flickr30k"), "--tokenizer", other)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"pieces, but {other} has" in done.stderr


def compared(fingerprint="f" * 64, num_pieces=RELEASED_PIECES, vocab_size=RELEASED_VOCABULARY, metadata=None):
    tokenizer = SimpleNamespace(
        fingerprint=fingerprint, num_pieces=num_pieces, spm=SimpleNamespace(get_piece_size=lambda: num_pieces - 2)
    )
    config = BEiT3Config(vocab_size=vocab_size)
    return compare_tokenizer(tokenizer, Path("beit3.spm"), config, metadata or {}, Path("m.pth"))


def pin(sha256):
    pins_file().parent.mkdir(parents=True, exist_ok=True)
    pins_file().write_text(json.dumps({"beit3.spm": sha256}))


def test_the_released_table_belongs_to_64000_pieces_of_the_downloaded_file():
    assert compared() == ["beit3.spm was not compared with the released beit3.spm, which was never downloaded here"]
    pin("f" * 64)
    assert compared() == []
    pin("e" * 64)
    with pytest.raises(BenchError, match=r"is not that of the released beit3\.spm"):
        compared()
    for pieces in (32_002, RELEASED_VOCABULARY, 250_002):
        with pytest.raises(BenchError, match="64,010 token embeddings, for a tokenizer of 64,000 pieces"):
            compared(num_pieces=pieces)


def test_a_fingerprint_in_the_checkpoint_decides_alone():
    assert compared(num_pieces=500, metadata={"tokenizer": "f" * 64}) == []
    with pytest.raises(BenchError, match="fine-tuned with another tokenizer"):
        compared(metadata={"tokenizer": "e" * 64})
    (note,) = compared(num_pieces=502, vocab_size=502)
    assert note.startswith("the checkpoint does not say which tokenizer it was trained with")
    with pytest.raises(BenchError, match="has 510 token embeddings, for a tokenizer of 508 pieces"):
        compared(num_pieces=502, vocab_size=510)
