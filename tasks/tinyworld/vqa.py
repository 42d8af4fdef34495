"""VQA v2 files of the COCO folder: questions with ten disagreeing answers.

Tree below ``coco/vqa/`` (pictures in ``coco/{train2014,val2014,test2015}``)::

    v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json
    v2_mscoco_{train2014,val2014}_annotations.json

test-dev2015 holds the questions of every other picture of test2015, as the official subset does of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld.plan import Workshop, write_json
from beit3_bench.tasks.tinyworld.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, Thing
from beit3_bench.tasks.tinyworld.text import with_article

_ALTERNATIVES = {
    "red": ("maroon", "dark red", "pink"),
    "green": ("lime green", "teal", "dark green"),
    "blue": ("navy", "dark blue", "light blue"),
    "yellow": ("gold", "cream", "bright yellow"),
    "purple": ("violet", "lavender", "magenta"),
    "orange": ("peach", "amber", "dark orange"),
    "gray": ("silver", "grey", "the wall's gray"),
    "white": ("off-white", "ivory", "white."),
    "tan": ("beige", "brown", "sand"),
    "black": ("dark", "charcoal", "night"),
    "circle": ("round", "the circle", "disk"),
    "square": ("box", "a square", "rectangle"),
    "triangle": ("pyramid", "the triangle", "cone"),
    "star": ("a star", "starfish", "spiky"),
    "ring": ("donut", "the ring", "loop"),
    "cross": ("plus sign", "a cross", "plus"),
    "yes": ("no", "i think so", "it's there"),
    "no": ("yes", "not here", "isn't there"),
    "left": ("on left", "the left side", "left side"),
    "right": ("on right", "the right side", "right side"),
    "0": ("zero", "none", "nothing"),
    "1": ("one", "2", "just 1"),
    "2": ("two", "3", "a pair"),
    "3": ("three", "2", "a few"),
}

_RARE_FIRST = (
    "quiet",
    "windy",
    "golden",
    "paper",
    "wooden",
    "frozen",
    "lonely",
    "summer",
    "distant",
    "folded",
    "hidden",
    "broken",
)
_RARE_SECOND = (
    "harbor",
    "garden",
    "kite",
    "village",
    "lantern",
    "bridge",
    "carnival",
    "window",
    "desert",
    "orchestra",
    "island",
    "engine",
)


@dataclass(frozen=True)
class Question:
    """question_type: the first words, as the official list of types has them; answer: what most people say."""

    question: str
    question_type: str
    answer_type: str
    answer: str


def _unique(scene: Scene, of: Callable[[Thing], str]) -> list[Thing]:
    values = [of(t) for t in scene.things]
    return [t for t in scene.things if values.count(of(t)) == 1]


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _color_of_shape(rng: Random, scene: Scene) -> Question | None:
    single = _unique(scene, lambda t: t.shape)
    if not single:
        return None
    thing = rng.choice(single)
    return Question(f"What color is the {thing.shape}?", "what color is the", "other", thing.color)


def _background(rng: Random, scene: Scene) -> Question | None:
    return Question("What color is the background?", "what color is the", "other", scene.background)


def _is_background(rng: Random, scene: Scene) -> Question | None:
    truth = rng.random() < 0.5
    color = scene.background if truth else rng.choice([c for c in BACKGROUNDS if c != scene.background])
    return Question(f"Is the background {color}?", "is the", "yes/no", _yes(truth))


def _shape_of_color(rng: Random, scene: Scene) -> Question | None:
    single = _unique(scene, lambda t: t.color)
    if not single:
        return None
    thing = rng.choice(single)
    return Question(f"What is the {thing.color} shape?", "what is the", "other", thing.shape)


def _count(rng: Random, scene: Scene) -> Question | None:
    return Question("How many shapes are there?", "how many", "number", str(len(scene.things)))


def _count_color(rng: Random, scene: Scene) -> Question | None:
    present = [t.color for t in scene.things]
    color = rng.choice(present) if present and rng.random() < 0.6 else rng.choice(tuple(COLORS))
    return Question(f"How many {color} shapes are there?", "how many", "number", str(present.count(color)))


def _there_is(rng: Random, scene: Scene) -> Question | None:
    truth = rng.random() < 0.5
    aspect = rng.choices(("color", "shape", "both"), weights=(45, 35, 20))[0]
    if aspect == "both":
        present = {t.kind for t in scene.things}
        options = [(c, s) for c in COLORS for s in SHAPES if ((c, s) in present) == truth]
        words = " ".join(rng.choice(options)) if options else ""
    elif aspect == "color":
        colors = {t.color for t in scene.things}
        options_one = [c for c in COLORS if (c in colors) == truth]
        words = f"{rng.choice(options_one)} shape" if options_one else ""
    else:
        shapes = {t.shape for t in scene.things}
        options_one = [s for s in SHAPES if (s in shapes) == truth]
        words = rng.choice(options_one) if options_one else ""
    if not words:
        return None
    # The official list has "is there a" but no "is there an": such a question falls to "is there".
    phrase = with_article(words)
    kind = "is there a" if phrase.startswith("a ") else "is there"
    return Question(f"Is there {phrase}?", kind, "yes/no", _yes(truth))


def _is_it(rng: Random, scene: Scene) -> Question | None:
    single = _unique(scene, lambda t: t.shape)
    if not single:
        return None
    thing, truth = rng.choice(single), rng.random() < 0.5
    color = thing.color if truth else rng.choice([c for c in COLORS if c != thing.color])
    return Question(f"Is the {thing.shape} {color}?", "is the", "yes/no", _yes(truth))


def _where(rng: Random, scene: Scene) -> Question | None:
    single = _unique(scene, lambda t: t.color)
    if not single:
        return None
    thing = rng.choice(single)
    return Question(f"Which side is the {thing.color} shape on?", "which", "other", "left" if thing.left else "right")


_KINDS = (
    (_is_background, 26),
    (_background, 20),
    (_there_is, 16),
    (_color_of_shape, 14),
    (_count, 12),
    (_shape_of_color, 4),
    (_is_it, 3),
    (_where, 3),
    (_count_color, 2),
)


def ask(rng: Random, scene: Scene, number: int, rare: float) -> list[Question]:
    """``number`` different questions about a scene; with chance ``rare`` one whose answer hardly anybody else gives."""
    asked: dict[str, Question] = {}
    makers, weights = zip(*_KINDS, strict=True)
    if rng.random() < rare:
        answer = f"{rng.choice(_RARE_FIRST)} {rng.choice(_RARE_SECOND)}"
        asked["rare"] = Question("What does the picture remind you of?", "what does the", "other", answer)
    while len(asked) < number:
        question = rng.choices(makers, weights=weights)[0](rng, scene)
        if question is not None:
            asked.setdefault(question.question, question)
    questions = list(asked.values())
    rng.shuffle(questions)
    return questions


def ten_answers(rng: Random, answer: str) -> list[dict[str, Any]]:
    """Ten people's answers: at least five say ``answer``, the others differ among themselves."""
    agreeing = rng.choices((10, 9, 8, 7, 6, 5), weights=(40, 22, 15, 10, 8, 5))[0]
    others = _ALTERNATIVES.get(answer, (f"a {answer}", "nothing", "unsure"))
    said = [answer] * agreeing + [others[i % len(others)] for i in range(10 - agreeing)]
    rng.shuffle(said)
    return [
        {
            "answer": words,
            "answer_confidence": rng.choices(("yes", "maybe", "no"), weights=(80, 15, 5))[0],
            "answer_id": i,
        }
        for i, words in enumerate(said, 1)
    ]


def _envelope(subset: str) -> dict[str, Any]:
    return {
        "info": {
            "description": "Tiny world in the layout of VQA v2.0.",
            "url": "",
            "version": "2.0",
            "year": 2017,
            "contributor": "beit3-bench",
            "date_created": "2017-04-26 17:07:13",
        },
        "data_type": "mscoco",
        "license": {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "name": "CC0 1.0"},
        "data_subtype": subset,
    }


def write_vqa(shop: Workshop) -> dict[str, int]:
    """Write questions and annotations for the pictures in ``shop.coco``; pictures with a crowd are not asked about."""
    counts: dict[str, int] = {}
    folder = shop.folder("coco", "vqa")
    for subset in ("train2014", "val2014", "test2015"):
        rng = shop.rng(f"vqa {subset}")
        questions: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        pictures = [p for p in shop.coco if p.subset == subset and not p.scene.crowd]
        for picture in pictures:
            number = rng.randint(4, 7) if picture.scene.things else 3
            for i, q in enumerate(ask(rng, picture.scene, number, rare=0.04)):
                ids = {"image_id": picture.id, "question_id": picture.id * 1000 + i}
                questions.append({"image_id": picture.id, "question": q.question, "question_id": ids["question_id"]})
                annotations.append(
                    {
                        "question_type": q.question_type,
                        "multiple_choice_answer": q.answer,
                        "answers": ten_answers(rng, q.answer),
                        **ids,
                        "answer_type": q.answer_type,
                    }
                )
        shop.text += [q["question"] for q in questions]
        rng.shuffle(questions)
        rng.shuffle(annotations)
        subsets = {subset: questions}
        if subset == "test2015":
            every_other = {p.id for p in pictures[::2]}
            subsets["test-dev2015"] = [q for q in questions if q["image_id"] in every_other]
        else:
            write_json(
                folder / f"v2_mscoco_{subset}_annotations.json", {**_envelope(subset), "annotations": annotations}
            )
        for name, kept in subsets.items():
            content = {**_envelope(name), "task_type": "Open-Ended", "questions": kept}
            write_json(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", content)
            counts[f"{name} questions"] = len(kept)
    return counts
