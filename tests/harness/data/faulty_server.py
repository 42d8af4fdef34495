"""A local server that misbehaves as it is told to, and the archives that it serves."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def zip_of(files: Mapping[str, bytes], stored: bool = True) -> bytes:
    """A zip file of these members; images are stored in it, as in COCO's."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class FaultyServer:
    """Serves files by their names in any folder; each request to a file takes the next of its faults, if there is one left.

    faults: by file, in words (see `_answer`); a number = the connection breaks after so many bytes of the body.
    delay: seconds between pieces of a body of 64 KiB.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str | int]] = {}
        self.versions: dict[str, str] = {}
        self.delay = 0.0
        self.asked: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Keep the test output quiet."""

            def do_HEAD(self) -> None:
                outer._answer(self, head=True)

            def do_GET(self) -> None:
                outer._answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def gets(self, name: str = "") -> list[str | None]:
        """Ranges of the requests for a file's bytes."""
        return [asked for method, path, asked in self.asked if method == "GET" and path.endswith(name)]

    def _answer(self, handler: BaseHTTPRequestHandler, head: bool = False) -> None:
        name = handler.path.rpartition("/")[2]
        asked = handler.headers.get("Range")
        self.asked.append((handler.command, handler.path, asked))
        faults = self.faults.get(name, [])
        fault = faults.pop(0) if faults and not head else ""
        if fault == "hang up":
            return
        if isinstance(fault, str) and fault[:3].isdigit() and len(fault) == 3:
            handler.send_error(int(fault))
            return
        if isinstance(fault, str) and fault.startswith("to "):
            self._send(handler, 302, b"", {"Location": fault.removeprefix("to ")})
            return
        if name not in self.files:
            handler.send_error(404)
            return
        body = b"<html>please sign in</html>" if fault == "page" else self.files[name]
        version = f'"{self.versions.get(name, "1")}"'
        headers = {"ETag": version, "Content-Type": "text/html" if fault == "page" else "application/zip"}
        start = 0
        if asked and fault != "no ranges" and handler.headers.get("If-Range") == version:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body) or fault == "no range":
            self._send(handler, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        body = body[start:]
        said = {"long": len(body) + 10, "short": len(body) - 10}.get(str(fault), len(body))
        cut = {"stall": 1000}.get(str(fault), fault if isinstance(fault, int) else len(body))
        self._send(
            handler, 206 if start else 200, b"" if head else body[:cut], {**headers, "Content-Length": str(said)}
        )
        if fault == "stall":
            time.sleep(3)

    def _send(self, handler: BaseHTTPRequestHandler, code: int, body: bytes, headers: Mapping[str, str]) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for at in range(0, len(body), 1 << 16):
                handler.wfile.write(body[at : at + (1 << 16)])
                time.sleep(self.delay)
        except OSError:  # whoever asked was killed
            pass
        handler.close_connection = True


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    running = FaultyServer()
    try:
        yield running
    finally:
        running.server.shutdown()
        running.server.server_close()
