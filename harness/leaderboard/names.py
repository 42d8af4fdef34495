"""Our task, split and metric names -> those of results/published, as data.

Kept apart from the task classes so that the table can be made without importing them. A task that is not listed here
(one of another package) has a table of its own results alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskNames:
    """What the table of a task shows and where its published values are.

    Attributes:
        title: heading of the task.
        splits: our split -> the published names of that split.
        metrics: our metric -> (published task, published metric); these become columns, in this order.
        extra: further measured metrics that become columns; published rows leave them blank.
        order_by: rows are ordered and ranked by the mean of these metrics.
        derived: our metric -> the metrics whose mean it is, computed for published rows that give all of them.
        regimes: kinds of training that have a table; see results/published/README.md.
        transfer_from: weights of these tasks, evaluated here without fine-tuning, belong to the regime ``transfer``.
    """

    title: str
    splits: dict[str, tuple[str, ...]]
    metrics: dict[str, tuple[str, str]]
    order_by: tuple[str, ...]
    extra: tuple[str, ...] = ()
    derived: dict[str, tuple[str, ...]] = field(default_factory=dict)
    regimes: tuple[str, ...] = ("fine-tuned",)
    transfer_from: tuple[str, ...] = ()


RECALLS = ("TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10")


def _retrieval(task: str) -> dict[str, tuple[str, str]]:
    recalls = {name: (task, f"{name[:2]} R@{name[3:]}") for name in RECALLS}
    return {"mean_recall": (task, "mean recall"), **recalls}


TASK_NAMES: dict[str, TaskNames] = {
    "vqav2": TaskNames(
        "VQAv2",
        {"test-dev": ("test-dev",), "test-std": ("test-std",)},
        {"vqa_accuracy": ("vqav2", "VQA accuracy")},
        ("vqa_accuracy",),
        extra=("vqa_accuracy/yes/no", "vqa_accuracy/number", "vqa_accuracy/other"),
    ),
    "nlvr2": TaskNames(
        "NLVR2",
        {"dev": ("dev",), "test-P": ("test-P",)},
        {"accuracy": ("nlvr2", "accuracy")},
        ("accuracy",),
        extra=("consistency",),
    ),
    "coco-caption": TaskNames(
        "COCO captioning (Karpathy split)",
        {"test": ("Karpathy test",)},
        {
            "CIDEr": ("coco_captioning", "CIDEr"),
            "BLEU-4": ("coco_captioning", "BLEU@4"),
            "METEOR": ("coco_captioning", "METEOR"),
            "ROUGE-L": ("coco_captioning", "ROUGE-L"),
            "SPICE": ("coco_captioning", "SPICE"),
        },
        ("CIDEr",),
    ),
    "nocaps": TaskNames(
        "nocaps",
        {"val": ("val", "val overall"), "test": ("test",)},
        {"CIDEr": ("nocaps", "CIDEr"), "SPICE": ("nocaps", "SPICE")},
        ("CIDEr",),
        extra=("CIDEr/in-domain", "CIDEr/near-domain", "CIDEr/out-domain"),
    ),
    "flickr30k": TaskNames(
        "Flickr30K retrieval (Karpathy 1K)",
        {"test": ("Karpathy test 1K",)},
        _retrieval("flickr30k_retrieval"),
        ("TR@1", "IR@1"),
        derived={"mean_recall": RECALLS},
        regimes=("fine-tuned", "zero-shot", "transfer"),
        transfer_from=("coco-retrieval",),
    ),
    "coco-retrieval": TaskNames(
        "COCO retrieval (Karpathy 5K)",
        {"test": ("Karpathy test 5K",)},
        _retrieval("coco_retrieval"),
        ("TR@1", "IR@1"),
        derived={"mean_recall": RECALLS},
        regimes=("fine-tuned", "zero-shot", "transfer"),
        transfer_from=("flickr30k",),
    ),
    "imagenet": TaskNames(
        "ImageNet-1K, class names as text",
        {"val": ("val",)},
        {"top1": ("imagenet1k", "top-1"), "top5": ("imagenet1k", "top-5")},
        ("top1",),
        regimes=("fine-tuned", "zero-shot"),
    ),
    "imagenet-linear": TaskNames(
        "ImageNet-1K, linear head",
        {"val": ("val",)},
        {"top1": ("imagenet1k", "top-1"), "top5": ("imagenet1k", "top-5")},
        ("top1",),
    ),
    "coco-det": TaskNames(
        "COCO detection and instance segmentation",
        {"val2017": ("val2017",), "test-dev": ("test-dev2017",)},
        {"bbox/AP": ("coco_detection", "AP box"), "segm/AP": ("coco_instance_segmentation", "AP mask")},
        ("bbox/AP",),
        extra=("bbox/AP50", "bbox/AP75", "segm/AP50", "segm/AP75"),
    ),
    "ade20k-seg": TaskNames(
        "ADE20K semantic segmentation",
        {"val": ("val",)},
        {
            "mIoU": ("ade20k_segmentation", "mIoU (single-scale)"),
            "mIoU_ms": ("ade20k_segmentation", "mIoU (multi-scale)"),
        },
        ("mIoU",),
        extra=("mAcc", "aAcc"),
    ),
}
"""In the order of the paper's tables."""

REGIME_TITLES = {
    "fine-tuned": "fine-tuned",
    "zero-shot": "zero-shot",
    "transfer": "tuned on another data set, not on this one",
}


@dataclass(frozen=True)
class OverviewLine:
    """One line of the overview table of the BEiT-3 paper (its Table 1).

    label: task and metric as the reader knows them.  published: (task, metric) of the overview rows.
    regime: of those rows.  metrics: ours, whose mean is the number.
    """

    label: str
    task: str
    split: str
    regime: str
    metrics: tuple[str, ...]
    published: tuple[str, str]


PAPER_TABLE_1: tuple[OverviewLine, ...] = (
    OverviewLine(
        "ADE20K mIoU (multi-scale)",
        "ade20k-seg",
        "val",
        "fine-tuned",
        ("mIoU_ms",),
        ("ade20k_segmentation", "mIoU (multi-scale)"),
    ),
    OverviewLine(
        "COCO test-dev AP box", "coco-det", "test-dev", "fine-tuned", ("bbox/AP",), ("coco_detection", "AP box")
    ),
    OverviewLine(
        "COCO test-dev AP mask",
        "coco-det",
        "test-dev",
        "fine-tuned",
        ("segm/AP",),
        ("coco_instance_segmentation", "AP mask"),
    ),
    OverviewLine("ImageNet-1K top-1", "imagenet", "val", "fine-tuned", ("top1",), ("imagenet1k", "top-1")),
    OverviewLine(
        "NLVR2 test-P accuracy",
        "nlvr2",
        "test-P",
        "fine-tuned",
        ("accuracy",),
        ("nlvr2", "accuracy (Table 1, 1 decimal)"),
    ),
    OverviewLine(
        "VQAv2 test-std accuracy",
        "vqav2",
        "test-std",
        "fine-tuned",
        ("vqa_accuracy",),
        ("vqav2", "VQA accuracy (Table 1, 1 decimal)"),
    ),
    OverviewLine("COCO caption CIDEr", "coco-caption", "test", "fine-tuned", ("CIDEr",), ("coco_captioning", "CIDEr")),
    OverviewLine(
        "COCO retrieval, mean R@1",
        "coco-retrieval",
        "test",
        "fine-tuned",
        ("TR@1", "IR@1"),
        ("coco_retrieval", "mean of TR and IR R@1"),
    ),
    OverviewLine(
        "Flickr30K retrieval, mean R@1",
        "flickr30k",
        "test",
        "fine-tuned",
        ("TR@1", "IR@1"),
        ("flickr30k_retrieval", "mean of TR and IR R@1"),
    ),
    OverviewLine(
        "Flickr30K retrieval zero-shot, mean R@1",
        "flickr30k",
        "test",
        "zero-shot",
        ("TR@1", "IR@1"),
        ("flickr30k_retrieval", "mean of TR and IR R@1"),
    ),
)

OVERVIEW_SOURCE = "BEiT-3: Image as a Foreign Language (arXiv 2208.10442), Table 1"
"""Rows of this source repeat other rows of the same paper: they appear in the overview table only."""
