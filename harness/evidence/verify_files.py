"""Files of a data set: whether they are there, and whether they are the official ones or those of the last time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.findings import FileReport, Verification
from beit3_bench.harness.record.released import git_blobs
from beit3_bench.tasks.facts import Need


def check_files(report: Verification, needs: Sequence[Need], split: str, wanted: bool) -> bool:
    """Whether all files of a split are there; a missing one is a finding where the split is wanted."""
    root, there = Path(report.data_root), True
    for need in needs:
        if split not in need.splits:
            continue
        place = need.find(root)
        if place is None:
            there = False
            if wanted:
                line = f"{root / need.folders[0] / need.path}: not found; download it (see: beit3-bench tasks {report.task})"
                report.add("files", split, line)
        elif (
            place.is_file()
            and place == need.find_itself(root)
            and str(place) not in [file.path for file in report.files]
        ):
            _check_checksum(report, place, need, split)
    return there


def _check_checksum(report: Verification, path: Path, need: Need, split: str) -> None:
    from beit3_bench.backbones.pins import sha256_of

    try:
        digest = sha256_of(path)
    except BenchError as error:
        report.add("files", split, str(error))
        return
    kind = "tiny world"
    if report.world == "real":
        try:
            kind = check_official(path, need.git_blob) if need.git_blob else _pinned(path, digest)
        except BenchError as error:
            kind = "changed"
            report.add("checksum", split, str(error))
    report.files.append(FileReport(str(path), digest, kind))


def check_official(path: Path, git_object: str) -> str:
    """The word for a file that is the official one.

    Raises:
        BenchError: it differs.
    """
    names = git_blobs(path)
    if git_object not in names:
        raise BenchError(
            f"{path}: differs from the official file (git object {names[0][:12]}... instead of {git_object[:12]}...); "
            "download it again"
        )
    return "official"


def _pinned(path: Path, digest: str) -> str:
    from beit3_bench.backbones.pins import pin_or_check, read_pins

    name = f"data:{path.resolve()}"
    kind = "pinned" if name in read_pins() else "new"
    pin_or_check(path, name, digest)
    return kind
