"""The reference path in a process of its own, left as the official code leaves it.

Our process sets the C library's allocator, MKL's reproducibility and huge pages for itself. A reference that shared them
would be measured with our settings; here it has the defaults of glibc, MKL and PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

import torch

from beit3_bench.backbones.timing import plain_products, seconds_of

OURS = ("MKL_CBWR", "THP_MEM_ALLOC_ENABLE")


class Case(Protocol):
    """What is measured, see `benchmark.Benchmark`."""

    @property
    def theirs(self) -> Callable[[], Any]:
        """The reference path; gives what is compared."""


class OfficialProcess:
    """Builds a case again from the same seed and runs its reference path on request, one at a time.

    ``with OfficialProcess(...) as official``: `output` is what the path computes in float32, `seconds` how long a call takes.
    """

    def __init__(self, make: Callable[[], Case], dtype: str):
        """make: of the case, on the CPU; sent to the process."""
        self.arguments = (make, dtype, torch.get_num_threads())

    def __enter__(self) -> OfficialProcess:
        context = torch.multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, *self.arguments), daemon=True)
        ours = {name: os.environ.get(name) for name in OURS}
        os.environ.update({"MKL_CBWR": "AUTO", "THP_MEM_ALLOC_ENABLE": "0"})
        try:
            self.process.start()
        finally:
            for name, value in ours.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        other.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self.process.join()

    def _ask(self, what: str, *arguments: Any) -> Any:
        self.connection.send((what, arguments))
        return self.connection.recv()

    def output(self) -> Any:
        return self._ask("output")

    def seconds(self) -> float:
        return self._ask("seconds")

    def products(self, sizes: Sequence[int]) -> float:
        """See `timing.plain_products`."""
        return self._ask("products", *sizes)


def _plain(output: Any) -> Any:
    """Tensors as arrays, which travel by value."""
    if isinstance(output, torch.Tensor):
        return output.float().numpy()
    return tuple(map(_plain, output)) if isinstance(output, tuple) else output


def _serve(connection: Connection, make: Callable[[], Case], dtype: str, threads: int) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    case = make()
    answers: dict[str, Callable[..., Any]] = {
        "output": lambda: _plain(case.theirs()),
        "seconds": lambda: seconds_of(case.theirs, device, dtype),
        "products": lambda rows, dim, ffn_dim: plain_products(rows, dim, ffn_dim, device, dtype),
    }
    with torch.inference_mode():
        while True:
            try:
                what, arguments = connection.recv()
            except EOFError:
                return
            connection.send(answers[what](*arguments))
