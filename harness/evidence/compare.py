"""Two runs over the same samples, compared in pairs: effect, interval, p value, and the samples that flipped.

Where every sample is right or wrong, the p value is McNemar's exact one; everywhere else it is that of a paired bootstrap
over clusters (images; sentences for NLVR2). Effect and interval always come from the paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.flips import Flip, Named, with_predictions, with_samples
from beit3_bench.harness.evidence.named_again import Asked
from beit3_bench.harness.record.fingerprints import IMAGES_AND_LABELS
from beit3_bench.harness.record.folder import MEND, RESULT, SAMPLES
from beit3_bench.harness.record.released import refuse_estimate
from beit3_bench.harness.record.results import read_result
from beit3_bench.harness.record.schema import IMAGES, Result
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.scoring import CONFIDENCE, RESAMPLES, metric_spec
from beit3_bench.tasks.contract import Task
from beit3_bench.tasks.scores import ClusterTable

MCNEMAR, BOOTSTRAP = "exact McNemar", "paired bootstrap"
SHARED_CLUSTERS = (
    "samples of one image or sentence are not independent, as McNemar's test assumes; see the bootstrap p value"
)


@dataclass
class MetricComparison:
    """One metric of both runs, in its unit; ``difference`` is B minus A.

    p_value: of ``test``.  p_bootstrap: of the paired bootstrap, whatever the test.
    only_a, only_b: samples that only A, only B has right; None unless samples are right or wrong.
    changed: samples with different values, None where the task keeps no values per sample.
    """

    metric: str
    unit: str
    decimals: int
    higher_is_better: bool
    a: float
    b: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    test: str
    p_bootstrap: float | None
    only_a: int | None = None
    only_b: int | None = None
    changed: int | None = None
    flips: list[Flip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What `compare` finds."""

    run_a: str
    run_b: str
    task: str
    split: str
    clusters: int
    metrics: list[MetricComparison]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Side:
    folder: Path
    store: RunStore
    result: Result
    table: ClusterTable
    samples: dict[str, dict[str, float]]


def compare(
    folder_a: str | Path,
    folder_b: str | Path,
    metrics: Sequence[str] = (),
    flips: int = 10,
    seed: int = 0,
    data_root: Path | None = None,
    options: Mapping[str, str] | None = None,
    usual_root: Path | None = None,
) -> Comparison:
    """Compare two finished runs, sample by sample.

    Args:
        metrics: names; none = those that the task declares.
        flips: how many changed samples to list per metric, the largest changes first.
        data_root, options: those of both runs, named again; metrics that are no sums over samples (AP) are made from them, and the
            listed samples say what was asked and what would have been right.
        usual_root: where the user's settings say that such data is; the same for the listed samples, if it is the runs'.

    Raises:
        BenchError: a folder without a scored result or a damaged one, runs over different tasks, splits or data (says which),
            a metric that cannot be compared in pairs, or no ``data_root`` where one is needed.
    """
    stores = [RunStore.read(folder) for folder in (folder_a, folder_b)]
    results = [_scored(store.folder) for store in stores]
    recorded = [store.config.get("given_options", {}) for store in stores]
    for key in options or {}:
        if not any(key in known for known in recorded):
            raise BenchError(f"-o {key}: the runs had no such option; leave it out")
    task, differ = _comparable(stores, results)
    again = ["beit3-bench", "compare", str(folder_a), str(folder_b)]
    given = [{key: value for key, value in (options or {}).items() if key in known} for known in recorded]
    a, b = (_side(*side, data_root, again) for side in zip(stores, results, given, strict=True))
    from beit3_bench.tasks.metrics.bootstrap import paired_bootstrap

    try:
        differences = paired_bootstrap(a.table, b.table, task.estimate, RESAMPLES, CONFIDENCE, seed)
    except BenchError as error:
        raise BenchError(f"{a.folder} and {b.folder}: {error}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise BenchError(
            f"{a.folder / SAMPLES} or {b.folder / SAMPLES}: not what task {task.name} keeps "
            f"({type(error).__name__}: {str(error)[:100]}); {MEND}"
        ) from error
    compared = []
    for name in _chosen(task, metrics, differences, a, b):
        spec, difference = metric_spec(task, name), differences[name]
        interval = (difference.low, difference.high)
        one = MetricComparison(
            metric=name,
            unit=spec.unit,
            decimals=spec.decimals,
            higher_is_better=spec.higher_is_better,
            a=a.result["metrics"][name]["value"],
            b=b.result["metrics"][name]["value"],
            difference=difference.difference,
            ci95=interval if all(map(math.isfinite, interval)) else None,
            p_value=_finite(difference.p_value),
            test=BOOTSTRAP,
            p_bootstrap=_finite(difference.p_value),
        )
        if name in a.samples and name in b.samples:
            _by_sample(one, a, b, flips)
        compared.append(one)
    root = data_root or usual_root
    named = None if root is None else Named(root, given, again, sure=data_root is not None)
    _show(compared, a.store, b.store, named)
    return Comparison(
        str(folder_a),
        str(folder_b),
        task.name,
        a.result["split"],
        len(a.table.ids),
        compared,
        [*differ, *_notes(a.result, b.result)],
    )


# ---- may they be compared? ----------------------------------------------------------------------------------------------


def _scored(folder: Path) -> Result:
    if not (folder / RESULT).is_file():
        raise BenchError(f"{folder}: this run is not finished; give its command again, then compare")
    result = read_result(folder / RESULT)
    if result["status"] != "scored":
        raise BenchError(f"{folder}: this run is not scored ({result['status']}); there is nothing to compare")
    refuse_estimate(result, folder, "compared")
    return result


def _part(result: Result) -> str:
    """Which part of a split a run is over, in words."""
    subset = result["subset"]
    return "all of it" if subset is None else f"its first {subset['limit']} samples"


def _comparable(stores: Sequence[RunStore], results: Sequence[Result]) -> tuple[Task, list[str]]:
    """The task of both and notes on their data, or a `BenchError` that says in what the runs differ."""
    from beit3_bench.tasks.registry import get_task

    a, b = results
    corrupted = [result.get("corrupt") for result in results]
    reasons = [f"{key}s, {a[key]} and {b[key]}" for key in ("task", "split", "world") if a[key] != b[key]]  # type: ignore[literal-required]
    if a["subset"] != b["subset"]:
        reasons.append(f"parts of the split, {_part(a)} and {_part(b)}")
    seen, alike, notes = [], [], []
    for store in stores:
        fingerprints = store.config.get("fingerprints")
        if not isinstance(fingerprints, dict) or not isinstance(fingerprints.get("data"), str):
            raise BenchError(f"{store.folder}/config.json: has no fingerprint of the data; it was edited, run again")
        seen.append(fingerprints["data"])
        alike.append(fingerprints.get(IMAGES_AND_LABELS))
    if not reasons and seen[0] != seen[1] and alike[0] is not None and alike[0] == alike[1]:
        notes.append(
            "the texts of the classes differ, as each model's protocol words them; images and labels are the same"
        )
    elif not reasons and seen[0] != seen[1]:
        roots = [store.config.get("data_root") for store in stores]
        reasons.append(f"data, {seen[0][:12]}... in {roots[0]} and {seen[1][:12]}... in {roots[1]}")
    known = [result["provenance"].get("fingerprints") for result in results]
    images = [fingerprints.get(IMAGES) if isinstance(fingerprints, dict) else None for fingerprints in known]
    if not reasons and None not in images and images[0] != images[1]:
        reasons.append("image contents under the same names")
    if corrupted[0] != corrupted[1]:
        sides = [f"corrupted with {label}" if label else "as they are" for label in corrupted]
        notes.append(f"the first run's images are {sides[0]}, the second's {sides[1]}")
    if reasons:
        raise BenchError(
            f"{stores[0].folder} and {stores[1].folder}: cannot be compared in pairs, they are over different "
            f"{'; different '.join(reasons)}; run both on the same samples"
        )
    task_class, recorded = get_task(a["task"]), stores[0].config.get("given_options", {})
    return task_class(Path(), Asked().options(task_class, recorded, {})), notes


def _side(
    store: RunStore, result: Result, options: Mapping[str, str], data_root: Path | None, again: list[str]
) -> _Side:
    table, samples = store.samples()
    if table is None or not table.columns:  # a table that is no sum over clusters (AP) is made from the rows again
        from beit3_bench.harness.evidence.rescore import rescore

        scores, _ = rescore(store.folder, data_root, options, again)
        table, samples = scores.table, scores.samples
    if table is None or not table.ids:
        raise BenchError(
            f"{store.folder}: task {result['task']} keeps no values per sample; it cannot be compared in pairs"
        )
    return _Side(store.folder, store, result, table, samples)


def _chosen(task: Task, wanted: Sequence[str], differences: Mapping[str, Any], a: _Side, b: _Side) -> list[str]:
    known = [name for name in differences if name in a.result["metrics"] and name in b.result["metrics"]]
    for name in wanted:
        if name not in known:
            raise BenchError(
                f"metric {name!r} cannot be compared in pairs here; these can: {', '.join(known) or 'none'}"
            )
    declared = [metric.name for metric in task.metrics if metric.name in known]
    return list(dict.fromkeys(wanted)) or declared or known


def _notes(a: Result, b: Result) -> list[str]:
    """What differs between the runs beside their model, in words."""
    first, second = (result["provenance"].get("options") or {} for result in (a, b))
    pairs: list[tuple[str, Any, Any]] = [
        ("dtype", a["provenance"].get("dtype"), b["provenance"].get("dtype")),
        *((f"option {key}", first.get(key), second.get(key)) for key in dict.fromkeys([*first, *second])),
        ("setting", a["setting"], b["setting"]),
        ("image size", a["model"]["image_size"], b["model"]["image_size"]),
    ]
    versions = [result["provenance"].get("packages", {}).get("beit3-bench") for result in (a, b)]
    notes = [f"{name} differs: {x} in A, {y} in B" for name, x, y in [*pairs, ("version", *versions)] if x != y]
    if a["model"]["sha256"] == b["model"]["sha256"] and not notes:
        notes.append("both runs are of the same checkpoint with the same settings")
    return notes


# ---- sample by sample ---------------------------------------------------------------------------------------------------


def _by_sample(one: MetricComparison, a: _Side, b: _Side, flips: int) -> None:
    """Add McNemar's test where samples are right or wrong, and the samples that changed."""
    from beit3_bench.tasks.metrics.bootstrap import mcnemar_exact

    of_a, of_b = a.samples[one.metric], b.samples[one.metric]
    if of_a.keys() != of_b.keys():
        raise BenchError(
            f"{a.folder} and {b.folder}: {len(of_a.keys() ^ of_b.keys())} samples of {one.metric} are in one run only; "
            "score both again with the same version"
        )
    ids = list(of_a)
    x, y = (np.array([values[i] for i in ids]) for values in (of_a, of_b))
    top = 100.0 if one.unit == "percent" else 1.0
    shares = all(math.isclose(v.mean(), value, rel_tol=1e-9) for v, value in ((x, one.a), (y, one.b)) if ids)
    if ids and shares and np.isin(x, (0.0, top)).all() and np.isin(y, (0.0, top)).all():
        one.only_a, one.only_b = int((x > y).sum()), int((y > x).sum())
        one.p_value, one.test = mcnemar_exact(one.only_a, one.only_b), MCNEMAR
        if len(ids) > len(a.table.ids):
            one.notes.append(SHARED_CLUSTERS)
    change = np.abs(y - x)
    one.changed = int(np.count_nonzero(change))
    largest = sorted(np.flatnonzero(change).tolist(), key=lambda i: (-change[i], ids[i]))[: max(flips, 0)]
    one.flips = [Flip(ids[i], float(x[i]), float(y[i])) for i in largest]


def _show(comparisons: Sequence[MetricComparison], a: RunStore, b: RunStore, named: Named | None) -> None:
    """Put beside the listed samples what both runs predicted and, where their data is named, what was asked."""
    flips = with_predictions([flip for one in comparisons for flip in one.flips], a, b)
    if named is not None and flips:
        flips = with_samples(flips, a, b, named)
    shown = iter(flips)
    for one in comparisons:
        one.flips = [next(shown) for _ in one.flips]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- in words -----------------------------------------------------------------------------------------------------------


def verdict(one: MetricComparison) -> str:
    """In words, at 5%; where McNemar and the bootstrap disagree, the more careful one decides."""
    known = [p for p in (one.p_value, one.p_bootstrap) if p is not None]
    if not known or max(known) >= 0.05 or one.difference == 0:
        return "no difference at 5%"
    return "B is better" if (one.difference > 0) == one.higher_is_better else "A is better"


def p_text(value: float) -> str:
    """A p value at two digits."""
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
