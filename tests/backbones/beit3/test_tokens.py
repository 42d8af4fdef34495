"""What token ids mean: which tokenizer a checkpoint goes with is checked where anything tells, noted where nothing does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from native import invoke, run_words

from beit3_bench.backbones.abilities import Item
from beit3_bench.backbones.beit3.config import RELEASED_PIECES, RELEASED_VOCABULARY, BEiT3Config
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.beit3.tokens import compare_tokenizer, find_tokenizer
from beit3_bench.backbones.pins import pins_file
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.errors import BenchError


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# ---- where it lies ---------------------------------------------------------------------------------------------------


def test_tokenizer_is_looked_for_beside_the_checkpoint(native, tmp_path):
    (tmp_path / "m.pth").write_bytes(native.checkpoint("flickr30k").read_bytes())
    words = run_words(native, "flickr30k")
    words[words.index("--checkpoint") + 1] = tmp_path / "m.pth"

    def refused():
        done = invoke(*words)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert not (tmp_path / "results").exists()
        return done.stderr

    assert f"needs the tokenizer and there is no {tmp_path / 'beit3.spm'}" in refused()
    (tmp_path / "beit3.spm").write_bytes(b"no model")
    assert "not a SentencePiece model" in refused()


def test_the_tokenizer_that_is_named_comes_before_the_one_beside_the_checkpoint(native, tmp_path):
    (tmp_path / "beit3.spm").write_bytes(b"no model")
    tokenizer, file = find_tokenizer("flickr30k", native.world / "beit3.spm", tmp_path)
    assert file == native.world / "beit3.spm"
    assert tokenizer.num_pieces == Tokenizer.load(file).num_pieces
    with pytest.raises(BenchError, match="not a SentencePiece model"):
        find_tokenizer("flickr30k", None, tmp_path)


# ---- which one it is -------------------------------------------------------------------------------------------------


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
    done = invoke(*run_words(native, "flickr30k"), "--tokenizer", other, "--json")
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"pieces, but {other} has" in done.stderr


def test_an_id_beyond_the_token_table_is_refused():
    tokenizer = SimpleNamespace(encode=lambda text, source: [0, 11, 2])
    item = Item("a", text="x")
    NativeReader(Preprocessing(32), tokenizer, vocab_size=12, checkpoint=Path("m.pth")).prepare([item])
    with pytest.raises(BenchError, match=r"m\.pth: has 10 token embeddings, but the tokenizer emits id 11"):
        NativeReader(Preprocessing(32), tokenizer, vocab_size=10, checkpoint=Path("m.pth")).prepare([item])


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
