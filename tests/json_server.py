"""A real HTTP server for tests of HTTP sources: each path answers in its own way, right or wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

#: What the server knows of each id.
PEOPLE: dict[str, dict[str, Any]] = {
    "ann": {"tier": "gold", "limits": {"discount": 20}, "at": "2026-05-13T10:00:00Z", "sure": 0.9},
    "bob": {"tier": "silver", "limits": {"discount": 5}},
    "a/../b c?d#e%2f": {"tier": "odd", "limits": {"discount": 1}},
}


class JsonServer(ThreadingHTTPServer):
    """`gate` holds back `/slow/..` until it is set; `requests` are the paths that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.gate = threading.Event()
        self.requests: list[str] = []
        #: Released at each request.
        self.arrivals = threading.Semaphore(0)
        self.keys: list[str | None] = []
        self.elsewhere = ""

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer
    protocol_version: ClassVar[str] = "HTTP/1.1"

    def do_GET(self) -> None:
        from urllib.parse import unquote

        self.server.requests.append(self.path)
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.arrivals.release()
        way, _, rest = self.path.lstrip("/").partition("/")
        person = PEOPLE.get(unquote(rest))
        if way == "slow":
            self.server.gate.wait(30)
        if way == "drip":
            self._drip()
        elif way == "ids":
            self._send(json.dumps(["bob", "ann"]).encode())
        elif way == "status":
            self._send(b"{}", status=503)
        elif way == "text":
            self._send(b"hello", kind="text/plain")
        elif way == "broken":
            self._send(b'{"tier": "gold"')
        elif way == "list":
            self._send(b"[1]")
        elif way == "wrong":
            self._send(json.dumps({"tier": 7, "limits": {"discount": "much"}}).encode())
        elif way == "large":
            self._send(json.dumps({"tier": "x" * 100_000}).encode())
        elif way == "endless":
            self._chunks()
        elif way == "here":
            self._redirect(f"/people/{rest}")
        elif way == "elsewhere":
            self._redirect(self.server.elsewhere)
        elif way == "loop":
            self._redirect(self.path)
        elif person is None:
            self._send(b"{}", status=404)
        else:
            self._send(json.dumps(person).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, body: bytes, *, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:  # the client has read enough
            self.close_connection = True

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _drip(self) -> None:
        """Headers that keep coming, so that no single read times out, until the gate opens."""
        self.close_connection = True
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.gate.wait(0.005):
                self.wfile.write(b"X: 1\r\n")
        except OSError:
            return

    def _chunks(self) -> None:
        """A body whose length nobody states, and which does not end."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(b'{"tier": "' + b"x" * 8_192)
        except OSError:
            return


@contextmanager
def json_server() -> Iterator[JsonServer]:
    """A running server; what it holds back is let go at the end."""
    server = JsonServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
