"""Pictures from addresses: bounded, http(s) alone, one line per failure."""

from __future__ import annotations

import io
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.harness.predicting import web
from beit3_bench.harness.predicting.output import plain_name
from beit3_bench.harness.predicting.sources import Sources
from beit3_bench.harness.predicting.web import fetch, is_address


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (9, 8, 7)).save(buffer, "PNG")
    return buffer.getvalue()


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png")
        elif self.path == "/to-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
        elif self.path == "/round":
            self.send_response(302)
            self.send_header("Location", "/round")
        elif self.path == "/none":
            self.send_response(404)
        else:
            self.send_response(200)
        if self.path == "/short":
            self.send_header("Content-Length", "1000")
        if self.path == "/announced":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        try:
            if self.path == "/a.png?size=big" or self.path in ("/a.png", "/short"):
                self.wfile.write(png())
            elif self.path == "/page":
                self.wfile.write(b"<!DOCTYPE html><p>sign in")
            elif self.path == "/endless":
                while True:
                    self.wfile.write(bytes(1 << 16))
            elif self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def place():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_picture_is_fetched_once_and_opened(place):
    (picture,) = Sources.of([f"{place}/a.png?size=big"]).pictures
    assert picture.open().size == (12, 8)
    assert picture.content == png()
    assert picture.path is None
    assert fetch(f"{place}/moved") == png()
    assert plain_name(picture.name) == "a"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("none", "the server says 404"),
        ("to-file", "is not allowed"),
        ("round", "the server says 302"),
        ("announced", "is larger than 1 MiB"),
        ("endless", "is larger than 1 MiB"),
        ("short", "broke off"),
        ("slow", "did not arrive within 0.5 s"),
    ],
)
def test_what_goes_wrong_is_one_line(place, path, line):
    with pytest.raises(BenchError, match=line) as error:
        fetch(f"{place}/{path}", limit=2**20, seconds=0.5)
    assert str(error.value).startswith(f"{place}/")
    assert "\n" not in str(error.value)


def test_a_web_page_is_no_picture(place):
    (picture,) = Sources.of([f"{place}/page"]).pictures
    with pytest.raises(BenchError, match="a web page"):
        picture.open()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.jpg", "data://x", "http://", "http://[::1/a"])
def test_other_schemes_are_refused(url):
    with pytest.raises(BenchError, match=r"http and https alone|not an address"):
        fetch(url)


def test_nobody_there():
    with pytest.raises(BenchError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/a.png", seconds=2)


def test_paths_are_no_addresses():
    assert not any(map(is_address, ["a.jpg", "/tmp/a.jpg", "C:\\a.jpg", "a:b.jpg", "folder/x://y"]))
    assert is_address("https://host/a.jpg")
    assert web.MAX_BYTES > 2**20
