"""GFLOP of a sample against arithmetic by hand; energy counters against files of their own; what stands in a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from native import invoke, run_words
from run_requests import run_request

from beit3_bench.harness.engine.cost import RaplCounter, energy_counter, gflop_per_sample
from beit3_bench.harness.engine.predict import Throughput
from beit3_bench.harness.models import Located, load_model
from beit3_bench.harness.record.card import timing
from beit3_bench.harness.record.report import result_as_text
from beit3_bench.tasks.registry import get_task

CPU = torch.device("cpu")


def counted(native, task):
    instance = get_task(task)(native.root(task))
    split = instance.read(instance.default_split)
    request = run_request(task, native.checkpoint(task), native.root(task))
    model = load_model(Located.of(native.checkpoint(task)), instance, split, request)
    config = model.module.config
    return gflop_per_sample(instance, split.examples, model.ability, CPU), config, split


def layer(config, tokens, read):
    """Operations of a layer over so many tokens, of which so many are read on."""
    d, hidden = config.embed_dim, config.ffn_dim
    return 2 * (2 * tokens * d * d + 2 * read * d * d + 2 * read * tokens * d + 2 * read * d * hidden)


def test_the_image_tower_is_counted_as_by_hand(native):
    gflop, config, _ = counted(native, "flickr30k")
    tokens = config.num_patches + 1
    patches = 2 * config.num_patches * config.embed_dim * 3 * config.patch_size**2
    by_hand = patches + layer(config, tokens, tokens) + layer(config, tokens, 1) + 2 * config.embed_dim**2
    assert config.depth == 2
    assert gflop["image"] * 1e9 == by_hand
    assert set(gflop) == {"image", "text"}


def test_the_classifier_is_counted_as_by_hand(native):
    gflop, config, split = counted(native, "imagenet-linear")
    tokens = config.num_patches + 1
    patches = 2 * config.num_patches * config.embed_dim * 3 * config.patch_size**2
    head = 2 * config.embed_dim * len(split.labels)
    assert gflop["image"] * 1e9 == patches + 2 * layer(config, tokens, tokens) + head


def test_two_images_cost_twice_as_much_as_one_and_more(native):
    one, _, _ = counted(native, "vqav2")
    two, _, _ = counted(native, "nlvr2")
    assert 1.5 < two["pair"] / one["pair"] < 3


def test_a_caption_is_counted_with_its_search(native):
    gflop, _, _ = counted(native, "coco-caption")
    alone, _, _ = counted(native, "flickr30k")
    assert gflop["image"] > 2 * alone["image"]


def test_the_result_says_what_a_sample_cost(native, tmp_path):
    done = invoke(*run_words(native, "flickr30k"), "--limit", 4, "--output", tmp_path / "run", "--json")
    result = json.loads(done.stdout)
    assert result["timing"]["gflop_per_sample"]["image"] == pytest.approx(
        counted(native, "flickr30k")[0]["image"], abs=1e-6
    )
    assert "joules" not in result["timing"]
    result["timing"] |= {"joules_per_sample": 0.25, "energy_source": "NVML, the card"}
    (line,) = [text for text in result_as_text(result).splitlines() if "cost:" in text]
    assert "GFLOP per image, " in line
    assert line.endswith("0.25 J per sample (NVML, the card)")
    for key in ("gflop_per_sample", "joules_per_sample", "energy_source"):  # as earlier versions wrote it
        del result["timing"][key]
    assert "cost:" not in result_as_text(result)


def test_energy_is_said_per_sample_computed_now():
    part = Throughput(samples=50, resumed_samples=7, joules=200.0, energy_source="RAPL", wall_seconds=2.0)
    written = timing({}, part, 3.0)
    assert (written["joules_per_sample"], written["energy_source"]) == (4.0, "RAPL")
    nothing = timing({}, Throughput(samples=0, joules=200.0, energy_source="RAPL"), 3.0)
    assert (nothing["joules_per_sample"], nothing["energy_source"]) == (None, None)


# ---- energy ----------------------------------------------------------------------------------------------------------


def package(folder: Path, name: str, energy: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    return folder


def test_all_processor_packages_are_added_up_and_their_wrap_around_made_up_for(tmp_path):
    first = package(tmp_path / "intel-rapl:0", "package-0", 9_000_000)
    second = package(tmp_path / "intel-rapl:1", "package-1", 1_000_000)
    package(tmp_path / "intel-rapl:0:0", "core", 5)
    counter = energy_counter(CPU, tmp_path)
    assert isinstance(counter, RaplCounter)
    before = counter.joules()
    assert before == 10.0
    (first / "energy_uj").write_text("500000")  # 1.5 J on, over the end of 10 J
    (second / "energy_uj").write_text("3000000")
    assert counter.joules() - before == pytest.approx(3.5)


def test_no_counter_where_nothing_counts_or_nobody_may_read(tmp_path):
    assert energy_counter(CPU, tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy_counter(CPU, tmp_path) is None
    assert energy_counter(torch.device("meta"), tmp_path) is None
