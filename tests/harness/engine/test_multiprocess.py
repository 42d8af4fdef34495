"""Several real processes over gloo: the same result at any division, one message where they disagree, a rank that dies."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_task
from native import Native, run_words
from ranks import TORCHRUN, Finished, environment, run_ranks, strike, wait_until
from run_requests import run_request
from toy_task import ToyTask, write_toy_data
from training_cases import finetune_words, furthest, mini_world, request_for, train, weights

from beit3_bench.errors import BenchError
from beit3_bench.harness.engine import processes
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.harness.training.state import STATE, read_state
from beit3_bench.tasks.contract import Example, Split
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.metrics.recall import recalls, retrieval_ranks
from beit3_bench.tasks.planning import plan_batches
from beit3_bench.tasks.registry import get_task

PYTHON = sys.executable
HARNESS = [PYTHON, "-m", "beit3_bench.harness"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy task and its family, in this process too."""
    toy_task.register(monkeypatch.setattr)


@pytest.fixture
def data(tmp_path: Path, registered: None) -> Path:
    return write_toy_data(tmp_path / "data")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_world(tmp_path_factory.mktemp("world"))


def toy(data: Path, output: Path, *more: object) -> list[object]:
    words = ["run", "--task", "toy", "--checkpoint", data / "toy.pth", "--data-root", data, "--workers", 0]
    return [PYTHON, toy_task.__file__, *words, "--device", "cpu", "--output", output, *more]


def told(finished: list[Finished]) -> str:
    """The one line that all processes together printed on stderr; all ended with exit code 2."""
    assert [f.code for f in finished] == [2] * len(finished), [f.err for f in finished]
    lines = [line for f in finished for line in f.err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("[rank 0] error: ")
    return lines[0]


def same_rows(a: Path, b: Path) -> bool:
    left, right = RunStore.read(a).rows(), RunStore.read(b).rows()
    if left.keys() != right.keys():
        return False
    return all(
        np.array_equal(left[i][key], right[i][key]) if isinstance(left[i][key], np.ndarray) else left[i][key] == right[i][key]
        for i in left
        for key in left[i]
    )  # fmt: skip


# ---- processes that see different things ------------------------------------------------------------------------------


def other_toy_data(data: Path) -> Path:
    """The same numbers but for one."""
    other = write_toy_data(data.parent / "other")
    records = json.loads((other / "toy.json").read_text())
    records[7]["value"] += 1e-3
    (other / "toy.json").write_text(json.dumps(records))
    return other


DIFFERENT = {
    "data": lambda data: {"--data-root": other_toy_data(data)},
    "checkpoint": lambda data: {"--checkpoint": data / "toy.json"},
    "options": lambda data: {"-o": "bias=0.5"},
    "dtype": lambda data: {"--dtype": "bf16"},
}


def changed(command: list[object], options: dict[str, object]) -> list[object]:
    """A command with other values of options that it has."""
    words = list(command)
    for name, value in options.items():
        words[words.index(name) + 1] = value
    return words


@pytest.mark.parametrize("what", ["data", *[pytest.param(w, marks=pytest.mark.slow) for w in DIFFERENT if w != "data"]])
def test_an_evaluation_of_different_things_stops_with_one_line(what, data, tmp_path):
    first = toy(data, tmp_path / "run", "-o", "bias=0", "--dtype", "fp32")
    line = told(run_ranks([first, changed(first, DIFFERENT[what](data))]))
    assert f"what the run stands on differ between processes: {what} (rank 1 against rank 0)" in line
    assert not (tmp_path / "run").exists()


def other_captions(world: Path, folder: Path) -> Path:
    """The same data set but for one word of a training caption."""
    root = folder / "other"
    shutil.copytree(world / "flickr30k", root)
    record = json.loads((root / "dataset_flickr30k.json").read_text())
    image = next(i for i in record["images"] if i["split"] == "train")
    image["sentences"][0]["raw"] += " indeed"
    (root / "dataset_flickr30k.json").write_text(json.dumps(record))
    return root


DIFFERENT_TRAINING = {
    "data": lambda world, folder: ["--data-root", other_captions(world, folder)],
    "recipe lr": lambda world, folder: ["-o", "lr=0.123"],
    "--seed": lambda world, folder: ["--seed", 5],
    "--output": lambda world, folder: ["--output", folder / "elsewhere"],
}


@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=[] if w == "data" else pytest.mark.slow) for w in DIFFERENT_TRAINING]
)
def test_a_training_of_different_things_stops_with_one_line(what, world, tmp_path):
    options = {"lr": "1e-4"} if what != "recipe lr" else {}
    first = [*HARNESS, *finetune_words(request_for(world, tmp_path / "x", options=options))]
    line = told(run_ranks([first, [*first, *DIFFERENT_TRAINING[what](world, tmp_path)]]))
    assert f"settings differ between processes: {what} (rank 1 against rank 0)" in line
    assert not (tmp_path / "x").exists()


def test_a_resumed_training_with_another_recipe_names_the_key_once(world, tmp_path):
    request = request_for(world, tmp_path / "x")
    train(request)
    other = dataclasses.replace(request, options={**request.options, "weight_decay": "0.1"})
    line = told(run_ranks([[*HARNESS, *finetune_words(other), "--resume"]] * 2))
    assert "was made with other settings (recipe weight_decay 0.05 -> 0.1)" in line


@pytest.mark.slow
def test_synchronised_batch_norms_on_several_cpu_processes_are_refused_once(world, tmp_path):
    words = ["finetune", "--task", "ade20k-seg", "--preset", "tiny", "--from-scratch", "--device", "cpu"]
    command = [*HARNESS, *words, "--data-root", world / "ADEChallengeData2016", "--output", tmp_path / "x"]
    assert "several processes on GPUs only" in told(run_ranks([command] * 2))
    assert not (tmp_path / "x").exists()


# ---- a process that dies, or does not answer ---------------------------------------------------------------------------


def test_a_killed_process_stops_an_evaluation_that_can_be_resumed(data, tmp_path):
    reference = run_task(run_request("toy", data / "toy.pth", data, device="cpu", workers=0), ToyTask)
    out = tmp_path / "run"

    kill = strike(out / "rows" / "rank-00001.jsonl", 1)
    command = toy(data, out, "--batch-size", 1, "-o", "slow=0.05")
    first, second = run_ranks([command] * 2, kill, BEIT3_BENCH_TIMEOUT="20")
    assert (first.code, second.code) == (2, -signal.SIGKILL)
    lines = [line for line in first.err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert "another of the 2 processes died" in lines[0]
    assert not (out / "result.json").exists()
    stored = len(RunStore.read(out).done())
    assert 20 < stored < 40  # all of the one that lived, some of the other
    for finished in run_ranks([command] * 2):
        assert finished.code == 0, finished.err
    result = RunStore.read(out).result()
    assert result["metrics"] == reference.result["metrics"]
    assert result["timing"]["resumed_samples"] == stored
    assert same_rows(out, reference.folder)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_killed_process_stops_a_training_that_can_be_resumed(parallel, world, tmp_path):
    options = {"steps": "40", "save_steps": "3", "lr": "1e-4"}
    request = request_for(world, tmp_path / "x", options=options, parallel=parallel)
    command = [*HARNESS, *finetune_words(request)]
    first, second = run_ranks([command] * 2, strike(tmp_path / "x" / STATE, 1), BEIT3_BENCH_TIMEOUT="20")
    assert (first.code, second.code) == (2, -signal.SIGKILL), first.err
    lines = [line for line in first.err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert "another of the 2 processes died" in lines[0]
    stopped = read_state(tmp_path / "x" / STATE)["step"]
    assert 3 <= stopped < 40
    summary = train(dataclasses.replace(request, resume=True))
    assert summary["steps_done_now"] == 40 - stopped
    train(dataclasses.replace(request, output=tmp_path / "straight"))
    assert furthest(weights(tmp_path / "straight"), weights(tmp_path / "x"), noise=False) < 1e-5


@pytest.mark.slow
def test_a_process_that_hangs_stops_the_others_within_the_timeout(world, tmp_path):
    options = {"steps": "2000", "save_steps": "3"}
    command = [*HARNESS, *finetune_words(request_for(world, tmp_path / "x", options=options))]
    hang = strike(tmp_path / "x" / STATE, 1, signal.SIGSTOP)
    moment: list[float] = []

    def meanwhile(running: list[subprocess.Popen]) -> None:
        hang(running)
        moment.append(time.monotonic())
        code = running[0].wait(timeout=60)
        moment.append(time.monotonic())
        assert code == 2
        running[1].send_signal(signal.SIGKILL)

    first, _ = run_ranks([command] * 2, meanwhile, BEIT3_BENCH_TIMEOUT="4")
    assert moment[1] - moment[0] < 20
    assert "did not answer within 4 s" in first.err
    assert read_state(tmp_path / "x" / STATE)["step"] >= 3


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_timeout_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv(processes.TIMEOUT_VARIABLE, text)
    with pytest.raises(BenchError, match="number of seconds above 0"):
        processes.group_timeout()


def test_errors_of_the_program_are_not_taken_for_a_lost_process():
    group = processes.Processes(0, 2)
    with pytest.raises(RuntimeError, match="mat1"), group.watching():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with (
        pytest.raises(BenchError, match=r"another of the 2 processes died.*Connection closed by peer"),
        group.watching(),
    ):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
    alone = processes.Processes()
    with pytest.raises(RuntimeError, match="gloo"), alone.watching():
        raise RuntimeError("gloo")


LEAVES = """
import os
from beit3_bench.harness.engine import processes
group = processes.Processes.start("cpu")
assert group.gather(group.rank) == [0, 1]
import torch, torch.distributed.nn.functional, torch.distributed.optim.zero_redundancy_optimizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
mesh = init_device_mesh("cpu", (2,))
assert float((2 * distribute_tensor(torch.ones(4), mesh, [Shard(0)])).sum().full_tensor()) == 8
del mesh
processes._leave()
names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_thread_of_the_group_outlives_it():
    """One that does may abort the interpreter on its way out, behind a finished run."""
    for finished in run_ranks([[PYTHON, "-c", LEAVES]] * 2):
        assert (finished.code, finished.out) == (0, "[]\n"), finished.err


# ---- uneven shares ------------------------------------------------------------------------------------------------------


def launched(launcher: list[object], command: list[object]) -> subprocess.CompletedProcess:
    """A command (python ...) under a launcher."""
    words = [str(word) for word in [*launcher, *command[1:]]]
    return subprocess.run(words, capture_output=True, text=True, timeout=200, check=False, env=environment())


@pytest.mark.parametrize(
    ("count", "samples", "batch"),
    [(3, 2, 1), *[pytest.param(*c, marks=pytest.mark.slow) for c in ((2, 1, 16), (7, 3, 1), (7, 40, 3), (3, 40, 16))]],
)
def test_more_processes_than_samples_and_uneven_shares_change_nothing(count, samples, batch, tmp_path, registered):
    data = write_toy_data(tmp_path / "data", samples)
    one = tmp_path / "one"
    reference = run_task(run_request("toy", data / "toy.pth", data, device="cpu", workers=0, output=one), ToyTask)
    command = toy(data, tmp_path / "many", "--batch-size", batch)
    done = launched([PYTHON, *TORCHRUN, count], command)
    assert done.returncode == 0, done.stderr[-2000:]
    result = RunStore.read(tmp_path / "many").result()
    assert result["metrics"] == reference.result["metrics"]
    assert result["counts"] == reference.result["counts"]
    assert result["timing"]["processes"] == count
    assert same_rows(tmp_path / "many", one)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_retrieval_ranks_against_the_gallery_of_all_processes(launcher, native: Native, tmp_path):
    """Three processes, batches of seven: the numbers and intervals of one process."""
    reference = run_task(
        run_request(
            "flickr30k", native.checkpoint("flickr30k"), native.root("flickr30k"), device="cpu", workers=0,
            batch_size=16, output=tmp_path / "one",
        ),
        get_task("flickr30k"),
    )  # fmt: skip
    words = [*run_words(native, "flickr30k"), "--output", tmp_path / "many", "--batch-size", 7]
    started = {
        "accelerate": [
            # `accelerate launch --cpu` leaves several processes to MPI; this starts them as it does on GPUs.
            PYTHON, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 3, "--num_machines", 1,
            "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "beit3_bench.harness",
        ],
        "torchrun": [PYTHON, *TORCHRUN, 3, "-m", "beit3_bench.harness"],
    }  # fmt: skip
    done = launched(started[launcher], ["python", *words])
    assert done.returncode == 0, done.stderr[-2000:]
    result = RunStore.read(tmp_path / "many").result()
    assert result["metrics"] == reference.result["metrics"]
    assert result["timing"]["processes"] == 3
    rows, expected = RunStore.read(tmp_path / "many").rows(), RunStore.read(tmp_path / "one").rows()
    assert rows.keys() == expected.keys()
    assert max(float(abs(rows[i]["embedding"] - expected[i]["embedding"]).max()) for i in rows) < 1e-5
    examples = get_task("flickr30k")(native.root("flickr30k")).read("test").examples
    inflated = per_process_recall(rows, examples, 3)
    assert inflated["mean_recall"] > result["metrics"]["mean_recall"]["value"] + 3


def per_process_recall(rows: dict[str, Any], examples: Sequence[Example], world: int) -> dict[str, float]:
    """What the official evaluation reports on ``world`` processes (mean over them): every process ranks its own share of
    the pairs of image and text, which `DistributedSampler` pads with duplicates, and nothing is gathered.
    """
    texts = [e for e in examples if e.kind == "text"]
    reported = []
    for rank in range(world):
        sampler = torch.utils.data.DistributedSampler(texts, num_replicas=world, rank=rank, shuffle=False)
        own = [texts[i] for i in sampler]
        images = list(dict.fromkeys(e.target for e in own))
        reported.append(
            recalls(
                retrieval_ranks(
                    np.stack([rows[f"image:{i}"]["embedding"] for i in images]), np.array(images),
                    np.stack([rows[e.id]["embedding"] for e in own]), np.array([e.target for e in own]),
                )
            )
        )  # fmt: skip
    return {name: float(np.mean([part[name] for part in reported])) for name in reported[0]}


@pytest.mark.parametrize(("world", "points"), [(8, 1.5), (16, 6)])
def test_recall_is_not_inflated_by_galleries_of_one_process(world, points):
    """1,000 images with 5 texts each, as in Flickr30K, at R@1 of 59 and 68: per-process galleries are points too high."""
    random = np.random.default_rng(0)
    examples, rows = [], {}
    for image in range(1000):
        name, centre = f"{image:03d}", random.normal(size=24)
        made = [Example(f"image:{name}", images=(f"{name}.jpg",), cluster=name, target=name, kind="image")]
        made += [Example(f"text:{name}-{n}", text="a", cluster=name, target=name, kind="text") for n in range(5)]
        for example in made:
            vector = centre + random.normal(size=24) * (1 if example.kind == "image" else 0.5)
            rows[example.id] = {"id": example.id, "embedding": (vector / np.linalg.norm(vector)).astype(np.float32)}
        examples += made
    task = get_task("flickr30k")(Path("nowhere"))
    split = Split("test", tuple(examples))
    single = task.score(rows, split).metrics
    plan = list(plan_batches(examples, 16))
    merged = {e.id: rows[e.id] for rank in reversed(range(world)) for batch in plan[rank::world] for e in batch}
    match_ids(list(merged), [e.id for e in examples], "merge", "rows")
    assert task.score(merged, split).metrics == single
    official = per_process_recall(rows, examples, world)
    assert official["mean_recall"] > single["mean_recall"] + points
    assert official["IR@1"] > single["IR@1"] + 4


@pytest.mark.parametrize(
    ("world", "error", "lost"),
    [
        (2, RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (1, RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), False),
        (2, RuntimeError("The size of tensor a (3) must match"), False),
        (2, NotImplementedError("no kernel of c10d::allreduce_ for the ProcessGroup on this device"), False),
    ],
)
def test_only_a_lost_connection_is_called_a_lost_process(world, error, lost):
    with pytest.raises(BenchError if lost else type(error)) as raised, processes._watching(world):
        raise error
    assert ("another of the 2 processes died" in str(raised.value)) == lost
    assert lost or raised.value is error


# ---- process 0 is gone, another lives on ------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_goes_on_while_a_process_of_the_dead_start_still_writes(data, tmp_path):
    """Nothing that is stored is lost or stored twice, whenever the orphan wakes up."""
    output = tmp_path / "run"
    command = toy(data, output, "--batch-size", 2, "-o", "slow=0.1")  # the options are part of what a run is
    shard = output / "rows" / "rank-00001.jsonl"
    stored: list[set[str]] = []

    def meanwhile(running: list[subprocess.Popen]) -> None:
        wait_until(lambda: shard.exists() and shard.read_bytes().count(b'"commit"') >= 2, running)
        running[1].send_signal(signal.SIGSTOP)
        running[0].kill()
        running[0].wait()
        stored.append(RunStore.read(output).done())
        done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False, env=environment())
        assert done.returncode == 0, done.stderr
        assert "a process of an earlier start still runs" in done.stderr
        running[1].send_signal(signal.SIGCONT)

    run_ranks([command, command], meanwhile, BEIT3_BENCH_TIMEOUT="20")
    rows = RunStore.read(output).rows()
    assert len(rows) == 40
    assert stored[0] <= rows.keys()
    lines = [line for path in (output / "rows").iterdir() for line in path.read_bytes().splitlines()]
    assert len([line for line in lines if not line.startswith(b'{"commit"')]) == 40
    again = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False, env=environment())
    assert again.returncode == 0, again.stderr
    assert "was finished already" in again.stdout
