"""A training with mmengine that can be stopped at any step and goes on to the same weights.

Nothing random carries over from step to step, as in the harness's own loop: what is drawn for a sample follows from the seed and
its place in the endless order, what a network draws from the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dataset.utils import worker_init_fn
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from mmengine.runner import Runner

from beit3_bench.backbones.seeds import seed_of, seeded
from beit3_bench.backbones.training import Halted, Watcher
from beit3_bench.files import write_atomic

SAMPLER, DATASET, WORKER = "PlacedSampler", "PlacedDataset", "beit3_bench_worker"
VALIDATED = "validated.json"


@DATA_SAMPLERS.register_module(name=SAMPLER, force=True)
class PlacedSampler(InfiniteSampler):
    """mmengine's endless order; an index also says its place in it: ``place * len(dataset) + index``."""

    def _indices_of_rank(self) -> Iterator[int]:
        for number, index in enumerate(super()._indices_of_rank()):
            yield (number * self.world_size + self.rank) * self.size + index


@DATASETS.register_module(name=DATASET, force=True)
class PlacedDataset(torch.utils.data.Dataset):
    """A data set whose augmentations follow from the seed and a sample's place in the order.

    dataset: config of the data set of mmseg.
    """

    def __init__(self, dataset: Mapping[str, Any], seed: int):
        self.dataset, self.seed = DATASETS.build(dict(dataset)), seed
        self.dataset.full_init()
        self.metainfo = self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        place, index = divmod(index, len(self.dataset))
        with seeded(seed_of(self.seed, "augmentation", place)):
            return self.dataset[index]


def placed(loader: Mapping[str, Any], seed: int, watcher: Watcher) -> dict[str, Any]:
    """The config of a loader of training samples, with sampler, data set and workers of this module."""

    def begin(worker_id: int, **settings: Any) -> None:
        worker_init_fn(worker_id, **settings)
        watcher.in_worker()

    FUNCTIONS.register_module(name=WORKER, module=begin, force=True)
    worker = {"type": WORKER, "num_workers": loader["num_workers"], "rank": get_rank(), "seed": seed}
    return {
        **loader,
        "sampler": {"type": SAMPLER, "shuffle": True},
        "dataset": {"type": DATASET, "dataset": loader["dataset"], "seed": seed},
        "worker_init_fn": worker,
    }


class Watching(Hook):
    """Tells a watcher of steps and scores, and ends the training where it wants that, with the state of that step.

    Args:
        accumulate: forward passes per step.  validate: steps between validations.
    """

    def __init__(self, watcher: Watcher, folder: Path, seed: int, accumulate: int, steps: int, validate: int):
        self.watcher, self.folder, self.seed = watcher, folder, seed
        self.accumulate, self.steps, self.validate = accumulate, steps, validate
        self._loop: Any = None

    def before_train(self, runner: Runner) -> None:
        self._loop = runner.train_loop
        step = runner.iter // self.accumulate
        self.watcher.started(step, self.steps)
        if (
            step and self._is_due(step) and _validated(self.folder) < step
        ):  # it was stopped before its scores were there
            assert runner.val_loop is not None
            runner.val_loop.run()

    def close(self) -> None:
        """Let go of the decoding processes, which end then. At the end of Python they would be sent one SIGTERM, which they outlive
        (`Watcher.in_worker`), and waited for.
        """
        if self._loop is not None:
            self._loop.dataloader_iterator = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(seed_of(self.seed, "stochastic depth", runner.iter, runner.rank))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if (runner.iter + 1) % self.accumulate:
            return
        step = (runner.iter + 1) // self.accumulate
        values = {"loss": float((outputs or {})["loss"]), "lr": float(runner.optim_wrapper.get_lr()["lr"][-1])}
        norm = runner.message_hub.log_scalars.get("train/grad_norm")
        self.watcher.stepped(step, values if norm is None else {**values, "grad_norm": float(norm.current())})
        end = self._wants_end(runner)
        if end or self._is_due(step):  # a validation may be cut short: its step is kept first
            self._keep(runner, batch_idx)
        if end:
            raise Halted(step, self.folder)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._wants_end(runner):
            raise Halted(runner.iter // self.accumulate, self.folder)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        step = runner.iter // self.accumulate
        self.watcher.validated(step, {name: value / 100 for name, value in (metrics or {}).items()})
        if runner.rank == 0:
            write_atomic(self.folder / VALIDATED, (json.dumps({"step": step}) + "\n").encode())

    def _is_due(self, step: int) -> bool:
        return step % self.validate == 0 or step == self.steps

    def _wants_end(self, runner: Runner) -> bool:
        """The same answer on all processes."""
        flag = torch.tensor(float(self.watcher.wants_end()), device=next(runner.model.parameters()).device)
        all_reduce(flag, "sum")
        return bool(flag)

    def _keep(self, runner: Runner, batch_idx: int) -> None:
        """Save the state of this step, where mmengine has not just done it."""
        hook = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        if not (hook.every_n_train_iters(runner, hook.interval) or hook.is_last_train_iter(runner)):
            own, hook.interval = hook.interval, 1
            try:
                hook.after_train_iter(runner, batch_idx)
            finally:
                hook.interval = own


def _validated(folder: Path) -> int:
    """The last step of a folder whose weights were scored; 0 where none is known."""
    try:
        step = json.loads((folder / VALIDATED).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return step if isinstance(step, int) else 0
