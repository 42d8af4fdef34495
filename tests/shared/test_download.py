"""Downloads against a local server that misbehaves on demand."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import socketserver
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from beit3_bench import connections
from beit3_bench.backbones.pins import read_pins
from beit3_bench.download import download
from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.commands.download import command

BODY = bytes(i * i % 251 for i in range(300_000))
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server:
    """Serves BODY at every path.

    cut: bytes after which a connection breaks, one entry per request; afterwards nothing breaks.
    codes: status codes to answer with first.
    """

    def __init__(self) -> None:
        self.body = BODY
        self.ranges = True
        self.version: str | None = '"v1"'
        self.cut: list[int] = []
        self.codes: list[int] = []
        self.announce_extra = 0
        self.length = True
        self.kind = "application/octet-stream"
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Keep the test output quiet."""

            def do_GET(self) -> None:
                outer.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        if self.codes:
            handler.send_error(self.codes.pop(0))
            return
        start = 0
        if asked and self.ranges and handler.headers.get("If-Range") == self.version:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        rest = self.body[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if self.version:
            handler.send_header("ETag", self.version)
        handler.send_header("Content-Type", self.kind)
        if self.length:
            handler.send_header("Content-Length", str(len(rest) + self.announce_extra))
        handler.end_headers()
        handler.wfile.write(rest[: self.cut.pop(0)] if self.cut else rest)
        handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.server.shutdown()
    running.server.server_close()


class Script:
    """A server that gives one scripted answer after the other, the last one again and again."""

    def __init__(self, *answers: tuple[int, bytes, dict[str, str]]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Keep the test output quiet."""

            def do_GET(self) -> None:
                outer.asked.append(dict(self.headers))
                code, body, headers = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    running: list[Script] = []

    def start(*answers: tuple[int, bytes, dict[str, str]]) -> Script:
        running.append(Script(*answers))
        return running[-1]

    yield start
    for one in running:
        one.server.shutdown()
        one.server.server_close()


def refused(url: str, target: Path, match: str, retries: int = 2) -> str:
    with pytest.raises(BenchError, match=match) as caught:
        download(url, target, retries=retries, pause=0.001, timeout=5)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert not target.exists()
    return str(caught.value)


def fetch(server: Server, target: Path, sha256: str | None = DIGEST, retries: int = 3) -> Path:
    return download(f"{server.url}/file", target, sha256, retries=retries, pause=0.001, timeout=5)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_whole_file_arrives_and_nothing_else_stays(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(f"{server.url}/file", tmp_path / "sub" / "w.pth", DIGEST, progress=lambda a, b: seen.append((a, b)))
    assert path.read_bytes() == BODY
    assert leftovers(path.parent) == ["w.pth"]
    assert seen[-1] == (len(BODY), len(BODY))


def test_a_broken_transfer_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000, 50_000]
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_continues_an_earlier_one(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000]
    with pytest.raises(BenchError, match=r"broke off.*w\.pth\.part keeps what has arrived"):
        fetch(server, tmp_path / "w.pth", retries=0)
    assert (tmp_path / "w.pth.part").read_bytes() == BODY[:100_000]
    assert not (tmp_path / "w.pth").exists()
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY
    assert server.asked[-1] == "bytes=100000-"
    assert leftovers(tmp_path) == ["w.pth"]


def test_transfers_that_move_on_may_break_more_often_than_the_retries(server: Server, tmp_path: Path) -> None:
    server.cut = [30_000] * 8
    assert fetch(server, tmp_path / "w.pth", retries=1).read_bytes() == BODY


@pytest.mark.parametrize(("ranges", "version"), [(False, '"v1"'), (True, None), (True, 'W/"weak"')])
def test_without_ranges_or_a_version_the_file_is_fetched_anew(
    server: Server, tmp_path: Path, ranges: bool, version: str | None
) -> None:
    server.ranges, server.version, server.cut = ranges, version, [100_000]
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY


def test_a_file_that_changed_on_the_server_is_not_mixed_with_the_old_one(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000]
    with pytest.raises(BenchError):
        fetch(server, tmp_path / "w.pth", retries=0)
    server.body, server.version = BODY[::-1], '"v2"'
    assert fetch(server, tmp_path / "w.pth", sha256=None).read_bytes() == BODY[::-1]


def test_a_complete_part_file_is_only_verified(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(BODY)
    (tmp_path / "w.pth.part.version").write_text('"v1"')
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY
    assert server.asked == [f"bytes={len(BODY)}-"]


def test_a_part_file_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(BODY + b"more")
    (tmp_path / "w.pth.part.version").write_text('"v1"')
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY


def test_a_truncated_body_is_never_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    server.cut = [len(BODY) - 1] + [0] * 5
    with pytest.raises(BenchError, match="299,999 of 300,000 bytes arrived"):
        fetch(server, tmp_path / "w.pth", sha256=None, retries=2)
    assert not (tmp_path / "w.pth").exists()


def test_a_wrong_hash_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is not the expected"):
        fetch(server, tmp_path / "w.pth", sha256="0" * 64)
    assert not (tmp_path / "w.pth").exists()
    assert not (tmp_path / "w.pth.part").exists()


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_refusal_is_told_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.codes = [code] * 9
    with pytest.raises(BenchError, match=f"says {code}.*--base-url"):
        fetch(server, tmp_path / "w.pth")
    assert len(server.asked) == 1


def test_a_server_that_is_busy_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 500, 429]
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY


def test_a_web_page_is_not_a_checkpoint(server: Server, tmp_path: Path) -> None:
    server.kind = "text/html"
    with pytest.raises(BenchError, match="web page"):
        fetch(server, tmp_path / "w.pth", sha256=None)


def test_a_file_of_unknown_length_is_checked_by_its_hash(server: Server, tmp_path: Path) -> None:
    server.length = False
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY


def test_a_server_that_nobody_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9/file: not reached"):
        download("http://127.0.0.1:9/file", tmp_path / "w.pth", retries=1, pause=0.001)


@pytest.mark.parametrize("url", ["nonsense", "xyz://host/file"])
def test_an_address_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="address"):
        download(url, tmp_path / "w.pth", retries=1, pause=0.001)


def test_an_existing_target_is_verified_and_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(BODY)
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY
    assert server.asked == []
    (tmp_path / "w.pth").write_bytes(b"the user's own file")
    with pytest.raises(BenchError, match="move it away"):
        fetch(server, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == b"the user's own file"


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    with open(tmp_path / "w.pth.part", "a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BenchError, match="another process"):
            fetch(server, tmp_path / "w.pth")


def test_a_full_disk_is_told_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(BenchError, match=r"needs 300,000 bytes more, 10 are free"):
        fetch(server, tmp_path / "w.pth")


# ---- servers that do not do what they should ---------------------------------------------------------------------------

OLD, NEW = b"A" * 300_000, b"B" * 300_000
FIRST = (200, OLD[:100_000], {"Content-Length": "300000", "ETag": '"old"'})


def later(body: bytes = NEW[100_000:], span: str = "bytes 100000-299999/300000", **headers: str) -> tuple:
    names = {"ETag": '"old"', "Content-Range": span, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return 206, body, {k: v for k, v in names.items() if v}


@pytest.mark.parametrize(
    "answer",
    [
        later(ETag='"new"'),  # another version, though it was asked for the rest of the old one only
        later(ETag=""),  # no version: an answer with a part has to repeat it
        later(span="bytes 100000-299999/300001"),  # another size
        later(span="bytes 100000-299999/400000"),
    ],
    ids=["tag", "no tag", "size by one", "size"],
)
def test_a_part_of_another_version_is_never_appended(script, tmp_path: Path, answer: tuple) -> None:
    whole = (200, NEW, {"Content-Length": "300000", "ETag": '"new"'})
    server = script(FIRST, answer, whole)
    path = download(f"{server.url}/f", tmp_path / "f.pth", retries=2, pause=0.001, timeout=5)
    assert path.read_bytes() == NEW
    assert [r.get("Range") for r in server.asked] == [None, "bytes=100000-", None]
    assert leftovers(tmp_path) == ["f.pth"]


def test_a_server_that_only_sends_parts_of_another_version_is_given_up(script, tmp_path: Path) -> None:
    server = script(FIRST, later(ETag='"new"'))
    refused(f"{server.url}/f", tmp_path / "f.pth", "sent another part than asked for")
    first = (200, OLD[:9], {"Content-Length": "300000", "ETag": '"old"'})
    changing = [first, later(NEW[9:], "bytes 9-299999/300000", ETag='"new"')] * 20
    server = script(*changing)
    refused(f"{server.url}/f", tmp_path / "f.pth", "changed 3 times while it was fetched")
    assert leftovers(tmp_path) == []


def test_last_modified_that_a_part_leaves_out_is_the_same_version(script, tmp_path: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server = script(
        (200, OLD[:100_000], {"Content-Length": "300000", "Last-Modified": date}), later(OLD[100_000:], ETag="")
    )
    path = download(f"{server.url}/f", tmp_path / "f.pth", retries=2, pause=0.001, timeout=5)
    assert path.read_bytes() == OLD
    assert server.asked[1]["If-Range"] == date


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, gzip.compress(OLD), {"Content-Encoding": "gzip"}), r"packs the file \(gzip\)"),
        ((200, OLD, {"Content-Encoding": "x\x1b[31m"}), "packs the file"),
        ((204, b"", {}), "says 204 and sends no file"),
        ((200, b"", {"Content-Length": "0"}), "sent an empty file"),
        ((200, b"", {}), "sent an empty file"),
        ((203, OLD, {}), "says 203"),
        ((200, b"x", {"Content-Length": "abc"}), r"malformed \(Content-Length: abc\)"),
        ((200, b"x", {"Content-Length": "-1"}), "malformed"),
        ((200, b"x", {"Content-Length": "9" * 5000}), "malformed"),
        ((200, b"x", {"Content-Length": "\u0661".encode().decode("latin1")}), "malformed"),
        ((302, b"", {"Location": "http://[::1"}), "malformed"),
        ((302, b"", {"Location": "ftp://127.0.0.1/f"}), "sends on to ftp://127.0.0.1/f"),
        ((302, b"", {"Location": "file:///etc/passwd"}), "to .*file:///etc/passwd"),
        ((302, b"", {"Location": "/again"}), "says 302"),
        ((404, b"", {}), "says 404"),
        ((200, b"<html>", {"Content-Type": "application/xhtml+xml"}), "web page"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "answer",
)
def test_answers_that_are_no_file_are_refused_in_one_line(script, tmp_path: Path, answer: tuple, message: str) -> None:
    refused(f"{script(answer).url}/f", tmp_path / "f.pth", message)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "answer",
    [
        later(span="bytes 100000-/" + "9" * 5000),
        later(span="bytes 100000-299999/99"),
        later(span="bytes 299999-100000/300000"),
        later(span="bytes \u0661-\u0662/3".encode().decode("latin1")),
        later(span="items 1-2/3"),
        later(span="100000-299999/300000"),
        later(Content_Length="17"),
        later(span=""),
        later(span="bytes 5-299999/300000"),
        (200, OLD, {"Content-Encoding": "br"}),
        (200, b"", {"Content-Length": "0"}),
        (200, b"<html>", {"Content-Type": "text/html"}),
        (403, b"", {}),
    ],
)
def test_a_refused_answer_leaves_the_first_part_to_go_on_from(script, tmp_path: Path, answer: tuple) -> None:
    server = script(FIRST, answer)
    refused(f"{server.url}/f", tmp_path / "f.pth", "malformed|part|packs|empty|web page|says 403")
    assert (tmp_path / "f.pth.part").read_bytes() == OLD[:100_000]
    server = script(later(OLD[100_000:]))
    assert download(f"{server.url}/f", tmp_path / "f.pth", retries=0, timeout=5).read_bytes() == OLD
    assert leftovers(tmp_path) == ["f.pth"]


RAW = {
    "nothing": b"",
    "garbage": b"\x00\xff garbage \r\n\r\n",
    "no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "small number": b"HTTP/1.1 99 OK\r\n\r\n",
    "large number": b"HTTP/1.1 20000000000000 OK\r\n\r\n",
    "old": b"HTTP/0.9 OK\r\n\r\n",
    "no end": b"HTTP/1.1 200 OK\r\nContent-Length: 5",
    "long line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    "many lines": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nContent-Length 5\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nabcde",
    "bytes": b"HTTP/1.1 200 OK\r\nContent-Length: \xff\xfe\r\n\r\nabcde",
    "type": b"HTTP/1.1 200 OK\r\nContent-Type: \xff/\x00\r\nContent-Length: 0\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "cut chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "negative chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nab",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "reason": b"HTTP/1.1 404 \x1b[31mred\x07\r\nContent-Length: 0\r\n\r\n",
    "place": b"HTTP/1.1 302 Found\r\nLocation: http://\x1b[31m\x00 h:x/\r\nContent-Length: 0\r\n\r\n",
    "no place": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_answers_that_are_no_http_are_one_line(tmp_path: Path, name: str) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(RAW[name])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/f"
        message = refused(url, tmp_path / "f.pth", "127", retries=1)
        server.shutdown()
    assert url in message
    # The first bytes of a file may be kept to go on from, and nothing else of such an answer is.
    assert {path.read_bytes() for path in tmp_path.glob("*.part")} <= {b"abcde", b"ab"}


def test_a_server_that_does_not_hang_up_is_not_waited_for(tmp_path: Path) -> None:
    end = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde")
            end.wait(20)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        begun = time.monotonic()
        download(f"http://127.0.0.1:{server.server_address[1]}/f", tmp_path / "f", retries=0, timeout=20)
        assert time.monotonic() - begun < 5
        end.set()
        server.shutdown()
    assert (tmp_path / "f").read_bytes() == b"abcde"


def test_https_is_not_left(tmp_path: Path) -> None:
    request = urllib.request.Request("https://example.org/f")
    redirects = connections.Redirects()
    for address in ("http://example.org/f", "ftp://example.org/f", "file:///f", "data:,x"):
        with pytest.raises(BenchError, match="not protected by https"):
            redirects.redirect_request(request, None, 302, "Found", {}, address)
    assert redirects.redirect_request(request, None, 302, "Found", {}, "https://b.org/f").full_url == "https://b.org/f"


@pytest.mark.parametrize(
    "url", ["http://[::1/f", "http:///f", "http://h:port/f", "http://127.0.0.1:9/a b", "file:///etc/passwd"]
)
def test_malformed_addresses_are_told_at_once(tmp_path: Path, url: str) -> None:
    assert "address" in refused(url, tmp_path / "f.pth", "address", retries=0)
    assert leftovers(tmp_path) == []


def test_a_hash_that_is_none_is_told_before_the_transfer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="expected 64 hex digits"):
        fetch(server, tmp_path / "w.pth", sha256="abc")
    assert server.asked == []


def test_no_link_is_followed_when_writing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "w.pth.part").symlink_to(tmp_path / "mine")
    with pytest.raises(BenchError, match=r"w\.pth\.part: cannot be written"):
        fetch(server, tmp_path / "w.pth")
    (tmp_path / "w.pth.part").unlink()
    (tmp_path / "w.pth.part.version").symlink_to(tmp_path / "mine")
    assert fetch(server, tmp_path / "w.pth").read_bytes() == BODY
    assert (tmp_path / "mine").read_bytes() == b"mine"
    os.mkfifo(tmp_path / "v.pth.part")
    with pytest.raises(BenchError, match=r"v\.pth\.part: cannot be written"):
        fetch(server, tmp_path / "v.pth")


# ---- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*args: str, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(command, list(args), env=env)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_verb_downloads_from_a_mirror_and_pins(server: Server, tmp_path: Path, cache: Path) -> None:
    out = run("beit3.spm", "beit3_base_patch16_224", "--output", str(tmp_path / "w"), "--base-url", server.url + "/")
    assert leftovers(tmp_path / "w") == ["beit3.spm", "beit3_base_patch16_224.pth"]
    assert read_pins() == {"beit3.spm": DIGEST, "beit3_base_patch16_224": DIGEST}
    assert out.count(DIGEST) == 2


def test_the_mirror_can_come_from_the_environment(server: Server, tmp_path: Path, cache: Path) -> None:
    run("beit3.spm", "--output", str(tmp_path), env={"BEIT3_BENCH_MIRROR": server.url})
    assert (tmp_path / "beit3.spm").read_bytes() == BODY


def test_a_file_that_differs_from_its_pin_is_refused(server: Server, tmp_path: Path, cache: Path) -> None:
    run("beit3.spm", "--output", str(tmp_path / "a"), "--base-url", server.url)
    server.body = BODY[:-1]
    with pytest.raises(BenchError, match="is not the expected"):
        run("beit3.spm", "--output", str(tmp_path / "b"), "--base-url", server.url)
    assert leftovers(tmp_path / "b") == []


def test_an_unknown_name_gets_a_hint(cache: Path) -> None:
    with pytest.raises(BenchError, match="did you mean 'beit3_base_patch16_224'"):
        run("beit3_base_patch16_22")


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["--task", "vqav2"], ["beit3.spm", "beit3_base_patch16_480_vqa.pth"]),
        (["--task", "vqav2", "--preset", "large"], ["beit3.spm", "beit3_large_patch16_480_vqa.pth"]),
        (["--task", "imagenet"], ["beit3.spm", "beit3_base_itc_patch16_224.pth"]),
        (["--task", "nlvr2,flickr30k"], ["beit3.spm", "beit3_base_patch16_224_nlvr2.pth", "beit3_base_patch16_384_f30k_retrieval.pth"]),
        (["beit3_base_patch16_224", "--task", "nlvr2"], ["beit3.spm", "beit3_base_patch16_224.pth", "beit3_base_patch16_224_nlvr2.pth"]),
    ],
)  # fmt: skip
def test_a_task_gets_its_released_file_and_the_tokenizer(
    server: Server, tmp_path: Path, cache: Path, words: list[str], files: list[str]
) -> None:
    run(*words, "--output", str(tmp_path / "w"), "--base-url", server.url)
    assert leftovers(tmp_path / "w") == files
    asked = len(server.asked)
    run(*words, "--output", str(tmp_path / "w"), "--base-url", server.url)
    assert len(server.asked) == asked


def test_a_family_that_is_named_has_its_own_file_and_vocabulary(server: Server, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(BenchError, match=r"vocab\.txt.*is not the expected"):  # its hash is published
        run("--task", "vqav2", "--family", "vlmo", "--output", str(tmp_path), "--base-url", server.url)
    assert leftovers(tmp_path) == ["cache", "vlmo_base_patch16_480_vqa.pt"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "coco-det"], "no released file is of task coco-det; train one"),
        (["--task", "vqav"], "unknown task 'vqav'; did you mean 'vqav2'"),
        (["--task", "vqav2", "--preset", "huge"], "no released beit3 file of preset 'huge' is of task vqav2; there are: base, large"),
        (["--task", "vqav2", "--family", "bleit3"], "no released file of family 'bleit3' is of task vqav2; did you mean 'beit3'"),
        (["--preset", "base"], "give a NAME .* or --task"),
        (["beit3.spm", "--preset", "base"], "--preset and --family go with --task"),
        (["--task", "vqav2", "--sha256", "0" * 64], "--sha256 goes with one NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_downloaded_is_a_line(cache: Path, words: list[str], line: str) -> None:
    done = CliRunner().invoke(main, ["download", *words])
    assert done.exit_code == 2
    assert re.search(line, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not cache.exists()
