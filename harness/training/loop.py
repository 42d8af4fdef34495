"""The training loop, over Accelerate: one process or many, the same weights up to rounding.

Nothing random carries over from step to step: order, augmentation and stochastic depth follow from (seed, step), so that
a state file holds weights, moments and a step, and a resumed training goes on exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit3_bench.backbones.abilities import Batch
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.backbones.seeds import seed_of
from beit3_bench.backbones.training import Training
from beit3_bench.errors import BenchError
from beit3_bench.files import write_atomic
from beit3_bench.harness.engine.batches import dying_workers
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.devices import default_workers, resolve_device, to_device
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.record.fingerprints import earlier_option_digests
from beit3_bench.harness.scoring import headline
from beit3_bench.harness.termination import Terminated, asked, deferred
from beit3_bench.harness.tracking import Trackers
from beit3_bench.harness.training.batches import load_micro_batches
from beit3_bench.harness.training.gather import Gather
from beit3_bench.harness.training.interruptions import told
from beit3_bench.harness.training.journal import LOG, VALIDATION, Journal
from beit3_bench.harness.training.order import Division, GlobalBatches
from beit3_bench.harness.training.schedule import cosine_schedule, step_schedule
from beit3_bench.harness.training.sharding import Shards, choose_parallel, make_accelerator, whole
from beit3_bench.harness.training.start import FinetuneRequest, Start
from beit3_bench.harness.training.state import (
    BEST,
    LAST,
    STATE,
    VERSION,
    check_same,
    read_state,
    save_atomic,
    save_checkpoint,
)
from beit3_bench.harness.training.validation import validate
from beit3_bench.tasks.scores import Scores


class LossModule(nn.Module):
    """A network and its loss as one forward pass, so that a data-parallel wrapper sees every parameter's use."""

    def __init__(self, model: nn.Module, training: Training, gather: Gather):
        super().__init__()
        self.model, self.loss, self.gather = model, training.loss, gather

    def forward(self, batch: Batch, step: int) -> Tensor:
        return self.loss(self.model, batch, self.gather, step)


@dataclass
class Plan:
    """The numbers of a training that follow from recipe, data and processes."""

    batches: GlobalBatches
    division: Division
    steps: int
    schedule: Any

    @classmethod
    def of(cls, recipe: Recipe, samples: int, world: int, seed: int) -> Plan:
        batches = GlobalBatches(samples, recipe.batch, seed)
        per_epoch = batches.steps_per_epoch
        steps = recipe.steps or max(1, round(recipe.epochs * per_epoch))
        warmup = recipe.warmup_steps or round(recipe.warmup_epochs * per_epoch)
        if recipe.schedule == "step":
            schedule = step_schedule(recipe.lr, steps, warmup)
        else:
            schedule = cosine_schedule(recipe.lr, recipe.min_lr, steps, warmup)
        return cls(batches, Division.of(recipe.batch, world, recipe.micro_batch), steps, schedule)

    def epoch_ends(self, step: int) -> bool:
        """Whether ``step`` steps end an epoch, or the training."""
        return step == self.steps or step % self.batches.steps_per_epoch == 0


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over parameter groups (`Training.groups`); each keeps its ``lr_scale``."""
    groups = [dict(group) for group in groups]
    for group in groups:
        del group["names"]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class TrainingLoop:
    """A fine-tuning in progress: `run` does all steps that are left."""

    def __init__(self, request: FinetuneRequest, start: Start, folder: Path, processes: Processes):
        self.request, self.start, self.folder, self.processes = request, start, folder, processes
        self.recipe, self.task, self.training = start.recipe, start.task, start.training
        self.plan = Plan.of(start.recipe, len(start.training_split.examples), processes.world, request.seed)
        self.device = resolve_device(request.device, processes, request.dtype)
        self.model = self.training.module.to(self.device).train()
        sharded = choose_parallel(request.parallel) == "fsdp" and processes.world > 1
        layers = self.training.shard_layers
        self.accelerator = make_accelerator(self.device, request.dtype, sharded, self.model, layers)
        self.shards = Shards(self.model) if sharded else None
        groups = self.training.groups()
        self.names = [name for group in groups for name in group["names"]]
        self.wrapped, self.optimizer = self.accelerator.prepare(
            LossModule(self.model, self.training, Gather(processes)), make_optimizer(groups, self.recipe)
        )
        self.average = None
        if self.recipe.ema_decay:
            from timm.utils import ModelEmaV3

            copied = self.model if self.shards is None else self.shards.copy_of_model()
            self.average = ModelEmaV3(copied, decay=self.recipe.ema_decay)
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.saved = 0
        self.unvalidated = False

    # ---- state --------------------------------------------------------------------------------------------------

    @contextmanager
    def result(self, everywhere: bool = True) -> Iterator[nn.Module]:
        """The network that is validated and kept, whole: the averaged one, where there is one.

        everywhere: on all processes, on their devices; else on process 0 only, on the CPU if it had to be gathered.
        """
        chosen = self.model if self.average is None else self.average.module
        if self.shards is None:
            yield chosen
            return
        keep = everywhere or self.processes.first
        try:
            yield self.shards.replica(chosen, self.device if everywhere else torch.device("cpu"), keep)
        finally:
            self.shards.forget()

    def save(self) -> None:
        """Write the state and the last checkpoint."""
        scaler, shards, first = self.accelerator.scaler, self.shards, self.processes.first
        average = None if self.average is None else self.average.module
        cpu = torch.device("cpu")
        if shards is None:
            model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
            averaged = None if average is None else average.state_dict()
        else:
            model, optimizer = (
                shards.tensors(self.model, first, cpu),
                shards.optimizer_state(self.optimizer, self.names, first),
            )
            averaged = None if average is None else shards.tensors(average, first, cpu)
        state = {
            "version": VERSION,
            "step": self.step,
            "seed": self.request.seed,
            "recipe": self.recipe.to_dict(),
            "fingerprints": self.start.fingerprints,
            "best": self.best,
            **({"unvalidated": True} if self.unvalidated else {}),
            "model": model,
            "average": averaged,
            "optimizer": optimizer,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        with self.result(everywhere=False) as result:

            def write() -> None:
                self._save_checkpoint(LAST, result)
                save_atomic(self.folder / STATE, state)

            self.processes.on_first(write)
        self.saved = self.step

    def _save_checkpoint(self, name: str, result: nn.Module) -> None:
        tensors, metadata = self.training.state_dict(result), self.start.metadata(self.step)
        save_checkpoint(self.folder / name, tensors, metadata)

    def restore(self) -> None:
        """Go on from the state in the folder.

        Raises:
            BenchError: none there, damaged, or made with another recipe, seed or data.
        """
        path = self.folder / STATE

        def read() -> dict[str, Any]:
            state = read_state(path)
            with _reading(path):
                equal = {"options": earlier_option_digests(self.task.options, self.training.resolved)}
                check_same(path, state, self.recipe, self.start.fingerprints, self.request.seed, equal)
            return state

        state = self.processes.together(read)
        with _reading(path):
            self._take(state)

    def _take(self, state: dict[str, Any]) -> None:
        average = None if self.average is None else self.average.module
        if self.shards is None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if average is not None:
                average.load_state_dict(state["average"])
        else:
            self.shards.load(self.model, state["model"])
            self.shards.load_optimizer(self.optimizer, state["optimizer"])
            if average is not None:
                self.shards.load(average, state["average"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = self.saved = state["step"]
        self.best = state["best"]
        self.unvalidated = state.get("unvalidated", False)

    # ---- steps --------------------------------------------------------------------------------------------------

    def run(self, trackers: Trackers | None = None) -> dict[str, Any]:
        """Train to the end. trackers: of process 0.

        Returns:
            Steps, the best and last validation scores, seconds; on every process.

        Raises:
            BenchError: a loss that is not finite, too little memory (the last saved state stays), or anything that the data does.
            DeviceFailed: the card failed; the last saved state stays.
            Terminated: SIGTERM came to one of the processes; the state is saved.
        """
        begun, at = time.perf_counter(), self.step
        journal = self.processes.on_first(lambda: Journal(self.folder, self.step, trackers))
        at_once = self.plan.division.own(0, self.processes.rank)
        with told(self.folder, lambda: self.saved, self.device, at_once.stop - at_once.start):
            self._steps(journal)
        seconds = time.perf_counter() - begun
        return {"steps": self.step, "best": self.best, "seconds": round(seconds, 3), "steps_done_now": self.step - at}

    def _steps(self, journal: Journal | None) -> None:
        plan, recipe, rank = self.plan, self.recipe, self.processes.rank
        left = range(self.step, plan.steps)
        workers = self.request.workers
        if workers is None:
            workers = default_workers(self.device, len(left), self.processes.world)
        batches = load_micro_batches(
            self.task, self.training, self.start.training_split.examples, plan.batches, plan.division, rank, left, workers,
            self.device.type == "cuda",
        )  # fmt: skip
        clock, logged = time.perf_counter(), self.step
        first, reporting = self.processes.first, self.request.reporting
        with (
            reporting.meter(self.task.name, "step", plan.steps, self.step, shown=first) as meter,
            dying_workers(workers),
            deferred(),
        ):
            if self.unvalidated:
                self._after(journal)
            for step in left:
                loss, norm = self._update(step, batches)
                self.step = step + 1
                meter.advance(loss=f"{loss:.4g}")
                if journal is not None and (self.step % recipe.log_steps == 0 or self.step == plan.steps):
                    now = time.perf_counter()
                    speed = (self.step - logged) * recipe.batch / (now - clock)
                    journal.write(LOG, self._line(step, loss, norm, speed))
                    clock, logged = now, self.step
                self._after(journal)
                if self.step < plan.steps and self._asked_to_end():
                    if self.saved < self.step:
                        self._keep(journal)
                    raise Terminated

    def _update(self, step: int, batches: Any) -> tuple[float, float]:
        """One optimizer step: the mean loss over the global batch, and the gradient norm before clipping."""
        division, rank = self.plan.division, self.processes.rank
        set_rate(self.optimizer, float(self.plan.schedule[step]))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for micro in range(division.accumulate):
            seed = seed_of(self.request.seed, "mixing", step, micro, rank)
            batch = self.training.mixed(to_device(next(batches), self.device), seed)
            # Behind the loading of data, which draws from the same generator when it begins.
            torch.manual_seed(seed_of(self.request.seed, "stochastic depth", step, micro, rank))
            last = micro == division.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                # Accelerate puts autocast around a data-parallel network, but around no sharded one.
                with nullcontext() if self.shards is None else self.accelerator.autocast():
                    loss = self.wrapped(batch, step).float() * division.weight(micro, rank)
                self.accelerator.backward(loss)
            total += loss.detach().float()
        value = float(self.accelerator.reduce(total, "mean"))
        if not math.isfinite(value):
            kept = f"{self.folder / STATE} holds step {self.saved}" if self.saved else "no step was saved yet"
            raise BenchError(
                f"task {self.task.name}: the loss is {value} at step {step + 1} of {self.plan.steps}; {kept}; "
                f"use a lower rate (-o lr={self.recipe.lr / 3:.1g}), clipping (-o clip_grad=1) or --dtype bf16"
            )
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip_grad or float("inf"))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step)
        return value, float(whole(norm))

    def _line(self, step: int, loss: float, norm: float, speed: float) -> dict[str, Any]:
        return {
            "step": step + 1,
            "epoch": (step + 1) / self.plan.batches.steps_per_epoch,
            "loss": loss,
            "lr": float(self.plan.schedule[step]),
            "grad_norm": norm,
            "samples_per_second": speed,
        }

    def _after(self, journal: Journal | None) -> None:
        """Validate and save where it is time to."""
        recipe, end = self.recipe, self.step == self.plan.steps
        epoch_ends = self.plan.epoch_ends(self.step)
        epoch = round(self.step / self.plan.batches.steps_per_epoch)
        if end or (epoch_ends and recipe.validate_epochs and epoch % recipe.validate_epochs == 0):
            self._validate(journal)
        if end or (self.step % recipe.save_steps == 0 if recipe.save_steps else epoch_ends):
            self._keep(journal)

    def _keep(self, journal: Journal | None) -> None:
        self.save()
        if journal is not None:
            journal.draw()

    def _asked_to_end(self) -> bool:
        """Whether SIGTERM has come to any process; the same answer on all."""
        came = asked()
        if self.processes.world == 1:
            return came
        return bool(self.accelerator.reduce(torch.tensor(float(came), device=self.device), "sum"))

    def _validate(self, journal: Journal | None) -> None:
        """Score the network and keep it if it is the best; a SIGTERM meanwhile leaves this to the resumed training."""
        reporting = self.request.reporting
        compute = Compute(self.request.device, self.request.dtype, workers=self.request.workers)
        self.unvalidated = True
        try:
            with self.result() as result:
                ability, split = self.training.ability.of(result), self.start.validation_split
                scores = validate(self.task, split, ability, self.device, compute, self.processes, reporting)
                self._keep_best(result, scores, journal)
        except Terminated:
            self._keep(journal)
            raise
        self.unvalidated = False

    def _keep_best(self, result: nn.Module, scores: Scores, journal: Journal | None) -> None:
        metric = headline(self.task)
        value = float(scores.metrics[metric.name])
        if journal is not None:
            epoch = self.step / self.plan.batches.steps_per_epoch
            journal.write(VALIDATION, {"step": self.step, "epoch": epoch, **scores.metrics})
        better = self.best is None or (
            (value > self.best["value"]) == metric.higher_is_better and value != self.best["value"]
        )
        if better:
            self.best = {"metric": metric.name, "value": value, "step": self.step, "metrics": dict(scores.metrics)}
            self.processes.on_first(lambda: self._save_checkpoint(BEST, result))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A state that holds other things than a training keeps.

    Raises:
        BenchError: names the file.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:120]
        raise BenchError(
            f"{path}: does not fit this training ({type(error).__name__}: {reason}); it was damaged or edited: restore it, "
            "or start again with --overwrite"
        ) from error


def place_companions(training: Training, folder: Path) -> None:
    """Copy what belongs beside the checkpoints, where `run` looks for it (the tokenizer)."""
    for name, file in training.companions.items():
        target = folder / name
        if not (target.exists() and target.samefile(file)):
            write_atomic(target, file.read_bytes())
