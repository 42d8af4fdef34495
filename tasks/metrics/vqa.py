r"""Official VQA accuracy (VQA v1/v2), per question, answer type and question type.

Matches PythonEvaluationTools/vqaEvaluation/vqaEval.py of GT-Vision-Lab/VQA, version 2, its quirks included:

* Line breaks and tabs become spaces and the ends are stripped, always. Everything else (punctuation, lower case, number
  words, articles, contractions) is normalised only if the human answers are not all the same string; with unanimous
  humans "Yes" does not match "yes".
* Punctuation marks are deleted if any of them touches a space in that string, each mark for itself, or if the string
  holds a comma between digits, then all of them; otherwise they become spaces.
* A period is deleted unless a digit follows, but only the first 32 of a string: the official code hands ``re.UNICODE``
  (32) to ``sub`` as its count. A look-behind for digits is misspelt there and never holds.
* The accuracy is the mean over leaving out each human answer of min(matches among the others / 3, 1); "the others" are
  the records that differ from it as a whole. With ten distinct records one match scores 30, not 33.

The training target is another thing, see `soft_score`, and so is the normalisation of the answer vocabulary, see
`normalize_multiple_choice`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable

OVERALL = "vqa_accuracy"

_PUNCTUATION = ';/[]"{}()=+\\_->@`<,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_AT_MOST = 32
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# The official table maps a form that lacks one of its apostrophes to the full form, and has one entry the other way
# round. Its keys with a capital I can never be met (words are in lower case by then) and are left out.
_CONTRACTIONS = {w[:i] + w[i + 1 :]: w for w in _CONTRACTED.split() for i, c in enumerate(w) if c == "'"} | {
    "somebody'd": "somebodyd"
}


def soft_score(count: int) -> float:
    """Training target of an answer that ``count`` of ten humans gave: 0, 0.3, 0.6, 0.9, then 1 (fraction).

    Not the metric: the target knows no normalisation and no other humans.
    """
    if count < 0:
        raise BenchError(f"an answer cannot be given {count} times")
    return (0.0, 0.3, 0.6, 0.9, 1.0)[min(count, 4)]


def clean_answer(text: str) -> str:
    """What is always done to an answer, human or predicted: no line breaks, no tabs, no spaces at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


_cleaned = lru_cache(maxsize=1 << 18)(clean_answer)
"""Of a string: people give the same answers again and again."""


@lru_cache(maxsize=1 << 18)
def normalize_answer(text: str) -> str:
    """The normalisation of the metric: punctuation, then lower case, number words, articles and contractions."""
    return _words(_punctuation(text))


def normalize_multiple_choice(text: str) -> str:
    """The normalisation of the answer vocabulary (``normalize_word`` of the official BEiT-3 code).

    As `normalize_answer`, then without the commas that are left.
    """
    return normalize_answer(text).replace(",", "")


@dataclass(frozen=True)
class HumanAnswers:
    """What people answered to a question, made ready for any number of predictions.

    records: as the annotation file has them, or plain strings.  texts: of each, normalised unless they are ``unanimous``.
    distinct: whether each record differs from all others.
    """

    records: Sequence[Mapping[str, Any] | str]
    texts: list[str]
    unanimous: bool
    distinct: bool

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any] | str]) -> HumanAnswers:
        """Args:
            records: with ``answer``, ``answer_id`` and ``answer_confidence``, of which equal ones are left out together; or plain strings,
                each of which stands for a record of its own.

        Raises:
            BenchError: no answers, or something that is not a string.
        """
        if not records:
            raise BenchError("a question without human answers cannot be scored")
        try:
            given = [a if isinstance(a, str) else a["answer"] for a in records]
            texts = list(map(_cleaned if set(map(type, given)) == {str} else clean_answer, given))
        except (AttributeError, KeyError, TypeError) as error:
            raise BenchError(f"human answers: {_EXPECTED} ({error})") from error
        unanimous = len(set(texts)) == 1
        texts = texts if unanimous else list(map(normalize_answer, texts))
        return cls(records, texts, unanimous, _all_distinct(records))

    def accuracy(self, prediction: str) -> float:
        """Of one prediction, as it is handed in: a fraction.

        Raises:
            BenchError: it is not a string.
        """
        try:
            prediction = clean_answer(prediction)
        except (AttributeError, TypeError) as error:
            raise BenchError(f"prediction {prediction!r}: {_EXPECTED} ({error})") from error
        if not self.unanimous:
            prediction = normalize_answer(prediction)
        matches, count = self.texts.count(prediction), len(self.texts)
        if not matches:
            return 0.0
        if self.distinct:
            thirds = matches * min(matches - 1, 3) + (count - matches) * min(matches, 3)
        else:
            records = [
                text if isinstance(a, str) else {**a, "answer": text}
                for text, a in zip(self.texts, self.records, strict=True)
            ]
            right = [record for record, text in zip(records, self.texts, strict=True) if text == prediction]
            thirds = sum(min(sum(r != left_out for r in right), 3) for left_out in records)
        return thirds / (3 * count)


_EXPECTED = "expected strings and records with the key 'answer'"


def vqa_accuracy(prediction: str, answers: Sequence[Mapping[str, Any] | str]) -> float:
    """Accuracy of one prediction, a fraction; see `HumanAnswers`.

    Raises:
        BenchError: no answers, or something that is not a string.
    """
    return HumanAnswers.of(answers).accuracy(prediction)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction is one of the answers, all of them normalised as the metric does.

    Ours, for questions with another number of answers than ten, where leaving out each in turn says nothing: a right answer to
    a question that has one would score 0.
    """
    return normalize_answer(clean_answer(prediction)) in {normalize_answer(clean_answer(a)) for a in answers}


class ManyHumanAnswers:
    """What people answered to many questions, as numbers in columns: the accuracies of `HumanAnswers`, a hundred thousand at a time.

    Of the answers of all questions few differ, and each that is one object is looked at once. Questions with another number of answers
    than most, or with records that do not differ by their ids, are left to `HumanAnswers`.
    """

    def __init__(self, answers: Sequence[Sequence[Mapping[str, Any] | str]]):
        self.answers = answers
        counts = [len(records) for records in answers]
        self.count = max(Counter(filter(None, counts)).items(), key=itemgetter(1), default=(1, 0))[0]
        self.rows = np.flatnonzero(np.array(counts) == self.count)
        alike = [record for row in self.rows.tolist() for record in answers[row]]
        identities = np.fromiter(map(id, alike), dtype=np.int64, count=len(alike))
        _, first, number = np.unique(identities, return_index=True, return_inverse=True)
        self._codes: dict[str, int] = {}
        self._codes_of: dict[str, tuple[int, int]] = {}
        ids: dict[Any, int] = {position: position for position in range(self.count)}
        looked_at = np.array([self._look_at(alike[place], ids) for place in first.tolist()], dtype=np.int64).reshape(
            -1, 3
        )
        cleaned, normalized, known = looked_at[number].reshape(-1, self.count, 3).transpose(2, 0, 1)
        self.unanimous = (cleaned == cleaned[:, :1]).all(axis=1)
        self.texts = np.where(self.unanimous[:, None], cleaned, normalized)
        known = np.sort(np.where(known == _BY_PLACE, np.arange(self.count), known), axis=1)
        distinct = (known >= 0).all(axis=1) & (known[:, 1:] != known[:, :-1]).all(axis=1)
        self.left = sorted({*range(len(answers))} - set(self.rows[distinct].tolist()))
        self.rows, self.unanimous, self.texts = self.rows[distinct], self.unanimous[distinct], self.texts[distinct]

    def _look_at(self, record: Mapping[str, Any] | str, ids: dict[Any, int]) -> tuple[int, int, int]:
        """Codes of the cleaned text, of the normalised text and of the record's id (`_BY_PLACE`: it has none; `_UNKNOWN`: left)."""
        text: Any
        if isinstance(record, str):
            text, own = record, _BY_PLACE
        elif isinstance(record, Mapping):
            text, known = record.get("answer"), record.get("answer_id")
            own = ids.setdefault(known, len(ids)) if isinstance(known, (int, str)) else _UNKNOWN
        else:
            return _UNKNOWN, _UNKNOWN, _UNKNOWN
        if type(text) is not str:
            return _UNKNOWN, _UNKNOWN, _UNKNOWN
        cleaned = _cleaned(text)
        known_as = self._codes_of.get(cleaned)
        if known_as is None:
            known_as = self._codes_of[cleaned] = self._code(cleaned), self._code(normalize_answer(cleaned))
        return *known_as, own

    def _code(self, text: str) -> int:
        return self._codes.setdefault(text, len(self._codes))

    def accuracies(self, predictions: Sequence[str]) -> np.ndarray:
        """Of a prediction per question, as they are handed in: float64 (n,), fractions.

        Raises:
            BenchError: something is not a string, or a question has no answers.
        """
        left = [row for row in self.rows.tolist() if type(predictions[row]) is not str] + self.left
        values = np.zeros(len(self.answers))
        cleaned = [_cleaned(str(predictions[row])) for row in self.rows.tolist()]
        codes = np.array(
            [
                self._codes.get(text if same else normalize_answer(text), _UNKNOWN)
                for text, same in zip(cleaned, self.unanimous.tolist(), strict=True)
            ],
            dtype=np.int64,
        )
        matches = (self.texts == codes[:, None]).sum(axis=1)
        thirds = matches * np.minimum(matches - 1, 3) + (self.count - matches) * np.minimum(matches, 3)
        values[self.rows] = thirds / (3 * self.count)
        for row in sorted(left):
            values[row] = HumanAnswers.of(self.answers[row]).accuracy(predictions[row])
        return values


_BY_PLACE, _UNKNOWN = -1, -2


def vqa_accuracies(
    predictions: Sequence[str], answers: ManyHumanAnswers | Sequence[Sequence[Mapping[str, Any] | str]]
) -> np.ndarray:
    """`vqa_accuracy` of every question: float64 (n,), fractions.

    Raises:
        BenchError: no questions, or another number of predictions than of questions.
    """
    questions = len(answers.answers) if isinstance(answers, ManyHumanAnswers) else len(answers)
    if len(predictions) != questions or not questions:
        raise BenchError(f"{len(predictions)} predictions for {questions} questions; give one for each")
    humans = answers if isinstance(answers, ManyHumanAnswers) else ManyHumanAnswers(answers)
    return humans.accuracies(predictions)


def vqa_metrics(accuracies: np.ndarray, answer_types: Sequence[str], question_types: Sequence[str]) -> dict[str, float]:
    """``vqa_accuracy``, ``vqa_accuracy/<answer type>``, ``vqa_accuracy/question_type/<type>``, in percent."""
    table = vqa_table(accuracies, answer_types, question_types, [""] * len(accuracies))
    return {name: float(value) for name, value in estimate_vqa(table.sums()).items()}


def vqa_table(
    accuracies: np.ndarray, answer_types: Sequence[str], question_types: Sequence[str], clusters: Sequence[str]
) -> ClusterTable:
    """Per cluster (the image) and metric: column ``<metric name>`` (n, 2) holds sum of accuracies and questions."""
    total = len(accuracies)
    if not (total == len(answer_types) == len(question_types) == len(clusters)) or not total:
        raise BenchError(
            f"{total} accuracies, {len(answer_types)} answer types, {len(question_types)} question types and "
            f"{len(clusters)} clusters; give one of each for every question, and at least one question"
        )
    ids = {name: row for row, name in enumerate(dict.fromkeys(clusters))}
    kinds = [
        [f"{OVERALL}/{kind}" for kind in answer_types],
        [f"{OVERALL}/question_type/{kind}" for kind in question_types],
    ]
    names = {name: i for i, name in enumerate(dict.fromkeys([OVERALL, *sorted(set(kinds[0])), *sorted(set(kinds[1]))]))}
    row = np.fromiter((ids[c] for c in clusters), dtype=np.int64, count=total) * len(names)
    sums = np.zeros((2, len(ids) * len(names)))
    for member in ([OVERALL] * total, *kinds):
        cell = row + np.fromiter((names[name] for name in member), dtype=np.int64, count=total)
        sums[0] += np.bincount(cell, weights=accuracies, minlength=sums.shape[1])
        sums[1] += np.bincount(cell, minlength=sums.shape[1])
    cells = sums.reshape(2, len(ids), len(names))
    return ClusterTable(list(ids), {name: np.ascontiguousarray(cells[:, :, i].T) for name, i in names.items()})


def estimate_vqa(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Percentages from the column sums of `vqa_table`; leading axes are kept, a kind without questions is NaN."""
    with np.errstate(invalid="ignore"):
        return {name: 100 * np.asarray(pair[..., 0] / pair[..., 1]) for name, pair in sums.items()}


def answer_vocabulary(answers: Sequence[str], at_least: int = 9) -> list[str]:
    """The official answer vocabulary from ``multiple_choice_answer`` of the training annotations, in their order.

    Normalised answers that occur at least ``at_least`` times, in order of first appearance; 3,129 on VQA v2 train then
    val. The order decides what the outputs of a released head mean.
    """
    counts = multiple_choice_counts(answers)
    return [answer for answer, count in counts.items() if count >= at_least]


def multiple_choice_counts(answers: Iterable[str]) -> dict[str, int]:
    """How often each normalised answer occurs, in order of first appearance."""
    counts: dict[str, int] = {}
    for answer, count in Counter(answers).items():  # few of them differ
        normalized = normalize_multiple_choice(answer)
        counts[normalized] = counts.get(normalized, 0) + count
    return counts


def _all_distinct(answers: Sequence[Mapping[str, Any] | str]) -> bool:
    """Whether each record differs from all others, judged by their ids; strings stand for a record each."""
    ids = [position if isinstance(a, str) else a.get("answer_id") for position, a in enumerate(answers)]
    named = set(map(type, ids)) <= {int, str} or all(isinstance(i, (int, str)) for i in ids)
    return named and len(set(ids)) == len(ids)


def _punctuation(text: str) -> str:
    all_go = _COMMA_IN_NUMBER.search(text) is not None
    present = [mark for mark in _PUNCTUATION if mark in text]
    if present:
        table = {ord(m): "" if all_go or f"{m} " in text or f" {m}" in text else " " for m in present}
        text = text.translate(table)
    return _PERIOD.sub("", text, count=_PERIODS_AT_MOST)


def _words(text: str) -> str:
    numbered = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)
