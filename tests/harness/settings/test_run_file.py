"""``run --config``: many runs, killed and resumed, one of them by number, and what is refused before any starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.run import command
from beit3_bench.harness.settings.runs import PARAMETERS, RunEntry, read_runs

HARNESS = [sys.executable, "-m", "beit3_bench.harness"]
THREE = """
workers = 0
device = "cpu"
checkpoint = "weights"
data_root = "{world}"

[[run]]
task = "imagenet-linear"
output = "out/one"
limit = 4

[[run]]
task = "coco-retrieval"
batch-size = 1
output = "out/two"

[[run]]
task = "nlvr2"
output = "out/three"
"""


@pytest.fixture
def three(native, weights, here) -> Path:
    """A file of three runs in the current folder."""
    (here / "runs.toml").write_text(THREE.format(world=native.world))
    return here / "runs.toml"


def result(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def states(stdout: str) -> list[tuple[str, str]]:
    """(task, state) of the lines of the summary."""
    lines = stdout.splitlines()
    first = next(
        number for number, line in enumerate(lines) if line.split() == ["run", "task", "state", "result", "folder"]
    )
    at = lines[first].index("state"), lines[first].index("result")
    return [(line.split()[1], line[at[0] : at[1]].strip()) for line in lines[first + 1 :]]


# ---- running ---------------------------------------------------------------------------------------------------------------


def test_three_runs_killed_and_resumed(three):
    child = subprocess.Popen(
        [*HARNESS, "run", "--config", three.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    rows = Path("out/two/rows/rank-00000.jsonl")
    end = time.monotonic() + 120
    while not (rows.is_file() and rows.stat().st_size > 2000) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert result("out/one")["status"] == "scored"
    assert not Path("out/two/result.json").exists()

    done = invoke("run", "--config", three.name)
    assert done.exit_code == 0, done.stderr
    assert states(done.stdout) == [
        ("imagenet-linear", "was finished, skipped"),
        ("coco-retrieval", "done"),
        ("nlvr2", "done"),
    ]
    assert "run 1: imagenet-linear: was finished, skipped: top1 " in done.stderr
    assert result("out/two")["timing"]["resumed_samples"] > 0

    again = invoke("run", "--config", three.name)
    assert [state for _, state in states(again.stdout)] == ["was finished, skipped"] * 3
    alone = invoke("run", "--task", "coco-retrieval", "--checkpoint", "weights", "--data-root",
                   result("out/two")["provenance"]["data_root"], "--workers", 0, "--device", "cpu", "--json")  # fmt: skip
    assert json.loads(alone.stdout)["metrics"] == result("out/two")["metrics"]


def test_one_of_them_by_number_as_in_a_job_array(three):
    done = invoke("run", "--config", three.name, "--index", 3)
    assert done.exit_code == 0, done.stderr
    assert states(done.stdout) == [("nlvr2", "done")]
    assert [path.name for path in Path("out").iterdir()] == ["three"]
    kept = json.loads(Path("out/three/config.json").read_text())["resolved_from"]
    assert kept["checkpoint"] == kept["device"] == "runs.toml:17"
    assert invoke("run", "--config", three.name, "--index", 4).stderr == (
        "error: runs.toml: has no run 4; --index is a number from 1 to 3\n"
    )


def test_one_that_fails_stops_no_other_and_is_exit_code_2(three):
    three.write_text(three.read_text().replace("batch-size = 1\n", 'split = "tset"\n'))
    done = invoke("run", "--config", three.name)
    assert done.exit_code == 2
    assert states(done.stdout) == [("imagenet-linear", "done"), ("coco-retrieval", "failed"), ("nlvr2", "done")]
    assert "has no split 'tset'; did you mean 'test'?" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: runs.toml: 1 of 3 failed: run 2 (coco-retrieval); mend them and give the same command again"
    )


def test_an_error_inside_the_program_stops_no_other_either(three, monkeypatch):
    from beit3_bench.tasks.nlvr2 import NLVR2

    monkeypatch.setattr(NLVR2, "read", lambda self, split: 1 / 0)
    three.write_text(
        three.read_text()
        .replace("coco-retrieval", "nlvr2", 1)
        .replace('"nlvr2"\noutput = "out/three"', '"imagenet-linear"\nlimit = 3')
    )
    done = invoke("run", "--config", three.name)
    assert done.exit_code == 2
    assert [state for _, state in states(done.stdout)] == ["done", "failed", "done"]
    assert "run 2: nlvr2: failed: internal error: ZeroDivisionError" in done.stderr


def test_the_command_line_wins_over_all_of_them(three):
    done = invoke("run", "--config", three.name, "--index", 1, "--limit", 2, "--dtype", "bf16", "--json")
    (one,) = json.loads(done.stdout)
    assert one["subset"] == {"limit": 2}
    kept = json.loads(Path("out/one/config.json").read_text())
    assert (kept["dtype"], kept["resolved_from"]["dtype"]) == ("bf16", "command line")
    assert kept["resolved_from"]["device"] == "runs.toml:7"


def test_what_a_file_does_not_say_comes_from_the_settings(two_lines, here):
    (here / "runs.toml").write_text('[[run]]\ntask = "nlvr2"\nlimit = 2\nworkers = 0\n')
    done = invoke("run", "--config", "runs.toml")
    assert done.exit_code == 0, done.stderr
    assert f"data of nlvr2: {two_lines.world / 'nlvr2'} (from {two_lines.file}: data)" in done.stderr


# ---- reading ---------------------------------------------------------------------------------------------------------------


def test_keys_are_the_options_of_run():
    keys = {PARAMETERS.get(f.name, f.name) for f in fields(RunEntry)}
    assert keys == {parameter.name for parameter in command.params} - {"config", "index", "as_json", "quiet"}


def test_a_run_as_words(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "runs.toml"
    file.write_text(
        'seed = 3\noptions = { a = 1, flag = true }\n[[run]]\ntask = "nlvr2,vqav2"\ncheckpoint = "openclip:ViT-B-32/x.pt"\n'
        'data-root = { nlvr2 = "~/n", vqav2 = "/c" }\nallow-missing = ["a.*", "b"]\noverwrite = true\n'
        'options = { b = [0.5, 1], a = "x" }\ntokenizer = "t.spm"\n[[run]]\ntask = "vqav2"\noverwrite = false\n'
    )
    first, second = read_runs(file)
    assert first.words() == [
        *(
            "--task=nlvr2,vqav2",
            "--checkpoint=openclip:ViT-B-32/x.pt",
            "--data-root=nlvr2=/home/me/n",
            "--data-root=vqav2=/c",
        ),
        *(f"--tokenizer={tmp_path}/t.spm", "--seed=3", "--allow-missing=a.*", "--allow-missing=b", "--overwrite"),
        *("-o", "a=x", "-o", "flag=true", "-o", "b=0.5,1"),
    ]
    assert second.words() == ["--task=vqav2", "--seed=3", "-o", "a=1", "-o", "flag=true"]
    assert "--seed=3" not in first.words(without=["seed"])
    assert not any(word.startswith("--data-root") for word in first.words(without=["data_roots"]))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed = 1", ": has no list of runs; write [[run]]"),
        ("\n[run]\n", ":2: has no list of runs; write [[run]]"),
        ('[[run]]\ntask = "nlvr2"\n[[run]]\ntask = "vqav2"\nlimt = 3', ":5: no key 'limt'; did you mean 'limit'?"),
        ('lmit = 1\n[[run]]\ntask = "nlvr2"', ":1: no key 'lmit'; did you mean 'limit'?"),
        ('[[run]]\ntask = "nlvr2"\nlimit = "3"', ":3: limit: '3' is not a whole number; write it without quotes"),
        ('[[run]]\ntask = "nlvr2"\nsetting = "tuned"', ":3: setting: 'tuned'; choose one of: fine-tuned, zero-shot"),
        ('[[run]]\ntask = "nlvr2"\n\n[[run]]\nlimit = 3', ":4: run 2 names no task"),
        ('[[run]]\ntask = "a"\noutput = "x"\n[[run]]\ntask = "b"\noutput = "./x"', ":4: run 2 and run 1"),
        ("[[run]\n", ":1: is not valid TOML"),
    ],
)
def test_a_file_that_is_refused_is_named_with_its_line(tmp_path, text, line):
    file = tmp_path / "runs.toml"
    file.write_text(text)
    with pytest.raises(BenchError) as refused:
        read_runs(file)
    assert str(refused.value).startswith(f"{file}{line}")


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ('task = "nlvr3"', "runs.toml:19: run 4: unknown task 'nlvr3'; did you mean 'nlvr2'?"),
        ('task = "nlvr2"\nlimit = 0', "runs.toml:19: run 4: Invalid value for '--limit'"),
        ('task = "nocaps"', "runs.toml:19: run 4: "),
    ],
)
def test_a_bad_run_is_refused_before_the_first_starts(three, here, last, line):
    three.write_text(
        f"{three.read_text()}[[run]]\n{last}\n".replace('output = "out/three"\n', 'output = "out/three"\n\n')
    )
    done = invoke("run", "--config", three.name)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "nlvr2"], "--task and --config exclude each other"),
        (["--output", "x"], "--output and --config exclude each other"),
        (["--index", "0"], "has no run 0; --index is a number from 1 to 3"),
    ],
)
def test_words_that_do_not_go_with_a_file(three, here, words, line):
    done = invoke("run", "--config", three.name, *words)
    assert done.exit_code == 2
    assert line in done.stderr
    assert not (here / "out").exists()


def test_number_without_file_and_nothing_at_all(here):
    assert "--index belongs to --config FILE" in invoke("run", "--task", "nlvr2", "--index", 1).stderr
    said = invoke("run")
    assert said.exit_code == 2
    assert said.stderr.count("\n") == 1
    for way in ("--task NAME", "beit3-bench init", "beit3-bench demo"):
        assert way in said.stderr
    assert invoke("run", "--config", "none.toml").stderr == "error: none.toml: runs file not found; check its name\n"
