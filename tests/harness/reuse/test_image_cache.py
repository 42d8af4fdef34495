"""The cache of preprocessed images: the same pixels, whatever happens to the files."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from beit3_bench.backbones import preprocess
from beit3_bench.backbones.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from beit3_bench.errors import BenchError
from beit3_bench.harness.reuse import image_cache
from beit3_bench.harness.reuse.image_cache import ImageCache

SQUASH = Preprocessing(24)
CROP = Preprocessing(24, "crop", IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.9)


def write_image(path, seed=0, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


@pytest.fixture
def picture(tmp_path):
    return write_image(tmp_path / "picture.jpg")


def entries(root):
    return sorted(root.rglob("*" + image_cache.SUFFIX))


def count_decoded(monkeypatch):
    opened = []
    original = preprocess.decode

    def decode(path, content=None):
        opened.append(str(path))
        return original(path, content)

    monkeypatch.setattr(preprocess, "decode", decode)
    return opened


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP], ids=["squash", "crop"])
def test_the_second_reader_decodes_nothing_and_sees_the_same_pixels(preprocessing, picture, tmp_path, monkeypatch):
    opened = count_decoded(monkeypatch)
    expected = preprocessing.load(picture)
    first, second = (ImageCache(tmp_path / "cache", preprocessing) for _ in range(2))
    assert torch.equal(first.load(picture), expected)
    assert len(opened) == 2
    again = second.load(str(picture))
    assert len(opened) == 2
    assert torch.equal(again, expected)
    assert again.dtype == torch.uint8
    assert (first.hits, first.misses, second.hits, second.misses) == (0, 1, 1, 0)
    again += 1  # its own memory: writing into it spoils nothing
    assert torch.equal(second.load(picture), expected)


def test_a_changed_file_of_the_same_name_size_and_time_is_another_image(picture, tmp_path):
    cache = ImageCache(tmp_path / "cache", SQUASH)
    before, facts = cache.load(picture), os.stat(picture)
    other = bytearray(write_image(tmp_path / "other.jpg", 1).read_bytes()[: facts.st_size])
    other += bytes(facts.st_size - len(other))
    picture.write_bytes(other)
    os.utime(picture, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert os.stat(picture).st_size == facts.st_size
    assert torch.equal(cache.load(picture), SQUASH.load(picture))
    assert not torch.equal(cache.load(picture), before)


def test_equal_files_share_an_entry_wherever_they_lie(picture, tmp_path):
    cache = ImageCache(tmp_path / "cache", SQUASH)
    cache.load(picture)
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(picture.read_bytes())
    cache.load(copy)
    assert (cache.hits, cache.misses, len(entries(tmp_path / "cache"))) == (1, 1, 1)


def test_preprocessings_share_pixels_only_if_they_differ_in_normalisation_alone(tmp_path, monkeypatch):
    def folder(preprocessing):
        return ImageCache(tmp_path, preprocessing).folder

    assert folder(CROP) == folder(Preprocessing(24, "crop", HALF, HALF, crop_pct=0.9))
    others = [SQUASH, CROP, SQUASH.resized(25), Preprocessing(24, "crop", crop_pct=1.0)]
    assert len({folder(p) for p in others}) == len(others)
    for module, name, value in (
        (preprocess.PIL, "__version__", "0.0"),
        (preprocess.features, "version", lambda _: "0.0"),
        (preprocess, "planes", lambda image: torch.zeros(3, 2, 2, dtype=torch.uint8)),  # other pixels
    ):
        with monkeypatch.context() as patch:
            before = folder(SQUASH)
            patch.setattr(module, name, value)
            assert folder(SQUASH) != before, name


def test_the_folder_says_what_it_holds(tmp_path):
    cache = ImageCache(tmp_path, SQUASH)
    facts = json.loads((cache.folder / "about.json").read_text())
    assert (facts["size"], facts["mode"], facts["pillow"]) == (24, "squash", preprocess.PIL.__version__)
    assert "mean" not in facts


SIZE = 3 * 24 * 24
DAMAGES = {
    "empty": lambda data: b"",
    "cut header": lambda data: data[:10],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "header alone": lambda data: data[:-SIZE],
    "one bit": lambda data: data[:-7] + bytes([data[-7] ^ 4]) + data[-6:],
    "another shape": lambda data: data[:12] + data[16:20] + data[12:16] + data[20:],
    "zeros": lambda data: bytes(len(data)),
    "another magic": lambda data: b"B3BPIX99" + data[8:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_made_again(name, picture, tmp_path):
    ImageCache(tmp_path / "cache", SQUASH).load(picture)
    (entry,) = entries(tmp_path / "cache")
    whole = entry.read_bytes()
    entry.write_bytes(DAMAGES[name](whole))
    cache = ImageCache(tmp_path / "cache", SQUASH)
    assert torch.equal(cache.load(picture), SQUASH.load(picture))
    assert (cache.hits, cache.misses) == (0, 1)
    assert entry.read_bytes() == whole


def test_an_entry_under_the_name_of_another_image_is_not_believed(picture, tmp_path):
    cache = ImageCache(tmp_path / "cache", SQUASH)
    cache.load(picture)
    other = write_image(tmp_path / "other.jpg", 1)
    cache.load(other)
    one, two = (entry.read_bytes() for entry in entries(tmp_path / "cache"))
    for entry, content in zip(entries(tmp_path / "cache"), (two, one), strict=True):
        entry.write_bytes(content)
    assert torch.equal(cache.load(other), SQUASH.load(other))
    assert cache.hits == 0


@pytest.mark.parametrize("step", ["open", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_costs_the_cache_and_nothing_else(step, number, picture, tmp_path, monkeypatch):
    cache = ImageCache(tmp_path / "cache", SQUASH)

    def fail(*arguments, **more):
        raise OSError(number, os.strerror(number))

    real_open = open
    if step == "open":
        monkeypatch.setattr(
            "builtins.open", lambda path, mode="r", *a, **k: fail() if "x" in mode else real_open(path, mode, *a, **k)
        )
    else:
        monkeypatch.setattr(*(os, "replace") if step == "replace" else (image_cache.Path, "mkdir"), fail)
    assert torch.equal(cache.load(picture), SQUASH.load(picture))
    assert "going on without storing images" in cache.trouble
    assert "\n" not in cache.trouble
    monkeypatch.undo()
    assert torch.equal(cache.load(picture), SQUASH.load(picture))
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != "about.json"]


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"file: cannot be a folder of cached images .*choose another --image-cache"):
        ImageCache(tmp_path / "file", SQUASH)


@pytest.mark.parametrize("content", [b"", b"this is a text", None])
def test_bad_images_are_the_errors_of_preprocessing(content, tmp_path):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    messages = []
    for source in (SQUASH, ImageCache(tmp_path / "cache", SQUASH)):
        with pytest.raises(BenchError) as caught:
            source.load(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert entries(tmp_path / "cache") == []


def _read_all(root, paths, results):
    cache = ImageCache(root, SQUASH)
    results.put([bytes(cache.load(path).numpy().tobytes()) for path in paths])


def test_processes_may_fill_one_folder_at_once(tmp_path):
    paths = [write_image(tmp_path / f"{i}.jpg", i) for i in range(30)]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    orders = [paths, paths[::-1], paths]
    workers = [context.Process(target=_read_all, args=(tmp_path / "cache", order, results)) for order in orders]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    expected = [SQUASH.load(path).numpy().tobytes() for path in paths]
    assert all(one in (expected, expected[::-1]) for one in found)
    assert len(entries(tmp_path / "cache")) == 30
    assert not list((tmp_path / "cache").rglob("*.part"))


# ---- what is no entry, and somebody else's folder -----------------------------------------------------------------------


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(1 << 42)


@pytest.mark.parametrize("make", [os.mkfifo, sparse, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_entry_is_replaced_by_one(make, picture, tmp_path):
    cache = ImageCache(tmp_path / "cache", SQUASH)
    expected = cache.load(picture)
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.unlink()
    make(entry)
    again = ImageCache(tmp_path / "cache", SQUASH)
    assert torch.equal(again.load(picture), expected)
    assert (again.hits, again.misses, again.trouble) == (0, 1, None)
    assert not entry.is_symlink()
    assert entry.read_bytes() == whole


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_file_behind_a_link_at_an_entry_stays(make, picture, tmp_path):
    cache = ImageCache(tmp_path / "cache", SQUASH)
    cache.load(picture)
    (entry,) = entries(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    entry.unlink()
    make(victim, entry)
    ImageCache(tmp_path / "cache", SQUASH).load(picture)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("level", ["preprocessing", "first letters"])
def test_nothing_is_stored_through_a_link_to_a_folder(level, picture, tmp_path):
    cache = ImageCache(tmp_path / "cache", SQUASH)
    expected = cache.load(picture)
    (entry,) = entries(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = entry.parent if level == "first letters" else cache.folder
    shutil.rmtree(folder)
    folder.symlink_to(outside)
    again = ImageCache(tmp_path / "cache", SQUASH)
    assert torch.equal(again.load(picture), expected)
    assert "link" in again.trouble
    assert not list(outside.rglob("*"))
