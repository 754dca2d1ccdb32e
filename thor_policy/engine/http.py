"""One HTTP server and what may come from it: bounded, typed, in time.

Owns the connection and the bearer key. Invariant: a request ends by its deadline or within `PATIENCE_S`,
is sent once, follows no redirect, goes through no proxy, and reads at most `MAX_REPLY_BYTES`; whatever
else happens is an EngineError that names the server, the path and the cure, and never the key. Used by
the engine thread.
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

from thor_policy.core.errors import ConfigError, DeadlineExceeded, EngineError
from thor_policy.core.requests import Json

#: Largest reply that is read, in bytes.
MAX_REPLY_BYTES = 4 << 20
#: Longest that any single answer is waited for, in seconds, whatever the deadline.
PATIENCE_S = 120.0
#: How much of a server's own words an error repeats, in characters.
_QUOTED = 200
_MAX_KEY_BYTES = 4096

T = TypeVar("T")


class NotThere(EngineError):
    """The server has no such path."""


def read_key(place: str, environ: Mapping[str, str] = os.environ) -> str:
    """The bearer key from where the setting `engine_key` says; empty if it says nothing.

    Raises ConfigError, which never repeats what was found.
    """
    if not place:
        return ""
    where = (
        f"the file {place} that engine_key names" if place.startswith("/") else "the variable of engine_key"
    )
    try:
        key = _key_file(Path(place)) if place.startswith("/") else environ[place]
    except KeyError:
        raise ConfigError(f"{where} is not set; export it, or name a file") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from None
    key = key.strip()
    if not key or not all("!" <= char <= "~" for char in key):
        raise ConfigError(f"{where} holds no key: it must be one line of printable ASCII without spaces")
    return key


def _key_file(path: Path) -> str:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is no regular file")
        if mode & 0o027:
            raise ValueError(f"has mode {mode & 0o777:04o}, so others may come at it; run `chmod 600` on it")
        return file.read(_MAX_KEY_BYTES).decode("ascii", "replace")


class Link:
    """JSON to one server and back. `connection` changes whenever the server was connected to anew."""

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
        """Raises NotThere, DeadlineExceeded, EngineError."""
        return self._ask("GET", path, None, kind, deadline_ns)

    def post(self, path: str, body: dict[str, Json], kind: type[T], deadline_ns: int) -> T:
        """Raises NotThere, DeadlineExceeded, EngineError."""
        return self._ask("POST", path, msgspec.json.encode(body), kind, deadline_ns)

    def _ask(self, method: str, path: str, content: bytes | None, kind: type[T], deadline_ns: int) -> T:
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before {self.url} was asked for {path}")
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
                raise DeadlineExceeded(f"the deadline passed while {self.url} worked on {path}") from None
            raise EngineError(f"{self.url}{path} did not answer within {PATIENCE_S:.0f} s") from None
        except httpx.HTTPError as error:
            raise EngineError(f"{self.url}{path}: {error or type(error).__name__}") from error
        if status != httpx.codes.OK:
            raise self._refused(status, path, reply)
        try:
            return msgspec.json.decode(reply, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EngineError(
                f"{self.url}{path} answered what neither llama-server nor vLLM would: {error}"
            ) from error

    def _read(self, response: httpx.Response, path: str, deadline_ns: int) -> bytes:
        """The body as it came. Too late is noticed at each piece of it."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise EngineError(f"{self.url}{path} answered compressed, unasked")
        reply = bytearray()
        for piece in response.iter_raw():
            reply += piece
            if len(reply) > MAX_REPLY_BYTES:
                raise EngineError(f"{self.url}{path} answered more than {MAX_REPLY_BYTES} bytes")
            if time.monotonic_ns() >= deadline_ns:
                raise DeadlineExceeded(f"the deadline passed while {self.url} answered {path}")
        return bytes(reply)

    def _refused(self, status: int, path: str, reply: bytes) -> EngineError:
        where = f"{self.url}{path} answered {status}"
        if 300 <= status < 400:
            return EngineError(f"{where}; redirects are not followed: set engine_url to the final address")
        if status in (401, 403):  # its words may repeat the key
            return EngineError(f"{where}; set engine_key to where a key lies that it takes")
        if status == httpx.codes.NOT_FOUND:
            return NotThere(f"{where}; engine_url must be that of a llama-server or vLLM")
        said = " ".join(reply[: 4 * _QUOTED].decode("utf-8", "replace").split())[:_QUOTED]
        return EngineError(f"{where}: {said}")
