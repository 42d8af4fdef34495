"""What `beit3-bench demo` does: command lines on the tiny world, each done once, and behind those whose work it needs.

A model is fine-tuned and evaluated per task; tiny models of other families, which have learned nothing, stand beside it; a
page for every run and the leaderboard end it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from beit3_bench.backbones.registry import DEFAULT_FAMILY, families
from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, refuse_link, write_atomic
from beit3_bench.harness.record.worlds import TINY_WORLD
from beit3_bench.locks import Held, hold
from beit3_bench.tasks.registry import get_task, task_names
from beit3_bench.tasks.tinyworld.experiments import EXPERIMENTS, QUICK, Experiment

LEDGER, LOCK = "demo.json", "lock"
PARTS = WORLD, MODELS, RUNS, PEERS, PAGES = "world", "models", "runs", "peers", "pages"
STATE = "state.pt"  # of a training that can be gone on with
PRESET = "tiny"


@dataclass(frozen=True)
class Step:
    """A piece of the demo.

    words: of its command line, behind ``beit3-bench``; empty where a family writes its specimens.
    makes: what is there when it is done.  needs: what an earlier step must have made, or a file in it.
    peer: name of the family that writes specimens.
    """

    title: str
    makes: Path
    words: tuple[str, ...] = ()
    needs: Path | None = None
    peer: str = ""

    @property
    def line(self) -> str:
        """As a user would type it; the title where a family writes its specimens, for which there is no verb."""
        return shlex.join(["beit3-bench", *self.words]) if self.words else self.title

    def going_on(self) -> Step:
        """The step as it goes on from what it has left behind: a training that was stopped is resumed."""
        if not self.words or self.words[0] != "finetune" or not self.makes.parent.exists():
            return self
        resumes = (self.makes.parent / STATE).is_file()
        return replace(self, words=(*self.words, "--resume" if resumes else "--overwrite"))

    def waits_for(self, other: Step) -> bool:
        """Whether it needs what the other makes."""
        return self.needs is not None and self.needs.is_relative_to(other.makes)


class Agenda:
    """Steps of a plan, by number, that are to be done or at work: none comes up before what it needs has been tried."""

    def __init__(self, steps: Sequence[Step]):
        self._waiting = dict(enumerate(steps, 1))
        self._at_work: dict[int, Step] = {}

    def next(self) -> int | None:
        """The number of the first that can begin now, which is at work from here on; None: all wait for others."""
        unfinished = [*self._waiting.values(), *self._at_work.values()]
        for number, step in self._waiting.items():
            if not any(step.waits_for(other) for other in unfinished):
                self._at_work[number] = self._waiting.pop(number)
                return number
        return None

    def end(self, number: int) -> None:
        """A step has been tried."""
        del self._at_work[number]


# ---- the plan ------------------------------------------------------------------------------------------------------------


def choose(tasks: Sequence[str] | None, quick: bool) -> list[Experiment]:
    """The experiments of the tasks that were named, or all whose task is part of this installation.

    Raises:
        BenchError: a task that does not exist, or that the tiny world has no data for.
    """
    known = {experiment.task: experiment for experiment in EXPERIMENTS}
    for name in tasks or ():
        if name not in known:
            get_task(name)  # an unknown one, with the nearest
            raise BenchError(f"task {name}: the tiny world has no data for it; leave it out")
    chosen = set(tasks or ([QUICK] if quick else task_names()))
    return [experiment for experiment in EXPERIMENTS if experiment.task in chosen]


def plan(
    folder: Path, experiments: Sequence[Experiment], peers: bool = True, size: str = PRESET, more: Sequence[str] = ()
) -> list[Step]:
    """The steps, in an order in which they can be done one by one.

    Args:
        peers: models of other families, too.
        size: of the world (``data tiny --size``).
        more: words for every fine-tuning.
    """
    world = folder / WORLD
    sized = () if size == PRESET else ("--size", size)
    steps = [Step("write the tiny world", world / TINY_WORLD, ("data", "tiny", "--output", str(world), *sized))]
    trained: set[str] = set()
    for experiment in experiments:
        missing = not_installed(experiment.task)  # its evaluation then says what to install, and the table, too
        model = experiment.start or experiment.task if missing else experiment.trained_on
        steps += _trainings(folder, _of(model), trained, more)
        steps.append(_evaluation(folder, experiment, _checkpoint(folder, model)))
    return [*steps, *(_peers(folder, {e.task for e in experiments}) if peers else ())]


def not_installed(task: str) -> bool:
    """Whether an optional stack that a task needs is missing."""
    from beit3_bench.backbones.registry import get_family
    from beit3_bench.harness.session import is_not_installed
    from beit3_bench.harness.training.recipes import asked_of

    task_class = get_task(task)
    try:
        get_family(DEFAULT_FAMILY).check(asked_of(task_class, vars(task_class.Options())))
    except BenchError as error:
        if is_not_installed(error):
            return True
        raise
    return False


def _of(task: str) -> Experiment:
    return next(experiment for experiment in EXPERIMENTS if experiment.task == task)


def _checkpoint(folder: Path, task: str) -> Path:
    return folder / MODELS / task / "best.pth"


def _common(folder: Path) -> tuple[str, ...]:
    world = folder / WORLD
    return ("--data-root", str(world), "--tokenizer", str(world / "beit3.spm"))


def _trainings(folder: Path, experiment: Experiment, trained: set[str], more: Sequence[str]) -> Iterator[Step]:
    """The training that an experiment stands on, and before it the one that this starts from, unless they are planned already."""
    task, start = experiment.trained_on, experiment.start
    if task in trained:
        return
    if start is not None:
        yield from _trainings(folder, _of(start), trained, more)
    trained.add(task)
    origin = None if start is None else _checkpoint(folder, start)
    needs = origin or folder / WORLD / TINY_WORLD
    words = ("finetune", "--task", task, "--preset", PRESET, *_common(folder))
    words += () if origin is None else ("--checkpoint", str(origin))
    words += ("--output", str(folder / MODELS / task), *more)
    yield Step(f"fine-tune on {task}", _checkpoint(folder, task), words, needs)


def _evaluation(folder: Path, experiment: Experiment, checkpoint: Path) -> Step:
    task, output = experiment.task, folder / RUNS / experiment.task
    words = ("run", "--task", task, "--checkpoint", str(checkpoint), *_common(folder))
    words += () if experiment.split is None else ("--split", experiment.split)
    return Step(f"evaluate on {task}", output / "result.json", (*words, "--output", str(output)), checkpoint)


def _peers(folder: Path, tasks: set[str]) -> Iterator[Step]:
    for family in families():
        place = folder / PEERS / family.name
        for number, (task, source) in enumerate((t, s) for t, s in family.specimens.items() if t in tasks):
            first = place / source
            if number == 0:
                title = f"write a tiny {family.title} that has learned nothing"
                yield Step(title, place, needs=folder / WORLD / TINY_WORLD, peer=family.name)
            output = folder / RUNS / f"{task}-{family.name}"
            words = (
                "run",
                "--task",
                task,
                "--checkpoint",
                f"{family.name}:{first}",
                "--data-root",
                str(folder / WORLD),
            )
            title = f"evaluate {family.title} on {task}"
            yield Step(title, output / "result.json", (*words, "--output", str(output)), first)


def write_peer(step: Step, folder: Path) -> None:
    """Do a step that has a family write its specimens.

    Raises:
        BenchError: an optional package is missing.
    """
    from beit3_bench.backbones.registry import get_family

    task = get_task(QUICK)(folder / WORLD / QUICK, {})
    texts = [example.text or "" for example in task.training_split().examples]
    get_family(step.peer).write_specimens(step.makes, texts)


# ---- what is done --------------------------------------------------------------------------------------------------------


@contextmanager
def open_folder(folder: Path, overwrite: bool) -> Iterator[Ledger]:
    """The folder of a demo, held against a second one. overwrite: what an earlier demo has left in it is removed.

    Raises:
        BenchError: it is a file or holds something else, another process is at it, or it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"{folder}: is a file; give a folder with --output")
    names = sorted(os.listdir(folder)) if folder.exists() else []
    if names and LEDGER not in names:
        raise BenchError(f"{folder}: holds something else ({', '.join(names[:3])}); give a new folder with --output")
    make_folder(folder)
    for name in (LEDGER, *PARTS):
        refuse_link(folder / name)
    try:
        lock = hold(folder / LOCK)
    except Held as holder:
        raise BenchError(
            f"{folder}: {holder} runs a demo here; wait for it, or give another folder with --output"
        ) from holder
    try:
        ledger = Ledger(folder)
        if LEDGER in names and not overwrite:
            ledger.read()
        else:
            for name in PARTS:
                shutil.rmtree(folder / name, ignore_errors=True)
            ledger.write()
        yield ledger
    finally:
        os.close(lock)


class Ledger:
    """The steps that are done, by command line, in the folder's `LEDGER`: a second call goes on behind them."""

    def __init__(self, folder: Path):
        self.path = folder / LEDGER
        self._done: list[str] = []

    def done(self, step: Step) -> bool:
        """Whether a step was done, and what it made is still there."""
        return step.line in self._done and step.makes.exists()

    def add(self, step: Step) -> None:
        """A step has been done."""
        self._done.append(step.line)
        self.write()

    def write(self) -> None:
        write_atomic(self.path, (json.dumps({"done": self._done}, indent=1) + "\n").encode())

    def read(self) -> None:
        """Raises: BenchError: damaged."""
        try:
            done = json.loads(self.path.read_text(encoding="utf-8"))["done"]
            if not isinstance(done, list) or not all(isinstance(line, str) for line in done):
                raise TypeError("it has no list of command lines")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise BenchError(f"{self.path}: is damaged ({error}); begin again with --overwrite") from error
        self._done = done
