"""Image files: accepted formats, bounded sizes, nothing executed, and crops of very long images."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import invoke, run_words
from PIL import Image

from beit3_bench.backbones import crop
from beit3_bench.backbones.crop import resized_crop
from beit3_bench.backbones.images import FORMATS, MAX_SIDE, TooLargeError, check_header, opened
from beit3_bench.backbones.label_images import read_map
from beit3_bench.backbones.preprocess import Preprocessing, decode
from beit3_bench.errors import BenchError
from beit3_bench.harness.reuse.image_cache import ImageCache

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def saved(path: Path, form: str, image: Image.Image | None = None, **options: object) -> Path:
    (image or Image.new("RGB", (30, 20), (200, 100, 50))).save(path, form, **options)
    return path


def png_header(width: int, height: int, colour: int = 2) -> bytes:
    """A PNG of any size that holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


# ---- formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMATS, "MPO"])
@pytest.mark.parametrize("name", ["x.jpg", "x.PNG", "x"])
def test_accepted_formats_are_read_whatever_the_file_is_called(tmp_path, form, name):
    options = {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]} if form == "MPO" else {}
    path = saved(tmp_path / name, form, **options)
    assert decode(path).size == (30, 20)
    assert decode(path, path.read_bytes()).mode == "RGB"


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "SGI", "IM", "MSP", "JPEG2000", "ICNS", "XBM", "PDF", "EPS"])
def test_other_formats_are_refused_whatever_the_file_is_called(tmp_path, form):
    image = {"MSP": Image.new("1", (32, 32)), "XBM": Image.new("1", (32, 32))}
    path = saved(tmp_path / "x.jpg", form, image.get(form, Image.new("RGB", (32, 32))))
    with pytest.raises(
        BenchError, match=r"x\.jpg: image does not decode \(not an image: .*; read are JPEG, .*\); download"
    ):
        decode(path)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A ``gs`` first on the path that leaves a mark; gives the mark."""
    mark, folder = tmp_path / "executed", tmp_path / "bin"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f'#!/bin/sh\ncase "$1" in --version) echo 10.0; exit 0;; esac\necho run > {mark}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None, raising=False)
    return mark


@pytest.mark.parametrize(
    "content", [EPS, b"\xc5\xd0\xd3\xc6" + bytes(26) + EPS, b"%PDF-1.4\n"], ids=["eps", "dos eps", "pdf"]
)
def test_no_program_is_run_for_an_image_or_a_label_map(tmp_path, ghostscript, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    uses = (
        lambda: decode(path),
        lambda: decode(path, content),
        lambda: check_header(path),
        lambda: ImageCache(tmp_path / "cache", Preprocessing(8)).load(path),
        lambda: read_map(path, "annotation"),
    )
    for use in uses:
        with pytest.raises(BenchError, match=r"does not decode \(not an image: (PostScript|PDF|an unknown)"):
            use()
    assert not ghostscript.exists()


def test_run_and_verify_run_no_program(native, tmp_path, ghostscript):
    root = native.copy("flickr30k", tmp_path)
    for path in (root / "flickr30k-images").glob("*.jpg"):
        path.write_bytes(EPS)
    outcome = invoke(*run_words(native, "flickr30k", root), "--output", tmp_path / "run")
    assert outcome.exit_code == 2
    assert "not an image: PostScript" in outcome.stderr.splitlines()[-1]
    assert "Traceback" not in outcome.output
    found = invoke("data", "verify", "--task", "flickr30k", "--data-root", root)
    assert found.exit_code == 2
    assert "do not decode" in found.stdout
    assert not ghostscript.exists()


def test_label_maps_are_png_alone(tmp_path):
    path = saved(tmp_path / "x.png", "JPEG", Image.new("L", (4, 3), 7))
    with pytest.raises(
        BenchError, match=r"annotation does not decode \(it is JPEG by its content; read are PNG\); download"
    ):
        read_map(path, "annotation")
    with pytest.raises(BenchError, match=r"prediction does not decode .*; write it as a grey PNG") as caught:
        read_map(path, "prediction")
    assert "again" not in str(caught.value)
    assert read_map(saved(tmp_path / "y.png", "PNG", Image.new("L", (4, 3), 7)), "annotation").tolist() == [[7] * 4] * 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x00\x00\x00\x1cftypheic" + bytes(20), "HEIC"),
        (b"\x00\x05\x16\x07" + bytes(80), "macOS"),
        (b"", "an empty file"),
        (bytes(500), "zero bytes"),
        (b"some text", "an unknown kind of file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cut off, or its header is damaged"),
    ],
)
def test_what_is_no_image_is_named_for_what_it_is(tmp_path, content, words):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=words):
        decode(path)


def test_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    for place in (tmp_path / "x.jpg", tmp_path):
        for use in (decode, ImageCache(tmp_path / "cache", Preprocessing(8)).load):
            with pytest.raises(BenchError, match="does not decode"):
                use(place)


# ---- sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(15_000, 13_000), (100_000, 100_000), (1, MAX_SIDE + 1), (MAX_SIDE + 1, 1), (2**31 - 1, 2**31 - 1)]
)
@pytest.mark.parametrize("form", ["PNG", "PPM", "BMP"])
def test_an_image_that_is_too_large_is_refused_by_its_header(tmp_path, form, size):
    path = tmp_path / "x.png"
    headers = {
        "PNG": png_header(*size),
        "PPM": b"P6 %d %d 255\n" % size,
        "BMP": b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, *size, 1, 24, 0, 0, 1, 1, 0, 0),
    }
    path.write_bytes(headers[form])
    start = time.perf_counter()
    with pytest.raises(TooLargeError, match=r"image is too large \(.*; make it smaller, or leave it out") as caught:
        decode(path)
    assert time.perf_counter() - start < 1
    assert "again" not in str(caught.value)


def test_an_image_below_the_limit_is_read_without_a_word(tmp_path):
    path = tmp_path / "x.png"
    Image.new("1", (9_700, 9_700)).save(path)
    code = f"from beit3_bench.backbones.images import opened\nwith opened({str(path)!r}) as image: image.load(); print(image.size)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("(9700, 9700)\n", "")


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate", "tiff_lzw", "jpeg"])
def test_a_cut_tiff_is_one_line_and_pillow_adds_none(tmp_path, compression):
    path = saved(tmp_path / "x.tif", "TIFF", noise(200, 150), compression=compression)
    os.truncate(path, path.stat().st_size // 2)
    code = f"from beit3_bench.backbones.preprocess import decode\ntry: decode({str(path)!r})\nexcept Exception as e: print(e)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "does not decode" in result.stdout
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


def test_the_limit_does_not_depend_on_pillows_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "x.png"
    path.write_bytes(png_header(15_000, 13_000))
    with pytest.raises(TooLargeError, match="15,000 x 13,000 pixels"):
        decode(path)


def test_tiles_that_are_larger_than_their_image_are_refused(tmp_path):
    entries = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65_520, 323: 65_520, 324: 8, 325: 100}
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()) + bytes(200)
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(TooLargeError, match="tiles of 65,520 x 65,520"):
        decode(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "x.jpg"
    saved(path, "JPEG")
    os.truncate(path, 100 * 2**30)  # sparse
    for use in (decode, ImageCache(tmp_path / "cache", Preprocessing(8)).load):
        with pytest.raises(TooLargeError, match=r"a file of 107,374,182,400 bytes"):
            use(path)


def test_the_first_of_many_frames_is_read(tmp_path):
    frames = [Image.new("P", (20, 10), 0)] * 300
    for form in ("GIF", "TIFF"):
        path = saved(tmp_path / "x", form, Image.new("RGB", (20, 10), (0, 255, 0)), save_all=True, append_images=frames)
        assert decode(path).getpixel((0, 0)) == (0, 255, 0)


def test_errors_inside_of_the_opened_image_are_one_line(tmp_path):
    path = saved(tmp_path / "x.png", "PNG")
    path.write_bytes(path.read_bytes()[:60])
    with (
        pytest.raises(BenchError, match=r"annotation does not decode \(.*\); download"),
        opened(path, what="annotation") as i,
    ):
        i.load()


# ---- crops of very long images --------------------------------------------------------------------------------------------


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=200, deadline=None)
@given(
    short=st.integers(1, 30),
    ratio=st.floats(6, 90),
    side=st.integers(1, 60),
    pct=st.sampled_from([1.0, 0.875, 0.8, 1.25]),
    tall=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_crop_of_an_enlarged_image_equals_pillows_bit_for_bit(short, ratio, side, pct, tall, seed):
    long = int(short * ratio) + 1
    width, height = (short, long) if tall else (long, short)
    edge = max(int(side / pct), 1)
    size = (edge, int(edge * height / width)) if tall else (int(edge * width / height), edge)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    box = (left, top, left + side, top + side)
    image = noise(width, height, seed)
    expected = image.resize(size, Image.Resampling.BICUBIC).crop(box)
    ours = resized_crop(image, size, box)
    assert ours.size == expected.size
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (3, 2000), (2000, 7)])
def test_any_part_of_an_enlarged_image_equals_pillows(shape):
    image = noise(*shape)
    size = (64, 64 * shape[1] // shape[0]) if shape[0] < shape[1] else (64 * shape[0] // shape[1], 64)
    whole = image.resize(size, Image.Resampling.BICUBIC)
    axis = 0 if size[0] > size[1] else 1
    for start in (-10, 0, 17, size[axis] // 3, size[axis] - 20):
        box = [0, 0, 64, 64]
        box[axis], box[axis + 2] = start, start + 64
        assert np.array_equal(np.asarray(resized_crop(image, size, tuple(box))), np.asarray(whole.crop(tuple(box))))


@pytest.mark.parametrize("shape", [(1, 8_000), (1, 20_000), (20_000, 1), (MAX_SIDE, 1), (2, MAX_SIDE)])
def test_very_long_images_take_neither_gigabytes_nor_minutes(tmp_path, monkeypatch, shape):
    made = []
    resize = Image.Image.resize

    def watched(image, size, *more, **named):
        made.append(size[0] * size[1])
        return resize(image, size, *more, **named)

    monkeypatch.setattr(Image.Image, "resize", watched)
    path = saved(tmp_path / "x.png", "PNG", noise(*shape))
    start = time.perf_counter()
    pixels = Preprocessing.for_head("imagenet-linear", 224).load(path)
    assert time.perf_counter() - start < 5
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.uint8
    assert max(made) <= 256 * 256


@pytest.mark.parametrize("shape", [(640, 480), (300, 3000)])  # the latter is long, but becomes smaller
def test_ordinary_images_are_left_to_pillow(monkeypatch, shape):
    monkeypatch.setattr(crop, "_weights", None)  # what the own way cannot do without
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, *a, **k: resized.append(image.size) or resize(image, *a, **k)
    )
    pixels = Preprocessing.for_head("imagenet-linear", 224).pixels(noise(*shape))
    assert pixels.shape == (3, 224, 224)
    assert resized == [shape]
