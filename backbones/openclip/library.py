"""open_clip itself, kept off the net and quiet."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from beit3_bench.errors import requires

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def open_clip(purpose: str) -> Any:
    """The package.

    Raises:
        BenchError: it does not import; with the install line.
    """
    with offline():
        return requires("open_clip", purpose)


@contextmanager
def offline() -> Iterator[None]:
    """Hugging Face's libraries open no connection, and what open_clip logs is not shown: it warns of what is done on purpose
    here (a network built without weights) and installs a handler for it.
    """
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    root = logging.getLogger()
    handlers, disabled = root.handlers[:], root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with _hub_offline():
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _hub_offline() -> Iterator[None]:
    """The hub's library reads the variable once, when it is imported."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    was = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
