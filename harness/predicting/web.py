"""One picture from an http(s) address: of bounded size, within bounded time, and nothing else than its bytes."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from beit3_bench.errors import BenchError

MAX_BYTES = 64 * 2**20
SECONDS = 30.0
"""For the whole transfer."""
SILENCE = 10.0
"""Seconds without a byte after which a server counts as slow."""
_CHUNK = 1 << 16


def is_address(text: str) -> bool:
    """Whether a text names a place on the web; anything with a scheme does (``ftp://``, which `fetch` refuses)."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and scheme.isascii() and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()


def fetch(url: str, limit: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """The bytes behind an address.

    Redirections are followed to http and https only, and from https to https only.

    Args:
        limit: bytes, of the largest file that is taken.  seconds: for all of it.

    Raises:
        BenchError: another scheme; refused; broken off; too large; too slow.
    """
    try:
        address = urllib.parse.urlsplit(url)
        host = address.hostname
    except ValueError as error:
        raise BenchError(f"{url}: not an address ({error}); give one that starts with https://") from error
    if address.scheme not in ("http", "https") or not host:
        raise BenchError(f"{url}: pictures are fetched over http and https alone; download it, and give the file")
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(url, headers={"User-Agent": "beit3-bench", "Accept": "image/*,*/*;q=0.1"})
    try:
        with _opener().open(request, timeout=min(seconds, SILENCE)) as response:
            return _body(response, url, limit, deadline, seconds)
    except urllib.error.HTTPError as error:
        raise BenchError(f"{url}: the server says {error.code} {_line(error.reason)}; check the address") from error
    except TimeoutError as error:
        raise _slow(url, seconds) from error
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise _slow(url, seconds) from error
        mend = (
            "check the clock, a proxy, and ca-certificates" if isinstance(reason, ssl.SSLError) else "check the address"
        )
        raise BenchError(
            f"{url}: cannot be fetched ({_line(reason)}); {mend}, or download it and give the file"
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        words = f"{type(error).__name__}: {_line(error)}"
        raise BenchError(f"{url}: the address, or the server's answer, is malformed ({words})") from error


def _body(response: Any, url: str, limit: int, deadline: float, seconds: float) -> bytes:
    if response.status != 200:
        raise BenchError(f"{url}: the server says {response.status} and sends no file; check the address")
    announced = response.headers.get("Content-Length", "")
    if announced.isascii() and announced.isdecimal() and len(announced) > 15:
        raise _large(url, limit)
    if announced.isascii() and announced.isdecimal() and int(announced) > limit:
        raise _large(url, limit)
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > limit:
            raise _large(url, limit)
        if time.monotonic() > deadline:
            raise _slow(url, seconds)
    if announced.isdecimal() and len(content) < int(announced):
        raise BenchError(f"{url}: broke off after {len(content):,} of {int(announced):,} bytes; try again")
    return bytes(content)


def _large(url: str, limit: int) -> BenchError:
    return BenchError(f"{url}: is larger than {limit // 2**20} MiB; download it, make it smaller, and give the file")


def _slow(url: str, seconds: float) -> BenchError:
    return BenchError(f"{url}: did not arrive within {seconds:g} s; try again, or download it and give the file")


def _line(text: object) -> str:
    """What a server or a library said, fit for a message."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, fp: Any, code: int, message: str, headers: Any, newurl: str) -> Any:
        before, after = (urllib.parse.urlsplit(u).scheme for u in (request.full_url, newurl))
        if after not in ("http", "https") or (before == "https" and after != "https"):
            raise BenchError(f"{request.full_url}: the server sends on to {_line(newurl)}, which is not followed")
        return super().redirect_request(request, fp, code, message, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http and https, through the proxies that the environment names; no ftp, no local files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener
