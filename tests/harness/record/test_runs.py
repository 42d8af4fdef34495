"""`beit3-bench runs`: what is listed, and what `runs rm` may and may not delete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy_task
from click.testing import CliRunner
from run_requests import run_request
from toy_task import ToyTask, write_toy_data

from beit3_bench.harness.cli import main
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_task.register(monkeypatch.setattr)


@pytest.fixture
def runs(tmp_path):
    """A finished run, one of a subset, an unfinished one, below results/runs; their names."""
    data = write_toy_data(tmp_path / "data")
    root = Path("results/runs")

    def make(name, **request):
        asked = run_request("toy", data / "toy.pth", data, device="cpu", workers=0, output=root / name, **request)
        run_task(asked, ToyTask)

    make("full")
    make("deep/part", limit=7)
    make("stopped")
    (root / "stopped" / "result.json").unlink()
    return root


def listed(*words):
    return json.loads(CliRunner().invoke(main, ["runs", *map(str, words), "--json"]).stdout)


def rm(*words, **extra):
    return CliRunner().invoke(main, ["runs", "rm", *map(str, words)], **extra)


def test_every_run_is_listed_with_its_state(runs):
    found = {run["name"]: run for run in listed()}
    assert {name: run["status"] for name, run in found.items()} == {
        "full": "scored",
        "deep/part": "scored",
        "stopped": "unfinished",
    }
    assert [found[name]["rows"] for name in ("full", "deep/part", "stopped")] == [40, 7, 40]
    assert found["deep/part"]["subset"] == {"limit": 7}
    assert found["full"]["headline"]["metric"] == "accuracy"
    assert found["stopped"]["checkpoint"] == "toy.pth"
    text = CliRunner().invoke(main, ["runs"]).stdout
    assert "accuracy 100.0 (first 7 only)" in text
    assert len(text.splitlines()) == 4


def test_damaged_run_is_listed_with_its_problem_and_does_not_hide_the_others(runs):
    (runs / "full" / "result.json").write_text("{")
    assert sorted(run["status"] for run in listed()) == ["damaged", "scored", "unfinished"]
    assert "full/result.json" in CliRunner().invoke(main, ["runs"]).stdout


@pytest.mark.parametrize("name", ["full", "stopped"])
@pytest.mark.parametrize("at", [3, -40])
def test_a_row_that_was_changed_on_the_disk_damages_a_finished_run_and_shortens_another(runs, name, at):
    shard = runs / name / "rows" / "rank-00000.jsonl"
    content = bytearray(shard.read_bytes())
    content[at] ^= 1
    shard.write_bytes(content)
    run = next(run for run in listed() if run["name"] == name)
    if name == "full":
        assert (run["status"], run["rows"]) == ("damaged", 0)
        assert "can be read" in run["problem"]
    else:
        assert (run["status"], run["problem"]) == ("unfinished", "")
        assert run["rows"] < 40


def test_size_of_a_run_is_that_of_its_own_files(runs):
    whole = sum(path.stat().st_size for path in (runs / "full").rglob("*") if path.is_file())
    (runs / "full" / "elsewhere").symlink_to(runs.resolve() / "stopped")
    (runs / "full" / "link.json").symlink_to(runs.resolve() / "stopped" / "config.json")
    assert {run["name"]: run["bytes"] for run in listed()}["full"] == whole


def test_what_lies_where_rows_should_hides_no_run(runs):
    shutil.rmtree(runs / "stopped" / "rows")
    (runs / "stopped" / "rows").write_text("no folder")
    (runs / "full" / "rows" / "notes.txt").write_text("mine")
    assert {run["name"]: (run["status"], run["rows"]) for run in listed()} == {
        "full": ("scored", 40),
        "deep/part": ("scored", 7),
        "stopped": ("unfinished", 0),
    }


@pytest.mark.parametrize(
    "words", [["runs"], ["runs", "--json"], ["table"], ["table", "--cost"], ["table", "--output", "page.html"]]
)
def test_lists_and_tables_import_no_numpy(runs, words):
    code = (
        "import sys; from beit3_bench.harness.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print({'numpy', 'torch', 'PIL'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "set()"


def test_folder_without_runs_is_said_to_have_none(tmp_path):
    assert listed("--runs", tmp_path / "nowhere") == []
    result = CliRunner().invoke(main, ["runs", "--runs", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no runs in" in result.stderr


def test_rm_deletes_by_name_and_by_path_and_nothing_else(runs):
    result = rm("full", runs / "stopped", "--yes")
    assert result.exit_code == 0, result.stderr
    assert [run["name"] for run in listed()] == ["deep/part"]
    assert not (runs / "full").exists()
    assert not (runs / "stopped").exists()


def test_rm_keeps_files_that_are_not_the_runs(runs):
    (runs / "full" / "notes.txt").write_text("mine")
    assert "the folder stays, it holds notes.txt" in rm("full", "--yes").stdout
    assert [p.name for p in (runs / "full").iterdir()] == ["notes.txt"]


def test_rm_without_a_yes_deletes_nothing(runs):
    result = rm("full", input="y\n")  # no terminal
    assert result.exit_code == 2
    assert "needs a yes; add --yes" in result.stderr
    assert (runs / "full" / "result.json").exists()


@pytest.mark.parametrize("place", ["data", "results", "results/runs", "results/runs/full/rows", "nowhere"])
def test_rm_refuses_what_is_no_run(runs, place):
    before = sorted(Path(".").rglob("*"))
    result = rm("stopped", place, "--yes")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert sorted(Path(".").rglob("*")) == before


def test_rm_refuses_a_link_and_a_folder_of_another_program(runs, tmp_path):
    os.symlink(runs / "full", runs / "link")
    assert "is a link" in rm("link", "--yes").stderr
    other = tmp_path / "other"
    other.mkdir()
    (other / "result.json").write_text('{"score": 3}')
    (other / "config.json").write_text("{}")
    assert "is not a run folder" in rm(other, "--yes").stderr
    assert len(list(other.iterdir())) == 2


def test_rm_refuses_a_run_that_is_being_written_and_then_deletes_none(runs):
    config = json.loads((runs / "stopped" / "config.json").read_text())
    with RunStore.open(runs / "stopped", config):
        assert {run["name"]: run["status"] for run in listed()}["stopped"] == "running"
        result = rm("full", "stopped", "--yes")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "is writing to this run" in result.stderr
        assert (runs / "full" / "result.json").exists()
    assert rm("full", "stopped", "--yes").exit_code == 0
