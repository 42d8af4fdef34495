"""``--log-to``: what a run or a training does, in the trackers that people keep their experiments in, through Accelerate.

TensorBoard's events lie in the folder of the work. Weights & Biases and MLflow go where their own environment variables say
(``WANDB_MODE=offline`` writes into the folder, for `wandb sync`). What they call the work is kept in the folder, so that work
that is gone on with goes on in the same run of theirs. Only process 0 logs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError, requires
from beit3_bench.files import read_limited, refuse_link, storage_error, write_atomic
from beit3_bench.harness.console import echo

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TENSORBOARD, WANDB, MLFLOW = TRACKERS = ("tensorboard", "wandb", "mlflow")
IDS = "trackers.json"
"""What Weights & Biases and MLflow call this work, in its folder."""
EVENTS = "tensorboard"
PROJECT = "beit3-bench"
SECONDS = 10.0
"""From one line of a run's progress to the next."""
_OFFLINE = ("offline", "disabled", "dryrun")
_ODD = re.compile(r"[^\w\-./ ]", re.ASCII)


def installed() -> tuple[str, ...]:
    """TensorBoard, where it is installed: a training writes its events without being asked."""
    return (TENSORBOARD,) if importlib.util.find_spec("tensorboard") else ()


def check_trackers(names: Sequence[str]) -> None:
    """Find out before anything is done whether there is what ``--log-to`` names.

    Raises:
        BenchError: a package that is not installed; Weights & Biases without a login or a network, and not told to stay offline.
    """
    for name in names:
        requires(name, f"--log-to {name}")
    if WANDB in names and not _stays_offline():
        import wandb

        with _told(WANDB):
            wandb.setup(settings=wandb.Settings(silent=True))
            known = wandb.login(prompt=False, verify=True)
        if not known:
            raise BenchError(
                "--log-to wandb: there is no login here; give `wandb login`, or set WANDB_MODE=offline and send "
                "it later with `wandb sync`"
            )


def _stays_offline() -> bool:
    return os.environ.get("WANDB_MODE", "").lower() in _OFFLINE


def forget(folder: Path) -> None:
    """Remove what earlier work of a folder logged there, and what it was called elsewhere."""
    for name in (EVENTS, IDS):
        refuse_link(folder / name)
    shutil.rmtree(folder / EVENTS, ignore_errors=True)
    (folder / IDS).unlink(missing_ok=True)


class Trackers:
    """The trackers of one work. Those elsewhere that fail on the way are told of and left; the work goes on.

    Args:
        folder: of the work; it is there.
        names: of `TRACKERS`, which `check_trackers` has seen.
        config: plain values, nested; logged where the work begins.
        step: from which the work goes on, 0 at its beginning. What TensorBoard holds of later ones is done again.
    cpu: the work computes there (Accelerate settles its device once per process).

    Raises:
        BenchError: no connection to a tracker, a run that it does not know any more, a folder that cannot be written.
    """

    def __init__(self, folder: Path, names: Sequence[str], config: Mapping[str, Any], step: int = 0, cpu: bool = True):
        from accelerate import PartialState

        PartialState(cpu=cpu)  # whose loggers the trackers write to
        self.folder, self._open = folder, {}
        self._ids = _read_ids(folder)
        flat = dict(_flat(config))
        for name in dict.fromkeys(names):
            known = name in self._ids
            with _told(name, folder):
                self._open[name] = tracker = self._started(name, step)
                if not (known if name != TENSORBOARD else step):
                    tracker.store_init_configuration(_named(name, flat))
        if self._ids:
            write_atomic(folder / IDS, (json.dumps(self._ids, indent=2) + "\n").encode())

    def _started(self, name: str, step: int) -> GeneralTracker:
        from accelerate import tracking

        title = self.folder.resolve().name
        tracker: GeneralTracker
        if name == TENSORBOARD:
            refuse_link(self.folder / EVENTS)
            tracker = tracking.TensorBoardTracker(EVENTS, self.folder, purge_step=step + 1 if step else None)
        elif name == WANDB:
            import wandb

            run = self._ids.setdefault(WANDB, secrets.token_hex(4))
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            settings = wandb.Settings(silent=True, console="off", init_timeout=30)
            mode: Any = os.environ.get("WANDB_MODE", "online").lower()
            where = {"dir": str(self.folder), "mode": mode, "settings": settings}
            tracker = tracking.WandBTracker(project, name=title, id=run, resume="allow", **where)
        else:
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            tracker = tracking.MLflowTracker(PROJECT, run_id=self._ids.get(MLFLOW), run_name=title)
        tracker.start()
        if name == MLFLOW:
            self._ids[MLFLOW] = tracker.tracker.info.run_id
        return tracker

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers of one step; what is none is left out.

        Raises:
            BenchError: TensorBoard's events find no room on the disk.
        """
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        for name, tracker in list(self._open.items()):
            self._try(name, lambda name=name, tracker=tracker: tracker.log(_named(name, numbers), step=step))

    def close(self, whole: bool = True) -> None:
        """Send what is left. whole: the work came to its end; else its run is marked as one that did not."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda name=name, tracker=tracker: _finish(name, tracker, whole))
        self._open = {}

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close(whole=kind is None)

    def _try(self, name: str, step: Any) -> None:
        try:
            step()
        except OSError as error:
            self._open.pop(name, None)
            if name == TENSORBOARD:
                raise storage_error(self.folder / EVENTS, error) from error
            self._leave(name, error)
        except Exception as error:  # each service has errors of its own
            self._open.pop(name, None)
            self._leave(name, error)

    def _leave(self, name: str, error: Exception) -> None:
        echo(f"warning: {name} takes no more ({_first_line(error)}); this goes on without it", err=True)


class Progress:
    """How many rows of a run there are, and how fast they come, logged now and then; of process 0 where there are several.

    done: rows that are there, by all processes.
    """

    def __init__(self, trackers: Trackers, done: int):
        self.trackers, self.done, self.logged = trackers, done, done
        self.clock = time.monotonic()

    def advance(self, rows: int) -> None:
        self.done += rows
        seconds = time.monotonic() - self.clock
        if seconds >= SECONDS:
            rate = (self.done - self.logged) / seconds
            self.trackers.log({"progress/rows": self.done, "progress/rows_per_second": rate}, self.done)
            self.clock, self.logged = time.monotonic(), self.done


def scores_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a result.json: metrics with the ends of their intervals, and the seconds of its stages."""
    numbers: dict[str, float] = {}
    for name, metric in result["metrics"].items():
        numbers[f"metrics/{name}"] = metric["value"]
        for end, value in zip(("low", "high"), metric["ci95"] or (), strict=False):
            numbers[f"ci95/{name}/{end}"] = value
    seconds = result["timing"].get("seconds", {})
    return numbers | {f"seconds/{stage}": value for stage, value in seconds.items()}


def _finish(name: str, tracker: GeneralTracker, whole: bool) -> None:
    if whole or name == TENSORBOARD:
        tracker.finish()
    elif name == WANDB:
        tracker.tracker.finish(exit_code=1)
    else:
        import mlflow

        mlflow.end_run("FAILED")


@contextmanager
def _told(name: str, folder: Path | None = None) -> Iterator[None]:
    """What keeps a tracker from its beginning, in one line; what it prints itself goes nowhere."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    except BenchError:
        raise
    except OSError as error:
        if folder is not None and name == TENSORBOARD:
            raise storage_error(folder / EVENTS, error) from error
        raise _refused(name, error, folder) from error
    except Exception as error:  # each service has errors of its own
        raise _refused(name, error, folder) from error


def _refused(name: str, error: Exception, folder: Path | None) -> BenchError:
    how = {
        WANDB: "check the network and `wandb login`, or set WANDB_MODE=offline",
        MLFLOW: "check MLFLOW_TRACKING_URI",
        TENSORBOARD: "install it again",
    }[name]
    again = f" (a run that is gone: remove {folder / IDS})" if folder is not None and (folder / IDS).exists() else ""
    return BenchError(f"--log-to {name}: {_first_line(error)}; {how}, or leave --log-to {name} out{again}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(".")


def _read_ids(folder: Path) -> dict[str, str]:
    path = folder / IDS
    refuse_link(path)
    if not path.exists():
        return {}
    try:
        ids = json.loads(read_limited(path, 4096))
        if not isinstance(ids, dict) or not all(k in TRACKERS and re.fullmatch(r"\w{1,64}", v) for k, v in ids.items()):
            raise ValueError("not the names of runs")
    except (ValueError, TypeError, RecursionError) as error:
        raise BenchError(f"{path}: damaged ({error}); remove it, and new runs of the trackers begin") from error
    return ids


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested plain values under names with slashes; lists as JSON, what says nothing left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value
        elif value is not None:
            yield f"{prefix}{key}", json.dumps(value, default=str)


def _named(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under names that a tracker takes: MLflow knows no ``@`` (``TR@1`` -> ``TR_at_1``)."""
    return dict(values) if name != MLFLOW else {_ODD.sub("_", k.replace("@", "_at_")): v for k, v in values.items()}
