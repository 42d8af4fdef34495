"""Who may import whom, and that nothing of a contract is found by its name alone."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import beit3_bench
from beit3_bench.backbones import abilities, benchmark, family, training
from beit3_bench.backbones.registry import BUILT_IN
from beit3_bench.tasks import contract

ROOT = "beit3_bench"
PLACE = Path(beit3_bench.__file__).parent
ROOMS = ("harness", "tasks", "backbones", "results")
MODELS = {place.partition(":")[0].removesuffix(".family") for place in BUILT_IN.values()}
"""Rooms of the families; what lies above knows the contract only."""

BELOW = {
    "backbones": {"backbones"},
    "tasks": {"tasks", "backbones"},
    "harness": {"harness", "results", "tasks", "backbones"},
    "results": {"results", "tasks", "backbones"},
}
"""Which rooms the modules of a room may import, wherever the import stands; what lies beside the rooms (errors, files, ...) all may."""

EXCEPTIONS = {
    # results/ reads run folders by the room of harness/ that writes them.
    ("results", f"{ROOT}.harness.record"): "run folders are read by the one reader of their schema",
}
"""(room, package that it may import all the same): why."""


class Import(NamedTuple):
    """``module`` imports ``target``.

    late: inside a function, or under TYPE_CHECKING: not when the module is imported.
    """

    module: str
    target: str
    line: int
    late: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, the rooms being links."""
    found = {ROOT: PLACE / "__init__.py"}
    for path in PLACE.glob("*.py"):
        if path.name != "__init__.py":
            found[f"{ROOT}.{path.stem}"] = path
    for room in ROOMS:
        top = (PLACE / room).resolve()
        for path in top.rglob("*.py"):
            parts = path.relative_to(top).with_suffix("").parts
            found[".".join([ROOT, room, *parts]).removesuffix(".__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def targets(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Modules of the package that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == ROOT]
    base = node.module or ""
    if node.level:
        package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
        above = package.split(".")
        base = ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])])
    if base.split(".")[0] != ROOT:
        return []
    inner = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in modules()]
    return inner if len(inner) == len(node.names) else [base, *inner]


def imports_in(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                for target in targets(module, child):
                    yield Import(module, target, child.lineno, late)
                continue
            yield from walk(
                child,
                late
                or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                or is_type_checking(child),
            )

    yield from walk(tree(module), False)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(one for module in modules() for one in imports_in(module))


def room_of(module: str) -> str | None:
    """The room that a module is in; None for what all share."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def of_a_model(module: str) -> bool:
    return any(within(module, room) for room in MODELS)


def said(one: Import) -> str:
    return f"{one.module}:{one.line} imports {one.target}"


def named_in_strings(module: str) -> Iterator[tuple[int, str]]:
    """Dotted names of modules in texts (``importlib.import_module``, ``resources.files``), those of the table BUILT_IN left out."""
    top = tree(module)
    tables = [
        node
        for node in top.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and "BUILT_IN" in [ast.unparse(t) for t in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    ]
    excepted = {id(inner) for table in tables for inner in ast.walk(table)}
    for node in ast.walk(top):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in excepted:
            name = node.value.partition(":")[0]
            if re.fullmatch(rf"{ROOT}(\.\w+)+", name):
                yield node.lineno, name


def test_all_modules_are_looked_at() -> None:
    names = modules()
    assert {f"{ROOT}.{name}" for name in ("errors", "harness.session", "tasks.vqav2", "backbones.beit3.models")} <= set(
        names
    )
    assert len(names) > 150
    assert f"{ROOT}.backbones.beit3" in MODELS <= set(names)
    assert Import(f"{ROOT}.tasks.vqav2", f"{ROOT}.tasks.contract", 0, False) in {
        one._replace(line=0) for one in all_imports()
    }
    assert any(one.late for one in all_imports())


def test_harness_and_tasks_know_no_model() -> None:
    wrong = [
        said(one) for one in all_imports() if room_of(one.module) in ("harness", "tasks") and of_a_model(one.target)
    ]
    wrong += [
        f"{module}:{line} names {name}"
        for module in modules()
        if room_of(module) in ("harness", "tasks")
        for line, name in named_in_strings(module)
        if of_a_model(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_runs_upward() -> None:
    """Inside of functions and for types alone neither."""
    wrong = []
    for one in all_imports():
        room, other = room_of(one.module), room_of(one.target)
        if one.module == ROOT or other is None:  # the public API stands above all rooms
            continue
        if room is not None and other in BELOW[room]:
            continue
        if not any(room == where and within(one.target, package) for where, package in EXCEPTIONS):
            wrong.append(said(one))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=str)
def test_every_exception_is_needed(exception: tuple[str, str]) -> None:
    room, package = exception
    assert any(room_of(one.module) == room and within(one.target, package) for one in all_imports())


def test_no_import_runs_in_a_circle() -> None:
    graph = {
        module: {one.target for one in all_imports() if one.module == module and not one.late} for module in modules()
    }
    circle: list[str] = []
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]
    assert len(graph) > 100
    assert not circle, " <- ".join(circle)


def test_a_room_that_all_share_imports_no_other() -> None:
    shared = [module for module in modules() if room_of(module) is None and module != ROOT]
    assert shared
    assert not [said(one) for one in all_imports() if one.module in shared and room_of(one.target) is not None]


# ---- contracts ----------------------------------------------------------------------------------------------------------

CONTRACTS = (
    *(contract.Task, contract.Split, contract.Example),
    *(abilities.Ability, *abilities.ABILITIES, abilities.Reader, abilities.Item),
    *(family.Family, family.Model, family.ModelCard, family.Identity, training.Training, training.TrainingEngine),
    *(benchmark.Benchmark, family.Asked, family.Outputs, family.LoadOptions),
)

OTHERS = {
    # Objects of frameworks that happen to have an attribute of such a name.
    ("beit3_bench.backbones.beit3.detectron2_adapter.checkpointer", "module"): "what DistributedDataParallel wraps",
    ("beit3_bench.backbones.beit3.mmseg_adapter.training", "module"): "what DistributedDataParallel wraps",
    ("beit3_bench.backbones.beit3.detection.training_config", "value"): "of a node of a syntax tree, or of a YAML tag",
}
"""(module, name): whose attribute it is."""


def members() -> set[str]:
    """Names that the contracts' classes declare, with what their ``__init__`` sets."""
    names: set[str] = set()
    for cls in CONTRACTS:
        for base in cls.__mro__[:-1]:
            names |= {*vars(base), *base.__annotations__} if "__annotations__" in vars(base) else {*vars(base)}
    for module in (abilities, family, training, contract):
        for node in ast.walk(tree(module.__name__)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                names.add(node.attr)
    return {name for name in names if not name.startswith("_")}


def test_members_are_those_of_the_contracts() -> None:
    names = {
        "read",
        "score",
        "labels",
        "claims",
        "predict",
        "collate",
        "length",
        "module",
        "options",
        "data_root",
        "truth",
    }
    assert names <= members()
    assert "strerror" not in members()


def test_nothing_of_a_contract_is_found_by_getattr() -> None:
    """What a task, a family or an ability may offer stands in its class, with a default."""
    known, wrong = members(), []
    for module in modules():
        if room_of(module) not in ("harness", "tasks", "backbones"):
            continue
        for node in ast.walk(tree(module)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
                continue
            name = node.args[1]
            if node.func.id not in ("getattr", "hasattr") or not isinstance(name, ast.Constant):
                continue
            if name.value in known and (module, name.value) not in OTHERS:
                wrong.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_modules_is_a_package_of_the_wheel():
    root = Path(__file__).resolve().parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        path.parent for name in ("backbones", "tasks", "harness", "results") for path in (root / name).rglob("*.py")
    }
    expected = {"beit3_bench", *("beit3_bench." + ".".join(f.relative_to(root).parts) for f in folders)}
    assert sorted(listed) == sorted(expected)


def test_close_names_are_looked_up_in_one_place():
    root = Path(__file__).resolve().parents[1]
    users = {
        path.relative_to(root).as_posix()
        for name in ("beit3_bench", "backbones", "tasks", "harness", "results")
        for path in (root / name).rglob("*.py")
        if "difflib" in path.read_text() and "beit3_bench" not in path.relative_to(root).parts[1:]
    }
    assert users == {"beit3_bench/spelling.py"}
