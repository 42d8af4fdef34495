"""detectron2's ``config.yaml`` beside a detector: read as text, whatever is in it, and believed where it is of the detector."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from random_detector import random_detector

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.described import describe_detector
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.beit3.detection.training_config import config_beside
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.errors import BenchError

TOWER = BEiT3Config(image_size=64, patch_size=16, embed_dim=32, num_heads=2, ffn_dim=64, depth=4)
PLAN = DetectorPlan(
    head="mask_rcnn", num_classes=5, image_size=128, window_size=5, out_channels=16, fc_dim=24, proposals=60
)

# As `LazyConfig.save` writes it: anchors, flow style, names of classes and functions, interpolations as they are.
LAZY = """\
dataloader:
  test:
    _target_: detectron2.data.build.build_detection_test_loader
    dataset: {_target_: detectron2.data.build.get_detection_dataset_dicts, filter_empty: false, names: coco_2017_val}
    mapper:
      _target_: detectron2.data.dataset_mapper.DatasetMapper
      augmentations:
      - {_target_: detectron2.data.transforms.ResizeShortestEdge, max_size: 112, short_edge_length: 96}
      image_format: ${...train.mapper.image_format}
lr_multiplier:
  scheduler: {_target_: fvcore.common.param_scheduler.MultiStepParamScheduler, values: &id001 [1.0, 0.1, 0.01]}
model:
  _target_: beit3_bench.backbones.beit3.detectron2_adapter.meta_arch.BEiT3RCNN
  backbone:
    _target_: beit3_bench.backbones.beit3.detectron2_adapter.backbone.BEiT3FeaturePyramid
    in_feature: ${.net.out_feature}
    net: {_target_: beit3_bench.backbones.beit3.detectron2_adapter.backbone.BEiT3ViT, cls_token: false, depth: 4, embed_dim: 32,
      ffn_dim: 64, final_norm: true, global_blocks: [1, 3], grid: 4, layer_norm_eps: 1.0e-06, num_heads: 4, window_size: 5}
    out_channels: 16
    scale_factors: !!python/tuple [4.0, 2.0, 1.0, 0.5]
    square_pad: 128
  input_format: RGB
  pixel_mean: [120.0, 121.0, 122.5]
  pixel_std: [60.0, 61.0, 62.5]
  proposal_generator:
    post_nms_topk: [60, 60]
    pre_nms_topk: [120, 60]
  roi_heads:
    box_predictor: {input_shape: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 24, height: null},
      num_classes: '${..num_classes}', soft_nms: null, test_nms_thresh: 0.6, test_score_thresh: 1e-05, test_topk_per_image: 100}
    num_classes: 5
optimizer:
  params:
    lr_factor_func: !!python/object/new:functools.partial
      args:
      - !!python/name:beit3_bench.backbones.beit3.detectron2_adapter.recipe.lr_factor ''
      state: !!python/tuple [!!python/name:os.system '', [], {rate: 0.7}, null]
train: {amp: {enabled: true}, output_dir: out}
"""

YACS = """\
INPUT:
  FORMAT: RGB
  MAX_SIZE_TEST: 128
  MIN_SIZE_TEST: 128
MODEL:
  BEIT3: {CLS_TOKEN: false, DEPTH: 4, EMBED_DIM: 32, FFN_DIM: 64, FINAL_NORM: true, NUM_HEADS: 2, OUT_CHANNELS: 16, SQUARE_PAD: 128,
    WINDOW_SIZE: 7}
  PIXEL_MEAN: [127.5, 127.5, 127.5]
  ROI_HEADS: {NMS_THRESH_TEST: 0.5, NUM_CLASSES: 5, SCORE_THRESH_TEST: 0.05}
  RPN: {POST_NMS_TOPK_TEST: 70}
TEST: {DETECTIONS_PER_IMAGE: 100}
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "model_final.pth"
    torch.save({"model": random_detector(PLAN, TOWER).state_dict(), "iteration": 7}, path)
    return path


def described(checkpoint: Path, text: str | None, settings: Any = None, heads: int | None = 2):
    if text is not None:
        (checkpoint.parent / "config.yaml").write_text(text, encoding="utf-8")
    return describe_detector(read_checkpoint(checkpoint), settings, heads)


def test_everything_that_no_tensor_shows_is_read(checkpoint):
    detector = described(checkpoint, LAZY)
    plan = detector.plan
    assert (plan.image_size, plan.window_size, plan.global_blocks, plan.proposals) == (128, 5, (1, 3), 60)
    assert (plan.pixel_mean, plan.pixel_std) == ((120.0, 121.0, 122.5), (60.0, 61.0, 62.5))
    assert (detector.tower.num_heads, detector.tower.layer_norm_eps) == (4, 1e-6)
    assert (detector.config.short_side, detector.config.longest_side) == (96, 112)
    assert detector.config.inference == {"score_threshold": 1e-5, "nms_threshold": 0.6, "detections_per_image": 100}
    assert (detector.notes, detector.assumed({})) == ((), [])
    assert detector.origin == str(checkpoint.parent / "config.yaml")


def test_the_older_form_is_read_too(checkpoint):
    detector = described(checkpoint, YACS)
    assert (detector.plan.image_size, detector.plan.window_size, detector.plan.proposals) == (128, 7, 70)
    assert detector.assumed({}) == []


def test_without_a_configuration_the_defaults_are_named_but_for_what_is_given(checkpoint):
    detector = described(checkpoint, None)
    assert detector.assumed({}) == ["1024 pixels", "14 tokens along a window", "1000 proposals"]
    assert detector.assumed({"image_size": 1280, "window_size": None, "proposals": 500}) == ["14 tokens along a window"]


def test_the_files_own_settings_come_before_a_configuration_beside_it(checkpoint):
    detector = described(checkpoint, LAZY, PLAN.to_dict())
    assert (detector.plan, detector.config, detector.notes) == (PLAN, None, ())


def test_plain_values_with_pythons_tags_are_plain_values(checkpoint):
    text = LAZY.replace("square_pad: 128", "square_pad: !!python/int '128'").replace(
        "window_size: 5", "window_size: 0x5"
    )
    detector = described(checkpoint, text)
    assert (detector.plan.image_size, detector.assumed({})) == (128, ["14 tokens along a window"])


def test_the_epsilon_of_a_checkpoints_own_configuration_is_kept(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    own = {
        "head": "detection",
        "config": TOWER.replace(layer_norm_eps=1e-6).to_dict(),
        "head_arguments": PLAN.to_dict(),
    }
    torch.save({**content, "beit3_bench": own}, checkpoint)
    detector = described(checkpoint, None, PLAN.to_dict())
    assert detector.tower.layer_norm_eps == 1e-6
    norms = [m for m in detector.plan.build(detector.tower).backbone.net.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("embed_dim: 32", "embed_dim: 48", "embed_dim 48 instead of 32"),
        ("depth: 4", "depth: 12", "depth 12 instead of 4"),
        ("num_classes: 5\n", "num_classes: 80\n", "num_classes 80 instead of 5"),
        ("num_heads: 4", "num_heads: 5", "5 heads for a width of 32"),
        ("square_pad: 128", "square_pad: 1000", "a square of 1000 pixels"),
        ("global_blocks: [1, 3]", "global_blocks: [1, 9]", "global blocks"),
        ("cls_token: false", "cls_token: true", "cls_token True instead of False"),
        ("square_pad: 128", "square_pad: 128000", "image_size 128000"),
        ("window_size: 5", "window_size: 5000000", "window_size 5000000"),
        ("layer_norm_eps: 1.0e-06", "layer_norm_eps: -1.0", "layer_norm_eps -1.0"),
        ("pixel_std: [60.0, ", "pixel_std: [0.0, ", "pixel_std"),
    ],
)
def test_a_configuration_of_another_detector_is_not_believed(checkpoint, old, new, words):
    assert old in LAZY
    detector = described(checkpoint, LAZY.replace(old, new))
    assert detector.config is None
    assert detector.plan.window_size == 14
    assert len(detector.assumed({})) == 3
    (note,) = detector.notes
    assert "config.yaml: is of another detector" in note
    assert words in note


def test_a_detector_of_other_colours_is_refused(checkpoint):
    with pytest.raises(BenchError, match=r"config\.yaml: was trained on BGR pixels"):
        described(checkpoint, LAZY.replace("input_format: RGB", "input_format: BGR"))


HOSTILE = {
    "apply": "model: !!python/object/apply:os.system ['touch {marker}']\n",
    "new": "model: {{backbone: {{square_pad: !!python/object/new:os.system ['touch {marker}']}}}}\n",
    "module": "x: !!python/module:antigravity\nmodel: {{backbone: {{square_pad: 128}}}}\n",
    "name in a key": "? !!python/object/apply:os.system ['touch {marker}']\n: 1\nmodel: {{backbone: {{square_pad: 128}}}}\n",
    "merge": "a: &a {{k: 1}}\nb: &b {{<<: [*a, *a, *a]}}\nc: {{<<: [*b, *b, *b]}}\nmodel: {{backbone: {{square_pad: 128}}}}\n",
    "aliases": "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)) + "model: {{backbone: {{square_pad: 128}}}}\n",
    "itself": "model: &m {{backbone: *m}}\n",
    "deep": "model: " + "[" * 3000 + "]" * 3000 + "\n",
    "number": "model: {{backbone: {{square_pad: " + "9" * 9000 + "}}}}\n",
    "infinite": "model: {{backbone: {{square_pad: .inf, net: {{window_size: .nan}}}}}}\n",
    "list": "- 1\n- 2\n",
    "scalar": "just text\n",
    "empty": "",
    "broken": "model: [1, 2\n",
    "tabs": "model:\n\tbackbone: 1\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "nulls": "model: {{backbone: null}}\n",
    "wrong kinds": "model: {{backbone: {{square_pad: [1], net: 7}}, roi_heads: [], proposal_generator: {{post_nms_topk: {{a: 1}}}}}}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_executed_and_nothing_fails(checkpoint, name, tmp_path):
    marker = tmp_path / "EXECUTED"
    detector = described(checkpoint, HOSTILE[name].format(marker=marker))
    assert not marker.exists()
    assert detector.plan.image_size in (1024, 128)
    assert detector.assumed({}) or detector.notes


def test_what_is_no_text_is_a_note(checkpoint):
    place = checkpoint.parent / "config.yaml"
    place.write_bytes(b"\xff\xfe\x00model")
    assert "config.yaml: cannot be read" in describe_detector(read_checkpoint(checkpoint), None, 2).notes[0]
    place.write_bytes(b"#" * (1 << 20))
    assert "larger than" in describe_detector(read_checkpoint(checkpoint), None, 2).notes[0]
    place.write_text("\ufeff" + LAZY, encoding="utf-8")
    assert describe_detector(read_checkpoint(checkpoint), None, 2).plan.window_size == 5


def test_a_pipe_of_that_name_is_left_alone(checkpoint):
    os.mkfifo(checkpoint.parent / "config.yaml")
    assert config_beside(checkpoint) == (None, None)


def test_a_link_to_a_detector_is_one_with_its_configuration(checkpoint, tmp_path):
    (checkpoint.parent / "config.yaml").write_text(LAZY)
    link = tmp_path / "weights" / "detector.pth"
    link.parent.mkdir()
    link.symlink_to(checkpoint)
    assert config_beside(link)[0].plan["window_size"] == 5
    (link.parent / "config.yaml").write_text(YACS)
    assert config_beside(link)[0].plan["window_size"] == 7


def test_a_pickled_configuration_is_never_opened(checkpoint):
    (checkpoint.parent / "config.yaml.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert config_beside(checkpoint) == (None, None)


def test_mutilated_configurations_are_read_or_noted(checkpoint):
    random = Random(0)
    place = checkpoint.parent / "config.yaml"
    for trial in range(300):
        content = bytearray((LAZY if trial % 3 else YACS).encode())
        for _ in range(random.choice([1, 1, 2, 5, 20])):
            at = random.randrange(len(content))
            change = random.choice(["byte", "cut", "signs", "copy"])
            if change == "byte":
                content[at] = random.randrange(256)
            elif change == "cut":
                del content[at : at + random.randrange(1, 40)]
            elif change == "signs":
                content[at:at] = bytes(random.choices(b"[]{}:,&*!#|>'\"%@`-? \n\t0129eE+._", k=5))
            else:
                content[at:at] = content[:: random.randrange(1, 9)][:30]
        place.write_bytes(content)
        config, problem = config_beside(checkpoint)
        assert config is not None or "\n" not in problem
