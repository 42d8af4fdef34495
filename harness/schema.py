"""The shape of result.json: what `run` and `score` write and the leaderboard reads.

Values stay in the unit their metric declares (`percent` 0..100 or `fraction` 0..1); only the table multiplies by 100.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

SCHEMA = 1


class MetricValue(TypedDict):
    """One number of a result."""

    value: float
    """At full precision, in `unit`."""
    unit: Literal["percent", "fraction"]
    """percent: 0..100; fraction: 0..1."""
    ci95: list[float] | None
    """[low, high] of the 95% bootstrap interval in `unit`; None where none was computed."""
    headline: bool
    """Whether the task's table shows this number first."""
    higher_is_better: bool
    """Direction of the metric."""
    decimals: int
    """Digits after the point of the paper's table, for the value in percent."""


class Subset(TypedDict):
    """The run saw only a part of its split."""

    limit: int
    """How many examples `--limit` let through."""


class ModelCard(TypedDict):
    """What was evaluated."""

    preset: str
    """Architecture: tiny, base, large, giant, or custom."""
    checkpoint: str
    """File name of the checkpoint, without folder."""
    sha256: str
    """Of the checkpoint file, hex."""
    weight: str | None
    """Name in the weight registry; None for a file that is not a released one."""
    image_size: int
    """Side of the square input in pixels."""
    params: int
    """Number of parameters of the network with its head."""
    allow_missing: list[str]
    """Patterns of tensors that were allowed to be absent from the checkpoint; normally empty."""


class Result(TypedDict):
    """One evaluated (task, split, checkpoint)."""

    schema: int
    """Version of this layout: 1."""
    task: str
    """Task name, e.g. ``"coco-retrieval"``."""
    split: str
    """Split name in the task's terms, e.g. ``"test"``, ``"val"``, ``"test-dev"``."""
    metrics: dict[str, MetricValue]
    """By metric name; empty for a submission that only the official server can score."""
    counts: dict[str, int]
    """What was scored: images, texts, questions."""
    notes: list[str]
    """Sentences that a reader of the number must know."""
    status: Literal["scored", "submitted", "not installed"]
    """scored: has metrics; submitted: a file for the official server; not installed: an optional stack is missing."""
    subset: Subset | None
    """None when the whole split was evaluated."""
    world: Literal["real", "tiny"]
    """tiny: the synthetic data of `beit3-bench data tiny`."""
    setting: Literal["fine-tuned", "zero-shot"]
    """Whether the checkpoint was fine-tuned for this task."""
    model: ModelCard
    """What was evaluated."""
    provenance: dict[str, Any]
    """Data fingerprint, config, versions, hardware, commit, seed, preprocessing canary."""
    timing: dict[str, Any]
    """Seconds spent on data, compute and scoring, images per second, peak memory."""
    chance: float | None
    """What guessing scores on the headline metric, in its unit; None where not defined."""
