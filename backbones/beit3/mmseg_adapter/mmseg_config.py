"""mmseg configs from `SegmentationSettings`: model, pipelines, loaders, schedule, as plain dictionaries.

Where the settings have no value, it is that of mmseg's Mask2Former configs for ADE20K; ViT-Adapter's are the same there.
"""

from __future__ import annotations

from typing import Any

from beit3_bench.backbones.beit3.mmseg_adapter.settings import IGNORE, SegmentationSettings, variant


def model_dict(s: SegmentationSettings) -> dict[str, Any]:
    """The ``model`` of an mmseg config."""
    tower = s.config()
    backbone: dict[str, Any] = {
        "type": "BEiT3Adapter" if s.neck == "adapter" else "BEiT3",
        "arch": s.arch if isinstance(s.arch, str) else dict(s.arch),
        "window_size": s.window_size,
        "drop_path_rate": s.drop_path,
        "with_cp": s.checkpoint_activations,
    }
    if s.neck == "adapter":
        backbone["conv_channels"] = s.conv_channels
        channels = tower.embed_dim
    else:
        backbone["out_channels"] = channels = s.width
    preprocessor: dict[str, Any] = {
        "type": "SegDataPreProcessor",
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": IGNORE,
        "size": (s.crop, s.crop),
        # a window is never smaller than the crop; a whole image need only divide into cells of the coarsest map
        "test_cfg": {"size": (s.crop, s.crop)} if s.mode == "slide" else {"size_divisor": 32},
    }
    test_cfg: dict[str, Any] = {"mode": s.mode}
    if s.mode == "slide":
        test_cfg.update(crop_size=(s.crop, s.crop), stride=(s.stride, s.stride))
    if s.sigmoid_first:
        test_cfg["sigmoid_first"] = True
    return {
        "type": "BEiT3Segmentor",
        "data_preprocessor": preprocessor,
        "backbone": backbone,
        "decode_head": mask2former_dict(s, channels),
        "train_cfg": {},
        "test_cfg": test_cfg,
    }


def mask2former_dict(s: SegmentationSettings, channels: int) -> dict[str, Any]:
    """mmseg's Mask2Former head over four maps of ``channels`` (values of its ADE20K configs where ``s`` has none)."""
    heads = s.width // 32
    attention = {
        "embed_dims": s.width,
        "num_heads": heads,
        "attn_drop": 0.0,
        "proj_drop": 0.0,
        "dropout_layer": None,
        "batch_first": True,
    }
    positions = {"num_feats": s.width // 2, "normalize": True}
    relu = {"type": "ReLU", "inplace": True}
    costs: tuple[tuple[str, float, dict[str, Any]], ...] = (
        ("ClassificationCost", 2.0, {}),
        ("CrossEntropyLossCost", 5.0, {"use_sigmoid": True}),
        ("DiceCost", 5.0, {"pred_act": True, "eps": 1.0}),
    )
    return {
        "type": "Mask2FormerHead",
        "in_channels": [channels] * 4,
        "strides": [4, 8, 16, 32],
        "feat_channels": s.width,
        "out_channels": s.width,
        "num_classes": s.classes,
        "num_queries": s.queries,
        "num_transformer_feat_level": 3,
        "align_corners": False,
        "pixel_decoder": {
            "type": "mmdet.MSDeformAttnPixelDecoder",
            "num_outs": 3,
            "norm_cfg": {"type": "GN", "num_groups": 32},
            "act_cfg": {"type": "ReLU"},
            "encoder": {
                "num_layers": s.encoder_layers,
                "layer_cfg": {
                    "self_attn_cfg": {
                        "embed_dims": s.width, "num_heads": heads, "num_levels": 3, "num_points": 4, "im2col_step": 64,
                        "dropout": 0.0, "batch_first": True, "norm_cfg": None, "init_cfg": None,
                    },
                    "ffn_cfg": {
                        "embed_dims": s.width, "feedforward_channels": 4 * s.width, "num_fcs": 2, "ffn_drop": 0.0, "act_cfg": relu,
                    },
                },
                "init_cfg": None,
            },
            "positional_encoding": positions,
            "init_cfg": None,
        },
        "enforce_decoder_input_project": False,
        "positional_encoding": positions,
        "transformer_decoder": {
            "return_intermediate": True,
            "num_layers": s.decoder_layers,
            "layer_cfg": {
                "self_attn_cfg": attention,
                "cross_attn_cfg": attention,
                "ffn_cfg": {
                    "embed_dims": s.width, "feedforward_channels": s.decoder_ffn, "num_fcs": 2, "act_cfg": relu, "ffn_drop": 0.0,
                    "dropout_layer": None, "add_identity": True,
                },
            },
            "init_cfg": None,
        },
        "loss_cls": {
            "type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 2.0, "reduction": "mean",
            "class_weight": [1.0] * s.classes + [0.1],
        },
        "loss_mask": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "reduction": "mean", "loss_weight": 5.0},
        "loss_dice": {
            "type": "mmdet.DiceLoss", "use_sigmoid": True, "activate": True, "reduction": "mean", "naive_dice": True,
            "eps": 1.0, "loss_weight": 5.0,
        },
        "train_cfg": {
            "num_points": s.points,
            "oversample_ratio": 3.0,
            "importance_sample_ratio": 0.75,
            "assigner": {
                "type": "mmdet.HungarianAssigner",
                "match_costs": [{"type": f"mmdet.{kind}", "weight": weight, **more} for kind, weight, more in costs],
            },
            "sampler": {"type": "mmdet.MaskPseudoSampler"},
        },
    }  # fmt: skip


def _scale(s: SegmentationSettings, ratio: float = 1.0) -> tuple[int, int]:
    """(longest side, shorter side) after resizing with kept aspect ratio."""
    return round(s.longest_side * ratio), round(s.crop * ratio)


def _annotations(s: SegmentationSettings) -> dict[str, Any]:
    zero = {"reduce_zero_label": True} if s.dataset_facts.ignores_zero else {}
    return {"type": "LoadAnnotations", **zero}


def _training_resize(s: SegmentationSettings) -> dict[str, Any]:
    if s.resizing == "range":
        return {"type": "RandomResize", "scale": _scale(s), "ratio_range": s.scale_range, "keep_ratio": True}
    low, high = (round(10 * factor) for factor in s.scale_range)
    sides = [int(s.crop * tenths * 0.1) for tenths in range(low, high + 1)]
    return {
        "type": "RandomChoiceResize",
        "scales": sides,
        "resize_type": "ResizeShortestEdge",
        "max_size": s.longest_side,
    }


def train_pipeline(s: SegmentationSettings) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        _annotations(s),
        _training_resize(s),
        {"type": "RandomCrop", "crop_size": (s.crop, s.crop), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": s.flip},
    ]
    return [*steps, *([{"type": "PhotoMetricDistortion"}] if s.photometric else []), {"type": "PackSegInputs"}]


def _to_multiples(s: SegmentationSettings) -> list[dict[str, Any]]:
    return [{"type": "ResizeToMultiple", "size_divisor": s.multiple}] if s.multiple else []


def evaluation_pipeline(s: SegmentationSettings, labels: bool = True) -> list[dict[str, Any]]:
    """Single scale; the label, if wanted, keeps its own size."""
    steps: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": _scale(s), "keep_ratio": True},
        *_to_multiples(s),
    ]
    return [*steps, *([_annotations(s)] if labels else []), {"type": "PackSegInputs"}]


def tta_pipeline(s: SegmentationSettings, labels: bool = True) -> list[dict[str, Any]]:
    """Every ratio, plain and flipped."""
    stages: list[list[dict[str, Any]]] = [
        [{"type": "Resize", "scale": _scale(s, ratio), "keep_ratio": True} for ratio in s.ratios],
        *([_to_multiples(s)] if s.multiple else []),
        [{"type": "RandomFlip", "prob": probability, "direction": "horizontal"} for probability in (0.0, 1.0)],
    ]
    stages += [[_annotations(s)]] if labels else []
    return [
        {"type": "LoadImageFromFile"},
        {"type": "TestTimeAug", "transforms": [*stages, [{"type": "PackSegInputs"}]]},
    ]


def dataloader(s: SegmentationSettings, data_root: str, split: str, workers: int = 4) -> dict[str, Any]:
    """``"training"`` (endless, shuffled) or ``"validation"`` (one image at a time)."""
    training, data = split == "training", s.dataset_facts
    folder = data.splits[split]
    return {
        "batch_size": s.batch if training else 1,
        "num_workers": workers,
        "sampler": {"type": "InfiniteSampler" if training else "DefaultSampler", "shuffle": training},
        "dataset": {
            "type": data.type,
            "data_root": data_root,
            "data_prefix": {"img_path": f"images/{folder}", "seg_map_path": f"annotations/{folder}"},
            "pipeline": train_pipeline(s) if training else evaluation_pipeline(s),
        },
    }


def schedule(s: SegmentationSettings) -> list[dict[str, Any]]:
    """Linear warm-up, then polynomial decay."""
    decay = {
        "type": "PolyLR",
        "eta_min": s.min_lr,
        "power": s.power,
        "begin": s.warmup_steps,
        "end": s.steps,
        "by_epoch": False,
    }
    if not s.warmup_steps:
        return [decay]
    warmup = {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": s.warmup_steps}
    return [warmup, decay]


def config_dict(
    s: SegmentationSettings, data_root: str | None = None, workers: int = 4, interval: int = 5000
) -> dict[str, Any]:
    """A whole mmseg config, for `mmengine.Config` and mmseg's tools.

    Args:
        data_root: None = where mmseg's own configs look for the data set.
        interval: steps between validations and saved states.
    """
    data_root = data_root or s.dataset_facts.root
    wrapper: dict[str, Any] = {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": s.lr, "betas": s.betas, "eps": s.eps, "weight_decay": s.weight_decay},
        "constructor": "BEiT3LayerDecay",
        "paramwise_cfg": {
            "layer_decay": s.layer_decay,
            "backbone_lr_mult": s.backbone_lr_mult,
            "head_embeddings_first": s.head_embeddings_first,
        },
    }
    if s.clip_grad:
        wrapper["clip_grad"] = {"max_norm": s.clip_grad, "norm_type": 2}
    validation = dataloader(s, data_root, "validation", workers)
    evaluator = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}
    return {
        "custom_imports": {"imports": ["mmdet.models", "beit3_bench.backbones.beit3.mmseg_adapter"], "allow_failed_imports": False},
        "default_scope": "mmseg",
        "env_cfg": {
            "cudnn_benchmark": True,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl"},
        },
        "model": model_dict(s),
        "tta_model": {"type": "SegTTAModel"},
        "train_pipeline": train_pipeline(s),
        "test_pipeline": evaluation_pipeline(s),
        "tta_pipeline": tta_pipeline(s),
        "train_dataloader": dataloader(s, data_root, "training", workers),
        "val_dataloader": validation,
        "test_dataloader": validation,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": s.steps, "val_interval": interval},
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
        "optim_wrapper": wrapper,
        "param_scheduler": schedule(s),
        "sync_bn": "torch",
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook", "by_epoch": False, "interval": interval, "max_keep_ckpts": 2, "save_best": "mIoU",
                "published_keys": ["meta", "state_dict"],
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
            "visualization": {"type": "SegVisualizationHook"},
        },
        "vis_backends": [{"type": "LocalVisBackend"}],
        "visualizer": {"type": "SegLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"},
        "log_processor": {"by_epoch": False},
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
    }  # fmt: skip


def variant_config(name: str) -> dict[str, Any]:
    """The whole config of a named variant; what the files in ``configs/`` hold."""
    return config_dict(variant(name))
