"""What detectron2 writes beside a detector: the ``config.yaml`` of its training, read as plain text values.

``lazyconfig_train_net.py`` and ``train_net.py`` store the resolved configuration in the folder of ``model_final.pth``;
it alone says at which size and with which windows a tower was trained. The file is composed into YAML nodes, and single
values are taken from them by path: no tag (``!!python/...``) makes anything, and whatever cannot be read is a note.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
LARGEST = 1 << 19
"""Bytes; detectron2's files have tens of thousands."""

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class TrainingConfig:
    """Values of a ``config.yaml``; None where it does not say, or not as a plain value.

    plan: fields of `DetectorPlan`.  tower: fields of `BEiT3Config`.
    short_side, longest_side: pixels, of the evaluation's `ResizeShortestEdge`.
    inference: ``score_threshold``, ``nms_threshold``, ``detections_per_image`` and ``soft_nms`` of its evaluation.
    image_format: RGB or BGR.
    """

    path: Path
    plan: dict[str, Any] = field(default_factory=dict)
    tower: dict[str, Any] = field(default_factory=dict)
    short_side: int | None = None
    longest_side: int | None = None
    inference: dict[str, Any] = field(default_factory=dict)
    image_format: str | None = None


def config_beside(checkpoint: Path) -> tuple[TrainingConfig | None, str | None]:
    """The configuration in a checkpoint's folder, and, where there is one that cannot be read, why.

    A link to a checkpoint has its configuration beside itself or beside the file that it leads to.
    """
    folders = dict.fromkeys((checkpoint.parent, checkpoint.resolve().parent))
    path = next((place for folder in folders if (place := folder / CONFIG).is_file()), None)
    if path is None:
        return None, None
    try:
        if path.stat().st_size > LARGEST:
            return None, f"{path}: larger than {LARGEST >> 10} kB, not read"
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        return None, f"{path}: cannot be read ({error})"
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        read = _lazy(path, node) if _at(node, ("model", "backbone")) is not None else _yacs(path, node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return None, f"{path}: cannot be read ({' '.join(str(error).split())[:100]})"
    known = any(getattr(read, f.name) for f in fields(read) if f.name != "path")
    return (read, None) if known else (None, f"{path}: is no configuration of a BEiT-3 detector")


# ---- the two forms of detectron2's configurations ---------------------------------------------------------------------


def _lazy(path: Path, node: Any) -> TrainingConfig:
    """LazyConfig: ``model``, ``dataloader``, ..."""
    backbone, heads = ("model", "backbone"), ("model", "roi_heads")
    net = (*backbone, "net")
    cascade = _at(node, (*heads, "box_predictors")) is not None
    predictor = (*heads, "box_predictors", 0) if cascade else (*heads, "box_predictor")
    soft = (*heads, "soft_nms") if cascade else (*predictor, "soft_nms")
    test = ("dataloader", "test", "mapper", "augmentations", 0)
    shortest = str(_value(node, (*test, "_target_"))).endswith("ResizeShortestEdge")
    rpn = ("model", "proposal_generator", "post_nms_topk")
    plan = {
        "image_size": _whole(node, (*backbone, "square_pad"), 32),
        "window_size": _whole(node, (*net, "window_size"), 0),
        "global_blocks": _values(node, (*net, "global_blocks"), int),
        "num_classes": _whole(node, (*heads, "num_classes"), 1),
        "out_channels": _whole(node, (*backbone, "out_channels"), 1),
        "cls_token": _flag(node, (*net, "cls_token")),
        "final_norm": _flag(node, (*net, "final_norm")),
        "proposals": _whole(node, (*rpn, 1), 1),
        "pixel_mean": _triple(node, ("model", "pixel_mean")),
        "pixel_std": _triple(node, ("model", "pixel_std")),
    }
    tower = {name: _whole(node, (*net, name), 1) for name in ("embed_dim", "depth", "num_heads", "ffn_dim")}
    return TrainingConfig(
        path,
        _told(plan),
        _told({**tower, "layer_norm_eps": _number(node, (*net, "layer_norm_eps"))}),
        _whole(node, (*test, "short_edge_length"), 1) if shortest else None,
        _whole(node, (*test, "max_size"), 1) if shortest else None,
        _told(
            {
                "score_threshold": _number(node, (*predictor, "test_score_thresh")),
                "nms_threshold": _number(node, (*predictor, "test_nms_thresh")),
                "detections_per_image": _whole(node, (*predictor, "test_topk_per_image"), 1),
                "soft_nms": _value(node, (*soft, "method")),
            }
        ),
        _value(node, ("model", "input_format")),
    )


def _yacs(path: Path, node: Any) -> TrainingConfig:
    """The older form, after `add_beit3_config`: ``MODEL``, ``INPUT``, ..."""
    net, heads = ("MODEL", "BEIT3"), ("MODEL", "ROI_HEADS")
    if _at(node, net) is None:
        return TrainingConfig(path)
    plan = {
        "image_size": _whole(node, (*net, "SQUARE_PAD"), 32),
        "window_size": _whole(node, (*net, "WINDOW_SIZE"), 0),
        "num_classes": _whole(node, (*heads, "NUM_CLASSES"), 1),
        "out_channels": _whole(node, (*net, "OUT_CHANNELS"), 1),
        "cls_token": _flag(node, (*net, "CLS_TOKEN")),
        "final_norm": _flag(node, (*net, "FINAL_NORM")),
        "proposals": _whole(node, ("MODEL", "RPN", "POST_NMS_TOPK_TEST"), 1),
        "pixel_mean": _triple(node, ("MODEL", "PIXEL_MEAN")),
        "pixel_std": _triple(node, ("MODEL", "PIXEL_STD")),
    }
    tower = {name: _whole(node, (*net, name.upper()), 1) for name in ("embed_dim", "depth", "num_heads", "ffn_dim")}
    return TrainingConfig(
        path,
        _told(plan),
        _told({**tower, "layer_norm_eps": _number(node, (*net, "LAYER_NORM_EPS"))}),
        _whole(node, ("INPUT", "MIN_SIZE_TEST"), 1),
        _whole(node, ("INPUT", "MAX_SIZE_TEST"), 1),
        _told(
            {
                "score_threshold": _number(node, (*heads, "SCORE_THRESH_TEST")),
                "nms_threshold": _number(node, (*heads, "NMS_THRESH_TEST")),
                "detections_per_image": _whole(node, ("TEST", "DETECTIONS_PER_IMAGE"), 1),
            }
        ),
        _value(node, ("INPUT", "FORMAT")),
    )


# ---- values by path ---------------------------------------------------------------------------------------------------


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _at(node: Any, path: Path_) -> Any:
    """The YAML node at a path of keys and positions; None where there is none."""
    for step in path:
        content = getattr(node, "value", None)
        if not isinstance(content, list):
            return None
        if isinstance(step, int):
            node = content[step] if step < len(content) and not isinstance(content[step], tuple) else None
        else:
            pairs = [pair for pair in content if isinstance(pair, tuple)]
            # of a key that comes twice the last one counts, as in every YAML loader
            node = next((value for key, value in reversed(pairs) if key.value == step), None)
    return node


def _value(node: Any, path: Path_) -> Any:
    """A plain scalar as str, bool, int or float; None for anything else, be it null, a list or tagged."""
    scalar = _at(node, path)
    text = getattr(scalar, "value", None)
    if not isinstance(text, str) or len(text) > 1000:
        return None
    kind = str(scalar.tag).removeprefix("tag:yaml.org,2002:").removeprefix("python/")
    try:
        if kind == "bool":
            return text.lower() in ("true", "yes", "on")
        if kind == "int":
            return int(text.replace("_", ""), 10)
        if kind == "float":
            return float(text.replace("_", ""))
    except ValueError:
        return None
    if kind != "str":
        return None
    try:
        return float(text)  # 1e-05: a number for Python, text for YAML 1.1
    except ValueError:
        return text


def _number(node: Any, path: Path_) -> float | None:
    value = _value(node, path)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def _whole(node: Any, path: Path_, least: int) -> int | None:
    value = _number(node, path)
    return int(value) if value is not None and value == int(value) and least <= value < 1 << 31 else None


def _flag(node: Any, path: Path_) -> bool | None:
    value = _value(node, path)
    return value if isinstance(value, bool) else None


def _values(node: Any, path: Path_, kind: type) -> tuple[Any, ...] | None:
    """A list of numbers as a tuple; None unless it is one."""
    items = getattr(_at(node, path), "value", None)
    if not isinstance(items, list) or len(items) > 1000:
        return None
    values: Sequence[float | None] = [_number(node, (*path, place)) for place in range(len(items))]
    return None if None in values else tuple(kind(value) for value in values)


def _triple(node: Any, path: Path_) -> tuple[float, ...] | None:
    values = _values(node, path, float)
    return values if values is not None and len(values) == 3 else None
