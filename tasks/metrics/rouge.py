"""ROUGE-L of captions (Lin 2004): F-measure of the longest common subsequence, as `pycocoevalcap.rouge.rouge.Rouge`.

Precision and recall are each the best over the references, recall weighs beta = 1.2 times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BETA = 1.2


def rouge_l(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """ROUGE-L per image: float64 (n,), fractions; the corpus score is the mean.

    Args:
        candidates: n tokenised captions.  references: for each, at least one tokenised reference.

    An empty caption counts as one empty word, as in the reference implementation: it scores 0 unless a reference is
    empty too.
    """
    return np.array([_score(c, r) for c, r in zip(candidates, references, strict=True)], dtype=np.float64)


def _score(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    candidate = candidate or [""]
    positions = _positions(candidate, {word for words in references for word in words or [""]})
    common = [
        (_common_subsequence(positions, len(candidate), words), len(words)) for words in (r or [""] for r in references)
    ]
    precision = max(length / len(candidate) for length, _ in common)
    recall = max(length / total for length, total in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _positions(candidate: Sequence[str], wanted: set[str]) -> dict[str, int]:
    """Word -> the places where it stands in the candidate, as bits of an integer; only of words that are asked for."""
    places: dict[str, list[int]] = {}
    for index, word in enumerate(candidate):
        if word in wanted:
            places.setdefault(word, []).append(index)
    masks = {}
    for word, indices in places.items():
        bits = bytearray(indices[-1] // 8 + 1)
        for index in indices:
            bits[index >> 3] |= 1 << (index & 7)
        masks[word] = int.from_bytes(bits, "little")
    return masks


def _common_subsequence(positions: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table per integer operation (Hyyro 2004)."""
    ones = (1 << length) - 1
    row = ones
    for word in words:
        hits = positions.get(word)
        if hits:
            kept = row & hits
            row = (row + kept) | (row - kept)
    return length - (row & ones).bit_count()
