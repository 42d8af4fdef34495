"""``beit3-bench demo``: from nothing to a leaderboard, without data or weights of one's own."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import output
from beit3_bench.harness.console import Toned, echo
from beit3_bench.harness.termination import Terminated, deferred, end_if_asked

if TYPE_CHECKING:
    from beit3_bench.harness.demo import Ledger, Step

Outcome = Literal["done", "left out", "failed"]
"""How a step ended; one whose optional stack is missing is left out."""
GOES_ON = "the same command goes on from here"


@click.command("demo")
@click.option("--quick", is_flag=True, help="One task and one model, in under two minutes.")
@output(
    "New folder, or one of an earlier demo, which is gone on with.",
    former="--to",
    default=Path("beit3-bench-demo"),
    show_default=True,
)
@click.option(
    "--task",
    "tasks",
    metavar="T[,T2]|all",
    shell_complete=completion.tasks,
    help="Only these tasks [default: all that are installed].",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps at once, each in a process of its own; 1: all in this one [default: from cores and memory, at most 4; 1 if --quick].",
)
@click.option("--overwrite", is_flag=True, help="Discard an earlier demo in the folder.")
def command(quick: bool, output: Path, tasks: str | None, jobs: int | None, overwrite: bool) -> None:
    """Write a tiny synthetic world, fine-tune and evaluate a tiny BEiT-3 on every task in it, and show the leaderboard.

    Models of other families, which have learned nothing, are evaluated beside it. Every step is a command line that works on real
    data, too, and is printed before it is done. The same command goes on where an earlier one was stopped. About 7 minutes on two
    cores, and 200 MB; exit code 2 if a step failed. Of steps at once, each line begins with the number of its step.
    """
    from beit3_bench.backbones.environment import announced_processes
    from beit3_bench.harness.demo import choose, open_folder, plan

    if announced_processes() > 1:
        raise BenchError("demo: starts its own processes; start it without a launcher")
    names = None if tasks in (None, "all") else [name.strip() for name in str(tasks).split(",")]
    experiments = choose(names, quick)
    with open_folder(output, overwrite) as ledger:
        echo("looking at what is installed", err=True)
        steps = plan(output, experiments, peers=not quick)
        failed = Demo(ledger, steps).run(jobs or (1 if quick else _automatic_jobs()))
        _show(output)
    if failed:
        raise BenchError(f"demo: failed to {', to '.join(failed)}; the same command tries it again")


def _automatic_jobs() -> int:
    import psutil

    from beit3_bench.harness.lanes import allowed_memory, lanes_for
    from beit3_bench.harness.record.provenance import cores

    return lanes_for(cores(), min(psutil.virtual_memory().available, allowed_memory()))


class Demo:
    """The steps of a plan, as they are done in this process or in others."""

    def __init__(self, ledger: Ledger, steps: Sequence[Step]):
        from beit3_bench.harness.demo import Agenda

        self.ledger, self.steps = ledger, steps
        self.agenda = Agenda(steps)
        self.begun = time.monotonic()
        self.failed: list[str] = []

    @property
    def folder(self) -> Path:
        return self.ledger.path.parent

    def run(self, jobs: int = 1) -> list[str]:
        """Do what is not done; the titles of the steps that failed.

        A step whose optional stack is missing is told, and has not failed; what another should have made for it neither.

        jobs: steps at once, each in a process of its own; 1: in this one.

        Raises:
            BenchError: the process of a step died.
        """
        try:
            if jobs == 1:
                self._here()
            else:
                self._beside_each_other(jobs)
        except (KeyboardInterrupt, Terminated) as interrupt:
            interrupt.__notes__ = [GOES_ON]
            raise
        return self.failed

    def _here(self) -> None:
        while (number := self._next()) is not None:
            echo(Toned(self._heading(number), "heading"), err=True)
            self._end(number, attempt(self.folder, self._step(number)))

    def _beside_each_other(self, jobs: int) -> None:
        from beit3_bench.harness.lanes import LaneDied, Lanes

        begun: dict[int, float] = {}
        with deferred(), Lanes(jobs, partial(attempt, self.folder)) as lanes:

            def end(number: int, outcome: Outcome) -> None:
                self._end(number, outcome)
                seconds = time.monotonic() - begun[number]
                echo(Toned(f"{self._heading(number)}: {outcome}, {seconds:.0f} s", "heading"), err=True)

            try:
                while True:
                    while lanes.free and (number := self._next()) is not None:
                        echo(Toned(self._heading(number), "heading"), err=True)
                        begun[number] = time.monotonic()
                        lanes.begin(number, self._step(number), mark=f"{number:>{len(str(len(self.steps)))}} | ")
                    if not lanes.busy:
                        return
                    for number, outcome in lanes.ended():
                        end(number, outcome)
                    end_if_asked()
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, Terminated)):
                    echo("stopping the steps at work, which keep what they have", err=True)
                for number, outcome in lanes.stop():
                    end(number, outcome)
                if isinstance(error, LaneDied):
                    end_if_asked()  # a signal to all processes of a job reaches lanes, too
                    raise BenchError(
                        f"demo: the process of step {error.number} ({self._step(error.number).title}) died ({error.how}); "
                        f"if memory is short, give fewer --jobs than {jobs}; {GOES_ON}"
                    ) from error
                raise

    def _next(self) -> int | None:
        """The number of the next step that is to be done; what was done, or lacks what it needs, is told and passed over."""
        while (number := self.agenda.next()) is not None:
            step = self._step(number)
            if self.ledger.done(step):
                echo(f"{self._heading(number)}: was done", err=True)
            elif step.needs is not None and not step.needs.exists():
                echo(f"{self._heading(number)}: left out, {step.needs} is missing", err=True)
            else:
                return number
            self.agenda.end(number)
        return None

    def _end(self, number: int, outcome: Outcome) -> None:
        """A step has been tried."""
        self.agenda.end(number)
        if outcome == "done":
            self.ledger.add(self._step(number))
        elif outcome == "failed":
            self.failed.append(self._step(number).title)

    def _step(self, number: int) -> Step:
        return self.steps[number - 1]

    def _heading(self, number: int) -> str:
        seconds = time.monotonic() - self.begun
        return f"[{seconds:3.0f} s] {number} of {len(self.steps)}: {self._step(number).title}"


def attempt(folder: Path, step: Step) -> Outcome:
    """Do a step of the demo in a folder, in this process.

    Raises:
        BenchError: the command line is refused, as by a variable of the environment: others would be, too.
    """
    from beit3_bench.harness.demo import write_peer
    from beit3_bench.harness.session import is_not_installed

    step = step.going_on()
    try:
        if step.peer:
            write_peer(step, folder)
        else:
            _invoke(step.words)
    except BenchError as error:
        missing = is_not_installed(error)
        echo(f"{'left out' if missing else 'error'}: {error}", err=True)
        return "left out" if missing else "failed"
    except click.UsageError as error:  # holds its context, which goes into no other process
        raise BenchError(f"{error.format_message().rstrip('.')} (in: {step.line})") from None
    return "done"


def _invoke(words: Sequence[str]) -> None:
    """Do a command line as if it had been typed."""
    from beit3_bench.harness.cli import main

    echo(f"$ {shlex.join(['beit3-bench', *words])}", err=True)
    with main.make_context("beit3-bench", list(words)) as context:
        main.invoke(context)


def _show(folder: Path) -> None:
    """Write a page for every run that has numbers, the leaderboard beside them, and print the measured rows."""
    from beit3_bench.harness.demo import PAGES, RUNS
    from beit3_bench.harness.record.folder import RESULT
    from beit3_bench.harness.record.results import read_result

    runs, pages = folder / RUNS, folder / PAGES
    results = sorted(runs.rglob(RESULT))
    if not results:
        return
    scored = [str(file.parent) for file in results if read_result(file)["status"] == "scored"]
    if scored:
        _invoke(["show", *scored, "--output", str(pages)])
    _invoke(["table", "--runs", str(runs), "--output", str(pages / "leaderboard.html")])
    _invoke(["table", "--runs", str(runs), "--systems", "measured"])
    echo(f"\nThe page to open: {(pages / 'index.html').resolve().as_uri()}", err=True)
    echo(
        "Each line above works on real data and released weights as it stands there (beit3-bench tasks, beit3-bench models); "
        "beit3-bench init writes their places down.",
        err=True,
    )
