"""The device report's own logic, on the CPU: pieces, limits, what is skipped, and memory that runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

DEVICE = Path(__file__).resolve().parents[1] / "device"
sys.path.insert(0, str(DEVICE))

from checks import Piece  # noqa: E402

from beit3_bench.backbones.beit3.config import BEiT3Config  # noqa: E402
from beit3_bench.backbones.beit3.models import build_model  # noqa: E402
from beit3_bench.harness.engine.devices import compiling_pays  # noqa: E402


def report(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEVICE / "report.py"), "--device", "cpu", "--quick", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_check_fails_above_its_limit_and_on_what_is_no_number():
    piece = Piece("x")
    piece.check("fine", 1.0, 1.0)
    piece.check("above", 1.1, 1.0)
    piece.check("nan", float("nan"), 1.0)
    piece.require("right", True)
    piece.require("wrong", False)
    assert [c["passed"] for c in piece.to_dict()["checks"]] == [True, False, False, True, False]


@pytest.mark.slow
def test_the_report_holds_checks_and_says_what_was_skipped(tmp_path):
    finished = report(tmp_path / "out", "numerics", "memory")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    page = json.loads((tmp_path / "out" / "report.json").read_text())
    numerics, memory = page["pieces"]
    assert len(numerics["checks"]) > 50
    assert all(check["passed"] for check in numerics["checks"])
    assert any("vqav2.logits (fp16)" in check["name"] for check in numerics["checks"])
    assert any("graphs" in check["name"] for check in numerics["checks"])
    assert memory["skipped"] == ["memory: cpu has no memory of its own"]
    assert "skipped memory" in finished.stdout
    assert page["left_out"] == ["failing", "tinyworld", "speed-base", "families", "feeding", "probing", "speed-large"]


@pytest.mark.slow
def test_what_needs_photographs_or_a_card_says_so_and_fusion_encoders_are_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("PHOTOS", raising=False)
    finished = report(tmp_path / "out", "failing", "families", "feeding", "probing")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    page = json.loads((tmp_path / "out" / "report.json").read_text())
    pieces = {piece["piece"]: piece for piece in page["pieces"]}
    assert pieces["failing"]["skipped"] == ["a failing card: cpu is none"]
    assert all("PHOTOS names no folder" in pieces[name]["skipped"][0] for name in ("feeding", "probing"))
    assert {*pieces["families"]["figures"]} == {"albef", "blip"}
    assert "blip      coco-retrieval" in finished.stdout


@pytest.mark.slow
def test_whole_runs_and_the_dense_probe_are_measured_on_photographs(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (90 + number, 70), (number, 90, 200)).save(photos / f"{number}.JPEG")
    monkeypatch.setenv("PHOTOS", str(photos))
    finished = report(tmp_path / "out", "feeding", "probing")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    feeding, probing = json.loads((tmp_path / "out" / "report.json").read_text())["pieces"]
    ways = feeding["figures"]["runs"]
    assert ways["as it is"]["images_decoded"] == 40
    assert (ways["from the image cache"]["images_from_cache"], ways["from the image cache"]["images_decoded"]) == (
        40,
        0,
    )
    assert probing["figures"]["seconds_of_ade20k"] > 0


@pytest.mark.slow
def test_the_tiny_world_is_trained_evaluated_and_compared(tmp_path):
    finished = report(tmp_path / "out", "tinyworld")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    tasks = json.loads((tmp_path / "out" / "tinyworld.json").read_text())["figures"]["tasks"]
    assert all(task["rows"] > 0 and task["metrics"] for task in tasks.values())


def test_an_unknown_piece_is_named(tmp_path):
    finished = report(tmp_path / "out", "speed-giant")
    assert finished.returncode == 2
    assert "no piece 'speed-giant'" in finished.stderr


def small_card(model, most):
    """A card whose memory takes as many images as ``most`` says for the room it has."""

    class SmallCard:
        @contextmanager
        def room(self, size):
            real = model.encode_image

            def encode_image(images):
                if len(images) > most(size):
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
                return real(images)

            model.encode_image = encode_image
            yield
            del model.encode_image

    return SmallCard()


@pytest.mark.parametrize("works", [True, False])
def test_memory_that_runs_out_is_checked_for_halving_rows_and_message(tmp_path, works):
    from memory import NO_ROOM, out_of_memory

    torch.manual_seed(0)
    config = BEiT3Config(image_size=32, embed_dim=32, num_heads=4, ffn_dim=64, depth=2, vocab_size=100)
    model = build_model("retrieval", config)
    piece = Piece("memory")
    card = small_card(model, lambda size: 128 if not works else 0 if size == NO_ROOM else 40)
    out_of_memory(piece, torch.device("cpu"), model, tmp_path, card)
    passed = [check["passed"] for check in piece.to_dict()["checks"]]
    if works:
        assert all(passed)
        assert piece.figures["halving"]["batch_size"] == 32
    else:
        assert passed == [False, True, True, False]


@pytest.mark.parametrize(
    ("device", "dtype", "seconds", "pays"),
    [
        ("cuda", "bf16", 3600, True),
        ("cuda", "bf16", 60, False),
        ("cuda", "fp32", 3600, False),
        ("cpu", "bf16", 3600, False),
    ],
)
def test_auto_compiles_on_a_card_in_half_precision_where_much_is_left(device, dtype, seconds, pays):
    assert compiling_pays(torch.device(device), dtype, seconds) is pays
