"""Made-up annotations of false negatives for a split, in the files of eccv-caption; and its formulas, as plain loops."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from beit3_bench.tasks.contract import Split
from beit3_bench.tasks.reranking import kinds

Lists = Mapping[str, Sequence[str]]


def write_annotations(folder: Path, split: Split, seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """Six files for all images and all captions but the last of every third image; returns what they hold by name."""
    random = np.random.default_rng(seed)
    images, texts = kinds(split)
    own = {image.target: [t.id.removeprefix("text:") for t in texts if t.target == image.target] for image in images}
    gallery = {
        name: several[: len(several) - (n % 3 == 0 and len(several) > 1)]
        for n, (name, several) in enumerate(own.items())
    }
    captions = [text for several in gallery.values() for text in several]
    right = {(name, text) for name, several in gallery.items() for text in several}
    right |= {(name, captions[k]) for name in gallery for k in random.integers(0, len(captions), random.integers(0, 6))}
    of_image = {name: [t for i, t in sorted(right) if i == name] for name in gallery}
    of_text = {text: [i for i, t in sorted(right) if t == text] for text in captions}
    beyond = next(text for name in own for text in own[name] if text not in captions)
    first = next(iter(of_image))
    content = {
        "original_image_to_caption": gallery,
        "original_caption_to_image": {text: [name] for name, several in gallery.items() for text in several},
        "cxc_image_to_caption": of_image,
        "cxc_caption_to_image": of_text,
        "eccv_image_to_caption": {first: [*of_image[first], beyond], **dict(list(of_image.items())[1::2])},
        "eccv_caption_to_image": dict(list(of_text.items())[::3]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        ids = {query: [int(item) for item in items] for query, items in value.items()}  # as the package writes them
        (folder / f"{name}.json").write_text(json.dumps(ids))
    return content


def by_loops(ranked: Mapping[str, Lists], content: Mapping[str, Lists]) -> dict[str, float]:
    """All metrics in percent. ranked: ``"TR"`` and ``"IR"`` -> query -> the gallery, best first."""
    values = {}
    for direction, file in (("TR", "image_to_caption"), ("IR", "caption_to_image")):
        for name in ("eccv", "cxc"):
            found = {
                q: [item in right for item in ranked[direction][q]] for q, right in content[f"{name}_{file}"].items()
            }
            sizes = {q: len(right) for q, right in content[f"{name}_{file}"].items()}
            if name == "eccv":
                precision = {
                    q: [sum(f[: r + 1]) / (r + 1) * f[r] for r in range(min(sizes[q], len(f)))]
                    for q, f in found.items()
                }
                values[f"eccv/{direction}-mAP@R"] = np.mean([sum(p) / sizes[q] for q, p in precision.items()])
                values[f"eccv/{direction}-R-Precision"] = np.mean(
                    [sum(f[: sizes[q]]) / sizes[q] for q, f in found.items()]
                )
            for k in (1,) if name == "eccv" else (1, 5, 10):
                values[f"{name}/{direction}@{k}"] = np.mean([any(f[:k]) for f in found.values()])
    return {name: 100 * float(value) for name, value in values.items()}
