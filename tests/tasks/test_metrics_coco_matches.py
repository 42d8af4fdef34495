"""AP of resampled images from stored matches: equal to scoring the repeated images with pycocotools."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
from test_metrics_coco_ap import world

from beit3_bench.backbones.errors import BenchError
from beit3_bench.tasks.metrics.bootstrap import bootstrap_intervals, paired_bootstrap
from beit3_bench.tasks.metrics.coco_ap import coco_ap
from beit3_bench.tasks.metrics.coco_matches import STATISTICS, Matches, MatchTable, estimate_ap


def repeated(truth, found, weights):
    """Every image as often as its weight says, under ids of its own; copies stand next to each other."""
    images, objects, detections = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copy_number in range(int(weight)):
            name = 1000 * image["id"] + copy_number
            images.append(image | {"id": name})
            objects += [
                copy.deepcopy(a) | {"image_id": name} for a in truth["annotations"] if a["image_id"] == image["id"]
            ]
            detections += [copy.deepcopy(d) | {"image_id": name} for d in found if d["image_id"] == image["id"]]
    for number, record in enumerate(objects, 1):
        record["id"] = number
    return truth | {"images": images, "annotations": objects}, detections


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_resampled_statistics_equal_scoring_the_repeated_images(seed, iou_type):
    truth, found = world(seed, images=7)
    table = coco_ap(truth, found, iou_type).table
    weights = np.random.default_rng(seed).multinomial(7, np.full(7, 1 / 7), size=3)
    resampled = table.sums(weights.astype(float))
    for row, weight in enumerate(weights):
        metrics = coco_ap(*repeated(truth, found, weight), iou_type).metrics
        wanted = {k: np.nan if v == -1 else v for k, v in metrics.items()}
        assert {k: v[row] for k, v in resampled.items()} == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(100, 112))
def test_the_full_sample_equals_pycocotools_ties_included(seed, iou_type):
    truth, found = world(seed, images=12)
    for record in found:
        record["score"] = round(record["score"], 1)
    scores = coco_ap(truth, found, iou_type)
    wanted = {k: np.nan if v == -1 else v for k, v in scores.metrics.items()}
    assert {k: float(v) for k, v in scores.table.sums().items()} == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_more_than_a_hundred_detections_of_a_kind_are_cut_as_in_pycocotools():
    truth, found = world(3, images=2)
    random = np.random.default_rng(0)
    many = []
    for number in range(260):
        record = copy.deepcopy(found[number % len(found)])
        record["bbox"] = [float(v) for v in np.abs(record["bbox"] + random.normal(0, 2, 4))]
        many.append(record | {"score": float(random.random())})
    scores = coco_ap(truth, many, "bbox")
    assert {k: float(v) for k, v in scores.table.sums().items()} == pytest.approx(
        {k: np.nan if v == -1 else v for k, v in scores.metrics.items()}, abs=1e-12, nan_ok=True
    )


def test_an_object_whose_id_is_zero_counts_as_in_pycocotools():
    """COCOeval takes a match with id 0 for none; the official number is what it is."""
    truth, found = world(5, images=6)
    truth["annotations"][0]["id"] = 0
    scores = coco_ap(truth, found, "bbox")
    assert float(scores.table.sums()["bbox/AP"]) == pytest.approx(scores.metrics["bbox/AP"], abs=1e-12)


def test_boxes_and_masks_share_a_table_and_get_intervals():
    truth, found = world(7, images=30)
    boxes, masks = (coco_ap(truth, found, t) for t in ("bbox", "segm"))
    table = boxes.table.joined(masks.table)
    assert table.ids == [str(10 + i) for i in range(30)]
    intervals = bootstrap_intervals(table, estimate_ap, resamples=200)
    assert list(intervals) == [f"{t}/{name}" for t in ("bbox", "segm") for name in STATISTICS]
    for name, value in (boxes.metrics | masks.metrics).items():
        low, high = intervals[name]
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.005


def test_a_better_detector_is_told_from_a_worse_one_on_the_same_images():
    truth, found = world(8, images=60)
    worse = [d for number, d in enumerate(found) if number % 3]
    tables = [coco_ap(truth, d, "bbox").table for d in (worse, found)]
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
    truth, found = world(9, images=20)
    table = coco_ap(truth, found, "bbox").table
    assert isinstance(table, MatchTable)
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 0.05), size=9).astype(float)
    together = table.sums(weights)
    for row in range(9):
        alone = table.sums(weights[row : row + 1])
        assert {k: v[0] for k, v in alone.items()} == pytest.approx(
            {k: v[row] for k, v in together.items()}, nan_ok=True
        )


def real_size(images=5000, categories=80, per_area=23_000, detections=200_000, thresholds=10):
    """Matches as many as a strong detector has on COCO val2017: hits at ten thresholds in four areas."""
    random = np.random.default_rng(0)
    groups = 4 * categories
    share = random.dirichlet(np.full(groups, 0.5))
    hit_count, miss_count = random.multinomial(2 * per_area, share), random.multinomial(2 * detections, share)
    objects = np.zeros((images, groups), dtype=np.float32)
    hits, ranked, upto, ranked_start = [], [], [], []
    for group, (right, wrong) in enumerate(zip(hit_count, miss_count, strict=True)):
        is_hit = random.permutation(np.repeat([True, False], [right, wrong]))
        image = random.integers(0, images, right + wrong)
        np.add.at(objects, (image[is_hit], group), 1)
        start = sum(map(len, ranked))
        ranked.append(image)
        hits += [image[is_hit]] * thresholds
        upto += [start + 1 + np.flatnonzero(is_hit)] * thresholds
        ranked_start += [start] * thresholds
    total = sum(map(len, hits))
    of_all = int(thresholds * hit_count[:categories].sum())
    return Matches(
        prefix="bbox",
        categories=categories,
        thresholds=np.linspace(0.5, 0.95, thresholds),
        objects=objects,
        ranked=np.concatenate(ranked),
        corrected=random.integers(0, images, 40_000),
        correction=np.zeros(40_000, dtype=np.int32),
        hits=np.concatenate(hits),
        ranked_upto=np.concatenate(upto),
        corrected_upto=np.sort(random.integers(0, 40_001, total)),
        ranked_start=np.array(ranked_start),
        corrected_start=np.sort(random.integers(0, 40_001, groups * thresholds)),
        hit_start=np.cumsum([0, *np.repeat(hit_count, thresholds)]),
        among_first={1: random.random(of_all) < 0.6, 10: random.random(of_all) < 0.95},
        recall_steps=np.linspace(0, 1, 101),
    )


@pytest.mark.slow
def test_a_thousand_resamples_of_coco_val_take_under_ten_seconds_on_two_cores():
    table = MatchTable([str(i) for i in range(5000)], [real_size()])
    started = time.process_time()
    low, high = bootstrap_intervals(table, estimate_ap, resamples=1000)["bbox/AP"]
    spent = time.process_time() - started
    assert 0 < low < high < 1
    assert spent < 2 * 10, f"{spent:.1f} s of processor time"
