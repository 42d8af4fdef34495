"""`bench --reader`: what is timed is what a run does, and other decoders are compared byte for byte."""

from __future__ import annotations

import json

import numpy as np
import pytest
from native import invoke
from PIL import Image

from beit3_bench.harness.bench import reader


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Three JPEGs, of which Pillow keeps one as CMYK, and a PNG."""
    monkeypatch.setattr(reader, "LEAST_READ", 8)
    monkeypatch.setattr(reader, "REPEATS", 2)
    folder = tmp_path / "pictures"
    folder.mkdir()
    content = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for name, mode in (("colour.jpg", "RGB"), ("grey.JPEG", "L"), ("print.jpg", "CMYK"), ("drawing.png", "RGB")):
        Image.fromarray(content).convert(mode).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_all_steps_are_timed_and_other_decoders_compared(pictures):
    report = json.loads(invoke("bench", "--reader", pictures, "--image-size", 32, "--json").stdout)["reader"]
    assert report["images"] == 4
    assert report["median_pixels"] == 40 * 60
    assert list(report["milliseconds"]) == ["read", "decode", "resize", "planes", "whole"]
    assert min(report["milliseconds"].values()) > 0
    assert report["workers"][0]["workers"] == 1
    assert min(report["images_per_second"], report["cache"]["images_per_second"]) > 0
    decoders = {d["name"]: (d["equal"], d["of"]) for d in report["decoders"]}
    assert decoders["torchvision"] == (2, 2)


def test_a_decoder_of_other_bytes_is_told_from_an_equal_one(pictures, monkeypatch):
    def darker(content):
        return reader.np.asarray(reader.decode("", content)) // 2

    monkeypatch.setattr(reader, "_others", lambda: [("darker", darker)])
    [row] = reader.reader_report(pictures, 32, workers=[1])["decoders"]
    assert (row["name"], row["equal"], row["of"]) == ("darker", 0, 2)


def test_a_folder_without_pictures_is_one_line(tmp_path):
    for folder, line in ((tmp_path, "holds no picture"), (tmp_path / "no", "is no folder")):
        result = invoke("bench", "--reader", folder)
        assert result.exit_code == 2
        assert line in result.stderr
        assert result.stderr.count("\n") == 1
