"""k-NN probing against a loop over neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics import knn
from beit3_bench.tasks.metrics.knn import knn_ranks, nearest_neighbours


def made_up(n, m, dim, classes, seed):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dim))
    labels, wanted = generator.integers(0, classes, n), generator.integers(0, classes, m)
    gallery = (centres[labels] + generator.normal(size=(n, dim))) * generator.uniform(0.1, 9, (n, 1))
    queries = centres[wanted] + generator.normal(size=(m, dim))
    return gallery.astype(np.float32), labels, queries.astype(np.float32), wanted


def by_hand(gallery, labels, queries, wanted, classes, k, temperature):
    gallery, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (gallery, queries))
    ranks = []
    for query, right in zip(queries, wanted, strict=True):
        cosines = gallery @ query
        votes = np.zeros(classes)
        for i in np.argsort(-cosines)[:k]:
            votes[labels[i]] += np.exp(cosines[i] / temperature)
        ahead = [c for c in range(classes) if votes[c] > votes[right] or (votes[c] == votes[right] and c < right)]
        ranks.append(1 + len(ahead) if votes[right] > 0 else classes + 5)
    return np.array(ranks)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60),
    m=st.integers(1, 20),
    classes=st.integers(1, 8),
    k=st.integers(1, 70),
    temperature=st.sampled_from([0.07, 1.0]),
    seed=st.integers(0, 5),
)
def test_votes_equal_those_of_a_loop_for_any_block_size(n, m, classes, k, temperature, seed):
    gallery, labels, queries, wanted = made_up(n, m, 6, classes, seed)
    expected = by_hand(gallery, labels, queries, wanted, classes, k, temperature)
    tensors = torch.from_numpy(gallery), torch.from_numpy(labels), torch.from_numpy(queries)
    before = knn._QUERIES, knn._GALLERY
    try:
        for knn._QUERIES, knn._GALLERY in (before, (3, 7), (1, 1)):
            assert knn_ranks(*tensors, wanted, classes, k, temperature).tolist() == expected.tolist()
    finally:
        knn._QUERIES, knn._GALLERY = before


def test_neighbours_are_the_highest_cosines_best_first():
    generator = torch.Generator().manual_seed(0)
    gallery, queries = torch.randn(100, 5, generator=generator), torch.randn(7, 5, generator=generator)
    values, rows = nearest_neighbours(gallery, queries, 9)
    expected = (queries @ gallery.T).sort(dim=1, descending=True)
    assert torch.allclose(values, expected.values[:, :9])
    assert torch.equal(rows, expected.indices[:, :9])


def test_an_image_of_the_training_set_finds_itself():
    gallery, labels, _, _ = made_up(30, 1, 8, 5, 0)
    ranks = knn_ranks(torch.from_numpy(gallery), torch.from_numpy(labels), torch.from_numpy(gallery), labels, 5, k=1)
    assert (ranks == 1).all()


def test_a_class_that_nobody_votes_for_is_no_hit_even_where_few_classes_have_votes():
    gallery, labels = torch.eye(3), torch.tensor([1, 1, 2])
    ranks = knn_ranks(gallery, labels, torch.eye(3)[:1], np.array([0]), 3, k=3)
    assert ranks[0] > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k of 1 or more"),
        ({"temperature": 0.0}, "T above 0"),
        ({"features": torch.zeros(0, 3), "labels": torch.zeros(0, dtype=torch.long)}, "give features"),
        ({"features": torch.zeros(2, 3)}, "training feature 0 has no direction"),
        ({"queries": torch.tensor([[1.0, 0, 0], [float("nan"), 0, 0]])}, "feature 1 has no direction"),
    ],
)
def test_what_cannot_vote_is_refused(change, message):
    given_ = {"features": torch.eye(3)[:2], "labels": torch.tensor([0, 1]), "queries": torch.eye(3)[:2], **change}
    with pytest.raises(BenchError, match=message):
        knn_ranks(**given_, query_labels=np.array([0, 1]), num_classes=2)
