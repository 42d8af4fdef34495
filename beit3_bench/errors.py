"""The one exception that a user meets, and the one way to ask for an optional dependency."""

from __future__ import annotations

import errno
import importlib
import re
from types import ModuleType


class BenchError(Exception):
    """Bad input or a missing piece, told in one line: what is wrong (file, line or key) and how to mend it.

    The command line prints the message and exits with status 2; no traceback unless ``--debug`` is given.
    """


class DeviceFailed(BenchError):
    """A card failed in the middle of the work: this process can ask nothing more of it, nor of a group that talks through it.

    Notes (`add_note`) say what is kept.
    """


_NO_CARD_MEMORY = "not enough memory on the card{wanted}; use a smaller --batch-size, --dtype bf16, or another --device"
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
_CARD_WORDS = ("cuda", "cublas", "cudnn", "hip", "mps")
_CARD_MEMORY_WORDS = ("out of memory", "alloc_failed")
_CARD_FAILURES = (
    "cuda error",
    "cublas_status",
    "cudnn_status",
    "cudnn error",
    "cusolver",
    "cufft",
    "hip error",
    "device-side assert",
)
_WANTED = re.compile(r"tried to allocate (\d[\d.,]* ?[a-z]+)", re.IGNORECASE)
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
            if any(word in text for word in _CARD_MEMORY_WORDS) and any(word in text for word in _CARD_WORDS):
                return _NO_CARD_MEMORY.format(wanted=f" ({line})" if (line := memory_wanted(error)) else "")
            number = getattr(error, "errno", None)
            if number == errno.ENOMEM or any(word in text for word in _MEMORY_WORDS):
                return _NO_MEMORY
            if number in (errno.EMFILE, errno.ENFILE) or any(word in text for word in _FILES_WORDS):
                return _NO_FILES
            if number == errno.EAGAIN or any(word in text for word in _THREADS_WORDS):
                return _NO_THREADS
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


def memory_wanted(error: BaseException) -> str:
    """How much memory an allocation wanted that failed: ``2.00 GiB wanted``; "" where the error does not say it."""
    said = _WANTED.search(str(error))
    return f"{said[1]} wanted" if said else ""


def card_failure(error: BaseException) -> str | None:
    """What CUDA, or a library of it, reports of a card that has failed; None for any other error, and for too little memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines = str(error).strip().splitlines() or [""]
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CARD_FAILURES):
            return None if any(word in str(error).lower() for word in _CARD_MEMORY_WORDS) else lines[0][:200]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


# As in pyproject.toml's extras, which the tests compare: these packages are on the registry, beit3-bench itself is not.
_DENSE = (
    "pip install --no-build-isolation 'onedl-mmcv>=2.3.6,<2.4' 'onedl-mmengine>=0.10.12,<0.11' "
    "'onedl-mmsegmentation>=1.4.2,<1.5' 'onedl-mmdetection>=3.5.1,<3.6'"
)
INSTALL_LINES = {
    "pycocoevalcap": "pip install 'pycocoevalcap>=1.2,<2'",
    "eccv_caption": "pip install 'eccv-caption>=0.1,<1'",
    "pyarrow": "pip install 'pyarrow>=17'",
    "faster_coco_eval": "pip install 'faster-coco-eval>=1.6,<2'",
    "imagecorruptions": "pip install 'imagecorruptions-imaug>=1.1.5,<2'",
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
