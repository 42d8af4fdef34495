"""What `build_detector` promises beyond the goldens: bad input, empty lists, other sizes, checkpoints."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from beit3_bench.backbones import build_detector
from beit3_bench.backbones.beit3.detection import Detector, detector_arguments, load_detector
from beit3_bench.errors import BenchError

HEADS = ["mask_rcnn", "cascade_mask_rcnn"]
SQUARE = [4.0, 4, 40, 4, 40, 30, 4, 30]


class Patches(nn.Module):
    """The smallest backbone: one convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 16, stride=16)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


def small(head: str = "mask_rcnn", **changes: Any) -> Detector:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_classes": 3, "image_size": 64, "embed_dim": 8, "out_channels": 8, "fc_dim": 16}
    sizes |= {"score_threshold": 0.0} | changes
    return build_detector(Patches(sizes["embed_dim"]), head=head, **sizes)


def image(height: int = 48, width: int = 64, seed: int = 0) -> dict[str, Any]:
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return {"image": pixels, "height": 2 * height, "width": 2 * width + 1}


def truth(count: int = 2, masks: bool = True) -> dict[str, Any]:
    boxes = torch.tensor([[4.0, 4, 40, 30]]).repeat(count, 1)
    target: dict[str, Any] = {"boxes": boxes, "classes": torch.arange(count) % 3}
    return target | ({"masks": [[SQUARE]] * count} if masks else {})


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("image_size", "num_classes", "embed_dim"), [(64, 1, 4), (160, 5, 14), (112, 80, 20)])
def test_any_size_class_count_and_width(head: str, image_size: int, num_classes: int, embed_dim: int) -> None:
    detector = small(head, image_size=image_size, num_classes=num_classes, embed_dim=embed_dim, detections_per_image=7)
    inputs = [image(image_size, image_size // 2, seed=1), image(image_size // 3, image_size, seed=2)]
    results = detector(inputs)
    for item, result in zip(inputs, results, strict=True):
        count = len(result["boxes"])
        assert 0 < count <= 7
        assert result["boxes"].dtype == result["scores"].dtype == torch.float32
        assert result["classes"].dtype == torch.int64
        assert result["masks"].dtype == torch.bool
        assert result["masks"].shape == (count, item["height"], item["width"])
        assert (result["scores"].diff() <= 0).all()
        limits = torch.tensor([item["width"], item["height"]] * 2)
        assert ((result["boxes"] >= 0) & (result["boxes"] <= limits)).all()
        assert not result["scores"].requires_grad


@pytest.mark.parametrize("head", HEADS)
def test_an_image_alone_and_in_a_batch_give_the_same(head: str) -> None:
    detector = small(head)
    inputs = [image(40, 64, seed=1), image(64, 30, seed=2)]
    for alone, together in zip((detector([i])[0] for i in inputs), detector(inputs), strict=True):
        torch.testing.assert_close(alone["boxes"], together["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(alone["scores"], together["scores"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(65, 10), (10, 65)])
@pytest.mark.parametrize("training", [False, True])
def test_an_image_larger_than_the_pad_is_an_error_and_never_cropped(shape: tuple[int, int], training: bool) -> None:
    detector = small().train(training)
    with pytest.raises(BenchError, match=rf"image 1 .*{shape[0]}x{shape[1]}.*larger than .*64x64"):
        detector([image(), image(*shape)], [truth(), truth()])


def test_padding_is_zero_after_normalisation() -> None:
    seen = []
    detector = small()
    detector.backbone.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    item = image(32, 48)
    detector([item])
    assert seen[0].shape == (1, 3, 64, 64)
    assert torch.equal(seen[0][0, :, :32, :48], (item["image"] - 127.5) / 127.5)
    assert seen[0].abs().sum() == seen[0][:, :, :32, :48].abs().sum()


@pytest.mark.parametrize("head", HEADS)
def test_empty_lists(head: str) -> None:
    detector = small(head, score_threshold=0.999999)
    assert detector([]) == []
    (result,) = detector([image()])
    assert [tuple(result[k].shape) for k in ("boxes", "scores", "classes", "masks")] == [
        (0, 4),
        (0,),
        (0,),
        (0, 96, 129),
    ]
    detector.proposal_generator.post_nms_topk = 0
    (result,) = detector([image()])
    assert len(result["boxes"]) == 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (1, 3)])
def test_training_without_ground_truth_in_some_or_all_images(head: str, counts: tuple[int, int]) -> None:
    detector = small(head).train()
    losses = detector([image(seed=1), image(seed=2)], [truth(c) for c in counts])
    stages = [f"_stage{k}" for k in range(3)] if head == "cascade_mask_rcnn" else [""]
    names = {f"loss_{kind}{s}" for kind in ("cls", "box_reg") for s in stages}
    assert losses.keys() == names | {"loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    if counts == (0, 0):
        assert losses["loss_mask"] == losses["loss_rpn_loc"] == 0


@pytest.mark.parametrize("head", HEADS)
def test_training_without_any_proposal(head: str) -> None:
    detector = small(head).train()
    detector.proposal_generator.post_nms_topk = 0
    losses = detector([image()], [truth(0)])
    assert all(loss.isfinite() for loss in losses.values())


def test_losses_repeat_with_the_generator_and_targets_may_lie_in_the_inputs() -> None:
    detector = small().train()
    detector.roi_heads.batch_size_per_image = 8
    runs = [detector([image()], [truth()], torch.Generator().manual_seed(5)) for _ in range(2)]
    runs.append(detector([image() | {"instances": truth()}], generator=torch.Generator().manual_seed(5)))
    assert runs[0] == runs[1] == runs[2]
    assert detector([image()], [truth()], torch.Generator().manual_seed(6)) != runs[0]


def test_a_few_steps_of_training_lower_the_loss_and_find_the_box() -> None:
    detector = small(num_classes=2, embed_dim=32, out_channels=16, fc_dim=32).train()
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    picture[:, 16:48, 8:56] = 255
    box = torch.tensor([[8.0, 16, 56, 48]])
    target = {"boxes": box, "classes": torch.tensor([1]), "masks": picture[:1] > 0}
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    history = []
    steps = 120
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
    for step in range(steps):
        losses = detector([{"image": picture}], [target], torch.Generator().manual_seed(step))
        # The box losses may rise at first: more proposals overlap the object enough to count.
        history.append(sum(losses[name].item() for name in ("loss_cls", "loss_mask", "loss_rpn_cls")))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
    assert history[-1] < 0.3 * history[0]
    (result,) = detector.eval()([{"image": picture}])
    assert result["classes"][0] == 1
    # Rounding differs between processors and grows over the steps: the bounds leave room for it.
    assert box_iou(result["boxes"][:1], box) > 0.6
    mask, wanted = result["masks"][0], picture[0] > 0
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[4.0, 4, 4, 9], [0, 0, 5, 5]])}, "without area"),
        ({"classes": torch.tensor([0, 3])}, r"outside of 0\.\.2"),
        ({"classes": torch.tensor([0])}, "differ in number"),
        ({"masks": torch.zeros(2, 9, 9, dtype=torch.bool)}, r"masks of \(9, 9\)"),
        ({"masks": [[SQUARE], [[1.0, 1, 2, 2]]]}, "polygon of 4 numbers"),
        ({"masks": None}, "has no masks"),
    ],
)
def test_bad_targets_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        small().train()([image()], [truth() | change])


@pytest.mark.parametrize("head", HEADS)
def test_mixed_precision(head: str) -> None:
    detector = small(head)
    (exact,) = detector([image()])
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = detector([image()])
        losses = detector.train()([image()], [truth()])
    sum(losses.values()).backward()
    assert {k: v.dtype for k, v in result.items()} == {k: v.dtype for k, v in exact.items()}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_training_needs_targets() -> None:
    with pytest.raises(BenchError, match="needs targets"):
        small().train()([image()])


@pytest.mark.parametrize(
    "soft", [{"method": "linear", "iou_threshold": 0.6, "min_score": 1e-3}, {"method": "gaussian"}]
)
def test_soft_nms_keeps_more_and_never_raises_a_score(soft: dict[str, Any]) -> None:
    hard, (softened,) = (
        small(detections_per_image=None)([image()])[0],
        small(soft_nms=soft, detections_per_image=-1)([image()]),
    )
    assert len(softened["boxes"]) > len(hard["boxes"])
    assert softened["scores"][0] == hard["scores"][0]
    assert (softened["scores"].diff() <= 0).all()


def test_a_detector_of_boxes_only() -> None:
    detector = small(with_masks=False)
    assert "masks" not in detector([image()])[0]
    losses = detector.train()([image()], [truth(masks=False)])
    assert "loss_mask" not in losses
    assert detector_arguments(detector.state_dict(), "x")["with_masks"] is False


@pytest.mark.parametrize(
    ("argument", "value"),
    [("head", "faster_rcnn"), ("image_size", 100), ("embed_dim", 2), ("num_classes", 0), ("soft_nms", {"method": "x"})],
)
def test_arguments_that_do_not_fit(argument: str, value: Any) -> None:
    with pytest.raises(BenchError, match=argument):
        small(**{argument: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sgima": 1}, r"^soft_nms has no option 'sgima'; did you mean 'sigma'\?$"),
        ({"sigma": "wide"}, "^soft_nms: sigma: 'wide' is not a number"),
    ],
)
def test_settings_of_soft_nms_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        small(soft_nms=settings)


def test_a_backbone_of_another_width_is_named() -> None:
    detector = build_detector(Patches(8), num_classes=3, image_size=64, embed_dim=12, out_channels=8, fc_dim=16)
    with pytest.raises(BenchError, match=r"returned \(1, 8, 4, 4\).*\(1, 12, 4, 4\)"):
        detector([image()])


@pytest.mark.parametrize("head", HEADS)
def test_checkpoint_tells_its_detector_and_loads(head: str) -> None:
    source, other = small(head), small(head)
    with torch.no_grad():
        for p in source.parameters():
            p.normal_()
    state = source.state_dict() | {"pixel_mean": torch.zeros(3, 1, 1)}
    arguments = {"head": head, "num_classes": 3, "embed_dim": 8, "out_channels": 8, "fc_dim": 16, "with_masks": True}
    assert detector_arguments(state, "a.pth") == arguments
    load_detector(other, state, "a.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), other.parameters(), strict=True))


def test_checkpoints_that_do_not_fit_are_named_and_change_nothing() -> None:
    detector = small()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    state = detector.state_dict()
    cases = {
        "holds a cascade_mask_rcnn head": small("cascade_mask_rcnn").state_dict(),
        "lacks 1 .*anchor_deltas.bias": {k: v for k, v in state.items() if not k.endswith("anchor_deltas.bias")},
        "unexpected 1 .*spare": state | {"spare": torch.zeros(1)},
        "shapes differ": small(num_classes=5).state_dict(),
        "not the checkpoint of a ViTDet": {"weight": torch.zeros(1)},
    }
    for message, broken in cases.items():
        with pytest.raises(BenchError, match=message) as caught:
            load_detector(detector, broken, "model_final.pth")
        assert str(caught.value).startswith("model_final.pth")
        assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in detector.state_dict().items())


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, beit3_bench.backbones.beit3.detection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
