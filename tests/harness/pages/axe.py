"""Pages judged by axe-core, where $AXE names its file (axe.min.js of the npm package axe-core): contrast, names, roles, structure."""

from __future__ import annotations

import html
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROBE = """
const out = document.createElement("pre"); out.id = "axe"; document.body.append(out);
axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]}).then(found => {
  out.textContent = "AXE" + JSON.stringify(found.violations.map(v => [v.id, v.nodes.slice(0, 3).map(n => n.html.slice(0, 150))])) + "END";
}, error => { out.textContent = "AXE" + JSON.stringify([String(error)]) + "END"; });
"""
"""Writes what violates WCAG 2 A and AA into the page."""


def violations(
    text: str, scheme: str, folder: Path, browser: Callable[..., subprocess.CompletedProcess[str]]
) -> list[Any]:
    """What axe-core has against a page in a colour scheme, ``"light"`` or ``"dark"``; skips the test without $AXE."""
    axe = os.environ.get("AXE")
    if not axe:
        pytest.skip("AXE is not set (npm package axe-core: axe.min.js)")
    text = text.replace("script-src 'unsafe-inline'", "script-src 'unsafe-inline' 'unsafe-eval'")
    file = folder / "axe.html"
    file.write_text(text.replace("</body>", f"<script>{Path(axe).read_text()}</script><script>{PROBE}</script></body>"))
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    words = [*dark, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom", file.as_uri()]
    done = browser(*words)
    return json.loads(html.unescape(done.stdout.rpartition("AXE")[2].partition("END")[0]))
