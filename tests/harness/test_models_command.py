"""The verbs that list models and tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from beit3_bench.backbones.pins import pin_or_check
from beit3_bench.backbones.released import released_files
from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import models, tasks
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.registry import get_task, task_names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path))


def run(command, *args: str) -> str:
    result = CliRunner().invoke(command, list(args))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_every_released_file_is_listed_with_its_pin(tmp_path: Path) -> None:
    pin_or_check(tmp_path, "beit3.spm", sha256="ab" * 32)
    text = run(models.command)
    known = [file for file in released_files() if file.sha256]
    assert all(file.name in text for file in released_files())
    assert all(file.sha256[:12] in text for file in known)
    assert text.count("not seen yet") == len(released_files()) - 1 - len(known)
    records = {record["name"]: record for record in json.loads(run(models.command, "--json"))}
    assert records["beit3.spm"]["sha256"] == "ab" * 32
    assert records["beit3_base_patch16_480_vqa"]["published"] == [
        {"task": "vqav2", "split": "test-dev", "metric": "vqa_accuracy", "value": 77.65}
    ]


def test_one_model_shows_all_that_is_known() -> None:
    text = run(models.command, "beit3_large_indomain_patch16_768_vgqaaug_vqa.pth")
    assert "Visual Genome QA" in text
    assert "https://github.com/addf400/files/releases/download/beit3/" in text
    assert json.loads(run(models.command, "beit3.spm", "--json"))["licence"] == "MIT"


def test_an_unknown_model_gets_a_hint() -> None:
    with pytest.raises(BenchError, match="did you mean 'beit3_base_patch16_480_vqa'"):
        run(models.command, "beit3_base_patch16_480_vq")


def test_the_parameter_table_prints_the_paper_s_breakdown_of_the_giant() -> None:
    counts = json.loads(run(models.command, "--params", "--json"))
    giant = {part: round(count / 1e6, 1) for part, count in counts["giant"].items()}
    assert (giant["V-FFN"], giant["L-FFN"], giant["VL-FFN"], giant["attention"]) == (692.1, 692.1, 51.9, 317.2)
    lines = run(models.command, "--params").splitlines()
    assert lines[0].split()[-4:] == ["tiny", "base", "large", "giant"]
    assert next(line for line in lines if line.startswith("V-FFN")).split()[-1] == "692.1"


def test_listing_models_does_not_import_torch() -> None:
    program = (
        "import sys; from beit3_bench.harness.commands.models import command; command([], standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_task_is_listed_with_its_headline_and_default_split() -> None:
    text = run(tasks.command)
    for name in task_names():
        task = get_task(name)
        line = next(line for line in text.splitlines() if line.split() and line.split()[0] == name)
        assert read_facts(name).title in line
        assert ("(data of your own)" if task.own_data else f"{task.default_split}*") in line
    assert [record["name"] for record in json.loads(run(tasks.command, "--json"))] == task_names()


@pytest.mark.parametrize("name", task_names())
def test_one_task_shows_files_options_metrics_and_command_line(name: str) -> None:
    task, text = get_task(name), run(tasks.command, name)
    assert f"beit3-bench run --task {name} --checkpoint " in text
    assert all(metric.name in text for metric in task.metrics)
    assert task.layout.strip().splitlines()[0].strip() in text
    record = json.loads(run(tasks.command, name, "--json"))
    assert task.own_data or record["default_split"] in record["splits"]
    assert all(f"-o {option['name']}=" in text for option in record["options"])


def test_an_unknown_task_gets_a_hint() -> None:
    with pytest.raises(BenchError, match="did you mean 'flickr30k'"):
        run(tasks.command, "flickr30")
