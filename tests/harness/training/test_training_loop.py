"""A whole fine-tuning on a mini world: resume, accumulation, validation, what is refused, what `run` makes of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from ranks import run_ranks, strike
from run_requests import run_request
from training_cases import (
    HEAD_OF,
    LAUNCH,
    ROOTS,
    finetune_words,
    furthest,
    launched,
    mini_world,
    one_thread,
    request_for,
    train,
    weights,
)

from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.finetune import command, parse_pairs
from beit3_bench.harness.progress import Reporting
from beit3_bench.harness.record.fingerprints import digest, earlier_option_digests
from beit3_bench.harness.reuse.image_cache import ImageCache
from beit3_bench.harness.termination import Terminated, heeding_sigterm
from beit3_bench.harness.training import loop
from beit3_bench.harness.training.journal import read_table
from beit3_bench.harness.training.start import prepare
from beit3_bench.harness.training.state import BEST, LAST, STATE, read_state
from beit3_bench.tasks.registry import get_task


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


# ---- every task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ROOTS)
def test_every_native_task_trains_and_leaves_a_checkpoint_of_its_own(task, world, tmp_path):
    options = {"max_length": "6"} if task == "coco-caption" else {}
    start = prepare(request_for(world, tmp_path / "x", task), get_task(task))
    before = {n: p.clone() for n, p in start.training.module.named_parameters()}
    summary = train(request_for(world, tmp_path / "x", task, options))
    assert summary["steps"] == 4
    assert summary["best"]["value"] >= 0
    checkpoint = read_checkpoint(tmp_path / "x" / BEST)
    m = checkpoint.metadata
    assert (m["task"], m["head"], m["preset"], m["step"]) == (task, HEAD_OF[task], "tiny", 4)
    assert m["config"]["drop_path_rate"] == 0
    assert m["tokenizer"] == start.training.fingerprints["tokenizer"]
    assert (tmp_path / "x" / "beit3.spm").read_bytes() == (world / "beit3.spm").read_bytes()
    log = read_table(tmp_path / "x" / "log.csv")
    assert [row["step"] for row in log] == ["1", "2", "3", "4"]
    assert float(log[0]["lr"]) == 0.0
    assert (tmp_path / "x" / "curves.png").read_bytes().startswith(b"\x89PNG")
    after = {n: p for n, p in start.training.module.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)  # `prepare` is repeatable and was not touched
    assert any(
        not torch.equal(before[n].flatten()[:9], v.flatten()[:9]) for n, v in checkpoint.tensors.items() if n in before
    )


def test_run_takes_the_checkpoint_without_further_flags(world, tmp_path):
    from beit3_bench.harness.session import run_task

    summary = train(request_for(world, tmp_path / "x"))
    outcome = run_task(
        run_request(
            "flickr30k",
            Path(summary["checkpoint"]),
            world / "flickr30k",
            split="val",
            device="cpu",
            output=tmp_path / "run",
        ),
        get_task("flickr30k"),
    )
    assert outcome.result["metrics"]["mean_recall"]["value"] == pytest.approx(summary["best"]["value"], abs=1e-9)
    assert outcome.result["setting"] == "fine-tuned"


# ---- the same weights, however they come about ------------------------------------------------------------------------


def test_interrupted_and_resumed_equals_straight(world, tmp_path, monkeypatch):
    options = {"steps": "8", "save_steps": "4", "drop_path": "0.3", "ema_decay": "0.9"}
    train(request_for(world, tmp_path / "straight", options=options))
    update = loop.TrainingLoop._update

    def interrupted(self, step, batches):
        if step == 6:
            raise KeyboardInterrupt
        return update(self, step, batches)

    monkeypatch.setattr(loop.TrainingLoop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(request_for(world, tmp_path / "broken", options=options))
    assert "step 4 is kept" in caught.value.__notes__[0]
    monkeypatch.undo()
    summary = train(request_for(world, tmp_path / "broken", options=options, resume=True))
    assert summary["steps_done_now"] == 4
    assert furthest(weights(tmp_path / "straight"), weights(tmp_path / "broken")) == 0
    a, b = (read_table(tmp_path / name / "log.csv") for name in ("straight", "broken"))
    assert [(r["step"], r["loss"]) for r in a] == [(r["step"], r["loss"]) for r in b]


@pytest.mark.parametrize("strikes", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_sigterm_saves_at_the_end_of_the_step_and_the_resumed_training_equals_a_straight_one(
    strikes, world, tmp_path, monkeypatch
):
    options = {"steps": "20", "drop_path": "0.3", "ema_decay": "0.9"}
    train(request_for(world, tmp_path / "straight", options=options))
    at = sorted(random.Random(strikes).sample(range(19), strikes))
    update = loop.TrainingLoop._update

    def struck(self, step, batches):
        if step in at:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, step, batches)

    monkeypatch.setattr(loop.TrainingLoop, "_update", struck)
    for number, step in enumerate(at):
        request = request_for(world, tmp_path / "broken", options=options, resume=number > 0)
        with pytest.raises(Terminated) as caught, heeding_sigterm():
            train(request)
        assert caught.value.__notes__ == [f"step {step + 1} is kept in {tmp_path / 'broken'}; go on with --resume"]
    train(request_for(world, tmp_path / "broken", options=options, resume=True))
    assert furthest(weights(tmp_path / "straight"), weights(tmp_path / "broken")) == 0
    a, b = (read_table(tmp_path / name / "log.csv") for name in ("straight", "broken"))
    assert [(r["step"], r["loss"]) for r in a] == [(r["step"], r["loss"]) for r in b]


def test_sigterm_during_a_validation_leaves_it_to_the_resumed_training(world, tmp_path, monkeypatch):
    options = {"steps": "15", "validate_epochs": "1", "lr": "1e-3"}  # 40 images: 5 steps per epoch
    straight = train(request_for(world, tmp_path / "straight", "imagenet-linear", options))
    validate, passes = loop.validate, itertools.count(1)

    def struck(*args, **kwargs):
        if next(passes) in (2, 4):  # of step 10; of step 15, behind that of step 10 again
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args, **kwargs)

    monkeypatch.setattr(loop, "validate", struck)
    for step, resume in ((10, False), (15, True)):
        with pytest.raises(Terminated) as caught, heeding_sigterm():
            train(request_for(world, tmp_path / "broken", "imagenet-linear", options, resume=resume))
        assert f"step {step} is kept" in caught.value.__notes__[0]
    broken = train(request_for(world, tmp_path / "broken", "imagenet-linear", options, resume=True))
    assert broken["best"] == straight["best"]
    for name in (BEST, LAST):
        assert furthest(weights(tmp_path / "straight", name), weights(tmp_path / "broken", name)) == 0
    a, b = (read_table(tmp_path / name / "validation.csv") for name in ("straight", "broken"))
    assert [row["step"] for row in a] == ["5", "10", "15"]
    assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_to_the_whole_job_at_a_random_moment_ten_times(workers, world, tmp_path):
    options = {"steps": "120", "save_steps": "1000"}
    straight, broken = (
        [sys.executable, "-m", "beit3_bench.harness", *finetune_words(request), "--workers", str(workers)]
        for request in (request_for(world, tmp_path / name, options=options) for name in ("straight", "broken"))
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order: Adam makes steps of what rounding leaves
    subprocess.run([*straight, "--quiet"], check=True, env=environment)
    draw, log = random.Random(workers), tmp_path / "broken" / "log.csv"
    for number in range(10):
        resume = ["--resume"] if number else []
        before = log.stat().st_size if number else 0
        job = subprocess.Popen(
            [*broken, *resume], stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        while not log.exists() or log.stat().st_size <= before:
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        os.killpg(job.pid, signal.SIGTERM)
        err = job.communicate()[1]
        step = read_state(tmp_path / "broken" / STATE)["step"]
        assert job.returncode == 143, err
        assert err == f"terminated; step {step} is kept in {tmp_path / 'broken'}; go on with --resume\n"
    done = subprocess.run([*broken, "--resume"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert furthest(weights(tmp_path / "straight"), weights(tmp_path / "broken")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(parallel, world, tmp_path):
    options = {"steps": "60", "save_steps": "1000", "batch": "8", "lr": "1e-4"}
    request = request_for(world, tmp_path / "x", options=options, parallel=parallel)
    command_line = [sys.executable, "-m", "beit3_bench.harness", *finetune_words(request)]
    first, second = run_ranks([command_line] * 2, strike(tmp_path / "x" / "log.csv", 1, signal.SIGTERM))
    assert (first.code, second.code) == (143, 143), first.err + second.err
    step = read_state(tmp_path / "x" / STATE)["step"]
    assert f"[rank 0] terminated; step {step} is kept in {tmp_path / 'x'}; go on with --resume" in first.err
    assert "terminated" not in second.err
    done = train(dataclasses.replace(request, parallel=None, resume=True))
    assert done["steps_done_now"] == 60 - step


def test_progress_is_told_with_the_loss(world, tmp_path, capsys):
    train(request_for(world, tmp_path / "x", reporting=Reporting(interval=0)))
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("flickr30k: ") and "left" in line]
    assert [line.split(",")[0] for line in steps] == [f"flickr30k: {n} of 4 steps ({n / 4:.0%})" for n in (1, 2, 3, 4)]
    assert all(re.search(r", loss \d", line) for line in steps)
    assert any(line.startswith("flickr30k, validation: ") for line in lines)


@pytest.mark.slow
def test_kill_minus_9_and_resume_equals_straight(world, tmp_path):
    options = {"steps": "20", "save_steps": "10"}
    train(request_for(world, tmp_path / "straight", options=options))
    request = request_for(world, tmp_path / "killed", options=options)
    code = f"""
        import os, signal
        from pathlib import Path, PosixPath
        from beit3_bench.harness.training import loop, session, start
        from beit3_bench.tasks.registry import get_task
        import torch
        torch.set_num_threads(1)
        save = loop.TrainingLoop.save
        def die(self):
            save(self)
            os.kill(os.getpid(), signal.SIGKILL)
        loop.TrainingLoop.save = die
        session.finetune(start.{request!r}, get_task("flickr30k"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_state(tmp_path / "killed" / STATE)["step"] == 10
    train(dataclasses.replace(request, resume=True))
    assert furthest(weights(tmp_path / "straight"), weights(tmp_path / "killed")) <= 1e-6


@pytest.mark.parametrize("task", ["vqav2", "nlvr2"])
def test_accumulated_micro_batches_equal_the_whole_batch(task, world, tmp_path):
    options = {"batch": "10"}
    train(request_for(world, tmp_path / "whole", task, options))
    train(request_for(world, tmp_path / "parts", task, {**options, "micro_batch": "4"}))
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "parts"), noise=False) < 1e-5


def test_checkpointed_activations_change_memory_only(world, tmp_path):
    train(request_for(world, tmp_path / "plain"))
    train(request_for(world, tmp_path / "checkpointed", options={"checkpoint_activations": "true"}))
    assert furthest(weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")) < 1e-6


def test_workers_change_nothing(world, tmp_path):
    train(request_for(world, tmp_path / "alone"))
    train(request_for(world, tmp_path / "workers", workers=2))
    assert furthest(weights(tmp_path / "alone"), weights(tmp_path / "workers")) == 0


def test_validation_takes_its_images_from_the_cache_and_the_training_does_not(world, tmp_path, monkeypatch):
    options = {"validate_epochs": "1", "steps": "4"}
    plain = train(request_for(world, tmp_path / "plain", options=options))
    cache = tmp_path / "cache"
    asked = []
    load = ImageCache.load
    monkeypatch.setattr(ImageCache, "load", lambda self, path: asked.append(path) or load(self, path))
    cached = train(request_for(world, tmp_path / "cached", options=options, image_cache=cache))
    assert cached["best"] == plain["best"]
    assert furthest(weights(tmp_path / "plain"), weights(tmp_path / "cached")) == 0
    entries = [path for path in cache.rglob("*.px")]
    validation = {image for e in get_task("flickr30k")(world / "flickr30k").read("val").examples for image in e.images}
    assert set(map(str, asked)) == set(map(str, validation))
    assert len(entries) == len(validation)


MANY = [
    ("flickr30k", 2),
    *[pytest.param(t, n, marks=pytest.mark.slow) for t, n in (("vqav2", 2), ("coco-caption", 2), ("flickr30k", 3))],
]


@pytest.mark.parametrize(("task", "processes"), MANY)
def test_several_processes_equal_one_with_the_same_global_batch(task, processes, world, tmp_path):
    options = {"steps": "5", "batch": "9", "lr": "1e-4", **({"max_length": "6"} if task == "coco-caption" else {})}
    many = request_for(world, tmp_path / "many", task, options)
    done = launched(many, processes)
    assert done.returncode == 0, done.stderr[-2000:]
    train(request_for(world, tmp_path / "one", task, options))
    a, b = (read_table(tmp_path / name / "log.csv") for name in ("one", "many"))
    assert [float(r["loss"]) for r in b] == pytest.approx([float(r["loss"]) for r in a], rel=1e-5)
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "many"), noise=False) < 1e-5


@pytest.mark.slow
def test_resume_on_another_number_of_processes(world, tmp_path):
    options = {"steps": "6", "save_steps": "3", "lr": "1e-4"}
    straight = train(request_for(world, tmp_path / "straight", options=options))
    assert straight["steps"] == 6
    request = request_for(world, tmp_path / "moved", options=options)
    # Both processes stop behind the saved third step: the loss of the fourth is made infinite.
    code = "import torch; from beit3_bench.harness.training import loop; u = loop.LossModule.forward; "
    code += "loop.LossModule.forward = lambda self, batch, step: u(self, batch, step) * (float('inf') if step == 3 else 1); "
    code += "from beit3_bench.harness.cli import main; main()"
    script = tmp_path / "two.py"
    script.write_text(code)
    command_line = [*LAUNCH, "2", str(script), "finetune", "--task", "flickr30k", "--data-root", str(request.data_root)]
    command_line += [
        "--preset",
        "tiny",
        "--tokenizer",
        str(request.tokenizer),
        "--output",
        str(request.output),
        "--device",
        "cpu",
    ]
    command_line += [word for k, v in request.options.items() for word in ("-o", f"{k}={v}")]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False)
    assert "the loss is inf at step 4" in done.stderr, done.stderr[-2000:]
    assert read_state(tmp_path / "moved" / STATE)["step"] == 3
    train(dataclasses.replace(request, resume=True))
    assert furthest(weights(tmp_path / "straight"), weights(tmp_path / "moved"), noise=False) < 1e-5


# ---- recipes in action ------------------------------------------------------------------------------------------------


def test_mixing_average_and_half_precision_work_together(world, tmp_path):
    options = {
        "mixup": "0.8",
        "cutmix": "1.0",
        "erase": "0.25",
        "ema_decay": "0.99",
        "auto_augment": "rand-m9-mstd0.5-inc1",
    }
    summary = train(request_for(world, tmp_path / "x", "imagenet-linear", options, dtype="bf16"))
    assert summary["steps"] == 4
    state = read_state(tmp_path / "x" / STATE)
    name = "head.weight"
    assert not torch.equal(state["average"][name], state["model"][name])
    assert torch.equal(weights(tmp_path / "x")[name], state["average"][name])


def test_mixup_is_refused_for_texts(world, tmp_path):
    with pytest.raises(BenchError, match="need class labels"):
        train(request_for(world, tmp_path / "x", options={"mixup": "0.8"}))


def test_the_best_checkpoint_is_kept_beside_the_last(world, tmp_path, monkeypatch):
    values = iter([0.3, 0.9, 0.1])
    real = loop.validate

    def scripted(*args, **kwargs):
        scores = real(*args, **kwargs)
        scores.metrics["top1"] = next(values)
        return scores

    monkeypatch.setattr(loop, "validate", scripted)
    options = {"steps": "15", "batch": "8", "validate_epochs": "1"}  # 40 images: 5 steps per epoch
    summary = train(request_for(world, tmp_path / "x", "imagenet-linear", options))
    assert (summary["best"]["value"], summary["best"]["step"]) == (0.9, 10)
    assert read_checkpoint(tmp_path / "x" / BEST).metadata["step"] == 10
    assert read_checkpoint(tmp_path / "x" / LAST).metadata["step"] == 15
    assert [row["top1"] for row in read_table(tmp_path / "x" / "validation.csv")] == ["0.3", "0.9", "0.1"]


def test_starting_from_another_task_keeps_the_backbone_and_records_the_heads(world, tmp_path):
    train(request_for(world, tmp_path / "first"))
    first = tmp_path / "first" / BEST
    request = request_for(world, tmp_path / "second", "vqav2", preset=None, checkpoint=first, tokenizer=None)
    start = prepare(request, get_task("vqav2"))
    assert start.preset == "tiny"
    assert torch.equal(
        start.training.module.beit3.text_embed.weight, weights(tmp_path / "first", BEST)["beit3.text_embed.weight"]
    )
    assert "head.0.weight" in start.training.start["missing"]
    assert "language_head.weight" in start.training.start["unexpected"]
    assert "beit3.encoder.layer_norm.A.weight" in start.training.start["unexpected"]
    assert not [n for n in start.training.start["missing"] if n.startswith("beit3.")]
    summary = train(request)
    assert read_checkpoint(Path(summary["checkpoint"])).metadata["source"]["checkpoint"] == "best.pth"


FIRST_EDITION = {
    "flickr30k": {},
    "vqav2": {"answer_vocab": None},
    "coco-caption": {"num_beams": 3, "max_length": 64, "length_penalty": 0.6, "decoder": "official"},
}


@pytest.mark.parametrize("task", FIRST_EDITION)
def test_options_are_told_apart_as_in_states_of_the_first_edition(task, world, tmp_path):
    """There the options of a task held what is the model's own now."""
    start = prepare(request_for(world, tmp_path / "x", task), get_task(task))
    values = FIRST_EDITION[task]
    earlier = earlier_option_digests(start.task.options, start.training.resolved)
    assert {
        start.fingerprints["options"],
        digest({}),
        digest(values),
        *(digest({k: v}) for k, v in values.items()),
    } <= earlier


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(world, tmp_path, monkeypatch):
    forward = loop.LossModule.forward
    monkeypatch.setattr(
        loop.LossModule,
        "forward",
        lambda self, batch, step: forward(self, batch, step) * (float("nan") if step == 2 else 1),
    )
    with pytest.raises(BenchError, match=r"the loss is nan at step 3 of 4; .*state.pt holds step 2"):
        train(request_for(world, tmp_path / "x", options={"save_steps": "1"}))
    assert read_state(tmp_path / "x" / STATE)["step"] == 2
    assert all(v.isfinite().all() for v in weights(tmp_path / "x").values())


def test_resume_with_another_recipe_names_the_key(world, tmp_path):
    train(request_for(world, tmp_path / "x"))
    with pytest.raises(BenchError, match=r"recipe weight_decay 0\.05 -> 0\.1"):
        train(request_for(world, tmp_path / "x", options={"weight_decay": "0.1"}, resume=True))
    # What only says how it is carried out may change.
    assert train(request_for(world, tmp_path / "x", options={"micro_batch": "4"}, resume=True))["steps_done_now"] == 0


def test_a_folder_in_use_or_of_something_else_is_left_alone(world, tmp_path):
    train(request_for(world, tmp_path / "x"))
    with pytest.raises(BenchError, match="--resume"):
        train(request_for(world, tmp_path / "x"))
    assert train(request_for(world, tmp_path / "x", overwrite=True))["steps"] == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(BenchError, match=r"thesis\.tex"):
        train(request_for(world, tmp_path / "other", overwrite=True))
    with pytest.raises(BenchError, match="no training to resume"):
        train(request_for(world, tmp_path / "new", resume=True))


WRONG = {
    "no preset": ({"preset": None}, "--preset is missing"),
    "unknown preset": ({"preset": "bas"}, "did you mean 'base'"),
    "base without weights": ({"preset": "base"}, "--from-scratch"),
    "no tokenizer": ({"tokenizer": None}, "--tokenizer FILE"),
    "missing tokenizer": ({"tokenizer": Path("nowhere.spm")}, r"nowhere\.spm"),
    "missing checkpoint": ({"checkpoint": Path("nowhere.pth")}, r"nowhere\.pth: checkpoint not found"),
    "unknown recipe": ({"recipe": "bse"}, "did you mean 'base'"),
    "unknown option": ({"options": {"lrr": "1"}}, "no option 'lrr'; did you mean 'lr'"),
    "key of the recipe": ({"options": {"epoch": "3"}}, "no option 'epoch'; did you mean 'epochs'"),
    "option of nobody": ({"options": {"zzz": "3"}}, "no option 'zzz'; see all keys of the recipe with: beit3-bench finetune"),
    "batch too large": ({"options": {"batch": "1000"}}, "fewer than one batch"),
    "no such split": ({"options": {"validation_split": "dev"}}, "no split 'dev'"),
    "missing data": ({"data_root": Path("nowhere")}, r"dataset_flickr30k\.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named_and_nothing_is_written(case, world, tmp_path):
    changes, message = WRONG[case]
    with pytest.raises(BenchError, match=message):
        train(dataclasses.replace(request_for(world, tmp_path / "x"), **changes))
    assert not (tmp_path / "x" / STATE).exists()
    assert not (tmp_path / "x" / LAST).exists()


def test_another_tokenizer_than_the_checkpoint_was_trained_with_is_refused(world, tmp_path):
    train(request_for(world, tmp_path / "first"))
    other = tmp_path / "other.spm"
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red star", "a blue ring"] * 50), model_prefix=str(other.with_suffix("")), vocab_size=20,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    other.with_suffix(".model").rename(other)
    with pytest.raises(BenchError, match="another tokenizer"):
        train(request_for(world, tmp_path / "x", checkpoint=tmp_path / "first" / BEST, tokenizer=other))


# ---- the verb ---------------------------------------------------------------------------------------------------------


def test_dry_run_tells_the_plan_and_writes_nothing(world, tmp_path):
    arguments = ["--task", "flickr30k", "--preset", "base", "--from-scratch", "--data-root", str(world / "flickr30k")]
    arguments += [
        "--tokenizer",
        str(world / "beit3.spm"),
        "--output",
        str(tmp_path / "x"),
        "--device",
        "cpu",
        "--dry-run",
    ]
    arguments += ["-o", "batch=16", "-o", "micro_batch=4"]
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    facts = json.loads(done.output)
    assert (facts["global_batch"], facts["accumulate"], facts["samples_at_once"]) == (16, 4, 4)
    assert facts["steps"] == 20 * facts["steps_per_epoch"]
    rates = {g["name"]: g["lr"] for g in facts["groups"]}
    assert rates["layer_13_decay"] == pytest.approx(1e-4)
    assert rates["layer_0_decay"] == pytest.approx(1e-4 * 0.65**13)
    assert sum(g["parameters"] for g in facts["groups"]) == facts["parameters"]
    assert facts["memory"]["weights"] == facts["parameters"] * 16
    assert facts["memory"]["gathered"] == 0
    # Shards: a sixteenth of the state at the most, and never less than the state divided.
    assert list(facts["memory_fsdp"]) == ["2", "4", "8", "16"]
    sharded = list(facts["memory_fsdp"].values())
    assert sorted(sharded, reverse=True) == sharded
    assert facts["memory"]["weights"] / 16 < sharded[-1] < facts["memory"]["total"] / 2
    text = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "layer_13_no_decay" in text
    assert "1 x cpu; global batch 16 = 1 processes x 4 samples x 4 micro-batches" in text
    assert "with --parallel fsdp, by number of devices: 2: " in text
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_dry_run_of_two_processes_tells_what_each_would_hold(world, tmp_path):
    request = request_for(world, tmp_path / "x", options={"batch": "16"}, parallel="fsdp")
    done = launched(request, 2, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout)
    assert (facts["processes"], facts["parallel"], facts["samples_at_once"]) == (2, "fsdp", 8)
    assert facts["memory"]["weights"] == facts["parameters"] * 16 / 2
    assert facts["memory"]["gathered"] > 0
    assert facts["memory"]["total"] == facts["memory_fsdp"]["2"]
    assert not (tmp_path / "x").exists()


def test_options_are_pairs():
    assert parse_pairs(["a=b=c"]) == {"a": "b=c"}
    with pytest.raises(BenchError, match="KEY=VALUE"):
        parse_pairs(["a"])
    with pytest.raises(BenchError, match="given twice"):
        parse_pairs(["a=1", "a=2"])
