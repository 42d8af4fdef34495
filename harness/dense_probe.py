"""The dense probe: a linear layer on frozen patches that segments ADE20K (see `tasks.dense_probing` for its protocol).

Patches of the training images are computed once, by all processes, and kept in the feature store; the first process fits the layer from
there, with its state saved on the way; then the validation images are a run like any other, of a model that segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beit3_bench.backbones.abilities import Patches, checked_values
from beit3_bench.backbones.family import Model, digest
from beit3_bench.backbones.linear_segmentation import LinearHead, LinearSegmenter, rounded
from beit3_bench.backbones.precision import arithmetic, full_float32
from beit3_bench.errors import BenchError
from beit3_bench.files import save_atomic
from beit3_bench.harness.clock import Clock
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.devices import failing_card, to_device
from beit3_bench.harness.engine.predict import predict_all
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.models import Located
from beit3_bench.harness.progress import Meter, Reporting
from beit3_bench.harness.reading import Prepared, prepare
from beit3_bench.harness.record.fingerprints import data_fingerprint, weights_sha256
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.schema import LINEAR_PROBE
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.reuse.patch_store import PatchStore
from beit3_bench.harness.session import Outcome, kept, load, run_model
from beit3_bench.harness.termination import deferred, end_if_asked
from beit3_bench.tasks.ade20k import ADE20K, class_names
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.dense_probing import EVALUATED, LABEL_STEP, TRAINED_ON, ImagePatches, squared_label
from beit3_bench.tasks.label_maps import CLASSES
from beit3_bench.tasks.metrics.dense_probe import Fit, Schedule, batch_of

SAVED_EVERY, TOLD_EVERY = 500, 50
"""Steps from one saved state to the next (other processes wait no longer than for these), and from one loss that is shown to the next."""
VERSION = 1


def dense_probe(request: RunRequest, schedule: Schedule, processes: Processes | None = None) -> Outcome:
    """Learn a linear layer from ADE20K's training images, and evaluate it on the validation images, or go on where that was stopped.

    Args:
        request: of task ade20k-seg, with ``features``. Its ``limit`` holds for either split.

    Returns:
        The run, whose rows are those of ade20k-seg.

    Raises:
        BenchError: bad input, a family that gives no patches, too little disk.
    """
    processes, clock = processes or Processes(), Clock()
    if request.features is None:
        raise BenchError(
            "probe --task ade20k-seg keeps the patches of the training images on disk; say where: --features DIR"
        )
    processes.together(lambda: request.compute.check(processes))
    located = processes.together(lambda: Located.of(request.checkpoint))
    patches = ImagePatches(request.data_root)
    learned = processes.together(lambda: prepare(patches, TRAINED_ON, request.limit))
    evaluated = processes.together(lambda: prepare(ADE20K(request.data_root), EVALUATED, request.limit))
    model, device = processes.together(lambda: load(request, located, learned, processes, clock))
    data = processes.together(lambda: data_fingerprint(learned.split.examples, request.data_root))
    processes.agree({**model.identity.fingerprints(), "training images": data}, "what the probe stands on")
    assert isinstance(model.ability, Patches)
    model.ability.make_ready(device, request.compute.compile == "on")
    store = processes.together(lambda: _open(request, learned, model, device))
    with closing(store), kept(store.space.folder, "the patches so far are"):
        with clock.stage("features"):
            _compute(request, learned, model, store, device, processes)
        facts = _facts(request, schedule, data, store)
        head = _fitted(request, schedule, learned, model.card.image_size, store, facts, device, processes)
    segmenting = _segmenting(model, head, schedule, facts, learned)
    request = dataclasses.replace(request, split=EVALUATED, setting=LINEAR_PROBE)
    return run_model(request, located, evaluated, segmenting, device, processes, clock)


# ---- patches --------------------------------------------------------------------------------------------------------------


def _open(request: RunRequest, learned: Prepared, model: Model, device: torch.device) -> PatchStore:
    """The store, for patches of the shape that the first image has."""
    assert request.features is not None
    ability, first = model.ability, learned.split.examples[0]
    if ability.module is not None:
        ability.module.to(device).eval()
    batch = to_device(ability.reader.collate([learned.task.item(first)]), device)
    with torch.inference_mode(), arithmetic(request.compute.dtype, device), full_float32():
        (grid,) = checked_values(ability, ability.predict(batch), [first.id])
    return PatchStore(request.features, learned.task, model, device, request.compute, grid.shape)


def _compute(
    request: RunRequest, learned: Prepared, model: Model, store: PatchStore, device: torch.device, processes: Processes
) -> None:
    """Fill the store, on all processes."""
    processes.together(lambda: store.look(learned.split.examples, processes, request.reporting))
    line = processes.on_first(store.check_disk)
    if processes.first:
        echo(line, err=True)
    processes.together(
        lambda: predict_all(
            learned.task,
            learned.split,
            model.ability,
            store,
            device,
            request.compute,
            request.reporting,
            processes,
            title="patches",
        )
    )


# ---- the layer ------------------------------------------------------------------------------------------------------------


def _facts(request: RunRequest, schedule: Schedule, data: str, store: PatchStore) -> dict[str, Any]:
    """All that the layer depends on."""
    return {
        "version": VERSION,
        "head": "BatchNorm, 1x1 convolution",
        "schedule": schedule.facts(),
        "label_step": LABEL_STEP,
        "images": len(store.keys),
        "data": data,
        "contents": digest(sorted((i, key.digest.hex()) for i, key in store.keys.items())),
        "features": store.space.identity.hex(),
        "seed": request.seed,
    }


def _fitted(
    request: RunRequest,
    schedule: Schedule,
    learned: Prepared,
    side: int,
    store: PatchStore,
    facts: dict[str, Any],
    device: torch.device,
    processes: Processes,
) -> LinearHead:
    """The layer, the same on all processes: fitted by the first one, in parts of so many steps that the others can wait for.

    side: of the input, pixels.
    """
    fit = Fit(store.shape[2], CLASSES, schedule, request.seed, device)
    path = store.space.folder / f"head-{digest(facts)[:16]}.pt"
    training = processes.on_first(lambda: _Training(request, fit, learned.split.examples, side, store, path, device))
    with request.reporting.meter("linear layer", "step", schedule.iterations, fit.step, shown=processes.first) as meter:
        while not processes.broadcast(fit.finished):
            processes.on_first(lambda: None if training is None else training.part(meter))
            end_if_asked()
    state = processes.broadcast({name: value.cpu() for name, value in fit.head.state_dict().items()})
    fit.head.load_state_dict(state)
    return fit.head.eval()


class _Training:
    """The fit on the process that does it; goes on from a state that is there.

    Raises:
        BenchError: a state that is none, patches that are lost, or a label map that does not fit.
    """

    def __init__(
        self,
        request: RunRequest,
        fit: Fit,
        examples: Sequence[Example],
        side: int,
        store: PatchStore,
        path: Path,
        device: torch.device,
    ):
        self.fit, self.path, self.device, self.seed = fit, path, device, request.seed
        if path.exists():
            _resume(fit, path)
        if not fit.finished:
            self.grids = store.grids(examples, request.reporting)
            self.labels = _labels(examples, max(side // LABEL_STEP, 1), request.reporting)

    def part(self, meter: Meter) -> None:
        """Some steps, and the state behind them.

        Raises:
            DeviceFailed: the card failed; the state before is kept.
        """
        steps = range(self.fit.step, min(self.fit.step + SAVED_EVERY, self.fit.schedule.iterations))
        with deferred(), failing_card(self.device), full_float32():
            for patches, labels in self._batches(steps):
                loss = self.fit.advance(rounded(patches, self.device), labels.to(self.device))
                told = {"loss": f"{float(loss):.3f}"} if self.fit.step % TOLD_EVERY == 0 else {}
                meter.advance(1, **told)
            save_atomic(self.path, self.fit.state())

    def _batches(self, steps: Sequence[int]) -> Iterator[tuple[list[np.ndarray], torch.Tensor]]:
        """Patches and labels of steps; the next one's are read while one is computed."""

        def read(step: int) -> tuple[list[np.ndarray], torch.Tensor]:
            numbers = batch_of(step, len(self.grids), self.seed)
            return [np.array(grid) for grid in self.grids.of(numbers)], self.labels[numbers]

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(read, steps[0])
            for step in steps[1:]:
                here, ahead = ahead.result(), pool.submit(read, step)
                yield here
            yield ahead.result()


def _resume(fit: Fit, path: Path) -> None:
    """Go on from a saved state. Nothing in it is executed."""
    try:
        fit.load(torch.load(path, map_location="cpu", weights_only=True))
        whole = 0 <= fit.step <= fit.schedule.iterations
    except MemoryError:
        raise
    except Exception:  # torch raises many kinds for a damaged file; each means the same to the user
        whole = False
    if not whole:
        raise BenchError(f"{path}: is no whole state of a linear layer; delete it and give the same command again")


def _labels(examples: Sequence[Example], side: int, reporting: Reporting) -> torch.Tensor:
    """uint8 (images, side, side)."""
    labels = np.empty((len(examples), side, side), dtype=np.uint8)
    with (
        ThreadPoolExecutor(cores()) as pool,
        reporting.meter("label maps", "image", len(examples), leave=False) as meter,
    ):
        for number, label in enumerate(pool.map(lambda example: squared_label(example, side), examples)):
            labels[number] = label
            meter.advance()
    return torch.from_numpy(labels)


def _segmenting(model: Model, head: LinearHead, schedule: Schedule, facts: dict[str, Any], learned: Prepared) -> Model:
    """The network with the layer, as a model that segments; it says what it was learned from."""
    assert isinstance(model.ability, Patches)
    ability = LinearSegmenter(model.ability, head)
    ability.labels = class_names()
    notes = [f"split {learned.split.name}: {line}" for line in learned.notes]
    if learned.subset is not None:
        notes.append(
            f"the linear layer has learned from {len(learned.split.examples):,} images of split {learned.split.name} alone"
        )
    card = dataclasses.replace(
        model.card,
        protocol=f"BatchNorm + 1x1 on whole images, {schedule.iterations:,} steps",
        params=model.card.params + sum(p.numel() for p in head.parameters()),
        settings={**model.card.settings, "probe": facts},
    )
    parts = {"network": model.identity.architecture, "probe": facts, "layer": weights_sha256(head)}
    identity = dataclasses.replace(model.identity, architecture=digest(parts), labels=ability.labels)
    return dataclasses.replace(model, ability=ability, card=card, identity=identity, notes=[*model.notes, *notes])
