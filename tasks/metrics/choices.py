"""Which of a few candidates scores highest: right or wrong per question, and shares of right ones by group.

Rule of ties: a candidate is chosen that scores strictly more than every other one, as in the official code of SugarCrepe (`main_eval.py`)
and Winoground (the data set's card); equal scores are wrong. A candidate that is the right one word for word is no other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from beit3_bench.tasks.scores import ClusterTable

CASES = "cases"


def best_texts(scores: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Whether every image of a question scores higher with its own text than with each other one: bool (n,).

    Args:
        scores: float (n, images, texts) of n questions; the own text of image i is text i.
        texts: int (n, texts), equal numbers for equal texts of a question.
    """
    images = np.arange(scores.shape[1])
    own = scores[:, images, images]
    other = texts[:, None, :] != texts[:, images][:, :, None]
    return ((scores < own[:, :, None]) | ~other).all(axis=(1, 2))


def best_images(scores: np.ndarray) -> np.ndarray:
    """Whether the own text of every image scores higher with it than with each other image: bool (n,); scores as of `best_texts`."""
    images = np.arange(scores.shape[1])
    own = scores[:, images, images]
    lower = scores[:, :, images] < own[:, None, :]
    return np.asarray((lower | np.eye(len(images), dtype=bool)).all(axis=(1, 2)))


def tied(scores: np.ndarray, texts: np.ndarray) -> int:
    """Questions of which an own text and another one score the same; arguments as of `best_texts`."""
    images = np.arange(scores.shape[1])
    other = texts[:, None, :] != texts[:, images][:, :, None]
    return int(((scores == scores[:, images, images][:, :, None]) & other).any(axis=(1, 2)).sum())


def choice_table(
    right: Mapping[str, np.ndarray], groups: Sequence[Sequence[str]], clusters: Sequence[str], names: Sequence[str]
) -> ClusterTable:
    """Counts per cluster. Columns ``cases`` and one per measure, and of every group ``cases/GROUP`` and ``MEASURE/GROUP``.

    Args:
        right: measure -> bool (n,).
        groups: of each question; those that are not among ``names`` have no columns.
        clusters: of each question.
    """
    place = {name: k for k, name in enumerate(names)}
    member = np.zeros((len(clusters), len(names)))
    for n, of_question in enumerate(groups):
        member[n, [place[name] for name in of_question if name in place]] = 1
    columns: dict[str, np.ndarray] = {CASES: np.ones(len(clusters))}
    columns |= {f"{CASES}/{name}": member[:, k] for name, k in place.items()}
    for measure, hits in right.items():
        columns[measure] = np.asarray(hits, dtype=np.float64)
        columns |= {f"{measure}/{name}": columns[measure] * member[:, k] for name, k in place.items()}
    return ClusterTable.collect(clusters, columns)


def choice_shares(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every measure of `choice_table`, overall and by group, as fractions (NaN for a group without a question); leading axes are kept."""
    shares = {}
    for name, value in sums.items():
        measure, _, group = name.partition("/")
        total = f"{CASES}/{group}" if group else CASES
        if measure != CASES and total in sums:
            with np.errstate(invalid="ignore", divide="ignore"):
                shares[name] = np.asarray(value / sums[total])
    return shares
