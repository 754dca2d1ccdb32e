"""HTTP requests to one model server, with limits on time, size and type of each reply.

Owns the connection and the bearer key. Invariant: a request ends by its deadline or within `PATIENCE_S`, is
sent at most one time, follows no redirect, uses no proxy, and reads at most `MAX_REPLY_BYTES`. Anything else
is an EngineError that names the server, the path and the cure, and never the key. Engine thread.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from thor_policy.core import strict_json
from thor_policy.core.errors import ConfigError, DeadlineExceeded, EngineError
from thor_policy.core.requests import Json

#: Largest reply that is read, in bytes.
MAX_REPLY_BYTES = 4 << 20
#: Longest wait for a single reply, in seconds, whatever the deadline.
PATIENCE_S = 120.0
#: Characters of a server's error text that our error quotes.
_QUOTED_CHARS = 200
_MAX_KEY_BYTES = 4096

T = TypeVar("T")


class PathNotFound(EngineError):
    """The server answered 404: it has no such path."""


def read_key(place: str, environ: Mapping[str, str] = os.environ, *, setting: str = "engine_key") -> str:
    """The bearer key from `place`, the value of the setting `setting`; empty if `place` is empty.

    `place` is an absolute path or the name of an environment variable. Raises ConfigError, which never
    contains the content of either.
    """
    if not place:
        return ""
    where = (
        f"the file {place} that {setting} names"
        if place.startswith("/")
        else f"the environment variable that {setting} names"
    )
    try:
        key = _key_file(Path(place)) if place.startswith("/") else environ[place]
    except KeyError:
        raise ConfigError(f"{where} is not set; export it, or set {setting} to a file") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from None
    key = key.strip()
    if not key or not all("!" <= char <= "~" for char in key):
        raise ConfigError(f"{where} has no key: it must be one line of printable ASCII without spaces")
    return key


def _key_file(path: Path) -> str:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is not a regular file")
        if mode & 0o027:
            raise ValueError(f"has mode {mode & 0o777:04o}, so others can read or change it; run: chmod 600")
        return file.read(_MAX_KEY_BYTES).decode("ascii", "replace")


class Link:
    """Typed JSON requests to one server. `connection` is a new object after each new connection."""

    def __init__(self, url: str, *, key: str = "") -> None:
        self.url = url
        self.connection: object = None
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = httpx.Client(
            base_url=url, headers=headers, verify=ssl.create_default_context(), trust_env=False
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, kind: type[T], deadline_ns: int) -> T:
        """Raises PathNotFound, DeadlineExceeded, EngineError."""
        return self._send("GET", path, None, kind, deadline_ns)

    def post(self, path: str, body: dict[str, Json], kind: type[T], deadline_ns: int) -> T:
        """Raises PathNotFound, DeadlineExceeded, EngineError."""
        try:
            content = strict_json.encode(body)
        except strict_json.JsonError as error:
            raise EngineError(f"the request to {self.url}{path} cannot be sent: {error}") from error
        return self._send("POST", path, content, kind, deadline_ns)

    def _send(self, method: str, path: str, content: bytes | None, kind: type[T], deadline_ns: int) -> T:
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before a request to {self.url}{path}")
        headers = {"Content-Type": "application/json"} if content is not None else {}
        timeout_s = min(left_s, PATIENCE_S)
        try:
            with self._client.stream(
                method, path, content=content, headers=headers, timeout=timeout_s
            ) as response:
                self.connection = response.extensions["network_stream"]
                status, reply = response.status_code, self._read(response, path, deadline_ns)
        except httpx.TimeoutException:
            if timeout_s == left_s:
                raise DeadlineExceeded(f"the deadline passed before {self.url}{path} answered") from None
            raise EngineError(f"{self.url}{path} did not answer within {PATIENCE_S:.0f} s") from None
        except httpx.HTTPError as error:
            raise EngineError(f"{self.url}{path}: {error or type(error).__name__}") from error
        if status != httpx.codes.OK:
            raise self._status_error(status, path, reply)
        try:
            return msgspec.json.decode(reply, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(
                f"{self.url}{path} gave an answer that is not of llama-server or vLLM: {error}; check "
                "engine_url"
            ) from error

    def _read(self, response: httpx.Response, path: str, deadline_ns: int) -> bytes:
        """The body of a reply; size and deadline are checked after each piece."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise EngineError(f"{self.url}{path} gave a compressed answer, which was not requested")
        reply = bytearray()
        for piece in response.iter_raw():
            reply += piece
            if len(reply) > MAX_REPLY_BYTES:
                raise EngineError(f"{self.url}{path} gave an answer of more than {MAX_REPLY_BYTES} bytes")
            if time.monotonic_ns() >= deadline_ns:
                raise DeadlineExceeded(f"the deadline passed during the answer of {self.url}{path}")
        return bytes(reply)

    def _status_error(self, status: int, path: str, reply: bytes) -> EngineError:
        where = f"{self.url}{path} answered {status}"
        if 300 <= status < 400:
            return EngineError(f"{where}; redirects are not followed: set engine_url to the final address")
        if status in (401, 403):  # the reply is not quoted: it may contain the key
            return EngineError(f"{where}; set engine_key to the place of a key that the server accepts")
        if status == httpx.codes.NOT_FOUND:
            return PathNotFound(f"{where}; engine_url must be the address of a llama-server or vLLM")
        quoted = " ".join(reply[: 4 * _QUOTED_CHARS].decode("utf-8", "replace").split())[:_QUOTED_CHARS]
        error = EngineError(where)
        error.add_note(f"the server's reply: {quoted}")  # it may repeat a question, so no log has it
        return error
