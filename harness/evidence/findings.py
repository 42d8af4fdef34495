"""What `beit3-bench data verify` reports of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    check: files, checksum, reader, notes, counts, images, decode, annotations (sizes that they say), captions, ids or splits.
    split: "" where it is not of one.
    line: file: what is wrong; the mend.
    """

    check: str
    split: str
    line: str


@dataclass
class FileReport:
    """checksum: official, pinned (seen here before and unchanged), new (pinned now), tiny world, or changed."""

    path: str
    sha256: str
    checksum: str


@dataclass
class SplitReport:
    """What was read of a split; ``there`` is False where its files are not and nobody asked for it."""

    name: str
    there: bool
    samples: int = 0
    images: int = 0
    texts: int = 0
    references: int | None = None
    decoded: int = 0


@dataclass
class Verification:
    """What `harness.evidence.verify.verify` finds; the data is whole where ``findings`` is empty.

    to_get: where files come from that are not there, a line each.
    """

    task: str
    data_root: str
    world: str
    files: list[FileReport] = field(default_factory=list)
    splits: list[SplitReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    to_get: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.findings

    def add(self, check: str, split: str, line: str) -> None:
        """Note a finding; what is wrong for several splits in the same words is one."""
        if all(finding.line != line for finding in self.findings):
            self.findings.append(Finding(check, split, line))

    def to_dict(self) -> dict[str, Any]:
        return {"whole": self.whole, **asdict(self)}


def first_of(names: Sequence[Any]) -> str:
    """Up to five names, for a line."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
