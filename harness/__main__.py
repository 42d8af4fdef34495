"""``python -m beit3_bench.harness`` is ``beit3-bench``; launchers of several processes start it this way."""

from __future__ import annotations

import sys


def main() -> None:
    """`harness.cli.main`; where already its import fails, one line and exit code 2."""
    try:
        from beit3_bench.harness.cli import main as command
    except (ImportError, MemoryError, OSError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        sys.stderr.write(
            f"error: beit3-bench does not start here ({reason}); raise the limits (ulimit -v, -n), or install it again\n"
        )
        sys.exit(2)
    command()


if __name__ == "__main__":
    main()
