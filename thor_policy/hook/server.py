"""Hooks over HTTP, for an agent that can post its events: `thorpolicy hook serve` (extra [http]).

Owns the endpoint `POST /v1/hooks/claude`. Invariant: a request with the token gets status 200 and an answer
that blocks unless the daemon allowed the call, because agents let the tool run at most other statuses; a
request without the token gets 401 and is not read. Main thread, and a pool for the questions.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from thor_policy.core.errors import ConfigError
from thor_policy.hook.agents import claude
from thor_policy.hook.calls import Fault, Output, printable
from thor_policy.hook.main import MAX_EVENT_BYTES, Options, Run

#: Most requests at the same time; further ones get 503, and the agent blocks by its switch onFailure.
MAX_CONCURRENT = 64
#: Least length of a token.
MIN_TOKEN_CHARS = 24


def token_in(path: Path) -> str:
    """The token in a file that only its owner may read. Raises ConfigError."""
    try:
        with path.open(encoding="ascii") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise ConfigError(f"{path}: others may read the token; run chmod 600")
            token = opened.read(4_096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the token cannot be read: {error}") from error
    if len(token) < MIN_TOKEN_CHARS or not token.isprintable() or " " in token:
        raise ConfigError(f"{path}: a token has at least {MIN_TOKEN_CHARS} characters and no blank")
    return token


def app(options: Options, token: str) -> Starlette:
    """The application; `options` are those of every event but for its name."""
    # The project is that of a session, not the one in which the server was started.
    environ = {name: value for name, value in os.environ.items() if name not in claude.FOLDERS}

    async def hook(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {token}".encode()):
            return JSONResponse(
                {"error": "the token is missing or wrong"}, 401, headers={"WWW-Authenticate": "Bearer"}
            )
        run = Run(options, environ, time.monotonic() + options.deadline_ms / 1_000)
        try:
            data = await _body(request)
            output = await run_in_threadpool(run.output, data)
        except Fault as fault:
            output = _blocking(run, str(fault))
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:  # a status of its own would let the tool run
            output = _blocking(run, f"unexpected error: {type(error).__name__}: {error}")
        return Response(output.stdout or "{}", 200, media_type="application/json")

    return Starlette(routes=[Route(f"/v1/hooks/{options.agent}", hook, methods=["POST"])])


def _blocking(run: Run, reason: str) -> Output:
    """The denial for a fault.

    Over HTTP there is no exit status. An event after the call has nothing to block.

    What cannot be read counts as the event before a call.
    """
    if run.event not in claude.GATES:
        run.event = "PreToolUse"
    output = run.failed(Fault(printable(reason)))
    return output if output.status == 0 else run.denied(output.stderr)


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_EVENT_BYTES:
            raise Fault(f"event: it has more than {MAX_EVENT_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def serve(options: Options, token: str, host: str, port: int) -> None:
    """Serve until a signal. Raises ConfigError for an address that is not this machine's alone."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(f"host is {host!r}; hooks are served on an address of loopback only, as 127.0.0.1")
    uvicorn.run(
        app(options, token),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONCURRENT,
        timeout_keep_alive=30,
    )
