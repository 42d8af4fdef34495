"""Execute a finished run again from its card, and compare what comes out row by row and metric by metric."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.corruptions import Corruption, library, parse_corruption
from beit3_bench.backbones.registry import family_locations, get_family, split_source
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.evidence.named_again import Asked
from beit3_bench.harness.models import Located, split_options
from beit3_bench.harness.objects import OBJECT
from beit3_bench.harness.record.card import COMPILE_WORDS
from beit3_bench.harness.record.fingerprints import CODE
from beit3_bench.harness.record.folder import MEND, RESULT
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.released import refuse_estimate
from beit3_bench.harness.record.results import FIRST_FAMILY, read_result
from beit3_bench.harness.record.schema import COMPILE_MODES, LINEAR_PROBE
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest, data_option
from beit3_bench.tasks.contract import Row, Task

if TYPE_CHECKING:
    from beit3_bench.harness.engine.processes import Processes

TOLERANCE = 1e-4
METRIC_TOLERANCE = 1e-9
_INPUTS = ("checkpoint", "data", "tokenizer")
"""Fingerprints that must be the run's own: with other inputs it would be another run, not a replay."""


@dataclass(frozen=True)
class RowDifference:
    """One value of one row that is not the same."""

    id: str
    key: str
    was: str
    now: str


@dataclass
class Replay:
    """What `replay` finds.

    largest: the largest absolute difference per key, of numbers and arrays.
    metrics: name -> (was, now) of those that differ.
    changed: what else is not the same: packages, hardware, decisions of the card; no reason to differ, but a hint.
    """

    run: str
    rows: int
    tolerance: float
    differing_rows: int = 0
    examples: list[RowDifference] = field(default_factory=list)
    largest: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    compared_metrics: int = 0
    changed: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.differing_rows and not self.metrics

    def to_dict(self) -> dict[str, Any]:
        return {"same": self.same, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Overrides:
    """Where things lie (see `named_again`), and how to run where it is not as the card says."""

    checkpoint: str | Path | None = None
    data_root: Path | None = None
    tokenizer: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    batch_size: int | str | None = None
    workers: int | None = None


def replay(
    folder: str | Path,
    output: Path | None = None,
    tolerance: float = TOLERANCE,
    overrides: Overrides | None = None,
    processes: Processes | None = None,
) -> Replay | None:
    """Run again what ``folder`` holds, and compare.

    Args:
        output: folder of the new run, kept and resumable; None = a temporary one.
        tolerance: largest absolute difference of numbers and arrays of a row; texts, labels and token ids are compared
            exactly, and so are the metrics (to 1e-9).

    Returns:
        The differences; None on other processes than the first.

    Raises:
        BenchError: an unfinished or damaged run, a card without what is needed, inputs that were not named (with the
            command that does), are missing or have changed (says which).
    """
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.session import run_task
    from beit3_bench.tasks.registry import get_task

    processes = processes or Processes()
    folder = Path(folder)
    store = RunStore.read(folder)
    if not store.finished:
        raise BenchError(f"{folder}: this run is not finished; give its command again instead")
    if store.config.get("family") == OBJECT:
        raise BenchError(
            f"{folder}: was made by a Python object, which no card can name; give it to beit3_bench.evaluate again"
        )
    if store.config.get("setting") == LINEAR_PROBE:
        raise BenchError(f"{folder}: was made by probe, which trains; give its command again, with another --output")
    request = request_of(store, overrides or Overrides())
    task_class = get_task(request.task)
    _check_inputs(request, task_class, folder)

    def check() -> None:  # before hours of computing
        refuse_estimate(read_result(folder / RESULT), folder, "replayed")
        store.rows()

    processes.on_first(check)
    if output is not None and output.exists() and folder.exists() and output.samefile(folder):
        raise BenchError(f"{output}: is the run itself; choose another --output for the replay")
    seen = store.config.get("fingerprints")
    if not isinstance(seen, dict) or not all(isinstance(seen.get(name), str) for name in _INPUTS):
        raise too_little(folder, "fingerprints")
    expected = {name: value for name, value in seen.items() if name in (*_INPUTS, CODE) or name.startswith("-o ")}
    with _place(output, processes) as place:
        request = dataclasses.replace(request, output=place)
        run_task(request, task_class, processes, expected, store)
        return processes.on_first(lambda: differences(store, RunStore.read(place), tolerance))


def request_of(store: RunStore, overrides: Overrides) -> RunRequest:
    """The request that a run's card stands for, with all that lies outside of its folder as it was named again.

    Raises:
        BenchError: a key of the card is missing, or something was not named; then with the whole command.
    """
    from beit3_bench.tasks.registry import get_task

    card = store.config
    asked = Asked()
    try:
        given = card["given"]
        task_class = get_task(card["task"])
        checkpoint = asked.place("--checkpoint", overrides.checkpoint, card.get("source") or card["checkpoint"])
        data_root = asked.place(data_option(task_class), overrides.data_root, card["data_root"])
        tokenizer = overrides.tokenizer
        if tokenizer is not None or _tokenizer_to_name(
            checkpoint, card["tokenizer"], card.get("family") or FIRST_FAMILY
        ):
            asked.place("--tokenizer", tokenizer, card["tokenizer"])
        options = asked.options(task_class, card["given_options"], overrides.options)
        code = [text for text in card["given_options"].values() if text.endswith(".py")]
        warning = f" (this executes the Python file {code[0]})" if code else ""
        asked.check(store.folder, ["beit3-bench", "replay", str(store.folder)], warning)
        assert checkpoint is not None
        assert data_root is not None
        workers = overrides.workers
        if workers is None and card["workers"] is not None:
            workers = min(card["workers"], cores())  # of another machine, perhaps
        request = RunRequest(
            task=card["task"],
            checkpoint=checkpoint,
            data_root=data_root,
            tokenizer=tokenizer,
            split=card["split"],
            limit=card["limit"],
            compute=Compute(
                overrides.device or card["device"].partition(":")[0],
                card["dtype"],
                overrides.batch_size or card["batch_size"],
                workers,
                _compile_mode(card["compile"], store.folder),
            ),
            seed=card["seed"],
            preset=given["preset"],
            image_size=given["image_size"],
            allow_missing=tuple(card["allow_missing"]),
            setting=given["setting"],
            corruption=_corruption(card, store.folder),
            options=options,
        )
    except KeyError as error:
        raise too_little(store.folder, error) from error
    _check_settings(request, store.folder)
    return request


def _corruption(card: Mapping[str, Any], folder: Path) -> Corruption | None:
    label = card.get("corrupt")
    if label is None:
        return None
    library()
    return parse_corruption(label, f"{folder}/config.json: corrupt")


def _tokenizer_to_name(checkpoint: str | Path | None, recorded: str | None, family: str) -> bool:
    """Whether the run's tokenizer is not the one that its family finds beside the checkpoint that was named."""
    if recorded is None:
        return False
    name = Path(recorded).name
    if family not in family_locations() or name not in get_family(family).tokenizer_files:
        return True
    return checkpoint is not None and not (folder_of(Located.of(checkpoint).path) / name).is_file()


def folder_of(path: Path) -> Path:
    """Where the files beside a checkpoint lie: in its folder, where it is one."""
    return path if path.is_dir() else path.parent


_WITHIN = {
    "limit": (1, 2**40),
    "batch_size": (1, 2**20),
    "workers": (0, 2**10),
    "image_size": (1, 2**13),
    "seed": (0, 2**63),
}
_ONE_OF: dict[str, tuple[str | None, ...]] = {
    "dtype": ("fp32", "bf16", "fp16"),
    "setting": (None, "fine-tuned", "zero-shot"),
}


def _check_settings(request: RunRequest, folder: Path) -> None:
    """Raise if a card holds what the command line would not have taken."""
    given = {**vars(request), **vars(request.compute)}
    wrong = [
        key
        for key, (low, high) in _WITHIN.items()
        if (value := given[key]) is not None
        and not (low <= value < high if isinstance(value, int) else (key, value) == ("batch_size", "auto"))
    ]
    wrong += [key for key, values in _ONE_OF.items() if given[key] not in values]
    if wrong:
        raise BenchError(f"{folder}/config.json: {wrong[0]} {str(given[wrong[0]])[:40]!r} is out of range; {MEND}")


def _compile_mode(written: bool | str, folder: Path) -> str:
    """``--compile`` as a card writes it."""
    words: dict[bool | str, str] = {value: word for word, value in COMPILE_WORDS.items()}
    mode = words.get(written, written)
    if mode not in COMPILE_MODES:
        raise BenchError(f"{folder}: config.json: compile is {written!r}; it is true, false or 'auto'")
    return str(mode)


def too_little(folder: Path, what: object) -> BenchError:
    """The card lacks something."""
    return BenchError(
        f"{folder}/config.json: holds too little to run it again ({what}); it was edited or written by an earlier version"
    )


def _check_inputs(request: RunRequest, task_class: type[Task], folder: Path) -> None:
    """Raise if files of the card are gone: names all of them at once."""
    family, source = split_source(str(request.checkpoint))
    wanted = {data_option(task_class): request.data_root}
    if family is None:
        wanted = {"--checkpoint": Path(source), **wanted}
    if request.tokenizer is not None:
        wanted["--tokenizer"] = request.tokenizer
    options = task_class(request.data_root, split_options(task_class, request.options)[0]).options
    wanted |= {f"-o {name}": path for name, path in vars(options).items() if isinstance(path, Path)}
    missing = [f"{path} ({option})" for option, path in wanted.items() if not path.exists()]
    if missing:
        raise BenchError(
            f"{folder}: cannot be replayed, missing: {', '.join(missing)}; restore, or name the new place with these options"
        )


@contextmanager
def _place(output: Path | None, processes: Processes) -> Iterator[Path]:
    """The folder of the new run."""
    if output is not None:
        yield output
        return
    holder = tempfile.TemporaryDirectory(prefix="beit3-bench-replay-") if processes.first else None
    try:
        yield Path(processes.broadcast(holder.name if holder else "")) / "run"
    finally:
        if holder is not None:
            holder.cleanup()


# ---- comparing ----------------------------------------------------------------------------------------------------------


def differences(was: RunStore, now: RunStore, tolerance: float = TOLERANCE, listed: int = 10) -> Replay:
    """Compare two finished runs row by row and metric by metric; lists the first ``listed`` differing values."""
    old_rows, new_rows = was.rows(), now.rows()
    report = Replay(str(was.folder), len(old_rows), tolerance)
    added = _added_keys(old_rows, new_rows)
    if added:
        report.changed.append(f"rows: hold {', '.join(added)} now, too")
    for name in dict.fromkeys([*old_rows, *new_rows]):
        old, new = old_rows.get(name), new_rows.get(name)
        if old is None or new is None:
            differing = [
                RowDifference(name, "(row)", *("there" if row is not None else "missing" for row in (old, new)))
            ]
        else:
            differing = list(_row_differences(old, new, report, added))
        if differing:
            report.differing_rows += 1
            report.examples += differing[: max(listed - len(report.examples), 0)]
    old_result, new_result = (read_result(store.folder / RESULT) for store in (was, now))
    values = [{n: m["value"] for n, m in result["metrics"].items()} for result in (old_result, new_result)]
    names = list(dict.fromkeys([*values[0], *values[1]]))
    report.compared_metrics = len(names)
    for name in names:
        a, b = (v.get(name) for v in values)
        if a is None or b is None or abs(a - b) > METRIC_TOLERANCE * max(1.0, abs(a)):
            report.metrics[name] = (a, b)
    if old_result["counts"] != new_result["counts"]:
        report.changed.append(f"counts: {old_result['counts']} then, {new_result['counts']} now")
    report.changed += list(_changed(was, now, old_result, new_result))
    return report


def _added_keys(old: Mapping[str, Row], new: Mapping[str, Row]) -> list[str]:
    """What later versions write into rows, and none of the earlier rows holds: there is nothing to compare it with."""
    before = {key for row in old.values() for key in row}
    return sorted({key for row in new.values() for key in row} - before)


def _row_differences(old: Row, new: Row, report: Replay, added: Collection[str]) -> Iterator[RowDifference]:
    for key in dict.fromkeys([*old, *new]):
        if key in added:
            continue
        if key not in old or key not in new:
            yield RowDifference(old["id"], key, *("there" if key in row else "missing" for row in (old, new)))
            continue
        exact, distance = _distance(old[key], new[key])
        if distance is not None:
            report.largest[key] = max(report.largest.get(key, 0.0), distance)
        if not exact or (distance is not None and not distance <= report.tolerance):
            yield RowDifference(old["id"], key, _brief(old[key]), _brief(new[key]))


def _distance(old: Any, new: Any) -> tuple[bool, float | None]:
    """Whether everything that is no float is the same, and the largest difference of the floats (None without any)."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        a, b = old, new
        if a.shape != b.shape or a.dtype != b.dtype:
            return False, None
        if a.dtype.kind != "f":
            return bool((a == b).all()), None
        return True, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
    if isinstance(old, float) and isinstance(new, float):
        return True, abs(old - new)
    parts: list[tuple[Any, Any]] = []
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = list(zip(old, new, strict=True))
    elif isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts = [(old[key], new[key]) for key in old]
    else:
        return type(old) is type(new) and not isinstance(old, np.ndarray) and old == new, None
    inner = [_distance(a, b) for a, b in parts]
    distances = [distance for _, distance in inner if distance is not None]
    return all(exact for exact, _ in inner), max(distances) if distances else None


def _brief(value: Any) -> str:
    text = f"array {value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _changed(was: RunStore, now: RunStore, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What differs in the two cards beside the result."""
    fingerprints = was.config["fingerprints"], now.config["fingerprints"]
    for name in dict.fromkeys([*fingerprints[0], *fingerprints[1]]):
        if (
            name not in _INPUTS
            and all(name in side for side in fingerprints)
            and fingerprints[0].get(name) != fingerprints[1].get(name)
        ):
            yield f"{name}: {str(fingerprints[0].get(name))[:12]} then, {str(fingerprints[1].get(name))[:12]} now"
    given = [store.config["given_options"] for store in (was, now)]
    for name in given[0]:
        if given[0][name] != given[1].get(name):
            yield f"-o {name}: {given[0][name]} then, {given[1].get(name)} now"
    sides = old["provenance"], new["provenance"]
    packages = [side.get("packages", {}) for side in sides]
    for name in sorted(set(packages[0]) | set(packages[1])):
        if name != "beit3-bench" and packages[0].get(name) != packages[1].get(name):
            yield f"{name}: {packages[0].get(name, 'absent')} then, {packages[1].get(name, 'absent')} now"
    for name in ("cpu", "gpus"):
        a, b = (side.get("hardware", {}).get(name) for side in sides)
        if a != b:
            yield f"{name}: {a} then, {b} now"
    commits = [(side.get("git") or {}).get("commit") for side in sides]
    if commits[0] != commits[1]:
        yield f"commit: {str(commits[0])[:12]} then, {str(commits[1])[:12]} now"
    if old["timing"].get("batch_size") != new["timing"].get("batch_size"):
        yield f"batch size: {old['timing'].get('batch_size')} then, {new['timing'].get('batch_size')} now"
