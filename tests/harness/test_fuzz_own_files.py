"""Files of our own that are broken in hundreds of ways, by accident or by somebody who hands them over.

A verb that reads them succeeds, or refuses in one line with exit code 2; 1 is only `replay` saying that a run differs. What
shared caches serve is right, or is made again.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_task
from mutations import Spoil, json_text, spoil_bytes, spoil_csv, spoil_json, spoil_npz, spoil_structure
from native import invoke
from run_requests import run_request
from toy_task import ToyTask, write_toy_data

from beit3_bench.errors import BenchError
from beit3_bench.harness.session import run_task

FEW, MANY = 20, 500
AMOUNT = [pytest.param(range(FEW), id="few"), pytest.param(range(FEW, MANY), id="many", marks=pytest.mark.slow)]
HIDDEN = [chr(code) for code in (*range(10), *range(11, 32), 127, *range(128, 160), 0x202E, 0x2028)]


def spoil_rows(random_: random.Random, whole: bytes) -> bytes:
    """Rows that were edited, with a marker that fits, or a file that was damaged."""
    if random_.random() < 0.2:
        return spoil_bytes(random_, whole)
    lines = [line for line in whole.split(b"\n") if line and not line.startswith(b'{"commit"')]
    for at in random_.sample(range(len(lines)), random_.choice((1, 1, 3))):
        lines[at] = json_text(random_, spoil_structure(random_, json.loads(lines[at])), random_.random() < 0.1).encode()
    lines += [random_.choice(lines)] if random_.random() < 0.1 else []
    body = b"".join(line + b"\n" for line in lines)
    return body + b'{"commit":%d,"crc":"%08x"}\n' % (body.count(b"\n"), zlib.crc32(body))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with data and a finished run of the toy task."""
    folder = tmp_path_factory.mktemp("own")
    data = write_toy_data(folder / "data", count=12)
    request = run_request("toy", data / "toy.pth", data, device="cpu", workers=0, output=folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        toy_task.register(patch.setattr)
        run_task(request, ToyTask)
    return folder


FILES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "config.json": (spoil_json, ("runs", "compare", "score", "replay", "run", "resume")),
    "rows/rank-00000.jsonl": (spoil_rows, ("runs", "compare", "score", "replay", "run", "resume")),
    "samples.npz": (spoil_npz, ("runs", "compare", "score")),
    "result.json": (spoil_json, ("runs", "compare", "replay", "run", "table")),
}
FORMS = ("markdown", "html", "csv", "latex", "json", "overview")


@pytest.mark.parametrize("seeds", AMOUNT)
@pytest.mark.parametrize("file", FILES)
def test_broken_run_folder_is_refused_in_words(toy, file, seeds, tmp_path, monkeypatch):
    toy_task.register(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    spoil, verbs = FILES[file]
    runs, data = tmp_path / "runs", toy / "data"
    shutil.copytree(toy / "whole", runs / "other")
    named = ["--checkpoint", data / "toy.pth", "--data-root", data]
    broken = runs / "broken"
    words = {
        "runs": ["runs", "--runs", runs],
        "compare": ["compare", broken, runs / "other"],
        "score": ["score", "--run", broken, "--data-root", data],
        "replay": ["replay", broken, *named],
        "run": ["run", "--task", "toy", *named, "--device", "cpu", "--workers", 0, "--output", broken],
        "overview": ["table", "--runs", runs, "--paper-table", "1"],
        **{form: ["table", "--runs", runs, "--format", form] for form in ("markdown", "html", "csv", "latex", "json")},
    }
    words["resume"] = words["run"]
    whole = (toy / "whole" / file).read_bytes()
    failures, refused = [], 0
    for seed in seeds:
        spoilt = spoil(random.Random(f"own {file} {seed}"), whole)
        for verb in (FORMS[seed % len(FORMS)] if verb == "table" else verb for verb in verbs):
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(toy / "whole", broken)
            (broken / file).write_bytes(spoilt)
            if verb == "resume":
                (broken / "result.json").unlink()
            done = invoke(*words[verb])
            refused += done.exit_code == 2
            good = done.exit_code in ((0, 1, 2) if verb == "replay" else (0, 2))
            if verb == "replay" and done.exit_code == 1:
                good = done.stdout.startswith("differs")
            told = done.stderr.strip().splitlines()[-1:] or [""]
            good &= "Traceback" not in done.output and "internal error" not in done.output
            good &= not any(c in done.output for c in HIDDEN)
            if done.exit_code == 2 and verb not in ("runs", "markdown", "html", "csv", "latex", "json"):
                good &= done.stderr.count("\n") <= 2 and len(told[0]) > 20
            if verb in ("runs", "markdown", "html", "csv", "json"):
                good &= "other" in done.stdout or "toy" in done.stdout  # one bad run hides no other
            if not good:
                failures.append(f"seed {seed}: {verb}: exit {done.exit_code}: {told[0][:300]}")
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:8])
    assert refused > len(seeds) / 3


# ---- trainings --------------------------------------------------------------------------------------------------------


class Truthful:
    """A training's folder and a `TrainingLoop` that restores from it, made once."""

    def __init__(self, native, folder: Path):
        from beit3_bench.harness.engine.processes import Processes
        from beit3_bench.harness.training.loop import TrainingLoop
        from beit3_bench.harness.training.start import FinetuneRequest, prepare
        from beit3_bench.tasks.registry import get_task

        options = {"steps": "2", "save_steps": "1", "batch": "2", "image_size": "32", "warmup_steps": "1"}
        request = FinetuneRequest(
            "imagenet-linear", native.root("imagenet"), preset="tiny", from_scratch=True, device="cpu", workers=0,
            options=options, output=folder,
        )  # fmt: skip
        folder.mkdir()
        self.training = TrainingLoop(request, prepare(request, get_task("imagenet-linear")), folder, Processes())
        self.training.save()
        self.path = folder / "state.pt"


def spoil_state(random_: random.Random, whole: dict) -> dict:
    """A state that was saved by something else: keys, kinds, shapes and numbers that are not ours."""
    state = {**whole}
    key = random_.choice(list(state))
    inner = state[key]
    change = random_.random()
    if change < 0.2:
        del state[key]
    elif change < 0.5 or not isinstance(inner, dict) or not inner:
        state[key] = random_.choice([None, 3, -1, "x", [], {}, 2.5, {"a": 1}, [1, 2], torch.zeros(3), 10**30, True])
    else:
        name = random_.choice(list(inner))
        value = random_.choice([None, 3, "x", {}, [], torch.zeros(2), torch.zeros(0), float("nan"), {"step": 1}])
        state[key] = {**inner, name: value}
        if random_.random() < 0.3:
            del state[key][name]
    return state


@pytest.mark.parametrize("seeds", AMOUNT)
def test_broken_training_state_is_refused_in_words(native, seeds, tmp_path):
    truth = Truthful(native, tmp_path / "t")
    whole = truth.path.read_bytes()
    content = torch.load(truth.path, weights_only=True)
    failures, refused = [], 0
    for seed in seeds:
        random_ = random.Random(f"state {seed}")
        if random_.random() < 0.3:
            truth.path.write_bytes(spoil_bytes(random_, whole))
        else:
            torch.save(spoil_state(random_, content), truth.path)
        try:
            truth.training.restore()
        except BenchError as error:
            refused += 1
            if "state.pt" not in str(error):
                failures.append(f"seed {seed}: names no file: {error}")
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    truth.path.write_bytes(whole)
    truth.training.restore()
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:8])
    assert refused > len(seeds) / 2


@pytest.mark.parametrize("seeds", AMOUNT)
def test_broken_journal_is_refused_in_words_or_mended(seeds, tmp_path):
    from beit3_bench.harness.training.journal import LOG, VALIDATION, Journal, read_table

    failures = []
    for seed in seeds:
        random_ = random.Random(f"journal {seed}")
        for name, header in ((LOG, "step,epoch,loss,lr"), (VALIDATION, "step,epoch,top1")):
            columns = header.count(",")
            lines = [header, *(f"{step},{','.join(['0.5'] * columns)}" for step in range(1, 6))]
            (tmp_path / name).write_bytes(spoil_csv(random_, "\n".join(lines).encode() + b"\n"))
        try:
            journal = Journal(tmp_path, resume_at=3)
            journal.write(LOG, {"step": 4, "epoch": 0.5, "loss": 1.0, "lr": 1e-3})
            journal.draw()
            if read_table(tmp_path / LOG)[-1]["step"] != "4":
                failures.append(f"seed {seed}: a line is lost")
        except BenchError:
            pass
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    assert not failures, f"{len(failures)}: " + "\n".join(failures[:8])


# ---- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", AMOUNT)
def test_broken_pack_of_features_never_serves_another_vector(seeds, tmp_path):
    from beit3_bench.harness.reuse.feature_store import FeatureSpace

    rng = np.random.default_rng(0)
    truth = {rng.bytes(32): rng.normal(size=16).astype(np.float32) for _ in range(20)}
    space = FeatureSpace(tmp_path, {"weights": "x"})
    space.append(truth)
    space.close()
    (pack,) = space.folder.glob("*.pack")
    whole = pack.read_bytes()
    served = 0
    for seed in seeds:
        pack.write_bytes(spoil_bytes(random.Random(f"pack {seed}"), whole))
        for key, vector in FeatureSpace(tmp_path, {"weights": "x"}).find(truth).items():
            assert vector.tobytes() == truth[key].tobytes(), f"seed {seed}"
            served += 1
    assert 0 < served < len(seeds) * len(truth)


@pytest.mark.parametrize("seeds", AMOUNT)
def test_broken_cached_image_is_made_again(native, seeds, tmp_path):
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.harness.reuse.image_cache import ImageCache

    image = min(native.world.glob("coco/val2014/*.jpg"))
    preprocessing = Preprocessing(32)
    pixels = preprocessing.load(image)
    ImageCache(tmp_path, preprocessing).load(image)
    (entry,) = tmp_path.rglob("*.px")
    about = entry.parents[1] / "about.json"
    whole, facts = entry.read_bytes(), about.read_bytes()
    for seed in seeds:
        random_ = random.Random(f"entry {seed}")
        entry.write_bytes(spoil_bytes(random_, whole))
        about.write_bytes(spoil_json(random_, facts))
        cache = ImageCache(tmp_path, preprocessing)
        assert torch.equal(cache.load(image), pixels), f"seed {seed}"
        assert entry.read_bytes() == whole, f"seed {seed}: not mended"
        done = invoke("cache", "--dir", tmp_path)
        assert done.exit_code == 0, f"seed {seed}: {done.output}"
        assert not any(c in done.output for c in HIDDEN)
