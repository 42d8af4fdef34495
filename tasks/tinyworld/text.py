"""What people would say about a scene: captions in varied wording, as one raw sentence each."""

from __future__ import annotations

import re
from random import Random

from beit3_bench.tasks.tinyworld.scenes import CELLS, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun_phrase(rng: Random, thing: Thing, sized: float = 0.3) -> str:
    """``a (big) red circle``; the size is told with chance ``sized``."""
    words = f"{thing.color} {thing.shape}"
    if thing.size in SIZES and rng.random() < sized:
        words = f"{thing.size} {words}"
    return with_article(words)


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def relation(first: Thing, second: Thing) -> str:
    """Where the first thing is, seen from the second: a side if they differ in it, else above or below."""
    if first.left != second.left:
        return "to the left of" if first.left else "to the right of"
    return "above" if first.top else "below"


def caption(rng: Random, scene: Scene) -> str:
    """One sentence that names every thing by colour and shape; sizes, places and the background now and then."""
    sentence = _sentence(rng, scene)
    sentence = sentence[0].upper() + sentence[1:]
    return sentence + "." if rng.random() < 0.8 else sentence


def _sentence(rng: Random, scene: Scene) -> str:
    ground = f"on {with_article(scene.background + ' background')}"
    things = list(scene.things)
    phrases = [noun_phrase(rng, thing) for thing in things]
    if scene.crowd:
        thing = scene.crowd[0]
        phrases.append(f"a group of tiny {thing.color} {thing.shape}s")
        return rng.choice(
            [
                f"{_join(phrases)} {ground}",
                _join(phrases),
                f"there is {_join(phrases)}",
                f"a picture of {_join(phrases)}",
            ]
        )
    if not things:
        empty = with_article(f"{scene.background} background")
        return rng.choice([f"nothing but {empty}", f"an empty picture with {empty}", f"{empty} without any shapes"])
    if len(things) == 1:
        where = CELLS[things[0].cell]
        return rng.choice(
            [
                f"{phrases[0]} {ground}",
                f"there is only {phrases[0]} in the picture",
                f"a single {phrases[0].split(' ', 1)[1]} {ground}",
                f"{phrases[0]} in the {where} corner",
                f"one {phrases[0].split(' ', 1)[1]} at the {where} of the picture",
                f"a picture of {phrases[0]} alone",
            ]
        )
    joined = _join(phrases)
    if len(things) == 2:
        first, second = (0, 1) if rng.random() < 0.7 else (1, 0)
        side = relation(things[first], things[second])
        return rng.choice(
            [
                f"{joined} {ground}",
                f"{phrases[first]} {side} {phrases[second]}",
                f"{phrases[first]} is {side} {phrases[second]}",
                f"two shapes, {joined}",
                f"a picture of {joined}",
                f"there is {phrases[0]} and {phrases[1]} {ground}",
            ]
        )
    return rng.choice(
        [
            f"{joined} {ground}",
            f"three shapes, {joined}",
            f"a picture of {joined}",
            f"there is {phrases[0]} with {phrases[1]} and {phrases[2]}",
            f"{joined} are shown {ground}",
        ]
    )


def captions(rng: Random, scene: Scene, number: int) -> list[str]:
    """``number`` captions, different from each other as far as the wording allows."""
    said: list[str] = []
    for _ in range(6 * number):
        if len(said) == number:
            break
        sentence = caption(rng, scene)
        if sentence not in said:
            said.append(sentence)
    while len(said) < number:
        said.append(caption(rng, scene))
    return said


def words(sentence: str) -> list[str]:
    """The `tokens` of a Karpathy file: lower-case words without punctuation."""
    return re.findall(r"[a-z0-9]+", sentence.lower())
