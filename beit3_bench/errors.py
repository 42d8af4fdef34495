"""The one exception that a user meets, and the one way to ask for an optional dependency."""

from __future__ import annotations

import errno
import importlib
from types import ModuleType


class BenchError(Exception):
    """Bad input or a missing piece, told in one line: what is wrong (file, line or key) and how to mend it.

    The command line prints the message and exits with status 2; no traceback unless ``--debug`` is given.
    """


_NO_MEMORY = (
    "not enough memory; use a smaller --batch-size or fewer --workers, or raise the limit (ulimit -v, the job's)"
)
_NO_FILES = "too many open files; use fewer --workers or raise ulimit -n"
_NO_THREADS = "no more threads or processes may be started; raise ulimit -u, or set OMP_NUM_THREADS=1"
_MEMORY_WORDS = (
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "bad_alloc",
    "not enough memory",
    "unable to allocate",
)
_FILES_WORDS = ("too many open files", "items of ancdata")
_THREADS_WORDS = ("can't start new thread", "resource temporarily unavailable", "pthread_create")


def exhausted(error: BaseException) -> str | None:
    """What to say where a machine's limit caused an error: memory, open files or threads; None for any other cause.

    Imports and native libraries report such a limit by many kinds of error, and wrap them into each other.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, MemoryError):
            return _NO_MEMORY
        if isinstance(error, (OSError, ImportError, RuntimeError, SystemError)) and not isinstance(error, BenchError):
            number = getattr(error, "errno", None)
            if number == errno.ENOMEM or any(word in text for word in _MEMORY_WORDS):
                return _NO_MEMORY
            if number in (errno.EMFILE, errno.ENFILE) or any(word in text for word in _FILES_WORDS):
                return _NO_FILES
            if number == errno.EAGAIN or any(word in text for word in _THREADS_WORDS):
                return _NO_THREADS
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


# As in pyproject.toml's extras, which the tests compare: these packages are on the registry, beit3-bench itself is not.
_DENSE = (
    "pip install --no-build-isolation 'onedl-mmcv>=2.3.6,<2.4' 'onedl-mmengine>=0.10.12,<0.11' "
    "'onedl-mmsegmentation>=1.4.2,<1.5' 'onedl-mmdetection>=3.5.1,<3.6'"
)
INSTALL_LINES = {
    "pycocoevalcap": "pip install 'pycocoevalcap>=1.2,<2'",
    "pyarrow": "pip install 'pyarrow>=17'",
    "faster_coco_eval": "pip install 'faster-coco-eval>=1.6,<2'",
    "transformers": "pip install 'transformers>=4.50'",
    "pillow_heif": "pip install 'pillow-heif>=1,<2'",
    "tensorboard": "pip install 'tensorboard>=2.14'",
    "wandb": "pip install 'wandb>=0.18'",
    "mlflow": "pip install 'mlflow>=2.14'",
    "open_clip": "pip install 'open_clip_torch>=3.2,<4' 'transformers>=4.50'",
    # pkg_resources, of which setuptools 82 has none; shapely cuts polygons where detectron2's own launcher trains
    "detectron2": (
        "pip install 'setuptools<82' wheel ninja shapely && "
        "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    ),
    "mmcv": f"pip install 'setuptools<81' wheel 'ninja>=1.11' && {_DENSE}",
    "mmengine": _DENSE,
    "mmseg": _DENSE,
    "mmdet": _DENSE,
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
        if exhausted(error) is not None:  # there, but the machine cannot take it in
            raise
        package = module.split(".")[0]
        line = INSTALL_LINES.get(package, f"pip install {package}")
        raise BenchError(
            f"{purpose} needs {package}, which does not import here ({error}); install it with: {line}"
        ) from error
