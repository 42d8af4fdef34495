"""A COCO folder as detectron2 data sets."""

from __future__ import annotations

from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from beit3_bench.errors import BenchError

SPLITS = ("train2017", "val2017")


def register_coco(data_root: str | Path, prefix: str = "beit3_bench_coco") -> dict[str, str]:
    """Register the instance annotations below a folder in COCO's layout.

    Returns:
        split -> the name for ``dataloader.{train,test}.dataset.names``; a second call gives the same names.

    Raises:
        BenchError: an annotation file or image folder is missing, or the names stand for another folder.
    """
    root, names = Path(data_root).absolute(), {}
    for split in SPLITS:
        file, folder = root / "annotations" / f"instances_{split}.json", root / split
        for place in (file, folder):
            if not place.exists():
                raise BenchError(f"{place}: not found; {root} needs annotations/instances_{split}.json and {split}/")
        names[split] = f"{prefix}_{split}"
        if names[split] in DatasetCatalog:
            from detectron2.data import MetadataCatalog

            known = MetadataCatalog.get(names[split]).json_file
            if known != str(file):
                raise BenchError(f"{names[split]}: is registered for {known} already; give another prefix")
            continue
        register_coco_instances(names[split], {}, str(file), str(folder))
    return names
