"""Addresses on the web as text; nothing here connects to one."""

from __future__ import annotations

import urllib.parse

from beit3_bench.errors import BenchError


def check_address(url: str) -> None:
    """Raise unless an address is one of http or https.

    Raises:
        BenchError: it is none.
    """
    try:
        address = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise BenchError(f"{url}: not an address ({error}); give one that starts with https://") from error
    if address.scheme not in ("http", "https") or not address.netloc:
        raise BenchError(f"{url}: not an address; give one that starts with https://")


def one_line(text: object) -> str:
    """What a server or a library said, fit for a message."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]
