"""What `beit3-bench demo` must reach on the tiny world's held-out splits, and what knowing nothing would reach."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

REACH = {  # task -> {metric: at least}; units as in result.json
    "flickr30k": {"mean_recall": 60.0},
    "coco-retrieval": {"mean_recall": 60.0},
    "imagenet": {"top1": 0.80},
    "imagenet-linear": {"top1": 0.80},
    "vqav2": {"vqa_accuracy": 60.0},
    "nlvr2": {"accuracy": 0.75},
    "snli-ve": {"accuracy": 0.70},
    "sugarcrepe": {"accuracy": 0.60},
    "winoground": {},  # a tiny model knows words and not their order, as released ones do
    "aro": {},  # and swaps attributes as it likes
    "coco-det": {"bbox/AP50": 0.50, "segm/AP50": 0.40},
    "ade20k-seg": {"mIoU": 0.40},
}
CAPTIONED = ("coco-caption", "nocaps")
FAMILIES = {"beit3", "vlmo", "albef", "blip", "openclip"}
OVER_CONSTANT = 2.0  # captions must score at least this many times the CIDEr of the best constant caption


def constant_caption_cider(world: Path) -> float:
    """CIDEr on the COCO test images of the best of the 20 commonest training captions, given to every image."""
    from beit3_bench.tasks.captioning import CocoCaption
    from beit3_bench.tasks.metrics.captions import score_captions

    task = CocoCaption(world / "coco")
    references = {e.id: e.target for e in task.read("test").examples}
    common = Counter(e.text for e in task.training_split().examples).most_common(20)
    return max(
        score_captions(dict.fromkeys(references, text), references, ["CIDEr"]).metrics["CIDEr"] for text, _ in common
    )


def main(folder: Path) -> int:
    """Print a line per requirement; the number of those missed."""
    missed = 0
    evaluated: set[str] = set()
    families: set[str] = set()
    for path in sorted((folder / "runs").rglob("result.json")):
        result = json.loads(path.read_text())
        task, metrics = result["task"], result["metrics"]
        family = result["model"].get("family", "beit3")
        trained = family == "beit3"
        evaluated.add(task)
        families.add(family)
        wanted = dict(REACH.get(task, {})) if trained else {}
        baseline = f"chance {result['chance']:.4g}" if result.get("chance") is not None else ""
        if task == "coco-caption":
            constant = constant_caption_cider(folder / "world")
            wanted, baseline = {"CIDEr": OVER_CONSTANT * constant}, f"the best constant caption {constant:.4g}"
        if not trained and metrics:
            headline = next(name for name, metric in metrics.items() if metric["headline"])
            print(f"     {task} {headline} {metrics[headline]['value']:.4g} by {family}, untrained; {baseline}")
            continue
        if result["status"] == "not installed":
            print(f"     {task}: {result['notes'][0]}")
            continue
        for name, least in wanted.items():
            value = metrics[name]["value"]
            good = value >= least
            missed += not good
            print(f"{'ok  ' if good else 'MISS'} {task} {name} {value:.4g}, wanted {least:.4g}; {baseline}")
    for what, names in (("task", {*REACH, *CAPTIONED} - evaluated), ("family", FAMILIES - families)):
        for name in sorted(names):
            missed += 1
            print(f"MISS {what} {name}: was not evaluated")
    return missed


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
