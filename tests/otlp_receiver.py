"""A receiver of OTLP/HTTP on a port of its own: it parses each request as the protocol defines it."""

from __future__ import annotations

import gzip
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: How long a test waits for spans, in seconds; far more than it takes.
WAIT_S = 60.0


class Receiver:
    """What arrived; `status` is what it answers with."""

    def __init__(self) -> None:
        self.status = 200
        self.resources: list[dict[str, Any]] = []
        self._spans: queue.SimpleQueue[Span] = queue.SimpleQueue()
        self.url = ""

    def take(self, content: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(content)
        for of_resource in request.resource_spans:
            self.resources.append(values_of(of_resource.resource.attributes))
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self._spans.put(span)

    def next(self) -> Span:
        return self._spans.get(timeout=WAIT_S)


def values_of(attributes: Any) -> dict[str, Any]:
    """Attributes of the protocol as values of Python."""
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that runs for the length of the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            if known and receiver.status == 200:
                receiver.take(content)
            reply = ExportTraceServiceResponse().SerializeToString()
            self.send_response(receiver.status if known else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
