"""TorchScript archives read as data."""

import pickle
import zipfile
from pathlib import Path
from typing import Dict, List  # noqa: UP035

import pytest
import torch
from torch import nn

from beit3_bench.backbones.torchscript import is_torchscript, read_torchscript
from beit3_bench.errors import BenchError


class Tied(nn.Module):
    """A module that stands in two places, typed attributes, buffers, and halves."""

    sizes: List[int]  # noqa: UP006  (what TorchScript reads)
    by_name: Dict[str, int]  # noqa: UP006

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.second = self.first
        self.sizes, self.by_name = [1, 2], {"a": 1}
        self.register_buffer("number", torch.tensor(7))
        self.table = nn.Parameter(torch.randn(5, 3).half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) * self.sizes[0] * self.by_name["a"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(Tied()).save(str(tmp_path / "x.pt"))
    return tmp_path / "x.pt"


def test_tensors_have_the_names_and_bytes_of_the_state_dict(archive, monkeypatch):
    expected = torch.jit.load(str(archive)).state_dict()
    for place, name in ((torch, "load"), (torch.jit, "load")):
        monkeypatch.setattr(place, name, lambda *a, **k: pytest.fail("executed"))
    found = read_torchscript(archive)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items())


def test_other_archives_are_none(archive, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("x")
    assert is_torchscript(archive)
    assert not is_torchscript(tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "text.pt")
    assert not is_torchscript(tmp_path / "nothing.pt")


def archive_of(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in (("data.pkl", content), ("constants.pkl", b"\x80\x02).")):
            file.writestr(f"x/{name}", data)
    return path


def test_a_pickle_that_wants_something_run_is_refused(tmp_path):
    class Bad:
        def __reduce__(self):
            return (eval, ("open('ran', 'w')",))

    path = archive_of(tmp_path / "bad.pt", pickle.dumps(Bad(), protocol=2))
    with pytest.raises(BenchError, match=r"asks to run builtins\.eval; nothing was executed"):
        read_torchscript(path)


def module(state: bytes) -> bytes:
    """A pickled object of a TorchScript class; state: instructions that leave a dict."""
    return b"c__torch__.M\nM\n)\x81" + state + b"b"


@pytest.mark.parametrize("width", [1, 2])
def test_modules_without_end_are_refused(tmp_path, width):
    content = module(b"}")
    for _ in range(80):  # each holds the one before, twice by memory where it is wide
        content = (
            b"c__torch__.M\nM\n)\x81}(X\x01\0\0\0a" + content + b"q\x01" + b"X\x01\0\0\0bh\x01" * (width - 1) + b"ub"
        )
    path = archive_of(tmp_path / "deep.pt", b"\x80\x02" + content + b".")
    with pytest.raises(BenchError, match="modules in modules without end"):
        read_torchscript(path)


def test_a_cut_or_empty_archive_is_refused(archive, tmp_path):
    (tmp_path / "cut.pt").write_bytes(archive.read_bytes()[:-1500])
    with pytest.raises(BenchError, match="not a whole TorchScript archive"):
        read_torchscript(tmp_path / "cut.pt")
    with pytest.raises(BenchError, match="without tensors"):
        read_torchscript(archive_of(tmp_path / "empty.pt", b"\x80\x02" + module(b"}") + b"."))
