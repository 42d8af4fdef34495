"""``beit3-bench bench``: how fast, as ratios measured in one run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from beit3_bench.backbones.registry import DEFAULT_FAMILY
from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, write_atomic
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import device, dtype
from beit3_bench.harness.console import columns, echo, headed

READ_SIZE = 384
"""Side of the input where none is given with --reader, pixels: retrieval's at base size."""


@click.command("bench")
@click.option(
    "--task",
    "tasks",
    metavar="T[,T2]",
    default="all",
    show_default=True,
    shell_complete=completion.tasks,
    help="Cases to measure.",
)
@click.option(
    "--family",
    default=DEFAULT_FAMILY,
    show_default=True,
    metavar="NAME",
    help="Whose networks: re-ranking and answer ranking of albef and blip.",
)
@click.option(
    "--preset",
    shell_complete=completion.presets,
    default="base",
    show_default=True,
    metavar="NAME",
    help="Model size; weights are random.",
)
@device
@dtype()
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Samples per call [default: about 3,000 image tokens, on a card 32,000, at least two; of albef and blip 1 image or "
    "2 questions, on a card 50 or 64]; "
    "with --overhead, of the made-up sets [default: as many as the real ones].",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Timed calls of each path.")
@click.option(
    "--image-size", type=click.IntRange(min=1), metavar="S", help="Pixels [default: the task's published size]."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads [default: all cores].")
@click.option(
    "--same-process",
    is_flag=True,
    help="On a CPU: run the official way with our settings of malloc and MKL; what is left is gained by the algorithms.",
)
@click.option("--compile", is_flag=True, help="Compile the layers of our path.")
@click.option("--scale", is_flag=True, help="Ranking time and memory against gallery size, on synthetic embeddings.")
@click.option(
    "--largest",
    type=click.IntRange(min=1000),
    default=100_000,
    show_default=True,
    help="With --scale: captions of the largest gallery.",
)
@click.option(
    "--overhead",
    is_flag=True,
    help="All but decoding and the network: seconds and memory at the real sets' sizes, on made-up data and predictions.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --overhead: keep the made-up data there, and use what is there.",
)
@click.option(
    "--reader",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="How fast the pictures of a folder are read, step by step, by several processes and from an image cache.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Also keep the JSON, e.g. in results/perf/."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout.")
def command(
    tasks: str,
    family: str,
    preset: str,
    device: str,
    dtype: str,
    samples: int | None,
    repeats: int,
    image_size: int | None,
    threads: int | None,
    same_process: bool,
    compile: bool,
    scale: bool,
    largest: int,
    overhead: bool,
    keep: Path | None,
    reader: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure evaluation against the machine's matrix-multiply roof and against the official way of working.

    Both paths use the same random weights, and their outputs are compared; ratios come from alternating runs, so that they hold on a
    noisy machine. On a CPU the official way runs in a process of its own, with the default settings of malloc and MKL.
    """
    from beit3_bench.harness.record.provenance import provenance

    reports = [name for name, chosen in (("overhead", overhead), ("scale", scale), ("reader", reader)) if chosen]
    if len(reports) > 1:
        raise BenchError(f"--{reports[0]} and --{reports[1]} are two reports; leave one of them out")
    if keep is not None and not overhead:
        raise BenchError("--keep holds the made-up data of --overhead; give both, or neither")
    if output is not None:  # before minutes of measuring
        make_folder(output.parent)
    if overhead:
        report = _overhead(tasks, samples, threads, keep)
    elif reader is not None:
        from beit3_bench.harness.bench.reader import reader_report

        report = {"reader": reader_report(reader, image_size or READ_SIZE)}
    else:
        report = _environment(family, preset, device, dtype, threads, compile)
        if scale:
            from beit3_bench.harness.bench.scale import scale_law

            report["scale"] = scale_law(largest)
        else:
            report["cases"] = _cases(tasks, report, samples, repeats, image_size, same_process)
    report["provenance"] = provenance(seed=0, **{key: report[key] for key in ("dtype", "device") if key in report})
    if output is not None:
        write_atomic(output, (json.dumps(report, indent=2) + "\n").encode())
    if as_json:
        echo(json.dumps(report, indent=2))
    else:
        echo(*headed(_text(report)))
    unequal = [c["task"] for c in report.get("cases", []) if not c.get("outputs_equal", True)]
    if unequal:
        raise BenchError(f"the two paths give different outputs for {', '.join(unequal)}; their ratio means nothing")


def _overhead(tasks: str, samples: int | None, threads: int | None, keep: Path | None) -> dict[str, Any]:
    from beit3_bench.harness.bench.overhead import measure_overhead, recipes

    if threads:  # of the processes to come
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if keep is not None:
        make_folder(keep)
    cases = recipes(None if tasks == "all" else tasks.split(","), samples)
    return {"cases": measure_overhead(cases, keep, lambda line: echo(line, err=True))}


def _environment(
    family: str, preset: str, device: str, dtype: str, threads: int | None, compiled: bool
) -> dict[str, Any]:
    import torch

    from beit3_bench.harness.engine.devices import resolve_device

    if threads:
        torch.set_num_threads(threads)
    return {
        "family": family,
        "preset": preset,
        "dtype": dtype,
        "device": str(resolve_device(device, dtype=dtype)),
        "threads": torch.get_num_threads(),
        "compiled": compiled,
    }


def _cases(
    tasks: str,
    environment: Mapping[str, Any],
    samples: int | None,
    repeats: int,
    image_size: int | None,
    same_process: bool,
) -> list[dict[str, Any]]:
    import torch

    from beit3_bench.backbones.benchmark import Measuring
    from beit3_bench.backbones.registry import families, get_family

    family = environment["family"]
    benchmark = get_family(family).benchmark()
    if benchmark is None:
        having = ", ".join(f.name for f in families() if f.benchmark() is not None)
        raise BenchError(f"--family {family}: bench has no case of it; it has cases of: {having}")
    names = list(benchmark.tasks) if tasks == "all" else tasks.split(",")
    unknown = [name for name in names if name not in benchmark.tasks]
    if unknown:
        raise BenchError(f"bench has no case for task {unknown[0]!r} of {family}; it has: {', '.join(benchmark.tasks)}")
    device = torch.device(environment["device"])
    how = Measuring(
        *(environment["preset"], device, environment["dtype"], samples, repeats, image_size, same_process),
        compiled=environment["compiled"],
    )
    rows = []
    for name in names:
        echo(f"measuring {name} ...", err=True)
        rows.append(benchmark.measure(name, how))
    return rows


def _text(report: dict[str, Any]) -> str:
    if "reader" in report:
        from beit3_bench.harness.bench.reader import reader_text

        read = report["reader"]
        heading = (
            f"{read['images']:,} pictures ({read['bytes'] / 1e6:.1f} MB) to {read['image_size']} x {read['image_size']}"
        )
        return "\n".join([heading, *columns(reader_text(read))])
    if "preset" not in report:
        from beit3_bench.harness.bench.overhead import table

        cores = report["provenance"]["hardware"]["cores"]
        lines = columns(table(report["cases"]))
        return "\n".join([f"all but decoding and the network, made-up data, {cores} cores", *lines])
    head = (
        f"{report['family']} {report['preset']}, {report['dtype']}, {report['device']}, {report['threads']} CPU threads"
    )
    if "scale" in report:
        lines = ["captions  seconds  peak MiB  block MiB"]
        lines += [
            f"{r['captions']:>8}  {r['seconds']:>7.2f}  {r['peak_mib']:>8.0f}  {r['block_mib']:>9.0f}"
            for r in report["scale"]
        ]
        return "\n".join([f"ranking against the gallery, {head}", *lines])
    lines = [
        f"{'task':<15} {'pixels':>6} {'ours s':>8} {'reference s':>11} {'ratio':>6} {'of roof':>8} {'timm':>5} "
        f"{'of products':>12}  reference works so"
    ]
    lines += [
        f"{c['task']:<15} {c['image_size'] or '-':>6} {c['seconds']:>8.3f} {c['reference_seconds']:>11.3f} {c['ratio']:>5.2f}x "
        f"{_share(c, 'roof_share'):>8} {_share(c, 'timm_roof_share'):>5} {_share(c, 'products_share'):>12}  {c['reference']}"
        for c in report["cases"]
    ]
    return "\n".join([f"medians of {report['cases'][0]['repeats']} alternating runs, {head}", *lines])


def _share(case: dict[str, Any], name: str) -> str:
    """In percent; "-" where a case does not measure it."""
    return f"{case[name]:.0%}" if name in case else "-"
