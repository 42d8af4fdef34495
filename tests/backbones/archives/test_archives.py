"""Members of archives: how they are spelt, read in any process, and what is refused."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from beit3_bench.backbones.archives import members
from beit3_bench.backbones.archives.members import adopt, exists, known_archives, member_at, open_archive, size_of
from beit3_bench.backbones.image_hashes import image_hash, noting_image_hashes
from beit3_bench.backbones.images import MAX_BYTES, opened, read_image_file
from beit3_bench.errors import BenchError


def jpeg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_parquet(path: Path, cells: list[bytes | None], group: int = 2) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": cell, "path": f"{n}.jpg"}} for n, cell in enumerate(cells)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([("image", kind)])), path, row_group_size=group)
    return path


CONTENTS = {"a/x.jpg": jpeg("red"), "a/y.jpg": jpeg("blue"), "a/ü.jpg": jpeg("lime")}


@pytest.fixture(params=["stored", "deflated", "tar", "pax"])
def archive(request, tmp_path) -> Path:
    if request.param == "stored":
        return make_zip(tmp_path / "A.ZIP", CONTENTS, zipfile.ZIP_STORED)
    if request.param == "deflated":
        return make_zip(tmp_path / "a.zip", CONTENTS)
    long = {f"{'deep/' * 60}{name}": content for name, content in CONTENTS.items()} if request.param == "pax" else {}
    return make_tar(tmp_path / "a.tar", CONTENTS | long)


def refusal(path: Path) -> str:
    with pytest.raises(BenchError) as caught:
        open_archive(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert "; " in line
    return line


# ---- reading -----------------------------------------------------------------------------------------------------------


def test_members_are_read_as_files_are(archive, tmp_path):
    for name, content in CONTENTS.items():
        path = f"{archive}!{name}"
        file = tmp_path / "one.jpg"
        file.write_bytes(content)
        assert exists(path)
        assert size_of(path) == len(content)
        assert read_image_file(path) == content
        assert image_hash(path) == image_hash(file)
        with noting_image_hashes() as noted, opened(path) as image:
            assert image.size == (8, 6)
        assert noted == {path: image_hash(file)}
    assert set(CONTENTS) <= set(open_archive(archive))


def test_an_archive_of_another_kind_of_offset_is_read(tmp_path):
    """A zip behind other bytes, as self-extracting archives are, and with extra fields longer than the room that is read ahead."""
    path = make_zip(tmp_path / "plain.zip", {})
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x.jpg")
        info.extra = struct.pack("<HH", 0xCAFE, 300) + bytes(300)
        archive.writestr(info, jpeg())
    moved = tmp_path / "moved.zip"
    moved.write_bytes(b"#!/bin/sh\n" * 7 + path.read_bytes())
    assert read_image_file(f"{moved}!x.jpg") == jpeg()


def test_a_file_with_an_exclamation_mark_in_its_name_is_a_file(tmp_path):
    inside = make_zip(tmp_path / "b.zip", {"other.jpg": jpeg()})
    for name in ("wow!.jpg", "a.zip!x.jpg", "b.zip!x.jpg"):
        (tmp_path / name).write_bytes(jpeg())
        assert member_at(tmp_path / name) is None
        assert exists(tmp_path / name)
        assert read_image_file(tmp_path / name) == jpeg()
    folder = tmp_path / "c.zip!"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(jpeg("blue"))
    assert read_image_file(folder / "x.jpg") == jpeg("blue")
    assert exists(f"{inside}!other.jpg")
    assert not exists(f"{inside}!missing.jpg")
    assert not exists(tmp_path / "none.zip!x.jpg")


def _reads(paths: list[str], archives: dict) -> list[bytes]:
    adopt(archives)
    members._index = None  # nothing is indexed again
    return [read_image_file(path) for path in paths]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_without_indexing_again(archive, method):
    paths = [f"{archive}!{name}" for name in CONTENTS]
    assert read_image_file(paths[0])  # the handle is open when others start
    archives = {str(archive): open_archive(archive)}
    with multiprocessing.get_context(method).Pool(2) as pool:
        read = pool.starmap(_reads, [(paths, archives)] * 8)
    assert all(contents == list(CONTENTS.values()) for contents in read)
    assert str(archive) in known_archives()


def test_an_index_of_many_members_travels_in_no_time(tmp_path):
    """118,000 members in a worker: pickled and read back in well under a second, on a slow machine too."""
    import time

    names = {f"val2014/COCO_val2014_{n:012d}.jpg": b"x" for n in range(20_000)}
    path = make_zip(tmp_path / "many.zip", names, zipfile.ZIP_STORED)
    index = open_archive(path)
    begin = time.process_time()
    copied = pickle.loads(pickle.dumps(index))
    assert time.process_time() - begin < 0.2
    assert copied.read("val2014/COCO_val2014_000000019999.jpg") == b"x"


def test_an_archive_that_was_replaced_is_indexed_again_and_told_to_who_reads_on(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"x.jpg": jpeg()})
    old = open_archive(path)
    make_zip(path, {"x.jpg": jpeg("blue"), "y.jpg": jpeg()})
    with pytest.raises(BenchError, match=r"a\.zip: was replaced while it was read; give the same command again"):
        old.read("x.jpg")
    assert open_archive(path).read("x.jpg") == jpeg("blue")


def test_a_tar_of_tars_is_read_in_place(tmp_path):
    inner = {
        f"n{k}.tar": make_tar(tmp_path / "i.tar", {f"n{k}_1.JPEG": jpeg(c)}).read_bytes()
        for k, c in ((1, "red"), (2, "blue"))
    }
    outer = make_tar(tmp_path / "train.tar", inner)
    assert read_image_file(f"{outer}!n2.tar!n2_1.JPEG") == jpeg("blue")


def test_links_of_a_tar_name_what_they_link_to_inside_and_nothing_outside(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("x.jpg")
        info.size = len(jpeg())
        archive.addfile(info, io.BytesIO(jpeg()))
        for name, kind, target in (("y.jpg", tarfile.LNKTYPE, "x.jpg"), ("z.jpg", tarfile.SYMTYPE, "/etc/passwd")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    assert read_image_file(f"{path}!y.jpg") == jpeg()
    assert not exists(f"{path}!z.jpg")


# ---- parquet -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_parquet_file_are_members(tmp_path):
    cells = [jpeg(c) for c in ("red", "blue", "lime", "black", "white")]
    path = make_parquet(tmp_path / "a.parquet", cells)
    for n, cell in enumerate(cells):
        assert read_image_file(f"{path}!{n:09d}/image") == cell
        assert size_of(f"{path}!{n:09d}/image") == len(cell)
    for wrong in (f"{5:09d}/image", f"{0:09d}/other", "0/image", "x/image", f"{0:09d}"):
        assert not exists(f"{path}!{wrong}")
        with pytest.raises(BenchError, match="no such member"):
            read_image_file(f"{path}!{wrong}")


def test_a_parquet_row_without_an_image_is_told(tmp_path):
    path = make_parquet(tmp_path / "a.parquet", [jpeg(), None])
    for ask in (size_of, read_image_file):
        with pytest.raises(BenchError, match=r"a\.parquet: row 1 has no bytes in column 'image'; get the file again"):
            ask(f"{path}!{1:09d}/image")


def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path):
    path = make_parquet(tmp_path / "a.parquet", [jpeg()] * 5)
    path.write_bytes(path.read_bytes()[:-20])
    assert "is no whole parquet file" in refusal(path)


def test_processes_read_a_parquet_file(tmp_path):
    cells = [jpeg(c) for c in ("red", "blue", "lime")]
    path = make_parquet(tmp_path / "a.parquet", cells)
    paths = [f"{path}!{n:09d}/image" for n in range(3)]
    assert read_image_file(paths[0]) == cells[0]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.starmap(_reads, [(paths, {str(path): open_archive(path)})] * 4) == [cells] * 4


# ---- what is refused -----------------------------------------------------------------------------------------------------


def test_a_zip_that_is_cut_off_is_refused(tmp_path):
    whole = make_zip(tmp_path / "whole.zip", CONTENTS).read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 5):
        path = tmp_path / f"cut{end}.zip"
        path.write_bytes(whole[:end])
        assert "is no whole zip archive" in refusal(path)


@pytest.mark.parametrize("end", [100, 700, 1024, 1030, -10240 + 512])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, end):
    """In a header, in a member, behind one member, and where only the end mark is gone."""
    whole = make_tar(tmp_path / "whole.tar", {"x.jpg": jpeg()[:400], "y.jpg": jpeg()[:400]}).read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[:end] if end > 0 else whole[: 4 * 512])
    assert "is no whole tar archive" in refusal(path)


def test_an_inner_tar_that_is_cut_off_is_refused(tmp_path):
    inner = make_tar(tmp_path / "i.tar", {"x.jpg": jpeg()[:400], "y.jpg": jpeg()[:400]}).read_bytes()[:1024]
    path = make_tar(tmp_path / "o.tar", {"n1.tar": inner})
    with pytest.raises(BenchError, match=r"o\.tar!n1\.tar: is no whole tar archive"):
        open_archive(path)


@pytest.mark.parametrize(("mode", "mend"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_a_compressed_tar_is_refused_with_the_mend(tmp_path, mode, mend):
    assert mend in refusal(make_tar(tmp_path / "a.tar", CONTENTS, mode))


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:/x.jpg", "a\\..\\x.jpg", ".."])
def test_members_that_climb_out_are_refused(tmp_path, name):
    for path in (make_zip(tmp_path / "a.zip", {name: jpeg()}), make_tar(tmp_path / "a.tar", {name: jpeg()})):
        assert "points out of the archive" in refusal(path)


@pytest.mark.parametrize("other", ["a/x.jpg", "./a/x.jpg", "a//x.jpg"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_collide_are_refused(tmp_path, other):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x.jpg", jpeg())
        archive.writestr(other, jpeg("blue"))
    assert "comes twice" in refusal(path)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a/x.jpg", other):
            archive.addfile(tarfile.TarInfo(name))
    assert "comes twice" in refusal(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"x.jpg": jpeg()}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # flags of the central directory
    path.write_bytes(content)
    assert "is encrypted; unpack the archive with its password" in refusal(path)


def test_a_zip_of_another_compression_is_refused(tmp_path):
    assert "zip -0" in refusal(make_zip(tmp_path / "a.zip", {"x.jpg": jpeg()}, zipfile.ZIP_LZMA))


def test_a_damaged_member_is_told(tmp_path):
    for method, size in ((zipfile.ZIP_STORED, 40), (zipfile.ZIP_DEFLATED, 40)):
        path = make_zip(tmp_path / f"{method}.zip", {"x.jpg": jpeg()}, method)
        content = bytearray(path.read_bytes())
        content[size + 60] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(BenchError, match=r"zip!x\.jpg: the member is damaged \(.*\); get the archive again"):
            read_image_file(f"{path}!x.jpg")


def test_a_member_larger_than_any_image_is_not_unpacked(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"x.jpg": bytes(100)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\1\2") + 24, MAX_BYTES + 1)
    path.write_bytes(content)
    with pytest.raises(BenchError, match="too large"):
        read_image_file(f"{path}!x.jpg")


def test_a_bomb_that_says_it_is_small_is_stopped_at_that_size(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"x.jpg": bytes(10_000_000)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\1\2") + 24, 100)
    path.write_bytes(content)
    with pytest.raises(BenchError, match="instead of 100"):
        read_image_file(f"{path}!x.jpg")


def test_a_missing_member_is_told_with_its_archive(archive):
    with pytest.raises(BenchError, match=r"!a/none\.jpg: the archive has no such member"):
        read_image_file(f"{archive}!a/none.jpg")
    with pytest.raises(BenchError, match="no such member"), opened(f"{archive}!a/none.jpg"):
        pass
    assert image_hash(f"{archive}!a/none.jpg") is None


def test_what_is_no_archive_is_refused(tmp_path):
    fifo = tmp_path / "a.zip"
    os.mkfifo(fifo)
    assert "cannot be read" in refusal(fifo)
    (tmp_path / "b.rar").write_bytes(b"Rar!")
    assert "is no archive that is read in place" in refusal(tmp_path / "b.rar")
