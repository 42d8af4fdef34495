"""Processor seconds of `beit3-bench runs` and `table` over a folder of thousands of runs.

    python tests/benchmarks/run_folders_benchmark.py [--folders 2000]

The runs of tests/first_edition under names and checkpoints of their own: as they are (the tiny world, kept apart), as if they were over
released splits (one section a task), and one of these alone (one section of thousands of rows). Prints one JSON object: seconds by
verb, imports included; half a minute on two cores that nobody else uses. Exit status 1 if one takes 3 or more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from beit3_bench.tasks.facts import read_facts

WANTED_SECONDS = 3.0
FIXTURES = Path(__file__).resolve().parents[1] / "first_edition" / "runs"
ONE = "nlvr2"
"""The run that stands alone in the third folder."""
PAGE = "page.html"
CASES = {
    "tiny world": ["runs", "table", f"table --output {PAGE}"],
    "released": [
        *("runs", "runs --json", "table", "table --cost", f"table --output {PAGE}"),
        *(f"table --format {form}" for form in ("text", "csv", "json", "latex")),
    ],
    "one task": ["table", f"table --output {PAGE}"],
}
"""Folder of runs -> what is measured there."""


def make_runs(root: Path, folders: int, released: bool, names: str) -> None:
    """Run folders below ``root``, whose files are those of the fixtures, by hard links where the disk can.

    Args:
        released: whether they say that they are over the whole released split.  names: pattern of the fixtures.
    """
    sources = sorted(path for path in FIXTURES.glob(names) if path.is_dir())
    for number in range(folders):
        source = sources[number % len(sources)]
        folder = root / f"{source.name}-{number:05d}"
        shutil.copytree(source, folder, copy_function=link_or_copy)
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
            (folder / "result.json").unlink()  # or the fixture would be written
            result["model"]["checkpoint"] = f"checkpoint-{number}.pth"
            if released:
                counts = read_facts(result["task"]).data.splits[result["split"]].stated()
                result |= {"world": "real", "counts": counts, "data": {"counts": counts, "ids": "released"}}
                for metric in result["metrics"].values():
                    metric["value"] *= 1 - number / (2 * folders)
                    point = 1.0 if metric["unit"] == "percent" else 0.01
                    metric["ci95"] = [metric["value"] - point, metric["value"] + point]
            (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def seconds(words: list[str]) -> float:
    """Processor seconds of a verb in a process of its own."""
    command = [sys.executable, "-m", "beit3_bench.harness", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=int, default=2000)
    folders = parser.parse_args().folders
    report: dict[str, float | int] = {"folders": folders}
    with tempfile.TemporaryDirectory() as place:
        for name, verbs in CASES.items():
            root = Path(place) / name.replace(" ", "-")
            make_runs(root, folders, name != "tiny world", ONE if name == "one task" else "*")
            for verb in verbs:
                words = [f"{root}.html" if word == PAGE else word for word in verb.split()]
                report[f"{verb}, {name}"] = round(seconds([*words, "--runs", str(root)]), 2)
    print(json.dumps(report, indent=1))
    return 1 if max(value for verb, value in report.items() if verb != "folders") >= WANTED_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
