"""The device report: pieces in processes of their own, one JSON each, and one page of what passed, failed and was left out.

Usage: python tests/device/report.py FOLDER [--device cuda] [--quick] [PIECE ...]
Exit code 1 if a check failed or a piece did not end well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PIECES = {
    "numerics": ("numerics.py", 150),
    "memory": ("memory.py", 120),
    "failing": ("failing.py", 60),
    "tinyworld": ("tinyworld.py", 180),
    "speed-base": ("speed.py", 140),
    "families": ("families.py", 90),
    "feeding": ("feeding.py", 150),
    "probing": ("probing.py", 90),
    "speed-large": ("speed.py", 100),
}
"""Script and the seconds it may take."""
CHECKING = ("numerics", "memory", "failing", "tinyworld")
"""Pieces that time nothing, and so run side by side."""


def run(name: str, out: Path, words: list[str]) -> dict[str, Any]:
    """One piece; what it had written when its time was over counts."""
    script, limit = PIECES[name]
    file = out / f"{name}.json"
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    failure = ""
    with (out / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / script), str(file), *words],
                stdout=log,
                stderr=log,
                timeout=limit,
                check=False,
            )
            failure = "" if done.returncode == 0 else f"exit code {done.returncode}; see {name}.log"
        except subprocess.TimeoutExpired:
            failure = f"not finished after {limit} s"
    empty: dict[str, Any] = {"piece": name, "checks": [], "figures": {}, "skipped": []}
    report = json.loads(file.read_text()) if file.is_file() else empty
    return {**report, "seconds": round(time.perf_counter() - started, 1), "failure": failure}


def card(device: str) -> dict[str, Any]:
    """The card and the versions that the figures belong to."""
    import torch

    from beit3_bench.harness.record.provenance import provenance

    facts = provenance(device=device)
    if device.startswith("cuda") and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.device(device))
        facts["card"] = {"name": properties.name, "memory_bytes": properties.total_memory}
    return facts


def _speed(case: dict[str, Any]) -> str:
    parts = [f"{case['ratio']:5.2f}x the official way"]
    if "roof_share" in case:
        parts.append(f"{case['roof_share']:4.0%} of the roof (timm {case['timm_roof_share']:4.0%})")
    if "samples_per_second" in case:
        parts.append(f"{case['samples_per_second']:7.1f} samples/s")
    return ", ".join(parts)


def text(report: dict[str, Any]) -> str:
    lines = [f"{report['provenance'].get('card', {}).get('name', report['provenance']['device'])}"]
    for piece in report["pieces"]:
        failed = [check for check in piece["checks"] if not check["passed"]]
        passed = len(piece["checks"]) - len(failed)
        lines.append(
            f"{piece['piece']:<12} {passed} passed, {len(failed)} failed, {piece['seconds']} s {piece['failure']}".rstrip()
        )
        lines += [f"  FAILED {check['name']}: {check['value']:.4g}, at most {check['limit']:.4g}" for check in failed]
        lines += [f"  skipped {what}" for what in piece["skipped"]]
        timed = piece["piece"] == "families" or piece["piece"].startswith("speed")
        for way, cases in piece["figures"].items() if timed else ():
            lines += [f"  {way:<9} {task:<15} {_speed(case)}" for task, case in cases.items()]
        for way, clock in piece["figures"].get("runs", {}).items() if piece["piece"] == "feeding" else ():
            lines += [f"  run, {way}: {clock['samples_per_second']:.0f} samples/s"] if clock else []
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"of: {', '.join(PIECES)} [default: all]")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    unknown = [name for name in given.pieces if name not in PIECES]
    if unknown:
        parser.error(f"no piece {unknown[0]!r}; there are: {', '.join(PIECES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    words = ["--device", given.device, *(["--quick"] if given.quick else [])]
    chosen = given.pieces or list(PIECES)
    with ThreadPoolExecutor(len(CHECKING)) as pool:
        checked = list(pool.map(lambda name: run(name, given.out, words), [n for n in chosen if n in CHECKING]))
    pieces = [*checked, *(run(name, given.out, words) for name in chosen if name not in CHECKING)]
    report = {"provenance": card(given.device), "pieces": pieces, "left_out": [n for n in PIECES if n not in chosen]}
    (given.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(text(report))
    bad = any(piece["failure"] or not all(c["passed"] for c in piece["checks"]) for piece in pieces)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
