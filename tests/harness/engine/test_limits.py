"""The command line where the environment is not as it should be: one line, exit code 2."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native import invoke, run_words

from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.batches import decode_ahead


def command(*words: object, limit: tuple[int, int] | None = None, drop: tuple[str, ...] = (), **environment: str):
    """The command line in a process of its own, under a resource limit."""
    own = {k: v for k, v in os.environ.items() if k not in drop} | environment
    return subprocess.run(
        [sys.executable, "-m", "beit3_bench.harness", *map(str, words)],
        env=own,
        preexec_fn=(lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))) if limit else None,
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.split("\n") if line and not line.startswith("warning: ")]
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done.stderr
    return lines[0]


@pytest.mark.parametrize("size", ["abc", "", "-3", "9" * 30])
def test_errors_are_told_under_any_world_size(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    outcome = invoke("tasks", "nosuch")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert outcome.stderr.startswith("error: unknown task 'nosuch'")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc': expected a whole number"),
        ({"WORLD_SIZE": "2"}, "RANK is not set; start with torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "two", "LOCAL_RANK": "0"}, "RANK='two'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "x"}, "MASTER_PORT='x'"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "finetune"])
def test_half_a_launcher_is_told_in_one_line(native, monkeypatch, tmp_path, variables, message, verb):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = run_words(native, "flickr30k")
    if verb == "finetune":
        words = ["finetune", *words[1:], "--preset", "tiny"]
    outcome = invoke(*words, "--output", tmp_path / "run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert message in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "x", "RANK": "7", "PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "x"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "abc"},
    ],
)
def test_what_is_left_of_a_launcher_does_not_hinder_one_process(native, monkeypatch, tmp_path, variables):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = ["finetune", *run_words(native, "flickr30k")[1:], "--preset", "tiny", "--output", tmp_path / "out"]
    options = {"steps": 1, "batch": 4, "warmup_steps": 0, "warmup_epochs": 0}
    outcome = invoke(*words, *(word for key, value in options.items() for word in ("-o", f"{key}={value}")))
    assert outcome.exit_code == 0, outcome.stderr


def nobody(uid: int) -> None:
    raise KeyError(uid)


def test_a_user_without_a_home_runs_and_is_told_what_pins_need(native, monkeypatch, tmp_path):
    released = tmp_path / "beit3_base_patch16_384_f30k_retrieval.pth"
    shutil.copy(native.checkpoint("flickr30k"), released)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("BEIT3_BENCH_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    words = [*run_words(native, "flickr30k"), "--limit", 2, "--tokenizer", native.world / "beit3.spm"]
    assert invoke(*words, "--output", tmp_path / "own").exit_code == 0, "one's own checkpoint needs no pins"
    words[words.index("--checkpoint") + 1] = released
    outcome = invoke(*words, "--output", tmp_path / "run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert "set HOME, or BEIT3_BENCH_CACHE to a writable folder" in outcome.stderr
    words[words.index("--checkpoint") + 1] = "~/x.pth"
    outcome = invoke(*words, "--output", tmp_path / "run")
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
    assert "~/x.pth: no such home folder is known" in outcome.stderr
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    words[words.index("~/x.pth")] = released
    assert invoke(*words, "--output", tmp_path / "run").exit_code == 0


def test_a_home_that_is_no_folder_of_its_own_is_none(monkeypatch):
    from beit3_bench.backbones.pins import cache_folder

    monkeypatch.delenv("BEIT3_BENCH_CACHE", raising=False)
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(BenchError, match="no home folder is known"):
            cache_folder()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not counted here")
def test_too_few_open_files_are_told_before_workers_start(monkeypatch):
    few = len(os.listdir("/proc/self/fd")) + 15
    monkeypatch.setattr(resource, "getrlimit", lambda which: (few, few))
    with pytest.raises(
        BenchError, match=rf"2 decoding processes need about \d+ open files, {few} are allowed; use fewer"
    ):
        next(decode_ahead([1, 2], None, 2, False))  # type: ignore[arg-type]
    assert list(decode_ahead([1, 2], None, 0, False)) == [1, 2]  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
@pytest.mark.parametrize("megabytes", [150, 900])
def test_memory_that_ends_during_an_import_is_one_line(native, tmp_path, megabytes):
    words = [*run_words(native, "flickr30k"), "--output", tmp_path / "run"]
    assert "not enough memory" in one_line(command(*words, limit=(resource.RLIMIT_AS, megabytes << 20)))
    assert not (tmp_path / "run").exists()


def test_an_import_that_fails_before_the_command_line_is_there_is_one_line(tmp_path):
    (tmp_path / "click.py").write_text("raise MemoryError")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert "does not start here (MemoryError)" in one_line(command("tasks", PYTHONPATH=path))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not counted here")
@pytest.mark.parametrize("files", [8, 16, 20, 24])
def test_a_run_with_few_open_files_ends_in_one_line_or_a_result(native, tmp_path, files):
    words = [*run_words(native, "flickr30k"), "--output", tmp_path / "run"]
    words[words.index("--workers") + 1] = 2
    assert "open files" in one_line(command(*words, limit=(resource.RLIMIT_NOFILE, files)))
    words[words.index("--workers") + 1] = 0
    assert command(*words, limit=(resource.RLIMIT_NOFILE, files)).returncode == 0


# ---- a fuzz of the environment -----------------------------------------------------------------------------------------

VARIABLES = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "HOME",
    "BEIT3_BENCH_CACHE", "BEIT3_BENCH_TIMEOUT", "BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES", "BEIT3_BENCH_MIRROR",
    "COLUMNS", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
)  # fmt: skip
CONTENTS = (
    "", " ", "abc", "-1", "0", "1", "1.5", "1e9", "0x1", "٣", "9" * 400, "nan", "inf", "true", "~", "~nosuchuser/x",
    "relative", "/dev/null", "file/below", "x" * 5000, "\x1b[31mred", "a\nb", "\udc80",
)  # fmt: skip


@pytest.mark.parametrize(
    "seeds", [pytest.param(range(15), id="few"), pytest.param(range(15, 500), id="many", marks=pytest.mark.slow)]
)
def test_any_environment_gives_a_result_or_one_line(native, monkeypatch, tmp_path, seeds):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    released = tmp_path / "beit3_base_patch16_384_f30k_retrieval.pth"
    shutil.copy(native.checkpoint("flickr30k"), released)
    words = [*run_words(native, "flickr30k"), "--limit", 1, "--tokenizer", native.world / "beit3.spm"]
    words[words.index("--checkpoint") + 1] = released
    ends: set[int] = set()
    for seed in seeds:
        chance = random.Random(seed)
        environment = {name: chance.choice(CONTENTS) for name in chance.sample(VARIABLES, chance.randint(1, 5))}
        with monkeypatch.context() as change:
            for name, value in environment.items():
                change.setenv(name, value)
            outcome = invoke(*words, "--output", tmp_path / f"run-{seed}")
        ends.add(outcome.exit_code)
        assert outcome.exit_code in (0, 2), (environment, outcome.output)
        if outcome.exit_code == 2:
            lines = [line for line in outcome.stderr.split("\n") if line and not line.startswith("warning: ")]
            assert len(lines) == 1, (environment, outcome.stderr)
            assert lines[0].startswith("error: "), environment
    assert ends == {0, 2}
