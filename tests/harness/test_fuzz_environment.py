"""Environment variables of any content: a verb does its work, or refuses in one line with exit code 2."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import toy_task
from native import invoke
from test_fuzz_own_files import HIDDEN
from toy_task import write_toy_data

FEW, MANY = 20, 500
AMOUNT = [pytest.param(range(FEW), id="few"), pytest.param(range(FEW, MANY), id="many", marks=pytest.mark.slow)]
VARIABLES = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP"),
    *("ACCELERATE_MIXED_PRECISION", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR"),
    *("BEIT3_BENCH_TIMEOUT", "BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES", "BEIT3_BENCH_CACHE", "BEIT3_BENCH_MIRROR"),
    *("HOME", "XDG_CACHE_HOME", "TMPDIR", "TEMP", "PATH", "JAVA_HOME", "USER", "HOSTNAME"),
    *("COLUMNS", "LINES", "TERM", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8", "PYTHONCOERCECLOCALE", "NO_COLOR", "TZ"),
)  # fmt: skip
VALUES = (
    *("", " ", "0", "1", "-1", "+1", "1.5", "1e9", "0x10", "nan", "inf", "-inf", "9" * 30, "true", "False", "None", "auto"),
    *("/", "/dev/null", "/dev/full", "/nonexistent/x", "relative/x", "~", "~nobody", "x" * 300, "x" * 5000, "a b\tc\n"),
    *("\x1b[2J", "\u202eé日本語🦆", "\udcff\udcfe", "C", "POSIX", "de_DE.ISO-8859-1", "en_US.UTF-8", "dumb", "localhost"),
    *("١", "²", "1,2", "65536", "99999", "http://[", "file:///etc/passwd", "%s%n", "${HOME}", "../../.."),
)  # fmt: skip
SWITCHES = {"PYTHONUTF8": ("", "0", "1"), "PYTHONCOERCECLOCALE": ("", "0", "1", "warn")}
"""Variables that Python itself refuses to begin with otherwise."""


def spoilt(random_: random.Random) -> dict[str, str | None]:
    """One to four variables of any content, or taken away (None)."""
    chosen = random_.sample(VARIABLES, random_.choice((1, 1, 2, 4)))
    return {name: None if random_.random() < 0.1 else random_.choice(SWITCHES.get(name, VALUES)) for name in chosen}


def wrong(code: int, out: str, err: str) -> str:
    """What is wrong with how a verb ended, or an empty text."""
    if code not in (0, 2):
        return f"exit {code}: {err.strip()[-300:]}"
    if "Traceback" in out + err or "internal error" in out + err:
        return f"traceback: {err.strip()[-300:]}"
    if code == 2 and (len(err.strip()) < 20 or "error: " not in err.splitlines()[-1]):
        return f"says only {err!r}"
    if any(c in out + err for c in HIDDEN):
        return f"prints control characters: {err!r}"
    return ""


@pytest.mark.parametrize("seeds", AMOUNT)
def test_variables_of_any_content_in_this_process(seeds, tmp_path, monkeypatch):
    toy_task.register(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    data = write_toy_data(tmp_path / "data", count=6)
    named = ["--checkpoint", data / "toy.pth", "--data-root", data, "--workers", 0, "--device", "cpu"]
    output = ["--output", tmp_path / "run", "--overwrite"]
    assert invoke("run", "--task", "toy", *named, "--output", tmp_path / "whole").exit_code == 0
    verbs = [
        ["run", "--task", "toy", *named, *output],
        ["replay", tmp_path / "whole", *named],
        ["score", "--run", tmp_path / "whole", "--data-root", data],
        ["runs", "--runs", tmp_path],
        ["table", "--runs", tmp_path],
        ["cache"],
        ["models"],
        ["run", "--help"],
    ]
    failures = []
    for seed in seeds:
        changed = spoilt(random.Random(f"environment {seed}"))
        if (changed.get("WORLD_SIZE") or "1").strip() in ("65536", "99999"):
            changed["RANK"] = "-1"  # else it would wait for the others
        with monkeypatch.context() as patch:
            for name, value in changed.items():
                patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
            for words in verbs:
                done = invoke(*words)
                problem = wrong(done.exit_code, done.stdout, done.stderr)
                if words == ["cache"] and done.exit_code == 2 and "say which folder" in done.stderr:
                    problem = ""
                if problem:
                    failures.append(f"seed {seed}: {words[0]}: {changed}: {problem}"[:600])
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:6])


def test_reader_that_goes_away_is_no_difference_and_no_error(tmp_path):
    words = [
        sys.executable,
        "-m",
        "beit3_bench.harness",
        "table",
        "--systems",
        "all",
        "--format",
        "html",
        "--runs",
        str(tmp_path),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 141


SLOWLY = [pytest.param(range(4), id="few"), pytest.param(range(4, MANY), id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", SLOWLY)
def test_variables_of_any_content_when_a_process_begins(seeds, tmp_path):
    """What is read while modules are imported."""
    failures = []
    for seed in seeds:
        random_ = random.Random(f"beginning {seed}")
        changed = spoilt(random_)
        env = {**os.environ, **{k: v for k, v in changed.items() if v is not None}}
        env = {k: v for k, v in env.items() if changed.get(k, "") is not None}
        words = random_.choice((["tasks"], ["runs", "--runs", str(tmp_path)], ["models"], ["table"], ["tasks", "nope"]))
        done = subprocess.run(
            [sys.executable, "-m", "beit3_bench.harness", *words],
            env=env, cwd=tmp_path, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        if problem := wrong(done.returncode, out, err):
            failures.append(f"seed {seed}: {words[0]}: {changed}: {problem}"[:600])
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:6])
