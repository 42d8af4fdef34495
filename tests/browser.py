"""Pages in a real browser: headless Chromium ($CHROMIUM, or as the Debian package calls it); tests are skipped where there is none."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def browser(*args: str, width: int = 1400, height: int = 1000) -> subprocess.CompletedProcess[str]:
    """What the browser prints: the page with ``--dump-dom``; lines with CONSOLE on stderr are what the page logs."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian package: chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    flags += ["--enable-logging=stderr", "--v=0", f"--window-size={width},{height}", "--virtual-time-budget=5000"]
    return subprocess.run([program, *flags, *args], capture_output=True, text=True, timeout=120)


def asked(page: Path, script: str, profile: Path, fragment: str = "", width: int = 1400) -> dict[str, Any]:
    """Run a script at the end of a page: it calls ``step(name, value)``; returns the values, errors and console lines.

    page: an HTML file; a copy with the script is opened.
    """
    probe = (
        "<script>const told = {errors: [], steps: {}}; const step = (name, value) => { told.steps[name] = value; };"
        "const shown = selector => [...document.querySelectorAll(selector)].filter(e => e.getClientRects().length > 0);"
        f"try {{ {script} }} catch (error) {{ told.errors.push(String(error)); }}"
        'const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(told);'
        "document.body.append(out);</script></body>"
    )
    copy = profile.parent / f"{profile.name}.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    done = browser(f"--user-data-dir={profile}", "--dump-dom", copy.as_uri() + fragment, width=width)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    answer = json.loads(html.unescape(found[1]))
    answer["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return answer
