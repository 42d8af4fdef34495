"""The demo: which command lines it does, that each is done once, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
import pytest
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.harness import demo
from beit3_bench.harness.cli import main
from beit3_bench.harness.commands import demo as command
from beit3_bench.harness.demo import LEDGER, Step, choose, open_folder, plan
from beit3_bench.locks import hold
from beit3_bench.tasks.registry import get_task, task_names

SHORT = ("-o", "steps=2", "--device", "cpu", "--workers", "0")


@pytest.fixture
def every_stack(monkeypatch):
    """As where nothing is missing."""
    monkeypatch.setattr(demo, "not_installed", lambda task: False)


# ---- the plan -----------------------------------------------------------------------------------------------------------


def test_every_task_is_evaluated_with_what_an_earlier_step_made(every_stack):
    steps = plan(Path("demo"), choose(None, quick=False))
    made: set[Path] = set()
    for step in steps:
        assert step.needs is None or step.needs in made or step.needs.parent in made, step.line
        made.add(step.makes)
    assert len(made) == len(steps)
    evaluated = [step.words[2] for step in steps if step.words[:1] == ("run",) and "-" not in step.makes.parent.name]
    assert {task for task in task_names() if "-" not in task and not get_task(task).own_data} == set(evaluated)
    assert {"vlmo", "albef", "blip", "openclip"} == {step.peer for step in steps if step.peer}


def test_every_command_line_is_one_that_the_program_takes(every_stack):
    for step in plan(Path("demo"), choose(None, quick=False)):
        for words in [step.words] if step.words else []:
            with main.make_context("beit3-bench", list(words)) as context:
                verb = main.get_command(context, words[0])
                parsed = verb.make_context(words[0], list(words[1:]), parent=context)
                assert isinstance(verb, click.Group) or parsed.params


def test_a_task_alone_brings_the_trainings_that_it_stands_on(every_stack):
    titles = [step.title for step in plan(Path("demo"), choose(["nocaps"], quick=False), peers=False)]
    trained = ["fine-tune on flickr30k", "fine-tune on coco-caption"]
    assert titles == ["write the tiny world", *trained, "evaluate on nocaps"]


def test_a_quick_look_is_one_training_and_one_evaluation(every_stack):
    steps = plan(Path("demo"), choose(None, quick=True), peers=False)
    assert [step.words[0] for step in steps] == ["data", "finetune", "run"]


@pytest.mark.parametrize(("name", "line"), [("nlvr", "did you mean 'nlvr2'"), ("toy", "has no data for it")])
def test_a_task_that_the_world_does_not_have_is_refused(name, line, monkeypatch):
    if name == "toy":
        monkeypatch.setattr(demo, "get_task", lambda name: None)
    with pytest.raises(BenchError, match=line):
        choose(["nlvr2", name], quick=False)


def test_a_training_that_was_stopped_is_resumed_and_one_that_saved_nothing_begins_again(tmp_path):
    step = Step("fine-tune", tmp_path / "model" / "best.pth", ("finetune", "--task", "nlvr2"))
    assert step.going_on() == step
    step.makes.parent.mkdir()
    assert step.going_on().words[-1] == "--overwrite"
    (tmp_path / "model" / "state.pt").touch()
    assert step.going_on().words[-1] == "--resume"


# ---- doing it -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A demo of two tasks on a mini world, trained for two steps, with the other families."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    with open_folder(folder, overwrite=False) as ledger:
        failed = command.Demo(main, ledger).run(steps_of(folder))
    return folder, failed


def steps_of(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "not_installed", lambda task: False)
        return plan(folder, choose(["flickr30k", "nlvr2"], quick=False), size="mini", more=SHORT)


def test_runs_of_all_families_come_out(done):
    folder, failed = done
    results = [json.loads(path.read_text()) for path in sorted((folder / "runs").rglob("result.json"))]
    assert not failed
    assert {(r["task"], r["model"]["family"], r["status"]) for r in results} == {
        ("flickr30k", "beit3", "scored"),
        ("nlvr2", "beit3", "scored"),
        ("flickr30k", "vlmo", "scored"),
        ("nlvr2", "vlmo", "scored"),
        ("flickr30k", "openclip", "scored"),
        ("flickr30k", "albef", "scored"),
        ("flickr30k", "blip", "scored"),
    }
    assert {r["world"] for r in results} == {"tiny"}


def test_what_is_done_is_not_done_again(done, monkeypatch):
    folder, _ = done
    missing = folder / "runs" / "nlvr2" / "result.json"
    missing.unlink()
    lines = []
    monkeypatch.setattr(command, "_invoke", lambda program, words: lines.append(words))
    with open_folder(folder, overwrite=False) as ledger:
        command.Demo(main, ledger).run(steps_of(folder))
    assert [words[:3] for words in lines] == [("run", "--task", "nlvr2")]


def test_the_table_and_the_page_to_open_come_last(done, capsys):
    folder, _ = done
    command._show(main, folder)
    shown = capsys.readouterr()
    assert "tiny world" in shown.out
    assert "vlmo" in shown.out.lower()
    index = folder / "pages" / "index.html"
    assert shown.err.splitlines()[-2] == f"The page to open: {index.as_uri()}"
    pages = {path.name for path in index.parent.glob("*.html")}
    assert {"index.html", "leaderboard.html", "flickr30k.html"} <= pages
    runs = list((folder / "runs").rglob("result.json"))
    assert len(pages) == len(runs) + 2
    assert all(name in index.read_text() for name in pages - {"index.html"})


def act(folder, monkeypatch, *actions):
    """Failed titles of a demo whose steps do what their words say, each needing what the one before makes."""

    def invoke(program, words):
        if words[0] == "lack":
            raise BenchError("needs mmseg") from ImportError("mmseg")
        if words[0] == "fail":
            raise BenchError("broken")
        if words[0] == "interrupt":
            raise KeyboardInterrupt
        Path(words[1]).touch()

    monkeypatch.setattr(command, "_invoke", invoke)
    places = [folder / f"made-{number}" for number in range(len(actions))]
    needs = [None, *places[:-1]]
    steps = [
        Step(f"step {n}", place, (action, str(place)), need)
        for n, (action, place, need) in enumerate(zip(actions, places, needs, strict=True))
    ]
    with open_folder(folder, overwrite=False) as ledger:
        return command.Demo(main, ledger).run(steps)


def test_a_stack_that_is_missing_is_told_and_fails_nothing(tmp_path, monkeypatch, capsys):
    assert act(tmp_path / "d", monkeypatch, "do", "lack", "do") == []
    told = capsys.readouterr().err.splitlines()
    assert "left out: needs mmseg" in told
    assert told[-1].endswith("made-1 is missing")


def test_a_step_that_fails_is_told_and_tried_again(tmp_path, monkeypatch, capsys):
    assert act(tmp_path / "d", monkeypatch, "do", "fail") == ["step 1"]
    assert "error: broken" in capsys.readouterr().err
    assert act(tmp_path / "d", monkeypatch, "do", "fail") == ["step 1"]
    assert "step 0: was done" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt) as interrupt:
        act(tmp_path / "d", monkeypatch, "interrupt")
    assert interrupt.value.__notes__ == ["the same command goes on from here"]


def test_ade20k_without_its_stack_leaves_a_row_that_says_what_to_install(monkeypatch):
    for module in ("mmseg", "mmseg.apis"):  # the latter may have been imported before
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "beit3_bench.backbones.beit3.mmseg_adapter", raising=False)
    steps = plan(Path("demo"), choose(["ade20k-seg"], quick=False), peers=False)
    assert [step.title for step in steps[1:]] == ["fine-tune on flickr30k", "evaluate on ade20k-seg"]


# ---- the folder ---------------------------------------------------------------------------------------------------------


def test_overwrite_removes_what_an_earlier_demo_left(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / LEDGER).write_text('{"done": []}')
    (tmp_path / "d" / "runs").mkdir()
    (tmp_path / "d" / "mine.txt").touch()
    with open_folder(tmp_path / "d", overwrite=False):
        assert (tmp_path / "d" / "runs").is_dir()
    with open_folder(tmp_path / "d", overwrite=True):
        assert sorted(os.listdir(tmp_path / "d")) == [LEDGER, "lock", "mine.txt"]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: folder.touch(), "is a file"),
        (lambda folder: (folder.mkdir(), (folder / "thesis.tex").touch()), "holds something else (thesis.tex)"),
        (lambda folder: (folder.mkdir(), (folder / LEDGER).write_text("[")), "is damaged"),
        (lambda folder: (folder.mkdir(), (folder / LEDGER).write_text('{"done": 3}')), "is damaged"),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / LEDGER).write_text('{"done": []}'),
                (folder / "runs").symlink_to("/"),
            ),
            "is a link",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(tmp_path, spoil, line):
    spoil(tmp_path / "d")
    before = sorted(tmp_path.rglob("*"))
    result = invoke("demo", "--quick", "--output", tmp_path / "d")
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "lock"] == before


def test_two_demos_in_one_folder_are_kept_apart(tmp_path):
    (tmp_path / LEDGER).write_text('{"done": []}')
    lock = hold(tmp_path / "lock")
    try:
        result = invoke("demo", "--quick", "--output", tmp_path)
    finally:
        os.close(lock)
    assert result.exit_code == 2
    assert "runs a demo here" in result.stderr


def test_a_launcher_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = invoke("demo", "--output", tmp_path / "d")
    assert result.exit_code == 2
    assert "runs in one process" in result.stderr
    assert not (tmp_path / "d").exists()
