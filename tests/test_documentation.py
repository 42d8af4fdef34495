"""What the README and docs/ say can be typed: every command is parsed, every name in it exists, and what needs no real data is run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import click
import pytest
from documentation import COMMANDS, PAGES, ROOT, Command, blocks, blocks_of, commands_of, parsed

from beit3_bench.backbones.recipe import is_recipe_key
from beit3_bench.backbones.registry import families
from beit3_bench.backbones.released import released_files
from beit3_bench.harness.api import Evaluation
from beit3_bench.harness.ready import ReadyModel
from beit3_bench.harness.settings.files import read_settings
from beit3_bench.harness.settings.runs import read_runs
from beit3_bench.tasks.options import option_names
from beit3_bench.tasks.registry import get_task, task_names

VERBS_WITHOUT_EXAMPLE = {"tasks"}  # it is named in the text
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")


def test_there_are_commands():
    assert len(COMMANDS) > 100  # a parser that finds none would let everything pass


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_one(command: Command):
    verb, values = parsed(command.words)
    tasks = [name for name in str(values.get("task") or values.get("tasks") or "").split(",") if name]
    for task in tasks:
        assert task == "all" or task in task_names(), f"no task {task}"
    split = values.get("split")
    if split not in (None, "all"):
        assert all(split in get_task(task).splits for task in tasks)
    for key in (str(option).partition("=")[0] for option in values.get("options", ())):
        known = [option_names(get_task(task).Options) for task in tasks] + [option_names(f.Options) for f in families()]
        assert any(key in names for names in known) or (verb == "finetune" and is_recipe_key(key)), f"no option {key}"


def released_names(command: Command) -> list[str]:
    verb, values = parsed(command.words)
    if verb == "download":
        return list(values.get("names", ()))
    texts = " ".join(command.words)
    return re.findall(r"\b((?:beit3|vlmo|albef|blip)_\w+?)(?:\.pth|\.pt)\b", texts)


def test_released_files_are_called_so():
    known = {file.name for file in released_files()}
    told = {name for command in COMMANDS for name in released_names(command)}
    assert len(told) > 10
    assert told <= known, sorted(told - known)
    written = {name for page in PAGES for name in re.findall(r"`((?:beit3|vlmo|albef|blip)_\w+)`", page.read_text())}
    assert written - known <= {"beit3_bench"}, sorted(written - known)


def test_every_verb_has_an_example():
    from beit3_bench.harness.cli import VERBS

    shown = {parsed(command.words)[0].split(" ")[0] for command in COMMANDS}
    assert set(VERBS) - shown == VERBS_WITHOUT_EXAMPLE


@pytest.mark.parametrize(
    "words",
    [
        "runn --task nlvr2",
        "run --task nlvr2 --chekpoint x",
        "run --task nlvr2 --dtype fp64",
        "run --limit many",
        "predict --task nlvr2",
        "table results",
        "data fetch --task nlvr2",
    ],
)
def test_what_is_no_command_is_noticed(words):
    with pytest.raises(click.UsageError):
        parsed(tuple(words.split()))


def test_commands_behind_launchers_and_shell_words_are_seen():
    (block,) = (b for b in blocks_of(ROOT / "docs/many-machines.md") if "srun torchrun" in b.text)
    (command,) = commands_of(block)
    assert command.words[:3] == ("finetune", "--task", "coco-retrieval")
    assert command.words[-2:] == ("--output", "$out")


# ---- other languages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.place)
def test_settings_are_read(block, tmp_path):
    content = tomllib.loads(block.text)
    file = tmp_path / "beit3-bench.toml"
    file.write_text(block.text)
    if "project" in content or "title" in content:
        return  # of a package that extends this one
    if "run" in content:
        assert len(read_runs(file)) == len(content["run"])
    else:
        read_settings(file)


PYTHON = blocks("python")


def test_there_is_python():
    assert len(PYTHON) > 5


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_names_what_exists(block):
    """Imports from this package, and what is asked of a loaded model, of a result, and of an imported module."""
    tree = ast.parse(block.text)
    owners: dict[str, object] = {}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("beit3_bench"):
                owners |= {alias.asname or alias.name: imported(module, alias.name) for alias in names}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="load"))):
                owners[name] = ReadyModel
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="evaluate"))):
                owners[name] = Evaluation
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in owners:
                owner = owners[name]
                known = {*dir(owner), *getattr(owner, "__annotations__", ()), *attributes_of(owner)}
                assert attribute in known, f"{name}.{attribute}"


def imported(module: str, name: str) -> object:
    value = getattr(importlib.import_module(module), name, None)
    return importlib.import_module(f"{module}.{name}") if value is None else value


def attributes_of(owner: object) -> set[str]:
    """What ``__init__`` gives an object."""
    if owner is not ReadyModel:
        return set()
    source = inspect.getsource(ReadyModel)
    return set(re.findall(r"self\.(\w+)(?:, self\.\w+)* =", source)) | set(re.findall(r", self\.(\w+)", source))


# ---- pages ---------------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_pictures_are_small():
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


def heading_ids(page: Path) -> set[str]:
    """As Markdown's toc makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    included = [ROOT / name for name in re.findall(r'^--8<-- "([^":]+)', text, re.MULTILINE)]
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ids = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return ids.union(*(heading_ids(file) for file in included if file.suffix == ".md"))


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = (page.parent / target) if target else page
        assert file.is_file(), target
        if anchor and file.suffix == ".md":
            assert anchor[1:] in heading_ids(file), target + anchor


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f" {page.name}" in menu for page in (ROOT / "docs").glob("*.md"))


def test_every_task_has_a_section_and_a_protocol():
    tutorial, protocols = (heading_ids(ROOT / "docs" / name) for name in ("tutorial.md", "protocols.md"))
    released = {name for name in task_names() if not get_task(name).own_data}
    assert released <= tutorial & protocols
    own = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert all(f"--task {name} " in own for name in task_names())
