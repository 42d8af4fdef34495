"""``python -m beit3_bench.harness`` is ``beit3-bench``; launchers of several processes start it this way."""

from beit3_bench.harness.cli import main

if __name__ == "__main__":
    main()
