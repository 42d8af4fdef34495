"""What launchers announce in environment variables: any content is a number, nothing, or one line."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from beit3_bench.backbones.environment import announced, announced_processes, check_launch, loading_tensors_only
from beit3_bench.errors import BenchError, exhausted, requires

LAUNCHED = {"RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("text", "count"), [(None, 1), ("", 1), ("  ", 1), ("1", 1), ("8", 8), (" 16 ", 16), ("007", 7)]
)
def test_numbers_and_nothing_are_understood(monkeypatch, text, count):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if text is not None:
        monkeypatch.setenv("WORLD_SIZE", text)
    assert announced_processes() == count


@pytest.mark.parametrize(
    "text", ["abc", "0", "-1", "1.5", "1e3", "0x2", "٢", "99999999999999999999", "2 2", "$N", "\x1b[31m", "é"]
)
def test_anything_else_is_one_line_that_names_the_variable(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(
        BenchError, match=r"^WORLD_SIZE='.*'?: expected a whole number from 1 .*unset WORLD_SIZE"
    ) as caught:
        announced_processes()
    assert str(caught.value).isprintable()


def test_a_launch_that_lacks_something_is_no_launch(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    check_launch(2)
    for name in LAUNCHED:
        with monkeypatch.context() as change:
            change.delenv(name)
            with pytest.raises(
                BenchError, match=f"announces 2 processes, but {name} is not set; start with torchrun, or unset"
            ):
                check_launch(2)
    for name, value in (
        ("RANK", "2"),
        ("RANK", "x"),
        ("LOCAL_RANK", "-1"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "70000"),
    ):
        with monkeypatch.context() as change:
            change.setenv(name, value)
            with pytest.raises(BenchError, match=f"^{name}="):
                check_launch(2)


def test_values_are_numbers_in_their_range(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert announced("RANK") == 3
    with pytest.raises(BenchError, match="from 0 to 2"):
        announced("RANK", most=2)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("value", [None, "1"])
def test_libraries_cannot_run_what_is_in_a_file(monkeypatch, tmp_path, value):
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(name, raising=False)
    if value:
        monkeypatch.setenv(name, value)
    torch.save({"x": Touch(tmp_path / "executed")}, tmp_path / "x.pth")
    before = dict(os.environ)
    with loading_tensors_only():
        for asked in (None, False):
            with pytest.raises(pickle.UnpicklingError):
                torch.load(tmp_path / "x.pth", weights_only=asked)
    assert not (tmp_path / "executed").exists()
    assert dict(os.environ) == before
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert (tmp_path / "executed").exists(), "it would have"


# ---- a machine's limits -----------------------------------------------------------------------------------------------


def wrapped(cause: BaseException, error: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (wrapped(MemoryError(), ImportError("numpy did not import")), "not enough memory"),
        (wrapped(wrapped(MemoryError(), ImportError("x")), BenchError("needs mmseg")), "not enough memory"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (ImportError("libc10.so: cannot open shared object file: Too many open files"), "too many open files"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (RuntimeError("can't start new thread"), "no more threads"),
    ],
)
def test_a_machines_limits_are_known_in_every_wrapping(error, words):
    assert words in exhausted(error)


@pytest.mark.parametrize(
    "error", [ValueError("Too many open files"), ImportError("no module named x"), BenchError("bad_alloc"), OSError()]
)
def test_other_errors_are_no_limits(error):
    assert exhausted(error) is None


def test_a_stack_that_does_not_fit_into_memory_is_not_called_missing(monkeypatch):
    def short(name):
        raise ImportError("x.so: failed to map segment from shared object")

    monkeypatch.setattr("importlib.import_module", short)
    with pytest.raises(ImportError, match="failed to map"):
        requires("mmseg", "task ade20k-seg")
