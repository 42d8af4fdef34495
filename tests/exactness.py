"""What may be asserted on the processor at hand: the same bits where the products are exact, closeness elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beit3_bench.backbones.products import ExactProducts, exact_products
from beit3_bench.harness.record.store import RunStore

PLAIN = ExactProducts("plain", 1)


SWITCHES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def sums_as_golden() -> bool:
    """Whether sums run in the order of the machines where the tolerances of golden tensors were measured: Intel's."""
    return exact_products() == PLAIN and not any(name in os.environ for name in SWITCHES)


def exact_rows(*threads: int) -> bool:
    """Whether rows are the same byte for byte in this process, and in others of so many threads."""
    ways, own = {exact_products()}, torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            ways.add(exact_products())
    finally:
        torch.set_num_threads(own)
    return len(ways) == 1 and None not in ways


def assert_plain(actual: torch.Tensor, plain: torch.Tensor) -> None:
    """An evaluated product against the plain one: bit for bit where plain products are exact."""
    if exact_products() == PLAIN:
        assert torch.equal(actual, plain)
    else:
        torch.testing.assert_close(actual, plain, rtol=1e-5, atol=1e-5)


def assert_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Evaluated products of other rows, or other numbers of rows, for the same rows."""
    if exact_products() is not None:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def row_lines(folder: Path) -> list[bytes]:
    """The run's row files as they are, sorted by id; the lines between the batches left out."""
    lines = [line for path in folder.glob("rows/*.jsonl") for line in path.read_bytes().splitlines()]
    return sorted(line for line in lines if not line.startswith(b'{"commit"'))


def assert_same_rows(actual: Path, expected: Path, *threads: int) -> None:
    """Rows of two run folders: byte for byte where they are exact (see `exact_rows`), else numbers to rounding and the
    rest (ids, answers, labels, captions) the same.
    """
    if exact_rows(*threads):
        assert row_lines(actual) == row_lines(expected)
    else:
        a, b = RunStore.read(actual).rows(), RunStore.read(expected).rows()
        assert a.keys() == b.keys()
        for name, row in b.items():
            assert close(a[name], row), name


def close(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    """Values of a row: floating-point numbers to the rounding of a float32 network, all else equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k], tolerance) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance)
    return a == pytest.approx(b, rel=tolerance, abs=tolerance) if isinstance(a, float) else a == b
