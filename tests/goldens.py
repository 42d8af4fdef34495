"""Where the golden data is: tests/golden (committed), and the third-party annotations that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
COMMITTED = ROOT / "golden"


def metrics_golden(name: str) -> Path:
    """Folder ``metrics/NAME`` of the golden data, or skip: it holds real annotations and is not part of the repository."""
    candidates = [Path(os.environ["BEIT3_BENCH_GOLDEN"])] if "BEIT3_BENCH_GOLDEN" in os.environ else []
    candidates.append(ROOT.parent.parent / "shared" / "golden")
    for root in candidates:
        if (root / "metrics" / name).is_dir():
            return root / "metrics" / name
    pytest.skip(f"golden metrics/{name} not found; set BEIT3_BENCH_GOLDEN to the folder that holds metrics/")
