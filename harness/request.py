"""What `beit3-bench run` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.progress import Reporting

if TYPE_CHECKING:
    from beit3_bench.backbones.corruptions import Corruption
    from beit3_bench.tasks.contract import Task

RUNS = Path("results") / "runs"
"""Where run folders are made by default, below the current folder."""


def data_option(task: type[Task]) -> str:
    """The option that says where the data of a task is."""
    return "--data" if task.own_data else "--data-root"


@dataclass(frozen=True)
class RunRequest:
    """One evaluation of one task.

    checkpoint: ``[FAMILY:]SOURCE``.
    data_root: folder of the data; the file, for a task that reads data of one's own.
    split: None = the default one; what data of one's own is to be called, None = as its file.
    until_ci: full width in points that the headline's interval is to be narrower than, for a run that may stop before the end of the
        split (`harness.stopping`).
    tokenizer: file; None = beside the checkpoint.
    output: the run folder; None = a folder below ``runs`` named after task, split, checkpoint and fingerprints.
    setting: ``"fine-tuned"``, ``"zero-shot"`` or None = known from the checkpoint; ``"linear-probe"`` of `dense_probe` alone.
    corruption: of every image, None = as they are.
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
    until_ci: float | None = None
    compute: Compute = field(default_factory=Compute)
    seed: int = 0
    output: Path | None = None
    preset: str | None = None
    image_size: int | None = None
    allow_missing: tuple[str, ...] = ()
    setting: str | None = None
    overwrite: bool = False
    corruption: Corruption | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    image_cache: Path | None = None
    features: Path | None = None
    reporting: Reporting = field(default=Reporting(), repr=False)
    log_to: tuple[str, ...] = field(default=(), repr=False)
    runs: Path = RUNS
    resolved_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """What a list of runs calls it: the task, and the corruption where there is one."""
        return self.task if self.corruption is None else f"{self.task} ({self.corruption.label})"
