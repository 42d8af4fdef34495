"""Write a tiny world: one folder per dataset, its SentencePiece model, and a manifest that is written last.

Tree of a world (each folder is a ``--data-root``; the writers' modules list what is inside)::

    coco/                    `coco`, `vqa`      vqav2, coco-caption, coco-retrieval, coco-det
                             `sugarcrepe`       sugarcrepe
    flickr30k/               `flickr30k`        flickr30k, snli-ve
    imagenet/                `imagenet`         imagenet, imagenet-linear
    nlvr2/                   `nlvr2`            nlvr2
    nocaps/                  `nocaps`           nocaps
    winoground/              `winoground`       winoground
    aro/                     `aro`              aro
    ADEChallengeData2016/    `ade20k`           ade20k-seg
    beit3.spm                                   the tokenizer of everything above
    tiny_world.json                             seed, knobs, counts, number and size of the files
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, refuse_link, write_atomic
from beit3_bench.tasks.tinyworld.plan import Counts, Workshop, resolve

VERSION = 3
MANIFEST = "tiny_world.json"
STARTED = "tiny_world.started.json"
"""Stands in for the manifest while a world is being written."""

FOLDERS = ("coco", "flickr30k", "imagenet", "nlvr2", "nocaps", "winoground", "aro", "ADEChallengeData2016")
SPM = "beit3.spm"

Progress = Callable[[str, int, int], None]


def write_tiny_world(
    out: str | Path, seed: int = 0, progress: Progress | None = None, size: str = "tiny", **knobs: int
) -> dict[str, Any]:
    """Write the world of ``seed`` into ``out``; a complete one of the same seed and knobs is left as it is.

    Two worlds of the same seed and knobs are equal byte for byte, given the same versions of Pillow, numpy and
    sentencepiece.

    Args:
        out: a new or empty folder, a tiny world, or one whose writing was interrupted (it is written anew).
        progress: called as ``progress(folder, steps done, steps in all)`` before each step and once at the end.
        size: ``"tiny"`` (what a tiny model learns from in a minute per task) or ``"mini"`` (a second, for tests).
        knobs: single counts of `plan.Counts`, e.g. ``coco_train=500``.

    Returns:
        The manifest: ``{"version", "seed", "size", "counts", "splits", "pieces", "files", "bytes"}``.

    Raises:
        BenchError: ``out`` is a file or holds something else (a world of another seed or other knobs, too); an unknown
            knob.
    """
    root = Path(out)
    counts = resolve(size, knobs)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BenchError(f"tiny world: seed is {seed!r}; give a whole number from 0")
    recipe = {"version": VERSION, "seed": seed, "size": size, "counts": asdict(counts)}
    finished = _finished(root, recipe)
    if finished is not None:
        return finished
    try:
        return _write(root, recipe, progress or (lambda folder, done, total: None))
    except OSError as error:
        raise BenchError(
            f"{error.filename or root}: cannot be written ({error.strerror}); check permissions and free space"
        ) from error


def _finished(root: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest if ``root`` already holds this world, complete; None if it may be (re)written."""
    if root.exists() and not root.is_dir():
        raise BenchError(f"{root}: is a file; give a folder for the tiny world")
    present = sorted(p.name for p in root.iterdir()) if root.exists() else []
    if not present:
        return None
    if MANIFEST not in present and STARTED not in present:
        names = ", ".join(present[:3]) + (", ..." if len(present) > 3 else "")
        raise BenchError(f"{root}: not empty and not a tiny world (it holds {names}); give a new folder with --output")
    if STARTED in present:
        return None
    manifest = _read_manifest(root / MANIFEST)
    for key in ("version", "seed", "counts"):
        if manifest.get(key) != recipe[key]:
            other = f"{key} {manifest.get(key)!r}" if key != "counts" else "other counts"
            raise BenchError(f"{root}: holds a tiny world of {other}; give another folder, or delete this one first")
    files, size = _measure(root)
    return manifest if (files, size) == (manifest.get("files"), manifest.get("bytes")) else None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path}: not a readable manifest ({error}); delete the folder and write the world again"
        ) from error
    if not isinstance(manifest, dict):
        raise BenchError(
            f"{path}: not a manifest but a {type(manifest).__name__}; delete the folder and write the world again"
        )
    return manifest


def _measure(root: Path) -> tuple[int, int]:
    """Number and bytes of the files in the world's folders (each hard link counts once more)."""
    files = size = 0
    for folder in FOLDERS:
        for at, _, names in os.walk(root / folder):
            files += len(names)
            size += sum(os.stat(os.path.join(at, name)).st_size for name in names)
    spm = root / SPM
    return (files + 1, size + spm.stat().st_size) if spm.is_file() else (files, size)


def _write(root: Path, recipe: dict[str, Any], progress: Progress) -> dict[str, Any]:
    from beit3_bench.tasks.tinyworld.ade20k import write_ade20k
    from beit3_bench.tasks.tinyworld.aro import write_aro
    from beit3_bench.tasks.tinyworld.coco import write_coco
    from beit3_bench.tasks.tinyworld.flickr30k import write_flickr30k
    from beit3_bench.tasks.tinyworld.imagenet import write_imagenet
    from beit3_bench.tasks.tinyworld.nlvr2 import write_nlvr2
    from beit3_bench.tasks.tinyworld.nocaps import write_nocaps
    from beit3_bench.tasks.tinyworld.render import Painter
    from beit3_bench.tasks.tinyworld.scenes import SceneSource
    from beit3_bench.tasks.tinyworld.sugarcrepe import write_sugarcrepe
    from beit3_bench.tasks.tinyworld.vocabulary import write_spm
    from beit3_bench.tasks.tinyworld.vqa import write_vqa
    from beit3_bench.tasks.tinyworld.winoground import write_winoground

    make_folder(root)
    for name in (STARTED, *FOLDERS):
        refuse_link(root / name)
    write_atomic(root / STARTED, json.dumps(recipe).encode())
    (root / MANIFEST).unlink(missing_ok=True)
    (root / SPM).unlink(missing_ok=True)
    for folder in FOLDERS:
        if (root / folder).exists():
            shutil.rmtree(root / folder)

    shop = Workshop(root, recipe["seed"], Counts(**recipe["counts"]), Painter(recipe["seed"]), SceneSource())
    steps: list[tuple[str, Callable[[Workshop], dict[str, int]]]] = [
        ("coco", write_coco),
        ("coco/vqa", write_vqa),
        ("coco/sugarcrepe", write_sugarcrepe),
        ("flickr30k", write_flickr30k),
        ("imagenet", write_imagenet),
        ("nlvr2", write_nlvr2),
        ("nocaps", write_nocaps),
        ("winoground", write_winoground),
        ("aro", write_aro),
        ("ADEChallengeData2016", write_ade20k),
    ]
    splits: dict[str, dict[str, int]] = {}
    for done, (name, write) in enumerate(steps):
        progress(name, done, len(steps) + 1)
        splits[name] = write(shop)
    progress(SPM, len(steps), len(steps) + 1)
    pieces = write_spm(root / SPM, shop.text, shop.counts.vocabulary)
    files, size = _measure(root)
    manifest = {**recipe, "splits": splits, "pieces": pieces, "files": files, "bytes": size}
    write_atomic(root / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    (root / STARTED).unlink()
    progress("", len(steps) + 1, len(steps) + 1)
    return manifest
