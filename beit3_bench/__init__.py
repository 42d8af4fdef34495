"""Downstream evaluation of vision-language models: BEiT-3, and what it is compared with.

    from beit3_bench import load, evaluate

    model = load("beit3_base_patch16_384_coco_retrieval.pth", "coco-retrieval")
    vectors = model.embed(texts=["a cat on a sofa"])                  # float32 (1, 768)
    result = evaluate(model, "coco-retrieval", "/data/coco", limit=100)
    result.metrics["TR@1"].value, result.metrics["TR@1"].ci95

The packages `backbones`, `tasks`, `harness` and `results` lie beside this folder in the source tree and are linked into it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit3_bench.harness.api import evaluate, load

    __version__: str

__all__ = ["__version__", "evaluate", "load"]

# Intel MKL picks its matrix-product kernel, and with it the order of summation, from the number of rows and threads. Strict
# conditional reproducibility, which Intel promises for its own processors, makes a row's value independent of both, so that
# a prediction is the same bit for bit at any batch size and number of processes. It has to be set before torch computes
# anything. `backbones.products` finds out whether it holds, and what to do where it does not.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# PyTorch then asks the kernel for huge pages: weights and activations need fewer address translations.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    """Names of the API are resolved on first use: importing this package costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("beit3-bench")
    if name in ("load", "evaluate"):
        from beit3_bench.harness import api

        return vars(api)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
