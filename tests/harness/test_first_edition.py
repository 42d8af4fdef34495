"""What the first edition wrote is read by today's commands, with the numbers that it printed itself.

The fixtures and how they were made: ``tests/first_edition``. These tests speak through the command line alone.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from first_edition.cases import (
    CHECKPOINTS,
    COMPARED,
    EXPECTED,
    FINISHED,
    GONE_ON,
    KILLED,
    PROBES,
    RUNS,
    TABLE,
    TRAININGS,
    UNFINISHED,
)
from native import edit_json, invoke

RESULTS = {name: json.loads((RUNS / name / "result.json").read_text()) for name in FINISHED}
SCORES = json.loads((EXPECTED / "scores.json").read_text())
ROUNDING = 1e-5
KINDS = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8}


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
    """The first edition measured captions without Java."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The mini world of seed 0, on which everything was measured; other versions may write pictures of other bytes."""
    folder = tmp_path_factory.mktemp("data")
    assert invoke("data", "tiny", "--size", "mini", "--out", folder / "tiny").exit_code == 0
    shutil.copytree(folder / "tiny" / "imagenet", folder / "moved" / "imagenet")
    then = RESULTS["imagenet-linear"]["provenance"]["packages"]
    others = [f"{name} {version(name)}" for name in ("pillow", "numpy") if version(name) != then[name]]
    done = invoke("score", "--run", RUNS / "imagenet-linear", "--data-root", folder / "tiny" / "imagenet")
    if others and done.exit_code:
        pytest.skip(f"{' and '.join(others)} write other pictures than the first edition saw")
    assert done.exit_code == 0, done.output
    return folder / "tiny"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A copy of all run folders; what only reads must leave every byte of it as it is."""
    folder = tmp_path_factory.mktemp("written") / "runs"
    shutil.copytree(RUNS, folder)
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file, by path; without locks, which say nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def printed(*words: object) -> str:
    """Standard output of a command that succeeds."""
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: object) -> str:
    """The one line of a command that refuses."""
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("warning:")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def holds(now: Any, then: Any, tolerance: float = 1e-9) -> bool:
    """Whether a JSON value says all that another one said; objects may have further keys, lists no further items."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(key in now and holds(now[key], then[key], tolerance) for key in then)
    if isinstance(then, list):
        same = isinstance(now, list) and len(now) == len(then)
        return same and all(holds(a, b, tolerance) for a, b in zip(now, then, strict=True))
    if isinstance(then, float) and isinstance(now, float):
        return now == pytest.approx(then, rel=tolerance, abs=tolerance)
    return type(now) is type(then) and now == then


def is_near(now: Any, then: Any, tolerance: float = ROUNDING) -> bool:
    """Values of a row: labels, ids and texts the same, numbers to rounding."""
    if isinstance(then, dict) and len(then) == 2 and "shape" in then:
        code = next(iter(then))
        a, b = (np.frombuffer(base64.b64decode(value[code]), KINDS[code]) for value in (now, then))
        return now["shape"] == then["shape"] and np.allclose(a, b, rtol=tolerance, atol=tolerance)
    if isinstance(then, dict):
        return now.keys() == then.keys() and all(is_near(now[key], then[key], tolerance) for key in then)
    if isinstance(then, list):
        return len(now) == len(then) and all(is_near(a, b, tolerance) for a, b in zip(now, then, strict=True))
    return now == pytest.approx(then, rel=tolerance, abs=tolerance) if isinstance(then, float) else now == then


def stored_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of a run folder by id."""
    lines = [json.loads(line) for path in folder.glob("rows/*.jsonl") for line in path.read_text().splitlines()]
    return {row["id"]: row for row in lines if "commit" not in row}


def today(written: dict[str, Any]) -> dict[str, Any]:
    """A result, or a line of a list, with the word that its status has now."""
    return {**written, "status": written["status"].replace("submitted", "to upload")}


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: metric["value"] for name, metric in result["metrics"].items()}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_table_json_says_what_it_said(runs):
    now, then = json.loads(printed("table", "--runs", runs, "--format", "json", *TABLE)), expected("table.json")
    assert len(then["apart"]) == len(FINISHED) - 1
    assert [row for row in then["apart"] if not any(holds(other, row) for other in now["apart"])] == []
    assert now["pending"] == [line.replace("submitted", "to upload") for line in then["pending"]]
    assert len(now["pending"]) == 1


def expected(name: str) -> Any:
    return json.loads((EXPECTED / name).read_text())


def test_table_csv_has_the_numbers_that_it_had(runs):
    now, then = (
        table(printed("table", "--runs", runs, "--format", "csv", *TABLE)),
        table((EXPECTED / "table.csv").read_text()),
    )
    measured = [line for line in then if line["measured"] == "1"]
    assert {line["source"] for line in measured} == {f"run {name}" for name in SCORES}
    numbers = ("value", "low", "high")
    for line in measured:
        where = ("task", "split", "source", "variant", "metric")
        (same,) = [other for other in now if all(other[key] == line[key] for key in where)]
        assert all(same[key] == line[key] for key in line.keys() - {*numbers})
        assert [float(same[key] or "nan") for key in numbers] == pytest.approx(
            [float(line[key] or "nan") for key in numbers], rel=1e-9, nan_ok=True
        )


def test_table_text_has_the_lines_that_it_had(runs):
    def cells(text: str) -> list[set[str]]:
        return [{cell.strip() for cell in line.split("|")} for line in text.splitlines() if line.startswith("|")]

    now, then = printed("table", "--runs", runs, *TABLE), (EXPECTED / "table.md").read_text()
    lines = [line for line in cells(then) if line & {f"run {name}" for name in FINISHED}]
    assert len(lines) == len(FINISHED) - 1
    assert [line for line in lines if not any(line <= other for other in cells(now))] == []


def test_runs_lists_them_as_it_did(runs):
    now = json.loads(printed("runs", "--runs", runs, "--json").replace(f"{runs}/", ""))
    assert {run["name"]: run["status"] for run in now}.keys() == FINISHED.keys() | UNFINISHED.keys()
    then = [today(run) for run in expected("runs.json")]
    assert [run for run in then if not any(holds(other, run) for other in now)] == []


def test_compare_finds_what_it_found(runs):
    a, b = (runs / name for name in COMPARED)
    now = json.loads(printed("compare", a, b, "--json").replace(f"{runs}/", ""))
    then = expected("compare.json")
    assert holds(now, then)
    assert any(metric["difference"] for metric in then["metrics"])


@pytest.mark.parametrize("name", SCORES)
def test_score_gives_the_metrics_of_the_stored_rows(world, runs, name):
    now = json.loads(printed("score", "--run", runs / name, "--data-root", FINISHED[name].data_root(world), "--json"))
    assert values(RESULTS[name])
    assert holds(now, values(RESULTS[name]))
    assert holds(now, SCORES[name])


# ---- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINISHED)
def test_run_gives_the_rows_that_are_stored(world, name, tmp_path):
    now = json.loads(printed(*FINISHED[name].command("run", world), "--output", tmp_path / "run", "--json"))
    then, rows = today(RESULTS[name]), stored_rows(RUNS / name)
    again = stored_rows(tmp_path / "run")
    assert again.keys() == rows.keys()
    # Rows may hold more by now, never less.
    same_keys = {key: {name: value for name, value in again[key].items() if name in row} for key, row in rows.items()}
    assert [key for key, row in rows.items() if not is_near(same_keys[key], row)] == []
    assert holds(values(now), values(then), ROUNDING)
    same = ("task", "split", "status", "subset", "world", "setting", "counts", "chance", "data", "model")
    assert holds({key: now[key] for key in same}, {key: then[key] for key in same}, ROUNDING)
    assert tree(tmp_path / "run").keys() == tree(RUNS / name).keys()


@pytest.mark.parametrize("name", [*FINISHED, *UNFINISHED])
def test_run_adds_nothing_to_a_folder_that_other_code_wrote(world, name, tmp_path):
    """It says that the code is another one, of the same inputs, and leaves every byte as it was."""
    shutil.copytree(RUNS / name, tmp_path / name)
    before = tree(tmp_path / name)
    line = refused(*{**FINISHED, **UNFINISHED}[name].command("run", world), "--output", tmp_path / name)
    assert "holds a run that differs from this one" in line
    assert "--overwrite" in line
    assert re.search(r"\bcode is \w+\.\.\., there \w+\.\.\.", line)
    assert re.search(r"\b(task|checkpoint|data|tokenizer) is ", line) is None
    assert tree(tmp_path / name) == before


@pytest.mark.parametrize("name", ["vqav2", "coco-retrieval", "coco-det"])
def test_replay_proves_them(world, runs, name):
    places = ["--checkpoint", CHECKPOINTS / FINISHED[name].checkpoint, "--data-root", FINISHED[name].data_root(world)]
    tokenizer = [] if name == "coco-det" else ["--tokenizer", CHECKPOINTS / "beit3.spm"]
    found = json.loads(printed("replay", runs / name, *places, *tokenizer, "--json"))
    assert found["same"]
    assert found["rows"] == len(stored_rows(RUNS / name))


@pytest.fixture(scope="module")
def reordered(world, tmp_path_factory):
    """COCO whose training annotations give the same answers in another order, and ImageNet with another class folder."""
    folder = tmp_path_factory.mktemp("reordered")
    for name in ("coco", "imagenet"):
        shutil.copytree(world / name, folder / name)
    annotations = folder / "coco" / "vqa" / "v2_mscoco_train2014_annotations.json"
    edit_json(annotations, lambda content: content["annotations"].reverse())
    for split in ("train", "val"):
        first = min((folder / "imagenet" / split).iterdir())
        first.rename(first.with_name("n99999999"))
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vqav2", "in the checkpoint"),
        ("vqav2-without-labels", "was fine-tuned for other answers, or another order of them"),
        ("imagenet-linear", "in the checkpoint"),
    ],
)
def test_what_the_outputs_of_a_checkpoint_mean_is_still_checked(reordered, name, message, tmp_path):
    assert message in refused(*FINISHED[name].command("run", reordered), "--output", tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("name", PROBES)
def test_probe_gives_what_it_gave(world, name):
    now, then = json.loads(printed(*PROBES[name].command("probe", world))), expected(f"probe-{name}.json")
    same = ("probe", "features", "metrics", "counts", "chosen", "subset", "data", "world", "model")
    assert holds({key: now[key] for key in same}, {key: then[key] for key in same}, ROUNDING)


# ---- training --------------------------------------------------------------------------------------------------------


def assert_same_logs(folder: Path, then: Path) -> None:
    """The same steps with the same losses and scores; how fast they came does not count."""
    for name, keys in (("log.csv", ("step", "loss", "lr")), ("validation.csv", ())):
        now, before = (table((place / name).read_text()) for place in (folder, then))
        assert [line["step"] for line in now] == [line["step"] for line in before]
        for a, b in zip(now, before, strict=True):
            chosen = keys or tuple(b)
            assert [float(a[key]) for key in chosen] == pytest.approx(
                [float(b[key]) for key in chosen], rel=1e-3, nan_ok=True
            )


@pytest.mark.parametrize("name", KILLED)
def test_resume_goes_on_from_the_state_as_it_did(world, name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(TRAININGS / name, folder)
    logged = [line["step"] for line in table((folder / "log.csv").read_text())]
    summary = json.loads(printed(*KILLED[name].command("finetune", world), "--output", folder, "--resume", "--json"))
    assert summary["steps"] == 2 * len(logged)
    assert summary["steps_done_now"] == len(logged)
    assert_same_logs(folder, EXPECTED / "resumed" / name)
    asked = FINISHED[name]
    words = asked.command("run", world, folder)
    words[words.index("--checkpoint") + 1] = str(folder / "best.pth")
    found = json.loads(
        printed(*words, "--tokenizer", CHECKPOINTS / "beit3.spm", "--output", tmp_path / "run", "--json")
    )
    assert found["setting"] == "fine-tuned"


def test_resume_with_other_settings_or_answers_is_refused(world, reordered, tmp_path):
    folder = tmp_path / "vqav2"
    shutil.copytree(TRAININGS / "vqav2", folder)
    before = tree(folder)
    command = [*KILLED["vqav2"].command("finetune", world), "--output", folder, "--resume"]
    assert "recipe lr 0.003 -> 0.001" in refused(*("lr=0.001" if word == "lr=0.003" else word for word in command))
    assert "seed 0 -> 3" in refused(*command, "--seed", 3)
    other = [*KILLED["vqav2"].command("finetune", reordered), "--output", folder, "--resume"]
    assert "answers" in refused(*other)
    assert tree(folder) == before


@pytest.mark.parametrize("name", GONE_ON)
def test_finetune_starts_from_a_checkpoint_as_it_did(world, name, tmp_path):
    printed(*GONE_ON[name].command("finetune", world), "--output", tmp_path / "training")
    now = json.loads((tmp_path / "training" / "config.json").read_text())
    then = expected(f"gone-on/{name}/config.json")
    same = ("task", "preset", "recipe", "model", "source", "allowed", "steps", "training_samples", "validation_samples")
    assert holds({key: now[key] for key in same}, {key: then[key] for key in same})
    assert now["source"]["sha256"] == hashlib.sha256((CHECKPOINTS / GONE_ON[name].checkpoint).read_bytes()).hexdigest()
    assert_same_logs(tmp_path / "training", EXPECTED / "gone-on" / name)
