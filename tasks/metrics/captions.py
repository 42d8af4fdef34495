"""All caption scores at once: BLEU-1..4, METEOR, ROUGE-L, CIDEr, SPICE, each caption tokenised once.

Matches `pycocoevalcap.eval.COCOEvalCap.evaluate` on the same images in the same order. BLEU, ROUGE-L and CIDEr need no
Java; METEOR and SPICE do, and are left out with a note that says why where they cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.metrics.bleu import bleu_statistics, reduce_bleu
from beit3_bench.tasks.metrics.cider import cider
from beit3_bench.tasks.metrics.java_programs import Unavailable
from beit3_bench.tasks.metrics.meteor import meteor_statistics, reduce_meteor
from beit3_bench.tasks.metrics.ngrams import count_ngrams
from beit3_bench.tasks.metrics.ptb_tokenizer import LINE_SEPARATORS, tokenize
from beit3_bench.tasks.metrics.rouge import rouge_l
from beit3_bench.tasks.metrics.spice import spice

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "METEOR", "ROUGE-L", "CIDEr", "SPICE")

Captions = Sequence[Sequence[str]]
"""Tokens of one caption after the other."""
PROGRAMS: dict[str, Callable[[Captions, Sequence[Captions]], np.ndarray]] = {
    "METEOR": meteor_statistics,
    "SPICE": spice,
}
"""Metrics that Java programs compute."""


@dataclass
class CaptionScores:
    """Scores of one set of captions, as fractions (CIDEr: 0..10), on the scale on which pycocoevalcap returns them.

    metrics: corpus scores by name; a metric that could not run is absent and has a note.
    per_image: name -> {image id: score}.
    ids: image ids in the order of the references.
    statistics: name -> float64 (n,) or (n, k), additive over images, in the order of ``ids``; `reduce_captions` turns
        sums of them into metrics. Keys: ``images`` (ones), ``BLEU`` (n, 10), ``METEOR`` (n, 23), ``ROUGE-L``,
        ``CIDEr``, ``SPICE``.
    notes: one line each.
    """

    metrics: dict[str, float]
    per_image: dict[str, dict[str, float]]
    ids: list[str]
    statistics: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] | None = None,
    allow_partial: bool = False,
) -> CaptionScores:
    """Score one caption per image.

    Args:
        predictions: image id -> caption.
        references: image id -> captions; its order is the order of the official evaluation (the images of the annotation
            file, captions in file order), on which tokenisation depends in rare cases (see `ptb_tokenizer`).
        metrics: names out of `METRICS`; all by default.
        allow_partial: score the images that have a prediction; CIDEr's document frequencies then come from these alone,
            as in the official evaluation of a part. Without it, every image needs a prediction.

    Raises:
        BenchError: no predictions, predictions for unknown images, images without prediction or without reference,
            captions that are not text, an unknown metric.
    """
    wanted = _check_metrics(metrics)
    ids = _check_captions(predictions, references, allow_partial)
    notes = _remarks(ids, predictions)
    candidates = tokenize([predictions[image] for image in ids])
    tokens = iter(tokenize([caption for image in ids for caption in references[image]]))
    groups = [[next(tokens) for _ in references[image]] for image in ids]
    statistics = _statistics(candidates, groups, wanted, notes)

    overall = reduce_captions({name: values.sum(axis=0) for name, values in statistics.items()})
    each = reduce_captions(statistics)
    names = [name for name in METRICS if name in wanted and name in overall]
    return CaptionScores(
        metrics={name: float(overall[name]) for name in names},
        per_image={name: dict(zip(ids, each[name].tolist(), strict=True)) for name in names},
        ids=ids,
        statistics=statistics,
        notes=notes,
    )


def _statistics(
    candidates: Captions, references: Sequence[Captions], wanted: set[str], notes: list[str]
) -> dict[str, np.ndarray]:
    """`CaptionScores.statistics` of the metrics that are wanted and can run; ``notes`` learns why one could not.

    Args:
        candidates: tokens of one caption per image.  references: of its references, in the same order.
    """
    statistics: dict[str, np.ndarray] = {"images": np.ones(len(candidates))}
    if wanted & {*BLEU, "CIDEr"}:
        grams = count_ngrams(candidates, references)
        if wanted & {*BLEU}:
            statistics["BLEU"] = bleu_statistics(grams)
        if "CIDEr" in wanted:
            statistics["CIDEr"] = cider(grams)
            if len(candidates) == 1:
                notes.append("CIDEr is 0 by definition for a single image: document frequencies need at least two")
    if "ROUGE-L" in wanted:
        statistics["ROUGE-L"] = rouge_l(candidates, references)
    for name, program in PROGRAMS.items():
        if name in wanted:
            try:
                statistics[name] = program(candidates, references)
            except Unavailable as reason:
                notes.append(f"{name} skipped: {reason}")
    return statistics


def reduce_captions(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics from sums of `CaptionScores.statistics`, over all images, one image, or bootstrap resamples.

    Args:
        sums: name -> float64 (...) or (..., k), with ``images`` the number of images in the sum.
    """
    scores: dict[str, np.ndarray] = {}
    if "BLEU" in sums:
        bleu = reduce_bleu(sums["BLEU"])
        scores.update({name: bleu[..., index] for index, name in enumerate(BLEU)})
    if "METEOR" in sums:
        scores["METEOR"] = reduce_meteor(sums["METEOR"])
    for name in ("ROUGE-L", "CIDEr", "SPICE"):
        if name in sums:
            scores[name] = np.asarray(sums[name]) / np.asarray(sums["images"])
    return scores


def _check_metrics(metrics: Sequence[str] | None) -> set[str]:
    unknown = [name for name in metrics or () if name not in METRICS]
    if unknown:
        raise BenchError(f"unknown caption metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    return set(METRICS if metrics is None else metrics)


def _check_captions(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], allow_partial: bool
) -> list[str]:
    """The images to score, in the order of the references.

    Raises:
        BenchError: as `score_captions`.
    """
    if not predictions:
        raise BenchError(
            "no captions to score: the predictions are empty; was generation interrupted before the first batch?"
        )
    match_ids(list(predictions), list(references), "captions", "images", allow_partial)
    ids = [image for image in references if image in predictions]
    bare = [image for image in ids if isinstance(references[image], str) or not len(references[image])]
    if bare:
        raise BenchError(
            f"{len(bare)} images have no list of reference captions ({_first(bare)}); are the annotations complete?"
        )
    _check_text("prediction", ((image, predictions[image]) for image in ids))
    _check_text("reference", ((image, caption) for image in ids for caption in references[image]))
    return ids


def _check_text(what: str, captions: Iterable[tuple[str, object]]) -> None:
    for image, caption in captions:
        if not isinstance(caption, str):
            raise BenchError(
                f"image {image}: the {what} is {type(caption).__name__} ({str(caption)[:40]!r}), not text; "
                "write captions as JSON strings"
            )


def _remarks(ids: Sequence[str], predictions: Mapping[str, str]) -> list[str]:
    notes = []
    empty = [image for image in ids if not predictions[image].strip()]
    if empty:
        notes.append(f"{len(empty)} empty captions, which score 0 ({_first(empty)})")
    broken = [image for image in ids if LINE_SEPARATORS.search(predictions[image])]
    if broken:
        notes.append(f"{len(broken)} captions hold line breaks, which were read as spaces ({_first(broken)})")
    return notes


def _first(ids: Sequence[str]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
