"""Shared fixtures. Golden data is found by tests/goldens.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
