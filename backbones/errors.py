"""The one exception that a user meets, and the one way to ask for an optional dependency."""

from __future__ import annotations

import importlib
from types import ModuleType


class BenchError(Exception):
    """Bad input or a missing piece, told in one line: what is wrong (file, line or key) and how to mend it.

    The command line prints the message and exits with status 2; no traceback unless ``--debug`` is given.
    """


INSTALL_LINES = {
    "pycocoevalcap": "pip install 'beit3-bench[captions]'",
    "faster_coco_eval": "pip install 'beit3-bench[fast]'",
    "transformers": "pip install 'beit3-bench[dev]'",
    "detectron2": "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'",
    "mmcv": "pip install 'setuptools<81' wheel ninja && pip install --no-build-isolation 'beit3-bench[dense]'",
    "mmengine": "pip install --no-build-isolation 'beit3-bench[dense]'",
    "mmseg": "pip install --no-build-isolation 'beit3-bench[dense]'",
    "mmdet": "pip install --no-build-isolation 'beit3-bench[dense]'",
}


def requires(module: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise a `BenchError` that says for what it is needed and the exact install line.

    Args:
        module: import name, dotted or not (``"mmseg.apis"``).
        purpose: what cannot be done without it, e.g. ``"task ade20k-seg"``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        line = INSTALL_LINES.get(package, f"pip install {package}")
        raise BenchError(
            f"{purpose} needs {package}, which does not import here ({error}); install it with: {line}"
        ) from error
