"""Preprocessing against torchvision, bit for bit, and what happens to images that are none."""

from __future__ import annotations

import contextlib
import io
import json

import beit3_golden as golden
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from beit3_bench.backbones.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing, decode
from beit3_bench.errors import BenchError

BICUBIC = transforms.InterpolationMode.BICUBIC


def noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise on top, so that resampling and rounding both show."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / max(width, 2), y * 255 / max(height, 2), (x + y) % 256], axis=-1)
    pixels = np.clip(base + generator.normal(0, 40, base.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def torchvision_transform(preprocessing: Preprocessing) -> transforms.Compose:
    """The official evaluation transforms (`build_transform`), written with torchvision."""
    size = preprocessing.size
    if preprocessing.mode == "squash":
        resize = [transforms.Resize((size, size), interpolation=BICUBIC)]
    else:
        resize = [
            transforms.Resize(int(size / preprocessing.crop_pct), interpolation=BICUBIC),
            transforms.CenterCrop(size),
        ]
    return transforms.Compose(
        [*resize, transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    )


def run(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    return preprocessing.normalise(preprocessing.pixels(image).unsqueeze(0))[0]


VARIANTS = {
    "squash": Preprocessing(40),
    "crop": Preprocessing(40, "crop", IMAGENET_MEAN, IMAGENET_STD),
    "crop-0.8": Preprocessing(40, "crop", IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.8),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@pytest.mark.parametrize(
    ("name", "preprocessing"),
    [
        ("vl_32", Preprocessing(32)),
        ("imagenet_40", Preprocessing.for_head("imagenet-linear", 40)),
        ("imagenet_40_crop_0.8", Preprocessing(40, "crop", IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.8)),
    ],
)
def test_official_evaluation_transforms(name, preprocessing):
    given_data = golden.tensors("data_side")
    image = Image.fromarray(given_data["preprocess.image_uint8_hwc"].numpy())
    ours, expected = run(preprocessing, image), given_data[f"preprocess.{name}"]
    assert ours.shape == expected.shape
    # Pillow's resampling may round another way from version to version: one grey level, and rarely.
    level = 1 / 255 / min(preprocessing.std)
    assert (ours - expected).abs().max() <= level * 1.001
    assert ((ours - expected).abs() > 1e-6).float().mean() < 0.01


@variants
@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 160), height=st.integers(1, 160), seed=st.integers(0, 9))
def test_equals_torchvision_bit_for_bit_at_any_size(variant, width, height, seed):
    image, preprocessing = noise(width, height, seed), VARIANTS[variant]
    expected = torchvision_transform(preprocessing)(image)
    ours = run(preprocessing, image)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)


@variants
@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 97), width=st.integers(20, 90), height=st.integers(20, 90))
def test_equals_torchvision_bit_for_bit_for_any_input_size_of_the_model(variant, size, width, height):
    image, preprocessing = noise(width, height), VARIANTS[variant].resized(size)
    assert torch.equal(run(preprocessing, image), torchvision_transform(preprocessing)(image))


@variants
@pytest.mark.parametrize("shape", [(40, 40), (640, 480), (480, 640), (1, 300), (300, 1), (41, 39), (2000, 30)])
def test_equals_torchvision_at_remarkable_sizes(variant, shape):
    image, preprocessing = noise(*shape), VARIANTS[variant]
    assert torch.equal(run(preprocessing, image), torchvision_transform(preprocessing)(image))


def test_a_crop_larger_than_the_resized_image_is_padded_as_torchvision_does():
    preprocessing = Preprocessing(40, "crop", IMAGENET_MEAN, IMAGENET_STD, crop_pct=1.25)
    for shape in ((50, 60), (60, 50), (31, 31)):
        image = noise(*shape)
        assert torch.equal(run(preprocessing, image), torchvision_transform(preprocessing)(image))


def test_a_batch_is_normalised_like_its_images():
    preprocessing = VARIANTS["crop"]
    pixels = torch.stack([preprocessing.pixels(noise(50, 60, s)) for s in range(3)])
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    before = pixels.clone()
    batch = preprocessing.normalise(pixels)
    assert torch.equal(pixels, before), "the uint8 batch is not written into"
    for one, image in zip(batch, pixels, strict=True):
        assert torch.equal(one, preprocessing.normalise(image[None])[0])


def test_heads_take_the_official_preprocessing():
    assert Preprocessing.for_head("vqav2", 480) == Preprocessing(480, "squash", HALF, HALF, 1.0)
    assert Preprocessing.for_head("imagenet", 224).mode == "squash", "zero-shot ImageNet is a retrieval model"
    linear = Preprocessing.for_head("imagenet-linear", 224)
    assert (linear.mode, linear.mean, linear.std, linear.crop_pct) == ("crop", IMAGENET_MEAN, IMAGENET_STD, 1.0)


def test_dictionary_round_trip_and_bad_dictionaries():
    for preprocessing in VARIANTS.values():
        assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    good = VARIANTS["crop"].to_dict()
    for bad in ({}, {**good, "zoom": 2}, {**good, "mean": None}):
        with pytest.raises(BenchError, match=r"x\.pth: its preprocessing: not readable"):
            Preprocessing.from_dict(bad, "x.pth: its preprocessing")
    with pytest.raises(BenchError, match=r"mode 'stretch'.*squash.*crop"):
        Preprocessing(40, "stretch")


def test_canary_hash_is_stable_and_sees_every_field():
    preprocessing = VARIANTS["crop-0.8"]
    assert preprocessing.canary_hash() == VARIANTS["crop-0.8"].canary_hash()
    changed = [
        preprocessing.resized(41),
        *(
            Preprocessing(**{**preprocessing.to_dict(), **c})
            for c in ({"mode": "squash"}, {"mean": HALF}, {"std": HALF}, {"crop_pct": 1.0})
        ),
    ]
    hashes = {p.canary_hash() for p in [preprocessing, *changed]}
    assert len(hashes) == 6


# ---- decoding -----------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16", "RGB", "YCbCr", "I", "F"])
def test_every_pillow_mode_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, 30 * 20).reshape(20, 30).astype(np.uint16))
    elif mode in ("LA", "I", "F"):
        image = noise(30, 20, mode="L").convert(mode)
    else:
        image = noise(30, 20, mode=mode)
    form = {"CMYK": "TIFF", "YCbCr": "JPEG", "F": "TIFF", "I": "TIFF"}.get(mode, "PNG")
    path = tmp_path / f"image.{form.lower()}"
    path.write_bytes(saved(image, form))
    with Image.open(path) as reference:
        expected = reference.convert("RGB")
    ours = decode(path)
    assert ours.mode == "RGB"
    assert ours.size == (30, 20)
    assert np.array_equal(np.array(ours), np.array(expected))
    assert Preprocessing(8).load(path).shape == (3, 8, 8)
    assert Preprocessing(8).load(str(path)).dtype == torch.uint8


def test_exif_orientation_is_not_applied(tmp_path):
    """As in the official loader; applying it would turn some COCO images."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    noise(30, 20).save(path, exif=exif)
    assert decode(path).size == (30, 20)


BROKEN = {
    "empty": b"",
    "text": b"this is a text",
    "html": b"<html><body>404 Not Found</body></html>",
    "jpeg half": saved(noise(200, 150), "JPEG")[:3000],
    "jpeg header": saved(noise(200, 150), "JPEG")[:20],
    "png half": saved(noise(100, 100), "PNG")[:9000],
    "png header": saved(noise(100, 100), "PNG")[:30],
    "gif half": saved(noise(100, 100, mode="P"), "GIF")[:60],
    "bmp half": saved(noise(100, 100), "BMP")[:500],
    "tiff half": saved(noise(100, 100), "TIFF")[:200],
    "webp half": saved(noise(100, 100), "WEBP")[:100],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_an_error_in_one_line_with_its_path(tmp_path, name):
    path = tmp_path / "COCO_val2014_000000000042.jpg"
    path.write_bytes(BROKEN[name])
    with pytest.raises(BenchError, match="does not decode") as caught:
        decode(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]), data=st.data())
def test_damaged_bytes_give_an_image_or_an_error_and_nothing_else(tmp_path_factory, form, data):
    content = bytearray(saved(noise(40, 30, mode="P" if form == "GIF" else "RGB"), form))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 300)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(BenchError):
        assert decode(path).mode == "RGB"


def test_missing_images_and_folders_are_errors(tmp_path):
    with pytest.raises(BenchError, match=r"image not found.*--data-root"):
        decode(tmp_path / "no.jpg")
    with pytest.raises(BenchError, match="does not decode"):
        decode(tmp_path)


def test_pillows_own_limit_holds_where_it_is_lower(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(saved(noise(100, 100), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BenchError, match=r"too large \(10000 pixels; "):
        decode(path)
