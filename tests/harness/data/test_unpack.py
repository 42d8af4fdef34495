"""Hostile and broken archives: refused in a line, and nothing is written outside or through a link."""

from __future__ import annotations

import errno
import io
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from faulty_server import zip_of

from beit3_bench.errors import BenchError
from beit3_bench.harness.data.unpack import Damaged, Hostile, unpack

GOOD = {"val/1.jpg": b"one", "val/deeper/2.jpg": b"two", "notes.txt": b"not wanted"}


def special(name: str, mode: int, content: bytes = b"/etc/passwd") -> bytes:
    """A zip with a member that is no plain file, as Info-ZIP stores links."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("val/1.jpg", b"one")
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        file.writestr(info, content)
    return stream.getvalue()


def tar_of(*members: tuple[str, bytes, str], packed: bool = False) -> bytes:
    """(name, content or place of a link, kind); kind: a type of `tarfile`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz" if packed else "w") as file:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind.encode()
            if kind == tarfile.REGTYPE.decode():
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content.decode()
                file.addfile(info)
    return stream.getvalue()


KINDS = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
FILE, LINK, HARD, DEVICE, PIPE = (kind.decode() for kind in KINDS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def run(root: Path, content: bytes, name: str = "a.zip", targets: dict[str, str] | None = None) -> int:
    archive = root.parent / name
    archive.write_bytes(content)
    wanted = {"val/": "val/"} if targets is None else targets
    return unpack(archive, {member: root / place for member, place in wanted.items()}, root)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(root: Path, kind: type[BenchError], content: bytes, name: str = "a.zip", **named: dict) -> str:
    """The line in which an archive is refused; nothing has been written."""
    outside = tree(root.parent)
    with pytest.raises(kind) as caught:
        run(root, content, name, **named)
    assert "\n" not in str(caught.value)
    left = tree(root.parent)
    assert left.pop(name) == content
    assert left == {path: data for path, data in outside.items() if path != name}, "something was written"
    return str(caught.value)


@pytest.mark.parametrize("packed", ["zip", "deflated", "tar", "tar.gz"])
def test_members_go_where_they_are_wanted_and_no_others(root: Path, packed: str) -> None:
    if "tar" in packed:
        content = tar_of(*((f"./{name}", data, FILE) for name, data in GOOD.items()), packed=packed == "tar.gz")
    else:
        content = zip_of(GOOD, stored=packed == "zip")
    name = f"a.{packed}" if "tar" in packed else "a.zip"
    assert run(root, content, name, {"val/": "images/val/"}) == 2
    assert tree(root) == {"images/val/1.jpg": b"one", "images/val/deeper/2.jpg": b"two"}
    assert run(root, content, name, {"val/": "images/val/", "notes.txt": "n.txt"}) == 1
    assert tree(root)["n.txt"] == b"not wanted"


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "val/../../evil",
        "/etc/evil",
        "val/../evil",
        "C:\\evil",
        "C:/evil",
        "val\\..\\evil",
        "..\\evil",
        "val/x\0y",
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused_wanted_or_not(root: Path, name: str) -> None:
    zipped = patched(zip_of({"val/1.jpg": b"one", "#" * len(name): b"x"}), name)
    assert "leads out of its folder" in refusal(root, Hostile, zipped)
    if "\0" not in name:
        tarred = tar_of(("val/1.jpg", b"one", FILE), (name, b"x", FILE))
        assert "leads out of its folder" in refusal(root, Hostile, tarred, "a.tar")


def patched(content: bytes, name: str) -> bytes:
    """A zip whose placeholder got a name that zipfile would not write."""
    return content.replace(b"#" * len(name), name.encode())


@pytest.mark.parametrize(
    ("mode", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "no plain file"), (stat.S_IFCHR, "no plain file")]
)
def test_links_and_devices_in_a_zip_are_refused(root: Path, mode: int, what: str) -> None:
    assert f"is {what}" in refusal(root, Hostile, special("val/2.jpg", mode))


@pytest.mark.parametrize(
    ("kind", "what"), [(LINK, "a link"), (HARD, "a link"), (DEVICE, "no plain file"), (PIPE, "no plain file")]
)
def test_links_and_devices_in_a_tar_are_refused(root: Path, kind: str, what: str) -> None:
    members = (("val/1.jpg", b"one", FILE), ("val/2.jpg", b"../../evil", kind))
    assert f"is {what}" in refusal(root, Hostile, tar_of(*members), "a.tar")


def test_a_file_below_a_link_of_the_same_archive_is_refused(root: Path) -> None:
    members = (("val/d", str(root.parent).encode(), LINK), ("val/d/evil", b"x", FILE))
    assert "is a link" in refusal(root, Hostile, tar_of(*members, packed=True), "a.tar.gz")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("val/A.jpg", "val/a.jpg"), "are one name on some disks"),
        (("val/D/1.jpg", "val/d/1.jpg"), "are one name on some disks"),
        (("val/e\u0301.jpg", "val/\u00e9.jpg"), "are one name on some disks"),
        (("val/a", "val/a/b"), "is a file and a folder"),
        (("val/a/b", "val/A"), "is a file and a folder"),
    ],
)
def test_names_that_collide_are_refused(root: Path, names: tuple[str, str], match: str) -> None:
    assert match in refusal(root, Hostile, zip_of(dict.fromkeys(names, b"x")))


def test_a_name_that_comes_twice_is_refused(root: Path) -> None:
    twice = tar_of(("val/1.jpg", b"one", FILE), ("val/1.jpg", b"two", FILE))
    assert "are one name" in refusal(root, Hostile, twice, "a.tar")


@pytest.mark.parametrize("member", ["test/", "val/9.jpg", "instances.json"])
def test_a_member_that_is_missing_is_named(root: Path, member: str) -> None:
    targets = {"val/": "val/", member: "x/" * member.endswith("/") or "x"}
    assert f"has no {member}; it is another archive" in refusal(root, Damaged, zip_of(GOOD), targets=targets)


def damaged_crc() -> bytes:
    return zip_of(GOOD).replace(b"one", b"0ne")


def encrypted() -> bytes:
    content = bytearray(zip_of(GOOD))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(signature) + offset
        content[at : at + 2] = struct.pack("<H", 1)
    return bytes(content)


def unknown_compression() -> bytes:
    content = bytearray(zip_of(GOOD))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(signature) + offset
        content[at : at + 2] = struct.pack("<H", 99)
    return bytes(content)


BROKEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("a.zip", lambda: b""),
    "cut off": ("a.zip", lambda: zip_of(GOOD)[:-5]),
    "half": ("a.zip", lambda: zip_of(GOOD)[:60]),
    "a page": ("a.zip", lambda: b"<html>" * 100),
    "crc": ("a.zip", damaged_crc),
    "encrypted": ("a.zip", encrypted),
    "compression": ("a.zip", unknown_compression),
    "tar cut off": ("a.tar", lambda: tar_of(*((name, data * 1000, FILE) for name, data in GOOD.items()))[:2000]),
    "no tar": ("a.tar", lambda: b"x" * 5000),
    "gz cut off": ("a.tar.gz", lambda: tar_of(*((n, d * 1000, FILE) for n, d in GOOD.items()), packed=True)[:-20]),
    "no gz": ("a.tar.gz", lambda: b"x" * 5000),
    "gz of no tar": ("a.tar.gz", lambda: tar_of(packed=True)[:10]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives_are_a_line(root: Path, name: str) -> None:
    file, content = BROKEN[name]
    archive = root.parent / file
    archive.write_bytes(content())
    with pytest.raises(Damaged, match=f"{file}: |encrypted") as caught:
        unpack(archive, {"val/": root / "val"}, root)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("1.jpg")) or name in ("tar cut off", "gz cut off")


def test_a_zip_that_would_fill_the_disk_is_refused_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 5})())
    assert "needs 6 bytes more, 5 are free" in refusal(root, BenchError, zip_of(GOOD))


def test_a_disk_that_fills_in_the_middle_of_a_member_leaves_no_part_of_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfileobj

    def full(stream: IO[bytes], file: IO[bytes], length: int = 0) -> None:
        if file.name.endswith(".2.jpg.part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(stream, file, length)

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(BenchError, match=r"2\.jpg: the disk is full; free some space"):
        run(root, zip_of(GOOD))
    assert tree(root) == {"val/1.jpg": b"one"}
    monkeypatch.undo()
    assert run(root, zip_of(GOOD)) == 1


def test_an_empty_file_that_a_power_cut_left_is_written_again(root: Path) -> None:
    (root / "val").mkdir()
    (root / "val" / "1.jpg").touch()
    (root / "val" / ".1.jpg.part").write_bytes(b"o")
    assert run(root, zip_of(GOOD)) == 2
    assert tree(root) == {"val/1.jpg": b"one", "val/deeper/2.jpg": b"two"}
