"""The Flickr30K folder: ``dataset_flickr30k.json`` (Karpathy) and ``flickr30k-images/1000092795.jpg``."""

from __future__ import annotations

from beit3_bench.tasks.tinyworld import text
from beit3_bench.tasks.tinyworld.karpathy import KarpathyFile
from beit3_bench.tasks.tinyworld.plan import Workshop, write_json


def write_flickr30k(shop: Workshop) -> dict[str, int]:
    rng = shop.rng("flickr30k")
    sizes = {"train": shop.counts.flickr30k_train, "val": shop.counts.flickr30k_val, "test": shop.counts.flickr30k_test}
    # Galleries first: they need the rare scenes that captions tell apart.
    drawn = {split: shop.source.draw(rng, sizes[split], split != "train") for split in ("test", "val", "train")}
    entries = [(split, scene) for split, scenes in drawn.items() for scene in scenes]
    rng.shuffle(entries)
    names = sorted(rng.sample(range(36979, 8254213), len(entries)))
    karpathy = KarpathyFile("flickr30k")
    folder = shop.folder("flickr30k", "flickr30k-images")
    for (split, scene), name in zip(entries, names, strict=True):
        filename = f"{1000000000 + name}.jpg"
        raw = text.captions(rng, scene, 5)
        shop.text += raw
        karpathy.add(filename, split, raw)
        shop.painter.save_jpeg(scene, folder / filename)
    write_json(shop.folder("flickr30k") / "dataset_flickr30k.json", karpathy.content())
    return sizes
