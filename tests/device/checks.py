"""What a piece of the device report consists of: checks with their limits, figures, and what was left out."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """A value and the largest that passes; a flag counts as 0 (right) or 1."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # NaN does not


@dataclass
class Piece:
    """Everything that one piece reports.

    figures: what was measured, for the reader.  skipped: what was not done, with the reason.
    """

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def check(self, name: str, value: float, limit: float) -> None:
        self.checks.append(Check(name, float(value), limit))

    def require(self, name: str, right: bool) -> None:
        self.check(name, 0.0 if right else 1.0, 0.0)

    def skip(self, what: str, why: str) -> None:
        self.skipped.append(f"{what}: {why}")

    def to_dict(self) -> dict[str, Any]:
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {"piece": self.name, "checks": checks, "figures": self.figures, "skipped": self.skipped}


@dataclass(frozen=True)
class Settings:
    """How a piece is asked: where its JSON goes, on which device, and whether the smallest sizes will do."""

    out: Path
    device: str
    quick: bool

    @classmethod
    def parse(cls) -> Settings:
        parser = argparse.ArgumentParser()
        parser.add_argument("out", type=Path)
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--quick", action="store_true")
        return cls(**vars(parser.parse_args()))

    def write(self, piece: Piece) -> None:
        """Also after each part of a piece, so that what a time limit cuts off costs nothing before it."""
        self.out.write_text(json.dumps(piece.to_dict(), indent=2) + "\n")
