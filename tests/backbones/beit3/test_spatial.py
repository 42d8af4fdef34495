"""The spatial backbone: equal to the vision tower, to detectron2's windows, and to a slow obvious reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from goldens import COMMITTED
from safetensors.torch import load_file, save_file
from torch import Tensor

from beit3_bench.backbones import BEiT3Config
from beit3_bench.backbones.beit3.detection import layer_decay_factor
from beit3_bench.backbones.beit3.spatial import (
    SpatialBEiT3,
    evenly_spaced,
    interpolated_positions,
    load_spatial,
    window_merge,
    window_partition,
)
from beit3_bench.errors import BenchError

BEIT3 = COMMITTED / "beit3"
MANIFEST = json.loads((BEIT3 / "manifest.json").read_text())
CONFIG = BEiT3Config(image_size=64, patch_size=16, embed_dim=48, num_heads=4, ffn_dim=192, depth=3, vocab_size=211)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(BEIT3 / "weights_backbone.safetensors")


def random_model(config: BEiT3Config = CONFIG, seed: int = 0, **arguments: Any) -> SpatialBEiT3:
    """Every parameter drawn, so that none of them is neutral."""
    model = SpatialBEiT3(config, **arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(scale + 0.2 * torch.randn(p.shape, generator=generator))
    return model


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the vision tower ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_global_attention_equals_the_vision_tower(weights: dict[str, Tensor]) -> None:
    model = SpatialBEiT3(CONFIG, window_size=0).eval()
    report = load_spatial(model, weights)
    assert not report.missing
    assert not report.unexpected
    vision = {n for n in weights if ".A." in n or n.startswith("beit3.vision_embed")} - {
        "beit3.vision_embed.mask_token"
    }
    assert set(report.loaded) == vision
    expected = load_file(BEIT3 / "outputs.safetensors")["backbone.vision_only"]
    pool = load_file(BEIT3 / "inputs.safetensors")["images"][: len(expected)]
    actual = model(pool).flatten(2).transpose(1, 2)
    tolerance = 10 * MANIFEST["fp32_noise_floor"]["backbone.vision_only"]["max_abs"]
    torch.testing.assert_close(actual, expected[:, 1:], atol=tolerance, rtol=0)


@torch.no_grad()
def test_a_window_as_large_as_the_map_is_global_attention() -> None:
    whole, windowed = random_model(window_size=0), random_model(window_size=4, global_blocks=())
    torch.testing.assert_close(windowed(images(2, 3, 64, 64)), whole(images(2, 3, 64, 64)), atol=2e-5, rtol=0)


# ---- windows -------------------------------------------------------------------------------------------------------


def test_positions_and_windows_equal_detectron2() -> None:
    stored = load_file(COMMITTED / "detectron2" / "ops" / "pos_window.safetensors")
    sizes = [name.removeprefix("abs_pos_") for name in stored if name.startswith("abs_pos_")]
    assert len(sizes) == 5
    for size in sizes:
        height, width = map(int, size.split("x"))
        actual = interpolated_positions(stored["pos_embed"], height, width)
        torch.testing.assert_close(actual, stored[f"abs_pos_{size}"], atol=1e-5, rtol=0)
    x = stored["window_in"]
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))
    windows = window_partition(padded, 4)
    assert torch.equal(windows, stored["window_out_ws4"])
    merged = window_merge(windows, *padded.shape[1:3])[:, :height, :width]
    assert torch.equal(merged, stored["window_roundtrip"])


def slow_reference(model: SpatialBEiT3, image: Tensor) -> Tensor:
    """One image (3, H, W), token by token: every query lists its keys, then a softmax over them in float64."""
    model = model.double()
    tokens = model.patch_embed.proj(image[None].double())[0].permute(1, 2, 0)
    height, width, dim = tokens.shape
    tokens = tokens + interpolated_positions(model.pos_embed, height, width)[0]
    state = {(y, x): tokens[y, x] for y in range(height) for x in range(width)}
    if model.cls_token is not None:
        state["cls"] = model.cls_token[0, 0] + model.pos_embed[0, 0]
    heads = model.config.num_heads
    for block in model.blocks:
        size = block.attn.window
        normed: dict[Any, Tensor] = {place: block.norm1(token) for place, token in state.items()}
        if size:
            for y in range(-(-height // size) * size):
                for x in range(-(-width // size) * size):
                    normed.setdefault((y, x), torch.zeros(dim, dtype=torch.float64))
        q, k, v = zip(*(block.attn.qkv(token).chunk(3) for token in normed.values()), strict=True)
        number = {place: i for i, place in enumerate(normed)}
        after = {}
        for place, token in state.items():
            if not size or place == "cls":
                keys = list(state)
            else:
                corner = tuple(c // size * size for c in place)
                keys = [(corner[0] + dy, corner[1] + dx) for dy in range(size) for dx in range(size)]
                keys += ["cls"] if "cls" in state else []
            merged = []
            for h in range(heads):
                part = slice(h * dim // heads, (h + 1) * dim // heads)
                scores = torch.stack([q[number[place]][part] @ k[number[key]][part] for key in keys])
                weights = (scores * (dim // heads) ** -0.5).softmax(dim=0)
                merged.append(sum(w * v[number[key]][part] for w, key in zip(weights, keys, strict=True)))
            token = token + block.attn.proj(block.attn.inner_attn_ln(torch.cat(merged)))
            hidden = F.gelu(block.mlp.fc1(block.norm2(token)))
            after[place] = token + block.mlp.fc2(block.mlp.ffn_layernorm(hidden))
        state = after
    rows = [torch.stack([model.norm(state[y, x]) for x in range(width)]) for y in range(height)]
    return torch.stack(rows).permute(2, 0, 1)


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize(("size", "window"), [((64, 64), 2), ((48, 80), 3), ((96, 32), 4), ((32, 32), 5)])
@torch.no_grad()
def test_windows_equal_the_slow_reference(size: tuple[int, int], window: int, cls_token: bool) -> None:
    small = CONFIG.replace(embed_dim=8, num_heads=2, ffn_dim=16)
    model = random_model(small, window_size=window, global_blocks=[1], cls_token=cls_token)
    batch = images(2, 3, *size)
    actual = model(batch)
    assert actual.shape == (2, 8, size[0] // 16, size[1] // 16)
    expected = torch.stack([slow_reference(model, image) for image in batch]).float()
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def test_windowed_queries_see_their_window_only_and_global_ones_everything() -> None:
    model = random_model(window_size=2, global_blocks=(), cls_token=False)
    batch = images(1, 3, 64, 64).requires_grad_()
    model(batch)[0, :, 0, 0].sum().backward()
    reached = F.max_pool2d(batch.grad.abs().sum(dim=1), 16)[0] > 0
    assert reached.tolist() == [[y < 2 and x < 2 for x in range(4)] for y in range(4)]
    model = random_model(window_size=2, global_blocks=[2], cls_token=False)
    batch.grad = None
    model(batch)[0, :, 0, 0].sum().backward()
    assert (F.max_pool2d(batch.grad.abs().sum(dim=1), 16) > 0).all()


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (40, (9, 19, 29, 39)), (4, (0, 1, 2, 3)), (1, (0,))],
)
def test_global_blocks_are_evenly_spaced(depth: int, expected: tuple[int, ...]) -> None:
    assert evenly_spaced(depth) == expected


# ---- use -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_maps_after_blocks() -> None:
    model, batch = random_model(window_size=2), images(1, 3, 32, 64)
    maps = model.maps_after(batch, [0, 2])
    assert [tuple(m.shape) for m in maps] == [(1, 48, 2, 4)] * 2
    assert torch.equal(maps[1], model(batch))
    x, cls = model.run_blocks(*model.embed(batch), 0, 1)
    assert torch.equal(maps[0], x.permute(0, 3, 1, 2))
    assert cls is not None


def test_images_that_are_not_multiples_of_the_patch_are_an_error() -> None:
    with pytest.raises(BenchError, match=r"64x70 pixels.*multiples of 16"):
        random_model()(images(1, 3, 64, 70))


def test_every_parameter_is_used_in_training() -> None:
    for arguments in ({}, {"cls_token": False, "final_norm": False}, {"window_size": 0}):
        model = random_model(**arguments).train()
        model(images(2, 3, 64, 64)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_activation_checkpointing_changes_neither_result_nor_gradient() -> None:
    results = []
    for on in (False, True):
        model = random_model(CONFIG.replace(checkpoint_activations=on, drop_path_rate=0.5), window_size=2).train()
        torch.manual_seed(3)
        out = model(images(4, 3, 64, 64))
        out.square().mean().backward()
        results.append((out.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_drop_path_drops_whole_samples_and_grows_with_depth() -> None:
    model = random_model(CONFIG.replace(drop_path_rate=0.5)).train()
    assert [block.drop_path_rate for block in model.blocks] == [0.0, 0.25, 0.5]
    torch.manual_seed(0)
    factor = model.blocks[2].keep(torch.zeros(4000, 1, 1))
    assert set(factor.tolist()) == {0.0, 2.0}
    assert factor.mean().item() == pytest.approx(1.0, abs=0.1)
    assert model.eval().blocks[2].keep(torch.zeros(9, 1, 1)) is None


def test_names_decide_the_learning_rate() -> None:
    model = SpatialBEiT3(CONFIG)
    layers = {
        name: round(torch.log(torch.tensor(layer_decay_factor(f"backbone.net.{name}", 0.5, 3))).item() / -0.6931)
        for name, _ in model.named_parameters()
    }
    assert {layers[n] for n in ("pos_embed", "cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias")} == {4}
    for i in range(3):
        assert {depth for name, depth in layers.items() if name.startswith(f"blocks.{i}.")} == {3 - i}
    assert layers["norm.weight"] == 0


def test_a_detector_on_the_spatial_backbone_finds_its_names() -> None:
    from beit3_bench.backbones import build_detector

    detector = build_detector(
        SpatialBEiT3(CONFIG, window_size=2), num_classes=2, image_size=64, embed_dim=48, out_channels=8
    )
    assert "backbone.net.blocks.0.attn.qkv.weight" in detector.state_dict()
    (result,) = detector([{"image": torch.zeros(3, 50, 64, dtype=torch.uint8), "height": 100, "width": 128}])
    assert result["masks"].shape[1:] == (100, 128)


# ---- official weights ----------------------------------------------------------------------------------------------


def test_official_files_of_any_task_load(weights: dict[str, Tensor], tmp_path: Any) -> None:
    heads = load_file(BEIT3 / "weights_captioning.safetensors")
    save_file(weights | heads, tmp_path / "captioning.safetensors")
    model = SpatialBEiT3(CONFIG)
    report = load_spatial(model, tmp_path / "captioning.safetensors")
    assert not report.unexpected
    qkv = [weights[f"beit3.encoder.layers.1.self_attn.{x}_proj.A.weight"] for x in "qkv"]
    assert torch.equal(model.blocks[1].attn.qkv.weight, torch.cat(qkv))
    assert torch.equal(model.pos_embed[0], weights["beit3.encoder.embed_positions.A.weight"][2:])
    assert not any(".B." in name or "text" in name for name in report.loaded)
    wrapped = SpatialBEiT3(CONFIG)
    load_spatial(wrapped, {"model": {f"module.{k}": v for k, v in weights.items()}})
    assert torch.equal(wrapped.norm.weight, model.norm.weight)


def test_without_cls_and_norm_the_report_says_what_is_left(weights: dict[str, Tensor]) -> None:
    report = load_spatial(SpatialBEiT3(CONFIG, cls_token=False, final_norm=False), weights)
    assert report.unexpected == [
        "beit3.encoder.layer_norm.A.bias",
        "beit3.encoder.layer_norm.A.weight",
        "beit3.vision_embed.cls_token",
    ]


def test_shared_attention_uses_names_without_a_branch(weights: dict[str, Tensor]) -> None:
    paper = {
        name.replace(".A.", ".") if "self_attn" in name else name: value
        for name, value in weights.items()
        if not ("self_attn" in name and ".B." in name)
    }
    released, shared = SpatialBEiT3(CONFIG), SpatialBEiT3(CONFIG.replace(shared_attention=True))
    load_spatial(released, weights)
    load_spatial(shared, paper)
    assert all(torch.equal(a, b) for a, b in zip(released.parameters(), shared.parameters(), strict=True))


@torch.no_grad()
def test_patch_14_weights_become_patch_16(weights: dict[str, Tensor]) -> None:
    kernel = torch.randn(48, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    config = CONFIG.replace(image_size=56, patch_size=14)
    assert config.grid == 4
    model = SpatialBEiT3(config)
    report = load_spatial(model, weights | {"beit3.vision_embed.proj.weight": kernel})
    assert report.resized == {"beit3.vision_embed.proj.weight": "14x14 -> 16x16"}
    expected = F.interpolate(kernel, size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(model.patch_embed.proj.weight, expected)
    assert torch.equal(model.pos_embed[0], weights["beit3.encoder.embed_positions.A.weight"][2:])
    assert model(images(1, 3, 64, 96)).shape == (1, 48, 4, 6)


def test_positions_of_another_grid_are_interpolated(weights: dict[str, Tensor]) -> None:
    model = SpatialBEiT3(CONFIG.replace(image_size=96))
    report = load_spatial(model, weights)
    assert report.resized == {"beit3.encoder.embed_positions.A.weight": "4x4 -> 6x6"}
    table = weights["beit3.encoder.embed_positions.A.weight"][2:][None]
    torch.testing.assert_close(interpolated_positions(model.pos_embed, 6, 6), interpolated_positions(table, 6, 6))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (CONFIG, "beit3.encoder.layers.2.ffn.A.fc1.weight", "1 missing .*layers.2.ffn.A.fc1.weight"),
        (CONFIG, "beit3.encoder.layer_norm.A.weight", "final_norm=False"),
        (CONFIG.replace(depth=2), None, "without a place .*layers.2"),
        (CONFIG.replace(depth=4), None, "missing .*layers.3"),
        (CONFIG.replace(ffn_dim=96), None, "of another shape .*instead of"),
    ],
)
def test_checkpoints_that_do_not_fit_are_named(
    weights: dict[str, Tensor], config: BEiT3Config, change: str | None, message: str
) -> None:
    model = random_model(config)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(BenchError, match=message) as caught:
        load_spatial(model, {k: v for k, v in weights.items() if k != change}, origin="a.pth")
    assert str(caught.value).startswith("a.pth")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_report_tells_in_words_what_is_not_as_in_the_file(weights: dict[str, Tensor]) -> None:
    small = random_model(CONFIG.replace(image_size=CONFIG.image_size // 2), cls_token=False)
    remarks = load_spatial(small, weights).remarks()
    side = CONFIG.grid
    assert (
        f"embed_positions.A.weight was interpolated, {side}x{side} -> {side // 2}x{side // 2}; build the model"
        in remarks[0]
    )
    assert remarks[1:] == ["1 tensors left out: beit3.vision_embed.cls_token"]
    assert load_spatial(random_model(), weights).remarks() == []


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "model."])
def test_wrapped_names_are_those_of_the_tower(weights: dict[str, Tensor], prefix: str) -> None:
    model = random_model(seed=7)
    assert load_spatial(model, {"state_dict": {prefix + name: value for name, value in weights.items()}}).missing == []
    expected = random_model(seed=8)
    load_spatial(expected, weights)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_what_may_be_missing_is_allowed_by_pattern(weights: dict[str, Tensor]) -> None:
    short = {k: v for k, v in weights.items() if not k.startswith("beit3.encoder.layer_norm")}
    report = load_spatial(SpatialBEiT3(CONFIG), short, allow_missing=["*.layer_norm.A.*"])
    assert report.missing == ["beit3.encoder.layer_norm.A.weight", "beit3.encoder.layer_norm.A.bias"]


@pytest.mark.parametrize("arguments", [{"global_blocks": [3]}, {"window_size": -1}])
def test_impossible_blocks_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match=r"blocks 0\.\.2"):
        SpatialBEiT3(CONFIG, **arguments)
