"""`--device mps`: what is decided for the GPU of a Mac, on machines that have none."""

from __future__ import annotations

import pytest
import torch

from beit3_bench.backbones.precision import arithmetic
from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import explain
from beit3_bench.harness.commands import doctor
from beit3_bench.harness.engine.devices import automatic_batch_size, resolve_device, to_device

MPS = torch.device("mps")


class Tower:
    @staticmethod
    def item_bytes():
        return 2**28


def test_it_is_taken_where_torch_sees_it_and_refused_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BenchError, match=r"--device mps: torch .* sees no GPU of a Mac here; use --device cpu"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == MPS
    assert resolve_device("auto").type != "mps"  # the same numbers as before, where nobody asks for it


def test_batches_fit_into_the_memory_that_macos_recommends(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20 * 2**30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4 * 2**30)
    assert automatic_batch_size(MPS, Tower()) == 16  # a quarter of 16 GiB, at 256 MiB each


def test_no_double_precision_goes_there(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: moved.append((self.dtype, how)) or self)
    to_device({"a": torch.zeros(2, dtype=torch.float64), "b": [torch.zeros(2, dtype=torch.int64)]}, MPS)
    assert moved == [(torch.float32, {"non_blocking": False}), (torch.int64, {"non_blocking": False})]


def test_what_torch_lacks_there_is_one_line():
    error = NotImplementedError(
        "The operator 'aten::x' is not currently implemented for the MPS device. If you want ..."
    )
    line, status = explain(error)
    assert status == 2
    assert line.startswith(
        "error: The operator 'aten::x' is not currently implemented for the MPS device; set PYTORCH_"
    )


@pytest.mark.parametrize(("newer", "word"), [(True, "fp16 and bf16"), (False, r"bf16 from macOS 14 on")])
def test_the_doctor_says_what_it_can_do(newer, word, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: newer)
    assert word in doctor._device().detail
    if newer:
        arithmetic("bf16", MPS)
    else:
        with pytest.raises(BenchError, match="from macOS 14 on; use --dtype fp16"):
            arithmetic("bf16", MPS)
