"""Facts beside a task: those of the built-in ones, those that another package brings, and files that are refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner
from leaderboard_cases import metric, result

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.leaks import find_leaks
from beit3_bench.harness.leaderboard.board import build_table
from beit3_bench.harness.record.released import apart
from beit3_bench.harness.record.results import Run
from beit3_bench.results.published import values
from beit3_bench.results.published.values import COLUMNS, load_published
from beit3_bench.tasks import registry
from beit3_bench.tasks.facts import Facts, facts_file, published_names, read_facts

FACTS = """
title = "Counting shapes"
trained_on = ["Shapes train"]

[data]
counted_as = "questions"

[[data.needs]]
path = "shapes.json"
splits = ["test"]

[data.splits.test]
samples = 20

[names]
order_by = ["accuracy"]
extra = ["off by one"]

[names.splits]
test = ["test"]

[names.metrics]
accuracy = ["counting", "accuracy"]

[[leaks]]
data = "Shapes train"
splits = ["test"]
seen = "some images"
why = "both show the same shapes"

[[published]]
id = "counting-1"
system = "CountNet"
variant = "large"
task = "counting"
split = "test"
metric = "accuracy"
value = "71.30"
unit = "%"
regime = "fine-tuned"
source = "Counting (arXiv 0000.00000), Table 2"
source_kind = "primary"
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    registry.task_locations.cache_clear()
    yield
    registry.task_locations.cache_clear()


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A package of its own with the module of a task ``counting``, which must not be imported, and its facts file."""
    package = f"shapes_{tmp_path.name.replace('-', '_')}"

    def make(facts: str | None = FACTS) -> Path:
        folder = tmp_path / package / "tasks"
        folder.mkdir(parents=True)
        for module in (folder.parent / "__init__.py", folder / "__init__.py", folder / "counting_task.py"):
            module.write_text("raise RuntimeError('imported')\n")
        if facts is not None:
            (folder / "counting.toml").write_text(facts)
        points = [EntryPoint("counting", f"{package}.tasks.counting_task:Counting", registry.ENTRY_POINT_GROUP)]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        monkeypatch.syspath_prepend(str(tmp_path))
        registry.task_locations.cache_clear()
        return folder / "counting.toml"

    return make


# ---- built-in tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", registry.task_names())
def test_every_built_in_task_has_facts_beside_its_module(task: str) -> None:
    facts, file = read_facts(task), facts_file(task)
    assert file is not None
    own = registry.get_task(task).own_data
    assert (file.name, file.parent.name) == (f"{task}.toml", "own" if own else "tasks")
    assert facts.title
    if own:  # nobody released it, and nobody published numbers on it
        assert facts == Facts(title=facts.title)
        return
    assert facts.names is not None
    assert facts.data.splits
    assert {*facts.names.splits, *(split for leak in facts.leaks for split in leak.splits)} <= set(
        registry.get_task(task).splits
    )
    assert set(facts.names.transfer_from) <= set(registry.task_names())


def test_no_facts_file_is_without_its_task() -> None:
    files = {facts_file(task) for task in registry.task_names()}
    folders = {file.parent for file in files if file is not None}
    assert len(folders) == 2
    assert {file for folder in folders for file in folder.glob("*.toml")} == files


def test_facts_hold_what_they_always_held() -> None:
    assert list(published_names()) == [t for t in registry.task_names() if not registry.get_task(t).own_data]
    nlvr2, flickr = read_facts("nlvr2"), read_facts("flickr30k")
    assert nlvr2.data.counted_as == "examples"
    assert nlvr2.data.splits["test-P"].stated() == {"samples": 6967, "images": 8082}
    assert nlvr2.data.ids["dev"] == ("78fc5f88cb9fb50f464f6d7b248188778e0439cc1e78ab05c1c68b24e0b19f6e",)
    assert {n.path: n.git_blob[:8] for n in nlvr2.data.needs} == {
        "train.json": "affca2ee",
        "dev.json": "aac21163",
        "test1.json": "bf03ad92",
    }
    assert flickr.data.karpathy is not None
    assert flickr.data.karpathy.image_folder == "flickr30k-images"
    assert flickr.data.references_per_sample == (5, 5)
    assert flickr.names is not None
    assert list(flickr.names.metrics)[:2] == ["mean_recall", "TR@1"]
    assert flickr.names.metrics["IR@10"] == ("flickr30k_retrieval", "IR R@10")
    assert flickr.names.regimes == ("fine-tuned", "zero-shot", "transfer")
    assert read_facts("vqav2").trained_on == ("VQAv2 train", "VQAv2 val without minival")


def test_a_task_may_name_another_one_for_its_data() -> None:
    assert read_facts("imagenet-linear").data == read_facts("imagenet").data
    assert read_facts("imagenet-linear").title != read_facts("imagenet").title


@pytest.mark.parametrize("task", ["task-of-nobody", "../tasks/nlvr2", "", "nlvr2.toml"])
def test_an_unknown_name_has_no_facts_and_reads_no_file(task: str) -> None:
    assert read_facts(task) == Facts()
    assert facts_file(task) is None


def test_reading_all_facts_imports_no_task_and_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; from beit3_bench.tasks.facts import published_names; assert len(published_names()) >= 10\n"
        "assert not {'torch', 'numpy', 'beit3_bench.tasks.nlvr2', 'beit3_bench.tasks.contract'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- a task of another package ---------------------------------------------------------------------------------------------


def test_another_package_brings_facts_and_its_module_is_not_imported(plug_in: Callable[..., Path]) -> None:
    file = plug_in()
    assert facts_file("counting") == file
    assert read_facts("counting").title == "Counting shapes"
    assert list(published_names())[-1] == "counting"


def test_a_task_of_another_package_may_have_no_facts(plug_in: Callable[..., Path]) -> None:
    plug_in(None)
    assert read_facts("counting") == Facts()
    assert "counting" not in published_names()
    assert len(load_published()) == len(load_published_of_this_repository())


def load_published_of_this_repository() -> list:
    return load_published(Path(values.__file__).parent)


def test_results_of_a_plugged_in_task_stand_in_a_table_with_its_published_rows(plug_in: Callable[..., Path]) -> None:
    plug_in()
    content = result("counting", "test", counts={"questions": 20}, metrics={"accuracy": metric(70.0)})
    assert apart(content) == []
    table = build_table([Run("mine", content)], load_published())
    (section,) = table.sections
    assert section.title == "Counting shapes, test, fine-tuned"
    assert [(row.measured, row.rank, row.cells["accuracy"].text) for row in section.rows] == [
        (False, 1, "71.30"),
        (True, 2, "70.0"),
    ]
    part = {**content, "counts": {"questions": 5}}
    assert apart(part) == ["other data: 5 of 20 samples"]
    assert [item.why for item in build_table([Run("part", part)], load_published()).apart] == apart(part)


def test_the_table_verb_shows_a_plugged_in_task_by_name(plug_in: Callable[..., Path], tmp_path: Path) -> None:
    from beit3_bench.harness.commands.table import command

    plug_in()
    (tmp_path / "runs").mkdir()
    done = CliRunner().invoke(command, ["--runs", str(tmp_path / "runs"), "--tasks", "counting", "--format", "json"])
    assert done.exit_code == 0, done.output
    (section,) = json.loads(done.stdout)["sections"]
    assert [row["source"] for row in section["rows"]] == ["Counting (arXiv 0000.00000), Table 2"]


def test_a_csv_beside_the_facts_holds_published_rows(plug_in: Callable[..., Path]) -> None:
    file = plug_in(f'published_csv = "rows.csv"\n{FACTS}')
    row = {c: "" for c in COLUMNS} | {
        "id": "counting-2",
        "system": "CSV",
        "task": "counting",
        "split": "test",
        "metric": "accuracy",
        "value": "60",
        "regime": "zero-shot",
        "source": "a page",
        "source_kind": "primary",
    }
    with open(file.with_name("rows.csv"), "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerow(row)
    assert [(value.id, value.system, value.printed) for value in load_published()][-2:] == [
        ("counting-1", "CountNet", "71.30"),
        ("counting-2", "CSV", "60"),
    ]


def test_a_training_on_a_plugged_in_task_is_known_to_have_seen_its_data(plug_in: Callable[..., Path]) -> None:
    plug_in()
    (line,) = find_leaks("counting", "test", Path("mine.pth"), {"task": "counting"})
    assert line == (
        "the checkpoint has seen some of these images with other labels: "
        "it was trained on Shapes train (both show the same shapes)"
    )
    assert find_leaks("counting", "test", Path("mine.pth"), {"task": "nlvr2"}) == []


# ---- files that are refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("title = ", "is not valid TOML"),
        (f"title = {'9' * 5000}", "is not valid TOML"),
        (f"title = {'[' * 5000}{']' * 5000}", "is not valid TOML"),
        ("titel = 'x'", "no key 'titel'; did you mean 'title'"),
        ("title = 3", "title: 3 is not a text"),
        ("trained_on = 'x'", "trained_on: 'x' is not a list of values in brackets"),
        ("trained_on = [1]", "trained_on: 1 is not a text"),
        ("data = 1", "data: 1 is not a table"),
        ("data.splits = []", r"data: splits: \[\] is not a table"),
        ("data.splits.test.image = 1", "data: splits: test: no key 'image'; did you mean 'images'"),
        ("data.splits.test.images = true", "data: splits: test: images: True is not a whole number"),
        ("data.splits.test.images = '20'", "data: splits: test: images: '20' is not a whole number; write it without"),
        ("data.splits.test.images = 20.5", r"data: splits: test: images: 20\.5 is not a whole number"),
        ("data.splits.test.images = -1", "data: splits: test: images is -1"),
        ("data.unique_ids = 1", "data: unique_ids: 1 is not a true or false"),
        ("data.references_per_sample = [5]", r"data: references_per_sample: \[5\] is not a pair of values in brackets"),
        ("data.ids.test = ['abc']", r"data: ids\.test has 'abc', which is no SHA-256"),
        ("data.id_form = '('", "data: id_form is no regular expression"),
        ("[[data.needs]]\nsplits = ['a']", "data: needs 1: path is missing"),
        ("[[data.needs]]\npath = 'a'\ngit_blob = 'b'", "data: needs 1: git_blob 'b' is no SHA-1"),
        ("data.karpathy = {}", "data: karpathy: file is missing"),
        ("[names]\norder_by = ['a']", "names: metrics is missing"),
        ("[names]\norder_by = []\nmetrics = {}", "names: order_by names no metric"),
        ("[names]\norder_by = ['b']\nmetrics.a = ['t', 'm']", "names: order_by has 'b', which is none of metrics"),
        ("[names]\norder_by = ['a']\nmetrics.a = 'm'", "names: metrics: a: 'm' is not a pair of values"),
        (
            "[names]\norder_by = ['a']\nmetrics.a = ['t', 'm']\nderived.a = ['c']",
            r"names: derived\.a has 'c', which is none of metrics",
        ),
        (
            "[names]\norder_by = ['a']\nmetrics.a = ['t', 'm']\nregimes = ['few-shot']",
            "names: regimes: 'few-shot'; choose one of: fine-tuned, zero-shot, transfer",
        ),
        ("[[leaks]]\ndata = 'a'\nsplits = ['b']\nseen = 'all'\nwhy = ''", "leaks 1: seen: 'all'; choose one of"),
        ("[[leaks]]\ndata = 'a'\nsplits = ['b']\nseen = []\nwhy = ''", r"leaks 1: seen: \[\]; choose one of"),
        ("[[published]]\n[[published]]\nvalue = 71.3", r"published 2: value: 71\.3 is not a text"),
        ("published_csv = '../rows.csv'", "published_csv '../rows.csv' is no file name"),
        ("data_of = 'imagenett'", "data_of: 'imagenett' is no task that states its data"),
        ("data_of = 'counting'", "data_of: 'counting' is no task that states its data"),
        ("data_of = 'imagenet-linear'", "data_of: 'imagenet-linear' is no task that states its data"),
        ("data_of = 'imagenet'\ndata.unique_ids = true", "data_of and data are both there"),
    ],
)
def test_a_bad_facts_file_is_refused_with_its_name_and_the_key(
    plug_in: Callable[..., Path], facts: str, message: str
) -> None:
    file = plug_in(facts)
    with pytest.raises(BenchError, match=f"^{file}: {message}"):
        read_facts("counting")
    assert read_facts("nlvr2").title == "NLVR2"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("unit =", "units =", r"published 1: no key 'units'; did you mean 'unit'"),
        ('"71.30"', '"about 71"', r"published 1: value 'about 71' is not a number"),
        ('regime = "fine-tuned"', 'regime = "few-shot"', r"published 1: regime 'few-shot' is none of"),
        ('system = "CountNet"', "", r"published 1: column system is empty"),
        ("counting-1", "pub0329", r"published 1: id pub0329 stands in vlmo\.csv too"),
    ],
)
def test_a_bad_published_record_is_refused_with_file_and_place(
    plug_in: Callable[..., Path], old: str, new: str, message: str
) -> None:
    file = plug_in(FACTS.replace(old, new))
    with pytest.raises(BenchError, match=f"^{file}: {message}"):
        load_published()


def test_a_missing_csv_is_named(plug_in: Callable[..., Path]) -> None:
    file = plug_in('published_csv = "rows.csv"')
    with pytest.raises(BenchError, match=rf"^{file.with_name('rows.csv')}: published values file not found"):
        load_published()
