"""The pages as a process: what `thorpolicy web` runs.

Owns how the parts are put together. Invariant: the rules of listening are those of the gateway
(`gateway.serving.Settings`). Main thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import uvicorn

from thor_policy.gateway.serving import Settings, make_server
from thor_policy.web.application import Web
from thor_policy.web.visits import Places


def make_web_server(
    settings: Settings,
    places: Places,
    counters: Counter[str],
    *,
    ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """The server whose `run(sockets=[..])` serves the pages until SIGTERM or SIGINT. Raises ConfigError."""

    def closing() -> bool:
        return server.should_exit

    web = Web(settings, places, counters, closing=closing)
    server = make_server(web.application(), settings, counters, ready=ready)
    return server
