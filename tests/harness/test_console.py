"""No verb prints text of files and names as it is."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from leaderboard_cases import result, write_run
from native import invoke, run_words

import beit3_bench.harness
from beit3_bench.harness.console import Toned, columns, echo, headed, sections, without_colour
from beit3_bench.harness.record.store import RunStore

BAD = "\x1b]0;t\x07\x1b[2J\n\u202e<img src=x onerror=alert(1)>|![a](http://b)"


def test_all_verbs_print_through_one_function():
    for path in Path(beit3_bench.harness.__path__[0]).rglob("*.py"):
        if path.name != "console.py":
            assert not re.search(r"click\.echo\(|print\(.*file=sys\.stderr", path.read_text()), path


def test_echo_writes_out_what_controls_a_terminal(capsys):
    echo("a\x1b[2J\nb\r")
    assert capsys.readouterr().out == "a\\x1b[2J\nb\\r\n"


# ---- colour --------------------------------------------------------------------------------------------------------------

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def be_a_terminal(monkeypatch):
    """Let the streams, which are captured, say that they are terminals; to be called within the test."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)


def test_a_terminal_shows_what_a_line_means_in_colour(monkeypatch, capsys):
    be_a_terminal(monkeypatch)
    echo("error: no such file", err=True)
    echo("[rank 3] internal error: KeyError", err=True)
    echo("warning: a part of the data", err=True)
    echo("an error: not at its beginning", err=True)
    echo("error: on stdout, a model's answer")
    echo(*headed("vqav2 minival\n  samples 4"))
    echo(*sections("# Leaderboard\ntext\n"), nl=False)
    echo(Toned("same", "good"), ": 4 rows")
    out, err = capsys.readouterr()
    red, yellow, bold, green, end = "\x1b[31m\x1b[1m", "\x1b[33m\x1b[1m", "\x1b[1m", "\x1b[32m\x1b[1m", "\x1b[0m"
    assert err.splitlines() == [
        f"{red}error:{end} no such file",
        f"{red}[rank 3] internal error:{end} KeyError",
        f"{yellow}warning:{end} a part of the data",
        "an error: not at its beginning",
    ]
    assert out == (
        f"error: on stdout, a model's answer\n{bold}vqav2 minival{end}\n  samples 4\n{bold}# Leaderboard\n{end}text\n"
        f"{green}same{end}: 4 rows\n"
    )


def test_colour_lets_no_text_control_the_terminal(monkeypatch, capsys):
    be_a_terminal(monkeypatch)
    echo(f"error: {BAD}", Toned(BAD, "error"), err=True)
    shown = ESCAPE.sub("", capsys.readouterr().err)
    assert hidden(shown) == []


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colour_gets_none(monkeypatch, capsys, name, value):
    be_a_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    echo(Toned("warning: x", "warning"), err=True)
    assert capsys.readouterr().err == "warning: x\n"


def test_neither_a_pipe_nor_output_for_programs_has_colour(capsys, monkeypatch):
    echo(Toned("error: x", "error"), err=True)
    assert capsys.readouterr().err == "error: x\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with without_colour():
        echo(Toned("ok", "good"))
    with without_colour(False):
        echo(Toned("ok", "good"))
    assert capsys.readouterr().out == "ok\n\x1b[32m\x1b[1mok\x1b[0m\n"


def on_a_terminal(*words, **variables):
    """What a command prints on a terminal of its own."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "beit3_bench.harness", *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm", **variables}
    child = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    said = b""
    try:
        while chunk := os.read(leader, 4096):
            said += chunk
    except OSError:  # EIO: nobody writes any more
        pass
    os.close(leader)
    child.wait()
    return said.decode()


def test_verbs_on_a_real_terminal():
    assert on_a_terminal("tasks").startswith("\x1b[1mname")
    assert on_a_terminal("tasks", "nothing").startswith("\x1b[31m\x1b[1merror:\x1b[0m ")
    assert not ESCAPE.search(on_a_terminal("tasks", "nothing", "--json"))
    assert not ESCAPE.search(on_a_terminal("tasks", NO_COLOR="1"))
    assert json.loads(on_a_terminal("tasks", "--json"))


def test_columns_are_one_line_each():
    assert columns([("name", "x"), ("a\nb", "y")]) == ["name  x", "a\\nb  y"]


def hidden(text):
    return sorted({c for c in text if c != "\n" and (c < " " or c in "\x7f\u202e\u2028" or "\x80" <= c <= "\x9f")})


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex", "html"])
@pytest.mark.parametrize("world", ["real", "tiny"])
def test_table_of_hostile_names_controls_nothing(tmp_path, form, world):
    hostile = result(world=world)
    hostile["model"].update(checkpoint=f"{BAD}.pth", preset=f"base{BAD}")
    hostile.update(notes=[BAD], counts={f"images{BAD}": 3})
    write_run(tmp_path, "good", result(world=world))
    write_run(tmp_path, "bad\x1b[2J\nname", hostile)
    write_run(tmp_path, "pending", {**hostile, "status": "to upload", "metrics": {}})
    shown = invoke("table", "--runs", tmp_path, "--format", form)
    assert shown.exit_code == 0, shown.stderr
    assert hidden(shown.stdout) == []
    if form in ("markdown", "html"):
        assert "<img" not in shown.stdout
    if form == "markdown":
        assert "](http" not in shown.stdout
    if form == "json":
        json.loads(shown.stdout)
    assert hidden(invoke("runs", "--runs", tmp_path).stdout) == []


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd", "-1+1", "@SUM(A1)", " =1", "=HYPERLINK(0)", "-"])
def test_formula_in_csv_is_text(tmp_path, text):
    from beit3_bench.harness.leaderboard.text import csv_text

    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-1.5", "+2", "1e-5", "-3e+7", "79.1", "a=b", ""])
def test_number_and_plain_text_stay_in_csv(text):
    from beit3_bench.harness.leaderboard.text import csv_text

    assert csv_text(text) == text


def test_error_line_controls_nothing():
    done = invoke("run", "--task", "vqav2", "--checkpoint", "\x1b[2J\u202e.pth", "--data-root", "x")
    assert done.exit_code == 2
    assert hidden(done.stderr) == []
    assert r"\x1b[2J" in done.stderr


# ---- one bad run hides no other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "html", "latex"])
def test_damaged_results_are_told_and_the_others_are_in_the_table(tmp_path, form):
    good = result()
    good["model"]["checkpoint"] = "good.pth"
    write_run(tmp_path, "a", good)
    folder = write_run(tmp_path, "b", good)
    (folder / "result.json").write_text('{"schema": 1')
    one = invoke("table", "--runs", tmp_path, "--format", form)
    assert (one.exit_code, one.stderr.count("\n")) == (2, 1)
    assert str(folder / "result.json") in one.stderr
    assert "good" in one.stdout
    other = write_run(tmp_path, "c", good)
    (other / "result.json").unlink()
    (other / "result.json").mkdir()
    many = invoke("table", "--runs", tmp_path, "--format", form)
    assert (many.exit_code, many.stderr.count("\n")) == (2, 1)  # a folder of that name is no result
    assert many.stdout == one.stdout


def test_table_is_written_through_no_link(tmp_path):
    write_run(tmp_path / "runs", "a", result())
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for suffix in (".md", ".csv", ".html"):
        (tmp_path / f"board{suffix}").symlink_to(victim)
    done = invoke("table", "--runs", tmp_path / "runs", "--output", tmp_path / "board", "--format", "html")
    assert done.exit_code == 0, done.stderr
    assert victim.read_text() == "precious"
    assert not (tmp_path / "board.md").is_symlink()


def test_runs_with_files_that_are_none_are_listed_as_damaged(tmp_path):
    write_run(tmp_path, "good", result())
    for name, file in (("a", "config.json"), ("b", "result.json")):
        (tmp_path / name / "rows").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"task": "vqav2"}')
        (tmp_path / name / file).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name / file)
    (tmp_path / "b" / "rows" / "notes.txt").write_text("of the user")
    done = invoke("runs", "--runs", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    assert {run["name"]: run["status"] for run in json.loads(done.stdout)} == {
        "a": "damaged",
        "b": "damaged",
        "good": "scored",
    }


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_run_whose_caller_has_closed_its_streams_keeps_its_rows_and_exit_code(native, closed, tmp_path):
    words = [*run_words(native, "nlvr2"), "--limit", 4, "--output", tmp_path / "run"]
    command = shlex.join([sys.executable, "-m", "beit3_bench.harness", *map(str, words)])
    assert subprocess.run(["sh", "-c", f"{command} {closed}"], stdout=subprocess.DEVNULL).returncode == 0
    assert len(RunStore.read(tmp_path / "run").rows()) == 4
    assert subprocess.run(["sh", "-c", f"{command} --task none {closed}"], stdout=subprocess.DEVNULL).returncode == 2
