"""The linear probe against Newton's method in double precision; what is held out, and what is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics import linear_probe
from beit3_bench.tasks.metrics.linear_probe import fit, fit_probe, held_out_part


def clusters(n=300, dim=8, classes=4, spread=0.6, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dim))
    labels = np.arange(n) % classes
    x = centres[labels] + spread * generator.normal(size=(n, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)


def newton(x, labels, classes, strength):
    """The minimum in double precision, by damped Newton steps with PyTorch's own derivatives."""
    x, size = x.double(), (classes, x.shape[1] + 1)

    def value(flat):
        weights = flat.view(size)
        logits = x @ weights[:, :-1].T + weights[:, -1]
        entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return strength * entropy + 0.5 * weights[:, :-1].square().sum()

    flat = torch.zeros(size[0] * size[1], dtype=torch.float64)
    for _ in range(60):
        gradient = torch.autograd.functional.jacobian(value, flat)
        hessian = torch.autograd.functional.hessian(value, flat)
        step = torch.linalg.lstsq(hessian + 1e-9 * torch.eye(len(flat)), gradient[:, None]).solution[:, 0]
        scale = 1.0
        while value(flat - scale * step) > value(flat) and scale > 1e-6:
            scale /= 2
        flat = flat - scale * step
    assert gradient.abs().max() < 1e-6 * max(strength, 1)
    return flat, value


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_the_minimum_is_that_of_newton_in_double_precision(strength):
    x, labels = clusters()
    fitted = fit(x, labels, 4, strength, None, 1000)
    reference, value = newton(x, labels, 4, strength)
    assert float(value(fitted.double().flatten())) == pytest.approx(float(value(reference)), rel=1e-5)
    ours, theirs = (torch.softmax(x @ w[:, :-1].T + w[:, -1], 1) for w in (fitted, reference.float().view(4, 9)))
    assert (ours - theirs).abs().max() < 0.01


def test_blocks_do_not_change_the_minimum(monkeypatch):
    x, labels = clusters()
    whole = fit(x, labels, 4, 10.0, None, 500)
    monkeypatch.setattr(linear_probe, "_BLOCK", 37)
    assert torch.allclose(fit(x, labels, 4, 10.0, None, 500), whole, atol=1e-2)


def test_a_tenth_of_every_class_is_held_out_by_seed():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 2 + [3])
    held = held_out_part(labels, 0)
    assert [int(held[labels == c].sum()) for c in range(4)] == [5, 1, 1, 0]
    assert torch.equal(held, held_out_part(labels, 0))
    assert not torch.equal(held, held_out_part(labels, 1))


def test_the_strength_is_chosen_on_the_held_out_part_and_the_classifier_fitted_to_everything():
    x, labels = clusters(spread=1.2)
    said = []
    fitted = fit_probe(x, labels, 4, (1000.0, 0.001, 1.0), seed=3, progress=said.append)
    assert set(fitted.held_out) == {0.001, 1.0, 1000.0}
    best = max(fitted.held_out.values())
    assert fitted.strength == min(c for c, value in fitted.held_out.items() if value == best)
    assert len(said) == 3
    again = fit(x, labels, 4, fitted.strength, None, 1000)
    assert torch.allclose(torch.cat([fitted.weight, fitted.bias[:, None]], 1), again, atol=1e-5)
    assert (fitted.scores(5 * x).argmax(1) == labels).double().mean() > 0.5


def test_one_strength_needs_no_search():
    x, labels = clusters()
    fitted = fit_probe(x, labels, 4, (7.0,))
    assert (fitted.strength, fitted.held_out) == (7.0, {})


@pytest.mark.parametrize(("count", "strengths"), [(0, (1.0,)), (9, ()), (9, (1.0, 0.0))])
def test_nothing_to_fit_is_refused(count, strengths):
    x, labels = clusters()
    with pytest.raises(BenchError, match="give features and C > 0"):
        fit_probe(x[:count], labels[:count], 4, strengths)
