"""Recipes: the published numbers are what the files say, and a typing error does not pass."""

from __future__ import annotations

import pytest
from beit3_recipes import load_recipe, recipe_names

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.family import BEiT3Family
from beit3_bench.errors import BenchError

TASKS = ["flickr30k", "coco-retrieval", "imagenet", "imagenet-linear", "vqav2", "nlvr2", "coco-caption", "snli-ve"]

# lr base, lr large, layer decay base, large, epochs, warm-up, drop path base, large, weight decay, batch, image size:
# the table of released recipes in the published numbers.
RELEASED = {
    "imagenet-linear": (7e-4, 2e-4, 0.65, 0.8, 50, 5, 0.15, 0.25, 0.05, 1024, 224),
    "vqav2": (3e-5, 2e-5, 1.0, 1.0, 10, 1, 0.1, 0.15, 0.01, 128, 480),
    "nlvr2": (7e-4, 3e-4, 0.65, 0.85, 20, 5, 0.2, 0.2, 0.2, 256, 224),
    "coco-caption": (4e-5, 8e-6, 1.0, 1.0, 10, 1, 0.1, 0.1, 0.05, 256, 480),
    "coco-retrieval": (2e-4, 5e-5, 0.65, 0.85, 15, 3, 0.2, 0.2, 0.05, 3072, 384),
    "flickr30k": (1e-4, 5e-5, 0.65, 0.85, 20, 5, 0.2, 0.2, 0.05, 3072, 384),
}


@pytest.mark.parametrize("task", RELEASED)
def test_released_recipes_are_the_published_ones(task):
    base, large = load_recipe(task, "base"), load_recipe(task, "large")
    lr_b, lr_l, decay_b, decay_l, epochs, warmup, drop_b, drop_l, weight_decay, batch, size = RELEASED[task]
    assert (base.lr, large.lr, base.layer_decay, large.layer_decay) == (lr_b, lr_l, decay_b, decay_l)
    assert (base.drop_path, large.drop_path) == (drop_b, drop_l)
    for recipe in (base, large):
        assert (recipe.epochs, recipe.warmup_epochs, recipe.weight_decay, recipe.batch, recipe.image_size) == (
            epochs, warmup, weight_decay, batch, size,
        )  # fmt: skip
        assert recipe.betas == ((0.9, 0.98) if task == "vqav2" else (0.9, 0.999))
        assert (recipe.eps, recipe.min_lr, recipe.clip_grad) == (1e-8, 1e-6, 0)


def test_single_published_values():
    assert load_recipe("vqav2", "base").head_lr_factor == 20
    assert load_recipe("vqav2", "large").vl_randaugment
    caption = load_recipe("coco-caption", "base")
    assert (caption.mask_prob, caption.text_tokens, caption.vl_randaugment) == (0.7, 32, True)
    assert load_recipe("coco-caption", "base-nocaps").lr == 1e-5
    assert load_recipe("nlvr2", "base-indomain").lr == 5e-4
    assert load_recipe("nlvr2", "large-indomain").lr == 1e-4
    linear = load_recipe("imagenet-linear", "large")
    assert (linear.mixup, linear.cutmix, linear.erase, linear.auto_augment) == (0.8, 1.0, 0.25, "rand-m9-mstd0.5-inc1")
    giant = load_recipe("coco-caption", "giant")
    assert (giant.steps, giant.warmup_steps, giant.image_size, giant.lr) == (16000, 1600, 392, 8e-6)
    assert load_recipe("imagenet", "giant-intermediate").betas == (0.9, 0.98)


@pytest.mark.parametrize("task", TASKS)
def test_every_section_loads_and_fits_its_preset(task):
    names = recipe_names(task)
    assert {"tiny", "base", "large"} <= set(names)
    for name in names:
        recipe = load_recipe(task, name)
        preset = BEiT3Config.preset(name.split("-")[0])
        assert recipe.image_size % preset.patch_size == 0
        assert recipe.layer_decay == 1.0 or not recipe.head_lr_factor


@pytest.mark.parametrize("task", ["flickr30k", "coco-retrieval", "vqav2", "nlvr2", "coco-caption"])
def test_tiny_recipes_do_not_flip_where_texts_say_left_and_right(task):
    assert load_recipe(task, "tiny").flip == 0.0


def test_overrides_convert():
    recipe = load_recipe(
        "vqav2",
        "base",
        {"lr": "1e-3", "betas": "0.8,0.95", "vl-randaugment": "no", "batch": "32", "validation_split": "x"},
    )
    assert (recipe.lr, recipe.betas, recipe.vl_randaugment, recipe.batch, recipe.validation_split) == (
        1e-3,
        (0.8, 0.95),
        False,
        32,
        "x",
    )


@pytest.mark.parametrize(
    ("task", "name", "overrides", "message"),
    [
        ("nocaps", "base", {}, "no fine-tuning recipe"),
        ("vqav2", "bas", {}, "did you mean 'base'"),
        ("vqav2", "base", {"layer_deca": "1"}, "did you mean 'layer_decay'"),
        ("vqav2", "base", {"lr": "fast"}, "'fast' is not a number"),
        ("vqav2", "base", {"lr": "nan"}, "'nan' is not a number"),
        ("vqav2", "base", {"batch": "1.5"}, "not a whole number"),
        ("vqav2", "base", {"batch": "0"}, "from 1 to"),
        ("vqav2", "base", {"betas": "0.9"}, "pair of numbers"),
        ("vqav2", "base", {"betas": "0.9,1.5"}, "both lie in"),
        ("vqav2", "base", {"vl_randaugment": "perhaps"}, "true or false"),
        ("vqav2", "base", {"crop_scale": "0.9,0.5"}, "crop_scale"),
        ("vqav2", "base", {"epochs": "0"}, "both 0"),
        ("vqav2", "base", {"lr": "1e-9"}, "below min_lr"),
        ("vqav2", "base", {"drop_path": "1"}, "from 0 to 0.99"),
    ],
)
def test_a_wrong_recipe_is_named(task, name, overrides, message):
    with pytest.raises(BenchError, match=message):
        load_recipe(task, name, overrides)


def test_the_tasks_with_recipes_are_named():
    assert set(BEiT3Family().recipe_tasks()) == {*TASKS, "coco-det", "ade20k-seg"}
    with pytest.raises(
        BenchError, match=r"fine-tune one of: ade20k-seg, coco-caption, coco-det, .*, nlvr2, snli-ve, vqav2$"
    ):
        load_recipe("nocaps", "base")
