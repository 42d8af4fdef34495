"""Detection and segmentation on two real processes: the rows and the scores of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from exactness import close
from random_detector import save_detector
from random_segmentor import save_segmentor
from ranks import run_ranks
from run_requests import run_request
from training_cases import furthest, mini_world, one_thread, weights

from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.harness.training.journal import read_table
from beit3_bench.tasks.registry import get_task

pytestmark = pytest.mark.slow
HARNESS = [sys.executable, "-m", "beit3_bench.harness"]
ROOTS = {"coco-det": "coco", "ade20k-seg": "ADEChallengeData2016"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("task", "make", "metric", "processes", "size"),
    [("coco-det", save_detector, "bbox/AP", 2, 2)]
    + [("ade20k-seg", save_segmentor, "mIoU", processes, size) for processes in (2, 3) for size in (1, 3, 16)],
)
def test_several_processes_give_the_rows_and_scores_of_one(task, make, metric, processes, size, world, tmp_path):
    checkpoint, root = make(tmp_path / "model.pth"), world / ROOTS[task]
    with one_thread():
        one = run_task(
            run_request(
                task, checkpoint, root, device="cpu", workers=0, batch_size=2, output=tmp_path / "one", limit=6
            ),
            get_task(task),
        ).result
    words = ["run", "--task", task, "--checkpoint", checkpoint, "--data-root", root, "--device", "cpu", "--workers", 0]
    command = [*HARNESS, *words, "--batch-size", size, "--limit", 6, "--output", tmp_path / "two"]
    for finished in run_ranks([command] * processes):
        assert finished.code == 0, finished.err
    two = RunStore.read(tmp_path / "two").result()
    assert two["timing"]["processes"] == processes
    assert len(list((tmp_path / "two" / "rows").glob("rank-*.jsonl"))) == min(processes, -(-6 // size))
    assert metric in one["metrics"]
    assert two["metrics"] == one["metrics"]
    rows, expected = RunStore.read(tmp_path / "two").rows(), RunStore.read(tmp_path / "one").rows()
    assert len(expected) == (6 if task == "ade20k-seg" else one["counts"]["images"])
    assert rows.keys() == expected.keys()
    assert all(close(rows[i], expected[i]) for i in expected)


def test_a_detector_trains_in_shards_as_in_copies(world, tmp_path):
    """Two processes, three steps: the losses and weights of data-parallel training."""
    words = ["finetune", "--task", "coco-det", "--preset", "tiny", "--data-root", world / "coco", "--device", "cpu"]
    options = {"steps": 3, "batch": 4, "warmup_steps": 1, "image_size": 96, "log_steps": 1, "lr": 1e-4}
    words += ["--workers", 0, *[word for k, v in options.items() for word in ("-o", f"{k}={v}")]]
    for parallel in ("ddp", "fsdp"):
        command = [*HARNESS, *words, "--parallel", parallel, "--output", tmp_path / parallel]
        for finished in run_ranks([command] * 2):
            assert finished.code == 0, finished.err
    a, b = (read_table(tmp_path / name / "log.csv") for name in ("ddp", "fsdp"))
    assert [float(r["loss"]) for r in a] == pytest.approx([float(r["loss"]) for r in b], rel=1e-5)
    assert furthest(weights(tmp_path / "ddp"), weights(tmp_path / "fsdp")) < 1e-5
