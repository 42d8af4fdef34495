"""The engine: same rows for any batch size, workers and processes; memory that runs out; workers that fail."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from toy_task import ToyTask, toy_ability, write_toy_data

from beit3_bench.backbones.precision import DTYPES
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.devices import resolve_device
from beit3_bench.harness.engine.predict import MemoryStore, Throughput, predict_all
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.progress import Reporting
from beit3_bench.harness.record.store import RunStore

CPU = torch.device("cpu")
CONFIG = {"fingerprints": {}}


@pytest.fixture
def data(tmp_path):
    return write_toy_data(tmp_path / "data")


@pytest.fixture
def task(data):
    return ToyTask(data)


@pytest.fixture
def ability():
    return toy_ability()


def predict(task, ability, folder, split=None, reporting=None, **settings):
    compute = Compute("cpu", **{"workers": 0, **settings})
    with RunStore.open(folder, CONFIG) as store:
        facts = predict_all(task, split or task.read("test"), ability, store, CPU, compute, reporting)
        return store.rows(), facts


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[i]["embedding"], b[i]["embedding"]) for i in a)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 3, 16, 1000])
def test_batch_size_and_workers_do_not_change_the_rows(task, ability, tmp_path, size, workers):
    reference, _ = predict(task, ability, tmp_path / "reference", batch_size="auto")
    rows, facts = predict(task, ability, tmp_path / "run", batch_size=size, workers=workers)
    assert len(rows) == 40
    assert same(rows, reference)
    assert facts.samples == 40
    assert facts.batches == -(-40 // size)


def test_order_of_the_examples_does_not_change_the_rows(task, ability, tmp_path):
    rows, _ = predict(task, ability, tmp_path / "a", batch_size=3)
    split = task.read("test")
    other, _ = predict(task, ability, tmp_path / "b", split.of(split.examples[::-1]), batch_size=3)
    assert same(rows, other)


@dataclass(frozen=True)
class Alone(Processes):
    """One of several processes, without the others: they agree by construction."""

    def broadcast(self, value):
        return value


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_divide_the_samples_without_padding_or_duplicates(task, ability, tmp_path, world, size):
    reference, _ = predict(task, ability, tmp_path / "reference")
    with RunStore.open(tmp_path / "run", CONFIG) as store:
        parts = []
        done = store.done  # what every process saw at the start, before any of them wrote
        for rank in range(world):
            mine = store if rank == 0 else RunStore.join(tmp_path / "run", rank)
            mine.done = lambda: set()
            compute = Compute("cpu", batch_size=size, workers=0)
            alone = Alone(rank, world)
            parts.append(predict_all(task, task.read("test"), ability, mine, CPU, compute, processes=alone))
            if rank:
                mine.close()
        store.done = done
        assert same(store.rows(), reference)
    total = Throughput.merged(parts)
    assert (total.samples, total.processes) == (40, world)


def test_only_missing_rows_are_computed_on_resume(task, ability, tmp_path):
    reference, _ = predict(task, ability, tmp_path / "reference")
    with RunStore.open(tmp_path / "run", CONFIG) as store:
        store.append([reference[i] for i in list(reference)[:15]])
    seen = []
    collate = ability.reader.collate
    ability.reader.collate = lambda items: seen.extend(item.id for item in items) or collate(items)
    rows, facts = predict(task, ability, tmp_path / "run", batch_size=4)
    assert same(rows, reference)
    assert sorted(seen) == sorted(set(reference) - set(list(reference)[:15]))
    assert (facts.samples, facts.resumed_samples) == (25, 15)


# ---- memory ---------------------------------------------------------------------------------------------------------

ERRORS = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9"
    ),
    "windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    "python": MemoryError,
}


def limited(ability, most, error):
    """Make the ability fail on batches above ``most``; returns the sizes that it was asked for."""
    sizes = []
    real = ability.predict

    def predict_(batch):
        sizes.append(len(batch["values"]))
        if len(batch["values"]) > most:
            raise error()
        return real(batch)

    ability.predict = predict_
    return sizes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ERRORS)
def test_batch_is_halved_until_it_fits_and_nothing_is_lost(task, ability, tmp_path, kind, workers, capsys):
    reference, _ = predict(task, ability, tmp_path / "reference")
    sizes = limited(ability, 5, ERRORS[kind])
    rows, facts = predict(task, ability, tmp_path / "run", batch_size=16, workers=workers)
    assert same(rows, reference)
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[3:]) <= 4
    assert (facts.out_of_memory, facts.batch_size) == (2, 4)
    assert "going on with 8" in capsys.readouterr().err


def test_one_example_that_does_not_fit_is_named(task, ability, tmp_path):
    limited(ability, 0, ERRORS["cuda"])
    with pytest.raises(BenchError, match=r"example 000: not enough memory on cpu even for a batch of one"):
        predict(task, ability, tmp_path / "run", batch_size=2)


def test_other_errors_are_not_mistaken_for_memory(task, ability, tmp_path):
    limited(ability, 0, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        predict(task, ability, tmp_path / "run", batch_size=2)


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_image_is_the_same_one_line_from_any_process(data, tmp_path, workers):
    with pytest.raises(BenchError) as caught:
        predict(ToyTask(data), toy_ability({"fail": "019"}), tmp_path / "run", batch_size=4, workers=workers)
    assert str(caught.value) == "019.jpg: image does not decode; download it again"
    rows = RunStore.read(tmp_path / "run").rows()
    assert 0 < len(rows) < 40  # what came before it is kept


def test_killed_worker_is_told_in_one_line(task, ability, tmp_path):
    real, parent = ability.reader.collate, os.getpid()

    def collate(items):
        if items[0].id == "020" and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(items)

    ability.reader.collate = collate
    with pytest.raises(BenchError, match=r"a decoding process died .*fewer --workers \(now 1\)"):
        predict(task, ability, tmp_path / "run", batch_size=4, workers=1)


def test_rows_of_other_samples_are_not_accepted(task, ability, tmp_path):
    real = task.rows
    task.rows = lambda *asked: real(*asked)[:-1]
    with pytest.raises(RuntimeError, match="other ids"):
        predict(task, ability, tmp_path / "run", batch_size=4)


def test_values_for_other_items_are_not_accepted(task, ability, tmp_path):
    real = ability.predict
    ability.predict = lambda batch: real(batch)[:-1]
    with pytest.raises(RuntimeError, match="3 values for 4 items"):
        predict(task, ability, tmp_path / "run", batch_size=4)


def test_throughput_counts_what_was_computed(task, ability, tmp_path):
    _, facts = predict(task, ability, tmp_path / "run", batch_size=16)
    assert facts.images_decoded == 40
    assert (facts.text_tokens, facts.text_tokens_real) == (160, 120)
    assert facts.peak_memory_bytes > 2**20
    assert facts.wall_seconds >= facts.compute_seconds > 0


def test_images_are_counted_from_the_examples_where_the_batch_does_not_tell(ability, tmp_path):
    """Dense tasks hold lists of images of any size; an image that two examples of a batch share is decoded once."""
    task = ToyTask(write_toy_data(tmp_path / "images", images=True))
    split = task.read("test")
    examples = list(split.examples)
    for i in range(0, 40, 2):
        examples[i] = replace(examples[i], images=examples[i + 1].images)
    real = ability.reader.collate
    ability.reader.collate = lambda items: {k: v for k, v in real(items).items() if k != "images"}
    _, facts = predict(task, ability, tmp_path / "run", split.of(examples), batch_size=40)
    assert (facts.images_decoded, facts.images_distinct, facts.images_encoded) == (20, 20, 40)


@pytest.mark.parametrize(("asked", "used"), [("auto", 5), (3, 3)])
def test_a_task_may_set_the_automatic_batch_size(task, ability, tmp_path, monkeypatch, asked, used):
    monkeypatch.setattr(ToyTask, "batch_size", 5)
    _, facts = predict(task, ability, tmp_path / "run", batch_size=asked)
    assert facts.batch_size == used
    assert facts.batches == -(-40 // used)


def test_all_processes_plan_from_what_the_first_one_sees(task, ability, tmp_path):
    """A process that looks at the run folder late sees rows that others have just written."""

    @dataclass(frozen=True)
    class Late(Processes):
        def broadcast(self, value):
            return set(), value[1]  # process 0 looked when nothing was there

    with RunStore.open(tmp_path / "run", CONFIG) as store:
        store.append([{"id": e.id} for e in task.read("test").examples[:7]])
        rows: list[str] = []
        late = RunStore.join(tmp_path / "run", 1)
        late.append = lambda new: rows.extend(row["id"] for row in new)
        compute = Compute("cpu", batch_size=4, workers=0)
        predict_all(task, task.read("test"), ability, late, CPU, compute, processes=Late(1, 2))
    assert len(rows) == 20


def test_no_bar_where_stderr_is_no_terminal(task, ability, tmp_path, capsys):
    predict(task, ability, tmp_path / "run")
    assert capsys.readouterr().err == ""


def test_progress_bar_when_asked_for(task, ability, tmp_path, capsys):
    predict(task, ability, tmp_path / "run", reporting=Reporting("bar"))
    assert "40/40" in capsys.readouterr().err


def test_lines_where_stderr_is_no_terminal_and_the_run_is_long(task, ability, tmp_path, capsys):
    predict(task, ability, tmp_path / "run", reporting=Reporting(interval=0), batch_size=10)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"toy: 10 of 40 samples \(25%\), .* samples/s, 00:00 left", first)
    assert last == "toy: 40 of 40 samples (100%) in 00:00"


def test_only_process_0_tells_how_far_it_is(task, ability, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Processes, "broadcast", lambda self, value: value)
    for rank, lines in ((0, 3), (1, 0)):
        store = MemoryStore()
        split = task.read("test")
        told = Reporting(interval=0)
        predict_all(
            task, split, ability, store, CPU, Compute("cpu", batch_size=10, workers=0), told, Processes(rank, 2)
        )
        err = capsys.readouterr().err
        assert err.count("\n") == lines
        assert err.startswith("toy, process 0 of 2: 10 of 20 samples" if lines else "")


# ---- devices --------------------------------------------------------------------------------------------------------


def test_devices_that_are_not_there_are_refused_with_the_mend(monkeypatch):
    assert resolve_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    for name, words in {"cuda": "sees no CUDA", "gpu": "use auto, cpu", "meta": "not supported"}.items():
        with pytest.raises(BenchError, match=words):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BenchError, match=r"2 CUDA devices here.*use cuda:1"):
        resolve_device("cuda:2")
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert resolve_device("cuda", Processes(5, 8, 1)) == torch.device("cuda", 1)
    assert chosen == [1]


def test_autocast_is_on_for_half_precision_only(task, ability, tmp_path):
    seen = []
    real = ability.predict
    ability.predict = lambda batch: (
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        or real(batch)
    )
    for dtype in DTYPES:
        predict(task, ability, tmp_path / dtype, dtype=dtype, batch_size=40)
    assert seen == [torch.float32, torch.bfloat16, torch.float16]
