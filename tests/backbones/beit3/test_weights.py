"""The registry of released files and the pins of their hashes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from beit3_bench.backbones.beit3 import weights
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.weights import WEIGHTS
from beit3_bench.backbones.pins import pin_or_check, pins_file, read_pins, sha256_of
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.released import find_released
from beit3_bench.errors import BenchError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(folder))
    return folder


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_every_released_file_is_listed_once() -> None:
    kinds = [w.kind for w in WEIGHTS]
    assert (kinds.count("pretrained"), kinds.count("fine-tuned"), kinds.count("tokenizer")) == (6, 23, 1)
    assert len({w.file for w in WEIGHTS}) == len({w.name for w in WEIGHTS}) == len(WEIGHTS)


@pytest.mark.parametrize(
    ("name", "task", "preset", "size", "score"),
    [
        ("beit3_base_patch16_384_coco_retrieval", "coco-retrieval", "base", 384, ("test", "TR@1", 79.1)),
        ("beit3_large_patch16_384_f30k_retrieval", "flickr30k", "large", 384, ("test", "IR@1", 88.1)),
        ("beit3_large_indomain_patch16_768_vgqaaug_vqa", "vqav2", "large", 768, ("test-std", "vqa_accuracy", 83.03)),
        ("beit3_base_indomain_patch16_224_in1k", "imagenet-linear", "base", 224, ("val", "top1", 85.4)),
        ("beit3_large_patch16_480_nocaps", "nocaps", "large", 480, ("val", "CIDEr", 120.2)),
    ],
)
def test_records_say_what_the_official_readme_says(name: str, task: str, preset: str, size: int, score: tuple) -> None:
    weight = find_released(name)
    assert weight is not None
    assert (weight.task, weight.preset, weight.image_size) == (task, preset, size)
    assert score in [(s.split, s.metric, s.value) for s in weight.published]
    assert weight.url == f"https://github.com/addf400/files/releases/download/beit3/{name}.pth"


@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w.kind != "tokenizer"], ids=lambda w: w.name)
def test_a_record_agrees_with_the_code_that_loads_it(weight: weights.Weight) -> None:
    config = BEiT3Config.preset(weight.preset, image_size=weight.image_size)
    assert config.image_size == weight.image_size
    assert Preprocessing.for_head(weight.task or "retrieval", weight.image_size).mode == weight.preprocessing
    if weight.parent:
        assert find_released(weight.parent).kind == "pretrained"
        assert find_released(weight.parent).preset == weight.preset


def test_indomain_weights_are_known_to_have_seen_coco_and_visual_genome() -> None:
    seen = find_released("beit3_base_indomain_patch16_224_nlvr2").trained_on
    assert {"COCO captions", "Visual Genome", "NLVR2 train"} <= set(seen)


@pytest.mark.parametrize(
    "given", ["beit3_base_patch16_224", "beit3_base_patch16_224.pth", "/data/w/beit3_base_patch16_224.pth"]
)
def test_a_weight_is_found_by_name_file_or_path(given: str) -> None:
    assert find_released(given).name == "beit3_base_patch16_224"


def test_an_unknown_file_has_no_record() -> None:
    assert find_released("my_finetuned.pth") is None
    assert find_released("") is None


def test_a_hash_is_pinned_at_first_use_and_checked_afterwards(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pth", b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert pin_or_check(file, "a") == digest
    assert read_pins() == {"a": digest}
    assert pin_or_check(file, "a") == digest
    file.write_bytes(b"other weights")
    with pytest.raises(BenchError, match=r'differs from the one pinned for a .*delete the entry "a" from .*pins\.json'):
        pin_or_check(file, "a")
    assert read_pins() == {"a": digest}


def test_a_hash_that_the_caller_knows_is_not_computed_again(tmp_path: Path) -> None:
    assert pin_or_check(tmp_path / "absent.pth", "a", sha256="ab" * 32) == "ab" * 32


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": "abc"}'])
def test_damaged_pins_stop_the_run_and_name_the_file(text: str, cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    pins_file().write_text(text)
    with pytest.raises(BenchError, match=r"pins\.json: .*(mend|delete)"):
        pin_or_check(write(tmp_path / "a.pth", b"x"), "a")
    assert pins_file().read_text() == text


def test_a_cache_folder_that_cannot_be_made_is_named(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file stands here")
    with pytest.raises(BenchError, match="BEIT3_BENCH_CACHE"):
        pin_or_check(write(tmp_path / "a.pth", b"x"), "a")


def test_hash_of_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"nothing\.pth: file not found.*download"):
        sha256_of(tmp_path / "nothing.pth")


def _pin(args: tuple[Path, int]) -> str:
    return pin_or_check(args[0], f"w{args[1]}", sha256=f"{args[1]:064x}")


def test_processes_that_pin_at_once_lose_nothing(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_pin, [(tmp_path, i) for i in range(24)])
    assert json.loads(pins_file().read_text()) == {f"w{i}": f"{i:064x}" for i in range(24)}
