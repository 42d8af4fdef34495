"""Recall at K: equal to the official handler, to a brute-force ranking, and indifferent to order."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import COMMITTED, metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.recall import (
    RECALL_NAMES,
    estimate_recalls,
    recall_at,
    recall_table,
    recalls,
    retrieval_ranks,
    unit_rows,
)

OFFICIAL = {"TR@1": "tr_r1", "TR@5": "tr_r5", "TR@10": "tr_r10", "IR@1": "ir_r1", "IR@5": "ir_r5", "IR@10": "ir_r10"}


def made_up(seed: int, images: int, dims: int = 8, levels: int | None = None):
    """Random embeddings; with ``levels`` they are small integers, so that scores are exact and often tie."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 5, images)
    owner = np.repeat(np.arange(images), counts)
    random.shuffle(owner)
    ids = random.permutation(10 * images)[:images]
    if levels is None:
        image, text = random.normal(size=(images, dims)), random.normal(size=(len(owner), dims))
        text += image[owner]
    else:
        image, text = random.integers(0, levels, (images, dims)), random.integers(0, levels, (len(owner), dims))
    return image.astype(np.float32), ids, text.astype(np.float32), ids[owner]


def brute_force(image, ids, text, text_ids):
    """Sort the whole gallery for every query with python's stable sort: images by id, texts as they come."""
    scores = image.astype(np.float64) @ text.T.astype(np.float64)
    gallery = sorted(range(len(ids)), key=lambda i: ids[i])
    text_ranks, image_ranks = [], []
    for i in range(len(ids)):
        ordered = sorted(range(len(text)), key=lambda t: -scores[i, t])
        text_ranks.append(1 + min(p for p, t in enumerate(ordered) if text_ids[t] == ids[i]))
    for t in range(len(text)):
        ordered = sorted(gallery, key=lambda i: -scores[i, t])
        image_ranks.append(1 + next(p for p, i in enumerate(ordered) if ids[i] == text_ids[t]))
    return text_ranks, image_ranks


@pytest.mark.parametrize("name", ["regular", "irregular", "irregular_shuffled"])
def test_recalls_equal_the_official_handler(name):
    folder = metrics_golden("retrieval")
    expected = json.loads((folder / "expected.json").read_text())[name]
    data = np.load(folder / f"{name}.npz")
    arrays = [data[k] for k in ("image_embeddings", "image_ids", "text_embeddings", "text_image_ids")]
    ranks = retrieval_ranks(*arrays, block=64)
    for k in (1, 5, 10):
        assert [int((ranks.text_ranks <= k).sum()), len(ranks.text_ranks)] == expected["hits_and_totals"][f"tr_r{k}"]
        assert [int((ranks.image_ranks <= k).sum()), len(ranks.image_ranks)] == expected["hits_and_totals"][f"ir_r{k}"]
    check_official(recalls(ranks), expected["official"])


def check_official(values, official):
    """The official code divides in float32: each share rounds to its number exactly, their mean to its last digits."""
    for ours, theirs in OFFICIAL.items():
        assert 100 * float(np.float32(values[ours] / 100)) == pytest.approx(official[theirs], abs=1e-12)
    assert values["mean_recall"] == pytest.approx(official["average_score"], abs=1e-5)


def test_recalls_equal_the_official_handler_on_given_features():
    expected = json.loads((COMMITTED / "beit3" / "retrieval_eval.json").read_text())["given_features"]["result"]
    tensors = load_file(str(COMMITTED / "beit3" / "retrieval_eval.safetensors"))
    rows, item_ids = tensors["retrieval_features.image_row"], tensors["retrieval_features.image_id"]
    image_ids = np.zeros(40, dtype=np.int64)
    image_ids[rows] = item_ids
    image, text = tensors["retrieval_features.image"], tensors["retrieval_features.text"]
    check_official(recalls(retrieval_ranks(image, image_ids, text, item_ids)), expected)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([None, 1, 2, 3]), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_ranks_equal_a_full_stable_sort_ties_included(seed, images, levels, block):
    data = made_up(seed, images, levels=levels)
    ranks = retrieval_ranks(*data, block=block)
    text_ranks, image_ranks = brute_force(*data)
    assert ranks.text_ranks.tolist() == text_ranks
    assert ranks.image_ranks.tolist() == image_ranks


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_recalls_do_not_depend_on_the_order_of_rows(seed, images):
    image, ids, text, text_ids = made_up(seed, images)
    random = np.random.default_rng(seed)
    i, t = random.permutation(len(ids)), random.permutation(len(text))
    plain = recalls(retrieval_ranks(image, ids, text, text_ids, block=5))
    assert recalls(retrieval_ranks(image[i], ids[i], text[t], text_ids[t], block=16)) == plain


def test_image_order_does_not_matter_even_when_all_scores_tie():
    image, ids, text, text_ids = made_up(5, 20, levels=1)
    plain = retrieval_ranks(image, ids, text, text_ids)
    assert sorted(plain.image_ranks[np.unique(text_ids, return_index=True)[1]]) == list(range(1, 21))
    order = np.random.default_rng(1).permutation(20)
    shuffled = retrieval_ranks(image[order], ids[order], text, text_ids)
    assert (shuffled.image_ranks == plain.image_ranks).all()


def test_a_collapsed_model_scores_at_chance_and_not_at_100():
    n = 200
    ids = np.arange(n)
    ones = np.full((n, 16), 0.25, dtype=np.float32)
    values = recalls(retrieval_ranks(ones, ids, ones, ids, block=64))
    assert values["IR@1"] == values["TR@1"] == pytest.approx(100 / n)
    assert values["TR@10"] == pytest.approx(1000 / n)


def test_equal_texts_tie_whatever_block_and_column_they_fall_into():
    random = np.random.default_rng(3)
    n, dims = 301, 384
    image = random.normal(size=(n, dims)).astype(np.float32)
    text = np.repeat(random.normal(size=(1, dims)).astype(np.float32), n, axis=0)
    ranks = retrieval_ranks(image, np.arange(n), text, np.arange(n), block=37)
    assert ranks.text_ranks.tolist() == list(range(1, n + 1))


def test_fewer_than_ten_images_works():
    values = recalls(retrieval_ranks(*made_up(1, 3)))
    assert values["TR@10"] <= 100
    assert values["IR@5"] == values["IR@10"] == 100


def test_string_ids_work():
    image, ids, text, text_ids = made_up(4, 15)
    named = retrieval_ranks(image, np.array([f"{i:05d}" for i in ids]), text, np.array([f"{i:05d}" for i in text_ids]))
    assert (named.text_ranks == retrieval_ranks(image, ids, text, text_ids).text_ranks).all()


def test_recalls_are_recovered_from_the_cluster_table():
    image, ids, text, text_ids = made_up(7, 40)
    ranks = retrieval_ranks(image, ids, text, text_ids)
    table = recall_table(ranks, ids)
    assert table.ids == [str(i) for i in ids]
    estimated = estimate_recalls(table.sums())
    assert tuple(estimated) == RECALL_NAMES
    assert {k: float(v) for k, v in estimated.items()} == pytest.approx(recalls(ranks), abs=1e-12)
    weights = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=6).astype(float)
    resampled = estimate_recalls(table.sums(weights))
    picked = np.repeat(np.arange(40), weights[2].astype(int))
    assert resampled["TR@5"][2] == pytest.approx(100 * (ranks.text_ranks[picked] <= 5).mean())
    hits = [ranks.image_ranks[ranks.text_image_index == i] <= 1 for i in picked]
    assert resampled["IR@1"][2] == pytest.approx(100 * np.concatenate(hits).mean())


def test_recall_at_counts_from_one():
    assert recall_at(np.array([1, 2, 5, 6]), 5) == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, d, t, o: (i, d, t, np.where(np.arange(len(o)) == 1, 999, o)), "999"),
        (lambda i, d, t, o: (i, np.where(np.arange(len(d)) == 1, d[0], d), t, o), "twice"),
        (lambda i, d, t, o: (i, d, t[o != d[2]], o[o != d[2]]), "no text"),
        (lambda i, d, t, o: (i, d, t[:, :3], o), "dimensions"),
        (lambda i, d, t, o: (np.where(np.arange(len(i))[:, None] == 3, np.nan, i), d, t, o), "row 3"),
        (lambda i, d, t, o: (i[:-1], d, t, o), "image_ids"),
        (lambda i, d, t, o: (i, d.astype(float), t, o), "integers or strings"),
        (lambda i, d, t, o: (i.astype(int), d, t, o), "float rows"),
        (lambda i, d, t, o: (i[:0], d[:0], t, o), "image_embeddings"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(BenchError, match=message):
        retrieval_ranks(*change(*made_up(0, 6)))


def test_recall_of_nothing_is_refused():
    with pytest.raises(BenchError, match="empty"):
        recall_at(np.array([], dtype=np.int64), 1)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="no wider floats here")
def test_embeddings_of_wider_floats_are_refused():
    with pytest.raises(BenchError, match="float128 is wider than float64; write float32 arrays"):
        unit_rows(np.full((2, 3), np.finfo(np.longdouble).max), "image_embeddings")
