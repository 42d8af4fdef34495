"""CIDEr-D of captions (Vedantam et al. 2015), as `pycocoevalcap.cider.cider.Cider` computes it, over arrays.

n-grams of 1 to 4 words, tf-idf with document frequencies from the references of the scored images, clipped cosine
similarity, Gaussian length penalty (sigma 6), mean over n and references, times 10. Matches
`cider_scorer.CiderScorer`, in which the
"length" of a caption is its number of bigrams.
"""

from __future__ import annotations

import numpy as np

from beit3_bench.tasks.metrics.ngrams import NGrams

MAX_ORDER = 4
SIGMA = 6.0


def cider(grams: NGrams) -> np.ndarray:
    """CIDEr per image: float64 (n,), on the scale 0..10; the corpus score is the mean.

    With a single image every n-gram is in all documents, its weight is 0, and so is the score.
    """
    n, n_sentences = len(grams.first), len(grams.image)
    bigrams = np.maximum(grams.lengths - 1, 0).astype(np.float64)
    penalty = np.exp(-((bigrams[grams.first][grams.image] - bigrams) ** 2) / (2 * SIGMA**2))
    total = np.zeros(n_sentences)
    for order in grams.orders[:MAX_ORDER]:
        idf = np.log(max(n, 1)) - np.log(np.maximum(order.documents, 1.0))
        weight = order.count * idf[order.gram]
        norm = np.sqrt(np.bincount(order.sentence, weights=weight**2, minlength=n_sentences))
        rows = np.flatnonzero(order.candidate >= 0)
        product = np.minimum(weight[order.candidate[rows]], weight[rows]) * weight[rows]
        similarity = np.bincount(order.sentence[rows], weights=product, minlength=n_sentences)
        norms = norm[grams.first][grams.image] * norm
        total += np.divide(similarity, norms, out=np.zeros(n_sentences), where=norms != 0)
    total *= penalty
    total[grams.first] = 0.0  # the candidate against itself
    sums = np.bincount(grams.image, weights=total, minlength=n)
    return sums / MAX_ORDER / (np.bincount(grams.image, minlength=n) - 1) * 10.0
