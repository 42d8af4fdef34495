"""mmseg configs, one file per named variant of `mmseg_adapter.settings`; mmseg's tools take their paths."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def paths() -> list[Path]:
    """The config files."""
    return sorted(FOLDER.glob("beit3_*.py"))
