"""A disk that fills up during a fine-tuning: one line, exit code 2, the last good state whole, and `--resume` goes on from it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from native import invoke

from beit3_bench.harness.training.journal import read_table
from beit3_bench.harness.training.loop import TrainingLoop
from beit3_bench.harness.training.state import read_state

STEPS = 3


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def words(native, output: Path, *more: object) -> list[object]:
    options = {"steps": STEPS, "save_steps": 1, "batch": 4, "image_size": 32, "warmup_steps": 1, "log_steps": 1}
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return [
        *("finetune", "--task", "flickr30k", "--preset", "tiny", "--from-scratch", "--data-root", native.root("flickr30k")),
        *("--tokenizer", native.world / "beit3.spm", "--device", "cpu", "--workers", 0, *given, "--output", output, *more),
    ]  # fmt: skip


def leave(disk: Path, room: int) -> None:
    """Fill a disk up to so many bytes (whole pages)."""
    facts = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(facts.f_bavail * facts.f_frsize - room, 0)))


def check_one_line(done, disk: Path) -> None:
    assert done.exit_code == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the disk is full; free some space" in done.stderr
    assert not list(disk.rglob("*.part"))


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(0, id="journal"),
        pytest.param(2**14, id="last"),
        pytest.param(1.5, id="state", marks=pytest.mark.slow),
        pytest.param(1.01, id="just not", marks=pytest.mark.slow),
    ],
)
def test_disk_that_fills_up_at_a_step_keeps_the_step_before(native, disk, monkeypatch, room):
    update = TrainingLoop._update

    def filled(self, step, batches):
        if step == 1:
            size = (self.folder / "last.pth").stat().st_size
            leave(disk, int(room * size) if isinstance(room, float) else room)
        return update(self, step, batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", filled)
        check_one_line(invoke(*words(native, disk / "t")), disk)
    assert read_state(disk / "t" / "state.pt")["step"] == 1
    assert torch.load(disk / "t" / "last.pth", weights_only=True)["model"]
    (disk / "filler").unlink()
    done = invoke(*words(native, disk / "t", "--resume"))
    assert done.exit_code == 0, done.stderr
    assert [row["step"] for row in read_table(disk / "t" / "log.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("room", [0, 4096, 3 * 4096])
def test_disk_that_is_full_from_the_start_leaves_nothing_torn(native, disk, room):
    leave(disk, room)
    done = invoke(*words(native, disk / "t"))
    check_one_line(done, disk)
    for path in (disk / "t").rglob("*") if (disk / "t").exists() else ():
        if path.name == "beit3.spm":
            assert path.read_bytes() == (native.world / "beit3.spm").read_bytes()


def test_what_a_killed_save_left_is_cleared_by_the_next_start(native, tmp_path):
    folder = tmp_path / "t"
    assert invoke(*words(native, folder)).exit_code == 0
    for name in (
        ".state.pt.0123456789abcdef.part",
        ".last.pth.77.part",
    ):  # as this version and an earlier one name them
        (folder / name).write_bytes(b"half")
    (folder / "my.part").write_text("mine")
    assert invoke(*words(native, folder, "--resume")).exit_code == 0
    assert [p.name for p in folder.glob("*.part")] + [p.name for p in folder.glob(".*.part")] == ["my.part"]


def test_tensorboard_events_that_find_no_room_are_told_in_one_line(tmp_path, monkeypatch):
    import errno

    from torch.utils.tensorboard import SummaryWriter

    from beit3_bench.errors import BenchError
    from beit3_bench.harness.tracking import TENSORBOARD, Trackers
    from beit3_bench.harness.training.journal import LOG, Journal

    def full(*a, **k):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trackers = Trackers(tmp_path, [TENSORBOARD], {})
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with pytest.raises(BenchError, match="tensorboard: the disk is full"):
        Journal(tmp_path, trackers=trackers).write(LOG, {"step": 1, "loss": 0.5})
    trackers.close()
    monkeypatch.setattr(SummaryWriter, "add_hparams", full)
    with pytest.raises(BenchError, match="tensorboard: the disk is full"):
        Trackers(tmp_path, [TENSORBOARD], {"task": "x"})


# ---- somebody else's folder -------------------------------------------------------------------------------------------

OURS = [
    "lock",
    "config.json",
    "log.csv",
    "validation.csv",
    "curves.png",
    "state.pt",
    "last.pth",
    "best.pth",
    "beit3.spm",
    "tensorboard",
    "trackers.json",
]


@pytest.mark.parametrize("name", OURS)
def test_training_writes_through_no_link(native, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "config.json").write_text("{}")
    (tmp_path / "t" / name).unlink(missing_ok=True)
    (tmp_path / "t" / name).symlink_to(victim)
    done = invoke(*words(native, tmp_path / "t", "--overwrite"))
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{name}: is a link, and nothing is written through links" in done.stderr
    assert victim.read_text() == "precious"


def test_other_names_of_the_files_of_a_training_keep_what_they_hold(native, tmp_path):
    assert invoke(*words(native, tmp_path / "t")).exit_code == 0
    shutil.copytree(tmp_path / "t", tmp_path / "copy", copy_function=os.link)
    before = {p: p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    more = [
        str(word).replace(f"steps={STEPS}", f"steps={STEPS + 1}")
        for word in words(native, tmp_path / "t", "--overwrite")
    ]
    assert invoke(*more).exit_code == 0
    assert {p: p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()} == before
