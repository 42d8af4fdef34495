"""``python -m beit3_bench.harness`` is ``beit3-bench``; launchers of several processes start it this way."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def main() -> None:
    """`harness.cli.main`; where already its import fails, one line and exit code 2.

    Behind a card that has failed nothing is cleaned up: torch would ask that card again at the end, and abort the process.
    """
    try:
        from beit3_bench.errors import DeviceFailed
        from beit3_bench.harness.cli import main as command
    except (ImportError, MemoryError, OSError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        sys.stderr.write(
            f"error: beit3-bench does not start here ({reason}); raise the limits (ulimit -v, -n), or install it again\n"
        )
        sys.exit(2)
    try:
        command()
    except SystemExit as end:
        if isinstance(end.__cause__, DeviceFailed):
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 2)
        raise


if __name__ == "__main__":
    main()
