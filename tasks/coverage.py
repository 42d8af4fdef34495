"""Whether predictions cover exactly the samples that they are scored against."""

from __future__ import annotations

from collections.abc import Sequence

from beit3_bench.errors import BenchError


def match_ids(
    predicted: Sequence[str], expected: Sequence[str], source: str, what: str, allow_partial: bool = False
) -> float:
    """Check that predictions cover exactly the expected ids.

    Returns:
        The coverage: 1.0, or less with ``allow_partial``.

    Raises:
        BenchError: duplicated, unknown or (unless ``allow_partial``) missing ids; counts them, lists the first five.
    """

    def first(ids: Sequence[str]) -> str:
        return ", ".join(str(i)[:80] for i in ids[:5]) + (", ..." if len(ids) > 5 else "")

    seen: set[str] = set()
    twice = [i for i in predicted if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    if twice:
        raise BenchError(f"{source}: {len(twice)} {what} predicted twice ({first(twice)}); keep one prediction each")
    wanted = set(expected)
    unknown = [i for i in predicted if i not in wanted]
    if unknown:
        raise BenchError(
            f"{source}: {len(unknown)} unknown {what} ({first(unknown)}); are the annotations of the same split?"
        )
    missing = [i for i in dict.fromkeys(expected) if i not in seen]
    if missing and not allow_partial:
        raise BenchError(
            f"{source}: {len(missing)} of {len(wanted)} {what} without prediction ({first(missing)}); "
            "complete the file, or score what is there with --allow-partial"
        )
    return len(seen) / max(len(wanted), 1)
