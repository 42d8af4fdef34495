"""Weighted k-nearest-neighbour classification of frozen features, by the protocol of DINO.

Caron et al. 2021, section 4.1 and `eval_knn.py` (after Wu et al. 2018): features of unit length; the k training features of
highest cosine vote for their class with weight exp(cosine / T), k = 20, T = 0.07.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.topk import CUTS, class_ranks

NEIGHBOURS = 20
TEMPERATURE = 0.07
_QUERIES, _GALLERY = 1024, 32_768  # at most 128 MiB of cosines at a time


def knn_ranks(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: np.ndarray,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Rank from 1 of the right class among the votes: int64 (m,). A class without a vote is behind all top-5 places.

    Args:
        features, queries: float (n, D) and (m, D), of any length but zero, on one device.
        labels: int64 (n,), on the same device.
        query_labels: int (m,).
        k: neighbours; all of them where there are fewer.

    Raises:
        BenchError: no training features, k below 1, a temperature that is not above 0, a feature without direction.
    """
    if k < 1 or not temperature > 0 or len(features) == 0:
        raise BenchError(
            f"k-NN of {len(features)} features with k = {k}, T = {temperature}: give features, k of 1 or more and T above 0"
        )
    gallery, asked = unit_features(features, "training feature"), unit_features(queries, "feature")
    ranks = []
    for start in range(0, len(asked), _QUERIES):
        cosines, nearest = nearest_neighbours(gallery, asked[start : start + _QUERIES], k)
        votes = cosines.new_zeros(len(cosines), num_classes)
        votes.scatter_add_(1, labels[nearest], (cosines / temperature).exp())
        right = query_labels[start : start + _QUERIES]
        table = votes.cpu().numpy()
        voted = np.take_along_axis(table, np.asarray(right)[:, None], axis=1)[:, 0] > 0
        ranks.append(np.where(voted, class_ranks(table, right), num_classes + max(CUTS)))
    return np.concatenate(ranks) if ranks else np.empty(0, dtype=np.int64)


def nearest_neighbours(gallery: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest cosines and their rows in the gallery, (m, k) each, best first; never m x n numbers at once."""
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(gallery), _GALLERY):
        cosines = queries @ gallery[start : start + _GALLERY].T
        values, rows = cosines.topk(min(k, cosines.shape[1]), dim=1)
        best, where = torch.cat([best, values], dim=1), torch.cat([where, rows + start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


def unit_features(features: Tensor, what: str) -> Tensor:
    """Rows of unit length, float32.

    Raises:
        BenchError: a row that is zero or not finite.
    """
    length = features.float().norm(dim=-1)
    bad = torch.nonzero(~(torch.isfinite(length) & (length > 0)))
    if len(bad):
        raise BenchError(f"{what} {int(bad[0])} has no direction (zero or not finite); encode it again")
    return F.normalize(features.float(), dim=-1)
