"""What `beit3-bench run` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.progress import Reporting

RUNS = Path("results") / "runs"
"""Where run folders are made by default, below the current folder."""


@dataclass(frozen=True)
class RunRequest:
    """One evaluation of one task.

    checkpoint: ``[FAMILY:]SOURCE``.
    tokenizer: file; None = beside the checkpoint.
    output: the run folder; None = a folder below ``runs`` named after task, split, checkpoint and fingerprints.
    setting: ``"fine-tuned"``, ``"zero-shot"`` or None = known from the checkpoint.
    options: the task's own and the family's, as strings (``-o key=value``).
    image_cache, features: folders of preprocessed images and of embeddings; None = neither kept nor used.
    reporting: how progress is told.  log_to: names of `tracking.TRACKERS`.
    resolved_from: where it was said what these fields are: field -> command line, environment variable, or file and key.
    """

    task: str
    checkpoint: str | Path
    data_root: Path
    tokenizer: Path | None = None
    split: str | None = None
    limit: int | None = None
    compute: Compute = field(default_factory=Compute)
    seed: int = 0
    output: Path | None = None
    preset: str | None = None
    image_size: int | None = None
    allow_missing: tuple[str, ...] = ()
    setting: str | None = None
    overwrite: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    image_cache: Path | None = None
    features: Path | None = None
    reporting: Reporting = field(default=Reporting(), repr=False)
    log_to: tuple[str, ...] = field(default=(), repr=False)
    runs: Path = RUNS
    resolved_from: Mapping[str, str] = field(default_factory=dict)
