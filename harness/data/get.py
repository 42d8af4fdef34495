"""Fetch, verify and unpack what a data set lacks. Killed anywhere, the same call goes on from there.

On the disk: ``downloads/FILE.part`` is being fetched; ``downloads/FILE`` is whole; ``downloads/FILE.unpacking`` lists what is being
unpacked from it. The folder is gone when there is nothing left to do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from beit3_bench.checksums import difference
from beit3_bench.download import Refused, download
from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, refuse_link
from beit3_bench.harness.data.plan import DOWNLOADS, Piece, list_of, listed_names
from beit3_bench.harness.data.unpack import Damaged, unpack
from beit3_bench.harness.evidence.verify_files import check_official
from beit3_bench.harness.progress import Meter, Reporting
from beit3_bench.locks import Held, hold
from beit3_bench.tasks.facts import read_facts

AT_ONCE = 8
"""Pictures that are fetched at the same time, where each is a file of its own."""


def get(pieces: Sequence[Piece], keep_archives: bool = False, reporting: Reporting | None = None) -> None:
    """Get all pieces that can be had without asking anybody.

    Args:
        keep_archives: leave archives where they were downloaded to.

    Raises:
        BenchError: from `download` and `unpack`; another process does the same. What has arrived is kept.
    """
    reporting = reporting or Reporting("none")
    refusals: list[Refused] = []
    for root in dict.fromkeys(piece.root for piece in pieces):
        of_root = [piece for piece in pieces if piece.root == root]
        wanted = [piece for piece in of_root if piece.state in ("get", "unpack")]
        unpacked = [piece for piece in of_root if piece.is_unpacked]
        if not wanted and not unpacked:
            continue
        with _alone(root):
            for piece in unpacked:  # and then killed
                _tidy(piece, keep_archives)
            for piece in sorted(wanted, key=lambda piece: bool(piece.place.listed_in)):  # lists before what they list
                if refusals and piece.place.listed_in and list_of(piece.place, root) is None:
                    continue
                try:
                    _get(piece, keep_archives, reporting)
                except Refused as error:  # the others may be given out
                    refusals.append(error)
    if refusals:
        others = f"; and {len(refusals) - 1} more are not given out" if len(refusals) > 1 else ""
        raise BenchError(f"{refusals[0]}{others}") from refusals[0]


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """The folder of downloads, held against other processes, and removed where nothing is left in it."""
    folder, new = root / DOWNLOADS, not root.exists()
    make_folder(root)
    refuse_link(folder)
    make_folder(folder)
    lock = folder / ".lock"
    try:
        held = hold(lock)
    except Held as error:
        raise BenchError(f"{root}: {error} is getting data into this folder; wait for it to finish") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
            folder.rmdir()  # if nothing is left in it
            if new:
                root.rmdir()  # likewise
        os.close(held)


def _get(piece: Piece, keep_archives: bool, reporting: Reporting) -> None:
    if piece.place.listed_in:
        _get_pictures(piece, reporting)
    elif piece.place.is_archive:
        _get_archive(piece, keep_archives, reporting)
    else:
        _get_file(piece, reporting)
    piece.missing = []


def _fetch(piece: Piece, reporting: Reporting) -> None:
    place = piece.place
    with contextlib.ExitStack() as stack:
        meter = stack.enter_context(reporting.meter(place.file, "B", total=piece.size, done=piece.have))
        checks: list[Meter] = []

        def checking(done: int, total: int | None) -> None:
            if not checks:
                checks.append(stack.enter_context(reporting.meter(f"{place.file}: checking", "B", leave=False)))
            checks[0].reach(done, total)

        download(piece.url, piece.archive, place.checksum or None, meter.reach, size=place.bytes, checking=checking)


# ---- one file ------------------------------------------------------------------------------------------------------------


def _get_file(piece: Piece, reporting: Reporting) -> None:
    """A file that is put as it is."""
    (target,) = piece.missing
    place = piece.place.put(piece.root, target)
    _fetch(piece, reporting)
    needs = (need for task in piece.tasks for need in read_facts(task).data.needs if Path(need.path).name == place.name)
    blob = next((need.git_blob for need in needs if need.git_blob), "")
    try:
        if blob:
            check_official(piece.archive, blob)
    except BenchError:
        piece.archive.unlink()
        raise
    make_folder(place.parent)
    os.replace(piece.archive, place)


# ---- archives --------------------------------------------------------------------------------------------------------------


def _get_archive(piece: Piece, keep_archives: bool, reporting: Reporting) -> None:
    place, own = piece.place, piece.own_copy()
    archive = own or piece.archive
    if own is None:
        _fetch(piece, reporting)
    elif wrong := difference(own, place.checksum or None, place.bytes):
        raise BenchError(f"{wrong}; get it again, or move it away")
    targets = {
        member: place.put(piece.root, target) for member, target in place.members.items() if target in piece.missing
    }
    before = piece.unfinished() or []  # of another split, perhaps
    doing = [place.members[member] for member in targets]
    piece.take_note([*before, *doing])
    try:
        with reporting.meter(f"{place.file}: unpacking", "file") as meter:
            unpack(archive, targets, piece.root, meter.reach)
    except Damaged as error:
        if own is not None:
            raise BenchError(f"{error}; get it again, or move it away") from error
        archive.unlink()
        raise BenchError(f"{error}; deleted it, give the same command again") from error
    os.sync()  # files are on the disk before the archive goes
    piece.take_note([target for target in before if target not in doing])
    if piece.is_unpacked:
        _tidy(piece, keep_archives)


def _tidy(piece: Piece, keep_archives: bool) -> None:
    """What is left to do once an archive is unpacked."""
    if not keep_archives:
        piece.archive.unlink(missing_ok=True)
    piece.note.unlink()


# ---- pictures, each a file of its own ------------------------------------------------------------------------------------------


def _get_pictures(piece: Piece, reporting: Reporting) -> None:
    """Those that are not there yet, several at a time."""
    (target,) = piece.place.members.values()
    folder = piece.place.find(piece.root, target) or piece.place.put(piece.root, target)
    refuse_link(folder)
    make_folder(folder)
    names = listed_names(piece.place, piece.root)
    left = [name for name in names if not (folder / name).exists()]
    sources = [piece.url] if piece.mirror or not piece.place.other_url else [piece.url, piece.place.other_url]
    gave = sources[:1]  # the last one that gave a picture, to be asked first

    def one(name: str) -> str | None:
        """The name, where no source has it."""
        for source in sorted(sources, key=lambda known: known != gave[0]):
            try:
                download(source + name, folder / name, retries=2, timeout=10)
            except Refused:
                continue
            gave[0] = source
            return None
        return name

    refused: list[str] = []
    with reporting.meter(piece.place.file, "image", total=len(names), done=len(names) - len(left)) as meter:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            for result in as_completed([pool.submit(one, name) for name in left]):
                refused += [name] if (name := result.result()) is not None else []
                meter.advance()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if refused:
        raise BenchError(
            f"{' and '.join(sources)}: {len(refused):,} of {len(names):,} images are not given out ({', '.join(sorted(refused)[:3])}, "
            "...); try again later, or name a mirror with --base-url"
        )
