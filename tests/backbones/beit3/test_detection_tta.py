"""Test-time augmentation: what one view, mirrored views and Soft-NMS must give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import batched_nms

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection import soft_nms
from beit3_bench.backbones.beit3.detection.detector import Detector
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.beit3.detection.tta import detect_views, padded_side

TOWER = BEiT3Config(image_size=64, patch_size=16, embed_dim=32, num_heads=2, ffn_dim=64, depth=4)
SIZE = (120, 150)


def detector(head: str = "mask_rcnn", **inference: Any) -> Detector:
    torch.manual_seed(3)
    plan = DetectorPlan(head=head, num_classes=4, image_size=96, window_size=3, out_channels=16, fc_dim=24)
    model = plan.build(TOWER, **{"score_threshold": 0.15, **inference})
    with torch.no_grad():
        for name, parameter in model.roi_heads.named_parameters():
            if name.endswith(("cls_score.weight", "predictor.weight")):
                parameter.normal_(std=0.3)
    return model


def picture(height: int = 77, width: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def paired(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Rows of ``a`` and ``b`` with the same class and almost the same box."""
    near = (a["boxes"][:, None] - b["boxes"]).abs().amax(dim=2) < 0.02
    same = near & (a["classes"][:, None] == b["classes"])
    return [(i, int(row.nonzero()[0])) for i, row in enumerate(same) if row.any()]


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_one_view_gives_what_the_detector_gives(head):
    model, image = detector(head), picture()
    plain = model.detect([{"image": image, "height": SIZE[0], "width": SIZE[1]}])[0]
    seen = detect_views(model, [image], SIZE)
    assert len(plain["scores"]) > 3
    torch.testing.assert_close(seen["scores"], plain["scores"])
    torch.testing.assert_close(seen["boxes"], plain["boxes"], atol=1e-3, rtol=0)
    assert torch.equal(seen["classes"], plain["classes"])
    assert (seen["masks"] != plain["masks"]).float().mean() < 1e-4


@pytest.mark.parametrize("soft", [None, "linear"])
def test_a_mirrored_image_gives_mirrored_detections(soft):
    model = detector(soft_nms={"method": soft} if soft else None)
    versions = [picture(), picture(58, 72, seed=1)]
    seen = detect_views(model, versions, SIZE, flip=True)
    mirrored = detect_views(model, [v.flip(-1) for v in versions], SIZE, flip=True)
    back = mirrored | {
        "boxes": torch.stack([SIZE[1] - mirrored["boxes"][:, 2], mirrored["boxes"][:, 1],
                              SIZE[1] - mirrored["boxes"][:, 0], mirrored["boxes"][:, 3]], dim=1),
        "masks": mirrored["masks"].flip(-1),
    }  # fmt: skip
    pairs = paired(seen, back)
    assert len(pairs) == len(seen["scores"]) == len(back["scores"]) > 3
    for i, j in pairs:
        assert seen["scores"][i] == pytest.approx(float(back["scores"][j]), abs=1e-5)
        assert (seen["masks"][i] != back["masks"][j]).float().mean() < 1e-3


def test_views_are_joined_and_suppressed_once_more():
    model, versions = detector(), [picture(), picture(58, 72, seed=1)]
    parts = [detect_views(model, [version], SIZE) for version in versions]
    boxes, scores, classes = (torch.cat([p[key] for p in parts]) for key in ("boxes", "scores", "classes"))
    keep = batched_nms(boxes, scores, classes, 0.5)[:100]
    seen = detect_views(model, versions, SIZE)
    torch.testing.assert_close(seen["scores"], scores[keep])
    torch.testing.assert_close(seen["boxes"], boxes[keep], atol=1e-3, rtol=0)


def test_masks_are_averaged_over_views_of_equal_weight():
    """A view that answers 0 everywhere halves probabilities, so that only what the other is sure of at 1 remains."""
    model, image = detector(), picture()
    single = detect_views(model, [image], SIZE)
    calls = []
    original = model.roi_heads.mask_probabilities

    def spoiled(features, boxes, classes):
        calls.append(len(boxes))
        detections = original(features, boxes, classes)
        return [mask * 0 if k else mask for k, mask in enumerate(detections)]

    model.roi_heads.mask_probabilities = spoiled  # type: ignore[method-assign]
    half = detect_views(model, [image], SIZE, flip=True)
    assert calls == [2]
    assert single["masks"].any()
    assert not half["masks"].any()


def test_soft_nms_decays_scores_once_over_the_candidates_of_all_views():
    settings = {"method": "linear", "iou_threshold": 0.5}
    model, versions = detector(soft_nms=settings), [picture(), picture(58, 72, seed=1)]
    seen = detect_views(model, versions, SIZE)
    raw = detector(nms_threshold=1.0, detections_per_image=1000)
    parts = [detect_views(raw, [version], SIZE) for version in versions]
    boxes, scores, classes = (torch.cat([p[key] for p in parts]) for key in ("boxes", "scores", "classes"))
    rows, decayed = soft_nms(boxes, scores, classes, model.roi_heads.soft_nms, 100)
    assert len(scores) > len(seen["scores"]) or (seen["scores"] < 0.1).any()
    torch.testing.assert_close(seen["scores"], decayed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["boxes"], boxes[rows], atol=1e-3, rtol=0)


@pytest.mark.parametrize("soft", [None, {"method": "gaussian"}])
def test_the_detector_is_as_before_afterwards(soft):
    model = detector(soft_nms=soft)
    heads = model.roi_heads
    before = (model.image_size, heads.soft_nms, heads.nms_threshold, heads.max_detections)
    detect_views(model, [picture(), picture(140, 160)], SIZE, flip=True)
    assert (model.image_size, heads.soft_nms, heads.nms_threshold, heads.max_detections) == before


def test_an_image_without_detections_gives_empty_tensors_of_the_right_shape():
    detections = detect_views(detector(score_threshold=0.999), [picture()], SIZE, flip=True)
    assert detections["boxes"].shape == (0, 4)
    assert detections["masks"].shape == (0, *SIZE)


@pytest.mark.parametrize(("longer", "side"), [(32, 32), (33, 64), (1333, 1344)])
def test_pads_are_the_least_multiple_of_32(longer, side):
    assert padded_side(longer) == side
