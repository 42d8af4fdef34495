"""mAP@R, R-Precision and recall of queries with several right answers: by hand, and as plain loops over sorted lists give them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.tasks.metrics.precision_at_r import Positives, precision_at_r, recalls_at


def test_by_hand():
    """Right, wrong, right, wrong for R = 4: precisions 1 and 2/3 at the right places; what comes after the R-th place is no matter."""
    hits = np.array([[True, False, True, False, True], [False, True, True, True, True]])
    average, precision = precision_at_r(hits, np.array([4, 1]))
    assert average.tolist() == pytest.approx([(1 + 2 / 3) / 4, 0.0])
    assert precision.tolist() == pytest.approx([0.5, 0.0])
    assert recalls_at(hits, (1, 2)).tolist() == [[True, True], [False, True]]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 12))
def test_as_plain_loops(seed, queries, items):
    random = np.random.default_rng(seed)
    names = [f"i{n}" for n in range(items)]
    pool = [*names, "gone", "lost"]  # two that no gallery holds
    answers = {
        f"q{n}": [pool[k] for k in random.permutation(len(pool))[: random.integers(1, len(pool) + 1)]]
        for n in random.permutation(queries)[: random.integers(1, queries + 1)]
    }
    ranked = np.stack([random.permutation(items) for _ in range(queries)])
    positives = Positives.of(answers, {f"q{n}": n for n in range(queries)}, {name: n for n, name in enumerate(names)})
    hits = positives.hits(ranked)
    average, precision = precision_at_r(hits, positives.counts)
    for n, (query, right) in enumerate(answers.items()):
        found = [names[k] in right for k in ranked[int(query[1:])]]
        precisions = [sum(found[: r + 1]) / (r + 1) if r < items and found[r] else 0.0 for r in range(len(right))]
        assert average[n] == pytest.approx(sum(precisions) / len(right))
        assert precision[n] == pytest.approx(sum(found[: len(right)]) / len(right))
        assert recalls_at(hits, (1, 3))[n].tolist() == [found[0], any(found[:3])]
