"""Beam search against an obvious one: no cache, no batches, one full pass per hypothesis and step."""

from __future__ import annotations

import itertools

import beit3_golden as golden
import pytest
import random_beit3 as small
import torch
from torch import Tensor, nn

from beit3_bench.backbones.beit3 import generation
from beit3_bench.backbones.beit3.generation import Decoding, search
from beit3_bench.backbones.beit3.models import Captioning
from beit3_bench.errors import BenchError

CLS, SEP = 0, 2


def captioner(
    form: str = "released", seed: int = 0, end_bias: float = 0.0, sharpness: float = 2.0, **changes
) -> Captioning:
    """A random captioning model in float64, so that equal means equal; ``end_bias`` makes SEP more likely."""
    model = small.build("coco-caption", form, seed, **changes).double()
    with torch.no_grad():
        model.mlm_head.weight.mul_(sharpness)
        model.mlm_head.bias[SEP] += end_bias
    return model


def pictures(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    return small.pictures(model, count, seed).double()


@torch.no_grad()
def next_word(model: Captioning, image: Tensor, words: list[int]) -> Tensor:
    """Log-probabilities of the word at the [MASK] behind ``words``; impossible where an id has no piece."""
    config = model.config
    tokens = torch.tensor([[CLS, *words, config.mask_token_id]])
    log_p = model(image[None], tokens)[0, -1].float().log_softmax(dim=-1)
    log_p[config.num_pieces :] = float("-inf")
    return log_p


def obvious_search(
    model: Captioning, image: Tensor, beams: int, limit: int, penalty: float, clean: bool = False
) -> tuple[list[int], float]:
    """Section 4.9 of the golden README, word by word."""
    live: list[tuple[float, list[int]]] = [(0.0, [])] + [(-1e9, [])] * (beams - 1)
    best_score, best = float("-inf"), []
    for length in range(2, limit):
        table = torch.stack([next_word(model, image, words) + score for score, words in live])
        values, places = table.flatten().topk(3 * beams)
        if best_score >= values[0].item() / (limit - 1) ** penalty:
            break
        following: list[tuple[float, list[int]]] = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            parent, word = live[place // table.shape[1]][1], place % table.shape[1]
            if word == SEP or length + 1 == limit:
                if value / length**penalty > best_score:
                    best_score = value / length**penalty
                    best = parent + ([word] if clean and word != SEP else [])
            else:
                following.append((value, [*parent, word]))
            if len(following) == beams:
                break
        if length + 1 == limit:
            break
        live = following
    return [CLS, *best, *([] if clean else [model.config.mask_token_id]), SEP], best_score


SETTINGS = [
    # seed, beams, max_length, length penalty, bias of SEP
    (0, 1, 10, 0.6, 3.0),
    (1, 2, 10, 0.6, 2.0),
    (2, 3, 12, 0.6, 4.0),
    (3, 4, 8, 1.0, 0.0),
    (4, 5, 9, 0.0, 3.0),
    (5, 3, 7, 2.0, 4.0),
    (6, 3, 3, 0.6, 0.0),
    (7, 5, 4, 0.6, 2.0),
    (8, 2, 9, -0.5, 4.0),
    (9, 3, 10, 0.6, 8.0),
]


@pytest.mark.parametrize("form", small.FORMS)
@pytest.mark.parametrize("decoder", ["official", "clean"])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"seed{s[0]}-beams{s[1]}-max{s[2]}-lp{s[3]}")
def test_generate_equals_an_obvious_search(form, decoder, setting):
    seed, beams, limit, penalty, end_bias = setting
    model = captioner(form, seed, end_bias)
    images = pictures(model, 3, seed)
    expected = [obvious_search(model, image, beams, limit, penalty, decoder == "clean") for image in images]
    hypotheses = search(model, images, Decoding(beams, limit, penalty, decoder))
    assert [h.ids for h in hypotheses] == [ids for ids, _ in expected]
    assert [h.score for h in hypotheses] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert model.generate(images, beams, limit, penalty, decoder) == [h.ids for h in hypotheses]


def test_the_settings_above_cover_early_ends_and_the_length_limit():
    lengths = []
    for seed, beams, limit, penalty, end_bias in SETTINGS:
        model = captioner("released", seed, end_bias)
        lengths += [
            (len(h.ids) - 3, limit - 3)
            for h in search(model, pictures(model, 3, seed), Decoding(beams, limit, penalty))
        ]
    assert sum(words == most for words, most in lengths) >= 3
    assert sum(0 < words < most for words, most in lengths) >= 5
    assert len({words for words, _ in lengths}) >= 4


@pytest.mark.parametrize("form", small.FORMS)
def test_captions_do_not_depend_on_batch_size_or_order(form):
    model = captioner(form, 5, 4.0)
    images = pictures(model, 6, 5)
    expected = model.generate(images, 3, 12, 0.6)
    assert len({len(ids) for ids in expected}) > 1, "images must end at different steps for this to mean anything"
    for size in (1, 2):
        assert [ids for part in images.split(size) for ids in model.generate(part, 3, 12, 0.6)] == expected
    for order in ([5, 4, 3, 2, 1, 0], [2, 2, 0, 5]):
        assert model.generate(images[order], 3, 12, 0.6) == [expected[i] for i in order]


@pytest.mark.parametrize("beams", [1, 3])
def test_ids_without_a_piece_are_never_emitted(beams):
    model = captioner(num_pieces=40)
    with torch.no_grad():
        model.mlm_head.bias[40:] += 30.0
    words = set(itertools.chain.from_iterable(model.generate(pictures(model, 6), beams, 12, 0.6, "clean")))
    assert max(words) < 40
    assert len(words) > 4


def test_the_clean_decoder_keeps_the_word_that_the_official_one_loses_at_the_limit():
    model = captioner(seed=3)
    images = pictures(model, 4)
    for official, clean in zip(
        model.generate(images, 3, 6, 0.6), model.generate(images, 3, 6, 0.6, decoder="clean"), strict=True
    ):
        assert official[-2:] == [model.config.mask_token_id, SEP]
        assert len(official) == 6
        assert len(clean) == 6
        assert clean[:-2] == official[:-2]
        assert clean[-1] == SEP
        assert clean[-2] not in (SEP, model.config.mask_token_id)


def test_a_caption_of_no_words_and_an_empty_batch():
    model = captioner(end_bias=60.0)
    assert model.generate(pictures(model, 2), 3, 8, 0.6) == [[CLS, model.config.mask_token_id, SEP]] * 2
    assert model.generate(pictures(model, 2), 3, 8, 0.6, "clean") == [[CLS, SEP]] * 2
    assert model.generate(pictures(model, 1)[:0], 3, 8, 0.6) == []


def test_more_beams_than_the_vocabulary_has_words():
    model = captioner(vocab_size=12, num_pieces=9)
    for ids in model.generate(pictures(model, 2), num_beams=11, max_length=7):
        assert ids[0] == CLS
        assert ids[-1] == SEP
        assert max(ids) < 9


def test_defaults_are_those_behind_the_published_numbers():
    model = captioner(end_bias=3.0)
    images = pictures(model, 2)
    assert model.generate(images) == model.generate(
        images, num_beams=3, max_length=64, length_penalty=0.6, decoder="official"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; give 1 or more"),
        ({"max_length": 2}, "max_length is 2"),
        ({"max_length": 1023}, r"max_length is 1023.*1022"),
        ({"decoder": "greedy"}, "'greedy' is not known; give 'official' or 'clean'"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    model = captioner()
    with pytest.raises(BenchError, match=message):
        model.generate(pictures(model, 1), **arguments)


def test_the_image_is_encoded_once_and_never_per_beam(monkeypatch):
    model = captioner(end_bias=2.0)
    calls = []
    original = model.beit3.vision_embed.forward
    monkeypatch.setattr(model.beit3.vision_embed, "forward", lambda *a: calls.append(len(a[0])) or original(*a))
    rows = []
    model.mlm_head.register_forward_pre_hook(lambda _m, given: rows.append(given[0].shape[:-1].numel()))
    images = pictures(model, 4)
    model.generate(images, 3, 12, 0.6)
    assert calls == [4]
    assert max(rows) == 12, "the vocabulary is projected once per beam, at its [MASK]"
    assert rows == sorted(rows, reverse=True), "finished images leave the batch"


def test_gradients_are_not_recorded_and_training_mode_changes_nothing():
    model = captioner(end_bias=2.0, drop_path_rate=0.5, checkpoint_activations=True)
    images = pictures(model, 2)
    expected = model.generate(images, 3, 10)
    assert model.train().generate(images.requires_grad_(), 3, 10) == expected
    assert images.grad is None


@torch.no_grad()
def test_scores_of_attention_to_the_image_are_exact_under_autocast():
    model = golden.model("captioning")
    images = golden.images("captioning")
    with torch.autocast("cpu", torch.bfloat16):
        cache = generation.encode_images(model.beit3, images)
        assert {keys.dtype for keys in cache.image_keys} == {torch.float32}
        assert {values.dtype for values in cache.image_values} == {torch.bfloat16}
        torch.manual_seed(0)
        q = 30 * torch.randn(len(images), 2, model.config.num_heads, 2, cache.image_keys[0].shape[-1])
        words = torch.randn_like(q)
        rounded = generation._attend(q, cache.image_keys[0], cache.image_values[0].float(), words, words)
    exact = generation._attend(q, cache.image_keys[0], cache.image_values[0].float(), words, words)
    # Scores reach 100, where eight bits are a half off, and so the weights; weights and values alone are rounded to 2**-9.
    assert (rounded - exact).abs().max() <= 2**-6 * words.abs().max()


def test_captions_in_bfloat16_mostly_agree_with_float32(capsys):
    """Random weights are a hard case: their words are nearly equally likely. A trained model's are not."""
    model = golden.model("captioning")
    images = torch.cat([golden.images("captioning"), small.pictures(model, 58)])
    exact = model.generate(images, 3, 12, 0.6)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.generate(images, 3, 12, 0.6)
    same = sum(a == b for a, b in zip(exact, half, strict=True)) / len(exact)
    with capsys.disabled():
        print(f"\nbf16 captions equal to fp32: {same:.1%} of {len(exact)} (random weights)")
    assert same >= 0.9
    assert {ids[0] for ids in half} == {CLS}
    assert {ids[-1] for ids in half} == {SEP}
