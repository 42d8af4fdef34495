"""Patches of every family that has them: of the whole image, in order, at the side that is asked for, and their mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native import invoke
from PIL import Image
from random_vilt import save_vilts
from run_requests import run_request

from beit3_bench.backbones.abilities import Item, Patches
from beit3_bench.backbones.registry import families, get_family
from beit3_bench.harness.models import Located, load_model
from beit3_bench.tasks.dense_probing import ImagePatches
from beit3_bench.tasks.probing import ImageEmbeddings

BEIT3 = ("retrieval", "imagenet-linear", "vqav2", "nlvr2", "coco-caption")
OTHERS = ("vlmo", "albef", "blip", "openclip", "vilt")


@pytest.fixture(scope="module")
def files(native, tmp_path_factory):
    """Family or BEiT-3's head -> a tiny checkpoint."""
    found = {head: str(native.checkpoints / f"{head}.pth") for head in BEIT3}
    for name in OTHERS[:-1]:
        folder = tmp_path_factory.mktemp(name)
        get_family(name).write_specimens(folder, ["a red square", "two blue circles"])
        found[name] = f"{name}:{folder / get_family(name).specimens['flickr30k']}"
    folder = tmp_path_factory.mktemp("vilt")
    found["vilt"] = f"vilt:{save_vilts(folder, native) / 'nlvr2.ckpt'}"
    return found


def loaded(native, source, image_size=None, means=False):
    if means:
        task, split = ImageEmbeddings(native.root("imagenet"), {"features": "patches"}), "val"
    else:
        task, split = ImagePatches(native.world), "train"
    request = run_request("probe", source, native.world, image_size=image_size)
    return load_model(Located.of(source), task, task.read(split), request)


def asked(model, *pictures):
    items = [Item(str(n), (Image.fromarray(picture),)) for n, picture in enumerate(pictures)]
    with torch.inference_mode():
        return [model.ability.checked(value) for value in model.ability.predict(model.ability.reader.collate(items))]


def two_pictures():
    """Noise, and the same that differs in row 1, column 3 of 4 x 4 parts alone."""
    plain = np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8)
    changed = plain.copy()
    changed[25:50, 150:] = 255 - changed[25:50, 150:]
    return plain, changed


@pytest.mark.parametrize("name", [*BEIT3, *OTHERS])
def test_patches_stand_where_they_are_in_the_whole_image(native, files, name):
    patch = 8 if name == "vilt" else 16
    model = loaded(native, files[name], image_size=4 * patch)
    assert isinstance(model.ability, Patches)
    plain, changed = asked(model, *two_pictures())
    assert plain.shape[:2] == (4, 4)
    apart = np.linalg.norm(plain - changed, axis=-1)
    assert np.unravel_index(apart.argmax(), apart.shape) == (1, 3)
    assert (model.card.image_size, model.card.protocol) == (4 * patch, "patch tokens")


@pytest.mark.parametrize("name", ["retrieval", *OTHERS])
def test_the_side_of_the_protocol_is_the_default(native, files, name):
    model = loaded(native, files[name])
    assert model.card.image_size == 512
    (grid,) = asked(model, two_pictures()[0])
    assert grid.shape[0] == grid.shape[1] == (64 if name == "vilt" else 32)


@pytest.mark.parametrize("name", OTHERS)
def test_a_mean_is_that_of_the_patches_at_the_files_own_size(native, files, name):
    means = loaded(native, files[name], means=True)
    size = means.card.image_size
    picture = two_pictures()[0][:, :100]  # a square, of which nothing is cut off
    (grid,) = asked(loaded(native, files[name], image_size=size), picture)
    (mean,) = asked(means, picture)
    expected = grid.mean(axis=(0, 1))
    assert means.card.protocol == "mean patch token"
    assert np.abs(mean - expected / np.linalg.norm(expected)).max() < 1e-5


@pytest.mark.parametrize("name", ["vlmo", "vilt"])
def test_the_classes_of_imagenet_are_told_by_patches_of_other_families(native, files, name):
    words = ["--checkpoint", files[name], "--data-root", native.root("imagenet"), "--on", "patches", "--limit", 20]
    done = invoke("probe", *words, "--device", "cpu", "--workers", 0)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("knn probe on patches")


def test_all_families_but_none_give_patches():
    assert [family.name for family in families() if Patches in family.abilities] == [
        "beit3",
        *sorted(OTHERS, key=_order),
    ]


def _order(name):
    return [family.name for family in families()].index(name)
