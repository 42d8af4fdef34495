"""Steps of fixed shapes, which a card captures, choose the captions of the plain search; here they are called as they are."""

from __future__ import annotations

import pytest
import torch
from random_beit3 import build, pictures

from beit3_bench.backbones.beit3.decoding_graphs import GraphSearch, keep_graphs
from beit3_bench.backbones.beit3.generation import Decoding, search

DECODINGS = [
    Decoding(),
    Decoding(1, 10),
    Decoding(5, 20, 1.0, "clean"),
    Decoding(3, 12, 0.0, "clean"),
    Decoding(2, 3),
]


def captioner(form: str, seed: int) -> torch.nn.Module:
    model = build("coco-caption", form, seed)
    with torch.no_grad():
        model.mlm_head.weight.mul_(3)  # captions that end after a few words, and some that never do
    return model


@pytest.mark.parametrize("form", ["released", "giant"])
@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_captions_and_scores_are_those_of_the_plain_search(form, decoding):
    model = captioner(form, seed=2)
    graphs = GraphSearch(model, decoding)
    for count in (7, 5, 1, 12):  # 5 goes into the places of 7
        images = pictures(model, count, seed=count)
        expected, ours = search(model, images, decoding), graphs.search(images)
        assert [h.ids for h in ours] == [h.ids for h in expected]
        assert [h.score for h in ours] == pytest.approx([h.score for h in expected], abs=1e-4)


def test_the_search_goes_on_in_fewer_places_once_half_of_the_images_are_finished():
    model, decoding = captioner("released", seed=1), Decoding()
    images = pictures(model, 12, seed=13)
    expected = search(model, images, decoding)
    assert len({len(h.ids) for h in expected}) > 1
    graphs = GraphSearch(model, decoding)
    # In an order in which the short ones stand together, and so that all but two are finished early.
    short = min(range(12), key=lambda i: len(expected[i].ids))
    long = max(range(12), key=lambda i: len(expected[i].ids))
    order = [short] * 9 + [long]
    assert [h.ids for h in graphs.search(images[order])] == [expected[i].ids for i in order]
    assert len(graphs.graphs) > 1


def test_a_captioner_that_keeps_graphs_generates_the_same():
    model = captioner("released", seed=2)
    images = pictures(model, 4)
    expected = model.generate(images, num_beams=3, max_length=12)
    keep_graphs(model)
    assert model.generate(images, num_beams=3, max_length=12) == expected
    assert model.generate(images[:0]) == []


def test_graphs_are_given_up_when_a_search_fails():
    model = captioner("released", seed=2)
    keep_graphs(model)
    images = pictures(model, 2)
    model.generate(images, max_length=6)
    assert model.graphs.searches
    with pytest.raises(RuntimeError):
        model.generate(images.repeat(1, 2, 1, 1), max_length=6)
    assert not model.graphs.searches
