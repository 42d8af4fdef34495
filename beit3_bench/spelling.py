"""What an unknown name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], what: str = "known") -> str:
    """``did you mean 'nlvr2'?``, or all names that there are: ``known: nlvr2, vqav2``."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{what}: {', '.join(names) or 'none'}"
