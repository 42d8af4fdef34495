"""``beit3-bench doctor``: what is installed, what is missing for which task, and how to mend it; whether the machine computes right."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from beit3_bench.errors import INSTALL_LINES, BenchError, exhausted
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.commands.options import device
from beit3_bench.harness.console import Tone, Toned, echo

CORE = ("torch", "torchvision", "timm", "numpy", "PIL", "safetensors", "sentencepiece", "pycocotools", "accelerate")
DISTRIBUTIONS = {
    "PIL": ("pillow",),
    "mmcv": ("onedl-mmcv", "mmcv"),
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
    "open_clip": ("open_clip_torch",),
    "eccv_caption": ("eccv-caption",),
    "imagecorruptions": ("imagecorruptions-imaug",),
}
"""Module -> names of the distributions that may hold it, where these are others."""
SLOW = ("torchvision", "timm")
"""Of the core, what takes longer to import than torch."""
COMPILED = ("_C*.so", "_ext*.so")
"""Of a package that is not imported, what may be built for another torch."""

STACKS = {
    "pycocoevalcap": "METEOR and SPICE of coco-caption and nocaps",
    "detectron2": "coco-det through detectron2",
    "mmcv": "ade20k-seg",
    "mmengine": "ade20k-seg",
    "mmseg": "ade20k-seg",
    "mmdet": "ade20k-seg",
    "faster_coco_eval": "a faster scorer of coco-det (pycocotools serves without it)",
    "open_clip": "checkpoints of CLIP, OpenCLIP, SigLIP and their kin (openclip:...)",
    "transformers": "tokenizers of SigLIP",
    "eccv_caption": "ECCV Caption and CxC beside the recalls of coco-retrieval",
    "imagecorruptions": "run --corrupt",
    "pillow_heif": "HEIC pictures of phones in predict",
    "pyarrow": "data sets as .parquet files, as the Hugging Face hub exports them",
    "tensorboard": "--log-to tensorboard, and events of every training",
    "wandb": "--log-to wandb",
    "mlflow": "--log-to mlflow",
}
"""Optional module -> what cannot be done without it."""
NEEDS = {"ade20k-seg": ("mmcv", "mmengine", "mmseg", "mmdet")}
"""Task -> the optional modules without which it cannot run at all."""

SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
TONES: dict[str, Tone] = {"ok": "good", "missing": "warning", "broken": "error"}
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
@click.option(
    "--imports",
    is_flag=True,
    help="Import every package, which takes several times as long: finds those that are there and do not work.",
)
@click.option(
    "--numerics",
    is_flag=True,
    help="Compute tiny networks, every head stage by stage, and compare with what the authors' code computed.",
)
@device
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    multiple=True,
    help="With --numerics: arithmetic; may be given several times [default: fp32, and bf16 or else fp16].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context, imports: bool, numerics: bool, device: str, dtypes: tuple[str, ...], as_json: bool
) -> None:
    """Say what is installed, what is missing for which task, and how to mend it; the last line says which tasks can run.

    Changes nothing, and exits with 0 whatever it finds.

    With --numerics: does this machine compute what the authors' code computed? The last line says where it first does not. Exit
    code 0: all fits; 1: something differs; 2: it cannot be looked at (no such device, a damaged installation).
    """
    if numerics:
        if imports:
            raise click.UsageError("--imports and --numerics are two reports: give one of them")
        _numerics(device, dtypes, as_json)
        return
    for option in ("device", "dtypes"):
        if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{option.removesuffix('s')} is of --numerics: give that, too")
    with collection_paused():  # torch makes a million objects that stay
        findings = examine(imports)
    if as_json:
        echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
        return
    *checks, verdict = findings
    width = max(len(finding.name) for finding in checks)
    for finding in checks:
        echo(Toned(f"{finding.state:<8}", TONES[finding.state]), f" {finding.name:<{width}}  {finding.detail}")
        if finding.state != "ok":
            echo(f"{'':<8} {'':<{width}}  needed for: {finding.needed_for}")
            echo(f"{'':<8} {'':<{width}}  mend: {finding.mend}")
    wrong = [finding for finding in checks if finding.state != "ok"]
    echo(f"\n{len(checks) - len(wrong)} of {len(checks)} checks are ok.")
    echo(Toned(verdict.detail, TONES[verdict.state]))


def _numerics(device: str, dtypes: Sequence[str], as_json: bool) -> None:
    from beit3_bench.harness.evidence.numerics import measure, report_as_text

    try:
        report = measure(device, dtypes)
        table, verdict = report_as_text(report)
    except (BenchError, OSError, MemoryError):
        raise
    except Exception as error:  # exit code 1 says that something differs
        if exhausted(error) is not None:  # told as for every verb
            raise
        raise BenchError(
            f"the numerics cannot be looked at, internal error: {type(error).__name__}: {str(error)[:200]}; --debug shows the traceback"
        ) from error
    if as_json:
        echo(json.dumps(report.to_dict(), indent=1))
    else:
        echo(table)
        echo(Toned(verdict, "good" if report.fits else "error"))
    if not report.fits:
        raise SystemExit(1)


def examine(imports: bool = False) -> list[Finding]:
    """All checks, and last which tasks can run. imports: every package is imported, torch and small ones always are."""
    findings = [Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")]
    findings += [module_finding(name, "every task", core_install(name), imports or name not in SLOW) for name in CORE]
    findings += [_guarded("device", _device), _guarded("matrix products", _products)]
    findings += [stack_finding(name, purpose, imports) for name, purpose in STACKS.items()]
    findings += [_guarded("java", _java), _guarded("SPICE model", _spice)]
    findings += [_guarded("pinned hashes", _pins), _guarded("free disk space", lambda: _disk(Path.cwd()))]
    return [*findings, _guarded("tasks", lambda: _tasks(findings))]


def core_install(name: str) -> str:
    """The line that installs a package that every task needs, in the range that this program wants."""
    distribution = DISTRIBUTIONS.get(name, (name,))[0]
    try:
        wanted = importlib.metadata.requires("beit3-bench") or ()
    except importlib.metadata.PackageNotFoundError:
        wanted = ()
    ranges = (text for text in wanted if re.fullmatch(rf"{distribution}\b[^;\w-][^;]*", text))
    return f"pip install '{next(ranges, distribution)}'"


def module_finding(name: str, purpose: str, install: str, imports: bool = True) -> Finding:
    """Whether a module is there; installed but broken is told apart from missing.

    imports: it is imported; else only what may be compiled for another torch is loaded.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        return Finding(name, "missing", "not installed", purpose, install)
    try:
        if imports:
            importlib.import_module(name)
        else:
            load_compiled(spec.submodule_search_locations or ())
    except Exception as error:  # a compiled extension can fail in any way
        reason = str(error).strip().split("\n")[0]
        return Finding(name, "broken", f"does not import: {type(error).__name__}: {reason}", purpose, install)
    return Finding(name, "ok", _version(name), purpose)


def load_compiled(folders: Iterable[str]) -> None:
    """Load the extensions of a package as its import would; torch has been imported, whose libraries they use.

    Raises:
        OSError: one is for another torch, another machine, or lacks a library.
    """
    for path in sorted(path for folder in folders for pattern in COMPILED for path in Path(folder).glob(pattern)):
        ctypes.CDLL(str(path))


def _version(name: str) -> str:
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "installed"


def stack_finding(name: str, purpose: str, imports: bool = True) -> Finding:
    """As `module_finding`, of an optional stack; where it is imported, all that a family needs of it must be, too."""
    finding = module_finding(name, purpose, INSTALL_LINES[name], imports)
    if finding.state == "ok" and imports:
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
        return Finding("device", "missing", "unknown without torch", "every task", core_install("torch"))
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Finding("device", "ok", "; ".join(f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in cards))
    if torch.backends.mps.is_available():
        detail = "Apple GPU: used with --device mps, in fp32, fp16"
        bf16 = " and bf16" if torch.backends.mps.is_macos_or_newer(14, 0) else " (bf16 from macOS 14 on)"
        return Finding("device", "ok", f"{detail}{bf16}; for what torch lacks there, set PYTORCH_ENABLE_MPS_FALLBACK=1")
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


def _tasks(findings: Sequence[Finding]) -> Finding:
    """Which tasks can run here, and what lets the others run."""
    from beit3_bench.tasks.registry import get_task, task_names

    names = task_names()
    for name in names:
        get_task(name)
    mends = {f.name: f.mend for f in findings if f.state != "ok"}
    for_all = [mends[module] for module in CORE if module in mends]
    blocked = {
        name: for_all or list(dict.fromkeys(mends[module] for module in NEEDS.get(name, ()) if module in mends))[:1]
        for name in names
    }
    blocked = {name: steps for name, steps in blocked.items() if steps}
    verdict = f"{len(names) - len(blocked)} of {len(names)} tasks can run here"
    if not blocked:
        return Finding("tasks", "ok", f"{verdict}: {', '.join(names)}")
    mend = " && ".join(for_all) or "; ".join(f"{name}: {steps[0]}" for name, steps in blocked.items())
    return Finding("tasks", "missing", f"{verdict}; {mend}", ", ".join(blocked), mend)


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
