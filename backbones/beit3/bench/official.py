"""The reference path in a process of its own, left as the official code leaves it.

Our process sets the C library's allocator, MKL's reproducibility and huge pages for itself. A reference that shared them
would be measured with our settings; here it has the defaults of glibc, MKL and PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from beit3_bench.backbones.beit3.bench.cases import Case, make_case
from beit3_bench.backbones.beit3.bench.timing import plain_products, seconds_of

OURS = ("MKL_CBWR", "THP_MEM_ALLOC_ENABLE")


class OfficialProcess:
    """Builds the same case from the same seed and runs its reference path on request, one at a time.

    ``with OfficialProcess(...) as official``: `output` is what the path computes in float32, `seconds` how long a call takes.
    """

    def __init__(self, case: Case, preset: str, dtype: str):
        self.arguments = (case.task, preset, case.samples, case.image_size, dtype, torch.get_num_threads())

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

    def _ask(self, what: str) -> Any:
        self.connection.send(what)
        return self.connection.recv()

    def output(self) -> Any:
        return self._ask("output")

    def seconds(self) -> float:
        return self._ask("seconds")

    def products(self) -> float:
        """See `timing.plain_products`."""
        return self._ask("products")


def _plain(output: Any) -> Any:
    """Tensors as arrays, which travel by value."""
    if isinstance(output, torch.Tensor):
        return output.float().numpy()
    return tuple(map(_plain, output)) if isinstance(output, tuple) else output


def _serve(
    connection: Connection, task: str, preset: str, samples: int, image_size: int, dtype: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    case = make_case(task, preset, device, samples, image_size)
    answers: dict[str, Callable[[], Any]] = {
        "output": lambda: _plain(case.theirs()),
        "seconds": lambda: seconds_of(case.theirs, device, dtype),
        "products": lambda: plain_products(*case.product_sizes, device, dtype),
    }
    with torch.inference_mode():
        while True:
            try:
                what = connection.recv()
            except EOFError:
                return
            connection.send(answers[what]())
