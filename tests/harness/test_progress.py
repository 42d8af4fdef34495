"""Progress: a bar on a terminal, lines elsewhere, nothing where nothing is to be said."""

from __future__ import annotations

import hashlib
import sys

import pytest
import toy_task
from click.testing import CliRunner
from native import run_words
from training_cases import finetune_words, mini_world, request_for

from beit3_bench.backbones.released import released_files
from beit3_bench.harness import progress
from beit3_bench.harness.cli import main
from beit3_bench.harness.progress import INTERVAL, Bar, Lines, Meter, Reporting


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_comes_every_interval_with_rate_and_time_left(clock, capsys):
    with Lines("vqav2", "step", total=1200, done=200) as meter:
        for _ in range(100):
            clock[0] += 1
            meter.advance(4, loss="1.25")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "vqav2: 320 of 1,200 steps (27%), 4 steps/s, 03:40 left, loss 1.25",
        "vqav2: 440 of 1,200 steps (37%), 4 steps/s, 03:10 left, loss 1.25",
        "vqav2: 560 of 1,200 steps (47%), 4 steps/s, 02:40 left, loss 1.25",
        "vqav2: 600 of 1,200 steps (50%) in 01:40",
    ]
    assert INTERVAL == 30


def test_work_that_is_over_within_an_interval_says_nothing(clock, capsys):
    with Lines("toy", "sample", total=40) as meter:
        clock[0] += 29
        meter.advance(40)
    assert capsys.readouterr().err == ""


def test_work_that_fails_does_not_say_that_it_is_done(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Lines("toy", "sample", total=40) as meter:  # noqa: PT012
        clock[0] += 50
        meter.advance(1)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "toy: 1 of 40 samples (2%), 50 s/sample, 32:30 left\n"


def test_bytes_and_work_of_unknown_size(clock, capsys):
    with Lines("x.pth", "B") as meter:
        clock[0] += 32
        meter.reach(64 * 2**20, None)
        clock[0] += 32
        meter.reach(128 * 2**20, 256 * 2**20)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first == "x.pth: 64.0MB, 2.00MB/s"
    assert second == "x.pth: 128MB of 256MB (50%), 2.00MB/s, 01:04 left"


def test_the_form_follows_the_stream_and_quiet_switches_both_off(monkeypatch):
    def form(reporting, **more):
        with reporting.meter("x", "step", 3, **more) as meter:
            return type(meter)

    assert form(Reporting()) is Lines
    assert form(Reporting(), shown=False) is Meter
    assert form(Reporting.unless(quiet=True)) is Meter
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert form(Reporting.unless(quiet=False)) is Bar
    assert form(Reporting(), shown=False) is Meter
    assert form(Reporting.unless(quiet=True)) is Meter


def test_a_bar_shows_what_is_done_and_the_loss(capsys):
    with Bar("vqav2", "step", 4, 1) as meter:
        meter.advance(3, loss="0.5")
    err = capsys.readouterr().err
    assert "4/4" in err
    assert "loss=0.5" in err
    assert meter.done == 4


@pytest.fixture
def at_once(monkeypatch):
    """Lines without waiting, unless they are not wanted."""
    monkeypatch.setattr(Reporting, "unless", classmethod(lambda cls, quiet: cls("none" if quiet else "lines", 0)))


def stderr_of(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_run_tells_how_far_it_is_unless_it_is_quiet(at_once, tmp_path, monkeypatch):
    toy_task.register(monkeypatch.setattr)
    data = toy_task.write_toy_data(tmp_path / "data")
    words = ["run", "--task", "toy", "--checkpoint", data / "toy.pth", "--data-root", data, "--device", "cpu"]
    words += ["--workers", 0, "--batch-size", 20, "--output"]
    loud, silent = stderr_of(*words, tmp_path / "a"), stderr_of(*words, tmp_path / "b", "--quiet")
    assert "toy: 20 of 40 samples (50%)" in loud
    assert " samples" not in silent


def test_a_verification_tells_how_far_it_is_unless_it_is_quiet(at_once, tmp_path):
    world = mini_world(tmp_path / "world")
    words = ["data", "verify", "--task", "flickr30k", "--data-root", world / "flickr30k"]
    loud, silent = stderr_of(*words), stderr_of(*words, "--quiet")
    assert "flickr30k: decoding: 1 of " in loud
    assert silent == ""


def test_a_download_tells_how_far_it_is_unless_it_is_quiet(at_once, tmp_path, monkeypatch):
    """From a file beside, in place of a server."""

    def fetched(url, path, sha256, progress):
        path.write_bytes(b"x" * 4096)
        progress(1024, 4096)
        progress(4096, 4096)
        return path

    monkeypatch.setattr("beit3_bench.download.download", fetched)
    monkeypatch.setattr("beit3_bench.backbones.pins.pin_or_check", lambda path, name: hashlib.sha256(b"").hexdigest())
    name = released_files()[0].name
    loud = stderr_of("download", name, "--output", tmp_path)
    assert "1.00kB of 4.00kB (25%)" in loud
    assert stderr_of("download", name, "--output", tmp_path, "--quiet") == ""


def test_a_probe_tells_how_far_it_is_unless_it_is_quiet(at_once, native):
    words = ["probe", *run_words(native, "imagenet")[3:]]
    loud, silent = stderr_of(*words), stderr_of(*words, "--quiet")
    assert " samples (" in loud
    assert " samples" not in silent


def test_a_training_tells_how_far_it_is_with_its_loss_unless_it_is_quiet(at_once, tmp_path):
    world = mini_world(tmp_path / "world")
    loud, silent = (
        stderr_of(*finetune_words(request_for(world, tmp_path / name, options={"steps": "2"})), "--from-scratch", *more)
        for name, *more in (("a",), ("b", "--quiet"))
    )
    assert "flickr30k: 1 of 2 steps (50%)" in loud
    assert "loss " in loud
    assert " steps" not in silent
    assert " samples" not in silent
