"""CIDEr on 5,000 images x 5 references: this package against pycocoevalcap, on the same tokenised captions.

    python tests/benchmarks/cider_benchmark.py [--images 5000] [--references 5] [--captions captions_val.json]

Prints one JSON object: seconds of both (best of three for this package), their ratio, the largest difference of a
per-image score. Exit status 1 if the ratio is below 10 or a score differs by more than 1e-9. Without ``--captions``
the captions are made up: words drawn with frequencies falling as in natural text, references of an image drawn from
one topic.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from beit3_bench.tasks.metrics.cider import cider
from beit3_bench.tasks.metrics.ngrams import count_ngrams
from beit3_bench.tasks.metrics.ptb_tokenizer import tokenize

WANTED_RATIO = 10.0


def made_up(images: int, references: int, seed: int = 0) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions of 8 to 14 words out of 9,000 with Zipf frequencies; half of an image's words are of 12 topic words."""
    rng = np.random.default_rng(seed)
    frequency = 1.0 / np.arange(1, 9001)
    frequency /= frequency.sum()

    def caption(topic: np.ndarray) -> list[str]:
        length = rng.integers(8, 15)
        words = np.where(rng.random(length) < 0.5, rng.choice(topic, length), rng.choice(9000, length, p=frequency))
        return [f"w{word}" for word in words]

    candidates, groups = [], []
    for _ in range(images):
        topic = rng.choice(9000, 12, p=frequency)
        candidates.append(caption(topic))
        groups.append([caption(topic) for _ in range(references)])
    return candidates, groups


def from_file(path: Path, images: int, references: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions of a COCO annotation file, repeated with a word added until there are enough; the first is scored."""
    captions: dict[int, list[str]] = {}
    for annotation in json.loads(path.read_text())["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    groups = [group[: references + 1] for group in captions.values() if len(group) > 1]
    tokens = iter(tokenize([caption for group in groups for caption in group]))
    tokenised = [[next(tokens) for _ in group] for group in groups]
    many = [[[*words, f"copy{i // len(tokenised)}"] for words in tokenised[i % len(tokenised)]] for i in range(images)]
    return [group[0] for group in many], [group[1:] for group in many]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--captions", type=Path, help="COCO caption annotations to draw from")
    arguments = parser.parse_args()
    if arguments.captions:
        candidates, groups = from_file(arguments.captions, arguments.images, arguments.references)
    else:
        candidates, groups = made_up(arguments.images, arguments.references)

    from pycocoevalcap.cider.cider import Cider

    official_input = (
        {i: [" ".join(words) for words in group] for i, group in enumerate(groups)},
        {i: [" ".join(words)] for i, words in enumerate(candidates)},
    )
    start = time.perf_counter()
    _, expected = Cider().compute_score(*official_input)
    official_seconds = time.perf_counter() - start

    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        scores = cider(count_ngrams(candidates, groups))
        seconds.append(time.perf_counter() - start)
    difference = float(np.abs(scores - expected).max())
    ratio = official_seconds / min(seconds)
    report = {
        "images": len(candidates),
        "references": sum(map(len, groups)),
        "pycocoevalcap_seconds": round(official_seconds, 3),
        "seconds": round(min(seconds), 3),
        "ratio": round(ratio, 2),
        "wanted_ratio": WANTED_RATIO,
        "largest_difference": difference,
        "CIDEr": float(scores.mean()),
    }
    print(json.dumps(report))
    return 0 if ratio >= WANTED_RATIO and difference <= 1e-9 else 1


if __name__ == "__main__":
    sys.exit(main())
