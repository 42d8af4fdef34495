"""WordPiece: ids as the `BertTokenizer` of transformers 4 makes them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vlmo_golden import ARCHITECTURES, VOCABULARY, document, inputs

from beit3_bench.backbones.wordpiece import WordPiece, basic_words, find_vocabulary
from beit3_bench.errors import BenchError


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece.load(VOCABULARY, 12)


@pytest.mark.parametrize("case", document("tokenization")["cases"], ids=lambda c: f"{c['text'][:12]}-{c['max_length']}")
def test_ids_are_the_official_ones(case):
    tokenizer = WordPiece.load(VOCABULARY, case["max_length"])
    ids = tokenizer.encode(case["text"])
    assert ids == [i for i, kept in zip(case["input_ids"], case["attention_mask"], strict=True) if kept]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_captions_and_their_padding_are_the_official_ones(arch):
    length = document("manifest")["config"]["archs"][arch]["max_text_len"]
    tokenizer = WordPiece.load(VOCABULARY, length)
    texts = document("data")["archs"][arch]["texts"]
    ids, padding = tokenizer.pad([tokenizer.encode(text) for text in texts], length)
    assert ids.tolist() == inputs(arch, "text_ids").tolist()
    assert (~padding).long().tolist() == inputs(arch, "text_masks").tolist()


def test_padding_goes_to_a_multiple_but_not_beyond_the_longest_text(tokenizer):
    ids, padding = tokenizer.pad([[2, 3], [2, 5, 5, 3]], 8)
    assert ids.shape == (2, 8)
    assert padding.sum(dim=1).tolist() == [6, 4]
    assert tokenizer.pad([[2] * 9], 8)[0].shape == (1, 12)
    assert tokenizer.pad([[2, 3], [2, 3]])[1] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A  man's RED-car\tcafé", ["a", "man", "'", "s", "red", "-", "car", "cafe"]),
        ("a\x00b\u200bc\ufffdd", ["abcd"]),
        ("猫と犬", ["猫", "と", "犬"]),
        ("a\u2028b\u3000c\xa0d", ["a", "b", "c", "d"]),
        ("ΑΣ İ ﬁ", ["ασ", "i", "ﬁ"]),
        ("a\U0002b825b", ["a", "\U0002b825", "b"]),  # an ideograph that the library's normaliser does not space
        ("a\u2e52b", ["a", "\u2e52", "b"]),  # punctuation that is newer than its tables
        ("a\u0378b", ["ab"]),  # not assigned
        ("", []),
    ],
)  # fmt: skip
def test_words(text, words):
    if unicodedata.category("\u2e52") == "Cn":
        pytest.skip("Python's tables are older than this text")
    assert basic_words(text) == words


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x17F), max_size=40))
def test_common_scripts_are_split_as_the_library_splits_them(text):
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normal = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)
    library = [word for word, _ in BertPreTokenizer().pre_tokenize_str(normal.normalize_str(text))]
    assert basic_words(text) == library


def test_a_long_word_is_unknown(tokenizer):
    assert tokenizer.encode("a" * 100)[1] == tokenizer.encode("a")[1]
    assert tokenizer.encode("a" * 101) == [2, 1, 3]


def test_what_is_no_text_is_refused(tokenizer):
    with pytest.raises(BenchError, match="example 7: a text is a int"):
        tokenizer.encode(7, source="example 7")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "empty file"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"a\nb\n[PAD]\n", r"no entry \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
    ],
)
def test_what_is_no_vocabulary_is_refused(content, line, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(BenchError, match=rf"vocab.txt: .*{line}"):
        WordPiece.load(tmp_path / "vocab.txt", 40)


def test_a_vocabulary_is_looked_for_beside_the_checkpoint(tmp_path):
    with pytest.raises(BenchError, match=f"there is no {tmp_path}/vocab.txt; .* --tokenizer FILE"):
        find_vocabulary("vqav2", None, tmp_path, 40)
    with pytest.raises(BenchError, match=r"other\.txt: tokenizer not readable"):
        find_vocabulary("vqav2", tmp_path / "other.txt", tmp_path, 40)
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
    found, path = find_vocabulary("vqav2", None, tmp_path, 40)
    assert (found.size, path) == (203, tmp_path / "vocab.txt")
