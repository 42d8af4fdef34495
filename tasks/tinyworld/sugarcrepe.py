"""SugarCrepe about the pictures of val2017: ``sugarcrepe/add_att.json`` and the six other files, in the COCO folder.

Captions say less than all of a scene, as people do: of the things that stand in it one or two, and where they are. The changed caption is
false of the picture, so that a model that knows colours, shapes and places answers every question.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from beit3_bench.tasks.tinyworld.plan import Workshop, write_json
from beit3_bench.tasks.tinyworld.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, Thing
from beit3_bench.tasks.tinyworld.text import relation, with_article

OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
Pair = tuple[str, str]


def _kind(color: str, shape: str) -> str:
    return with_article(f"{color} {shape}")


def _phrase(thing: Thing) -> str:
    return _kind(thing.color, thing.shape)


def _absent(rng: Random, scene: Scene) -> tuple[str, str]:
    """Colour and shape of a thing that the scene does not show, of a shape that it does not show either."""
    shown = {thing.shape for thing in (*scene.things, *scene.crowd)}
    return rng.choice(tuple(COLORS)), rng.choice([shape for shape in SHAPES if shape not in shown])


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _ground(background: str) -> str:
    return f"on {with_article(f'{background} background')}"


def _two(scene: Scene) -> tuple[Thing, Thing] | None:
    return (scene.things[0], scene.things[1]) if len(scene.things) > 1 else None


def add_att(rng: Random, scene: Scene) -> Pair | None:
    """A background is added that is another one."""
    thing = scene.things[0]
    other = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    return _phrase(thing), f"{_phrase(thing)} {_ground(other)}"


def add_obj(rng: Random, scene: Scene) -> Pair | None:
    """A thing is added that is not there."""
    thing = _phrase(scene.things[0])
    return thing, f"{thing} and {_kind(*_absent(rng, scene))}"


def replace_att(rng: Random, scene: Scene) -> Pair | None:
    """Another colour, which nothing in the scene has."""
    thing = scene.things[0]
    shown = {one.color for one in (*scene.things, *scene.crowd)}
    other = rng.choice([color for color in COLORS if color not in shown])
    return f"{_phrase(thing)} {_ground(scene.background)}", f"{_kind(other, thing.shape)} {_ground(scene.background)}"


def replace_obj(rng: Random, scene: Scene) -> Pair | None:
    """Another shape, which nothing in the scene has."""
    thing = scene.things[0]
    _, shape = _absent(rng, scene)
    return f"{_phrase(thing)} {_ground(scene.background)}", f"{_kind(thing.color, shape)} {_ground(scene.background)}"


def replace_rel(rng: Random, scene: Scene) -> Pair | None:
    """The opposite side."""
    two = _two(scene)
    if two is None:
        return None
    first, side, second = _phrase(two[0]), relation(*two), _phrase(two[1])
    return f"{first} {side} {second}", f"{first} {OPPOSITE[side]} {second}"


def swap_att(rng: Random, scene: Scene) -> Pair | None:
    """Two things with each other's colours, of which there are none."""
    two = _two(scene)
    if two is None or two[0].color == two[1].color or two[0].shape == two[1].shape:
        return None
    first, second = two
    swapped = (second.color, first.shape), (first.color, second.shape)
    if {thing.kind for thing in (*scene.things, *scene.crowd)}.intersection(swapped):
        return None
    return f"{_phrase(first)} and {_phrase(second)}", f"{_kind(*swapped[0])} and {_kind(*swapped[1])}"


def swap_obj(rng: Random, scene: Scene) -> Pair | None:
    """Two things in each other's places."""
    two = _two(scene)
    if two is None:
        return None
    first, side, second = _phrase(two[0]), relation(*two), _phrase(two[1])
    return f"{first} {side} {second}", f"{second} {side} {first}"


CHANGES: dict[str, Callable[[Random, Scene], Pair | None]] = {
    change.__name__: change for change in (add_att, add_obj, replace_att, replace_obj, replace_rel, swap_att, swap_obj)
}


def write_sugarcrepe(shop: Workshop) -> dict[str, int]:
    """One question of each kind for every picture that it can be asked about; after `coco.write_coco`."""
    pictures = [p for p in shop.coco if p.split in ("val", "test") and p.scene.things]
    folder, counts = shop.folder("coco", "sugarcrepe"), {}
    for name, change in CHANGES.items():
        rng = shop.rng(f"sugarcrepe {name}")
        records = []
        for picture in pictures:
            pair = change(rng, picture.scene)
            if pair is not None:
                caption, negative = map(_sentence, pair)
                records.append({"filename": picture.filename_2017, "caption": caption, "negative_caption": negative})
        write_json(folder / f"{name}.json", {str(n): record for n, record in enumerate(records)})
        counts[name] = len(records)
    return counts
