"""The parts of the native detector against detectron2's `ops` goldens, and by themselves."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from goldens import COMMITTED, metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from safetensors.torch import load_file
from torch import Tensor

from beit3_bench.backbones.beit3.detection import (
    SoftNMS,
    lr_multiplier,
    postprocess,
    resize_image,
    resize_scale,
    resize_shortest_edge,
    soft_nms,
)
from beit3_bench.backbones.beit3.detection.boxes import decode_boxes, encode_boxes, match, pairwise_iou, sample
from beit3_bench.backbones.beit3.detection.masks import (
    _sample,
    bitmap_boxes,
    mask_targets,
    paste_masks,
    polygon_bitmaps,
)
from beit3_bench.backbones.beit3.detection.nms import select_detections
from beit3_bench.backbones.beit3.detection.recipe import layer_decay_factor
from beit3_bench.backbones.beit3.detection.roi_heads import pool_regions, pyramid_levels
from beit3_bench.errors import BenchError

OPS = COMMITTED / "detectron2" / "ops"
CODINGS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(OPS / f"{name}.safetensors")


def numbers(name: str) -> Any:
    return json.loads((OPS / f"{name}.json").read_text())


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_resize_shortest_edge() -> None:
    for h, w, short, longest, new_h, new_w in numbers("resize_rules")["resize_shortest_edge"]["rows"]:
        assert resize_shortest_edge(h, w, short, longest) == (new_h, new_w)


def test_resize_scale() -> None:
    for h, w, scale, target, new_h, new_w in numbers("resize_rules")["resize_scale"]["rows"]:
        assert resize_scale(h, w, scale, target) == (new_h, new_w)


def test_resize_image_is_pil_bilinear() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    resized = resize_image(torch.from_numpy(pixels).permute(2, 0, 1), (20, 61))
    expected = np.array(Image.fromarray(pixels).resize((61, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(resized.permute(1, 2, 0).numpy(), expected)


# ---- boxes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(4))
def test_box_coding(i: int) -> None:
    stored = tensors("box_transform")
    deltas = stored["deltas_unit_weight"] * torch.tensor(CODINGS[i])
    decoded = decode_boxes(deltas, stored["boxes"], CODINGS[i])
    torch.testing.assert_close(decoded, stored[f"decoded_w{i}"], atol=1e-3, rtol=1e-6)
    encoded = encode_boxes(stored["boxes"], stored[f"encode_target_w{i}"], CODINGS[i])
    torch.testing.assert_close(encoded, stored[f"encoded_w{i}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "low", "high"), [("rpn", 0.3, 0.7), ("roi", 0.5, 0.5)])
def test_matcher(kind: str, low: float, high: float) -> None:
    stored = tensors("matcher")
    iou = pairwise_iou(stored["gt"], stored["boxes"])
    torch.testing.assert_close(iou, stored["iou"], atol=1e-6, rtol=0)
    row, label = match(iou, low, high, low_quality=kind == "rpn")
    assert torch.equal(row, stored[f"{kind}_match"].long())
    assert torch.equal(label, stored[f"{kind}_label"])


def test_iou_of_empty_boxes_is_zero() -> None:
    boxes = torch.tensor([[1.0, 1, 1, 1], [0, 0, 2, 2], [1, 1, 1, 5]])
    assert pairwise_iou(boxes, boxes).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert pairwise_iou(boxes[:0], boxes).shape == (0, 3)


@pytest.mark.parametrize(("ground_truths", "candidates"), [(0, 3), (2, 0), (0, 0)])
def test_match_without_ground_truth_or_candidates(ground_truths: int, candidates: int) -> None:
    row, label = match(torch.zeros(ground_truths, candidates), 0.3, 0.7, low_quality=True)
    assert row.tolist() == label.tolist() == [0] * candidates


def test_sampling_keeps_counts_and_repeats_with_the_generator() -> None:
    labels = torch.arange(100) % 5
    draws = [sample(labels == 0, labels > 1, 32, 0.25, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    positive, negative = draws[0]
    assert (len(positive), len(negative)) == (8, 24)
    assert (labels[positive] == 0).all()
    assert (labels[negative] > 1).all()
    assert len({*positive.tolist(), *negative.tolist()}) == 32
    few, rest = sample(labels == 7, labels == 0, 32, 0.25, None)
    assert (len(few), len(rest)) == (0, 20)


# ---- pooling -------------------------------------------------------------------------------------------------------


def test_pyramid_levels() -> None:
    stored = tensors("roi_pooling")
    assert torch.equal(pyramid_levels(stored["level_boxes"]), stored["levels_minus_2"].long())


@pytest.mark.parametrize("side", [7, 14])
def test_roi_pooling(side: int) -> None:
    stored = tensors("roi_pooling")
    features = [stored[f"feat_p{k}"] for k in range(2, 6)]
    pooled = pool_regions(
        features, stored["pool_boxes"], torch.zeros(len(stored["pool_boxes"]), dtype=torch.int64), side
    )
    torch.testing.assert_close(pooled, stored[f"pool_{side}x{side}"], atol=1e-5, rtol=0)


# ---- masks ---------------------------------------------------------------------------------------------------------


def test_mask_paste() -> None:
    stored, facts = tensors("mask_paste"), numbers("mask_paste")
    pasted = paste_masks(stored["mask_probs"], stored["boxes"], tuple(facts["image_hw"]))
    expected = torch.from_numpy(coco.decode(facts["rle"])).permute(2, 0, 1).bool()
    assert pasted.sum(dim=(1, 2)).tolist() == facts["areas"]
    assert torch.equal(pasted, expected)


def test_mask_paste_in_chunks_of_whole_images_is_the_same() -> None:
    """The path of accelerators: sampling the whole image must not differ from sampling around the box."""
    stored, (height, width) = tensors("mask_paste"), numbers("mask_paste")["image_hw"]
    whole = _sample(stored["mask_probs"], stored["boxes"], (0, height), (0, width)) >= 0.5
    assert torch.equal(whole, paste_masks(stored["mask_probs"], stored["boxes"], (height, width)))


def test_postprocess_scales_clips_and_drops_empty_boxes() -> None:
    stored, facts = tensors("mask_paste"), numbers("mask_paste")["postprocess"]
    boxes = stored["post_in_boxes"]
    classes = torch.arange(len(boxes))
    probabilities = torch.ones(len(boxes), 28, 28)
    sizes = tuple(facts["net_hw"]), tuple(facts["output_hw"])
    result = postprocess(boxes, classes / 10, classes, probabilities, *sizes)
    torch.testing.assert_close(result["boxes"], stored["post_out_boxes"], atol=1e-5, rtol=0)
    assert torch.equal(result["classes"], stored["post_out_classes"].long())
    assert torch.equal(result["scores"], result["classes"] / 10)
    assert result["masks"].shape == (len(result["boxes"]), *facts["output_hw"])


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_mask_targets(kind: str) -> None:
    stored, facts = tensors("mask_targets"), numbers("mask_targets")
    masks: Any = facts["polygons"]
    if kind == "bitmask":
        masks = torch.from_numpy(coco.decode(facts["bitmask_rle"])).permute(2, 0, 1).bool()
        assert np.array_equal(masks.numpy(), polygon_bitmaps(facts["polygons"], *facts["image_hw"]))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    targets = mask_targets(masks, order, stored["boxes"][order], 28)
    assert targets.dtype == torch.bool
    assert torch.equal(targets, stored[f"target_{kind}"][order].bool())


def test_tight_boxes_of_masks() -> None:
    stored, facts = tensors("mask_targets"), numbers("mask_targets")
    bitmaps = torch.from_numpy(coco.decode(facts["bitmask_rle"])).permute(2, 0, 1)
    assert torch.equal(bitmap_boxes(bitmaps), stored["bitmask_boxes"])
    assert bitmap_boxes(torch.zeros(1, 4, 5)).tolist() == [[0.0] * 4]


def test_no_masks_no_boxes() -> None:
    none = torch.zeros(0, 4)
    rows = torch.zeros(0, dtype=torch.int64)
    assert mask_targets([], rows, none, 28).shape == (0, 28, 28)
    assert mask_targets(torch.zeros(0, 5, 5), rows, none, 28).shape == (0, 28, 28)
    assert polygon_bitmaps([[], []], 3, 4).shape == (2, 3, 4)
    assert bitmap_boxes(torch.zeros(0, 3, 3)).shape == (0, 4)
    assert paste_masks(torch.zeros(0, 28, 28), none, (6, 7)).shape == (0, 6, 7)


def test_objects_without_polygons_stay_empty_beside_others() -> None:
    square = [1.0, 1, 4, 1, 4, 4, 1, 4]
    bitmaps = polygon_bitmaps([[], [square], [square, [5.0, 5, 7, 5, 7, 7]]], 8, 8)
    assert not bitmaps[0].any()
    assert 0 < bitmaps[1].sum() < bitmaps[2].sum()


# ---- detections ----------------------------------------------------------------------------------------------------


def test_detection_nms() -> None:
    stored = tensors("detection_nms")
    cases = sorted({name.split("/")[0] for name in stored if "/" in name})
    assert len(cases) == 4
    for case in cases:
        kind, threshold, overlap, limit = re.fullmatch(r"(\w+)_t([\d.]+)_n([\d.]+)_k(\w+)", case).groups()  # type: ignore[union-attr]
        boxes, scores, classes, rows = select_detections(
            stored[f"boxes_{kind}"],
            stored["scores"],
            torch.tensor([90, 100]),
            float(threshold),
            float(overlap),
            None if limit == "all" else int(limit),
        )
        assert torch.equal(boxes, stored[f"{case}/boxes"])
        assert torch.equal(scores, stored[f"{case}/scores"])
        assert torch.equal(classes, stored[f"{case}/classes"].long())
        assert torch.equal(rows, stored[f"{case}/row"].long())


def test_rows_that_are_not_finite_are_dropped() -> None:
    boxes = torch.tensor([[0.0, 0, 5, 5], [float("nan"), 0, 5, 5], [0, 0, 9, float("inf")], [20, 20, 30, 30]])
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [float("nan"), 0.1]])
    assert select_detections(boxes, scores, torch.tensor([50, 50]), 0.05, 0.5, 100)[3].tolist() == [0]


@pytest.mark.parametrize("soft", [None, SoftNMS()])
def test_nothing_above_the_threshold(soft: SoftNMS | None) -> None:
    for count in (0, 3):
        selected = select_detections(
            torch.zeros(count, 4), torch.zeros(count, 3), torch.tensor([9, 9]), 0.05, 0.5, 100, soft
        )
        assert [tuple(x.shape) for x in selected] == [(0, 4), (0,), (0,), (0,)]


# ---- Soft-NMS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(6))
@pytest.mark.parametrize("form", ["class_agnostic", "per_class"])
def test_soft_nms_golden(form: str, i: int) -> None:
    folder = metrics_golden("soft_nms")
    case, data = json.loads((folder / "expected.json").read_text())[i], np.load(folder / "boxes.npz")
    p = case["params"]
    config = SoftNMS(p["method"], iou_threshold=p["Nt"], sigma=p["sigma"], min_score=p["min_score"])
    boxes, scores = (torch.from_numpy(data[k]).double() for k in ("boxes_xyxy", "scores"))
    labels = torch.from_numpy(data["labels"]) * (form == "per_class")
    keep, decayed = soft_nms(boxes, scores, labels, config)
    assert keep.tolist() == case[form]["keep"]
    assert decayed.tolist() == pytest.approx(case[form]["scores"], abs=1e-12)
    best, best_scores = soft_nms(boxes, scores, labels, config, max_keep=20)
    assert torch.equal(best, keep[:20])
    assert torch.equal(best_scores, decayed[:20])


def _slow_soft_nms(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, config: SoftNMS
) -> list[tuple[int, float]]:
    """Algorithm 1 of the paper, word by word, on each class."""
    kept = []
    for c in set(classes.tolist()):
        left = {i: scores[i] for i in np.flatnonzero(classes == c) if scores[i] >= config.min_score}
        while left:
            top = max(left, key=lambda i: (left[i], -i))
            kept.append((top, left.pop(top)))
            for i in list(left):
                w = min(boxes[i, 2], boxes[top, 2]) - max(boxes[i, 0], boxes[top, 0])
                h = min(boxes[i, 3], boxes[top, 3]) - max(boxes[i, 1], boxes[top, 1])
                inter = max(w, 0) * max(h, 0)
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[top])]
                iou = inter / (sum(areas) - inter) if inter > 0 else 0.0
                if config.method == "gaussian":
                    left[i] *= np.exp(-(iou**2) / config.sigma)
                elif iou >= config.iou_threshold:
                    left[i] *= 1 - iou
                if left[i] < config.min_score:
                    del left[i]
    return sorted(kept, key=lambda pair: -pair[1])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    method=st.sampled_from(["linear", "gaussian"]),
    min_score=st.sampled_from([0.0, 1e-3, 0.2]),
)
def test_soft_nms_equals_the_paper_algorithm(seed: int, count: int, method: str, min_score: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 20, (count, 2))], axis=1)
    scores, classes = rng.uniform(0, 1, count), rng.integers(0, 3, count)
    config = SoftNMS(method, iou_threshold=0.3, min_score=min_score)
    keep, decayed = soft_nms(*(torch.from_numpy(x) for x in (boxes, scores, classes)), config)
    expected = _slow_soft_nms(boxes, scores, classes, config)
    assert keep.tolist() == [i for i, _ in expected]
    assert decayed.tolist() == pytest.approx([s for _, s in expected], abs=1e-12)


@pytest.mark.parametrize("fields", [{"method": "hard"}, {"sigma": 0.0}, {"min_score": -1.0}])
def test_soft_nms_settings_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="soft_nms"):
        SoftNMS(**fields)


# ---- recipe --------------------------------------------------------------------------------------------------------


def test_lr_schedule() -> None:
    facts = numbers("lr_schedule")
    for step, expected in facts["rows"]:
        value = lr_multiplier(
            step, facts["max_iter"], facts["milestones"], facts["warmup_iters"], facts["warmup_factor"]
        )
        assert value == pytest.approx(expected, rel=1e-9), step


@pytest.mark.parametrize(
    ("name", "power"),
    [
        ("backbone.net.pos_embed", 13),
        ("backbone.net.patch_embed.proj.weight", 13),
        ("backbone.net.blocks.0.norm1.weight", 12),
        ("backbone.net.blocks.11.mlp.fc1.bias", 1),
        ("backbone.net.blocks.3.residual.conv1.weight", 0),
        ("backbone.simfp_2.0.weight", 0),
        ("roi_heads.mask_head.predictor.bias", 0),
    ],
)
def test_layer_decay(name: str, power: int) -> None:
    assert layer_decay_factor(name, 0.8, 12) == pytest.approx(0.8**power)
