"""Where a number comes from: versions, hardware, commit, command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "sentencepiece",
    "pycocotools",
    "accelerate",
    "pycocoevalcap",
    "mmsegmentation",
    "detectron2",
    "imagecorruptions-imaug",
    "opencv-python",
    "scikit-image",
)


def package_version() -> str:
    """Version of beit3-bench."""
    return version("beit3-bench")


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can move a number."""
    versions = {"python": platform.python_version(), "beit3-bench": package_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether its tracked files were edited; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, memory and, where torch is loaded and sees them, graphics cards."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def command_line() -> str:
    """The command as it can be pasted into a shell."""
    program = "beit3-bench" if Path(sys.argv[0]).name in ("beit3-bench", "__main__.py") else sys.argv[0]
    return shlex.join([program, *sys.argv[1:]])


def provenance(**facts: Any) -> dict[str, Any]:
    """Everything that this module knows, with ``facts`` (fingerprints, settings) beside it."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "git": git_commit(),
        "packages": package_versions(),
        "hardware": hardware(),
        **facts,
    }
