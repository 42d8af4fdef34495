"""What is known of a native checkpoint once it is loaded: what it was trained for, and what its outputs mean."""

from __future__ import annotations

import pytest
import torch

from beit3_bench.backbones.abilities import Embeds
from beit3_bench.backbones.beit3.family import BEiT3Family
from beit3_bench.backbones.beit3.loading import labels_in
from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.backbones.family import Asked, LoadOptions
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError


@pytest.mark.parametrize(
    ("name", "metadata", "trained_for"),
    [
        ("beit3_base_patch16_384_coco_retrieval.pth", {}, "coco-retrieval"),
        ("beit3_base_patch16_384_coco_retrieval.pth", {"task": "flickr30k"}, "coco-retrieval"),
        ("beit3_base_itc_patch16_224.pth", {}, ""),
        ("mine.pth", {"task": "coco-retrieval"}, "coco-retrieval"),
        ("mine.pth", {}, None),
    ],
)
def test_the_card_says_what_a_checkpoint_was_trained_for(native, tmp_path, monkeypatch, name, metadata, trained_for):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    content = torch.load(native.checkpoint("flickr30k"), weights_only=True)
    content[METADATA_KEY].update(metadata)
    torch.save(content, tmp_path / name)
    options = LoadOptions(tokenizer=native.world / "beit3.spm")
    model = BEiT3Family().load(Source(name, tmp_path / name), Asked(Embeds, "flickr30k"), options)
    assert model.card.trained_for == trained_for
    assert model.card.weight == (None if name == "mine.pth" else name.removesuffix(".pth"))


@pytest.mark.parametrize("labels", [3, "abc", {"a": 1}, [1, 2]])
def test_labels_of_another_kind_are_one_line(tmp_path, labels):
    with pytest.raises(BenchError, match="its 'labels' are no list of names"):
        labels_in({"labels": labels}, tmp_path / "m.pth")


def test_labels_are_there_in_order_or_not_known(tmp_path):
    assert labels_in({"labels": ["b", "a"]}, tmp_path / "m.pth") == ("b", "a")
    assert labels_in({}, tmp_path / "m.pth") is None
