"""The released files of ALBEF and BLIP as data: they agree with the published values, and are known among files of their family alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from fusion_golden import heads, write_file

from beit3_bench import load
from beit3_bench.backbones.abilities import Captions
from beit3_bench.backbones.albef.weights import WEIGHTS as ALBEF
from beit3_bench.backbones.blip.loading import SYSTEM, beams_of
from beit3_bench.backbones.blip.weights import WEIGHTS as BLIP
from beit3_bench.backbones.family import Asked, LoadOptions
from beit3_bench.backbones.fusion.loading import Reading
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.leaks import find_leaks
from beit3_bench.results import published
from beit3_bench.tasks.facts import read_facts

FILES = {"albef": ALBEF, "blip": BLIP}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))


def rows(family):
    with (Path(published.__file__).parent / f"{family}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", FILES)
def test_every_score_stands_in_the_published_values(family):
    printed = {(r["checkpoint"], r["task"], r["split"], r["metric"], float(r["value"])) for r in rows(family)}
    scores = [(weight, score) for weight in FILES[family] for score in weight.published]
    assert len(scores) > 10
    for weight, score in scores:
        names = read_facts(score.task).names
        task, metric = names.metrics[score.metric]
        assert any((weight.name, task, split, metric, score.value) in printed for split in names.splits[score.split])


@pytest.mark.parametrize("family", FILES)
def test_published_values_name_released_files_at_their_size(family):
    known = {weight.name: weight for weight in FILES[family]}
    named = [row for row in rows(family) if row["checkpoint"]]
    assert len(named) > 40
    for row in named:
        size = known[row["checkpoint"]].image_size
        assert row["resolution"] == f"{size}x{size}"


@pytest.mark.parametrize("family", FILES)
def test_every_file_is_listed_once_and_has_a_parent(family):
    weights = FILES[family]
    assert len({w.name for w in weights}) == len({w.file for w in weights}) == len(weights)
    for weight in weights:
        if weight.kind == "fine-tuned":
            parent = find_released(weight.parent)
            assert parent is not None
            assert parent.kind == "pretrained"
    assert find_released("vqa.pth").name == "albef_vqa"
    assert find_released("mscoco.pth").url.endswith("/ALBEF/mscoco.pth")


def test_a_file_of_another_family_is_not_taken_for_a_released_one(tmp_path):
    """``vqa.pth`` is what anybody calls a file."""
    mine = tmp_path / "vqa.pth"
    torch.save({}, mine)
    assert find_released(mine, "beit3") is None
    assert find_leaks("vqav2", "val", mine, {}, family="beit3") == []
    leaks = find_leaks("vqav2", "val", mine, {}, family="albef")
    assert leaks[0].startswith("the checkpoint has seen these very samples: it was trained on VQAv2 val")
    blip = write_file(tmp_path / "blip", "blip", "vqa").rename(tmp_path / "vqa.pth")
    (tmp_path / "vocab.txt").write_bytes((tmp_path / "blip" / "vocab.txt").read_bytes())
    assert load(blip, "vqav2", answers=["yes"], **heads("blip", "vqa")).card.weight is None


def test_a_released_file_needs_the_released_vocabulary(tmp_path):
    path = write_file(tmp_path, "blip", "caption").rename(tmp_path / "model_large_caption.pth")
    with pytest.raises(BenchError, match=r"vocab.txt: is not the vocabulary of bert-base-uncased"):
        load(path, "coco-caption", **heads("blip", "caption"))


def test_captions_of_lavis_are_searched_without_a_penalty_on_nocaps(tmp_path):
    for stem, penalty in (("mine", 1.1), ("blip_coco_caption_base", 1.0)):
        source = Source(stem, tmp_path / f"{stem}.pth")
        reading = Reading(SYSTEM, source, Asked(Captions, "nocaps"), LoadOptions(), "coco-caption", {}, None, 1, ())
        assert beams_of(reading).repetition_penalty == penalty
