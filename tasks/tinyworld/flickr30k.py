"""The Flickr30K folder: ``dataset_flickr30k.json`` (Karpathy), ``flickr30k-images/1000092795.jpg``, and SNLI-VE about these pictures."""

from __future__ import annotations

from beit3_bench.tasks.tinyworld import text
from beit3_bench.tasks.tinyworld.karpathy import KarpathyFile
from beit3_bench.tasks.tinyworld.plan import Workshop, write_json
from beit3_bench.tasks.tinyworld.scenes import Scene
from beit3_bench.tasks.tinyworld.snli_ve import write_snli_ve


def write_flickr30k(shop: Workshop) -> dict[str, int]:
    rng = shop.rng("flickr30k")
    sizes = {"train": shop.counts.flickr30k_train, "val": shop.counts.flickr30k_val, "test": shop.counts.flickr30k_test}
    # Galleries first: they need the rare scenes that captions tell apart.
    drawn = {split: shop.source.draw(rng, sizes[split], split != "train") for split in ("test", "val", "train")}
    entries = [(split, scene) for split, scenes in drawn.items() for scene in scenes]
    rng.shuffle(entries)
    names = sorted(rng.sample(range(36979, 8254213), len(entries)))
    karpathy = KarpathyFile("flickr30k")
    pictures: dict[str, list[tuple[str, Scene]]] = {split: [] for split in sizes}
    folder = shop.folder("flickr30k", "flickr30k-images")
    for (split, scene), name in zip(entries, names, strict=True):
        filename = f"{1000000000 + name}.jpg"
        raw = text.captions(rng, scene, 5)
        shop.text += raw
        karpathy.add(filename, split, raw)
        shop.painter.save_jpeg(scene, folder / filename)
        pictures[split].append((filename, scene))
    write_json(shop.folder("flickr30k") / "dataset_flickr30k.json", karpathy.content())
    write_snli_ve(shop, pictures)
    return sizes
