"""A card that fails, lacks memory, lacks an arithmetic, or differs from the others: one line, and nothing stored is lost."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import toy_task
from click.testing import CliRunner
from native import run_words
from training_cases import finetune_words, mini_world, request_for, train

from beit3_bench.errors import BenchError, DeviceFailed, card_failure, exhausted
from beit3_bench.harness.cli import explain, main
from beit3_bench.harness.engine import devices
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.devices import failing_card, memory_facts, mixed_devices, resolve_device
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.training import loop

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in the documentation\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)
CARD = torch.device("cuda", 0)


def failures():
    yield RuntimeError(ILLEGAL)
    yield RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
    yield RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`")
    yield RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")
    if hasattr(torch, "AcceleratorError"):
        yield torch.AcceleratorError(ILLEGAL)


def of_memory():
    full = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1 GiB is free."
    yield torch.OutOfMemoryError(full)
    yield RuntimeError("CUDA error: out of memory")
    yield RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")


@pytest.mark.parametrize("error", failures(), ids=lambda error: str(error)[:40])
def test_a_failed_card_is_one_line_and_exit_code_2(error):
    line, status = explain(error)
    assert status == 2
    assert "\n" not in line
    assert line.startswith(f"error: the card failed ({str(error).splitlines()[0]}); give the same command again")
    with pytest.raises(DeviceFailed, match=r"cuda:0: the card failed \([Cc][Uu]"), failing_card(CARD):
        raise error
    assert exhausted(error) is None


@pytest.mark.parametrize("error", of_memory(), ids=lambda error: str(error)[:40])
def test_too_little_memory_on_a_card_is_no_failure_of_it(error):
    line, status = explain(error)
    assert status == 2
    assert "not enough memory on the card" in line
    assert ("(2.50 GiB wanted)" in line) == ("2.50 GiB" in str(error))
    assert card_failure(error) is None
    with pytest.raises(type(error)), failing_card(CARD):
        raise error


def test_another_error_is_not_mistaken_for_a_card():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("CUDA error: of a file")):
        assert card_failure(error) is None
        assert explain(error)[1] == 1
        with pytest.raises(type(error)), failing_card(CARD):
            raise error


# ---- a run ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Words of a run of the toy task, in batches of ten."""
    toy_task.register(monkeypatch.setattr)
    data = toy_task.write_toy_data(tmp_path / "data")
    words = ["run", "--task", "toy", "--checkpoint", data / "toy.pth", "--data-root", data, "--device", "cpu"]
    return [*words, "--workers", 0, "--batch-size", 10, "--output", tmp_path / "run"]


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def fail_at_batch(monkeypatch, number, error):
    """Let the ability of the toy task fail at a batch, from 1."""
    from beit3_bench.harness.engine import predict

    count = [0]
    real = predict.to_device

    def to_device(batch, device):
        count[0] += 1
        if count[0] == number:
            raise error
        return real(batch, device)

    monkeypatch.setattr(predict, "to_device", to_device)


@pytest.mark.parametrize("error", failures(), ids=lambda error: str(error)[:40])
def test_a_run_whose_card_fails_in_the_middle_goes_on_with_the_same_command(toy, tmp_path, monkeypatch, error):
    with monkeypatch.context() as patch:
        fail_at_batch(patch, 3, error)
        done = invoke(*toy)
    assert done.exit_code == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"error: cpu: the card failed ({str(error).splitlines()[0]})")
    assert said.endswith(
        f"the rows so far are kept in {tmp_path / 'run'}; give the same command again to go on from there"
    )
    assert "Traceback" not in done.stderr
    assert len(RunStore.read(tmp_path / "run").rows()) == 20
    again = invoke(*toy)
    assert again.exit_code == 0, again.stderr
    assert "20 samples were there already" in again.stdout
    straight = invoke(*toy[:-1], tmp_path / "straight")
    assert straight.exit_code == 0
    assert RunStore.read(tmp_path / "run").rows() == RunStore.read(tmp_path / "straight").rows()


def test_a_failed_card_ends_a_list_of_tasks(toy, tmp_path, monkeypatch):
    """The other tasks would fail on it, too."""
    fail_at_batch(monkeypatch, 1, RuntimeError(ILLEGAL))
    runs = tmp_path / "runs.toml"
    lines = ["[[run]]", 'task = "toy"', f'checkpoint = "{toy[4]}"', f'data_root = "{toy[6]}"', 'device = "cpu"']
    runs.write_text("\n".join([*lines, "workers = 0", 'output = "a"', *lines, "workers = 0", 'output = "b"']))
    done = invoke("run", "--config", runs)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: cpu: the card failed (CUDA error: an illegal memory access")
    assert not (tmp_path / "b").exists()


def test_a_sample_that_does_not_fit_is_told_with_sizes(toy, monkeypatch):
    from beit3_bench.harness.engine import predict

    def full(batch, device):
        raise next(of_memory())

    monkeypatch.setattr(predict, "to_device", full)
    done = invoke(*toy)
    assert done.exit_code == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: example 0")
    assert "even for a batch of one (2.50 GiB wanted, " in line
    assert " GB free); use --dtype bf16, a smaller --image-size, or another --device" in line


def test_weights_that_do_not_fit_are_told_with_sizes(toy, monkeypatch):
    def full(self, *arguments, **more):
        raise next(of_memory())

    monkeypatch.setattr(torch.nn.Module, "to", full)
    done = invoke(*toy)
    assert done.exit_code == 2
    line = done.stderr.splitlines()[-1]
    assert "not enough memory on cpu for the weights of " in line
    assert "(2.50 GiB wanted, " in line


def test_memory_is_asked_of_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_500_000_000, 84_900_000_000))
    assert memory_facts(CARD, next(of_memory())) == "2.50 GiB wanted, 1.5 GB of 84.9 GB free"
    assert memory_facts(CARD, None) == "1.5 GB of 84.9 GB free"


# ---- a training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return mini_world(tmp_path_factory.mktemp("world"))


def test_a_training_whose_card_fails_goes_on_from_its_last_state(world, tmp_path, monkeypatch):
    options = {"steps": "3", "save_steps": "1"}
    update = loop.TrainingLoop._update

    def failing(self, step, batches):
        if step == 2:
            raise RuntimeError(ILLEGAL)
        return update(self, step, batches)

    monkeypatch.setattr(loop.TrainingLoop, "_update", failing)
    request = request_for(world, tmp_path / "broken", "nlvr2", options)
    done = invoke(*finetune_words(request), "--from-scratch")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "error: cpu: the card failed (CUDA error: an illegal memory access was encountered); "
        f"step 2 is kept in {tmp_path / 'broken'}; go on with --resume"
    )
    monkeypatch.undo()
    assert train(request_for(world, tmp_path / "broken", "nlvr2", options, resume=True))["steps_done_now"] == 1


def test_a_training_batch_that_does_not_fit_is_told_with_sizes_and_a_smaller_part(world, tmp_path, monkeypatch):
    def full(self, step, batches):
        raise next(of_memory())

    monkeypatch.setattr(loop.TrainingLoop, "_update", full)
    with pytest.raises(BenchError) as caught:
        train(request_for(world, tmp_path / "x", "nlvr2"))
    line = str(caught.value)
    assert line.startswith("not enough memory on cpu for 8 samples at once (2.50 GiB wanted, ")
    assert "use -o micro_batch=4 (the same batch in more parts), --dtype bf16, or another --device" in line
    assert line.endswith("was saved yet; begin again with --overwrite")


# ---- which card -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def old_card(monkeypatch):
    """A card without bfloat16, where torch emulates it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


def test_a_card_without_bf16_is_refused_before_anything_is_read(old_card, tmp_path, monkeypatch):
    assert resolve_device("cuda", dtype="fp16") == CARD
    words = ["--checkpoint", tmp_path / "none.pth", "--data-root", tmp_path / "none", "--dtype", "bf16"]
    for verb in (["run", "--task", "nlvr2"], ["probe"]):
        done = invoke(*verb, *words)
        assert (done.exit_code, done.stderr) == (
            2,
            "error: --dtype bf16: Tesla T4 (cuda:0) does not compute in it; use --dtype fp16 or fp32\n",
        )
    done = invoke("finetune", "--task", "nlvr2", "--data-root", tmp_path, "--preset", "tiny", "--dtype", "bf16")
    assert "Tesla T4 (cuda:0) does not compute in it" in done.stderr


def test_the_defaults_are_not_looked_at_before_reading(monkeypatch):
    monkeypatch.setattr(devices, "resolve_device", lambda *arguments: pytest.fail("looked"))
    Compute().check()
    Compute("cpu").check()


class Group(Processes):
    """Processes that have said what they compute on."""

    names: tuple[str, ...] = ()

    def gather(self, value):
        return [value, *self.names]


@pytest.mark.parametrize(
    ("others", "note"),
    [
        (("Tesla T4",), None),
        (("NVIDIA A100", "Tesla T4"), "1 x NVIDIA A100, 2 x Tesla T4"),
        (("CPU",), "1 x CPU, 1 x Tesla T4"),
    ],
)
def test_processes_on_different_cards_are_marked(old_card, others, note):
    group = Group(0, 1 + len(others), 0)
    object.__setattr__(group, "names", others)
    said = mixed_devices(CARD, group)
    assert said == (note and f"the processes computed on different devices ({note}): rows agree to rounding, and the speed is "
                    "that of the slowest")  # fmt: skip


def test_the_result_says_that_cards_differed(toy, tmp_path, monkeypatch):
    import json

    monkeypatch.setattr(
        devices, "mixed_devices", lambda device, processes: "the processes computed on different devices"
    )
    done = invoke(*toy, "--json")
    assert done.exit_code == 0, done.stderr
    assert "the processes computed on different devices" in json.loads(done.stdout)["notes"]
    assert "warning: the processes computed on different devices" in done.stderr


CHILD = """
import atexit, os, sys
from beit3_bench.harness.__main__ import main
from beit3_bench.harness.engine import predict

atexit.register(os.abort)  # as torch aborts, when it asks a card that has failed
real = predict.to_device

def to_device(batch, device):
    raise RuntimeError("CUDA error: device-side assert triggered")

predict.to_device = to_device
sys.exit(main())
"""


def test_behind_a_failed_card_nothing_is_cleaned_up(native, tmp_path):
    """The process would be aborted, and the exit code be that of a crash."""
    words = [*run_words(native, "flickr30k"), "--output", tmp_path / "run"]
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: cpu: the card failed (CUDA error: device-side assert triggered)"
    )
