"""Freed memory is kept: the next allocation of the same size takes no fresh pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from beit3_bench.harness.engine.memory import keep_freed_memory
import numpy as np
if sys.argv[1] == "kept":
    assert keep_freed_memory()
size = 40 << 20  # above the largest size that glibc keeps by itself
np.ones(size, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(size, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_taken_once():
    faults = {}
    for mode in ("default", "kept"):
        done = subprocess.run([sys.executable, "-c", COUNT, mode], capture_output=True, text=True, check=True)
        faults[mode] = int(done.stdout)
    assert faults["kept"] < 100
    assert faults["kept"] < faults["default"] / 4
