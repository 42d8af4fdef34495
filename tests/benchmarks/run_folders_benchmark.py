"""Processor seconds of `beit3-bench runs` and `table` over a folder of thousands of runs.

    python tests/benchmarks/run_folders_benchmark.py [--folders 2000]

The runs of tests/first_edition, copied under names and checkpoints of their own, once as they are (the tiny world, kept apart)
and once as if they were over released splits (one section a task). Prints one JSON object: seconds by verb, imports included.
Exit status 1 if one takes 3 or more.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from beit3_bench.tasks.facts import read_facts

WANTED_SECONDS = 3.0
FIXTURES = Path(__file__).resolve().parents[1] / "first_edition" / "runs"
VERBS = {
    "runs": ["runs"],
    "table": ["table"],
    "table of text": ["table", "--format", "text"],
    "table of json": ["table", "--format", "json"],
    "table of cost": ["table", "--cost"],
}


def copy_runs(root: Path, folders: int, released: bool) -> None:
    """Run folders below ``root``. released: whether they say that they are over the whole released split."""
    sources = sorted(path for path in FIXTURES.iterdir() if path.is_dir())
    for number in range(folders):
        source = sources[number % len(sources)]
        folder = root / f"{source.name}-{number:05d}"
        shutil.copytree(source, folder)
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
            result["model"]["checkpoint"] = f"checkpoint-{number}.pth"
            if released:
                counts = read_facts(result["task"]).data.splits[result["split"]].stated()
                result |= {"world": "real", "counts": counts, "data": {"counts": counts, "ids": "released"}}
                for metric in result["metrics"].values():
                    metric["value"] *= 1 - number / (2 * folders)
                    metric["ci95"] = None
            (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def seconds(words: list[str]) -> float:
    """Processor seconds of a verb in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "beit3_bench.harness", *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=int, default=2000)
    folders = parser.parse_args().folders
    report: dict[str, float | int] = {"folders": folders}
    with tempfile.TemporaryDirectory() as place:
        for name, released in (("tiny world", False), ("released", True)):
            root = Path(place) / name.replace(" ", "-")
            copy_runs(root, folders, released)
            for verb, words in VERBS.items():
                report[f"{verb}, {name}"] = round(seconds([*words, "--runs", str(root)]), 2)
    print(json.dumps(report, indent=1))
    return 1 if max(value for verb, value in report.items() if verb != "folders") >= WANTED_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
