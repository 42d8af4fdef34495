"""VQAv2 for people: the question, the answer, and what ten people answered, each with its score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Shown, listed
from beit3_bench.tasks.display.breakdowns import Breakdown, by_kind, confusions, words_kind, words_of, words_order
from beit3_bench.tasks.metrics.vqa import OVERALL, clean_answer, normalize_answer, vqa_accuracy

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row

EDGES = (4, 5, 6, 7, 9)
"""Words of a question: quartiles of VQAv2 lie at 5, 6 and 7."""


class VQADisplay(Display):
    """Answers are counted as the metric compares them."""

    groups: ClassVar[Mapping[str, str]] = {
        f"{OVERALL}/question_type/": "By question type",
        f"{OVERALL}/": "By answer type",
    }

    def truth(self, example: Example) -> str:
        """What people answered, and how many of them."""
        return "" if example.target is None else listed(_cleaned(example))

    def shown(self, example: Example, row: Row) -> Shown:
        target, said = example.target, str(row["answer"])
        value = self.scores.get(OVERALL, {}).get(example.id)
        lines = [Line("answer", said, None if value is None else value > 0)]
        listings: list[Listing] = []
        classes: tuple[str, ...] = ()
        if target is not None:
            answers, counts = target["answers"], Counter(_cleaned(example))
            same = {text for text in counts if _same(text, said, len(counts) > 1)}
            entries = tuple(
                Entry(
                    text,
                    value=f"{count} × · scores {100 * vqa_accuracy(text, answers):.0f}",
                    share=count / len(answers),
                    good=True if text in same else None,
                )
                for text, count in counts.most_common()
            )
            listings.append(Listing(f"{len(answers)} human answers", entries, None))
            classes = (target["answer_type"], target["question_type"])
        picture = Picture(example.images[0], f"Picture of the question: {example.text}")
        return Shown(example.id, example.text or "", (picture,), tuple(lines), tuple(listings), classes)

    def breakdowns(self) -> list[Breakdown]:
        values = self.scores.get(OVERALL, {})
        examples = [self.examples[i] for i in values if i in self.examples]
        clusters = {e.id: e.cluster for e in examples}
        lengths = {e.id: words_kind(words_of(e.text), EDGES) for e in examples}
        yes_no = [
            (e.cluster, right, said)
            for e in examples
            if (right := normalize_answer(e.target["multiple_choice_answer"])) in ("yes", "no")
            and (said := normalize_answer(str(self.rows[e.id]["answer"]))) in ("yes", "no")
        ]
        return [
            *by_kind(
                "By length of the question", "VQA accuracy", "percent", values, lengths, clusters, words_order(EDGES)
            ),
            *([] if len({right for _, right, _ in yes_no}) < 2 else confusions(yes_no)),
        ]


def _cleaned(example: Example) -> list[str]:
    return [clean_answer(given["answer"]) for given in example.target["answers"]]


def _same(human: str, said: str, normalised: bool) -> bool:
    """As `vqa_accuracy` compares: unanimous answers as they stand, others normalised."""
    said = clean_answer(said)
    return normalize_answer(human) == normalize_answer(said) if normalised else human == said
