"""A program that uses the API finds its process as it was: arithmetic, threads, random numbers, environment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from beit3_bench import evaluate, load
from beit3_bench.tasks.registry import get_task


def libraries():
    """Where PyTorch 2.9 and later keep the precision of float32, by library."""
    backends = torch.backends
    return [
        owner
        for owner in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        if hasattr(owner, "fp32_precision")
    ]


def state_of_the_process():
    return {
        "products": torch.get_float32_matmul_precision(),
        "cuda products": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "libraries": [owner.fp32_precision for owner in libraries()],
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "denormal": float(torch.tensor([1e-40]) * 1),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "random": (random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())),
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)},
        "folder": os.getcwd(),
        "warnings": list(warnings.filters),
        "errors of numpy": np.geterr(),
    }


@pytest.fixture
def coarse():
    """A program that allows everything that is fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("task", ["coco-retrieval", "vqav2", "coco-caption"])
def test_loading_asking_and_evaluating_leave_the_callers_process_as_it_was(task, native, coarse, monkeypatch):
    examples = get_task(task)(native.root(task)).read(get_task(task).default_split).examples
    image = next(e.images[0] for e in examples if e.images)
    load(native.checkpoint(task), task, native.root(task), device="cpu")  # imports are over
    before = state_of_the_process()
    model = load(native.checkpoint(task), task, native.root(task), device="cpu")
    within = []
    ability = type(model.model.ability)
    predict = ability.predict
    monkeypatch.setattr(
        ability,
        "predict",
        lambda self, batch: within.append(torch.get_float32_matmul_precision()) or predict(self, batch),
    )
    {"coco-retrieval": model.embed, "coco-caption": model.caption}.get(task, lambda _: model.answer([image], ["?"]))(
        [image]
    )
    asked = len(within)
    evaluate(model, task, native.root(task), limit=4)
    assert 0 < asked < len(within)
    assert set(within) == {"highest"}  # fp32 is exact, whatever the program allows
    monkeypatch.undo()
    after = state_of_the_process()
    assert {name for name in before if before[name] != after[name]} == set()


def test_an_object_of_the_callers_draws_and_computes_as_the_caller_likes(native, coarse):
    class Guesses:
        def caption(self, images):
            self.draws.append((random.random(), torch.get_float32_matmul_precision()))
            return ["a cat"] * len(images)

    guesses = Guesses()
    guesses.draws = []
    for _ in range(2):
        evaluate(guesses, "coco-caption", native.root("coco-caption"), limit=2)
    assert len({number for number, _ in guesses.draws}) == len(guesses.draws) > 1
    assert {precision for _, precision in guesses.draws} == {"medium"}


def test_what_a_file_lacks_is_the_same_random_weights_every_time(native):
    def head():
        model = load(native.checkpoint("coco-retrieval"), "nlvr2", device="cpu", allow_missing="*", preset="tiny")
        return [p.clone() for name, p in model.module.named_parameters() if "head" in name]

    first, second = head(), head()
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


WORDS = """
import torch
from beit3_bench.backbones.precision import full_float32

backends = torch.backends
older = [
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    lambda: setattr(backends.cudnn, "allow_tf32", False),
]
newer = [
    lambda: setattr(backends, "fp32_precision", "tf32"),
    lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
]


def read(what):
    try:
        return what()
    except RuntimeError as error:  # older and newer words together: PyTorch refuses to say
        return str(error)


def state():
    older = torch.get_float32_matmul_precision, lambda: backends.cuda.matmul.allow_tf32, lambda: backends.cudnn.allow_tf32
    libraries = backends, backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
    return [read(what) for what in older], [getattr(library, "fp32_precision", None) for library in libraries]


for word in [*older, *(newer if hasattr(backends, "fp32_precision") else ())]:
    word()
    before = state()
    with full_float32():
        within = state()
    assert within[0] == ["highest", False, False], within
    assert not {"tf32", "bf16"} & set(within[1][1:]), within
    assert state() == before, (state(), before)
"""


def test_full_precision_ends_with_its_block_in_whatever_words_a_program_set_its_own():
    done = subprocess.run([sys.executable, "-c", WORDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
