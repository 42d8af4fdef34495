"""Make the fixtures of this folder. This runs with the first edition only, whose last commit is 217ef6e.

    git worktree add --detach FIRST 217ef6e
    mkdir -p FIRST/build/types/beit3_bench && touch FIRST/build/types/beit3_bench/__init__.py
    for p in backbones tasks harness results; do ln -s ../../../$p FIRST/build/types/beit3_bench/$p; done
    PYTHONPATH=FIRST/build/types python tests/first_edition/make.py

The commands themselves stand in `cases.py`. Places and hardware in the written files are replaced by neutral ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cases import (
    CHECKPOINTS,
    COMPARED,
    EXPECTED,
    FINISHED,
    GONE_ON,
    KILLED,
    OTHER_SEED,
    PROBES,
    RUNS,
    START,
    TABLE,
    TRAINED,
    TRAININGS,
    UNFINISHED,
    Asked,
)

DATA = "/data"
HARDWARE = {"cpu": "a processor", "cores": 2, "memory_bytes": 2**33, "system": "Linux"}
KILL_TRAINING = """
from beit3_bench.harness.training.loop import Training
save = Training.save
def save_and_die(self):
    save(self)
    os.kill(os.getpid(), signal.SIGKILL)
Training.save = save_and_die
"""
KILL_RUN = """
from beit3_bench.harness.store import RunStore
append, count = RunStore.append, []
def append_and_die(self, rows):
    append(self, rows)
    count.append(1)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
RunStore.append = append_and_die
"""
CALL = """
import os, signal, sys
import beit3_bench.harness
{patch}
sys.argv[0] = "beit3-bench"
from beit3_bench.harness.__main__ import main
main()
"""


def bench(work: Path, words: list[str], killed: str = "") -> str:
    """Standard output of one command; ``killed``: a patch that kills it.  Java is hidden, so that captions have the metrics
    that need none.
    """
    environment = {**os.environ, "PATH": str(work), "OMP_NUM_THREADS": "1"}
    environment.pop("JAVA_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", CALL.format(patch=killed), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
        check=False,
    )
    if done.returncode != (-signal.SIGKILL if killed else 0):
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else words[0], flush=True)
    return done.stdout


def write_start(path: Path, tokenizer: Path) -> None:
    """A random dual encoder of 8 channels and two layers, initialised as a training from scratch is."""
    import torch

    from beit3_bench.backbones.checkpoint import METADATA_KEY, official_state_dict
    from beit3_bench.backbones.config import BEiT3Config
    from beit3_bench.backbones.models import build_model
    from beit3_bench.backbones.tokenizer import Tokenizer
    from beit3_bench.harness.training.start import initialise_from_scratch

    shape = {"image_size": 32, "patch_size": 8, "embed_dim": 8, "num_heads": 2, "ffn_dim": 16, "depth": 2}
    config = BEiT3Config(**shape, vocab_size=Tokenizer.load(tokenizer).num_pieces)
    torch.manual_seed(0)
    model = build_model("retrieval", config)
    initialise_from_scratch(model)
    torch.save(
        {"model": official_state_dict(model), METADATA_KEY: {"config": config.to_dict(), "head": "retrieval"}}, path
    )


def without_labels(source: Path, target: Path) -> None:
    """A fine-tuned checkpoint as it was before checkpoints carried their labels: of the answers it has a hash only."""
    import torch

    from beit3_bench.backbones.checkpoint import METADATA_KEY

    content = torch.load(source, weights_only=True)
    del content[METADATA_KEY]["labels"]
    assert content[METADATA_KEY]["vocabulary"]
    torch.save(content, target)


def finetune(work: Path, asked: Asked, folder: Path, *words: str, killed: str = "") -> None:
    command = asked.command("finetune", work / "tiny", work / "checkpoints")
    bench(work, [*command, "--output", str(folder), *words], killed)


def neutral(value: Any, work: Path) -> Any:
    """A JSON value without the machine that wrote it."""
    if isinstance(value, dict):
        fixed = {"hardware": HARDWARE, "git": {"commit": "0" * 40, "dirty": False}}
        return {key: fixed.get(key) or neutral(item, work) for key, item in value.items()}
    if isinstance(value, list):
        return [neutral(item, work) for item in value]
    return value.replace(str(work), DATA).replace(sys.prefix, "/opt/python") if isinstance(value, str) else value


def write_json(path: Path, text: str, work: Path) -> None:
    path.write_text(json.dumps(neutral(json.loads(text), work), indent=2) + "\n")


def keep(source: Path, target: Path, names: list[str], work: Path) -> None:
    """Copy what is kept of a folder, JSON files made neutral."""
    target.mkdir(parents=True)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif name.endswith(".json"):
            write_json(target / name, (source / name).read_text(), work)
        else:
            shutil.copyfile(source / name, target / name)


def make_checkpoints(work: Path) -> None:
    """The mini world, and on it the fine-tuned checkpoints."""
    world, checkpoints = work / "tiny", work / "checkpoints"
    checkpoints.mkdir()
    bench(work, ["data", "tiny", "--size", "mini", "--out", str(world)])
    shutil.copytree(world / "imagenet", work / "moved" / "imagenet")
    shutil.copy(world / "beit3.spm", checkpoints)
    write_start(checkpoints / START, world / "beit3.spm")
    for name, asked in TRAINED.items():
        finetune(work, asked, work / name)
        shutil.copy(work / name / "best.pth", checkpoints / name)
    finetune(work, TRAINED["vqav2.pth"], work / "other", *OTHER_SEED)
    without_labels(work / "other" / "last.pth", checkpoints / "vqav2-without-labels.pth")
    CHECKPOINTS.mkdir()
    for path in sorted(checkpoints.iterdir()):
        if path.name != START:
            shutil.copy(path, CHECKPOINTS)


def make_trainings(work: Path) -> None:
    """States, and the logs of trainings that go on from them and from checkpoints."""
    for name, asked in KILLED.items():
        folder = work / "trainings" / name
        finetune(work, asked, folder, killed=KILL_TRAINING)
        keep(folder, TRAININGS / name, ["config.json", "log.csv", "state.pt"], work)
        finetune(work, asked, folder, "--resume")
        keep(folder, EXPECTED / "resumed" / name, ["log.csv", "validation.csv"], work)
    for name, asked in GONE_ON.items():
        folder = work / "gone-on" / name
        finetune(work, asked, folder)
        keep(folder, EXPECTED / "gone-on" / name, ["config.json", "log.csv", "validation.csv"], work)


def make_runs(work: Path) -> None:
    """Run folders, and the scores of their rows."""
    world, checkpoints = work / "tiny", work / "checkpoints"
    scores = {}
    for name, asked in FINISHED.items():
        folder = work / "runs" / name
        bench(work, [*asked.command("run", world, checkpoints), "--output", str(folder)])
        made = [path.name for path in folder.iterdir() if path.name != "lock"]
        keep(folder, RUNS / name, sorted(made), work)
        if json.loads((folder / "result.json").read_text())["status"] == "scored":
            words = ["score", "--run", str(folder), "--data-root", asked.data_root(world), "--json"]
            scores[name] = json.loads(bench(work, words))
    for name, asked in UNFINISHED.items():
        folder = work / "runs" / name
        bench(work, [*asked.command("run", world, checkpoints), "--output", str(folder)], KILL_RUN)
        keep(folder, RUNS / name, ["config.json", "rows"], work)
    write_json(EXPECTED / "scores.json", json.dumps(scores), work)


def make_printed(work: Path) -> None:
    """What is printed about the runs; of the csv and JSON tables the measured rows."""
    table = ["table", "--runs", str(RUNS), *TABLE, "--format"]
    (EXPECTED / "table.md").write_text(bench(work, [*table, "markdown"]))
    header, *lines = bench(work, [*table, "csv"]).splitlines(keepends=True)
    (EXPECTED / "table.csv").write_text("".join([header, *(line for line in lines if ",measured here," in line)]))
    measured = {key: value for key, value in json.loads(bench(work, [*table, "json"])).items() if key != "sections"}
    write_json(EXPECTED / "table.json", json.dumps(measured), work)
    for name, words in {
        "runs": ["runs", "--runs", str(RUNS)],
        "compare": ["compare", *(str(RUNS / n) for n in COMPARED)],
    }.items():
        write_json(EXPECTED / f"{name}.json", bench(work, [*words, "--json"]).replace(f"{RUNS}/", ""), work)
    for name, asked in PROBES.items():
        text = bench(work, asked.command("probe", work / "tiny", work / "checkpoints"))
        write_json(EXPECTED / f"probe-{name}.json", text, work)


def check_neutral(work: Path, folder: Path) -> None:
    """Stop where a kept file still names this machine."""
    names = [str(work), str(folder.parent.parent), sys.prefix, f"{Path.home()}/"]
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"):
        content = path.read_bytes()
        found = [name for name in names if name.encode() in content]
        if path.suffix in (".json", ".jsonl", ".csv", ".md"):
            found += re.findall(rf"\b{re.escape(os.uname().nodename)}\b", content.decode())
        if found:
            raise SystemExit(f"{path}: names {found[0]}")


def main() -> None:
    try:
        import beit3_bench.backbones.checkpoint  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{__doc__}\n{error}: this is not the first edition") from error
    for folder in (CHECKPOINTS, RUNS, TRAININGS, EXPECTED):
        shutil.rmtree(folder, ignore_errors=True)
    EXPECTED.mkdir()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work).resolve()
        for make in (make_checkpoints, make_trainings, make_runs, make_printed):
            make(folder)
        check_neutral(folder, Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
