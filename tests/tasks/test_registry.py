"""Task names, lazily resolved."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from beit3_bench.errors import BenchError
from beit3_bench.tasks import registry
from beit3_bench.tasks.contract import Task


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    registry.task_locations.cache_clear()
    yield
    registry.task_locations.cache_clear()


def plug_in(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    points = [EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


@pytest.mark.parametrize("name", registry.task_names())
def test_every_listed_task_loads_and_knows_its_name(name: str) -> None:
    task = registry.get_task(name)
    assert issubclass(task, Task)
    assert task.name == name
    assert sum(metric.headline for metric in task.metrics) == 1
    assert task.own_data or task.default_split in task.splits
    assert task.own_data == (name in ("classify", "retrieval", "caption", "vqa"))
    assert not task.asks_as or registry.get_task(task.asks_as).ability is task.ability


def test_a_task_whose_module_is_absent_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "ghost", "beit3_bench.tasks.ghost:Ghost")
    assert "ghost" not in registry.task_names()
    with pytest.raises(BenchError, match="unknown task 'ghost'"):
        registry.get_task("ghost")


def test_listing_names_imports_no_task() -> None:
    program = (
        "import sys; from beit3_bench.tasks.registry import task_names; assert task_names()\n"
        "assert not {'torch', 'numpy', 'beit3_bench.tasks.retrieval'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_typo_gets_a_hint() -> None:
    with pytest.raises(BenchError, match="did you mean 'coco-retrieval'"):
        registry.get_task("coco_retrieval")


def test_another_package_can_add_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pluggedin.py").write_text(
        "from beit3_bench.tasks.contract import Task\nclass Counting(Task):\n    name = 'counting'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plug_in(monkeypatch, ("counting", "pluggedin:Counting"))
    assert registry.task_names()[-1] == "counting"
    assert registry.get_task("counting").name == "counting"


def test_a_name_claimed_twice_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("counting", "a:A"), ("counting", "b:B"))
    with pytest.raises(BenchError, match=r"'counting' is registered twice \(a:A and b:B\)"):
        registry.task_names()


def test_a_built_in_name_cannot_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("flickr30k", "evil:Task"))
    with pytest.raises(BenchError, match="registered twice"):
        registry.get_task("flickr30k")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere:Task", "does not load"),
        ("json:Nothing", "does not load"),
        ("json:JSONDecoder", "is no Task of that name"),
        ("json:dumps", "is no Task of that name"),
        ("beit3_bench.tasks.nlvr2:NLVR2", "is no Task of that name"),
        ("beit3_bench.tasks.contract:Task", "is no Task of that name"),
    ],
)
def test_a_broken_plug_in_is_named(monkeypatch: pytest.MonkeyPatch, place: str, message: str) -> None:
    plug_in(monkeypatch, ("counting", place))
    with pytest.raises(BenchError, match=f"task 'counting' at {place} {message}"):
        registry.get_task("counting")


@pytest.mark.parametrize(("name", "folder"), [("coco-det", "detectron2_adapter"), ("ade20k-seg", "mmseg_adapter")])
def test_the_guide_to_a_dense_task_names_every_option(name: str, folder: str) -> None:
    import beit3_bench.backbones as backbones

    guide = (Path(next(iter(backbones.__path__))) / "beit3" / folder / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in guide.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in dataclasses.fields(registry.get_task(name).Options)} <= named
