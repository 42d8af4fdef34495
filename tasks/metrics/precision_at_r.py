"""Queries that have several right answers: mAP@R, R-Precision and recall at K, of ranked lists.

R is the number of a query's right answers. R-Precision is the share of right ones among its first R; mAP@R averages the precisions at
those of the first R places that hold a right one, over R (Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.2). Equal
to `eccv_caption`, the package of ECCV Caption (Chun et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Positives:
    """The right answers of some queries.

    query: int64 (q,), places of the queries among all that could ask.
    pair_query, item: int64 (p,), of every right answer the number of its query in ``query``, and its place in the gallery; -1 for one
        that the gallery does not hold, which counts and cannot be found.
    """

    query: np.ndarray
    pair_query: np.ndarray
    item: np.ndarray

    @classmethod
    def of(
        cls, answers: Mapping[str, Iterable[str]], queries: Mapping[str, int], gallery: Mapping[str, int]
    ) -> Positives:
        """From names. answers: by query, each with one or more.  queries, gallery: places by name."""
        pairs = [(n, gallery.get(name, -1)) for n, names in enumerate(answers.values()) for name in names]
        pair_query, item = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return cls(np.array([queries[name] for name in answers], dtype=np.int64), pair_query, item)

    @property
    def counts(self) -> np.ndarray:
        """R of each query: int64 (q,)."""
        return np.bincount(self.pair_query, minlength=len(self.query))

    def hits(self, ranked: np.ndarray) -> np.ndarray:
        """Which places of ranked lists hold a right answer: bool (q, k).

        ranked: int64 (n, k), places in the gallery, best first, for all that could ask.
        """
        lists = ranked[self.query]
        size = max(int(lists.max(initial=0)), int(self.item.max(initial=0))) + 1
        known = self.item >= 0
        wanted = self.pair_query[known] * size + self.item[known]
        return np.isin(lists + size * np.arange(len(lists))[:, None], wanted)


def precision_at_r(hits: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP@R and R-Precision of each query, fractions (q,).

    Args:
        hits: bool (q, k), as far as the longest R, or as the gallery.  counts: int (q,), R, 1 or more.
    """
    places = np.arange(1, hits.shape[1] + 1)
    counted = hits & (places <= counts[:, None])
    found = np.cumsum(counted, axis=1)
    return (counted * found / places).sum(axis=1) / counts, counted.sum(axis=1) / counts


def recalls_at(hits: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
    """Whether a right answer is among the first K, for each K: bool (q, len(cuts))."""
    return np.stack([hits[:, :k].any(axis=1) for k in cuts], axis=1)
