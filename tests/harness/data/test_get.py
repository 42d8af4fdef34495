"""Getting data from a server that misbehaves: what arrives is whole or is refused, and the same call goes on."""

from __future__ import annotations

import functools
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import FaultyServer, faulty_server, sha256, zip_of

from beit3_bench.download import download
from beit3_bench.errors import BenchError
from beit3_bench.harness.data import get as get_module
from beit3_bench.harness.data.get import get
from beit3_bench.harness.data.plan import Piece, _missing
from beit3_bench.tasks.places import Place

IMAGES = {f"val/{n}.jpg": random.Random(n).randbytes(20_000 + n) for n in range(12)}
ARCHIVE = zip_of({"val/": b"", **IMAGES})
OTHER = zip_of({name: content[::-1] for name, content in IMAGES.items()})


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as running:
        running.files["val.zip"] = ARCHIVE
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(download, retries=2, pause=0.001, timeout=0.5)
    monkeypatch.setattr(
        get_module, "download", lambda *args, **named: quick(*args, **named | {"retries": 2, "timeout": 0.5})
    )


def piece_of(root: Path, server: FaultyServer, **stated: object) -> Piece:
    """The archive of images, as a task may state it, and as it is found on the disk."""
    named = {
        "url": f"{server.url}/val.zip",
        "bytes": len(ARCHIVE),
        "checksum": sha256(ARCHIVE),
        "members": {"val/": "val/"},
    }
    place = Place(file="val.zip", **(named | stated))
    piece = Piece(place, root, ["some-task"], size=place.bytes)
    piece.missing = list(dict.fromkeys([*place.missing(root), *(piece.unfinished() or [])]))
    return piece


def images_in(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(piece: Piece, match: str) -> str:
    with pytest.raises(BenchError, match=match) as caught:
        get([piece])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- faults ------------------------------------------------------------------------------------------------------------


OVERCOME: dict[str, list[str | int]] = {
    "connection broken in the middle": [100_000],
    "broken again and again": [50_000, 50_000, 60_000, 10_000, 1],
    "broken before the first byte": [0],
    "no answer at all": ["hang up"],
    "no ranges after a break": [100_000, "no ranges"],
    "a range that is refused": [100_000, "no range"],
    "busy for a moment": ["500", "503"],
    "sent on": ["to /elsewhere/val.zip"],
    "stalled": ["stall"],
}


@pytest.mark.parametrize("name", OVERCOME)
def test_what_goes_wrong_on_the_way_is_overcome(server: FaultyServer, tmp_path: Path, name: str) -> None:
    server.faults["val.zip"] = list(OVERCOME[name])
    get([piece_of(tmp_path, server)])
    assert images_in(tmp_path) == IMAGES
    assert not server.faults["val.zip"], "the fault was not met"


REFUSED: dict[str, tuple[str | int, str]] = {
    "length too long": ("long", "the server has .* bytes, and the file has .* it is another one"),
    "length too short": ("short", "the server has .* bytes, and the file has .* it is another one"),
    "not there": ("404", "the server says 404"),
    "forbidden": ("403", "the server says 403"),
    "a page": ("page", "a web page, not a file"),
    "sent around in a circle": ("to /val.zip", "the server says 302"),
    "sent on to ftp": ("to ftp://127.0.0.1/val.zip", "sends on to ftp://"),
    "sent on to a file": ("to file:///etc/passwd", "to .*file:///etc/passwd"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_file_is_refused_in_a_line_and_leaves_nothing(
    server: FaultyServer, tmp_path: Path, name: str
) -> None:
    fault, message = REFUSED[name]
    server.faults["val.zip"] = [fault] * 40
    refused(piece_of(tmp_path, server), message)
    assert images_in(tmp_path) == {}
    assert not (tmp_path / "downloads").exists()
    server.faults.clear()
    get([piece_of(tmp_path, server)])
    assert images_in(tmp_path) == IMAGES


def test_without_a_stated_size_a_short_length_is_found_when_it_is_unpacked(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.faults["val.zip"] = ["short"]
    refused(
        piece_of(tmp_path, server, bytes=None, checksum=""),
        r"val\.zip: is damaged or cut off .*; deleted it, give the same command",
    )
    assert images_in(tmp_path).keys() <= IMAGES.keys() | {"downloads/val.zip.unpacking"}
    get([piece_of(tmp_path, server, bytes=None, checksum="")])
    assert images_in(tmp_path) == IMAGES


@pytest.mark.parametrize("fault", ["long", "another file"])
def test_a_wrong_checksum_or_length_is_refused_where_no_size_is_stated(
    server: FaultyServer, tmp_path: Path, fault: str
) -> None:
    server.faults["val.zip"] = [fault] * 9
    if fault == "another file":
        server.files["val.zip"] = OTHER
    refused(piece_of(tmp_path, server, bytes=None), "changed 3 times" if fault == "long" else "is not the expected")
    assert not (tmp_path / "val").exists()


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_checksums_of_three_kinds_are_compared(server: FaultyServer, tmp_path: Path, algorithm: str) -> None:
    import hashlib

    digest = hashlib.new(algorithm, ARCHIVE).hexdigest()
    refused(piece_of(tmp_path, server, checksum=digest[::-1]), f"{algorithm} .* is not the expected .*; deleted it")
    get([piece_of(tmp_path, server, checksum=digest)])
    assert images_in(tmp_path) == IMAGES


def test_a_file_that_changes_between_two_tries_is_not_mixed(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["val.zip"] = [100_000, 0, 0]
    stated = {"bytes": None, "checksum": ""}
    refused(piece_of(tmp_path, server, **stated), "broke off 3 times")
    assert (tmp_path / "downloads" / "val.zip.part").stat().st_size == 100_000
    server.files["val.zip"], server.versions["val.zip"] = OTHER, "2"
    get([piece_of(tmp_path, server, **stated)])
    assert images_in(tmp_path) == {name: content[::-1] for name, content in IMAGES.items()}


@pytest.mark.parametrize("end", [1, 30, 5_000, 100_000, len(ARCHIVE) - 30])
def test_an_archive_that_is_cut_off_at_its_place_is_refused(server: FaultyServer, tmp_path: Path, end: int) -> None:
    server.files["val.zip"] = ARCHIVE[:-end]
    refused(piece_of(tmp_path, server, bytes=None, checksum=""), "is damaged or cut off .*; deleted it")
    assert not (tmp_path / "downloads" / "val.zip").exists()
    assert not [path for path in tmp_path.rglob("*.jpg") if path.read_bytes() != IMAGES[f"val/{path.name}"]]


def test_an_archive_with_damaged_members_is_refused_by_their_crc(server: FaultyServer, tmp_path: Path) -> None:
    content = IMAGES["val/7.jpg"]
    at = ARCHIVE.index(content[100:200])
    server.files["val.zip"] = ARCHIVE[:at] + b"\0" * 50 + ARCHIVE[at + 50 :]
    refused(piece_of(tmp_path, server, bytes=None, checksum=""), "CRC.*; deleted it")
    assert not (tmp_path / "val" / "7.jpg").exists()


# ---- going on ------------------------------------------------------------------------------------------------------------


def test_a_second_call_does_nothing(server: FaultyServer, tmp_path: Path) -> None:
    get([piece_of(tmp_path, server)])
    asked = len(server.asked)
    piece = piece_of(tmp_path, server)
    assert piece.state == "there"
    get([piece])
    assert len(server.asked) == asked
    assert not (tmp_path / "downloads").exists()


def test_archives_are_kept_where_that_is_wished_and_serve_again(server: FaultyServer, tmp_path: Path) -> None:
    get([piece_of(tmp_path, server)], keep_archives=True)
    assert images_in(tmp_path).keys() == IMAGES.keys() | {"downloads/val.zip"}
    for path in (tmp_path / "val").iterdir():
        path.unlink()
    (tmp_path / "val").rmdir()
    piece = piece_of(tmp_path, server)
    assert piece.state == "unpack"
    get([piece])
    assert images_in(tmp_path) == IMAGES
    assert len(server.gets()) == 1


class Stop(BaseException):
    """As SIGTERM and Ctrl-C, and at places of one's choice."""


@pytest.mark.parametrize("at", range(0, 13, 3))
def test_a_process_that_ends_while_it_unpacks_is_gone_on_with(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    replace, left = os.replace, [at + 3]  # of the part, of the note

    def replace_some(source: object, target: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stop
        replace(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace_some)
        with pytest.raises(Stop):
            get([piece_of(tmp_path, server)])
    piece = piece_of(tmp_path, server)
    assert piece.state == "unpack"
    get([piece])
    assert images_in(tmp_path) == IMAGES
    assert len(server.gets()) == 1


def test_what_one_split_left_unfinished_is_remembered_while_another_is_unpacked(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["val.zip"] = both = zip_of({**IMAGES, "train/1.jpg": b"train"})
    stated = {"bytes": len(both), "checksum": sha256(both)}
    with monkeypatch.context() as patch:
        patch.setattr(get_module, "unpack", lambda *words: (tmp_path / "val").mkdir() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            get([piece_of(tmp_path, server, **stated)])
    get([piece_of(tmp_path, server, **stated, members={"train/": "train/"})])
    assert (tmp_path / "train" / "1.jpg").is_file()
    piece = piece_of(tmp_path, server, **stated)
    assert piece.state == "unpack"
    get([piece])
    assert images_in(tmp_path) == {**IMAGES, "train/1.jpg": b"train"}
    assert len(server.gets()) == 1


def test_an_end_after_all_is_unpacked_leaves_no_archive_behind(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(get_module, "_tidy", stop)
        with pytest.raises(Stop):
            get([piece_of(tmp_path, server)])
    assert (tmp_path / "downloads" / "val.zip").exists()
    piece = piece_of(tmp_path, server)
    assert piece.state == "there"
    get([piece])
    assert images_in(tmp_path) == IMAGES


CHILD = """
import sys
from pathlib import Path
from beit3_bench.harness.data.get import get
from beit3_bench.harness.data.plan import Piece, _missing
from beit3_bench.tasks.places import Place
root, url, checksum = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
piece = Piece(Place("val.zip", url=url + "/val.zip", checksum=checksum, members={"val/": "val/"}), root)
piece.missing = ["val/"]
get([piece])
"""


def test_a_process_that_is_killed_is_gone_on_with(server: FaultyServer, tmp_path: Path) -> None:
    server.delay = 0.3
    part, have = tmp_path / "downloads" / "val.zip.part", 0
    command = [sys.executable, "-c", CHILD, str(tmp_path), server.url, sha256(ARCHIVE)]
    for _ in range(2):
        with subprocess.Popen(command) as child:
            while child.poll() is None and not (part.exists() and part.stat().st_size > have):
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
        have = part.stat().st_size
    server.delay = 0
    get([piece_of(tmp_path, server)])
    assert images_in(tmp_path) == IMAGES
    assert any(server.gets()), "no call went on where the one before was killed"


def test_two_processes_do_not_get_the_same_data(server: FaultyServer, tmp_path: Path) -> None:
    with get_module._alone(tmp_path), pytest.raises(BenchError, match=f"process {os.getpid()} on .* is getting data"):
        get([piece_of(tmp_path, server)])


@pytest.mark.parametrize("free", [50_000, 300_000])
def test_a_disk_that_fills_is_a_line_and_gone_on_with(server: FaultyServer, tmp_path: Path, free: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        facts = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(facts.f_bavail * facts.f_frsize - free))
        piece = piece_of(disk, server, bytes=None, checksum="")
        with pytest.MonkeyPatch.context() as patch:  # others fill it meanwhile
            patch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1 << 40})())
            refused(piece, "the disk is full; free some space and give the same command again")
        refused(piece_of(disk, server), "bytes more, .* are free; free some space|the disk is full; free")
        (disk / "filler").unlink()
        get([piece_of(disk, server)])
        assert images_in(disk) == IMAGES
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- what is there -----------------------------------------------------------------------------------------------------------


def test_files_that_are_there_stay_and_the_others_are_added(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    kept = tmp_path / "val" / "3.jpg"
    kept.write_bytes(IMAGES["val/3.jpg"])
    before = kept.stat().st_mtime_ns
    assert piece_of(tmp_path, server).state == "there"  # nothing says how many there are
    get([piece_of(tmp_path, server, files=12)])
    assert images_in(tmp_path) == IMAGES
    assert kept.stat().st_mtime_ns == before


def test_a_file_of_ones_own_is_never_replaced(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "3.jpg").write_bytes(b"mine")
    refused(piece_of(tmp_path, server, files=12), r"val/3\.jpg: is there, and is not what val\.zip holds; move it away")
    assert (tmp_path / "val" / "3.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("link", ["val", "downloads", "val/3.jpg", "val/.3.jpg.part", "downloads/val.zip.part"])
def test_no_link_is_followed(server: FaultyServer, tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / link).parent.mkdir(parents=True)
    outside.mkdir()
    target = outside if link in ("val", "downloads") else outside / "mine"
    if target != outside:
        target.write_bytes(b"mine")
    (root / link).symlink_to(target)
    with pytest.raises(BenchError):
        get([piece_of(root, server, files=12)])
    assert [path.read_bytes() for path in outside.rglob("*")] == ([] if target == outside else [b"mine"])


# ---- archives that people lay there ------------------------------------------------------------------------------------------------


def test_an_archive_that_was_laid_into_the_folder_is_unpacked_and_stays(server: FaultyServer, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as file:
        for name, content in IMAGES.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    stated = {"file": "val.tar.gz", "steps": ("ask for it",), "members": {"val/": "val/"}}

    def asked_for() -> Piece:
        place = Place(**stated)
        return Piece(place, tmp_path, missing=place.missing(tmp_path))

    assert asked_for().state == "by hand"
    get([asked_for()])
    (tmp_path / "val.tar.gz").write_bytes(stream.getvalue()[:-100])
    refused(asked_for(), "is damaged or cut off .*; get it again, or move it away")
    (tmp_path / "val.tar.gz").write_bytes(stream.getvalue())
    get([asked_for()])
    assert images_in(tmp_path) == IMAGES | {"val.tar.gz": stream.getvalue()}


def test_an_archive_of_ones_own_is_compared_with_the_official_one(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "val.zip").write_bytes(OTHER)
    refused(piece_of(tmp_path, server), "instead of .*; get it again, or move it away")
    (tmp_path / "val.zip").write_bytes(ARCHIVE)
    get([piece_of(tmp_path, server)])
    assert images_in(tmp_path) == IMAGES | {"val.zip": ARCHIVE}
    assert server.asked == []


# ---- images that are files of their own ----------------------------------------------------------------------------------------------


def pictures_of(root: Path, server: FaultyServer, names: list[str], **stated: object) -> Piece:
    import json

    root.mkdir(exist_ok=True)
    (root / "list.json").write_text(json.dumps({"images": [{"file_name": name} for name in names]}))
    named = {
        "url": f"{server.url}/a/",
        "other_url": f"{server.url}/b/",
        "members": {"val": "val/"},
        "listed_in": "list.json",
    }
    place = Place("val-images", **(named | {"files": len(names)} | stated))
    return Piece(place, root, missing=_missing(place, root, lambda target: None))


def test_pictures_are_fetched_one_by_one_and_only_those_that_lack(server: FaultyServer, tmp_path: Path) -> None:
    server.files |= {f"{n}.jpg": content for n, content in enumerate(IMAGES.values())}
    server.faults = {"3.jpg": [10, "500"], "5.jpg": ["hang up"]}
    names = [f"{n}.jpg" for n in range(12)]
    get([pictures_of(tmp_path / "root", server, names)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "root" / "val").iterdir()} == {
        f"{n}.jpg": content for n, content in enumerate(IMAGES.values())
    }
    (tmp_path / "root" / "val" / "7.jpg").unlink()
    server.asked.clear()
    get([pictures_of(tmp_path / "root", server, names)])
    assert [path for _, path, _ in server.asked] == ["/a/7.jpg"]
    assert pictures_of(tmp_path / "root", server, names).state == "there"


def test_pictures_that_one_place_refuses_come_from_the_other(server: FaultyServer, tmp_path: Path) -> None:
    server.files |= {f"{n}.jpg": content for n, content in enumerate(IMAGES.values())}
    names = [f"{n}.jpg" for n in range(12)]
    server.faults = {name: ["403"] for name in names}
    get([pictures_of(tmp_path / "root", server, names)])
    assert len(list((tmp_path / "root" / "val").iterdir())) == 12
    assert sum(path.startswith("/b/") for _, path, _ in server.asked) >= 1
    names += ["lost.jpg"]
    refused(pictures_of(tmp_path / "root", server, names), r"1 of 13 images are not given out \(lost\.jpg")


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/b.jpg", "", ".hidden", "..", "x\0.jpg", "a\\b.jpg"])
def test_names_of_pictures_are_names(server: FaultyServer, tmp_path: Path, name: str) -> None:
    piece = pictures_of(tmp_path / "root", server, ["0.jpg"])
    with pytest.raises(BenchError, match=r"images\[1\]: .* is no plain name of a file"):
        pictures_of(tmp_path / "root", server, ["0.jpg", name])
    refused(piece, r"images\[1\]: .* is no plain name of a file")
    assert server.asked == []


def test_as_many_pictures_as_their_list_names_are_all_of_them(server: FaultyServer, tmp_path: Path) -> None:
    server.files["0.jpg"] = b"image"
    get([pictures_of(tmp_path / "root", server, ["0.jpg"], files=4_500)])
    assert pictures_of(tmp_path / "root", server, ["0.jpg"], files=4_500).state == "there"
