"""The image files behind a run's rows: the same on resume and at the end, and one hash for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from beit3_bench.backbones.image_hashes import image_hashes
from beit3_bench.errors import BenchError
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.record.fingerprints import digest, folder_of_data
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.schema import IMAGES
from beit3_bench.tasks.contract import Example


def hashes_by_path(examples: Sequence[Example], hashes: Mapping[str, Sequence[str]], folder: Path) -> dict[str, str]:
    """Image file -> its hash, from the hashes of each example.

    Args:
        hashes: example id -> hashes of its image files, as `RunStore.image_hashes` gives them.

    Raises:
        BenchError: two examples saw different contents of one file.
    """
    seen: dict[str, str] = {}
    for example in examples:
        for path, value in zip(example.images, hashes.get(example.id, ()), strict=False):
            if seen.setdefault(path, value) != value:
                raise BenchError(f"{path}: was replaced while the run in {folder} was made; run again with --overwrite")
    return seen


def check_images(examples: Sequence[Example], hashes: Mapping[str, Sequence[str]], folder: Path, mend: str) -> None:
    """Read the image files behind the stored rows of a run again, and compare.

    Raises:
        BenchError: counts the files that have changed and names the first.
    """
    seen = hashes_by_path(examples, hashes, folder)
    now = image_hashes(seen, cores())
    changed = [path for path, value in seen.items() if now[path] != value]
    if changed:
        raise BenchError(
            f"{folder}: {len(changed)} of {len(seen)} image files have other contents than its rows were made from "
            f"({changed[0]}{', ...' if len(changed) > 1 else ''}); {mend}"
        )


@collection_paused()
def images_fingerprint(
    examples: Sequence[Example], hashes: Mapping[str, Sequence[str]], data_root: Path, folder: Path
) -> dict[str, str]:
    """``{"images": hash}`` over names below the data's folder and contents; empty where there are no images."""
    seen = hashes_by_path(examples, hashes, folder)
    names = {path: name for e in examples for path, name in zip(e.images, e.image_names, strict=True)}
    prefix = folder_of_data(data_root)
    return {IMAGES: digest({names[path].removeprefix(prefix): value for path, value in seen.items()})} if seen else {}
