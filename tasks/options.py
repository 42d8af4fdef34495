"""A task's options, ``-o key=value``, as a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from beit3_bench.errors import BenchError


def option_names(cls: type) -> set[str]:
    """Names of the options of a dataclass."""
    return {f.name for f in dataclasses.fields(cls)}


def parse_options(cls: type, values: Mapping[str, str], owner: str) -> Any:
    """Fill an options dataclass from ``key=value`` strings, converting by the field's type.

    Raises:
        BenchError: unknown key (with the nearest known one) or a value that does not convert.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    filled: dict[str, Any] = {}
    for key, text in values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
            raise BenchError(f"{owner} has no option {key!r}; {hint}")
        filled[name] = _convert(text, hints[name], f"{owner}: option {key}")
    return cls(**filled)


def _convert(text: str, hint: Any, owner: str) -> Any:
    kinds = [k for k in getattr(hint, "__args__", (hint,)) if k is not type(None)] if "|" in str(hint) else [hint]
    kind = kinds[0]
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        return kind(*text.split(",")) if kind is not Path else Path(text)
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"{owner}: {text!r} is not a {kind.__name__}") from error
