"""The command line: one lazily imported module per verb, and one line per failure.

Exit codes: 0 done; 1 an error inside the program; 2 bad input, wrong usage or a full disk, told in one line on stderr;
130 interrupted; 141 nobody reads stdout any more; 143 terminated (SIGTERM).  Nothing heavier than click is imported before a verb runs.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from beit3_bench.backbones.environment import announced, announced_processes
from beit3_bench.errors import BenchError, DeviceFailed, card_failure, exhausted
from beit3_bench.harness.console import HelpGroup, echo, open_missing_streams, without_colour
from beit3_bench.harness.engine.memory import keep_freed_memory
from beit3_bench.harness.termination import EXIT_CODE, Terminated, heeding_sigterm
from beit3_bench.spelling import did_you_mean

_COMMANDS = "beit3_bench.harness.commands"
VERBS = {
    "demo": (f"{_COMMANDS}.demo:command", "Show everything on a tiny synthetic world, without data or weights."),
    "init": (f"{_COMMANDS}.init:command", "Write a beit3-bench.toml: where data and checkpoints are, device, caches."),
    "run": (f"{_COMMANDS}.run:command", "Evaluate a checkpoint on one task, several, or all."),
    "predict": (f"{_COMMANDS}.predict:command", "Ask a checkpoint about your own pictures: answers, boxes, a search."),
    "probe": (f"{_COMMANDS}.probe:command", "Classify ImageNet from frozen features: k-NN or a linear probe."),
    "finetune": (f"{_COMMANDS}.finetune:command", "Fine-tune a checkpoint on a task."),
    "score": (f"{_COMMANDS}.score:command", "Score a prediction file, or a run folder again, without a model."),
    "table": (f"{_COMMANDS}.table:command", "Print the leaderboard: measured rows beside published ones."),
    "compare": (
        f"{_COMMANDS}.compare:command",
        "Compare two runs in pairs: effect, interval, p value, flipped samples.",
    ),
    "show": (
        f"{_COMMANDS}.show:command",
        "Make a page of a run with its pictures, of one picture across tasks, or of a training.",
    ),
    "replay": (f"{_COMMANDS}.replay:command", "Execute a run again from its card and compare it row by row."),
    "runs": (f"{_COMMANDS}.runs:command", "List run folders, or delete some."),
    "cache": (f"{_COMMANDS}.cache:command", "Show what is kept of images and embeddings, or delete it."),
    "tasks": (f"{_COMMANDS}.tasks:command", "List the tasks, their splits, options and expected files."),
    "models": (f"{_COMMANDS}.models:command", "List presets and released checkpoints."),
    "data": (f"{_COMMANDS}.data:command", "Fetch or verify a data set, or write the tiny world."),
    "download": (f"{_COMMANDS}.download:command", "Download a released checkpoint, verified and resumable."),
    "bench": (f"{_COMMANDS}.bench:command", "Measure speed against the machine and against the official way."),
    "doctor": (
        f"{_COMMANDS}.doctor:command",
        "Say what is installed and what is missing for which task; whether the machine computes right.",
    ),
}
"""Verb -> (``"module:attribute"`` of its click command, the line shown by ``--help``)."""


class LazyGroup(HelpGroup):
    """A group whose commands are imported when they are called; the list of them is not."""

    def __init__(self, *args: Any, verbs: dict[str, tuple[str, str]] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.verbs = verbs or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        module, attribute = self.verbs[cmd_name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            hint = did_you_mean(args[0], self.verbs, "the verbs are")
            raise click.UsageError(f"no verb {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, line) in self.verbs.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Parse, run, and turn whatever is raised into one line and an exit code."""
        open_missing_streams()
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words
        words = [word for word in words if word != "--debug"]  # accepted before and after the verb
        extra["standalone_mode"] = False
        failed: DeviceFailed | None = None  # no other error, whose frames would keep decoding processes alive
        with without_colour("--json" in words):
            try:
                with heeding_sigterm():
                    status = super().main(words, prog_name or "beit3-bench", **extra)
            except BaseException as error:
                if debug and not isinstance(error, (SystemExit, click.exceptions.Exit)):
                    echo("".join(traceback.format_exception(error)), err=True, nl=False)
                failed = error if isinstance(error, DeviceFailed) else None
                message, status = explain(error)
                if message and not (getattr(error, "shared", False) and os.environ.get("RANK", "0") != "0"):
                    echo(_ranked(message), err=True)
        raise SystemExit(status if isinstance(status, int) else 0) from failed


def _ranked(message: str) -> str:
    """One line, with the process that says it where several run."""
    line = " ".join(message.split())
    try:
        rank = announced("RANK") if announced_processes() > 1 else None
    except BenchError:  # no launcher's; the line itself may say so
        rank = None
    return line if rank is None else f"[rank {rank}] {line}"


def explain(error: BaseException) -> tuple[str, int]:
    """The line to print on stderr ("" for none) and the exit code of an exception."""
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.exceptions.Exit):
        return "", error.exit_code
    if isinstance(error, BenchError):
        return f"error: {'; '.join([str(error), *getattr(error, '__notes__', [])])}", 2
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "beit3-bench"
        return f"error: {error.format_message().rstrip('.')} (see: {path} --help)", 2
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}", 2
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        notes = getattr(error.__cause__ or error, "__notes__", [])
        return "; ".join(["interrupted", *notes]), 130
    if isinstance(error, Terminated):
        notes = getattr(error, "__notes__", None) or ["give the same command again"]
        return "; ".join(["terminated", *notes]), EXIT_CODE
    if isinstance(error, OSError) and error.errno in _STORAGE:
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{(error.strerror or str(error)).lower()}; {_STORAGE[error.errno]}", 2
    if isinstance(error, NotImplementedError) and "MPS" in str(error):
        first = str(error).strip().split(". ")[0]
        return f"error: {first}; set PYTORCH_ENABLE_MPS_FALLBACK=1 (that part on the CPU), or use --device cpu", 2
    resource = exhausted(error)
    if resource is not None:
        return f"error: {resource}", 2
    if (failure := card_failure(error)) is not None:
        return f"error: the card failed ({failure}); give the same command again, or use another --device", 2
    kind, first = type(error).__name__, str(error).strip().split("\n")[0]
    return f"internal error: {kind}: {first}; run again with --debug for the traceback", 1


_STORAGE = {
    errno.ENOSPC: "free some disk space and give the same command again",
    errno.EDQUOT: "free some of your disk quota and give the same command again",
    errno.EACCES: "check the permissions or choose another folder",
    errno.EPERM: "check the permissions or choose another folder",
    errno.EROFS: "choose a folder on a writable file system",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EEXIST: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "the disk or network file system fails; check it",
}


@click.group(
    cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="beit3-bench", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def main(debug: bool) -> None:
    """How good is this BEiT-3 checkpoint, on every downstream task of the paper?

    \b
    beit3-bench demo --quick
    beit3-bench run --task coco-retrieval --checkpoint model.pth --data-root /data/coco
    beit3-bench table
    """
    keep_freed_memory()


if __name__ == "__main__":
    main()
