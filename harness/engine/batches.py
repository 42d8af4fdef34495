"""Collated batches, decoded ahead by worker processes."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from beit3_bench.backbones.abilities import Batch, Reader
from beit3_bench.backbones.archives.archive import Archive
from beit3_bench.backbones.archives.members import adopt, known_archives
from beit3_bench.backbones.image_hashes import image_hash, noting_image_hashes
from beit3_bench.errors import BenchError
from beit3_bench.harness.reuse.image_cache import ImageCache
from beit3_bench.harness.termination import outlive_first_sigterm
from beit3_bench.tasks.contract import Example, Task

_FILES, _FILES_PER_WORKER = 12, 6  # pipes to and from the workers, and what is on its way through them


_AHEAD = 32
"""Batches that wait decoded in shared memory, about: 38 MB each for 256 images of 224 pixels."""


@dataclass(frozen=True)
class Failure:
    """A `BenchError` on its way out of a worker process."""

    message: str


def decode_ahead(dataset: Dataset, items: Iterable[int] | None, workers: int, pin: bool) -> Iterator[Any]:
    """The items of a dataset in order, made ahead by ``workers`` processes.

    Args:
        items: which ones; None = all.

    Raises:
        BenchError: in the place of a `Failure`; or too few files may be opened for so many processes.
    """
    _check_open_files(workers)
    loader = DataLoader(
        dataset,
        sampler=items,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=min(4, max(2, _AHEAD // workers)) if workers else None,
        pin_memory=pin,
        worker_init_fn=partial(_start, known_archives()) if workers else None,
    )
    for item in loader:
        if isinstance(item, Failure):
            raise BenchError(item.message)
        yield item


def _start(archives: Mapping[str, Archive], number: int) -> None:
    """What a decoding process does first; number: its own, from 0."""
    outlive_first_sigterm(number)
    adopt(archives)


def _check_open_files(workers: int) -> None:
    """Raise before worker processes are started that could not be: half started, they leave tracebacks behind."""
    if not workers or not os.path.isdir("/proc/self/fd"):
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + _FILES + _FILES_PER_WORKER * workers
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise BenchError(
            f"{workers} decoding processes need about {needed} open files, {limit} are allowed; "
            "use fewer --workers (0 needs none) or raise ulimit -n"
        )


def _as_is(item: Any) -> Any:
    return item


class Collated(NamedTuple):
    """A batch, and what the image cache did for it.

    ahead: what `Task.read_ahead` gives, by example.
    from_cache: images that were not decoded.  trouble: why the cache stores nothing more ("" for none).
    images: example id -> hashes of its image files, in their order; empty where they are not asked for.
    """

    batch: Batch
    ahead: Sequence[Any] = ()
    from_cache: int = 0
    trouble: str = ""
    images: Mapping[str, Sequence[str]] = {}


class _Batches(Dataset):
    """Planned batches, collated on demand."""

    def __init__(self, task: Task, reader: Reader, batches: Sequence[list[Example]], hash_images: bool):
        self.task, self.reader, self.batches, self.hash_images = task, reader, batches, hash_images

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Collated | Failure:
        cache = self.reader.transform if isinstance(self.reader.transform, ImageCache) else None
        before = cache.hits if cache else 0
        examples = self.batches[index]
        noting: AbstractContextManager[dict[str, str]] = noting_image_hashes() if self.hash_images else nullcontext({})
        try:
            with noting as noted:
                batch = self.reader.collate([self.task.item(example) for example in examples])
            ahead = [self.task.read_ahead(example) for example in examples]
            images = _hashes_of(examples, noted) if self.hash_images else {}
        except BenchError as error:
            return Failure(str(error))
        hits, trouble = (cache.hits - before, cache.trouble or "") if cache else (0, "")
        return Collated(batch, ahead, hits, trouble, images)


def _hashes_of(examples: Sequence[Example], noted: Mapping[str, str]) -> dict[str, list[str]]:
    """Hashes by example; files that the task read by other means are read here once more (they are in memory still)."""
    hashes = {path: noted.get(path) or image_hash(path) for e in examples for path in e.images}
    gone = [path for path, value in hashes.items() if value is None]
    if gone:
        raise BenchError(f"{gone[0]}: cannot be read any more; restore it and give the same command again")
    return {e.id: [hashes[path] or "" for path in e.images] for e in examples if e.images}


def load_batches(
    task: Task,
    reader: Reader,
    batches: Sequence[list[Example]],
    workers: int,
    pin: bool,
    hash_images: bool = False,
) -> Iterator[Collated]:
    """Collated batches in order, decoded ahead by ``workers`` processes.

    Args:
        hash_images: say the contents of the image files that were read (`Collated.images`).

    Raises:
        BenchError: as raised by the reader's `collate` and the task's `read_ahead`, also in a worker.
    """
    return decode_ahead(_Batches(task, reader, batches, hash_images), None, workers, pin)


@contextmanager
def dying_workers(workers: int) -> Iterator[None]:
    """Translate the death of a worker process.

    It shows as a broken connection, or as a RuntimeError that torch raises at whatever line the main process is then.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        worker_died = "DataLoader worker" in str(error) and ("exited" in str(error) or "killed" in str(error))
        if not worker_died and (isinstance(error, RuntimeError) or not workers):
            raise
        reason = str(error).splitlines()[0]
        try:
            time.sleep(0.5)  # torch's signal handler must not strike after this block
        except RuntimeError as signalled:
            reason = str(signalled).splitlines()[0]
        raise BenchError(
            f"a decoding process died ({reason}); memory is short: use fewer --workers (now {workers}) "
            "or smaller batches"
        ) from error
