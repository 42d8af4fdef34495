"""Multinomial logistic regression on frozen features of unit length: full batch, L-BFGS, no data augmentation.

The strength of the regularisation is chosen on a held-out tenth of the training set, never on the evaluated split; then
the classifier is fitted to the whole training set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.knn import unit_features

STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
HELD_OUT = 0.1
_BLOCK = 16_384
_ITERATIONS, _SEARCH_ITERATIONS = 1000, 200


@dataclass(frozen=True)
class LinearProbe:
    """weight: float32 (classes, D).  bias: float32 (classes,).  strength: the C it was fitted with.

    held_out: C -> top-1 (fraction) on the held-out part.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    held_out: dict[float, float]

    def scores(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, D) of any length."""
        return unit_features(features, "feature") @ self.weight.T + self.bias


def fit_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> LinearProbe:
    """Choose C on a held-out part, and fit to everything.

    Args:
        features: float (n, D) of any length but zero.  labels: int64 (n,), on the same device.
        strengths: C of the objective of `fit`; the smallest of those that do equally well is taken.
        seed: of the split.

    Raises:
        BenchError: no features, or no strength above 0.
    """
    if len(features) == 0 or not strengths or min(strengths) <= 0:
        raise BenchError(
            f"a linear probe on {len(features)} features with C of {list(strengths)}: give features and C > 0"
        )
    x = unit_features(features, "training feature")
    held = held_out_part(labels, seed)
    accuracies: dict[float, float] = {}
    start = None
    for strength in sorted(strengths) if len(strengths) > 1 and held.any() else ():
        start = fit(x[~held], labels[~held], num_classes, strength, start, _SEARCH_ITERATIONS)
        guesses = (x[held] @ start[:, :-1].T + start[:, -1]).argmax(dim=1)
        accuracies[float(strength)] = float((guesses == labels[held]).double().mean())
        progress(f"C = {strength:g}: top-1 {100 * accuracies[float(strength)]:.2f} on the held-out tenth")
    best = (
        max(accuracies, key=lambda c: (accuracies[c], -c))
        if accuracies
        else float(sorted(strengths)[len(strengths) // 2])
    )
    weights = fit(x, labels, num_classes, best, None, _ITERATIONS)
    return LinearProbe(weights[:, :-1].contiguous(), weights[:, -1].contiguous(), best, accuracies)


def held_out_part(labels: Tensor, seed: int) -> Tensor:
    """bool (n,): a tenth of every class, drawn by ``seed``, at least one of two or more, none of a class of one."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels.cpu() == label)[:, 0]
        count = max(round(HELD_OUT * len(rows)), 1) if len(rows) > 1 else 0
        held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return held.to(labels.device)


def fit(
    features: Tensor, labels: Tensor, num_classes: int, strength: float, start: Tensor | None, iterations: int
) -> Tensor:
    """Minimise ``strength * sum of cross-entropies + |W|^2 / 2`` (the bias is free): float32 (classes, D + 1), bias last.

    Computed in blocks of rows: never all logits at once.
    """
    n, dim = features.shape
    weights = features.new_zeros(num_classes, dim + 1) if start is None else start.clone()
    decay = 1.0 / (strength * n)  # the objective over strength * n: its size does not depend on the data set's
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=iterations,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
    )

    def closure() -> Tensor:
        matrix = weights[:, :-1]
        gradient = torch.zeros_like(weights)
        loss = torch.zeros((), dtype=torch.float64, device=features.device)
        for begin in range(0, n, _BLOCK):
            x, y = features[begin : begin + _BLOCK], labels[begin : begin + _BLOCK, None]
            logs = torch.log_softmax(x @ matrix.T + weights[:, -1], dim=1)
            loss -= logs.gather(1, y).double().sum()
            error = logs.exp_().scatter_add_(1, y, logs.new_full(y.shape, -1.0))
            gradient[:, :-1] += error.T @ x
            gradient[:, -1] += error.sum(dim=0)
        gradient /= n
        gradient[:, :-1] += decay * matrix
        weights.grad = gradient
        return loss / n + 0.5 * decay * matrix.double().square().sum()

    optimiser.step(closure)  # type: ignore[arg-type]
    return weights
