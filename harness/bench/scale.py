"""Scale law of ranking: time and memory against gallery size, on synthetic embeddings."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from beit3_bench.tasks.metrics.recall import retrieval_ranks

CAPTIONS_PER_IMAGE, DIM, BLOCK = 5, 768, 512


def scale_law(largest: int) -> list[dict[str, float]]:
    """Rank galleries of 1,000, 10,000, ... captions, up to ``largest``.

    Returns:
        Per size: seconds, peak memory beyond the embeddings, and the bound of ``BLOCK`` rows of scores (float32, with
        the comparisons made from them).
    """
    sizes = [s for s in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if s <= largest]
    rows = []
    rng = np.random.default_rng(0)
    for captions in sizes:
        images = captions // CAPTIONS_PER_IMAGE
        image, text = (rng.standard_normal((n, DIM), dtype=np.float32) for n in (images, captions))
        owner = np.repeat(np.arange(images), CAPTIONS_PER_IMAGE)
        tracemalloc.start()
        start = time.perf_counter()
        retrieval_ranks(image, np.arange(images), text, owner, block=BLOCK)
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append(
            {
                "captions": captions,
                "images": images,
                "seconds": seconds,
                "peak_mib": peak / 2**20,
                "block_mib": BLOCK * captions * 4 / 2**20,
            }
        )
    return rows
