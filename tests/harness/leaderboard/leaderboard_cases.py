"""Hand-made results for the tests of the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metric(value: float, **changes: Any) -> dict[str, Any]:
    """A metric of a result: percent, headline, one decimal, no interval."""
    base = {"unit": "percent", "ci95": None, "headline": True, "higher_is_better": True, "decimals": 1}
    return {"value": value, **base, **changes}


def result(task: str = "vqav2", split: str = "test-dev", model: dict | None = None, **changes: Any) -> dict[str, Any]:
    """A whole result of the real data, from a base model that is no released one."""
    card = {
        "preset": "base",
        "checkpoint": "model.pth",
        "sha256": "ab" * 32,
        "weight": None,
        "image_size": 480,
        "params": 228_123_456,
        "allow_missing": [],
    }
    return {
        "schema": 1,
        "task": task,
        "split": split,
        "metrics": {"vqa_accuracy": metric(77.654, decimals=2, ci95=[77.4, 77.9])},
        "counts": {"questions": 107_394},
        "notes": [],
        "status": "scored",
        "subset": None,
        "world": "real",
        "setting": "fine-tuned",
        "model": {**card, **(model or {})},
        "provenance": {},
        "timing": {},
        "chance": None,
        **changes,
    }


def retrieval_metrics(tr: float = 79.1, ir: float = 61.4) -> dict[str, Any]:
    """The metrics of a retrieval task."""
    recalls = {"TR@1": tr, "TR@5": tr + 10, "TR@10": tr + 15, "IR@1": ir, "IR@5": ir + 20, "IR@10": ir + 25}
    mean = sum(recalls.values()) / 6
    found = {"mean_recall": metric(mean, ci95=[mean - 0.5, mean + 0.5])}
    return found | {
        name: metric(value, headline=False, ci95=[value - 0.6, value + 0.6]) for name, value in recalls.items()
    }


def write_run(root: Path, name: str, content: dict[str, Any]) -> Path:
    """A run folder with a result.json."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder
