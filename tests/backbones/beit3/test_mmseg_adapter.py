"""BEiT-3 inside mmsegmentation: equal to the vision tower, valid at any size, usable from a plain mmseg config."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from beit3_golden import document, inputs, outputs, tensors
from torch import Tensor, nn

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.errors import BenchError

pytest.importorskip("mmcv.ops", reason="mmcv with ops is not installed (extra: dense)", exc_type=ImportError)
pytest.importorskip("mmseg.apis", reason="mmsegmentation is not installed (extra: dense)", exc_type=ImportError)
pytest.importorskip("mmdet.models", reason="mmdetection is not installed (extra: dense)", exc_type=ImportError)

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS

from beit3_bench.backbones.beit3.mmseg_adapter import BEiT3, BEiT3Adapter, BEiT3Segmentor, configs
from beit3_bench.backbones.beit3.mmseg_adapter.adapter import Places, Sampling
from beit3_bench.backbones.beit3.mmseg_adapter.loading import build_segmentor
from beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config import config_dict, model_dict, variant_config
from beit3_bench.backbones.beit3.mmseg_adapter.optimizer import layer_of
from beit3_bench.backbones.beit3.mmseg_adapter.settings import VARIANTS, SegmentationSettings, variant
from beit3_bench.backbones.beit3.mmseg_adapter.tower import load_official
from beit3_bench.backbones.beit3.mmseg_adapter.training import StopAtNaN, TrainingJob, resumed_settings, tower_of

ARCH = {"image_size": 64, "patch_size": 16, "embed_dim": 48, "num_heads": 3, "ffn_dim": 96, "depth": 3}
GOLDEN = {**ARCH, "num_heads": 4, "ffn_dim": 192}
SMALL = SegmentationSettings(
    arch=ARCH, width=32, queries=5, encoder_layers=1, decoder_layers=1, decoder_ffn=32, points=32, conv_channels=4,
    crop=64, stride=32, mode="whole", photometric=False,
)  # fmt: skip
BACKBONES = [BEiT3, BEiT3Adapter]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Every parameter drawn, so that none of them is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            p.copy_(centre + scale * torch.randn(p.shape, generator=generator))
    return module


def segmentor(settings: SegmentationSettings, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(build_segmentor(Config({"model": model_dict(settings)})), seed).eval()


def training_batch(size: int, count: int, classes: int = 150) -> dict[str, Any]:
    """Random pixels, and labels in squares with an ignored one."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {"inputs": [], "data_samples": []}
    for _ in range(count):
        label = torch.randint(0, classes, (1, 4, 4), generator=generator)
        label[0, 0, 0] = 255
        sample = SegDataSample(metainfo={"img_shape": (size, size), "ori_shape": (size, size)})
        sample.gt_sem_seg = PixelData(data=label.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2))
        batch["inputs"].append(torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8))
        batch["data_samples"].append(sample)
    return batch


# ---- the tower -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", BACKBONES)
def test_stride_16_map_equals_the_vision_tower(kind: type[nn.Module]) -> None:
    backbone = kind(arch=GOLDEN).eval()
    report = load_official(backbone.net, tensors("weights_backbone"))
    assert not report.missing
    expected = outputs()["backbone.vision_only"][:, 1:]
    pool = inputs()["images"][: len(expected)]
    tower = backbone.net(pool)
    if kind is BEiT3Adapter:  # without final norm, as ViT-Adapter; the golden output has it
        assert report.unexpected == ["beit3.encoder.layer_norm.A.bias", "beit3.encoder.layer_norm.A.weight"]
        norm = [tensors("weights_backbone")[f"beit3.encoder.layer_norm.A.{k}"] for k in ("weight", "bias")]
        tower = F.layer_norm(tower.permute(0, 2, 3, 1), (48,), *norm, 1e-5).permute(0, 3, 1, 2)
    tolerance = 10 * document("manifest")["fp32_noise_floor"]["backbone.vision_only"]["max_abs"]
    torch.testing.assert_close(tower.flatten(2).transpose(1, 2), expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_an_adapter_whose_gamma_is_zero_leaves_the_tower_alone() -> None:
    backbone = randomised(BEiT3Adapter(arch=ARCH)).eval()
    images = noise(2, 3, 64, 96)
    seen: list[Tensor] = []
    backbone.interactions[-1].extractors[0].register_forward_hook(lambda _, arguments, __: seen.append(arguments[1]))
    backbone(images)
    touched = seen.pop()
    for interaction in backbone.interactions:
        nn.init.zeros_(interaction.injector.gamma)
    backbone(images)
    expected = backbone.net(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen.pop(), expected, atol=1e-6, rtol=0)
    assert (touched - expected).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (72, 131), (33, 32), (20, 50)])
def test_maps_have_strides_4_8_16_32_at_any_size(kind: type[nn.Module], size: tuple[int, int]) -> None:
    backbone = randomised(kind(arch=ARCH)).eval()
    images = noise(2, 3, *size)
    maps = backbone(images)
    width = 256 if kind is BEiT3 else 48
    assert [tuple(m.shape) for m in maps] == [(2, width, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    assert all(m.isfinite().all() for m in maps)
    whole = F.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
    for m, of_padded in zip(maps, backbone(whole), strict=True):
        assert torch.equal(m, of_padded[:, :, : m.shape[2], : m.shape[3]])


@torch.no_grad()
@pytest.mark.parametrize("kind", BACKBONES)
def test_windows_change_what_is_seen_and_global_blocks_do_not(kind: type[nn.Module]) -> None:
    plain = randomised(kind(arch=ARCH)).eval()
    windowed = randomised(kind(arch=ARCH, window_size=2, global_blocks=[2])).eval()
    everywhere = randomised(kind(arch=ARCH, window_size=2, global_blocks=[0, 1, 2])).eval()
    images = noise(1, 3, 96, 96)
    assert torch.equal(plain(images)[2], everywhere(images)[2])
    assert not torch.allclose(plain(images)[2], windowed(images)[2], atol=1e-3)


@pytest.mark.parametrize("kind", BACKBONES)
def test_activation_checkpointing_gives_the_same_gradients(kind: type[nn.Module]) -> None:
    gradients = []
    for with_cp in (False, True):
        backbone = randomised(kind(arch=ARCH, with_cp=with_cp)).train()
        sum((m**2).mean() for m in backbone(noise(2, 3, 64, 64))).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_every_parameter_of_a_segmentor_learns() -> None:
    """A parameter without gradient would stop distributed training."""
    for neck in ("adapter", "pyramid"):
        model = segmentor(SMALL.replace(neck=neck)).train()
        data = model.data_preprocessor(training_batch(64, 2), True)
        losses = model(**data, mode="loss")
        sum(v for k, v in losses.items() if "loss" in k).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None]
        assert without == []


@pytest.mark.parametrize("kind", BACKBONES)
def test_drop_path_is_random_in_training_only(kind: type[nn.Module]) -> None:
    backbone = randomised(kind(arch=ARCH, drop_path_rate=0.9))
    images = noise(1, 3, 64, 64)
    with torch.no_grad():
        backbone.eval()
        assert torch.equal(backbone(images)[2], backbone(images)[2])
        backbone.train()
        outcomes = {float(backbone.net(images).sum()) for _ in range(8)}
    assert len(outcomes) > 1


# ---- deformable attention --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_sampling_without_offsets_reads_each_querys_own_place() -> None:
    """Queries and tokens on one grid, identity projections: out comes what lies at the query's own cell."""
    sampling = Sampling(dim=8, heads=2, levels=1, points=4, ratio=1.0).eval()
    for layer in (sampling.attn.sampling_offsets, sampling.attn.value_proj, sampling.attn.output_proj):
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(sampling.attn.sampling_offsets.weight)
    for layer in (sampling.attn.value_proj, sampling.attn.output_proj):
        nn.init.eye_(layer.weight)
    grid = Places([(3, 5)], torch.device("cpu"))
    tokens = noise(2, 15, 8)
    expected = F.layer_norm(tokens, (8,), eps=1e-6)
    torch.testing.assert_close(sampling(noise(2, 15, 8, seed=1), tokens, at=grid, of=grid), expected)


def test_places_are_cell_centres_level_after_level() -> None:
    places = Places([(2, 4), (1, 2)], torch.device("cpu"))
    assert places.starts.tolist() == [0, 8]
    assert places.shapes.tolist() == [[2, 4], [1, 2]]
    assert places.centres.shape == (1, 10, 1, 2)
    assert places.centres[0, 1, 0].tolist() == [0.375, 0.25]  # x of the second column, y of the first row
    assert places.centres[0, 9, 0].tolist() == [0.75, 0.5]


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["retrieval", "vqav2", "imagenet", "captioning"])
def test_official_checkpoints_of_every_task_load(task: str, tmp_path: Path) -> None:
    file = tmp_path / "official.pth"
    torch.save({"model": {**tensors("weights_backbone"), **tensors(f"weights_{task}")}}, file)
    backbone = BEiT3(arch=GOLDEN, init_cfg={"type": "Pretrained", "checkpoint": str(file)})
    before = backbone.simfp_2[0].weight.clone()
    backbone.init_weights()
    loaded = tensors("weights_backbone")["beit3.vision_embed.proj.weight"]
    own = {**tensors("weights_backbone"), **tensors(f"weights_{task}")}["beit3.vision_embed.proj.weight"]
    assert torch.equal(backbone.net.patch_embed.proj.weight, own)
    assert own.shape == loaded.shape
    assert torch.equal(backbone.simfp_2[0].weight, before)


def test_a_patch_kernel_of_another_size_is_resampled() -> None:
    backbone = BEiT3Adapter(arch={**GOLDEN, "patch_size": 8, "image_size": 32})
    weights = dict(tensors("weights_backbone"))
    weights["beit3.vision_embed.proj.weight"] = noise(48, 3, 8, 8)
    report = load_official(backbone.net, weights)
    assert report.resized == {"beit3.vision_embed.proj.weight": "8x8 -> 16x16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("beit3.encoder.layers.1.self_attn.k_proj.A.weight"), "missing .*k_proj.A.weight"),
        (lambda w: w.update({"beit3.vision_embed.cls_token": torch.zeros(1, 1, 8)}), "of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, message: str) -> None:
    weights = dict(tensors("weights_backbone"))
    change(weights)
    with pytest.raises(BenchError, match=message):
        load_official(BEiT3(arch=GOLDEN).net, weights)


def test_bad_backbone_settings_are_told() -> None:
    with pytest.raises(BenchError, match="did you mean 'large'"):
        BEiT3(arch="lagre")
    with pytest.raises(BenchError, match=r"backbone\.arch: no field 'dim'"):
        BEiT3Adapter(arch={"dim": 3})
    with pytest.raises(BenchError, match="init_cfg"):
        BEiT3(arch=ARCH, init_cfg={"type": "Normal"}).init_weights()


# ---- configs ---------------------------------------------------------------------------------------------------------


def test_every_variant_has_its_config_file_and_every_file_its_variant() -> None:
    assert {p.stem for p in configs.paths()} == {f"beit3_{name.replace('-', '_')}" for name in VARIANTS}


@pytest.mark.parametrize("path", configs.paths(), ids=lambda p: p.stem)
def test_a_config_file_is_what_mmengine_reads_and_writes(path: Path, tmp_path: Path) -> None:
    config = Config.fromfile(str(path))
    expected = Config(variant_config(path.stem.removeprefix("beit3_").replace("_", "-")))
    assert config.to_dict() == expected.to_dict()
    config.dump(str(tmp_path / "copy.py"))
    again = Config.fromfile(str(tmp_path / "copy.py"))
    assert again.model.to_dict() == expected.model.to_dict()
    assert config.model.backbone.type in ("BEiT3", "BEiT3Adapter")


def test_published_settings() -> None:
    """ViT-Adapter's large models and mmseg's Mask2Former, as their configs have them."""
    large, large896, pyramid = VARIANTS["large"], VARIANTS["large-896"], VARIANTS["base-pyramid"]
    assert (large.crop, large.stride, large.queries, large.steps, large.width) == (640, 426, 100, 160_000, 1024)
    assert (large896.crop, large896.stride, large896.queries, large896.steps) == (896, 512, 200, 80_000)
    assert (large.lr, large.layer_decay, large.drop_path, large.warmup_steps, large.power) == (
        2e-5,
        0.9,
        0.3,
        1500,
        1.0,
    )
    assert large896.ratios == pytest.approx((0.714286, 0.857143, 1.0), abs=1e-6)
    assert (pyramid.crop, pyramid.mode, pyramid.lr, pyramid.clip_grad, pyramid.power) == (512, "whole", 1e-4, 0.01, 0.9)
    config = config_dict(large896)
    windows = {"mode": "slide", "crop_size": (896, 896), "stride": (512, 512)}
    assert config["model"]["test_cfg"] == {**windows, "sigmoid_first": True}
    assert config["test_pipeline"][1]["scale"] == (3584, 896)
    head = config["model"]["decode_head"]
    assert (head["num_classes"], len(head["loss_cls"]["class_weight"]), head["train_cfg"]["num_points"]) == (
        150,
        151,
        12544,
    )


@pytest.mark.parametrize("name", ["base-pyramid", "large-pyramid"])
def test_pyramid_variants_resize_and_warm_up_as_mmseg(name: str) -> None:
    settings = VARIANTS[name]
    config = config_dict(settings)
    resize = config["train_pipeline"][2]
    crop = settings.crop
    assert resize == {
        "type": "RandomChoiceResize", "scales": [int(crop * x * 0.1) for x in range(5, 21)],
        "resize_type": "ResizeShortestEdge", "max_size": 4 * crop,
    }  # fmt: skip
    assert [(part["type"], part["begin"]) for part in config["param_scheduler"]] == [("PolyLR", 0)]
    assert "sigmoid_first" not in config["model"]["test_cfg"]
    assert "ResizeToMultiple" not in [step["type"] for step in config["test_pipeline"]]
    with DefaultScope.overwrite_default_scope("mmseg"):
        made = TRANSFORMS.build(resize)(
            {"img": np.zeros((60, 600, 3), np.uint8), "gt_seg_map": np.zeros((60, 600), np.uint8)}
        )
    assert max(made["img"].shape) == 4 * crop


@pytest.mark.parametrize(
    ("name", "longest"), [("base", 2048), ("base-640", 2048), ("large", 2048), ("large-896", 3584)]
)
def test_adapter_variants_resize_as_vit_adapter(name: str, longest: int) -> None:
    settings = VARIANTS[name]
    config = config_dict(settings)
    assert config["train_pipeline"][2]["scale"] == config["test_pipeline"][1]["scale"] == (longest, settings.crop)
    assert config["test_pipeline"][2] == {"type": "ResizeToMultiple", "size_divisor": 32}
    stages = config["tta_pipeline"][1]["transforms"]
    assert stages[1] == [{"type": "ResizeToMultiple", "size_divisor": 32}]
    assert settings.cropped(448).longest_side == round(longest * 448 / settings.crop)
    with DefaultScope.overwrite_default_scope("mmseg"):
        steps = [TRANSFORMS.build(dict(step)) for step in config["test_pipeline"][1:3]]
    record = {"img": np.zeros((333, 500, 3), np.uint8), "img_shape": (333, 500)}
    for step in steps:
        record = step(record)
    assert all(side % 32 == 0 for side in record["img"].shape[:2])
    assert min(record["img"].shape[:2]) == settings.crop


def test_896_pixels_start_from_a_segmentor_of_coco_stuff() -> None:
    stuff, ade = VARIANTS["large-896-coco-stuff"], VARIANTS["large-896"]
    assert stuff.replace(dataset="ade20k", classes=150) == ade
    config = config_dict(stuff)
    assert config["train_dataloader"]["dataset"]["type"] == "COCOStuffDataset"
    assert config["train_dataloader"]["dataset"]["data_prefix"] == {
        "img_path": "images/train2017", "seg_map_path": "annotations/train2017"
    }  # fmt: skip
    assert config["train_pipeline"][1] == config["test_pipeline"][3] == {"type": "LoadAnnotations"}
    head = config["model"]["decode_head"]
    assert (head["num_classes"], len(head["loss_cls"]["class_weight"])) == (171, 172)
    from mmseg.datasets import COCOStuffDataset

    assert len(COCOStuffDataset.METAINFO["classes"]) == 171


def test_settings_of_an_earlier_version_keep_what_they_stood_for() -> None:
    later = {"dataset", "longest", "resizing", "multiple", "sigmoid_first", "head_embeddings_first"}
    stored = {k: v for k, v in VARIANTS["large"].to_dict().items() if k not in later}
    settings = SegmentationSettings.from_dict(stored, "best.pth")
    config = config_dict(settings)
    assert config["model"]["test_cfg"] == {"mode": "slide", "crop_size": (640, 640), "stride": (426, 426)}
    assert [step["type"] for step in config["test_pipeline"]] == [
        "LoadImageFromFile", "Resize", "LoadAnnotations", "PackSegInputs"
    ]  # fmt: skip
    assert config["test_pipeline"][1]["scale"] == (2560, 640)
    assert config["train_pipeline"][2]["type"] == "RandomResize"
    assert not config["optim_wrapper"]["paramwise_cfg"]["head_embeddings_first"]


def test_a_state_of_an_earlier_version_is_resumed_under_its_settings(tmp_path: Path) -> None:
    stored = {k: v for k, v in VARIANTS["tiny"].to_dict().items() if k not in ("multiple", "sigmoid_first", "batch")}
    (tmp_path / "training.json").write_text(json.dumps({"settings": stored}))
    job = TrainingJob(VARIANTS["tiny"].replace(multiple=32, sigmoid_first=True, batch=2), tmp_path, tmp_path)
    assert resumed_settings(job) == VARIANTS["tiny"].replace(batch=2)


def test_a_segmentor_of_mmsegs_own_tools_tells_its_tower(tmp_path: Path) -> None:
    arch = {**BEiT3Config.preset("tiny", patch_size=16).to_dict(), "num_pieces": None}
    model = segmentor(SMALL.replace(arch=arch))
    source = Checkpoint(tmp_path / "iter_9.pth", dict(model.state_dict()), {}, {}, "")
    found = tower_of(source, "tiny")
    assert {k: found[k] for k in ("embed_dim", "depth", "num_heads", "ffn_dim", "image_size", "patch_size")} == {
        "embed_dim": 96, "depth": 4, "num_heads": 4, "ffn_dim": 384, "image_size": 64, "patch_size": 16
    }  # fmt: skip


def test_two_lines_are_enough_in_a_plain_config(tmp_path: Path) -> None:
    """A fresh process that knows this project only through ``custom_imports``."""
    config = tmp_path / "mine.py"
    config.write_text(
        'custom_imports = dict(imports=["mmdet.models", "beit3_bench.backbones.beit3.mmseg_adapter"])\n'
        f"model = dict(type='EncoderDecoder', backbone=dict(type='BEiT3', arch={ARCH}, out_channels=32),\n"
        "    decode_head=dict(type='FCNHead', in_channels=32, in_index=0, channels=8, num_convs=1, num_classes=7,\n"
        "        norm_cfg=dict(type='BN')), train_cfg=dict(), test_cfg=dict(mode='whole'))\n"
    )
    program = (
        "import torch; from mmseg.apis import init_model\n"
        f"model = init_model({str(config)!r}, device='cpu')\n"
        "print('classes', model.encode_decode(torch.zeros(1, 3, 48, 80), [dict(img_shape=(48, 80))]).shape[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("classes 7"), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neck": "fpn"}, "neck is 'fpn'; give one of: adapter, pyramid"),
        ({"mode": "crops"}, "give one of: slide, whole"),
        ({"crop": 500}, "nearest that is: 512"),
        ({"stride": 600}, "pixels would be left out"),
        ({"width": 100}, "multiple of 32"),
        ({"queries": 0}, "whole number from 1 on"),
    ],
)
def test_contradicting_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        SegmentationSettings(**values)


def test_settings_survive_a_checkpoint_and_foreign_ones_are_named() -> None:
    for settings in VARIANTS.values():
        assert SegmentationSettings.from_dict(settings.to_dict(), "x.pth") == settings
    with pytest.raises(BenchError, match=r"x\.pth: .*no field 'colour'"):
        SegmentationSettings.from_dict({"colour": 1}, "x.pth")
    with pytest.raises(BenchError, match="did you mean 'large-896'"):
        variant("large-869")
    assert variant("beit3_large_896.py") is VARIANTS["large-896"]


# ---- windows over an image -------------------------------------------------------------------------------------------


def meta(height: int, width: int) -> dict[str, Any]:
    return {
        "img_shape": (height, width),
        "pad_shape": (height, width),
        "ori_shape": (height, width),
        "padding_size": [0] * 4,
    }


@torch.no_grad()
@pytest.mark.parametrize("neck", ["adapter", "pyramid"])
def test_sliding_windows_are_the_mean_of_their_crops(neck: str) -> None:
    model = segmentor(SMALL.replace(neck=neck, mode="slide"))
    images = noise(1, 3, 64, 150)
    total, count = torch.zeros(1, 150, 64, 150), torch.zeros(1, 1, 64, 150)
    for left in (0, 32, 64, 86):
        crop = images[..., left : left + 64]
        total[..., left : left + 64] += model.encode_decode(crop, [meta(64, 64)])
        count[..., left : left + 64] += 1
    actual = model.inference(images, [meta(64, 150)])
    torch.testing.assert_close(actual, total / count)


@torch.no_grad()
def test_one_window_is_the_whole_image() -> None:
    slide, whole = segmentor(SMALL.replace(mode="slide")), segmentor(SMALL)
    images = noise(1, 3, 64, 64)
    assert torch.equal(slide.inference(images, [meta(64, 64)]), whole.inference(images, [meta(64, 64)]))


@torch.no_grad()
def test_masks_go_through_the_sigmoid_before_they_are_enlarged_as_in_vit_adapter() -> None:
    plain, first = segmentor(SMALL), segmentor(SMALL.replace(sigmoid_first=True))
    images = noise(2, 3, 64, 96)
    metas = [meta(64, 96)] * 2
    from mmseg.structures import SegDataSample

    scores, masks = plain.decode_head(plain.extract_feat(images), [SegDataSample(metainfo=m) for m in metas])
    classes, masks = scores[-1].softmax(dim=-1)[..., :-1], masks[-1]
    assert masks.shape[2:] == (16, 24)
    coarse = torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())
    expected = F.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(first.encode_decode(images, metas), expected)
    fine = F.interpolate(masks, size=(64, 96), mode="bilinear", align_corners=False).sigmoid()
    torch.testing.assert_close(plain.encode_decode(images, metas), torch.einsum("bqc,bqhw->bchw", classes, fine))
    assert (expected - plain.encode_decode(images, metas)).abs().max() > 1e-3


def test_injectors_start_where_vit_adapter_starts_them() -> None:
    for interaction in BEiT3Adapter(arch=ARCH).interactions:
        assert torch.equal(interaction.injector.gamma, torch.full((48,), 1e-6))


def test_the_segmentor_is_mmsegs_but_for_the_crops_size() -> None:
    assert MODELS.get("BEiT3Segmentor") is BEiT3Segmentor
    own = {name for name in vars(BEiT3Segmentor) if not name.startswith("__")}
    assert own <= {"encode_decode", "_abc_impl"}


# ---- optimizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neck", ["adapter", "pyramid"])
def test_layer_decay_reaches_every_parameter_once(neck: str) -> None:
    model = segmentor(SMALL.replace(neck=neck))
    config = config_dict(SMALL.replace(neck=neck, lr=1.0, layer_decay=0.5, backbone_lr_mult=0.1, weight_decay=0.05))
    wrapper = Config(config).optim_wrapper
    kind = OPTIM_WRAPPER_CONSTRUCTORS.get(wrapper.pop("constructor"))
    optimizer = kind(wrapper, wrapper.pop("paramwise_cfg"))(model).optimizer
    names = {id(p): n for n, p in model.named_parameters()}
    rate, decay = {}, {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert names[id(p)] not in rate
            rate[names[id(p)]], decay[names[id(p)]] = group["lr"], group["weight_decay"]
    assert rate.keys() == set(names.values())
    depth = 3
    assert rate["backbone.net.pos_embed"] == pytest.approx(0.1 * 0.5 ** (depth + 1))
    assert rate["backbone.net.blocks.0.attn.qkv.weight"] == pytest.approx(0.1 * 0.5**depth)
    assert rate["backbone.net.blocks.2.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5)
    new = [n for n in rate if not n.startswith("backbone.net.")]
    assert {rate[n] for n in new} == {1.0}
    assert len(new) > 50
    for name, p in model.named_parameters():
        free = p.ndim == 1 or any(k in name for k in ("pos_embed", "cls_token", "level_", "query_embed", "query_feat"))
        assert decay[name] == (0.0 if free else 0.05), name
    assert layer_of("backbone.interactions.0.injector.gamma", 12) == 13
    assert layer_of("backbone.net.blocks.11.norm1.weight", 12) == 12


def test_queries_learn_at_the_rate_of_the_first_layer_in_vit_adapters_recipe() -> None:
    """As its `LayerDecayOptimizerConstructor`: rate ** (depth + 1) for them, and they decay as matrices do."""
    model = segmentor(SMALL)
    settings = SMALL.replace(
        lr=1.0, layer_decay=0.5, weight_decay=0.05, head_embeddings_first=True, backbone_lr_mult=0.1
    )
    wrapper = Config(config_dict(settings)).optim_wrapper
    kind = OPTIM_WRAPPER_CONSTRUCTORS.get(wrapper.pop("constructor"))
    groups = kind(wrapper, wrapper.pop("paramwise_cfg"))(model).optimizer.param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    first = 0.5**4
    for name in (
        "query_embed.weight",
        "query_feat.weight",
        "level_embed.weight",
        "cls_embed.weight",
        "mask_embed.0.weight",
    ):
        assert found[f"decode_head.{name}"] == (first, 0.05), name
    assert found["decode_head.cls_embed.bias"] == (first, 0.0)
    assert found["backbone.net.pos_embed"] == (pytest.approx(0.1 * first), 0.0)
    assert found["decode_head.pixel_decoder.level_encoding.weight"] == (1.0, 0.05)
    assert found["backbone.level_embed"] == (1.0, 0.05)
    assert VARIANTS["large"].head_embeddings_first
    assert not VARIANTS["large-pyramid"].head_embeddings_first


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    class Runner:
        iter = 20

    with pytest.raises(BenchError, match="not finite at step 20"):
        StopAtNaN().after_train_iter(Runner(), 20, outputs={"loss": torch.tensor(float("nan"))})  # type: ignore[arg-type]
    StopAtNaN().after_train_iter(Runner(), 20, outputs={"loss": torch.tensor(1.0)})  # type: ignore[arg-type]


# ---- full size -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "base-pyramid"])
def test_the_full_size_base_config_trains_two_steps_on_a_crop_of_512(name: str) -> None:
    config = Config.fromfile(str(configs.FOLDER / f"beit3_{name.replace('-', '_')}.py"))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config.model).train()
    wrapper = config.optim_wrapper
    optimizer = OPTIM_WRAPPER_CONSTRUCTORS.get(wrapper.pop("constructor"))(wrapper, wrapper.pop("paramwise_cfg"))(model)
    before = model.backbone.net.blocks[0].mlp.fc1.weight.detach().clone()
    batch = training_batch(512, 1)
    losses = [float(model.train_step(batch, optimizer)["loss"]) for _ in range(2)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert not torch.equal(before, model.backbone.net.blocks[0].mlp.fc1.weight)
    assert BEiT3Config.preset("base").depth == len(model.backbone.net.blocks)
