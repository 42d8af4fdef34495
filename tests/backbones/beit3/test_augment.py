"""Training transforms: what they draw, that they repeat, and that they equal what the official recipe names."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from beit3_bench.backbones.beit3.training.augment import (
    RANDAUGMENT,
    BatchMixing,
    TrainingTransform,
    affine,
    randaugment,
    rotate,
)
from beit3_bench.backbones.seeds import derived, seeded
from beit3_bench.errors import BenchError


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TRANSFORMS = {
    "plain": {},
    "randaugment": {"vl_randaugment": True},
    "imagenet": {"crop_scale": (0.08, 1.0), "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4},
    "jitter": {"color_jitter": 0.4},
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_follows_from_seed_and_image_alone(name):
    transform = TrainingTransform(32, **TRANSFORMS[name])
    images = [picture(seed=i) for i in range(6)]
    forward = [transform(image, generator(7)) for image in images]
    torch.rand(3), random.random(), np.random.rand()
    shared = generator(7)
    backward = [transform(image, shared) for image in reversed(images)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert any(not torch.equal(a, transform(image, generator(8))) for a, image in zip(forward, images, strict=True))
    assert forward[0].dtype == torch.uint8
    assert forward[0].shape == (3, 32, 32)


def test_transform_without_randomness_is_the_plain_resize():
    transform = TrainingTransform(32, crop_scale=(1.0, 1.0), flip=0.0)
    image = picture(40, 40)
    expected = np.array(image.resize((32, 32), Image.Resampling.BICUBIC))
    # A ratio other than 1 does not fit into a square at full area, so that a crop is the whole or (nearly) so.
    drawn = [transform(image, generator(seed)).permute(1, 2, 0).numpy() for seed in range(20)]
    assert any(np.array_equal(d, expected) for d in drawn)


def test_flip_happens_where_asked_and_never_where_not():
    image = picture(32, 32)
    flipped = np.array(image)[:, ::-1]
    never = TrainingTransform(32, crop_scale=(1.0, 1.0), flip=0.0)
    always = TrainingTransform(32, crop_scale=(1.0, 1.0), flip=1.0)
    difference = [
        np.abs(t(image, generator(1)).permute(1, 2, 0).numpy() - flipped.astype(int)).mean() for t in (never, always)
    ]
    assert difference[0] > 10 * max(difference[1], 0.5)


def test_global_generators_are_left_as_they_were():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    with seeded(99):
        torch.rand(4), random.random(), np.random.rand()
    TrainingTransform(32, vl_randaugment=True)(picture(), generator())
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


# ---- RandAugment -------------------------------------------------------------------------------------------------


def test_randaugment_has_the_official_operations():
    assert list(RANDAUGMENT) == [
        "Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness",
        "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("Identity", lambda i: i),
        ("AutoContrast", TF.autocontrast),
        ("Equalize", TF.equalize),
        ("Brightness", lambda i: TF.adjust_brightness(i, 1.36)),
        ("Sharpness", lambda i: TF.adjust_sharpness(i, 1.36)),
    ],
)
def test_colour_operations_equal_torchvision_at_level_7(name, reference):
    image = picture()
    assert np.array_equal(np.array(RANDAUGMENT[name](image, 7)), np.array(reference(image)))


@pytest.mark.parametrize(("name", "axis"), [("TranslateX", 1), ("TranslateY", 0)])
def test_translation_moves_by_7_pixels_either_way_with_grey_behind(name, axis):
    image = picture()
    pixels = np.array(image)
    seen = set()
    for seed in range(12):
        with seeded(seed):
            moved = np.array(RANDAUGMENT[name](image, 7))
        for shift in (7, -7):
            expected = np.roll(pixels, shift, axis=axis)
            gap = slice(0, 7) if shift > 0 else slice(-7, None)
            expected[(gap, slice(None)) if axis == 0 else (slice(None), gap)] = 128
            if np.array_equal(moved, expected):
                seen.add(shift)
    assert seen == {7, -7}


def test_shear_slides_rows_by_their_distance_from_the_top():
    image = Image.new("RGB", (60, 60))
    for y in range(60):
        image.putpixel((30, y), (255, 255, 255))
    sheared = np.array(affine(image, [[1, 0.2, 0], [0, 1, 0]]))[..., 0].astype(float)
    for y in (0, 10, 40):
        row = sheared[y].copy()
        row[row == 128] = 0
        assert (row * np.arange(60)).sum() / row.sum() == pytest.approx(30 + 0.2 * y, abs=0.1)


def test_rotation_is_counter_clockwise_around_the_middle():
    image = Image.new("RGB", (41, 41))
    image.putpixel((30, 20), (255, 255, 255))
    turned = np.array(rotate(image, 90))[..., 0].astype(float)
    turned[turned == 128] = 0
    y, x = np.unravel_index(turned.argmax(), turned.shape)
    # (W / 2, H / 2) = (20.5, 20.5): (30, 20) is 9.5 right and 0.5 above, and comes to 0.5 left and 9.5 above.
    assert (x, y) == (20, 11)


def test_randaugment_applies_each_of_two_operations_half_of_the_time():
    image = picture()
    pixels = np.array(image)
    changed = 0
    with seeded(3):
        for _ in range(600):
            changed += not np.array_equal(np.array(randaugment(image)), pixels)
    # P(change) = 1 - (1 - 0.5 * 9/10)^2 = 0.6975
    assert 0.63 < changed / 600 < 0.76


# ---- mixing ------------------------------------------------------------------------------------------------------


def test_mixing_is_repeatable_and_soft_targets_sum_to_one():
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    mixing = BatchMixing(4, erase=0.25, mixup=0.8, cutmix=1.0)
    first = mixing(images.clone(), labels, seed=3)
    again = mixing(images.clone(), labels, seed=3)
    other = mixing(images.clone(), labels, seed=4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.allclose(first[1].sum(dim=1), torch.ones(8))


def test_erasing_alone_keeps_the_labels():
    images, labels = torch.zeros(16, 3, 32, 32), torch.arange(16)
    out, same = BatchMixing(16, erase=1.0)(images.clone(), labels, seed=1)
    assert torch.equal(same, labels)
    share = (out != 0).any(dim=1).float().mean(dim=(1, 2))
    assert (share > 0.01).all()
    assert (share < 0.5).all()


def test_mixup_of_an_odd_batch_is_refused():
    with pytest.raises(BenchError, match="even size"):
        BatchMixing(4, mixup=0.8)(torch.zeros(3, 3, 8, 8), torch.zeros(3, dtype=torch.long), seed=0)


def test_derived_generators_differ_by_key_and_seed_and_repeat():
    draw = lambda seed, key: torch.rand(4, generator=derived(generator(seed), key)).tolist()  # noqa: E731
    assert draw(1, "a") == draw(1, "a")
    assert draw(1, "a") != draw(1, "b")
    assert draw(1, "a") != draw(2, "a")
    used = generator(1)
    torch.rand(5, generator=used)
    assert torch.rand(4, generator=derived(used, "a")).tolist() == draw(1, "a")
