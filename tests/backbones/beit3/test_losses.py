"""Losses against the official ones (values and gradients), and their properties."""

from __future__ import annotations

import json

import pytest
import torch
from goldens import COMMITTED
from safetensors.torch import load_file

from beit3_bench.backbones.beit3.training.losses import (
    captioning_loss,
    classification_loss,
    contrastive_loss,
    nlvr2_loss,
    token_losses,
    vqa_loss,
)
from beit3_bench.errors import BenchError

FOLDER = COMMITTED / "beit3"
VALUES = json.loads((FOLDER / "losses.json").read_text())
TENSORS = load_file(FOLDER / "losses.safetensors")
RTOL = 1e-4


def tensor(name: str) -> torch.Tensor:
    return TENSORS[name].clone()


@pytest.mark.parametrize("case", VALUES["clip_loss"], ids=lambda c: f"scale{c['logit_scale']:.0f}")
def test_contrastive_loss_and_gradients_equal_the_official_ones(case):
    image = tensor("clip_loss.image_features").requires_grad_()
    text = tensor("clip_loss.text_features").requires_grad_()
    scale = torch.tensor(case["logit_scale"], requires_grad=True)
    loss = contrastive_loss(image, text, scale)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=RTOL)
    assert image.grad.norm().item() == pytest.approx(case["grad_image_l2"], rel=RTOL)
    assert text.grad.norm().item() == pytest.approx(case["grad_text_l2"], rel=RTOL)
    assert scale.grad.item() == pytest.approx(case["grad_scale"], rel=RTOL)


def test_contrastive_loss_stays_float32_under_autocast():
    image, text = tensor("clip_loss.image_features"), tensor("clip_loss.text_features")
    exact = contrastive_loss(image, text, torch.tensor(100.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(image, text, torch.tensor(100.0)).item() == exact.item()


def test_pairs_of_one_group_are_not_each_others_negatives():
    """Two images of one class with the same text: without groups the best possible loss is ln 2, with groups it is 0."""
    embeddings = torch.eye(4)[[0, 0, 1]]
    scale = torch.tensor(100.0)
    assert contrastive_loss(embeddings, embeddings, scale).item() == pytest.approx(2 / 3 * 0.6931, abs=1e-4)
    assert contrastive_loss(embeddings, embeddings, scale, groups=torch.tensor([7, 7, 3])).item() == pytest.approx(
        0, abs=1e-6
    )


def test_distinct_groups_change_nothing():
    image, text = tensor("clip_loss.image_features"), tensor("clip_loss.text_features")
    plain = contrastive_loss(image, text, torch.tensor(5.0))
    assert contrastive_loss(image, text, torch.tensor(5.0), groups=torch.arange(7)).item() == plain.item()


def test_vqa_loss_is_bce_times_the_number_of_answers():
    loss = vqa_loss(tensor("vqa_loss.logits"), tensor("vqa_loss.labels"))
    assert loss.item() == pytest.approx(VALUES["vqa_loss"]["loss"], rel=RTOL)


def test_nlvr2_loss_is_cross_entropy():
    loss = nlvr2_loss(tensor("nlvr2_loss.logits"), tensor("nlvr2_loss.label"))
    assert loss.item() == pytest.approx(VALUES["nlvr2_loss"]["loss"], rel=RTOL)


@pytest.mark.parametrize(
    ("labels", "smoothing", "expected"),
    [("label", 0.1, "label_smoothing_0_1"), ("label", 0.0, "cross_entropy"), ("soft_target", 0.1, "soft_target_mixup")],
)
def test_classification_loss_is_chosen_by_the_kind_of_labels(labels, smoothing, expected):
    loss = classification_loss(tensor("imagenet_loss.logits"), tensor(f"imagenet_loss.{labels}"), smoothing)
    assert loss.item() == pytest.approx(VALUES["imagenet_loss"][expected], rel=RTOL)


@pytest.mark.parametrize(
    "case", VALUES["bert_captioning_loss"], ids=lambda c: "-".join(str(v) for v in list(c.values())[:4])
)
def test_captioning_loss_and_the_tokens_it_drops_equal_the_official_ones(case):
    logits = tensor("bert_captioning_loss.logits").requires_grad_()
    loss = captioning_loss(
        logits,
        tensor("bert_captioning_loss.target"),
        case["label_smoothing"],
        case["drop_worst_ratio"],
        case["drop_worst_after"],
        case["iter"],
    )
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=RTOL)
    assert logits.grad.norm().item() == pytest.approx(case["grad_l2"], rel=RTOL)
    assert int((logits.grad.abs().sum(dim=1) > 0).sum()) == case["rows_with_grad"]


def test_smoothed_token_loss_is_zero_where_the_prediction_is_the_smoothed_target():
    """KL with the entropy of the target, not cross-entropy."""
    p = torch.full((1, 10), 0.1 / 9)
    p[0, 3] = 0.9
    assert token_losses(p.log(), torch.tensor([3]), 0.1).item() == pytest.approx(0.0, abs=1e-6)


def test_dropping_the_worst_keeps_at_least_one_token():
    loss = captioning_loss(torch.zeros(1, 5), torch.tensor([2]), 0.0, drop_worst_ratio=0.9, drop_worst_after=0, step=1)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(5.0)).item())


def test_no_masked_token_is_refused():
    with pytest.raises(BenchError, match="mask probability"):
        captioning_loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
