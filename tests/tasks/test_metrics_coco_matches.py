"""AP of resampled images from stored matches: equal to scoring the repeated images with pycocotools."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics_coco_ap import world

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.bootstrap import bootstrap_intervals, paired_bootstrap
from beit3_bench.tasks.metrics.coco_ap import coco_ap
from beit3_bench.tasks.metrics.coco_matches import STATISTICS, Lists, MatchTable, _accumulate, estimate_ap


def repeated(truth, records, weights):
    """Every image as often as its weight says, under ids of its own; copies stand next to each other."""
    images, objects, detections = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copy_number in range(int(weight)):
            name = 1000 * image["id"] + copy_number
            images.append(image | {"id": name})
            objects += [
                copy.deepcopy(a) | {"image_id": name} for a in truth["annotations"] if a["image_id"] == image["id"]
            ]
            detections += [copy.deepcopy(d) | {"image_id": name} for d in records if d["image_id"] == image["id"]]
    for number, record in enumerate(objects, 1):
        record["id"] = number
    return truth | {"images": images, "annotations": objects}, detections


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_resampled_statistics_equal_scoring_the_repeated_images(seed, iou_type):
    truth, detections = world(seed, images=7)
    table = coco_ap(truth, detections, iou_type).table
    weights = np.random.default_rng(seed).multinomial(7, np.full(7, 1 / 7), size=3)
    resampled = table.sums(weights.astype(float))
    for row, weight in enumerate(weights):
        metrics = coco_ap(*repeated(truth, detections, weight), iou_type, backend="pycocotools").metrics
        wanted = {k: np.nan if v == -1 else v for k, v in metrics.items()}
        assert {k: v[row] for k, v in resampled.items()} == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(100, 112))
def test_the_full_sample_equals_pycocotools_ties_included(seed, iou_type):
    truth, detections = world(seed, images=12)
    for record in detections:
        record["score"] = round(record["score"], 1)
    scores = coco_ap(truth, detections, iou_type, backend="pycocotools")
    wanted = {k: np.nan if v == -1 else v for k, v in scores.metrics.items()}
    assert {k: float(v) for k, v in scores.table.sums().items()} == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_more_than_a_hundred_detections_of_a_kind_are_cut_as_in_pycocotools():
    truth, detections = world(3, images=2)
    random = np.random.default_rng(0)
    many = []
    for number in range(260):
        record = copy.deepcopy(detections[number % len(detections)])
        record["bbox"] = [float(v) for v in np.abs(record["bbox"] + random.normal(0, 2, 4))]
        many.append(record | {"score": float(random.random())})
    scores = coco_ap(truth, many, "bbox", backend="pycocotools")
    assert {k: float(v) for k, v in scores.table.sums().items()} == pytest.approx(
        {k: np.nan if v == -1 else v for k, v in scores.metrics.items()}, abs=1e-12, nan_ok=True
    )


def test_an_object_whose_id_is_zero_counts_as_in_pycocotools():
    """COCOeval takes a match with id 0 for none; the official number is what it is."""
    truth, detections = world(5, images=6)
    truth["annotations"][0]["id"] = 0
    scores = coco_ap(truth, detections, "bbox", backend="pycocotools")
    assert float(scores.table.sums()["bbox/AP"]) == pytest.approx(scores.metrics["bbox/AP"], abs=1e-12)


def test_boxes_and_masks_share_a_table_and_get_intervals():
    truth, detections = world(7, images=30)
    boxes, masks = (coco_ap(truth, detections, t) for t in ("bbox", "segm"))
    table = boxes.table.joined(masks.table)
    assert table.ids == [str(10 + i) for i in range(30)]
    intervals = bootstrap_intervals(table, estimate_ap, resamples=200)
    assert list(intervals) == [f"{t}/{name}" for t in ("bbox", "segm") for name in STATISTICS]
    for name, value in (boxes.metrics | masks.metrics).items():
        low, high = intervals[name]
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.005


def test_a_better_detector_is_told_from_a_worse_one_on_the_same_images():
    truth, detections = world(8, images=60)
    worse = [d for number, d in enumerate(detections) if number % 3]
    tables = [coco_ap(truth, d, "bbox").table for d in (worse, detections)]
    compared = paired_bootstrap(*tables, estimate_ap, resamples=200)["bbox/AR_maxdets100"]
    assert 0 < compared.low < compared.difference < compared.high
    assert compared.p_value < 0.02
    same = paired_bootstrap(tables[0], tables[0], estimate_ap, resamples=50)["bbox/AP"]
    assert (same.difference, same.p_value) == (0, 1)


def test_tables_of_different_images_are_not_joined():
    tables = [coco_ap(*world(0, images=n), "bbox").table for n in (3, 4)]
    with pytest.raises(BenchError, match="different images"):
        tables[0].joined(tables[1])


def test_rows_are_the_same_one_by_one_and_together():
    truth, detections = world(9, images=20)
    table = coco_ap(truth, detections, "bbox").table
    assert isinstance(table, MatchTable)
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 0.05), size=9).astype(float)
    together = table.sums(weights)
    for row in range(9):
        alone = table.sums(weights[row : row + 1])
        assert {k: v[0] for k, v in alone.items()} == pytest.approx(
            {k: v[row] for k, v in together.items()}, nan_ok=True
        )


def test_long_lists_of_matches_are_counted_like_short_ones():
    """Lists of hundreds of runs are counted in stretches; copies of images included."""
    truth, detections = world(11, images=260)
    for record in [*truth["annotations"], *detections]:
        record["category_id"] = 4
    table = coco_ap(truth, detections, "bbox").table
    assert max(bundle.length for bundle in table.evaluations[0].bundles) > 2 * 64
    weights = np.random.default_rng(11).multinomial(260, np.full(260, 1 / 260), size=2)
    resampled = table.sums(weights.astype(float))
    for row, weight in enumerate(weights):
        metrics = coco_ap(*repeated(truth, detections, weight), "bbox", backend="pycocotools").metrics
        assert {k: v[row] for k, v in resampled.items()} == pytest.approx(metrics, abs=1e-12)


@given(st.integers(1, 300), st.integers(0, 10_000), st.sampled_from([np.add, np.maximum]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_accumulating_in_stretches_equals_accumulating(length, seed, ufunc, backwards):
    values = np.random.default_rng(seed).integers(0, 100, (length, 2, 3)).astype(float)
    values = values[::-1] if backwards else values
    wanted = ufunc.accumulate(values, axis=0)
    _accumulate(ufunc, values)
    np.testing.assert_array_equal(values, wanted)


def test_lists_are_counted_and_picked_in_any_order():
    lists = Lists.of(np.array([4, 0, 4, 2]), np.array([2, 0, 2, 3]), 5)
    weights = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(lists.counts(weights)[:, 0], [0, 0, 16, 4, 0])
    picked = lists.picked(np.array([3, -1, 2, 2, 1]))
    np.testing.assert_array_equal(picked.counts(weights)[:, 1], [5, 0, 18, 18, 0])
