"""Files of our own: no link is followed, no pipe is waited for, nothing is half written."""

from __future__ import annotations

import errno
import os

import pytest

from beit3_bench import files
from beit3_bench.errors import BenchError


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_whole_file_takes_the_place_of_a_link(tmp_path, victim, make):
    make(victim, tmp_path / "result.json")
    files.write_atomic(tmp_path / "result.json", b"new")
    assert (tmp_path / "result.json").read_bytes() == b"new"
    assert not (tmp_path / "result.json").is_symlink()
    assert victim.read_text() == "precious"


def test_link_at_a_name_that_could_be_guessed_is_not_followed(tmp_path, victim):
    (tmp_path / f".x.{os.getpid()}.part").symlink_to(victim)
    files.write_atomic(tmp_path / "x", b"new")
    assert victim.read_text() == "precious"


def test_file_changed_in_place_is_no_link_pipe_or_device(tmp_path, victim):
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "made-by-us")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("link", "is a link"), ("dangling", "is a link"), ("pipe", "pipe or device"), (".", "folder")):
        with pytest.raises(BenchError, match=said):
            files.open_own(tmp_path / name, os.O_WRONLY | os.O_CREAT)
    assert not (tmp_path / "made-by-us").exists()
    assert victim.read_text() == "precious"


def test_reading_a_pipe_or_a_device_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="is a pipe or device") as caught:
            files.open_regular(tmp_path / name)
        assert caught.value.errno == errno.ENXIO


def test_file_of_terabytes_of_holes_is_not_read(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(OSError, match="larger than 1 MiB"):
        files.read_limited(tmp_path / "sparse", 2**20)


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 300_000])
def test_a_file_is_read_whole_up_to_its_limit(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert files.read_limited(tmp_path / "file", size) == content
    if size:
        with pytest.raises(OSError, match="is larger than"):
            files.read_limited(tmp_path / "file", size - 1)


def test_a_file_that_grows_as_it_is_read_is_read_to_its_end_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"a" * 10)
    real = os.read

    def read(file, size):
        part = real(file, size)
        if path.stat().st_size < 200_000:
            with open(path, "ab") as more:
                more.write(b"b" * 50_000)
        return part

    monkeypatch.setattr(os, "read", read)
    assert len(files.read_limited(path, 2**20)) == path.stat().st_size > 200_000
    path.write_bytes(b"a" * 10)
    with pytest.raises(OSError, match="is larger than"):
        files.read_limited(path, 100_000)


def test_torch_file_on_a_full_disk_is_told_as_such_and_the_old_one_stays(tmp_path, monkeypatch):
    import torch

    files.save_atomic(tmp_path / "state.pt", {"step": 1})

    real = files._Remembering.__init__

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            pass

    monkeypatch.setattr(files._Remembering, "__init__", lambda self, file: real(self, Full()))
    with pytest.raises(BenchError, match=r"state\.pt: the disk is full"):
        files.save_atomic(tmp_path / "state.pt", {"step": 2, "x": torch.zeros(100_000)})
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.pt"]
