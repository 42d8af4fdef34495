"""BEiT-3 itself: encoder, heads, checkpoints, tokenizer, preprocessing, and its dense-prediction engines.

Names are resolved on first use, so that importing this package costs nothing (torch loads in seconds).
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "BEiT3Config": "beit3.config",
    "LoadReport": "beit3.checkpoint",
    "build_detector": "beit3.detection",
    "build_model": "beit3.models",
    "load_checkpoint": "beit3.checkpoint",
    "official_state_dict": "beit3.checkpoint",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
