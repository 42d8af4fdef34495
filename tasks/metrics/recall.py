"""Recall at K of image-text retrieval, by counting ranks in blocks.

Matches `RetrievalHandler` of the official BEiT-3 code (beit3/engine_for_finetuning.py): TR@K is the share of images
that have one of their texts among the K best texts, IR@K the share of texts whose image is among the K best images, and
the mean recall averages TR and IR at 1, 5 and 10.

Tie rule: a gallery item comes before the wanted one if its score is strictly greater, or if the score is equal and the
item comes earlier in the gallery. The order of the images' gallery is that of sorted image ids, as in the official
code (so the order in which images were stored is irrelevant); the order of the texts' gallery is that of the input.
Embeddings that are equal bit by bit get equal scores, whichever block they fall into; a model that collapsed to a
single point scores at chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable

CUTS = (1, 5, 10)
UNIT_TOLERANCE = 2.0**-8
"""How far from 1 the length of a unit vector may be that was stored in bfloat16."""
RECALL_NAMES = (*(f"TR@{k}" for k in CUTS), *(f"IR@{k}" for k in CUTS), "mean_recall")


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks from 1 (best).

    text_ranks: int64 (n_images,), rank of each image's best own text among all texts.
    image_ranks: int64 (n_texts,), rank of each text's image among all images.
    text_image_index: int64 (n_texts,), row of each text's image.
    first_texts: int64 (n_images, k), rows of the texts that each image finds first, the best first; k is 0 where none were asked for.
    first_images: int64 (n_texts, k), rows of the images that each text finds first, likewise.
    """

    text_ranks: np.ndarray
    image_ranks: np.ndarray
    text_image_index: np.ndarray
    first_texts: np.ndarray
    first_images: np.ndarray


def retrieval_ranks(
    image_embeddings: np.ndarray,
    image_ids: np.ndarray,
    text_embeddings: np.ndarray,
    text_image_ids: np.ndarray,
    block: int = 512,
    first: int = 0,
) -> RetrievalRanks:
    """Rank of the right answer for every image and every text; scores are float32 dot products.

    Args:
        image_embeddings: float (n, D), one row per image, n >= 1.
        image_ids: (n,) integers or strings, all distinct.
        text_embeddings: float (m, D).
        text_image_ids: (m,) the image of each text; every image needs a text and every text an image.
        block: rows scored at once; at most ``block * max(n, m)`` scores are in memory.
        first: how many of the gallery each query is to name, too (all of it, where it has fewer).

    Raises:
        BenchError: shapes that do not fit, values that are not finite, repeated image ids, an id without partner.
    """
    images, texts = _embeddings(image_embeddings, "image_embeddings"), _embeddings(text_embeddings, "text_embeddings")
    image_ids, text_image_ids = np.asarray(image_ids), np.asarray(text_image_ids)
    if images.shape[1] != texts.shape[1]:
        raise BenchError(
            f"image_embeddings have {images.shape[1]} dimensions and text_embeddings {texts.shape[1]}; "
            "take both from the same model"
        )
    owner = _owners(image_ids, text_image_ids, len(images), len(texts))
    distinct_images, image_copy = _distinct_rows(images)
    distinct_texts, text_copy = _distinct_rows(texts)
    return _ranks(
        lambda some: _scores(images[some], distinct_texts, text_copy),
        lambda some: _scores(texts[some], distinct_images, image_copy),
        gallery_order(image_ids),
        owner,
        block,
        first,
    )


def ranks_of_scores(
    scores: np.ndarray, image_ids: np.ndarray, text_image_ids: np.ndarray, block: int = 512, first: int = 0
) -> RetrievalRanks:
    """The same of scores of all pairs, float (images, texts), greater = better.

    Raises:
        BenchError: shapes that do not fit, repeated image ids, an id without partner.
    """
    image_ids, text_image_ids = np.asarray(image_ids), np.asarray(text_image_ids)
    owner = _owners(image_ids, text_image_ids, *scores.shape)
    order = gallery_order(image_ids)
    return _ranks(lambda some: scores[some], lambda some: scores[:, some].T, order, owner, block, first)


def _ranks(
    of_images: Callable[[slice], np.ndarray],
    of_texts: Callable[[slice], np.ndarray],
    images_order: np.ndarray,
    owner: np.ndarray,
    block: int,
    first: int,
) -> RetrievalRanks:
    """of_images, of_texts: scores of some of them with the whole gallery of the others."""
    texts, images = len(owner), len(images_order)
    image_ranks = np.empty(texts, dtype=np.int64)
    first_images = np.empty((texts, min(first, images)), dtype=np.int64)
    for start in range(0, texts, block):
        rows = slice(start, start + block)
        scores = of_texts(rows)
        image_ranks[rows] = _rank(scores, owner[rows], images_order)
        if first:
            first_images[rows] = _first(scores, first, images_order)

    by_owner = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[by_owner], np.arange(images + 1))
    text_order = np.arange(texts)
    text_ranks = np.empty(images, dtype=np.int64)
    first_texts = np.empty((images, min(first, texts)), dtype=np.int64)
    for start in range(0, images, block):
        stop = min(start + block, images)
        scores = of_images(slice(start, stop))
        own = by_owner[starts[start] : starts[stop]]
        own_scores = scores[owner[own] - start, own]
        # own texts sorted by row, then falling score, then position: the first of each row is the row's best own text
        best = own[np.lexsort((own, -own_scores, owner[own]))][starts[start:stop] - starts[start]]
        text_ranks[start:stop] = _rank(scores, best, text_order)
        if first:
            first_texts[start:stop] = _first(scores, first, text_order)
    return RetrievalRanks(text_ranks, image_ranks, owner, first_texts, first_images)


def gallery_order(image_ids: np.ndarray) -> np.ndarray:
    """Place of each image in the images' gallery, which is that of sorted ids: int64 (n,)."""
    order = np.empty(len(image_ids), dtype=np.int64)
    order[np.argsort(image_ids, kind="stable")] = np.arange(len(image_ids))
    return order


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int, order: np.ndarray, block: int = 512) -> np.ndarray:
    """The k (or all) of a gallery with the greatest float32 dot products with each query, best first: int64 (n, k).

    Args:
        queries: float (n, D).  gallery: float (m, D).
        order: (m,) decides between equal scores, the smaller first.
        block: queries scored at once.

    Raises:
        BenchError: shapes that do not fit, or values that are not finite.
    """
    rows, columns = _embeddings(queries, "queries"), _embeddings(gallery, "gallery")
    distinct, copy = _distinct_rows(columns)
    best = np.empty((len(rows), min(k, len(columns))), dtype=np.int64)
    for start in range(0, len(rows), block):
        best[start : start + block] = _first(_scores(rows[start : start + block], distinct, copy), k, order)
    return best


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share (fraction) of ranks, counted from 1, that are at most k."""
    ranks = np.asarray(ranks)
    if ranks.size == 0:
        raise BenchError("recall of no queries; the split is empty")
    return float(np.count_nonzero(ranks <= k) / ranks.size)


def recalls(ranks: RetrievalRanks) -> dict[str, float]:
    """TR@1, TR@5, TR@10, IR@1, IR@5, IR@10 and their mean, in percent."""
    values = {f"TR@{k}": 100 * recall_at(ranks.text_ranks, k) for k in CUTS}
    values |= {f"IR@{k}": 100 * recall_at(ranks.image_ranks, k) for k in CUTS}
    return values | {"mean_recall": sum(values.values()) / len(values)}


def recall_table(ranks: RetrievalRanks, image_ids: np.ndarray) -> ClusterTable:
    """Hits and counts per image (the cluster of resampling; the gallery stays as it is).

    Columns: ``images``, ``tr1``, ``tr5``, ``tr10``, ``texts``, ``ir1``, ``ir5``, ``ir10``.
    """
    n = len(ranks.text_ranks)
    columns: dict[str, np.ndarray] = {"images": np.ones(n)}
    columns |= {f"tr{k}": (ranks.text_ranks <= k).astype(np.float64) for k in CUTS}
    columns["texts"] = np.bincount(ranks.text_image_index, minlength=n).astype(np.float64)
    for k in CUTS:
        columns[f"ir{k}"] = np.bincount(ranks.text_image_index, weights=ranks.image_ranks <= k, minlength=n)
    return ClusterTable([str(i) for i in np.asarray(image_ids).tolist()], columns)


def estimate_recalls(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Recalls in percent from the column sums of `recall_table`; arrays may carry leading axes of resamples."""
    values = {f"TR@{k}": 100 * np.asarray(sums[f"tr{k}"] / sums["images"]) for k in CUTS}
    values |= {f"IR@{k}": 100 * np.asarray(sums[f"ir{k}"] / sums["texts"]) for k in CUTS}
    return values | {"mean_recall": np.asarray(sum(values.values()) / len(values))}


def unit_rows(values: np.ndarray, name: str) -> tuple[np.ndarray, str | None]:
    """Embeddings of unit length, so that dot products are cosines.

    Args:
        values: float (n, D).  name: of the array, for messages.

    Returns:
        The same values where all rows are of unit length within the rounding of bfloat16; else float32 (n, D), every
        row divided by its length (a row of zeros stays), and a line that says so.

    Raises:
        BenchError: another shape or type, values that are not finite.
    """
    values = _checked(values, name)
    peaks = np.abs(values).max(axis=1, keepdims=True).astype(np.float64)
    scaled = values / np.where(peaks > 0, peaks, 1.0)  # squares of large values could overflow
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        true_lengths = lengths * peaks
    off = np.abs(true_lengths - 1.0) > UNIT_TOLERANCE
    if not off.any():
        return values, None
    line = (
        f"{name}: {off.sum():,} of {len(values):,} rows are not of unit length "
        f"({true_lengths.min():.3g} to {true_lengths.max():.3g}); normalised, as the protocol is cosine similarity"
    )
    if (zeros := int((peaks == 0).sum())) > 0:
        line += f"; {zeros:,} rows of zeros have no direction, their cosines are 0"
    return (scaled / np.where(lengths > 0, lengths, 1.0)).astype(np.float32), line


def _embeddings(values: np.ndarray, name: str) -> np.ndarray:
    return np.ascontiguousarray(_checked(values, name), dtype=np.float32)


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind != "f":
        raise BenchError(f"{name}: expected float rows (n, D), found {values.dtype} {values.shape}")
    if values.dtype.itemsize > 8:
        raise BenchError(f"{name}: {values.dtype} is wider than float64; write float32 arrays")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise BenchError(f"{name}: {bad.size} rows are not finite, the first is row {bad[0]}; encode them again")
    return values


def _owners(image_ids: np.ndarray, text_image_ids: np.ndarray, n: int, m: int) -> np.ndarray:
    for name, ids, count in (("image_ids", image_ids, n), ("text_image_ids", text_image_ids, m)):
        if ids.shape != (count,) or ids.dtype.kind not in "iuSU":
            raise BenchError(f"{name}: expected {count} integers or strings, found {ids.dtype} {ids.shape}")
    position: dict = {}
    for row, key in enumerate(image_ids.tolist()):
        if position.setdefault(key, row) != row:
            raise BenchError(f"image_ids: image {key!r} comes twice; keep one embedding per image")
    owner = np.fromiter((position.get(key, -1) for key in text_image_ids.tolist()), dtype=np.int64, count=m)
    orphans = np.flatnonzero(owner < 0)
    if orphans.size:
        key = text_image_ids[orphans[0]].item()
        raise BenchError(f"text_image_ids: {orphans.size} texts name an image without embedding, the first is {key!r}")
    silent = np.flatnonzero(np.bincount(owner, minlength=n) == 0)
    if silent.size:
        key = image_ids[silent[0]].item()
        raise BenchError(
            f"image_ids: {silent.size} images have no text, the first is {key!r}; remove them or add texts"
        )
    return owner


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Distinct rows and each row's place among them; None where all are distinct already.

    Matrix kernels may round one dot product differently in different columns; only equal columns that are computed
    once are sure to tie.
    """
    seen: dict[bytes, int] = {}
    copy = np.fromiter((seen.setdefault(row.tobytes(), len(seen)) for row in rows), dtype=np.int64, count=len(rows))
    if len(seen) == len(rows):
        return rows, None
    _, first = np.unique(copy, return_index=True)
    return rows[first], copy


def _scores(queries: np.ndarray, gallery: np.ndarray, copy: np.ndarray | None) -> np.ndarray:
    scores = queries @ gallery.T
    return scores if copy is None else scores[:, copy]


def _rank(scores: np.ndarray, target: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rank from 1 of column ``target[i]`` in row i; ``order`` (columns,) decides between equal scores."""
    wanted = np.take_along_axis(scores, target[:, None], axis=1)
    ranks = 1 + np.count_nonzero(scores > wanted, axis=1)
    for row in np.flatnonzero(np.count_nonzero(scores == wanted, axis=1) > 1):
        ties = np.flatnonzero(scores[row] == wanted[row])
        ranks[row] += np.count_nonzero(order[ties] < order[target[row]])
    return ranks


def _first(scores: np.ndarray, k: int, order: np.ndarray) -> np.ndarray:
    """The k (or all) best columns of each row, best first: int64 (n, k); ``order`` (columns,) decides between equal scores."""
    by_order = np.argsort(order, kind="stable")
    scores, k = np.take(scores, by_order, axis=1), min(k, scores.shape[1])
    last = scores.shape[1] - k
    best = np.argpartition(scores, last, axis=1)[:, last:]
    least = np.take_along_axis(scores, best, axis=1).min(axis=1, keepdims=True)
    for row in np.flatnonzero(np.count_nonzero(scores >= least, axis=1) > k):  # equal scores at the end: which of them?
        best[row] = np.argsort(-scores[row], kind="stable")[:k]
    best.sort(axis=1)
    by_score = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return by_order[np.take_along_axis(best, by_score, axis=1)]
