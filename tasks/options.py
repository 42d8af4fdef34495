"""A task's options, ``-o key=value``, as a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beit3_bench.plain import fill


def parse_options(cls: type, values: Mapping[str, str], owner: str) -> Any:
    """Fill an options dataclass from ``key=value`` strings, converting by the field's type.

    Raises:
        BenchError: unknown key (with the nearest known one) or a value that does not convert.
    """
    return fill(cls, values, owner)
