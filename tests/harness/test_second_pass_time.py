"""What a second pass says of the time that it takes, before it begins."""

from __future__ import annotations

import torch

from beit3_bench.backbones.abilities import Item, Matches, Reader
from beit3_bench.harness import second_pass
from beit3_bench.harness.engine.compute import Compute

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


class Lengths(Reader):
    def length(self, item):
        return len(item.text.split())

    def collate(self, items):
        return {"items": list(items)}


class Timed(Matches):
    """A clock on which a call takes 10 s, an image 2 s more and a text half a second."""

    def __init__(self, monkeypatch):
        super().__init__(torch.nn.Identity(), Lengths())
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(second_pass.time, "perf_counter", lambda: self.now)

    def predict(self, batch):
        items = batch["items"]
        self.calls.append([len(item.texts) for item in items])
        self.now += 10 + sum(2 + len(item.texts) / 2 for item in items)


def announced(ability, items, device, monkeypatch, world=1):
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr("beit3_bench.harness.engine.devices.to_device", lambda batch, device: batch)
    monkeypatch.setattr("beit3_bench.backbones.precision.arithmetic", lambda dtype, device: torch.no_grad())
    return second_pass._announced(4, items, ability, device, Compute(str(device)), world)


def items(count, texts):
    return [Item(str(n), texts=tuple(f"text {t}" for t in range(texts))) for n in range(count)]


def test_a_card_is_timed_by_batches_of_images_with_their_texts(monkeypatch):
    ability = Timed(monkeypatch)
    line = announced(ability, items(1000, 4), CARD, monkeypatch, world=2)
    assert ability.calls == [[4] * 8, [4] * 8, [4] * 16]
    # 4 s an image, of which there are 1,000 in two processes; what a call takes by itself is left out.
    assert (
        line == "re-ranking the best 4: 4,000 passes of a text with an image, 1,000 images; about 33 min at 1 a second"
    )


def test_all_pairs_of_a_card_are_timed_by_some_texts_of_an_image(monkeypatch):
    ability = Timed(monkeypatch)
    announced(ability, items(40, 5000), CARD, monkeypatch)
    assert {texts for call in ability.calls for texts in call} == {256}


def test_too_few_images_are_counted_and_not_timed(monkeypatch):
    ability = Timed(monkeypatch)
    line = announced(ability, items(3, 4), CARD, monkeypatch)
    assert line == "re-ranking the best 4: 12 passes of a text with an image, 3 images"
    assert ability.calls == []


def test_a_processor_is_timed_by_texts_of_one_image(monkeypatch):
    ability = Timed(monkeypatch)
    line = announced(ability, items(10, 4), CPU, monkeypatch)
    assert ability.calls == [[1], [1], [2]]
    assert line.endswith("; about 2 min at 2 a second")  # 12.5 s an image, half a second a text
