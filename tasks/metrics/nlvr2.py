"""NLVR2 accuracy and consistency.

Matches nlvr2/eval/metrics.py of lil-lab/nlvr: accuracy over all examples; consistency is the share of unique sentences
(the identifier with the pair number blanked) of which every example is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable


def parse_label(value: Any, source: str) -> bool:
    """A label as found in the wild: a boolean, or the string "True"/"False" in any letter case.

    Raises:
        BenchError: anything else; ``source`` names file and line.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise BenchError(f"{source}: label {value!r:.60} is neither True nor False; write one of the two")


def sentence_key(identifier: str) -> str:
    """The sentence of an identifier: ``dev-924-1-0`` -> ``dev-924--0`` (split-set-pair-sentence, the pair blanked).

    Raises:
        BenchError: the identifier does not have four parts.
    """
    parts = identifier.split("-")
    if len(parts) != 4 or not all(parts):
        raise BenchError(
            f"identifier {identifier!r:.80} is not of the form split-set-pair-sentence, such as dev-924-1-0"
        )
    return "-".join([parts[0], parts[1], "", parts[3]])


def nlvr2_metrics(correct: Sequence[bool] | np.ndarray, identifiers: Sequence[str]) -> dict[str, float]:
    """``accuracy`` and ``consistency`` as fractions."""
    return {name: float(value) for name, value in estimate_nlvr2(nlvr2_table(correct, identifiers).sums()).items()}


def nlvr2_table(correct: Sequence[bool] | np.ndarray, identifiers: Sequence[str]) -> ClusterTable:
    """Counts per sentence (the cluster). Columns: ``examples``, ``correct``, ``sentences``, ``consistent``.

    Args:
        correct: bool (n,), whether the prediction is right.
        identifiers: n distinct example identifiers.

    Raises:
        BenchError: no examples, lengths that differ, an identifier twice or of another form.
    """
    correct = np.asarray(correct, dtype=bool)
    if correct.shape != (len(identifiers),) or not len(identifiers):
        raise BenchError(f"{correct.size} outcomes for {len(identifiers)} identifiers; give one for each")
    seen: set[str] = set()
    for identifier in identifiers:
        if identifier in seen:
            raise BenchError(f"identifier {identifier!r} comes twice; keep one prediction each")
        seen.add(identifier)
    keys = [sentence_key(identifier) for identifier in identifiers]
    table = ClusterTable.collect(keys, {"examples": np.ones(len(correct)), "correct": correct})
    table.columns["sentences"] = np.ones(len(table.ids))
    table.columns["consistent"] = (table.columns["correct"] == table.columns["examples"]).astype(np.float64)
    return table


def estimate_nlvr2(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``accuracy`` and ``consistency`` (fractions) from the column sums of `nlvr2_table`; leading axes are kept."""
    return {
        "accuracy": np.asarray(sums["correct"] / sums["examples"]),
        "consistency": np.asarray(sums["consistent"] / sums["sentences"]),
    }
