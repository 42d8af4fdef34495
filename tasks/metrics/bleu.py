"""BLEU-1..4 of a corpus of captions (Papineni et al. 2002), as `pycocoevalcap.bleu.bleu.Bleu(4)` computes it.

Matches `bleu_scorer.BleuScorer.compute_score(option="closest")`: no smoothing but 1e-15 in a numerator and 1e-9 in a
denominator, and the brevity penalty against the reference whose length is closest to the candidate's, the shorter one
on a tie.
"""

from __future__ import annotations

import numpy as np

from beit3_bench.tasks.metrics.ngrams import NGrams

MAX_ORDER = 4
_TINY, _SMALL = 1e-15, 1e-9


def bleu_statistics(grams: NGrams) -> np.ndarray:
    """What BLEU is made of, additive over images.

    Returns:
        float64 (n, 10): matches of 1- to 4-grams, number of 1- to 4-grams, candidate length, closest reference length.
    """
    n, lengths = len(grams.first), grams.lengths[grams.first]
    columns = []
    for order in grams.orders[:MAX_ORDER]:
        most = np.zeros(len(order.count))  # at a candidate's row: the most often that one reference has its n-gram
        rows = np.flatnonzero((order.candidate >= 0) & (order.candidate != np.arange(len(order.count))))
        np.maximum.at(most, order.candidate[rows], order.count[rows])
        columns.append(np.bincount(grams.image[order.sentence], weights=np.minimum(most, order.count), minlength=n))
    for length in range(MAX_ORDER):
        columns.append(np.maximum(lengths - length, 0))
    columns += [lengths, _closest_lengths(grams)]
    return np.stack(columns, axis=1).astype(np.float64)


def _closest_lengths(grams: NGrams) -> np.ndarray:
    """int64 (n,): of each image's reference lengths the one closest to the candidate's, the shorter one on a tie."""
    base = int(grams.lengths.max(initial=0)) + 1
    distance = np.abs(grams.lengths - grams.lengths[grams.first][grams.image])
    rank = np.where(grams.is_reference, distance * base + grams.lengths, base * base)
    return np.minimum.reduceat(rank, grams.first) % base if len(grams.first) else grams.first


def reduce_bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4 from (sums of) `bleu_statistics`.

    Args:
        sums: float64 (..., 10); leading axes are images or bootstrap resamples.

    Returns:
        float64 (..., 4), fractions.
    """
    sums = np.asarray(sums, dtype=np.float64)
    precision = (sums[..., :4] + _TINY) / (sums[..., 4:8] + _SMALL)
    scores = np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, MAX_ORDER + 1))
    ratio = (sums[..., 8] + _TINY) / (sums[..., 9] + _SMALL)
    penalty = np.where(ratio < 1, np.exp(np.minimum(1 - 1 / ratio, 0)), 1.0)
    return scores * penalty[..., None]
