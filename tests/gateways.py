"""A daemon and its gateway, both real, and HTTP clients for them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from thor_policy.core.requests import Json, Role
from thor_policy.gateway import serving
from thor_policy.security.tokens import Tokens

READ: dict[str, Json] = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "read"},
    "resource": {"type": "record", "id": "record-1"},
}
NOON = 1_778_668_800.0


@dataclass
class Running:
    """A gateway that serves; `url` is where, `counters` what it counts."""

    url: str
    settings: serving.Settings
    counters: Counter[str]

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, trust_env=False, timeout=30, headers=headers, **options)


@contextmanager
def gateway(endpoint: str, **settings: Any) -> Iterator[Running]:
    """A gateway of the daemon at `endpoint`, on a thread, for the length of the block."""
    counters: Counter[str] = Counter()
    wanted = {"address": "127.0.0.1", "port": 0} | settings
    opened, known = serving.listen(serving.Settings(endpoint=endpoint, **wanted))
    application = serving.make_gateway(known, counters).application()
    ready = threading.Event()
    server = serving.make_server(application, known, counters, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, name="gateway", daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        scheme = "http" if known.tls_cert is None else "https"
        yield Running(f"{scheme}://127.0.0.1:{known.port}", known, counters)
    finally:
        server.should_exit = True
        thread.join(20)
        opened.close()


def tokens_for(path: Path, **roles: tuple[Role, ...]) -> dict[str, str]:
    """New tokens in a file, by name."""
    store = Tokens(path)
    return {name: store.new(name, given, NOON) for name, given in roles.items()}
