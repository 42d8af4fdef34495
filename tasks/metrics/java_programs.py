"""The Java programs that ship with pycocoevalcap: where they are, how they are run, and why they may be unavailable.

Nothing here imports pycocoevalcap (its SPICE wrapper downloads half a gigabyte when constructed), and nothing
downloads.
"""

from __future__ import annotations

import importlib.util
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from beit3_bench.errors import INSTALL_LINES


class Unavailable(Exception):
    """A metric cannot be computed here; the message says why in one line and becomes a note of the result."""


def find_java() -> str:
    """Path of the ``java`` command.

    Raises:
        Unavailable: none on the PATH.
    """
    java = shutil.which("java")
    if java is None:
        raise Unavailable("java was not found on the PATH (install a Java runtime, version 8 or later)")
    return java


def program_folder(name: str, jar: str) -> Path:
    """Folder of pycocoevalcap that holds ``jar``, e.g. ``program_folder("meteor", "meteor-1.5.jar")``.

    Raises:
        Unavailable: the package or the file is missing.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise Unavailable(f"pycocoevalcap is not installed ({INSTALL_LINES['pycocoevalcap']})")
    folder = Path(next(iter(package.submodule_search_locations))) / name
    if not (folder / jar).is_file():
        raise Unavailable(f"{folder / jar} is missing (reinstall pycocoevalcap)")
    return folder


def converse(command: Sequence[str], cwd: Path, requests: Sequence[str], timeout: float) -> Iterator[str]:
    """Send lines to a program that answers each with one line; all are sent at once, answers are read as they come.

    Writing and reading have a thread each, and what the program complains goes to a file, so that no full pipe can stop
    either side. The process is gone when the iteration ends, however it ends.

    Args:
        requests: lines without line ends.
        timeout: longest wait for one answer, in seconds.

    Raises:
        Unavailable: the program cannot be started, stops early, or does not answer in time.
    """
    name = Path(command[0]).name
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                list(command), cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints
            )
        except OSError as error:
            raise Unavailable(f"{name} could not be started ({error})") from error
        answers: queue.Queue[bytes | None] = queue.Queue()

        def write() -> None:
            assert process.stdin is not None
            try:
                process.stdin.write("".join(request + "\n" for request in requests).encode("utf-8", "replace"))
                process.stdin.close()
            except (BrokenPipeError, OSError):
                return  # the reader finds out why

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put(None)

        threads = [threading.Thread(target=target, daemon=True) for target in (write, read)]
        for thread in threads:
            thread.start()
        try:
            for number in range(len(requests)):
                try:
                    line = answers.get(timeout=timeout)
                except queue.Empty:
                    raise Unavailable(f"{name} gave no answer to request {number + 1} within {timeout:g} s") from None
                if line is None:
                    raise Unavailable(
                        f"{name} stopped after {number} of {len(requests)} answers{_ending(process, complaints)}"
                    )
                yield line.decode("utf-8", "replace").strip()
        finally:
            process.kill()
            process.wait()
            for thread in threads:
                thread.join(timeout=5)
            for pipe in (process.stdin, process.stdout):
                try:
                    assert pipe is not None
                    pipe.close()
                except OSError:
                    continue


def run(command: Sequence[str], cwd: Path, timeout: float) -> None:
    """Run a program to its end, quietly.

    Raises:
        Unavailable: it cannot be started, fails, or takes longer than ``timeout`` seconds.
    """
    name = Path(command[0]).name
    start = time.monotonic()
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                list(command), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints
            )
        except OSError as error:
            raise Unavailable(f"{name} could not be started ({error})") from error
        try:
            process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{name} was stopped after {time.monotonic() - start:.0f} s without a result") from None
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise Unavailable(f"{name} failed{_ending(process, complaints)}")


def _ending(process: subprocess.Popen, complaints) -> str:
    """`` (exit status 1: last line of what it complained)``"""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return ""
    complaints.seek(0)
    lines = [line.strip() for line in complaints.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "xception" in line]
    said = (errors or lines or [""])[0][:200]
    return f" (exit status {process.returncode}{': ' + said if said else ''})"
