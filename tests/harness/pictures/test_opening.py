"""Pictures of phones stand upright; what is no picture is told in a line."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from PIL import Image, features

from beit3_bench.backbones.preprocess import ON_ITS_SIDE, TURNS
from beit3_bench.errors import BenchError
from beit3_bench.harness.pictures.opening import open_upright, upright_copy

ORIENTATION = 0x0112


def scene() -> Image.Image:
    """Upright: red above, blue below, the left edge green; 60 x 40."""
    image = Image.new("RGB", (60, 40), (200, 0, 0))
    image.paste((0, 0, 200), (0, 20, 60, 40))
    image.paste((0, 200, 0), (0, 0, 10, 40))
    return image


def stored(orientation: int) -> Image.Image:
    """The scene as a sensor with an orientation saw it."""
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    return scene().transpose(undo.get(orientation, TURNS[orientation])) if orientation > 1 else scene()


def with_orientation(path, orientation, **how):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored(orientation).save(path, exif=exif.tobytes(), **how)
    return path


def close(image: Image.Image, other: Image.Image) -> bool:
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(other).astype(int))
    return image.size == other.size and difference.mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(tmp_path, orientation, kind):
    path = with_orientation(tmp_path / "a.jpg", orientation, format=kind)
    if kind != "TIFF":  # which Pillow opens upright
        with Image.open(path) as image:
            assert (image.size == (40, 60)) == (orientation in ON_ITS_SIDE)
    assert close(open_upright(path), scene())
    assert not open_upright(path).getexif()  # or somebody turns it again
    with Image.open(path) as image:
        assert close(upright_copy(image), scene())


def test_a_thumbnail_is_read_at_a_fraction_of_the_size_and_upright(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored(6).resize((1600, 2400)).save(tmp_path / "a.jpg", exif=exif)
    small = open_upright(tmp_path / "a.jpg", side=200)
    assert small.size == (300, 200)
    assert close(small.resize((60, 40)), scene())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = {"LA": scene().convert("L").convert("LA"), "I;16": Image.new("I;16", (20, 10))}
    picture = grey[mode] if mode in grey else scene().convert(mode)
    picture.save(tmp_path / "a", "TIFF" if mode == "CMYK" else "PNG")
    assert open_upright(tmp_path / "a").mode == "RGB"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_of_a_phone_stands_upright(tmp_path):
    assert close(open_upright(with_orientation(tmp_path / "a.jpg", 6, format="AVIF")), scene())


def test_heic_of_a_phone_stands_upright(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    with_orientation(tmp_path / "a.jpg", 6, format="HEIF")
    assert close(open_upright(tmp_path / "a.jpg"), scene())


def test_heic_without_the_plug_in_names_it(tmp_path, monkeypatch):
    def missing(name, package=None):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(BenchError, match=r"a\.heic: reading HEIC needs pillow_heif.*pip install 'pillow-heif"):
        open_upright(tmp_path / "a.heic")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"a text about a dog", "unknown kind of file"),
        (b"<!DOCTYPE html><p>404", "a web page"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "does not decode"),
        (b"\0\0\0\x18ftypmp42" + bytes(60), "HEIC, AVIF or a film"),
    ],
)
def test_what_is_no_picture_is_told(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BenchError, match=words) as error:
        open_upright(tmp_path / "a.jpg")
    assert str(error.value).startswith(f"{tmp_path / 'a.jpg'}: ")


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    with pytest.raises(BenchError, match="picture not found"):
        open_upright(tmp_path / "none.jpg")
    with pytest.raises(BenchError, match="a folder"):
        open_upright(tmp_path)
