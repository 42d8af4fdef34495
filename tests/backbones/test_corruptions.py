"""Corruptions: the pixels of the official code, from a file's content alone, in every reader of images."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import COMMITTED
from PIL import Image

from beit3_bench.backbones import corruptions
from beit3_bench.backbones.abilities import Item, Reader
from beit3_bench.backbones.beit3.detection.reading import DetectionReader
from beit3_bench.backbones.beit3.detection.resize import MODE, ShortestEdge
from beit3_bench.backbones.corruptions import (
    NAMES,
    UNLIKE_IMAGENET_C,
    CorruptedPixels,
    Corruption,
    parse_corruption,
    parse_corruptions,
)
from beit3_bench.backbones.preprocess import Preprocessing, decode
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.vilt.images import AspectKept
from beit3_bench.backbones.vilt.native import PatchReader
from beit3_bench.errors import BenchError
from beit3_bench.harness.reuse.image_cache import ImageCache

pytest.importorskip("imagecorruptions")
NOISE = Corruption("gaussian_noise", 3)
OFFICIAL = {key: value for key, value in np.load(COMMITTED / "corruptions" / "imagenet_c.npz").items()}


@pytest.fixture(scope="module")
def photograph():
    from skimage import data

    return Image.fromarray(data.astronaut())


@pytest.fixture
def picture(photograph, tmp_path) -> Path:
    path = tmp_path / "a.jpg"
    photograph.resize((130, 97)).save(path)
    return path


# ---- pixels -------------------------------------------------------------------------------------------------------------


def test_all_but_the_named_ones_are_held_against_the_official_code():
    assert {key.partition(":")[0] for key in OFFICIAL} == set(NAMES) - set(UNLIKE_IMAGENET_C)
    assert len(OFFICIAL) == 33


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNLIKE_IMAGENET_C])
def test_a_square_of_224_pixels_is_corrupted_as_in_imagenet_c(name, photograph, monkeypatch):
    from imagecorruptions import corruptions as library

    shuffle = library._shuffle_pixels_njit_glass_blur.py_func  # numba draws other numbers from the same seed
    monkeypatch.setattr(library, "_shuffle_pixels_njit_glass_blur", shuffle)
    monkeypatch.setattr(Corruption, "seed", lambda self, content: 2019)
    for severity in (5,) if name == "glass_blur" else (1, 3, 5):
        corrupted = Corruption(name, severity).of(photograph.crop((60, 0, 284, 224)), b"")
        off = np.abs(np.asarray(corrupted)[::7, ::7].astype(int) - OFFICIAL[f"{name}:{severity}"])
        assert off.max() <= 1
        assert (off > 0).mean() <= 1e-3  # one level, where a float lies between two


@pytest.mark.parametrize("name", NAMES)
def test_any_size_keeps_its_size_and_says_nothing(name, photograph, capfd):
    small = photograph.resize((75, 56))
    corrupted = Corruption(name, 4).of(small, b"content")
    assert (corrupted.size, corrupted.mode) == ((75, 56), "RGB")
    assert np.abs(np.asarray(corrupted).astype(int) - np.asarray(small)).mean() > 1
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "snow"])
def test_noise_is_that_of_content_and_severity_whatever_was_drawn_before(name, photograph):
    small = photograph.resize((64, 48))
    np.random.seed(1)
    first = np.asarray(Corruption(name, 3).of(small, b"a"))
    drawn = np.random.random()
    np.random.seed(1)
    assert np.random.random() == drawn  # the caller's numbers are his own
    assert np.array_equal(np.asarray(Corruption(name, 3).of(small, b"a")), first)
    assert not np.array_equal(np.asarray(Corruption(name, 3).of(small, b"b")), first)


def test_severities_draw_from_seeds_of_their_own():
    seeds = {Corruption(name, severity).seed(b"x") for name in NAMES for severity in range(1, 6)}
    assert len(seeds) == 75


def test_an_image_that_is_too_small_is_named(tmp_path):
    Image.new("RGB", (40, 31)).save(tmp_path / "b.png")
    with pytest.raises(BenchError, match=r"b\.png: is 40 x 31 pixels; corruptions take images of 32 x 32 or more"):
        NOISE.decoded(tmp_path / "b.png")


def test_a_missing_image_is_told_as_without_corruption(tmp_path):
    with pytest.raises(BenchError, match=r"b\.png: image not found; download it, or check --data-root"):
        NOISE.decoded(tmp_path / "b.png")


# ---- readers ------------------------------------------------------------------------------------------------------------


def test_every_reader_sees_the_corrupted_picture(picture):
    content = hashlib.sha256(picture.read_bytes()).digest()
    expected = NOISE.of(decode(picture), content)
    item, squash = Item("1", (str(picture),)), Preprocessing(32)
    native = NativeReader(squash)
    native.corrupt(NOISE)
    assert torch.equal(native.collate([item])["images"][0], squash.pixels(expected))
    aspect = AspectKept(64, 32)
    patches = PatchReader(aspect, None, 1, picture)  # type: ignore[arg-type]  # no text is read here
    patches.corrupt(NOISE)
    assert torch.equal(patches.pixels(picture), aspect.pixels(expected))
    edge = ShortestEdge(64, MODE, short_side=64, longest_side=100)
    detector = DetectionReader(edge)
    detector.corrupt(NOISE)
    assert torch.equal(detector.collate([item])["images"][0], edge.pixels(expected))


def test_a_detector_corrupts_what_it_has_turned_upright(photograph, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    photograph.resize((90, 60)).save(path, exif=exif)
    corrupted = NOISE.decoded(path, upright=True)
    assert corrupted.size == (60, 90)
    content = hashlib.sha256(path.read_bytes()).digest()
    assert np.array_equal(np.asarray(corrupted), np.asarray(NOISE.of(decode(path, upright=True), content)))


def test_a_reader_that_opens_images_by_itself_is_refused():
    class Own(Reader):
        def collate(self, items):
            return {}

    with pytest.raises(
        BenchError, match=r"--corrupt gaussian_noise:3: the reader of this model \(Own\) opens images by"
    ):
        Own().corrupt(NOISE)


def test_a_cache_holds_corrupted_and_clean_pixels_apart(picture, tmp_path):
    squash, corrupted = Preprocessing(32), CorruptedPixels(Preprocessing(32), NOISE)
    other = CorruptedPixels(Preprocessing(32), Corruption("gaussian_noise", 4))
    caches = [ImageCache(tmp_path / "cache", transform) for transform in (squash, corrupted, other)]
    assert len({cache.folder for cache in caches}) == 3
    for _ in range(2):  # made, and read back
        assert torch.equal(caches[0].load(picture), squash.load(picture))
        assert torch.equal(caches[1].load(picture), corrupted.load(picture))
    assert (caches[1].hits, caches[1].misses) == (1, 1)
    assert not torch.equal(corrupted.load(picture), squash.load(picture))


# ---- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("gaussian_noise:3,jpeg:2", ["gaussian_noise:3", "jpeg_compression:2"]),
        ("Elastic-Transform", ["elastic_transform:3"]),
        (" fog : 1-3 , snow", ["fog:1", "fog:2", "fog:3", "snow:3"]),
        ("noise:5", ["gaussian_noise:5", "shot_noise:5", "impulse_noise:5"]),
        ("all", [f"{name}:3" for name in NAMES]),
        ("all:1-5", [f"{name}:{severity}" for severity in range(1, 6) for name in NAMES]),
    ],
)
def test_what_is_asked_for(text, labels):
    assert [one.label for one in parse_corruptions(text)] == labels


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gausian_noise:3", "--corrupt: no corruption 'gausian_noise'; did you mean 'gaussian_noise'?"),
        ("xyzzy", "--corrupt: no corruption 'xyzzy'; known: gaussian_noise, shot_noise, "),
        ("fog:6", "--corrupt: severity '6' of 'fog' is none; give 1 to 5, or a range such as 1-5"),
        ("fog:0", "--corrupt: severity '0' of 'fog' is none"),
        ("fog:", "--corrupt: severity '' of 'fog' is none"),
        ("fog:5-1", "--corrupt: severity '5-1' of 'fog' is none"),
        ("fog:²", "--corrupt: severity '²' of 'fog' is none"),
        ("jpeg:2,digital:2", "--corrupt: jpeg_compression:2 is there twice; name it once"),
        (" , ", "--corrupt: names no corruption; give NAME:SEVERITY, e.g. gaussian_noise:3, or all:1-5"),
    ],
)
def test_what_cannot_be_meant(text, line):
    with pytest.raises(BenchError) as refused:
        parse_corruptions(text)
    assert str(refused.value).startswith(line)


def test_a_record_names_one_corruption():
    assert parse_corruption("fog:2", "config.json: corrupt") == Corruption("fog", 2)
    with pytest.raises(BenchError, match=r"config\.json: corrupt: 'fog:1-2' is not one corruption"):
        parse_corruption("fog:1-2", "config.json: corrupt")


@pytest.fixture
def not_looked_for_yet():
    corruptions.library.cache_clear()
    yield
    corruptions.library.cache_clear()


@pytest.mark.usefixtures("not_looked_for_yet")
def test_a_missing_library_is_one_line_with_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(BenchError, match=r"--corrupt needs imagecorruptions.*: pip install 'imagecorruptions-imaug>=1"):
        corruptions.library()


@pytest.mark.usefixtures("not_looked_for_yet")
def test_the_original_of_the_library_which_does_not_run_here_is_refused(monkeypatch):
    monkeypatch.setattr(corruptions, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(
        BenchError, match="another imagecorruptions is installed; pip uninstall imagecorruptions && pip"
    ):
        corruptions.library()
