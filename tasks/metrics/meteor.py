"""METEOR 1.5 of captions (Denkowski and Lavie 2014), by the Java program that ships with pycocoevalcap.

The program aligns a candidate with its references (exact, stem, synonym and paraphrase matches) and returns the counts
of the best alignment; the score is a formula of those counts, computed here (`reduce_meteor`). Corpus METEOR is the
formula of the summed counts, not the mean over images, and so resamples for confidence intervals need the counts.
Reference: `pycocoevalcap.meteor.meteor.Meteor` (``-l en -norm``, which writes one line, waits for the answer, and so
on).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from beit3_bench.tasks.metrics.java_programs import Unavailable, converse, find_java, program_folder

JAR = "meteor-1.5.jar"
N_STATISTICS = 23
# English parameters of METEOR 1.5 (task "rank", the default).
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

_LINE_ENDS = re.compile(r"[\r\n]+")


def meteor_statistics(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], timeout: float = 120.0
) -> np.ndarray:
    """Alignment counts per image: float64 (n, 23), additive (see `reduce_meteor` for the columns' order).

    Args:
        candidates: n tokenised captions.  references: for each, at least one tokenised reference.
        timeout: longest wait for one answer, in seconds (the first includes the start of Java).

    Raises:
        Unavailable: no Java, no METEOR, or it failed; says which.
    """
    folder = program_folder("meteor", JAR)
    # A fixed encoding: by default Java takes the locale's, and reads accents as question marks where that is "C".
    # A heap that shrinks to what is in use: as it is set otherwise, garbage fills 1.5 GB before it is collected.
    memory = ["-Xmx2G", "-XX:+UseSerialGC", "-XX:MinHeapFreeRatio=10", "-XX:MaxHeapFreeRatio=20"]
    command = [find_java(), "-Dfile.encoding=UTF-8", *memory, "-jar", JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    requests = [
        " ||| ".join(["SCORE", *map(_field, group), _field(candidate)])
        for candidate, group in zip(candidates, references, strict=True)
    ]
    statistics = np.zeros((len(requests), N_STATISTICS))
    with closing(converse(command, folder, requests, timeout)) as answers:  # type: ignore[type-var]
        for row, answer in enumerate(answers):
            try:
                statistics[row] = _numbers(answer)
            except ValueError as error:
                raise Unavailable(f"METEOR answered {answer[:80]!r} instead of {N_STATISTICS} numbers") from error
    # A candidate aligned as a whole in one chunk is not fragmented at all: it has no penalty and adds no chunk to the
    # corpus.
    whole = (_matches(statistics).sum(axis=(-3, -2)) == statistics[:, 0:2]).all(axis=-1) & (statistics[:, 20] == 1)
    statistics[whole, 20] = 0.0
    return statistics


def _numbers(answer: str) -> list[float]:
    numbers = [float(number) for number in answer.split()]
    if len(numbers) != N_STATISTICS:
        raise ValueError(f"{len(numbers)} numbers")
    return numbers


def _field(tokens: Sequence[str]) -> str:
    """A caption in METEOR's line protocol: no separator and no line end inside of it."""
    return _LINE_ENDS.sub(" ", " ".join(tokens)).replace("|||", "").replace("  ", " ")


def _matches(statistics: np.ndarray) -> np.ndarray:
    """(..., 4, 2, 2) matched words: kind of match; content or function words; candidate or reference."""
    return statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2)


def reduce_meteor(sums: np.ndarray) -> np.ndarray:
    """METEOR from (sums of) `meteor_statistics`.

    Args:
        sums: float64 (..., 23): words of candidate and reference, function words of both, then for each of four kinds
        of match
            (content words of candidate and reference, function words of both), chunks, matched words of both.

    Returns:
        float64 (...), fractions; 0 where nothing matches.
    """
    sums = np.asarray(sums, dtype=np.float64)
    words, function_words = sums[..., 0:2], sums[..., 2:4]
    chunks, matched = sums[..., 20], sums[..., 21:23]

    length = DELTA * (words - function_words) + (1 - DELTA) * function_words
    weighted = np.einsum("...skx,s,k->...x", _matches(sums), _STAGE_WEIGHTS, np.array([DELTA, 1 - DELTA]))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / length, -1, 0)
        mean = 1.0 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = chunks / matched.mean(axis=-1)
        score = mean * (1 - GAMMA * fragmentation**BETA)
    return np.where(np.isnan(score), 0.0, np.maximum(score, 0.0))
