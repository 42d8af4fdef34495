"""Texts of many images behind one another, as on a card, give the scores that texts of one length at a time give."""

from __future__ import annotations

import random

import pytest
import torch

from beit3_bench.backbones.fusion.benchmark import CLS, FIRST_WORD, KINDS, SEP, SIZES
from beit3_bench.backbones.fusion.config import FusionConfig
from beit3_bench.backbones.fusion.layout import TextLayout
from beit3_bench.backbones.fusion.native import Matcher
from beit3_bench.backbones.fusion.text_states import TextStates
from beit3_bench.backbones.strict_loading import initialise

CPU = torch.device("cpu")


def retrieval(family):
    kind, size = KINDS[family], SIZES["tiny"]
    net = kind.heads().Retrieval(FusionConfig(size.vision, kind.text(size, size.vision.width), embed_dim=16))
    torch.manual_seed(0)
    initialise(net)
    with torch.no_grad():
        for parameter in net.parameters():  # as initialised, all texts score alike
            parameter.mul_(3)
    return net.eval()


def texts(count, longest, seed):
    chance = random.Random(seed)
    return [[CLS, *chance.choices(range(FIRST_WORD, 1200), k=chance.randint(1, longest)), SEP] for _ in range(count)]


@pytest.mark.parametrize("family", sorted(KINDS))
@torch.inference_mode()
def test_scores_are_those_of_one_length_at_a_time(family, monkeypatch):
    net = retrieval(family)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    several, one, twice = texts(40, 20, 1), texts(1, 3, 2), texts(7, 9, 3)
    asked = [several, one, [*twice, *twice[::-1], *several[:5]]]
    context = net.look(images)
    by_length = Matcher(net, None, None).scores(context, asked)
    assert len({round(float(s), 4) for s in by_length[0]}) > 30
    for tokens, at_once in ((65536, 256), (200, 256), (60, 4)):
        monkeypatch.setattr("beit3_bench.backbones.fusion.native._TOKENS_AT_ONCE", tokens)
        monkeypatch.setattr("beit3_bench.backbones.fusion.native._TEXTS_AT_ONCE", at_once)
        together = Matcher(net, None, None)._scores_together(context, asked)
        for own, other in zip(by_length, together, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
        assert torch.equal(together[2][:7], together[2][7:14].flip(0))


@torch.inference_mode()
def test_images_without_texts_have_no_scores():
    matcher = Matcher(net := retrieval("blip"), None, None)
    context = net.look(torch.zeros(2, 3, 64, 64))
    for asked in ([[], []], [texts(2, 3, 1), []]):
        assert [len(own) for own in matcher._scores_together(context, asked)] == [len(own) for own in asked]


def test_a_layout_leads_there_and_back():
    lengths = [[3, 1, 9], [2], [5, 5]]
    layout = TextLayout.of(lengths, CPU)
    source = torch.arange(25.0).unsqueeze(1)
    offsets = torch.tensor([0, 3, 4, 13, 15, 20])
    packed = layout.take(source, offsets)
    assert packed.shape == (3, 13, 1)
    assert packed[0, :, 0].tolist() == list(range(13))
    assert packed[1, :2, 0].tolist() == [13, 14]
    assert packed[2, :10, 0].tolist() == list(range(15, 25))
    by_text = layout.by_text(packed)
    assert by_text.shape == (6, 16, 1)
    assert by_text[2, :9, 0].tolist() == list(range(4, 13))
    assert layout.seen[:, 0, 0].sum(dim=1).tolist() == [3, 1, 9, 2, 5, 5]
    back = layout.by_group(by_text)
    assert torch.equal(back[0], packed[0])
    assert torch.equal(back[2, :10], packed[2, :10])
    assert layout.first(packed)[:, 0, 0].tolist() == [0, 3, 4, 13, 15, 20]


def test_kept_states_grow_and_stay():
    kept = TextStates()
    rows = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    kept.add([(1, 2, 3), (4, 5, 6)], rows)
    kept.add([(7,)], rows[:1, :1] + 100)
    kept.add([(8, 9, 10)], rows[:1] + 200)
    assert (4, 5, 6) in kept
    assert (4, 5) not in kept
    assert torch.equal(kept.of([(8, 9, 10), (1, 2, 3)]), torch.stack([rows[0] + 200, rows[0]]))
    assert torch.equal(kept.of([(7,)]), rows[:1, :1] + 100)
