"""The demo: which command lines it does, that each is done once, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.harness import demo, lanes
from beit3_bench.harness.cli import main
from beit3_bench.harness.commands import demo as command
from beit3_bench.harness.demo import LEDGER, Agenda, Step, choose, open_folder, plan
from beit3_bench.harness.lanes import LaneDied, Lanes
from beit3_bench.harness.termination import Terminated, heeding_sigterm
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


def test_steps_begin_in_order_but_behind_what_they_need():
    world, model, run = Path("world"), Path("model"), Path("run")
    steps = [
        Step("world", world),
        Step("train", model / "best.pth", needs=world / "tiny_world.json"),
        Step("evaluate", run, needs=model / "best.pth"),
        Step("peer", Path("peer")),
    ]
    agenda = Agenda(steps)
    assert [agenda.next(), agenda.next(), agenda.next()] == [1, 4, None]
    agenda.end(4)
    assert agenda.next() is None
    agenda.end(1)
    assert [agenda.next(), agenda.next()] == [2, None]
    agenda.end(2)
    assert [agenda.next(), agenda.next()] == [3, None]


# ---- doing it -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A demo of two tasks on a mini world, trained for two steps, with the other families."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    with open_folder(folder, overwrite=False) as ledger:
        failed = command.Demo(ledger, steps_of(folder)).run()
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
    missing.rename(folder / "kept.json")
    lines = []
    monkeypatch.setattr(command, "_invoke", lambda words: lines.append(words))
    with open_folder(folder, overwrite=False) as ledger:
        command.Demo(ledger, steps_of(folder)).run()
    (folder / "kept.json").rename(missing)
    assert [words[:3] for words in lines] == [("run", "--task", "nlvr2")]


def test_the_table_and_the_page_to_open_come_last(done, capsys):
    folder, _ = done
    command._show(folder)
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

    def invoke(words):
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
        return command.Demo(ledger, steps).run()


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


def test_where_nothing_was_measured_the_failures_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_invoke", fail)
    result = invoke("demo", "--quick", "--output", tmp_path / "d")
    assert result.exit_code == 2
    assert "error: demo: failed to write the tiny world; the same command" in result.stderr.splitlines()[-1]


def fail(words):
    raise BenchError(f"{words[0]} is broken")


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


# ---- steps at once ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done_at_once(tmp_path_factory):
    """The same demo, two steps at a time."""
    folder = tmp_path_factory.mktemp("demo") / "at-once"
    with open_folder(folder, overwrite=False) as ledger:
        failed = command.Demo(ledger, steps_of(folder)).run(jobs=2)
    return folder, failed


def test_steps_at_once_come_to_the_same_numbers(done, done_at_once):
    folder, failed = done_at_once
    assert not failed

    def numbers(folder):
        files = sorted((folder / "runs").rglob("result.json"))
        return {str(file.relative_to(folder)): json.loads(file.read_text())["metrics"] for file in files}

    assert numbers(folder) == numbers(done[0])
    lines = [set(json.loads((place / LEDGER).read_text())["done"]) for place in (folder, done[0])]
    assert {line.replace(str(folder), str(done[0])) for line in lines[0]} == lines[1]


def test_of_steps_at_once_a_failure_is_told_and_what_needs_it_left_out(tmp_path, capfd):
    root = tmp_path / "d"
    steps = [
        Step("write a world", root / "world", ("data", "tiny", "--size", "mini", "--output", str(root / "world"))),
        Step("verify nothing", root / "never", ("table", "--runs", str(root / "none"), "--systems", "measured")),
        Step("fail", root / "bad", ("show", str(root / "no-run"), "--output", str(root / "bad"))),
        Step("use it", root / "used", ("tasks",), root / "bad"),
    ]
    with open_folder(root, overwrite=False) as ledger:
        demo_of = command.Demo(ledger, steps)
        assert "fail" in demo_of.run(jobs=2)
    told = capfd.readouterr().err
    assert "3 of 4: fail: failed, " in told
    assert f"4 of 4: use it: left out, {root / 'bad'} is missing" in told
    assert "\n3 | error: " in told
    assert "1 of 4: write a world: done, " in told


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_command_line_that_is_refused_ends_the_demo_with_its_line(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_WORKERS", "many")
    words = ("run", "--task", "flickr30k", "--output", str(tmp_path / "run"))
    steps = [Step(f"step {n}", tmp_path / "run" / "result.json", words) for n in (1, 2)]
    with (
        open_folder(tmp_path / "d", overwrite=False) as ledger,
        pytest.raises(BenchError, match=r"'many' is not a valid"),
    ):
        command.Demo(ledger, steps).run(jobs)


class Struck(Lanes):
    """Lanes at which something happens as soon as they work; the work that ended meanwhile is the first."""

    strike: BaseException

    def __init__(self, count, do):
        super().__init__(count, do)
        self.numbers = []

    def begin(self, number, work, mark):
        self.numbers.append(number)

    @property
    def busy(self):
        return len(self.numbers)

    def ended(self):
        raise self.strike

    def stop(self):
        yield self.numbers.pop(0), "done"


@pytest.mark.parametrize(
    ("strike", "raised", "note"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, ["the same command goes on from here"]),
        (Terminated(), Terminated, ["the same command goes on from here"]),
        (LaneDied(2, "SIGKILL"), BenchError, None),
        (OSError(28, "No space left on device"), OSError, None),
    ],
)
def test_what_ended_is_kept_where_steps_at_once_are_interrupted(strike, raised, note, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "Lanes", Struck)
    monkeypatch.setattr(Struck, "strike", strike, raising=False)
    steps = [Step(f"step {n}", tmp_path / "d" / LEDGER, ("tasks", str(n))) for n in (1, 2)]
    with open_folder(tmp_path / "d", overwrite=False) as ledger, pytest.raises(raised) as interrupt:
        command.Demo(ledger, steps).run(jobs=2)
    if note is not None:
        assert interrupt.value.__notes__ == note
    if isinstance(strike, LaneDied):
        assert "process of step 2 (step 2) died (SIGKILL)" in str(interrupt.value)
    assert json.loads((tmp_path / "d" / LEDGER).read_text())["done"] == ["beit3-bench tasks 1"]


def test_a_signal_to_the_whole_job_is_no_death_of_a_lane(tmp_path, monkeypatch):
    """As Slurm sends it: a lane may say that it was stopped before the demo has looked at its own signal."""
    monkeypatch.setattr(lanes, "Lanes", Struck)
    monkeypatch.setattr(Struck, "strike", LaneDied(1, "SIGTERM"), raising=False)
    monkeypatch.setattr(
        Struck, "free", property(lambda self: not self.numbers and not os.kill(os.getpid(), signal.SIGTERM))
    )
    step = Step("step", tmp_path / "d" / LEDGER, ("tasks",))
    with open_folder(tmp_path / "d", overwrite=False) as ledger, heeding_sigterm(), pytest.raises(Terminated):
        command.Demo(ledger, [step]).run(jobs=2)


@pytest.mark.slow
def test_a_signal_to_the_demo_stops_the_steps_and_it_goes_on(tmp_path):
    """The training saves its state; exit code and line are those of one process."""
    words = [sys.executable, "-m", "beit3_bench.harness", "demo", "--task", "flickr30k", "--jobs", "2", "--output"]
    job = subprocess.Popen([*words, tmp_path / "d"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    told = []
    for line in job.stderr:
        told.append(line)
        if "BLIP on flickr30k: done" in line:  # the training beside it is at work
            job.send_signal(signal.SIGTERM)
            break
    told += job.stderr.read().splitlines()
    assert job.wait() == 143, told
    assert told[-1] == "terminated; the same command goes on from here"
    assert (tmp_path / "d" / "models" / "flickr30k" / "state.pt").is_file()
    assert not (tmp_path / "d" / "runs" / "flickr30k").exists()


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
    assert "without a launcher" in result.stderr
    assert not (tmp_path / "d").exists()
