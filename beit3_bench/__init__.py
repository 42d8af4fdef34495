"""Downstream evaluation of vision-language models: BEiT-3, and what it is compared with.

The packages `backbones`, `tasks`, `harness` and `results` lie beside this folder in the source tree and are linked into it.
"""

import os

# Intel MKL picks its matrix-product kernel, and with it the order of summation, from the number of rows and threads. Strict
# conditional reproducibility, which Intel promises for its own processors, makes a row's value independent of both, so that
# a prediction is the same bit for bit at any batch size and number of processes. It has to be set before torch computes
# anything. `backbones.products` finds out whether it holds, and what to do where it does not.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# PyTorch then asks the kernel for huge pages: weights and activations need fewer address translations.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
