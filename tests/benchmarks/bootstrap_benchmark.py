"""Seconds that 1,000 bootstrap resamples of each task take at the size of the real set, and of scoring COCO boxes.

    python tests/benchmarks/bootstrap_benchmark.py [--tasks vqav2,coco-det] [--resamples 1000] [--against-pycocotools]

Prints one JSON object: for each task what was resampled, the headline with its interval, processor seconds (of all
threads) and wall seconds. ``coco-det`` resamples boxes and masks, 24 statistics. With ``--against-pycocotools`` also the
seconds that matching and counting the boxes take there and here, and the largest difference of the statistics. Exit
status 1 if a task takes 10 or more seconds of wall time, or the statistics differ by more than 1e-12.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from cider_benchmark import made_up

from beit3_bench.tasks.madeup.coco_boxes import made_up_coco
from beit3_bench.tasks.metrics.bootstrap import Estimate, bootstrap_intervals
from beit3_bench.tasks.metrics.captions import reduce_captions, score_captions
from beit3_bench.tasks.metrics.coco_ap import coco_ap
from beit3_bench.tasks.metrics.coco_matches import MatchTable, estimate_ap
from beit3_bench.tasks.metrics.nlvr2 import estimate_nlvr2, nlvr2_table
from beit3_bench.tasks.metrics.recall import RetrievalRanks, estimate_recalls, recall_table
from beit3_bench.tasks.metrics.segmentation import estimate_segmentation, segmentation_table
from beit3_bench.tasks.metrics.topk import estimate_topk, topk_table
from beit3_bench.tasks.metrics.vqa import estimate_vqa, vqa_table
from beit3_bench.tasks.scores import ClusterTable

WANTED_SECONDS = 10.0
Case = tuple[ClusterTable, Estimate, str, str]
"""Table, estimate, headline, what it is."""


def vqa(random: np.random.Generator) -> Case:
    questions, images, kinds = 214_354, 40_504, 65
    of_image = np.sort(np.concatenate([np.arange(images), random.integers(0, images, questions - images)]))
    accuracies = random.choice([0, 0.3, 0.6, 0.9, 1], questions, p=[0.2, 0.05, 0.05, 0.05, 0.65])
    answer = random.choice(["yes/no", "number", "other"], questions, p=[0.38, 0.12, 0.5]).tolist()
    question = [f"kind {k}" for k in random.integers(0, kinds, questions).tolist()]
    table = vqa_table(accuracies, answer, question, list(map(str, of_image.tolist())))
    return table, estimate_vqa, "vqa_accuracy", f"{questions} questions, {images} images, {len(table.columns)} metrics"


def nlvr2(random: np.random.Generator) -> Case:
    examples = [f"test1-{s}-{pair}-0" for s in range(1742) for pair in range(4)][:6967]
    table = nlvr2_table(random.random(len(examples)) < 0.85, examples)
    return table, estimate_nlvr2, "accuracy", f"{len(examples)} examples, {len(table.ids)} sentences"


def captions(random: np.random.Generator) -> Case:
    candidates, groups = made_up(5000, 5, int(random.integers(1 << 30)))
    scores = score_captions(
        {str(i): " ".join(words) for i, words in enumerate(candidates)},
        {str(i): [" ".join(words) for words in group] for i, group in enumerate(groups)},
        ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"],
    )
    return ClusterTable(scores.ids, scores.statistics), reduce_captions, "CIDEr", "5000 images x 5 references"


def retrieval(random: np.random.Generator) -> Case:
    images, texts = 5000, 25_010
    owner = np.sort(np.concatenate([np.arange(images), random.integers(0, images, texts - images)]))
    ranks = RetrievalRanks(random.geometric(0.5, images), random.geometric(0.4, texts), owner)
    return recall_table(ranks, np.arange(images)), estimate_recalls, "mean_recall", f"{images} images, {texts} texts"


def top1(random: np.random.Generator) -> Case:
    table = topk_table(random.geometric(0.85, 50_000), [str(i) for i in range(50_000)])
    return table, estimate_topk, "top1", "50000 images"


def segmentation(random: np.random.Generator) -> Case:
    images, classes = 2000, 150
    label = np.where(random.random((images, classes)) < 0.07, random.integers(1, 40_000, (images, classes)), 0)
    right = (label * random.beta(6, 2, label.shape)).astype(np.int64)
    wrong = np.where(random.random(label.shape) < 0.08, random.integers(0, 9_000, label.shape), 0)
    areas = np.stack([right, label + wrong, right + wrong, label], axis=1)
    table = segmentation_table(list(areas), [str(i) for i in range(images)])
    return table, estimate_segmentation, "mIoU", f"{images} images, {classes} classes"


def detection(random: np.random.Generator) -> Case:
    truth, detections = made_up_coco(seed=int(random.integers(1 << 30)))
    boxes = coco_ap(truth, detections, "bbox").table
    both = boxes.joined(MatchTable(boxes.ids, [replace(m, prefix="segm") for m in boxes.evaluations]))
    objects = sum(not a["iscrowd"] for a in truth["annotations"])
    return (
        both,
        estimate_ap,
        "bbox/AP",
        f"{len(both.ids)} images, {objects} objects, {len(detections)} detections, twice",
    )


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "vqav2": vqa,
    "nlvr2": nlvr2,
    "coco-caption": captions,
    "coco-retrieval": retrieval,
    "imagenet": top1,
    "ade20k-seg": segmentation,
    "coco-det": detection,
}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    value = work()
    return value, {
        "processor_seconds": round(time.process_time() - processor, 2),
        "wall_seconds": round(time.perf_counter() - wall, 2),
    }


def against_pycocotools() -> dict[str, Any]:
    truth, detections = made_up_coco()
    report: dict[str, Any] = {}
    metrics = {}
    for backend in ("own", "pycocotools"):
        scores, seconds = timed(lambda name=backend: coco_ap(truth, detections, "bbox", backend=name))
        metrics[backend] = scores.metrics
        report[backend] = seconds
    # every back end makes our table as well
    ours, both = (report[name]["processor_seconds"] for name in ("own", "pycocotools"))
    report["ratio"] = round((both - ours) / ours, 1)
    report["largest_difference"] = max(abs(metrics["own"][k] - v) for k, v in metrics["pycocotools"].items())
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(CASES))
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--against-pycocotools", action="store_true")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"resamples": arguments.resamples}
    good = True
    for name in arguments.tasks.split(","):
        table, estimate, headline, what = CASES[name](np.random.default_rng(0))
        intervals, seconds = timed(lambda: bootstrap_intervals(table, estimate, arguments.resamples))  # noqa: B023
        value = float(estimate(table.sums())[headline])
        report[name] = {"of": what, headline: value, "ci95": intervals[headline], **seconds}
        good &= seconds["wall_seconds"] < WANTED_SECONDS
    if arguments.against_pycocotools:
        report["box_scoring"] = against_pycocotools()
        good &= report["box_scoring"]["largest_difference"] <= 1e-12
    print(json.dumps(report, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
