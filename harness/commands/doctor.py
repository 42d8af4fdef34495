"""``beit3-bench doctor``: what is installed, what is missing for which task, and how to mend it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from beit3_bench.errors import INSTALL_LINES
from beit3_bench.harness.console import echo

CORE = ("torch", "torchvision", "timm", "numpy", "PIL", "safetensors", "sentencepiece", "pycocotools", "accelerate")
DISTRIBUTIONS = {"PIL": "pillow", "mmseg": "mmsegmentation", "open_clip": "open_clip_torch"}

STACKS = {
    "pycocoevalcap": "METEOR and SPICE of coco-caption and nocaps",
    "detectron2": "coco-det through detectron2",
    "mmcv": "ade20k-seg",
    "mmengine": "ade20k-seg",
    "mmseg": "ade20k-seg",
    "mmdet": "ade20k-seg",
    "faster_coco_eval": "a faster scorer of coco-det (pycocotools serves without it)",
    "open_clip": "checkpoints of CLIP, OpenCLIP, SigLIP and their kin (openclip:...)",
    "transformers": "tokenizers of SigLIP and the second opinion in the tests",
}
"""Optional module -> what cannot be done without it."""

SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
LARGEST_CHECKPOINT = 3_000_000_000
"""Bytes of free space below which a large released checkpoint may not fit."""


@dataclass
class Finding:
    """One line of the report.

    state: ``ok``, ``missing`` (something cannot be done) or ``broken`` (installed, but does not work).
    needed_for: what cannot be done without it; empty for plain information.
    mend: the command or step that mends it; empty when ok.
    """

    name: str
    state: str
    detail: str
    needed_for: str = ""
    mend: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say what is installed, what is missing for which task, and how to mend it.

    Changes nothing, and exits with 0 whatever it finds.
    """
    findings = examine()
    if as_json:
        echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        echo(f"{finding.state:<8} {finding.name:<{width}}  {finding.detail}")
        if finding.state != "ok":
            echo(f"{'':<8} {'':<{width}}  needed for: {finding.needed_for}")
            echo(f"{'':<8} {'':<{width}}  mend: {finding.mend}")
    wrong = [finding for finding in findings if finding.state != "ok"]
    echo(f"\n{len(findings) - len(wrong)} of {len(findings)} checks are ok.")


def examine() -> list[Finding]:
    """All checks, cheap ones first."""
    findings = [Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")]
    findings += [module_finding(name, "every task", "pip install beit3-bench") for name in CORE]
    findings += [_guarded("device", _device), _guarded("matrix products", _products)]
    findings += [stack_finding(name, purpose) for name, purpose in STACKS.items()]
    findings += [_guarded("java", _java), _guarded("SPICE model", _spice), _guarded("tasks", _tasks)]
    findings += [_guarded("pinned hashes", _pins), _guarded("free disk space", lambda: _disk(Path.cwd()))]
    return findings


def module_finding(name: str, purpose: str, install: str) -> Finding:
    """Whether a module imports; installed but broken is told apart from missing."""
    if importlib.util.find_spec(name) is None:
        return Finding(name, "missing", "not installed", purpose, install)
    try:
        importlib.import_module(name)
    except Exception as error:  # a compiled extension can fail in any way
        reason = str(error).strip().split("\n")[0]
        return Finding(name, "broken", f"does not import: {type(error).__name__}: {reason}", purpose, install)
    try:
        version = importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        version = "installed"
    return Finding(name, "ok", version, purpose)


def stack_finding(name: str, purpose: str) -> Finding:
    """As `module_finding`, of an optional stack; it must import with all that a family needs of it."""
    finding = module_finding(name, purpose, INSTALL_LINES[name])
    if finding.state == "ok":
        from beit3_bench.backbones.registry import families

        if problem := next(filter(None, (family.problem(name) for family in families())), None):
            return Finding(name, "broken", problem.partition("; install it")[0], purpose, INSTALL_LINES[name])
    return finding


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """A check that fails is a finding, never the end of the report."""
    try:
        return check()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        return Finding(
            name, "broken", f"{type(error).__name__}: {reason}", "see the message", "mend what the message names"
        )


def _device() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("device", "missing", "unknown without torch", "every task", "pip install beit3-bench")
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Finding("device", "ok", "; ".join(f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in cards))
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "Apple GPU (mps)")
    built = f", torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return Finding("device", "ok", f"CPU with {torch.get_num_threads()} threads; no GPU cards{built}")


def _products() -> Finding:
    from beit3_bench.backbones.products import exact_products

    way = exact_products()
    if way is None:
        return Finding("matrix products", "ok", "on this CPU rows agree to rounding at any batch size")
    by = "plain products" if way.library == "plain" else f"products of {way.library}"
    return Finding("matrix products", "ok", f"on this CPU rows are the same byte for byte at any batch size, by {by}")


def _java() -> Finding:
    purpose, mend = (
        "METEOR and SPICE of coco-caption and nocaps",
        "install a Java runtime, e.g. apt-get install default-jre-headless",
    )
    path = shutil.which("java")
    if path is None:
        return Finding("java", "missing", "not on PATH", purpose, mend)
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("java", "broken", f"{path}: {error}", purpose, mend)
    said = (done.stderr or done.stdout).strip().split("\n")[0]
    if done.returncode:
        return Finding("java", "broken", f"{path}: {said}", purpose, mend)
    return Finding("java", "ok", said, purpose)


def _spice() -> Finding:
    purpose = "SPICE of coco-caption and nocaps (left out otherwise)"
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return Finding(
            "SPICE model", "missing", "pycocoevalcap is not installed", purpose, INSTALL_LINES["pycocoevalcap"]
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "spice" / "lib"
    absent = [name for name in SPICE_JARS if not (folder / name).is_file()]
    if absent:
        archive = "stanford-corenlp-full-2015-12-09.zip from nlp.stanford.edu/software"
        mend = f"take {archive} and copy {' and '.join(absent)} out of it to {folder}"
        return Finding("SPICE model", "missing", f"{', '.join(absent)} not in {folder}", purpose, mend)
    return Finding("SPICE model", "ok", str(folder), purpose)


def _tasks() -> Finding:
    from beit3_bench.tasks.registry import get_task, task_names

    names = task_names()
    for name in names:
        get_task(name)
    return Finding("tasks", "ok", ", ".join(names))


def _pins() -> Finding:
    from beit3_bench.backbones.pins import pins_file, read_pins

    return Finding("pinned hashes", "ok", f"{len(read_pins())} in {pins_file()}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB in {folder}"
    if free < LARGEST_CHECKPOINT:
        return Finding(
            "free disk space", "missing", detail, "a large checkpoint", "free some space, or work in another folder"
        )
    return Finding("free disk space", "ok", detail)
