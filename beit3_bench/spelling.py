"""What an unknown name may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], what: str = "known", otherwise: str | None = None) -> str:
    """``did you mean 'nlvr2'?``, or all names that there are: ``known: nlvr2, vqav2``.

    Args:
        what: stands before the names.
        otherwise: said instead of all names, where they are too many.
    """
    import difflib  # only after a typo: a start of the program does without it

    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return otherwise if otherwise is not None else f"{what}: {', '.join(names) or 'none'}"
