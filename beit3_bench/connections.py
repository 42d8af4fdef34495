"""http and https connections that are made within seconds or not at all, and that are led to no other scheme."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

from beit3_bench.addresses import one_line
from beit3_bench.errors import BenchError

CONNECT_TIMEOUT = 5.0
"""Seconds to look up a name and to connect, all addresses of it together."""
LEAST = 1.0
"""Seconds that an address is given, so that one that does not answer leaves time for the others."""


class Unreachable(OSError):
    """No connection came about: no such name, nobody listens, no network, a proxy that is not there."""


def opener() -> urllib.request.OpenerDirector:
    """http and https, through the proxies that the environment names; no ftp, no local files."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        _Plain,
        _Secure,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        Redirects,
    ):
        director.add_handler(handler())
    return director


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and from https to https only."""

    def redirect_request(self, request: Any, fp: Any, code: int, message: str, headers: Any, newurl: str) -> Any:
        before, after = (urllib.parse.urlsplit(u).scheme for u in (request.full_url, newurl))
        if after not in ("http", "https") or (before == "https" and after != "https"):
            raise BenchError(
                f"{request.full_url}: the server sends on to {one_line(newurl)}, which is not protected by https; "
                "give another address with --base-url"
            )
        return super().redirect_request(request, fp, code, message, headers, newurl)


# ---- within seconds --------------------------------------------------------------------------------------------------


def _look_up(host: str, port: int, deadline: float) -> list[Any]:
    """`socket.getaddrinfo`, which has no timeout of its own: where nothing answers, it may take half a minute."""
    result: list[Any] = []

    def ask() -> None:
        try:
            result.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            result[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 0))
    if not result:
        raise Unreachable(f"the name {host} was not found within {CONNECT_TIMEOUT:g} s")
    if isinstance(result[0], Exception):
        raise Unreachable(f"{host}: {result[0]}") from result[0]
    return list(result)


def connect(address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
    """A connection to the first address of a name that answers; as `socket.create_connection`, with an end.

    Args:
        timeout: seconds for all of it; afterwards that of the socket.

    Raises:
        Unreachable: none answers.
    """
    deadline = time.monotonic() + timeout
    addresses = _look_up(*address, deadline)
    reason: OSError = Unreachable("no address")
    for number, (family, kind, protocol, _, place) in enumerate(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        stream = socket.socket(family, kind, protocol)
        try:
            stream.settimeout(min(left, max(left / (len(addresses) - number), LEAST)))
            if source:
                stream.bind(source)
            stream.connect(place)
        except OSError as error:
            stream.close()
            reason = error
        else:
            stream.settimeout(timeout)
            return stream
    raise Unreachable(f"{address[0]}: {reason.strerror or reason}") from reason


class _Connection(http.client.HTTPConnection):
    """Connects within `CONNECT_TIMEOUT`, handshake included; from then on ``timeout`` counts, from one byte to the next."""

    def connect(self) -> None:
        patience = self.timeout
        self._create_connection = connect
        self.timeout = CONNECT_TIMEOUT if patience is None else min(CONNECT_TIMEOUT, patience)
        try:
            super().connect()
        except ssl.SSLCertVerificationError:
            raise
        except Unreachable:
            raise
        except OSError as error:  # of the handshake, or of a proxy that leads no further
            raise Unreachable(f"{self.host}: {error}") from error
        finally:
            self.timeout = patience
        self.sock.settimeout(patience)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request)


class _Secure(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, request, context=ssl.create_default_context())
