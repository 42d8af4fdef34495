"""What corruptions of images take from a number: runs with ``--corrupt`` against the clean run of the same model and samples.

Means are those of Michaelis et al. (arXiv 1907.07484, section 3.2): over the severities of a corruption, then over corruptions. With all
fifteen at all five severities the last line is their mPC, and its share of the clean value their rPC.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from beit3_bench.backbones.corruptions import NAMES, NOTE, SEVERITIES, UNLIKE_IMAGENET_C, parse_corruption
from beit3_bench.harness.leaderboard.numbers import regime_of, splits_of
from beit3_bench.harness.leaderboard.verdict import percent
from beit3_bench.harness.record.released import apart
from beit3_bench.harness.record.results import Run, model_name
from beit3_bench.harness.record.schema import CODE, MetricValue

ROBUSTNESS_TITLE = "Under corruption"
ROBUSTNESS_LEGEND = (
    "The headline metric on corrupted images, by severity from 1 to 5, beside the clean run over the same samples: change in points "
    "(beit3-bench compare CLEAN CORRUPTED gives its interval), and percent of the clean value. Images are corrupted at their own size: "
    "none of these numbers is one on ImageNet-C's files, and none stands beside published ones."
)
CLEAN, MEAN = "clean", "mean"
_OF_THE_CORRUPTION = ("corruption", CODE, "version")
"""Fingerprints in which a corrupted run may differ from its clean one."""


@dataclass(frozen=True)
class Suffered:
    """The headline under one corruption, in percent."""

    name: str
    severity: int
    value: float
    run: str


@dataclass(frozen=True)
class Robustness:
    """A model on a task's samples under corruptions.

    why: what else sets its numbers apart (tiny world, ``--limit``).  clean: percent; None where no such run is there.
    notes: of the corrupted runs, less what is the same for all corruptions.
    """

    task: str
    split: str
    regime: str
    why: str
    model: str
    metric: str
    decimals: int
    clean: float | None
    clean_run: str
    suffered: list[Suffered]
    notes: list[str]

    @property
    def title(self) -> str:
        """Task, split, model and what else there is to know."""
        return ", ".join(filter(None, [self.task, self.split, self.regime, self.model, self.why]))

    @property
    def severities(self) -> list[int]:
        return sorted({one.severity for one in self.suffered})

    @property
    def header(self) -> list[str]:
        """Names of the columns of `lines`."""
        return ["corruption", *map(str, self.severities), MEAN, "change", "of clean"]

    def lines(self) -> list[list[str]]:
        """``[corruption, a number per severity, mean, change, share of the clean value]``; the clean run first, the mean last."""
        blank = [""] * len(self.severities)
        by_name: dict[str, dict[int, float]] = {}
        for one in self.suffered:
            by_name.setdefault(one.name, {})[one.severity] = one.value
        names = sorted(by_name, key=NAMES.index)
        means = {name: sum(by_name[name].values()) / len(by_name[name]) for name in names}
        lines = [[CLEAN, *blank, self._text(self.clean), "", ""]] if self.clean is not None else []
        for name in names:
            numbers = [self._text(by_name[name].get(severity)) for severity in self.severities]
            lines.append([name, *numbers, *self._cells(means[name])])
        even = all(len(by_name[name]) == len(self.severities) for name in names)
        if len(names) > 1 and even:  # else the means are of unlike severities
            whole = len(names) == len(NAMES) and len(self.severities) == len(SEVERITIES)
            label = "mean (mPC; of clean: rPC)" if whole else f"{MEAN} of {len(names)}"
            lines.append([label, *blank, *self._cells(sum(means.values()) / len(names))])
        return lines

    @property
    def told(self) -> list[str]:
        """What a reader of the numbers must know: where they come from, what is missing, what is not as its name says."""
        clean = f"clean: run {self.clean_run}"
        if self.clean is None:
            clean = "no clean run of this model over the same samples: give the same command without --corrupt"
        names = dict.fromkeys(one.name for one in self.suffered)
        unlike = [
            f"{name} is not ImageNet-C's: {UNLIKE_IMAGENET_C[name]}" for name in names if name in UNLIKE_IMAGENET_C
        ]
        return [f"{self.metric}; {clean}", *unlike, *self.notes]

    def _cells(self, value: float) -> list[str]:
        if self.clean is None:
            return [self._text(value), "", ""]
        share = f"{100 * value / self.clean:.1f}%" if self.clean > 0 else ""
        return [self._text(value), f"{value - self.clean:+.{self.decimals}f}", share]

    def _text(self, value: float | None) -> str:
        return "" if value is None else f"{value:.{self.decimals}f}"


def robustness_of(runs: Sequence[Run]) -> list[Robustness]:
    """The corrupted ones among scored runs, by model, task and samples; of equal runs the newest counts.

    A clean run belongs to corrupted ones where all that they were made from is the same but the corruption and this program's version.
    """
    splits = {run.name: split for run, split in zip(runs, splits_of(runs), strict=True)}
    groups: dict[str, list[Run]] = {_key(run): [] for run in runs if run.result.get("corrupt")}
    clean: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.result["provenance"].get("time", ""))):
        if run.result.get("corrupt"):
            groups[_key(run)].append(run)
        else:
            clean[_key(run)] = run
    return [_robustness(group, clean.get(key), splits) for key, group in groups.items()]


def _key(run: Run) -> str:
    result = run.result
    made_from = result["provenance"].get("fingerprints", {})
    kept = {name: value for name, value in made_from.items() if name not in _OF_THE_CORRUPTION}
    same = [result["task"], result["split"], result["world"], result["subset"], result["setting"], kept]
    return json.dumps(same, sort_keys=True)


def _robustness(group: Sequence[Run], clean: Run | None, splits: Mapping[str, str]) -> Robustness:
    last = group[-1].result
    name, metric = _headline(group[-1])
    suffered = {run.result["corrupt"]: _suffered(run) for run in group}
    model, reasons = last["model"], apart({**last, "corrupt": None})
    return Robustness(
        task=last["task"],
        split=splits[group[-1].name],
        regime=regime_of(last),
        why=", ".join(reasons),
        model=f"{model_name(model)}, {model['weight'] or model['checkpoint']}",
        metric=name,
        decimals=metric["decimals"],
        clean=None if clean is None else _value(clean),
        clean_run="" if clean is None else clean.name,
        suffered=list(suffered.values()),
        notes=list(dict.fromkeys(note for run in group for note in run.result["notes"] if not note.startswith(NOTE))),
    )


def _headline(run: Run) -> tuple[str, MetricValue]:
    return next((name, metric) for name, metric in run.result["metrics"].items() if metric["headline"])


def _value(run: Run) -> float:
    metric = _headline(run)[1]
    return percent(metric, metric["value"])


def _suffered(run: Run) -> Suffered:
    corruption = parse_corruption(run.result["corrupt"] or "", run.name)
    return Suffered(corruption.name, corruption.severity, _value(run), run.name)
