"""What lies in examples/ is read by what it is written for; the notebook runs from top to bottom."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit3_bench.harness.settings.runs import read_runs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "predict.ipynb"


def cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in content["cells"])  # results belong to who runs it
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_file_of_runs_is_one():
    runs = read_runs(EXAMPLES / "runs.toml")
    assert [run.entry.task for run in runs] == ["vqav2", "nlvr2", "flickr30k", "coco-caption", "imagenet"]
    assert all(run.entry.dtype == "bf16" for run in runs)
    assert runs[3].entry.options == {"num_beams": 3}


def test_the_job_array_asks_for_one_run_of_the_file():
    script = EXAMPLES / "slurm.sh"
    subprocess.run(["sh", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --signal=TERM" in text
    assert 'beit3-bench run --config "$runs" --index "$index"' in text
    bare = {name: value for name, value in os.environ.items() if name != "SLURM_ARRAY_TASK_ID"}
    done = subprocess.run(["sh", script], capture_output=True, text=True, env=bare, check=False)
    assert done.returncode != 0
    assert "--array=1-N" in done.stderr


def test_the_job_array_hands_its_number_on(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "3", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    words = ["sh", EXAMPLES / "slurm.sh", "my.toml"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path)
    assert done.stdout == "beit3-bench|run|--config|my.toml|--index|3|"


def test_the_notebook_is_python():
    texts = ["\n".join("pass" if line.startswith("!") else line for line in cell.splitlines()) for cell in cells()]
    assert texts
    assert all(ast.parse(text).body for text in texts)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)  # the cells call beit3-bench
        nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert sum("image/png" in out.get("data", {}) for out in shown) >= 2
    assert any("text/html" in out.get("data", {}) for out in shown)
    assert "mean_recall" in "".join(out.get("data", {}).get("text/plain", "") for out in shown)
