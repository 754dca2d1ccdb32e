"""The metrics as Prometheus reads them: its text format, and an HTTP endpoint on loopback.

Owns that endpoint and its thread. Invariant: only processes of this machine can read it, and a slow reader
delays other readers only. `exposition` is called by any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Json
from thor_policy.telemetry.metrics import Families

#: Address of the HTTP endpoint: only processes of this machine can read it.
HOST = "127.0.0.1"
#: Timeout of a reader of the endpoint, in seconds; the next reader waits meanwhile.
READER_S = 5.0


class _FamiliesCollector(Collector):
    def __init__(self, collect: Callable[[], Families]) -> None:
        self._collect = collect

    def collect(self) -> Families:
        return self._collect()


def _registry(collect: Callable[[], Families]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FamiliesCollector(collect))
    return registry


def exposition(metrics: Mapping[str, Json]) -> str:
    """The result of `as_json` in the text format of Prometheus."""

    def collect() -> Families:
        for name, metric in metrics.items():
            family = Metric(name, metric["help"], metric["type"])
            for sample in metric["samples"]:
                family.add_sample(sample["name"], sample["labels"], sample["value"])
            yield family

    text: str = generate_latest(_registry(collect)).decode()
    return text


class _Endpoint(WSGIServer):
    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # without a DNS look-up of this machine's name, which may take long
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Do nothing: a reader that disconnected will come again."""


class _Handler(WSGIRequestHandler):
    timeout = READER_S

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing: a read of the metrics is not logged."""


@contextmanager
def endpoint(port: int, collect: Callable[[], Families]) -> Iterator[int]:
    """Serve `collect` over HTTP on loopback during the block, one reader at a time.

    Yields the port; `port` 0 takes a free one. Raises ConfigError if the port cannot be used.
    """
    app = make_wsgi_app(_registry(collect))
    try:
        server = _Endpoint((HOST, port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at metrics_port {port} of {HOST}: {error.strerror}; set another, or 0 for none"
        ) from error
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
