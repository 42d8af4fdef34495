"""``beit3-bench demo``: from nothing to a leaderboard, without data or weights of one's own."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import output
from beit3_bench.harness.console import Toned, echo
from beit3_bench.harness.termination import Terminated

if TYPE_CHECKING:
    from beit3_bench.harness.demo import Ledger, Step


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
@click.option("--overwrite", is_flag=True, help="Discard an earlier demo in the folder.")
@click.pass_context
def command(context: click.Context, quick: bool, output: Path, tasks: str | None, overwrite: bool) -> None:
    """Write a tiny synthetic world, fine-tune and evaluate a tiny BEiT-3 on every task in it, and show the leaderboard.

    Models of other families, which have learned nothing, are evaluated beside it. Every step is a command line that works on real
    data, too, and is printed before it is done. The same command goes on where an earlier one was stopped. About 7 minutes on two
    cores, and 200 MB; exit code 2 if a step failed.
    """
    from beit3_bench.backbones.environment import announced_processes
    from beit3_bench.harness.demo import choose, open_folder, plan

    if announced_processes() > 1:
        raise BenchError("demo: runs in one process; start it without a launcher")
    names = None if tasks in (None, "all") else [name.strip() for name in str(tasks).split(",")]
    experiments = choose(names, quick)
    with open_folder(output, overwrite) as ledger:
        echo("looking at what is installed", err=True)
        program = context.find_root().command
        failed = Demo(program, ledger).run(plan(output, experiments, peers=not quick))
        _show(program, output)
    if failed:
        raise BenchError(f"demo: failed to {', to '.join(failed)}; the same command tries it again")


class Demo:
    """Steps that are done one after the other, in this process."""

    def __init__(self, program: click.Command, ledger: Ledger):
        self.program, self.ledger = program, ledger
        self.begun = time.monotonic()

    def run(self, steps: Sequence[Step]) -> list[str]:
        """Do what is not done; the titles of the steps that failed.

        A step whose optional stack is missing is told, and has not failed; what another should have made for it neither.
        """
        failed: list[str] = []
        for number, step in enumerate(steps, 1):
            heading = f"[{time.monotonic() - self.begun:3.0f} s] {number} of {len(steps)}: {step.title}"
            if self.ledger.done(step):
                echo(f"{heading}: was done", err=True)
            elif step.needs is not None and not step.needs.exists():
                echo(f"{heading}: left out, {step.needs} is missing", err=True)
            else:
                echo(Toned(heading, "heading"), err=True)
                if not self._do(step):
                    failed.append(step.title)
        return failed

    def _do(self, step: Step) -> bool:
        """Whether a step was done, or need not be."""
        from beit3_bench.harness.demo import write_peer
        from beit3_bench.harness.session import is_not_installed

        step, planned = step.going_on(), step
        try:
            if step.peer:
                write_peer(step, self.ledger.path.parent)
            else:
                _invoke(self.program, step.words)
        except (KeyboardInterrupt, Terminated) as interrupt:
            interrupt.__notes__ = ["the same command goes on from here"]
            raise
        except BenchError as error:
            missing = is_not_installed(error)
            echo(f"{'left out' if missing else 'error'}: {error}", err=True)
            return missing
        self.ledger.add(planned)
        return True


def _invoke(program: click.Command, words: Sequence[str]) -> None:
    """Do a command line as if it had been typed."""
    echo(f"$ {shlex.join(['beit3-bench', *words])}", err=True)
    with program.make_context("beit3-bench", list(words)) as context:
        program.invoke(context)


def _show(program: click.Command, folder: Path) -> None:
    """Write a page for every run, the leaderboard beside them, and print the measured rows."""
    from beit3_bench.harness.demo import PAGES, RUNS
    from beit3_bench.harness.record.folder import RESULT
    from beit3_bench.harness.record.results import read_result

    runs, pages = folder / RUNS, folder / PAGES
    scored = [str(file.parent) for file in sorted(runs.rglob(RESULT)) if read_result(file)["status"] == "scored"]
    _invoke(program, ["show", *scored, "--output", str(pages)])
    _invoke(program, ["table", "--runs", str(runs), "--output", str(pages / "leaderboard.html")])
    _invoke(program, ["table", "--runs", str(runs), "--systems", "measured"])
    echo(f"\nThe page to open: {(pages / 'index.html').resolve().as_uri()}", err=True)
    echo(
        "Each line above works on real data and released weights as it stands there (beit3-bench tasks, beit3-bench models); "
        "beit3-bench init writes their places down.",
        err=True,
    )
