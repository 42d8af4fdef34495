"""The linear layer of the dense probe: DINOv2's schedule and mmsegmentation's loss and resizing, by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from beit3_bench.backbones.linear_segmentation import LinearHead, bilinear, label_map, stored_size, upsampled
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.dense_probing import squared_label
from beit3_bench.tasks.metrics.dense_probe import BATCH, Fit, Schedule, batch_of
from beit3_bench.tasks.metrics.segmentation import IGNORE


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (17, 9)), ((2, 3), (64, 48)), ((8, 8), (5, 8)), ((1, 1), (3, 2))])
def test_logits_are_upsampled_and_decided_as_by_interpolate(grid, size):
    logits = torch.randn(*grid, 7, generator=torch.Generator().manual_seed(0))
    width, height = size
    expected = F.interpolate(logits.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", align_corners=False)[
        0
    ]
    ours = upsampled(logits, bilinear(height, grid[0], logits), bilinear(width, grid[1], logits))
    assert torch.allclose(ours, expected.permute(1, 2, 0), atol=1e-5)
    assert np.array_equal(label_map(logits, size), expected.argmax(dim=0).numpy())


def test_blocks_of_a_large_image_are_its_whole(monkeypatch):
    from beit3_bench.backbones import linear_segmentation

    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    whole = label_map(logits, (40, 31))
    monkeypatch.setattr(linear_segmentation, "_BLOCK", 40 * 5 * 2)
    assert np.array_equal(label_map(logits, (40, 31)), whole)


def test_the_rate_warms_up_and_falls_to_zero_as_in_dinov2s_configuration():
    schedule = Schedule()
    assert schedule.rate(0) == pytest.approx(1e-3 * 1e-6)
    assert schedule.rate(750) == pytest.approx(1e-3 * (1 - 750 / 40_000) * (1 - 0.5 * (1 - 1e-6)))
    assert schedule.rate(1_500) == pytest.approx(1e-3 * (1 - 1_500 / 40_000))
    assert schedule.rate(39_999) == pytest.approx(1e-3 / 40_000)
    assert max(range(40_000), key=schedule.rate) == 1_500
    assert max(range(400), key=Schedule(400).rate) == 15


@pytest.mark.parametrize("images", [5, 16, 37])
def test_every_image_is_seen_once_before_any_is_seen_again(images):
    steps = 6 * images  # whole orders of all images
    seen = [number for step in range(steps) for number in batch_of(step, images, 3)]
    assert len(seen) == steps * BATCH
    orders = [seen[start : start + images] for start in range(0, len(seen), images)]
    assert all(sorted(order) == list(range(images)) for order in orders)
    assert orders[0] != orders[1]
    assert [batch_of(step, images, 3) for step in range(4)] != [batch_of(step, images, 4) for step in range(4)]


def test_a_step_is_that_of_torch_on_the_loss_of_mmsegmentation():
    """Batch normalisation, 1x1 convolution, bilinear upsampling; ignored pixels count in the mean as 0."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 3, 3, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 12, 12), generator=generator)
    labels[0, :5] = IGNORE
    fit = Fit(6, 4, Schedule(10), 7, torch.device("cpu"))
    norm, convolution = torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 4, 1)
    with torch.no_grad():
        convolution.weight.copy_(fit.head.cls_seg.weight[..., None, None])
        convolution.bias.zero_()
    logits = F.interpolate(convolution(norm(patches.permute(0, 3, 1, 2))), size=(12, 12), mode="bilinear")
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").mean()
    expected.backward()
    before = fit.head.cls_seg.weight.detach().clone()
    assert float(fit.advance(patches, labels)) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(fit.head.cls_seg.weight.grad, convolution.weight.grad[..., 0, 0], atol=1e-6)
    assert torch.allclose(fit.head.bn.running_mean, norm.running_mean, atol=1e-6)
    assert (fit.step, fit.finished) == (1, False)
    assert not torch.equal(fit.head.cls_seg.weight, before)


def test_a_fit_goes_on_from_its_state_bit_by_bit_and_learns():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 8, generator=generator)

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = torch.Generator().manual_seed(number)
        classes = torch.randint(0, 3, (4, 4, 4), generator=own)
        noise = torch.randn(4, 4, 4, 8, generator=own)
        return directions[classes] + 0.1 * noise, classes.repeat_interleave(2, 1).repeat_interleave(2, 2)

    one = Fit(8, 3, Schedule(200), 0, torch.device("cpu"))
    for step in range(100):
        one.advance(*batch(step))
    two = Fit(8, 3, Schedule(200), 1, torch.device("cpu"))
    two.load(copy.deepcopy(one.state()))
    losses = [[float(fit.advance(*batch(step))) for step in range(100, 200)] for fit in (one, two)]
    assert losses[0] == losses[1]
    assert one.finished
    assert two.finished
    patches, labels = batch(1000)
    with torch.no_grad():
        guesses = one.head.eval()(patches).argmax(dim=-1)
    assert float((guesses == labels[:, ::2, ::2]).float().mean()) > 0.95


def test_the_first_weights_are_drawn_as_mmsegmentation_does():
    head = LinearHead(512, 150).initialise(torch.Generator().manual_seed(0))
    assert float(head.cls_seg.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not head.cls_seg.bias.any()


def saved(folder, label, size, **more):
    Image.fromarray(label).save(folder / "label.png")
    Image.new("RGB", size).save(folder / "image.jpg", **more)
    return Example("one", (str(folder / "image.jpg"),), truth_files=(str(folder / "label.png"),))


def test_labels_of_the_square_are_the_nearest_pixels(tmp_path):
    label = np.zeros((6, 12), dtype=np.uint8)
    label[:3, 6:] = 5  # the upper right quarter
    square = squared_label(saved(tmp_path, label, (12, 6)), 4)
    assert square.dtype == np.uint8
    expected = np.full((4, 4), IGNORE)
    expected[:2, 2:] = 4
    assert np.array_equal(square, expected)


def test_a_label_map_of_another_size_than_its_image_is_refused(tmp_path):
    example = saved(tmp_path, np.ones((6, 12), dtype=np.uint8), (6, 12))
    with pytest.raises(BenchError, match=r"label\.png: annotation is 12x6, its image 6x12; get both again"):
        squared_label(example, 4)


def test_an_image_that_is_to_be_turned_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    example = saved(tmp_path, np.ones((6, 12), dtype=np.uint8), (12, 6), exif=exif)
    with pytest.raises(BenchError, match=r"image\.jpg: is to be turned by its EXIF orientation.*store it upright"):
        stored_size(example.images[0])
