"""Token ids and cleaning: those of the official tokenizers and functions."""

from __future__ import annotations

import pytest
import torch
from fusion_golden import FOLDER, document, inputs

from beit3_bench.backbones.albef.loading import AUTHORS, LAVIS
from beit3_bench.backbones.blip.loading import WORDINGS
from beit3_bench.backbones.fusion.texts import (
    Texts,
    Wording,
    albef_caption,
    albef_question,
    blip_caption,
    blip_question,
)
from beit3_bench.backbones.wordpiece import WordPiece
from beit3_bench.errors import BenchError

CLEANERS = {
    "albef": {"pre_caption": albef_caption, "pre_question": albef_question},
    "blip": {"pre_caption": blip_caption, "pre_question": blip_question},
}
CASES = [
    (family, function, case)
    for family in CLEANERS
    for function in CLEANERS[family]
    for case in document(family, "text_cleaning")[function]
]


def pieces(family):
    return WordPiece.load(FOLDER / family / "vocab.txt", 10**6)


@pytest.mark.parametrize(("family", "function", "case"), CASES)
def test_cleaning(family, function, case):
    words = case.get("max_words", case.get("max_ques_words"))
    assert CLEANERS[family][function](case["input"], words) == case["output"]


def bare(text, words):
    return text


@pytest.mark.parametrize("family", CLEANERS)
def test_ids_are_the_official_ones(family):
    vocabulary = pieces(family)
    for case in document(family, "tokenization")["cases"]:
        longest = case["kwargs"].get("max_length")
        texts = Texts(vocabulary, Wording(bare, 10**6, longest, family == "blip"), 10**6)
        kept = [i for i, real in zip(case["input_ids"], case["attention_mask"], strict=True) if real]
        assert texts.encode(case["text"]) == kept


@pytest.mark.parametrize("family", CLEANERS)
def test_captions_questions_and_answers_of_the_data(family):
    vocabulary, wordings = pieces(family), AUTHORS.wordings if family == "albef" else WORDINGS
    data = document(family, "data")
    captions = [caption for record in data["retrieval"] for caption in record["caption"]]
    questions = [record["question"] for record in data["vqa"]]
    sentences = [record["sentence"] for record in data["nlvr2"]]
    heads = (
        ("retrieval", captions, "retrieval.text"),
        ("vqav2", questions, "vqa.question"),
        ("nlvr2", sentences, "nlvr.text"),
    )
    for head, raw, name in heads:
        texts = Texts(vocabulary, wordings[head], 512)
        ids, mask = texts.pad([texts.encode(text) for text in raw])
        official = inputs(family, f"{name}_ids").clone()
        if family == "blip" and head != "retrieval":
            official[:, 0] = vocabulary.special["[CLS]"]  # the network puts [ENC] there
        length = int(inputs(family, f"{name}_atts").sum(dim=1).max())
        assert torch.equal(ids, official[:, :length])
        kept = torch.ones_like(ids) if mask is None else (~mask).long()
        assert torch.equal(kept, inputs(family, f"{name}_atts")[:, :length])
    texts = Texts(vocabulary, wordings["vqav2"], 512)
    for ids, row in zip(
        texts.answers(data["answer_list"], 512), inputs(family, "vqa.answer_ids").tolist(), strict=True
    ):
        assert ids == [i for i in row[1:] if i]


def test_lavis_puts_sep_behind_the_texts_of_albef():
    texts = Texts(pieces("albef"), LAVIS.wordings["retrieval"], 512)
    special = texts.pieces.special
    assert texts.encode("Two dogs, playing!") == [
        special["[CLS]"],
        *texts.pieces.pieces("two dogs, playing"),
        special["[SEP]"],
    ]
    assert Texts(pieces("albef"), AUTHORS.wordings["retrieval"], 512).encode("Two dogs")[-1] != special["[SEP]"]


def test_texts_are_cut_where_the_model_has_no_more_positions():
    texts = Texts(pieces("blip"), WORDINGS["nlvr2"], 6)
    assert len(texts.encode("a dog and a man and a horse")) == 6
    assert texts.encode("a dog and a man and a horse")[-1] == texts.pieces.special["[SEP]"]


def test_answers_without_a_token_are_none():
    texts = Texts(pieces("blip"), WORDINGS["vqav2"], 512)
    end = texts.pieces.special["[SEP]"]
    assert texts.answers(["", "  ", "dog"], 512) == [[], [], [*texts.pieces.pieces("dog"), end]]
    assert texts.answers(["a dog"], 2) == [[]]


def test_what_is_no_text_is_named():
    with pytest.raises(BenchError, match=r"example 7: a text is a int"):
        Texts(pieces("blip"), WORDINGS["vqav2"], 512).encode(7, "example 7")


def test_decoding_leaves_special_tokens_out_and_closes_gaps_before_marks():
    vocabulary = pieces("blip")
    ids = [vocabulary.size, *vocabulary.pieces("two dogs, playing"), vocabulary.special["[SEP]"], 0]
    assert vocabulary.decode(ids) == "two dogs, playing"
