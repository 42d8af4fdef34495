"""The released files as data: they agree with the architectures."""

from __future__ import annotations

import pytest
from vlmo_golden import VOCABULARY, state, write_file

from beit3_bench import load
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.vlmo.config import PRESETS
from beit3_bench.backbones.vlmo.weights import WEIGHTS
from beit3_bench.errors import BenchError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))


def test_every_released_file_is_listed_once():
    kinds = [weight.kind for weight in WEIGHTS]
    assert (kinds.count("pretrained"), kinds.count("fine-tuned"), kinds.count("tokenizer")) == (6, 12, 1)
    assert len({w.name for w in WEIGHTS}) == len({w.file for w in WEIGHTS}) == len(WEIGHTS)
    assert {w.preset for w in WEIGHTS if w.preset} == set(PRESETS)
    parents = [find_released(w.parent) for w in WEIGHTS if w.kind == "fine-tuned"]
    assert all(parent is not None and parent.family == "vlmo" for parent in parents)


def test_addresses():
    assert find_released("vlmo_base_patch16_480_vqa.pt").url == (
        "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/vlmo_base_patch16_480_vqa.pt"
    )
    assert find_released("bert-base-uncased").url.endswith("/bert-base-uncased/resolve/main/vocab.txt")


def test_a_released_file_needs_the_released_vocabulary(tmp_path):
    released = write_file(tmp_path / "vlmo_large_patch16_384_f30k.pt", state("relpos", "irtr"))
    with pytest.raises(BenchError, match=r"vocab.txt: is not the vocabulary of bert-base-uncased.*download bert-base"):
        load(released, "flickr30k", device="cpu")
    own = write_file(tmp_path / "mine.pt", state("relpos", "irtr"))
    model = load(own, "flickr30k", device="cpu", tokenizer=VOCABULARY)
    assert any("does not say which vocabulary" in note for note in model.notes)


def test_the_end_of_lines_changes_no_fingerprint(tmp_path):
    from beit3_bench.backbones.wordpiece import WordPiece

    content = VOCABULARY.read_bytes()
    plain, dos = (WordPiece(c, "vocab.txt", 40) for c in (content, content.replace(b"\n", b"\r\n")))
    assert plain.fingerprint == dos.fingerprint
    assert plain.encode("a man's café") == dos.encode("a man's café")
