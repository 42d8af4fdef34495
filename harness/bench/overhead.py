"""What an evaluation takes beside decoding and the network: reading, planning, tokenising, scoring, intervals, writing.

Measured on made-up data of the real sets' sizes with made-up predictions (`tasks.madeup`), by the code that a run goes through. Each
case is made in one process and measured in another one, so that its peak of memory is its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, write_atomic

if TYPE_CHECKING:
    from beit3_bench.backbones.abilities import Reader
    from beit3_bench.tasks.contract import Example, Split, Task

DATA, RUN, MADE, TOKENIZER = "data", "run", "made.json", "tokenizer.spm"
STAGES = {"read": "reading", "score": "scoring"}
"""What a run's clock calls two of the parts."""
PARTS = ("reading", "planning", "tokenising", "scoring", "intervals", "writing")
BATCH_SIZE = 16
PIECES = 2_000
"""Of the tokenizer, at most."""
TOKENIZER_TEXTS = 2_000
LOOKED_AT_EVERY = 0.2
"""Seconds between two looks at the memory of a case and the programs that it has started."""


@dataclass(frozen=True)
class Recipe:
    """A case.  samples: of the made-up split."""

    task: str
    samples: int


def recipes(names: Sequence[str] | None, samples: int | None) -> list[Recipe]:
    """The cases of some tasks (None: all), at the released size or another one.

    Raises:
        BenchError: a task that has none.
    """
    from beit3_bench.tasks.madeup import PLACES, made_up

    unknown = [name for name in names or () if name not in PLACES]
    if unknown:
        raise BenchError(f"bench --overhead has no case for task {unknown[0]!r}; it has: {', '.join(PLACES)}")
    return [Recipe(name, samples or made_up(name).samples) for name in names or PLACES]


def measure_overhead(
    cases: Sequence[Recipe], kept: Path | None, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Seconds and memory of each case, in processes of their own.

    Args:
        kept: folder of made-up data that stays and is used again; None = a temporary one.
        say: told what is being done.

    Returns:
        Per case ``task``, ``split``, ``samples``, ``seconds`` and ``cpu_seconds`` (of all `PARTS`; the second one of all processors, less
        where others compute beside), ``parts`` and ``cpu_parts`` (of each), ``peak_memory_bytes`` (of the process and what it starts).

    Raises:
        BenchError: a folder that cannot be written, or holds something else; too little memory.
    """
    with TemporaryDirectory(prefix="beit3-bench-") as temporary:
        rows = []
        for case in cases:
            folder = (kept or Path(temporary)) / f"{case.task}-{case.samples}"
            say(f"making {case.task}, {case.samples:,} samples ...")
            _apart(make, case, folder)
            say(f"measuring {case.task} ...")
            row, peak = _apart(measure, case, folder)
            rows.append({**row, "peak_memory_bytes": max(peak, row["peak_memory_bytes"])})
            if kept is None:
                shutil.rmtree(folder)
        return rows


def _apart(work: Callable[[Recipe, Path], Any], case: Recipe, folder: Path) -> tuple[Any, int]:
    """What a function returns that runs in a new process, and the most memory that this one and its children had together."""
    import psutil

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            process = psutil.Process(pool.submit(_pid).result())
            future, peak = pool.submit(work, case, folder), 0
            while not future.done():
                with suppress(psutil.Error):
                    peak = max(peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
                with suppress(TimeoutError):
                    future.exception(LOOKED_AT_EVERY)
            return future.result(), peak
        except BrokenProcessPool as error:
            raise BenchError(
                f"{case.task}: its process ended without a word; is there too little memory? give fewer --samples"
            ) from error


def _pid() -> int:
    import os

    return os.getpid()


# ---- making ---------------------------------------------------------------------------------------------------------------


def make(case: Recipe, folder: Path) -> None:
    """Write data, tokenizer and rows of a case, unless they are there.

    Raises:
        BenchError: the folder holds something else, or cannot be written.
    """
    from beit3_bench.harness.record.rows import with_images
    from beit3_bench.harness.record.store import RunStore
    from beit3_bench.tasks.madeup import made_up

    recipe = json.dumps(dataclasses.asdict(case)).encode()
    with suppress(OSError):
        if (folder / MADE).read_bytes() == recipe:
            return
    if folder.exists():
        strangers = sorted(p.name for p in folder.iterdir() if p.name not in (DATA, RUN, MADE, TOKENIZER))
        if strangers:
            raise BenchError(f"{folder}: holds {strangers[0]}, which is no made-up data; give another --keep")
        shutil.rmtree(folder)
    make_folder(folder)
    made_up(case.task).write(folder / DATA, case.samples)
    task, split = _read(case, folder)
    hashes = {example.id: _hashes(example) for example in split.examples if example.images}
    with RunStore.open(folder / RUN, {"task": case.task}) as store:
        for rows in made_up(case.task).rows(task, split):
            store.append(with_images(rows, hashes))
    texts = [example.text for example in split.examples if example.text is not None]
    if texts:
        from beit3_bench.tasks.tinyworld.vocabulary import write_spm

        write_spm(folder / TOKENIZER, texts[:: -(-len(texts) // TOKENIZER_TEXTS)], PIECES)
    write_atomic(folder / MADE, recipe)


def _read(case: Recipe, folder: Path) -> tuple[Task, Split]:
    from beit3_bench.tasks.registry import get_task

    task = get_task(case.task)(folder / DATA)
    return task, task.read(task.default_split)


def _hashes(example: Example) -> list[str]:
    """In place of hashes of image files, which are not read."""
    return [hashlib.sha256(name.encode()).hexdigest() for name in example.image_names]


# ---- measuring ------------------------------------------------------------------------------------------------------------


def measure(case: Recipe, folder: Path) -> dict[str, Any]:
    """The row of a case that has been made; ``peak_memory_bytes`` of this process alone."""
    from beit3_bench.harness.clock import Clock
    from beit3_bench.harness.engine.memory import keep_freed_memory
    from beit3_bench.harness.reading import prepare
    from beit3_bench.harness.record.card import data_fingerprints
    from beit3_bench.harness.record.image_contents import images_fingerprint
    from beit3_bench.harness.record.samples import pack_samples
    from beit3_bench.harness.record.store import RunStore
    from beit3_bench.harness.session import score
    from beit3_bench.tasks.registry import get_task

    import_module("torch")  # which the network needs anyway
    keep_freed_memory()  # as the command line does
    clock, root = Clock(), folder / DATA
    task = get_task(case.task)(root)
    with clock.stage("read"):
        prepared = prepare(task, None)
        split = prepared.split
        data_fingerprints(task, split)
    _plan(task, split, _reader(folder), clock)
    with RunStore.open(folder / RUN, {"task": case.task}) as store:
        scored = score(prepared, store, 0, clock)
        with clock.stage("writing"):
            images_fingerprint(split.examples, store.image_hashes(), root, store.folder)
            pack_samples(scored.scores)
    parts, cpu_parts = (
        {name: seconds.get(stage, 0.0) for stage, name in _stages()} for seconds in (clock.seconds, clock.cpu_seconds)
    )
    return {
        "task": task.name,
        "split": split.name,
        "samples": case.samples,
        "seconds": sum(parts.values()),
        "cpu_seconds": sum(cpu_parts.values()),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "parts": parts,
        "cpu_parts": cpu_parts,
    }


def _stages() -> Iterator[tuple[str, str]]:
    """The clock's names of the parts, and ours."""
    stage_of = {name: stage for stage, name in STAGES.items()}
    for part in PARTS:
        yield stage_of.get(part, part), part


def _plan(task: Task, split: Split, reader: Reader | None, clock: Any) -> None:
    """Tokenise, plan and pad, as a run does."""
    from beit3_bench.backbones.abilities import Item
    from beit3_bench.harness.models import prepare_reader
    from beit3_bench.tasks.planning import plan_batches

    if reader is not None:
        with clock.stage("tokenising"):
            prepare_reader(reader, [task.item(example) for example in split.examples])

    def length(example: Example) -> int:
        return 0 if reader is None else reader.length(task.item(example))

    with clock.stage("planning"):
        plan = plan_batches(split.examples, task.batch_size or BATCH_SIZE, length)
    if reader is not None:
        with clock.stage("tokenising"):
            for batch in plan:
                if batch[0].text is not None:
                    reader.collate([Item(example.id, text=task.item(example).text) for example in batch])


def _reader(folder: Path) -> Reader | None:
    """Of the first family whose tokenizer is such a file; None for a task without texts."""
    from beit3_bench.backbones.registry import families

    if not (folder / TOKENIZER).exists():
        return None
    benchmarks = (benchmark for family in families() if (benchmark := family.benchmark()) is not None)
    return next(reader for one in benchmarks if (reader := one.reader(folder / TOKENIZER)) is not None)


# ---- showing --------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Headings and cells."""
    head = ("task", "samples", "seconds", "CPU seconds", "peak GB", *PARTS)
    return [
        head,
        *(
            (
                row["task"],
                f"{row['samples']:,}",
                f"{row['seconds']:.1f}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['peak_memory_bytes'] / 1e9:.2f}",
                *(f"{row['parts'][part]:.1f}" for part in PARTS),
            )
            for row in rows
        ),
    ]
