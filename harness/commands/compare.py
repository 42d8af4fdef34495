"""``beit3-bench compare``: two runs over the same samples, in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.options import parse_pairs, seed
from beit3_bench.harness.console import echo, headed
from beit3_bench.text import visible

if TYPE_CHECKING:
    from beit3_bench.harness.evidence.compare import Comparison, MetricComparison
    from beit3_bench.harness.evidence.flips import Flip
    from beit3_bench.harness.evidence.planning import Plan

LONGEST = 300
"""Characters of a text that are printed; --json has all."""
_RUN = click.Path(path_type=Path)


@click.command("compare")
@click.argument("run_a", type=_RUN)
@click.argument("others", type=_RUN, nargs=-1, required=True, metavar="RUN_B...")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Metric [default: those the task declares].")
@click.option(
    "--flips", type=click.IntRange(min=0), default=10, show_default=True, metavar="N", help="Changed samples to list."
)
@seed("Seed of the bootstrap.")
@click.option(
    "--data-root",
    "--data",
    "data_root",
    type=_RUN,
    metavar="PATH",
    help="The data of both runs, for what was asked and right of the listed samples, and for metrics that are made from it again (AP) "
    "[default of the former: $BEIT3_BENCH_DATA_ROOT, beit3-bench.toml].",
)
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="An option of the runs that may be a file, likewise."
)
@click.option(
    "--plan",
    "points",
    type=float,
    metavar="POINTS",
    help="Say how many images it takes to see a difference of so many points (power 0.8), as alike as these two runs are.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: values in the metrics' units, difference = B - A.")
@click.pass_context
def command(
    context: click.Context,
    run_a: Path,
    others: tuple[Path, ...],
    metrics: tuple[str, ...],
    flips: int,
    seed: int,
    data_root: Path | None,
    options: tuple[str, ...],
    points: float | None,
    as_json: bool,
) -> None:
    """Compare two run folders in pairs: effect (B minus A), 95% interval, p value, the samples that flipped.

    McNemar's exact test where samples are right or wrong, a paired bootstrap over images elsewhere. Runs over different
    data, splits or tasks are refused. With the data, each sample says its text, image files and truth. Several runs are each compared
    with the first, and their p values corrected for that (Holm).
    """
    import json

    from beit3_bench.harness.evidence.compare import compare
    from beit3_bench.harness.evidence.planning import corrected, plan

    usual = None if data_root is not None or not flips else _usual_root(context, run_a)
    compared = [compare(run_a, run_b, metrics, flips, seed, data_root, parse_pairs(options), usual) for run_b in others]
    plans = [[] if points is None else plan(comparison, points) for comparison in compared]
    holm = corrected(compared) if len(compared) > 1 else {}
    if as_json:
        contents = [
            {**comparison.to_dict(), **({"plan": [asdict(one) for one in several]} if several else {})}
            for comparison, several in zip(compared, plans, strict=True)
        ]
        echo(json.dumps({"comparisons": contents, "holm": holm} if holm else contents[0], indent=1))
        return
    for comparison, several in zip(compared, plans, strict=True):
        echo(*headed("\n".join([comparison_as_text(comparison), *map(_plan, several)])))
    if holm:
        echo(*headed("\n".join(_corrected(holm, others))))


def _usual_root(context: click.Context, run: Path) -> Path | None:
    """Where the user's settings say that the data of a run's task is."""
    from beit3_bench.harness.record.store import RunStore
    from beit3_bench.harness.settings.choices import Choices
    from beit3_bench.tasks.registry import task_names

    task = RunStore.read(run).config.get("task")
    try:
        choice = Choices.of(context).data_root(task) if task in task_names() else None
    except BenchError:  # it is not there, or not clear; then without
        return None
    return None if choice is None else Path(choice.value)


def comparison_as_text(comparison: Comparison) -> str:
    """A comparison as text."""
    lines = [
        f"{comparison.task} {comparison.split} · {comparison.clusters:,} clusters",
        f"  A: {comparison.run_a}",
        f"  B: {comparison.run_b}",
    ]
    lines += [f"  note: {note}" for note in comparison.notes]
    width = max((len(one.metric) for one in comparison.metrics), default=0)
    lines += [_line(one, width) for one in comparison.metrics]
    for one in comparison.metrics:
        lines += [f"  note: {one.metric}: {note}" for note in one.notes]
    for one in comparison.metrics:
        lines += _flips(one)
    return "\n".join(map(visible, lines))


def _plan(one: Plan) -> str:
    """What a difference takes, in a line."""
    from beit3_bench.harness.scoring import shown

    aim, smallest = (shown(value, one.unit, 2) for value in (one.difference, one.smallest))
    needed = (
        "nothing to go by, both runs agree on every sample" if one.clusters is None else f"{one.clusters:,} clusters"
    )
    return (
        f"  plan: {one.metric}: to see a difference of {aim} (power {one.power}): {needed}; the {one.measured:,} of these runs show one "
        f"of {smallest}"
    )


def _corrected(holm: Mapping[str, Sequence[float | None]], others: Sequence[Path]) -> list[str]:
    """p values of several comparisons."""
    from beit3_bench.harness.evidence.compare import p_text

    lines = [f"p values of {len(others)} comparisons, corrected (Holm)"]
    for name, values in holm.items():
        said = ", ".join(f"{run.name} {'-' if p is None else p_text(p)}" for run, p in zip(others, values, strict=True))
        lines.append(f"  {name}: {said}")
    return [visible(line) for line in lines]


def _line(one: MetricComparison, width: int) -> str:
    from beit3_bench.harness.evidence.compare import p_text, verdict
    from beit3_bench.harness.scoring import shown

    def text(value: float, sign: str = "") -> str:
        plain = shown(value, one.unit, max(one.decimals, 2))
        return sign + plain if sign and not plain.startswith("-") else plain

    line = f"{one.metric:<{width}}  A {text(one.a):>6}  B {text(one.b):>6}  B-A {text(one.difference, '+'):>7}"
    if one.ci95 is not None:
        line += f"  [{text(one.ci95[0], '+')}, {text(one.ci95[1], '+')}]"
    if one.p_value is not None:
        line += f"  p {p_text(one.p_value)} ({one.test})"
        if one.test != "paired bootstrap" and one.p_bootstrap is not None:
            line += f", bootstrap p {p_text(one.p_bootstrap)}"
    return f"{line}  {verdict(one)}"


def _flips(one: MetricComparison) -> list[str]:
    if not one.flips:
        return []
    flips = f"{one.metric}: {one.changed:,} samples changed"
    if one.only_a is not None:
        flips += f" (only A right: {one.only_a:,}, only B right: {one.only_b:,})"
    lines = [flips]
    for flip in one.flips:
        line = f"  {flip.id}  {flip.a:.4g} -> {flip.b:.4g}"
        if flip.predicted_a != flip.predicted_b:
            line += f"   {_said(flip.predicted_a)} -> {_said(flip.predicted_b)}"
        lines.append(line)
        lines += [f"      {name}: {_one_line(said)}" for name, said in _sample(flip) if said]
    if not any(flip.images or flip.text for flip in one.flips):
        lines.append("  (--data-root or --data, as of the runs, adds what was asked, the images and the truth)")
    if one.changed is not None and one.changed > len(one.flips):
        lines.append(f"  ... and {one.changed - len(one.flips):,} more (--flips N)")
    return lines


def _sample(flip: Flip) -> list[tuple[str, str]]:
    return [("text", flip.text), ("truth", flip.truth), ("image", ", ".join(flip.images))]


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _said(row: dict[str, object]) -> str:
    return ", ".join(str(value) for value in row.values()) or "-"
