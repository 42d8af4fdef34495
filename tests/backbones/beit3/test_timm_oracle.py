"""A second oracle at full width: timm's vision towers on the same random weights under official names."""

from __future__ import annotations

import random_beit3 as small
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from beit3_bench.backbones import BEiT3Config, official_state_dict
from beit3_bench.backbones.beit3.models import blank_model

WORDS = 32  # the text side plays no part here; a small table keeps the test fast


def timm_twin(name: str, ours: nn.Module, **arguments: int) -> nn.Module:
    """timm's model with our weights, converted by timm itself from the official names."""
    with torch.device("meta"):
        twin = timm.create_model(name, **arguments).eval()
    vision = {n: t for n, t in official_state_dict(ours).items() if ".B." not in n and ".VL." not in n}
    if "beit3.encoder.layer_norm.A.weight" in vision:  # timm converts classifiers only, which have none
        for kind in ("weight", "bias"):
            vision[f"norm.{kind}"] = vision.pop(f"beit3.encoder.layer_norm.A.{kind}")
    known = twin.state_dict()
    converted = checkpoint_filter_fn(vision, twin)
    heads = {"logit_scale", "vision_head.weight", "language_head.weight"}
    assert known.keys() == converted.keys() - heads
    twin.load_state_dict({n: t for n, t in converted.items() if n not in heads}, assign=True)
    return twin


def random_model(task: str, config: BEiT3Config, **head: int) -> nn.Module:
    return small.randomise(blank_model(task, config, **head).to_empty(device="cpu"))


def images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_base_classifier_equals_timm_at_full_size():
    config = BEiT3Config.preset("base", vocab_size=WORDS)
    ours = random_model("imagenet-linear", config, num_classes=1000)
    twin = timm_twin("beit3_base_patch16_224", ours)
    x = images(1, 224)
    states, expected = ours.beit3(x).image, twin.forward_features(x)
    assert states.std() > 0.1
    torch.testing.assert_close(states, expected, atol=3e-4, rtol=1e-4)
    logits = ours.head(ours.fc_norm(states[:, 1:].mean(dim=1)))
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, twin.forward_head(expected), atol=1e-4, rtol=1e-4)
    assert torch.equal(ours(x), logits)


@torch.no_grad()
def test_base_retrieval_tower_equals_timm_at_384_pixels():
    config = BEiT3Config.preset("base", vocab_size=WORDS, image_size=384, depth=3)
    ours = random_model("retrieval", config)
    twin = timm_twin("beit3_base_patch16_224", ours, img_size=384, depth=3, num_classes=0, global_pool="token")
    x = images(1, 384)
    first = twin(x)
    expected = nn.functional.normalize(ours.vision_head(first), dim=-1)
    torch.testing.assert_close(ours.encode_image(x), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_giant_vision_branch_equals_timm_with_fewer_layers():
    depth = 2
    config = BEiT3Config.preset("giant", vocab_size=WORDS, depth=depth, vl_layers=1)
    assert config.shared_attention
    ours = random_model("imagenet-linear", config, num_classes=10)
    twin = timm_twin("beit3_giant_patch14_224", ours, depth=depth, num_classes=10)
    x = images(1, 224)
    logits = ours(x)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, twin(x), atol=1e-4, rtol=1e-4)
