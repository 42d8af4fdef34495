"""The ImageNet folder: ten classes under their WordNet ids, each one kind of (shape, colour, texture).

Tree below ``imagenet/``::

    train/n02165456/n02165456_17.JPEG        val/n02165456/ILSVRC2012_val_00000003.JPEG
    classnames.json                          (one name per class folder, in the folders' sorted order)
    templates.json                           (prompt templates with {} for the name)
"""

from __future__ import annotations

from beit3_bench.tasks.tinyworld.plan import Workshop, write_json
from beit3_bench.tasks.tinyworld.render import encode
from beit3_bench.tasks.tinyworld.scenes import COLORS, Rgb, sample_portrait

CLASSES: dict[str, tuple[str, str, Rgb, str]] = {
    "n02165456": ("ladybug, ladybeetle, lady beetle, ladybird, ladybird beetle", "circle", COLORS["red"], "dotted"),
    "n02317335": ("starfish, sea star", "star", COLORS["purple"], "plain"),
    "n02391049": ("zebra", "square", (250, 250, 250), "striped"),
    "n03530642": ("honeycomb", "square", COLORS["yellow"], "dotted"),
    "n03742115": ("medicine chest, medicine cabinet", "cross", COLORS["red"], "plain"),
    "n03792972": ("mountain tent", "triangle", COLORS["green"], "plain"),
    "n04209239": ("shower curtain", "square", COLORS["blue"], "striped"),
    "n07693725": ("bagel, beigel", "ring", COLORS["orange"], "plain"),
    "n07742313": ("Granny Smith", "circle", COLORS["green"], "plain"),
    "n11939491": ("daisy", "star", COLORS["yellow"], "plain"),
}
"""WordNet id -> (WordNet lemmas, shape, colour, texture)."""

TEMPLATES = ["a photo of a {}.", "a picture of the {}.", "a {}."]


def class_name(wnid: str) -> str:
    """The first lemma."""
    return CLASSES[wnid][0].split(", ")[0]


def write_imagenet(shop: Workshop) -> dict[str, int]:
    rng = shop.rng("imagenet")
    val_numbers = rng.sample(range(1, 50001), len(CLASSES) * shop.counts.imagenet_val_per_class)
    for wnid, (lemmas, shape, rgb, texture) in CLASSES.items():
        name = class_name(wnid)
        numbers = rng.sample(range(1, 20000), shop.counts.imagenet_train_per_class)
        train = [f"{wnid}_{number}.JPEG" for number in sorted(numbers)]
        val = [f"ILSVRC2012_val_{val_numbers.pop():08d}.JPEG" for _ in range(shop.counts.imagenet_val_per_class)]
        for split, filenames in (("train", train), ("val", val)):
            folder = shop.folder("imagenet", split, wnid)
            for i, filename in enumerate(filenames):
                scene = sample_portrait(rng, shape, name, rgb, texture)
                # The real set holds CMYK files and a PNG that is called .JPEG; so does this one.
                if split == "train" and i == 0 and name == "ladybug":
                    shop.painter.save_jpeg(scene, folder / filename, "CMYK")
                elif split == "train" and i == 0 and name == "bagel":
                    encode(shop.painter.picture(scene), folder / filename, "PNG")
                else:
                    shop.painter.save_jpeg(scene, folder / filename)
        prompts = [template.format(name) for template in TEMPLATES]
        # Repeated, so that the vocabulary gets pieces for them beside tens of thousands of captions.
        shop.text += [lemmas, *prompts] * 100
    write_json(shop.folder("imagenet") / "classnames.json", [class_name(wnid) for wnid in sorted(CLASSES)])
    write_json(shop.folder("imagenet") / "templates.json", TEMPLATES)
    total = len(CLASSES)
    return {"train": total * shop.counts.imagenet_train_per_class, "val": total * shop.counts.imagenet_val_per_class}
