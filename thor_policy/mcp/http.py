"""The server of tools over HTTP: loopback only, one bearer token, Host and Origin checked.

Owns the socket and the token. Invariant: no request without the token reaches the server, which acts with the
rights of the user that started it. One event loop. Needs the extra [mcp].
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from thor_policy.core.errors import ConfigError
from thor_policy.security import files

#: Fewest characters of a token: 128 bits as hexadecimal digits.
MIN_TOKEN_CHARS = 32
#: Most bytes of a request, and most sessions at a time.
MAX_BODY_BYTES, MAX_SESSIONS = 262_144, 64


def read_token(path: Path) -> str:
    """The token in a file that nobody else can read. Raises ConfigError."""
    try:
        token = files.read_own(path, max_bytes=4_096, check=_shared).decode().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {files.reason(error)}") from error
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(
            f"{path}: the token needs at least {MIN_TOKEN_CHARS} ASCII characters without blanks"
        )
    return token


def _shared(status: os.stat_result) -> str | None:
    return "others can use it; chmod 600 it" if status.st_mode & 0o077 else None


class BearerOnly:
    """Refuses with 401 what does not carry the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._expected):
                headers = {"WWW-Authenticate": 'Bearer realm="thor-policy"'}
                await JSONResponse({"error": "a bearer token is needed"}, 401, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def app_of(server: MCPServer, address: str, port: int, token: str) -> ASGIApp:
    """The application at `http://ADDRESS:PORT/mcp`. Raises ConfigError if that is not loopback."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback:
        raise ConfigError(f"--http {address}: must be a loopback address, 127.0.0.1 or ::1")
    host = f"[{address}]:{port}" if ip.version == 6 else f"{address}:{port}"
    security = TransportSecuritySettings(
        allowed_hosts=[host, f"localhost:{port}"],
        allowed_origins=[f"http://{host}", f"http://localhost:{port}"],
    )
    app = server.streamable_http_app(
        transport_security=security,
        max_request_body_size=MAX_BODY_BYTES,
        max_sessions=MAX_SESSIONS,
        host=address,
    )
    return BearerOnly(app, token)


def serve(server: MCPServer, address: str, port: int, token: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    app = app_of(server, address, port, token)
    settings = uvicorn.Config(app, host=address, port=port, log_level="warning", server_header=False)
    uvicorn.Server(settings).run()
