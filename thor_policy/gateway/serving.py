"""The gateway as a process: its address, TLS, the HTTP server, its start and its end.

Owns how uvicorn is set up. Invariant: plain HTTP and a gateway without tokens listen on loopback alone; a
client that sends slowly, or too many connections, cannot hold the gateway. Main thread.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from asyncio.events import TimerHandle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from thor_policy.core.errors import ConfigError
from thor_policy.gateway import tracing
from thor_policy.gateway.auth import Authenticator
from thor_policy.gateway.daemon import Daemon
from thor_policy.gateway.http import Gateway
from thor_policy.gateway.limits import HEAD_S, Doorway, is_loopback
from thor_policy.gateway.problems import Problem

log = logging.getLogger(__name__)

#: Connections that may be open at once.
MAX_CONNECTIONS = 1_024
#: Seconds that an idle connection is kept, and that requests have to end when the gateway stops.
KEEP_ALIVE_S, SHUTDOWN_S = 75, 10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the gateway listens, whom it asks, and whom it serves. Raises ConfigError if they do not fit."""

    address: str
    port: int
    endpoint: str
    key: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    public_url: str | None = None
    max_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; give both, or neither")
        if self.client_ca is not None and (self.tls_cert is None or self.tokens is None):
            raise ConfigError(
                "--client-ca needs --tls-cert and --tls-key, and --tokens, which gives the holders of "
                "certificates their roles"
            )
        if not is_loopback(self.address):
            if self.tls_cert is None:
                raise ConfigError(
                    f"--listen {self.address}: plain HTTP is for loopback only; give --tls-cert and "
                    "--tls-key, or listen on 127.0.0.1 behind a proxy"
                )
            if self.tokens is None:
                raise ConfigError(
                    f"--listen {self.address}: without --tokens the gateway listens on loopback only; make a "
                    "token with `thorpolicy tokens new`"
                )
        if self.public_url is not None:
            _check_url(self.public_url)
        elif self.address in ("0.0.0.0", "::"):  # noqa: S104  it is compared
            raise ConfigError(
                f"--listen {self.address}: give --public-url, by which clients call the gateway"
            )

    @property
    def base_url(self) -> str:
        """The identifier of the gateway: --public-url, or where it listens."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        name = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'http' if self.tls_cert is None else 'https'}://{name}:{self.port}"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
        parts = urlsplit("")
    if not valid or parts.query or parts.fragment or parts.username is not None or not url.isascii():
        raise ConfigError(
            f"--public-url {url}: must be an https URL without query, fragment or user, such as "
            "https://pdp.example.com"
        )


def make_gateway(settings: Settings, counters: Counter[str]) -> Gateway:
    """The gateway of these settings. Raises ConfigError."""
    return Gateway(
        Daemon(settings.endpoint, settings.key, counters),
        Authenticator(settings.tokens, counters),
        Doorway(
            settings.address,
            settings.port,
            tls=settings.tls_cert is not None,
            public_url=settings.public_url,
            counters=counters,
        ),
        base_url=settings.base_url,
        max_bytes=settings.max_bytes,
        counters=counters,
    )


def listen(settings: Settings) -> tuple[socket.socket, Settings]:
    """The socket of a gateway, and the settings with the port that it got. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((settings.address, settings.port))
    except OSError as error:
        opened.close()
        raise ConfigError(
            f"--listen {settings.address}:{settings.port} cannot be used: {error.strerror or error}"
        ) from error
    return opened, replace(settings, port=opened.getsockname()[1])


def make_server(
    application: ASGIApp,
    settings: Settings,
    counters: Counter[str],
    *,
    ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """The server whose `run(sockets=[..])` serves until SIGTERM, SIGINT or `should_exit`.

    A second signal forces the end. Raises ConfigError if the files of TLS cannot be used.
    """
    config = uvicorn.Config(
        application,
        http=_protocol(counters),
        loop="uvloop",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    if settings.tls_cert is not None and settings.tls_key is not None:
        config.load()
        config.ssl = _tls(settings.tls_cert, settings.tls_key, settings.client_ca)
    return _Server(config, ready)


def _tls(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer; with `client_ca` a client may show a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--tls-cert {certificate}, --tls-key and --client-ca cannot be used: {error}"
        ) from error
    return context


def serve(server: uvicorn.Server, opened: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, and return; uvicorn alone would raise the signal again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[opened])


class _Server(uvicorn.Server):
    """A server that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._ready()


def _protocol(counters: Counter[str]) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP protocol, with limits of time and of connections, and the client's certificate."""

    class Protocol(HttpToolsProtocol):
        _head_timer: TimerHandle | None = None
        _certificate: str | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                counters["connections_refused"] += 1
                transport.close()
                return
            tls = transport.get_extra_info("ssl_object")
            self._certificate = None if tls is None else common_name(tls.getpeercert())
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_wait()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._head_timer is None:
                self._await_head()

        def on_headers_complete(self) -> None:
            self._end_wait()
            if self._certificate is not None:
                self.scope["client_certificate"] = self._certificate  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            """As uvicorn's, with the X-Request-ID if it arrived."""
            counters["malformed"] += 1
            cycle = self.cycle
            if cycle is not None and cycle.response_started and not cycle.response_complete:
                self.transport.close()  # half a reply is there already
                return
            body = Problem(400, "bad_request", "this is no HTTP request").body()
            lines = [
                b"HTTP/1.1 400 Bad Request",
                b"content-type: application/problem+json",
                b"content-length: %d" % len(body),
                b"connection: close",
                *(name + b": " + value for name, value in tracing.echoed(self.headers or [])),
            ]
            self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            self.transport.close()

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

        def _end_wait(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _too_slow(self) -> None:
            counters["connections_too_slow"] += 1
            self._head_timer = None
            self.transport.close()

    return Protocol


def common_name(certificate: Any) -> str | None:
    """The common name of a verified certificate's subject, if it has exactly one; None without one."""
    names = [
        value
        for part in (certificate or {}).get("subject", ())
        for attribute, value in part
        if attribute == "commonName"
    ]
    return names[0] if len(names) == 1 else None
