"""The detectron2 adapter: what it registers and mends, and that both engines agree. Skipped where detectron2 is absent."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, load
from PIL import Image

from beit3_bench.backbones.beit3 import detectron2_adapter as adapter
from beit3_bench.backbones.beit3.checkpoint import official_state_dict
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.options import DetectorOptions
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan, strided
from beit3_bench.backbones.beit3.detection.recipe import param_groups
from beit3_bench.backbones.beit3.detection.weights import load_detector
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.errors import BenchError

needs_detectron2 = pytest.mark.skipif(
    not adapter.is_available(), reason="detectron2 does not import here; build it to run the adapter's tests"
)
HEADS = ["mask_rcnn", "cascade_mask_rcnn"]
SOFT = [None, {"method": "linear"}, {"method": "gaussian", "sigma": 0.3}]
TOWER = BEiT3Config(image_size=64, patch_size=16, embed_dim=32, num_heads=2, ffn_dim=64, depth=4)
POLYGON = [10.0, 12, 70, 12, 70, 80, 40, 60, 10, 80]


def plan(head: str = "mask_rcnn", **changes: Any) -> DetectorPlan:
    sizes = {"num_classes": 5, "image_size": 128, "window_size": 3, "out_channels": 16, "fc_dim": 24, **changes}
    return DetectorPlan(head=head, **sizes)


def pair(head: str, **inference: Any) -> tuple[Any, Any]:
    """A native detector and a detectron2 one with the same weights."""
    torch.manual_seed(0)
    own = plan(head)
    native = own.build(TOWER, **inference)
    with torch.no_grad():
        for name, parameter in native.roi_heads.named_parameters():
            if name.endswith(("cls_score.weight", "predictor.weight")):
                parameter.normal_(std=0.3)
    other = adapter.build_model(own, TOWER, **inference)
    load_detector(other, native.state_dict(), "the native detector")
    return native, other


def inputs() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(100, 128), (128, 77)]
    images = [torch.randint(0, 256, (3, *s), dtype=torch.uint8, generator=generator) for s in shapes]
    return [{"image": images[0], "height": 200, "width": 256}, {"image": images[1], "height": 64, "width": 40}]


def targets(kind: str) -> list[dict[str, Any]]:
    boxes, classes = torch.tensor([[10.0, 12, 70, 80], [20, 20, 60, 60]]), torch.tensor([2, 4])
    masks: Any = [[POLYGON], [[20.0, 20, 60, 20, 60, 60]]]
    result = []
    for height, width in [(100, 128), (128, 77)]:
        if kind == "bitmaps":
            masks = torch.zeros(2, height, width, dtype=torch.bool)
            masks[0, 12:80, 10:70] = masks[1, 20:60, 20:50] = True
        result.append({"boxes": boxes, "classes": classes, "masks": masks})
    return result


# ---- without detectron2 -----------------------------------------------------------------------------------------------


def test_asking_for_the_adapter_without_detectron2_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, "detectron2._C", None)
    with pytest.raises(BenchError, match=r"needs detectron2.*pip install .*facebookresearch/detectron2"):
        _ = adapter.build_model


def test_importing_the_adapter_loads_neither_torch_nor_detectron2():
    code = (
        "import sys, beit3_bench.backbones.beit3.detectron2_adapter as a; dir(a)\n"
        "assert not {'torch', 'detectron2'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_detectron2_that_lacks_what_it_needs_is_not_available(monkeypatch):
    """detectron2's model zoo imports pkg_resources, which setuptools has no more: auto must then be the native engine."""
    fake = types.ModuleType("detectron2")
    fake.__path__, fake.__spec__ = [], importlib.machinery.ModuleSpec("detectron2", None)
    compiled = types.ModuleType("detectron2._C")
    monkeypatch.setitem(sys.modules, "detectron2", fake)
    monkeypatch.setitem(sys.modules, "detectron2._C", compiled)
    for name in [n for n in sys.modules if n.startswith(("detectron2.", f"{adapter.__name__}."))]:
        if name != "detectron2._C":
            monkeypatch.delitem(sys.modules, name)
    assert not adapter.is_available()
    assert "install it with: pip install 'setuptools<82' wheel ninja shapely && " in adapter.problem()
    assert DetectorOptions().chosen_engine() == "native"
    with pytest.raises(BenchError, match=r"needs detectron2.*setuptools<82"):
        _ = adapter.build_model


@needs_detectron2
def test_without_pkg_resources_auto_is_the_native_engine():
    code = (
        "import sys; sys.modules['pkg_resources'] = None\n"
        "from beit3_bench.backbones import detectron2_adapter as a\n"
        "assert not a.is_available(); assert 'setuptools<82' in a.problem(), a.problem()\n"
        "from beit3_bench.backbones.beit3.detection.options import DetectorOptions\n"
        "assert DetectorOptions().chosen_engine() == 'native'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = adapter.no_such_thing


# ---- both engines -----------------------------------------------------------------------------------------------------


@needs_detectron2
@pytest.mark.parametrize("soft", SOFT, ids=["nms", "linear", "gaussian"])
@pytest.mark.parametrize("head", HEADS)
def test_both_engines_give_the_same_detections(head, soft):
    native, other = pair(head, score_threshold=0.05, soft_nms=soft, detections_per_image=60)
    assert set(native.state_dict()) == set(other.state_dict())
    with torch.no_grad():
        ours, theirs = native.detect(inputs()), other.detect(inputs())
    for a, b in zip(ours, theirs, strict=True):
        assert len(a["scores"]) == len(b["scores"]) > 5
        assert torch.equal(a["classes"], b["classes"])
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-5, rtol=0)
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-3, rtol=0)
        assert (a["masks"] != b["masks"]).float().mean() < 1e-5


@needs_detectron2
@pytest.mark.parametrize("kind", ["polygons", "bitmaps"])
@pytest.mark.parametrize("head", HEADS)
def test_both_engines_give_the_same_losses_and_gradients(head, kind):
    """Every anchor and proposal enters the losses, so that nothing random is left."""
    results = []
    for model in pair(head):
        for part in (model.proposal_generator, model.roi_heads):
            part.batch_size_per_image, part.positive_fraction = 100_000, 0.5
        model.train()
        losses = model.losses(inputs(), targets(kind))
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((losses, gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert set(ours) == set(theirs)
    for name, loss in ours.items():
        torch.testing.assert_close(loss, theirs[name], atol=1e-5, rtol=1e-4)
    assert set(our_gradients) == set(their_gradients)
    for name, gradient in our_gradients.items():
        scale = their_gradients[name].abs().max().clamp(min=1e-6)
        assert (gradient - their_gradients[name]).abs().max() / scale < 2e-3, name


@needs_detectron2
@pytest.mark.parametrize("masks", [True, False])
def test_detectors_with_and_without_masks_can_be_built(masks):
    model = adapter.build_model(plan("cascade_mask_rcnn", with_masks=masks), TOWER)
    assert set(model.state_dict()) == set(plan("cascade_mask_rcnn", with_masks=masks).build(TOWER).state_dict())
    with torch.no_grad():
        assert ("masks" in model.detect(inputs())[0]) == masks


@needs_detectron2
def test_the_task_gives_the_same_rows_with_either_engine(tmp_path):
    from beit3_bench.tasks.coco_det import CocoDetection
    from beit3_bench.tasks.tinyworld.world import write_tiny_world

    write_tiny_world(tmp_path / "tiny", size="mini")
    native = plan("mask_rcnn", num_classes=6).build(TOWER)
    settings = {"head": "detection", "config": TOWER.to_dict(), "head_arguments": plan(num_classes=6).to_dict()}
    torch.save({"model": native.state_dict(), "beit3_bench": settings}, tmp_path / "model_final.pth")
    rows = []
    for engine in ("native", "auto"):
        task = CocoDetection(tmp_path / "tiny" / "coco", {"engine": engine, "score_threshold": "0.1"})
        split = task.limited(task.read("val2017"), 2)
        model = load(task, split, tmp_path / "model_final.pth")
        rows.append(ask(task, split, model).values())
    assert model.card.resolved["engine"] == "detectron2"
    for ours, theirs in zip(*rows, strict=True):
        assert len(ours["detections"]) > 5
        for a, b in zip(ours["detections"], theirs["detections"], strict=True):
            assert a["category_id"] == b["category_id"]
            assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
            assert a["segmentation"]["size"] == b["segmentation"]["size"]


# ---- backbone ---------------------------------------------------------------------------------------------------------


@needs_detectron2
def test_the_tower_is_registered_and_tells_its_shape():
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone

    assert BACKBONE_REGISTRY.get("BEiT3ViT") is adapter.BEiT3ViT
    tower = adapter.BEiT3ViT(embed_dim=32, depth=4, num_heads=2, ffn_dim=64, grid=4)
    assert isinstance(tower, Backbone)
    shape = tower.output_shape()["last_feat"]
    features = tower(torch.zeros(1, 3, 64, 96))["last_feat"]
    assert (shape.channels, shape.stride) == (32, 16)
    assert features.shape == (1, 32, 4, 6)


@needs_detectron2
def test_yaml_configurations_build_the_pyramid():
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    cfg = get_cfg()
    adapter.add_beit3_config(cfg)
    node = cfg.MODEL.BEIT3
    node.EMBED_DIM, node.DEPTH, node.NUM_HEADS, node.FFN_DIM, node.SQUARE_PAD = 32, 4, 2, 64, 128
    cfg.MODEL.BACKBONE.NAME = "build_beit3_pyramid"
    pyramid = build_backbone(cfg)
    assert isinstance(pyramid, adapter.BEiT3FeaturePyramid)
    maps = pyramid(torch.zeros(1, 3, 128, 128))
    assert {name: tuple(m.shape[2:]) for name, m in maps.items()} == {
        "p2": (32, 32), "p3": (16, 16), "p4": (8, 8), "p5": (4, 4), "p6": (2, 2)
    }  # fmt: skip


@needs_detectron2
def test_without_a_square_images_are_padded_to_what_the_pyramid_sees():
    model = adapter.build_model(plan(), TOWER)
    model.backbone._square_pad = 0
    assert model.preprocess_image([{"image": torch.zeros(3, 100, 170)}]).tensor.shape == (1, 3, 128, 192)


@needs_detectron2
@pytest.mark.parametrize("shape", [(129, 64), (64, 200)])
def test_an_image_beyond_the_square_is_an_error_and_not_cropped(shape):
    model = adapter.build_model(plan(), TOWER)
    with pytest.raises(BenchError, match=f"{shape[0]}x{shape[1]}, larger than the detector's 128x128"):
        model.detect([{"image": torch.zeros(3, *shape)}])


# ---- training ---------------------------------------------------------------------------------------------------------


@needs_detectron2
def test_every_config_file_loads_with_the_published_numbers():
    from detectron2.config import LazyConfig

    import beit3_bench.backbones.beit3.detectron2_adapter.configs as configs

    files = sorted(Path(configs.__path__[0]).glob("[!_]*.py"))
    assert len(files) == 13
    for file in files:
        config = LazyConfig.load(str(file))
        preset = next(name for name in ("base", "large", "giant") if name in file.name)
        objects, side = "objects365" in file.name, 1280 if "1280" in file.name else 1024
        assert config.train.max_iter == (408349 if objects else 184375 if side == 1024 else 36875)
        assert config.optimizer.lr == (5e-5 if side == 1280 else 1e-4)
        assert config.model.backbone.square_pad == config.dataloader.test.mapper.augmentations[0].max_size == side
        assert config.dataloader.train.total_batch_size == 64
        depth, rate = {"base": (12, 0.7), "large": (24, 0.8), "giant": (40, 0.9)}[preset]
        net, heads = config.model.backbone.net, config.model.roi_heads
        assert (net.depth, net.shared_attention) == (depth, preset == "giant")
        assert ("box_heads" in heads) == file.name.startswith("cascade")
        assert heads.num_classes == (365 if objects else 80)
        masks = config.dataloader.train.mapper.use_instance_mask, config.dataloader.train.mapper.recompute_boxes
        assert {"mask_head" in heads, *masks} == {not objects}
        factor = config.optimizer.params.lr_factor_func
        assert factor("backbone.net.blocks.0.attn.qkv.weight") == pytest.approx(rate**depth)
        if side == 1024 and not objects:
            assert list(config.lr_multiplier.scheduler.milestones) == [163889, 177546]


@needs_detectron2
def test_what_the_launcher_stores_beside_a_detector_is_read_back(tmp_path):
    """`LazyConfig.save` as `default_setup` calls it, names of functions and anchors included."""
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data.transforms import ResizeShortestEdge
    from omegaconf import OmegaConf

    from beit3_bench.backbones.beit3.detection.training_config import config_beside
    from beit3_bench.backbones.beit3.detectron2_adapter.recipe import training_config

    tower = TOWER.replace(layer_norm_eps=1e-6)
    own = plan("cascade_mask_rcnn", global_blocks=(1,), proposals=70, pixel_mean=(120.0, 121.0, 122.0))
    parts = training_config("base", "cascade_mask_rcnn")
    config = OmegaConf.create(dict(zip(("dataloader", "optimizer", "lr_multiplier", "train"), parts[1:], strict=True)))
    config.model = adapter.model_config(own, tower, score_threshold=0.01, soft_nms={"method": "linear"})
    config.dataloader.test.mapper.augmentations[0].update(short_edge_length=96, max_size=112)
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert "!!python" in (tmp_path / "config.yaml").read_text()
    found, problem = config_beside(tmp_path / "model_final.pth")
    assert problem is None
    said = own.to_dict()
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in found.plan.items()} == {
        name: said[name] for name in found.plan
    }
    assert set(found.plan) == set(said) - {"head", "fc_dim", "with_masks"}
    assert found.tower == {
        name: getattr(tower, name) for name in ("embed_dim", "depth", "num_heads", "ffn_dim", "layer_norm_eps")
    }
    assert (found.short_side, found.longest_side) == (96, 112)
    assert found.inference == {
        "score_threshold": 0.01, "nms_threshold": 0.5, "detections_per_image": 100, "soft_nms": "linear"
    }  # fmt: skip
    assert isinstance(instantiate(config.dataloader.test.mapper.augmentations[0]), ResizeShortestEdge)


@needs_detectron2
def test_what_train_net_stores_for_a_yaml_configuration_is_read_back(tmp_path):
    from detectron2.config import get_cfg

    from beit3_bench.backbones.beit3.detection.training_config import config_beside

    cfg = get_cfg()
    adapter.add_beit3_config(cfg)
    cfg.MODEL.BEIT3.SQUARE_PAD, cfg.MODEL.BEIT3.WINDOW_SIZE, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1280, 16, 500
    (tmp_path / "config.yaml").write_text(cfg.dump())
    config, problem = config_beside(tmp_path / "model_final.pth")
    assert problem is None
    assert (config.plan["image_size"], config.plan["window_size"], config.plan["proposals"]) == (1280, 16, 500)
    assert config.tower["num_heads"] == 12


@needs_detectron2
@pytest.mark.parametrize("head", HEADS)
def test_training_with_detectron2s_optimizer_lowers_the_loss(head):
    from functools import partial

    from detectron2 import model_zoo
    from detectron2.config import instantiate
    from detectron2.engine import SimpleTrainer
    from detectron2.utils.events import EventStorage

    from beit3_bench.backbones.beit3.detectron2_adapter.meta_arch import as_instances

    torch.manual_seed(0)
    own = plan(head)
    model = instantiate(adapter.model_config(own, TOWER)).train()
    optimizer = model_zoo.get_config("common/optim.py").AdamW
    optimizer.lr = 2e-3
    optimizer.params.model = model
    optimizer.params.lr_factor_func = partial(adapter.lr_factor, rate=0.5, num_layers=4)
    optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
    built = instantiate(optimizer)

    rates = {id(p): (g["lr"], g["weight_decay"]) for g in built.param_groups for p in g["params"]}
    for group in param_groups(model, 2e-3, 0.1, 0.5, 4):
        for name, parameter in zip(group["names"], group["params"], strict=True):
            lr, decay = rates[id(parameter)]
            assert lr == pytest.approx(group["lr"]), name
            assert decay == pytest.approx(group["weight_decay"]), name

    batch = [
        {**item, "instances": as_instances(target, tuple(item["image"].shape[1:]))}
        for item, target in zip(inputs(), targets("polygons"), strict=True)
    ]
    trainer, losses = SimpleTrainer(model, [batch], built), []
    with EventStorage() as storage:
        for trainer.iter in range(12):
            trainer._data_loader_iter_obj = iter([batch])
            trainer.run_step()
            trainer.after_step()
            losses.append(storage.latest()["total_loss"][0])
            storage.step()
    assert losses[-1] < 0.8 * losses[0]


@needs_detectron2
@pytest.mark.skipif(importlib.util.find_spec("shapely") is None, reason="detectron2's crop of polygons needs shapely")
def test_a_registered_folder_feeds_the_jittered_loader(tmp_path, monkeypatch):
    from detectron2.config import instantiate

    from beit3_bench.backbones.beit3.detectron2_adapter.recipe import DATA_ROOT, jitter_loader
    from beit3_bench.tasks.tinyworld.world import write_tiny_world

    write_tiny_world(tmp_path / "tiny", size="mini")
    monkeypatch.setenv(DATA_ROOT, str(tmp_path / "tiny" / "coco"))
    loader = jitter_loader(128)
    loader.train.num_workers, loader.train.total_batch_size = 0, 2
    batch = next(iter(instantiate(loader.train)))
    assert len(batch) == 2
    assert all(max(item["image"].shape[1:]) <= 128 for item in batch)
    model = instantiate(adapter.model_config(plan(num_classes=6), TOWER)).train()
    from detectron2.utils.events import EventStorage

    with EventStorage():
        assert sum(model(batch).values()).isfinite()
    assert adapter.register_coco(tmp_path / "tiny" / "coco") == adapter.register_coco(tmp_path / "tiny" / "coco")
    with pytest.raises(BenchError, match="annotations"):
        adapter.register_coco(tmp_path)


@needs_detectron2
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_as_by_detectron2(tmp_path, orientation, kind):
    from detectron2.data.detection_utils import read_image

    from beit3_bench.backbones.preprocess import decode

    pixels = torch.randint(0, 256, (6, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a", kind, exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / "a", upright=True)), read_image(str(tmp_path / "a"), "RGB"))


@needs_detectron2
def test_objects_are_those_that_detectron2_trains_on(tmp_path):
    """Short polygons, crowds, text ids: `load_coco_json` and its filter, against our training examples."""
    from detectron2.data.build import filter_images_with_only_crowd_annotations
    from detectron2.data.datasets.coco import load_coco_json

    from beit3_bench.tasks.coco_det import CocoDetection
    from beit3_bench.tasks.tinyworld.world import write_tiny_world

    write_tiny_world(tmp_path / "tiny", size="mini")
    root = tmp_path / "tiny" / "coco"
    place = root / "annotations" / "instances_train2017.json"
    content = json.loads(place.read_text())
    polygons = [a for a in content["annotations"] if isinstance(a["segmentation"], list)]
    polygons[0]["segmentation"].append([1.0, 1, 9, 9])
    polygons[1]["segmentation"] = [[1.0, 1, 9, 9]]
    polygons[2]["segmentation"].append([1.0, 1, 9, 9, 5, 1, 3])
    for record in (*content["images"], *content["annotations"]):
        record["image_id" if "image_id" in record else "id"] = f"{record.get('image_id', record['id']):012d}"
    place.write_text(json.dumps(content))
    theirs = load_coco_json(str(place), str(root / "train2017"), "beit3_bench_test_objects")
    theirs = filter_images_with_only_crowd_annotations(theirs)
    ours = {e.id: e.target for e in CocoDetection(root).training_split().examples}
    expected = {
        record["image_id"]: [
            (o["bbox"], o["segmentation"], o["category_id"]) for o in record["annotations"] if not o["iscrowd"]
        ]
        for record in theirs
    }
    assert {i: [(o["bbox"], o["segmentation"], o["class"]) for o in objects] for i, objects in ours.items()} == {
        i: objects for i, objects in expected.items() if objects
    }


# ---- weights ----------------------------------------------------------------------------------------------------------


@needs_detectron2
@pytest.mark.parametrize("kind", ["plain", "namespace", "safetensors"])
def test_the_checkpointer_reads_what_the_project_reads(tmp_path, kind):
    from safetensors.torch import save_file

    native, other = pair("mask_rcnn")
    state = {name: value + 0.25 for name, value in native.state_dict().items()}
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} | ({"args": argparse.Namespace(a=1)} if kind == "namespace" else {}), path)
    adapter.BEiT3Checkpointer(other).load(str(path))
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


@needs_detectron2
@pytest.mark.parametrize("way", ["checkpointer", "weights"])
def test_official_weights_fill_the_tower(tmp_path, way):
    from detectron2.config import instantiate

    from beit3_bench.backbones.beit3.models import build_model

    pretrained = BEiT3Config.preset("tiny")
    state = official_state_dict(build_model("retrieval", pretrained))
    path = str(tmp_path / "beit3.pth")
    torch.save({"model": state, "args": argparse.Namespace()}, path)
    config = adapter.model_config(plan(), strided(pretrained), weights=path if way == "weights" else None)
    model = instantiate(config)
    head = model.roi_heads.box_head.fc1.weight.clone()
    if way == "checkpointer":
        adapter.BEiT3Checkpointer(model).load(path)
    for name in ("fc1", "fc2"):
        assert torch.equal(
            model.state_dict()[f"backbone.net.blocks.2.mlp.{name}.weight"],
            state[f"beit3.encoder.layers.2.ffn.A.{name}.weight"],
        )
    assert torch.equal(model.roi_heads.box_head.fc1.weight, head)


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@needs_detectron2
@pytest.mark.parametrize("name", ["a.pkl", "a.PKL", "a.pickle", "a.pyth", "a.pth", "a.bin"])
@pytest.mark.parametrize("way", ["pickle", "torch"])
def test_nothing_in_a_file_is_executed(tmp_path, name, way):
    marker, path = tmp_path / "EXECUTED", tmp_path / name
    content = {"model": {}, "__author__": "x", "evil": Evil(marker)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(BenchError, match=r"a\..*"):
        adapter.BEiT3Checkpointer(torch.nn.Linear(1, 1)).load(str(path))
    assert not marker.exists()


@needs_detectron2
def test_a_training_is_resumed_with_optimizer_and_iteration(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    adapter.BEiT3Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000007", iteration=7)
    other = torch.nn.Linear(2, 2)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    rest = adapter.BEiT3Checkpointer(other, str(tmp_path), optimizer=fresh).resume_or_load("", resume=True)
    assert rest["iteration"] == 7
    assert fresh.param_groups[0]["lr"] == 0.5
    assert torch.equal(other.weight, model.weight)


@needs_detectron2
def test_files_of_pycls_are_matched_by_the_ends_of_their_names(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    path = tmp_path / "a.pyth"
    torch.save({"model_state": {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}}, path)
    adapter.BEiT3Checkpointer(model).load(str(path))
    assert torch.equal(model[0].weight, torch.ones(3, 2))


@needs_detectron2
def test_the_giant_form_is_passed_on_to_detectron2(tmp_path, caplog):
    """Shared attention has no branch letter in a file; its epsilon is the checkpoint's."""
    from detectron2.config import instantiate

    from beit3_bench.backbones.beit3.models import build_model

    giant = BEiT3Config.preset(
        "giant",
        embed_dim=32,
        num_heads=2,
        ffn_dim=64,
        depth=4,
        vl_layers=1,
        vocab_size=64,
        layer_norm_eps=1e-6,
        image_size=56,
    )
    state = official_state_dict(build_model("retrieval", giant))
    path = str(tmp_path / "giant.pth")
    torch.save({"model": state}, path)
    model = instantiate(adapter.model_config(plan(), strided(giant), weights=path))
    net = model.backbone.net
    assert torch.equal(
        net.state_dict()["blocks.1.attn.proj.weight"], state["beit3.encoder.layers.1.self_attn.out_proj.weight"]
    )
    assert {m.eps for m in net.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    assert net.load_report.resized == {"beit3.vision_embed.proj.weight": "14x14 -> 16x16"}


@needs_detectron2
def test_positions_that_shrink_are_told_and_the_report_is_kept(tmp_path, caplog):
    pretrained = BEiT3Config.preset("tiny", image_size=384)
    path = tmp_path / "beit3.pth"
    torch.save({"model": official_state_dict(build_model("retrieval", pretrained))}, path)
    sizes = {key: getattr(pretrained, key) for key in ("embed_dim", "depth", "num_heads", "ffn_dim")}
    tower = adapter.BEiT3ViT(**sizes, weights=str(path))
    assert list(tower.load_report.resized.values()) == ["24x24 -> 14x14"]
    assert "was interpolated, 24x24 -> 14x14" in caplog.text
    caplog.clear()
    kept = adapter.BEiT3ViT(**sizes, grid=24, cls_token=True, weights=str(path))
    assert kept.load_report.resized == {}
    assert caplog.text == ""
