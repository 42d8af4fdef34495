"""Questions of compositionality for people: the pictures, and what each caption scored with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from beit3_bench.tasks.compositionality import Case, Questions, scores_of_cases
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Shown
from beit3_bench.tasks.display.breakdowns import Breakdown, by_kind, words_kind, words_of, words_order
from beit3_bench.tasks.reranking import row_id

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Row, Split, Task

EDGES = (6, 8, 10, 13, 17)


class QuestionDisplay(Display):
    """A sample is a question. Of a run that has both, scores are those that count, the match scores."""

    groups: ClassVar[Mapping[str, str]] = {
        "accuracy/": "By what was changed",
        "plain/accuracy/": "By what was changed, by cosine",
        "text/": "Text score by tag",
        "image/": "Image score by tag",
        "group/": "Group score by tag",
    }

    def __init__(self, task: Task, split: Split, rows: Mapping[str, Row], scores: Mapping[str, Mapping[str, float]]):
        super().__init__(task, split, rows, scores)
        whole: Questions = split.truth
        known = [case for case in whole.cases if self._has_rows(whole, case)]
        self.questions = whole.of(known)
        self.cases: dict[str, Case] = {case.id: case for case in self.questions.cases}
        self.examples = {case.id: self._example(case) for case in self.questions.cases}
        found = scores_of_cases(self.questions, rows) if known else {}
        self._scores = {name: dict(zip(self.cases, values, strict=True)) for name, values in found.items()}

    def _has_rows(self, questions: Questions, case: Case) -> bool:
        images = [questions.images[place] for place in case.images]
        texts = [questions.texts[place] for place in case.texts]
        return all(e.id in self.rows for e in (*images, *texts)) or all(row_id(e) in self.rows for e in images)

    def _example(self, case: Case) -> Example:
        """A question as one sample, with its pictures."""
        images = [self.questions.images[place] for place in case.images]
        paths = tuple(path for e in images for path in e.images)
        names = tuple(name for e in images for name in e.image_names)
        return Example(case.id, paths, self._texts(case)[0], case.cluster, names=names)

    def _texts(self, case: Case) -> list[str]:
        return [self.questions.texts[place].text or "" for place in case.texts]

    def _counted(self, name: str) -> np.ndarray:
        """Scores (images, texts) of a question, those that count."""
        return (self._scores.get("match") or self._scores["cosine"])[name]

    def finer(self, ids: Iterable[str]) -> Mapping[str, float]:
        """By how much the own text of the first picture scores more than the best other one."""
        return {name: float(scores[0] - scores[1:].max()) for name in ids if len(scores := self._counted(name)[0]) > 1}

    def said(self, ids: Sequence[str]) -> Mapping[str, str]:
        """The text that scores highest with the first picture."""
        return {
            name: self._texts(self.cases[name])[int(self._counted(name)[0].argmax())]
            for name in ids
            if name in self.cases
        }

    def truth(self, example: Example) -> str:
        """The own texts of the pictures."""
        case = self.cases[example.id]
        return "; ".join(self._texts(case)[: len(case.images)])

    def show(self, ids: Sequence[str]) -> list[Shown]:
        return [self._question(self.cases[name]) for name in ids]

    def _question(self, case: Case) -> Shown:
        texts = self._texts(case)
        several = len(case.images) > 1
        pictures = [
            Picture(path, f"Picture {number} that captions are compared with", str(number) if several else "")
            for number, path in enumerate(self.examples[case.id].images, 1)
        ]
        lines = [
            Line(name, "right" if hits[case.id] else "wrong", bool(hits[case.id]))
            for name, hits in self.scores.items()
            if case.id in hits
        ]
        listings = []
        for kind, title in (("match", "Match score"), ("cosine", "Cosine")):
            if kind not in self._scores:
                continue
            for number, scores in enumerate(self._scores[kind][case.id]):
                order = np.argsort(-scores, kind="stable").tolist()
                entries = [
                    Entry(
                        texts[k],
                        None,
                        f"{scores[k]:.3f}",
                        max(float(scores[k]), 0.0) if kind == "cosine" else None,
                        texts[k] == texts[number] or None,
                    )
                    for k in order
                ]
                where = f" with picture {number + 1}" if several else ""
                listings.append(Listing(f"{title}{where}", tuple(entries)))
        return Shown(case.id, texts[0], tuple(pictures), tuple(lines), tuple(listings), case.groups)

    def breakdowns(self) -> list[Breakdown]:
        name = self.samples().metric
        values = {i: value for i, value in self.scores.get(name, {}).items() if i in self.examples}
        lengths = {i: words_kind(words_of(self.examples[i].text), EDGES) for i in values}
        clusters = {i: self.examples[i].cluster for i in values}
        return by_kind("By length of the caption", name, "fraction", values, lengths, clusters, words_order(EDGES))
