"""Spans of decisions, sent to a collector over OTLP/HTTP. Needs the extra [otel].

Owns the queue of decisions to trace, and the thread that makes and sends their spans. Invariant: it is never
in the way of a decision: `offer` is called after the reply was handed over and waits for nothing, the queue
is bounded, and whatever is dropped or not delivered is counted. `offer` is for the main thread.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from thor_policy import __version__
from thor_policy.telemetry import logs
from thor_policy.telemetry.span_mapping import (
    EVALUATION,
    Served,
    decide_span,
    evaluation_event,
    is_experimental,
    is_kept,
    model_span,
)

log = logging.getLogger(__name__)

#: Decisions that wait for their spans; more are dropped and counted.
MOST_WAITING = 2_048
#: Decisions whose spans are sent in one request.
MOST_AT_ONCE = 256
#: How long a request to the collector takes at most, in seconds.
TIMEOUT_S = 5.0
#: Named at 0 from the start: another thread adds to them.
COUNTERS = ("spans_sent", "spans_sampled_out", "spans_dropped", "spans_lost")


class _Collected(SpanProcessor):
    """Keeps the spans that have ended, until they are taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        spans, self._spans = self._spans, []
        return spans


class Tracing:
    """Makes spans of decisions and hands them to an exporter; `close` sends what waits.

    `ratio` is the share of allows that are kept. `counters` has `COUNTERS`.
    """

    def __init__(self, exporter: SpanExporter, *, ratio: float) -> None:
        self._exporter, self._ratio = exporter, ratio
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._waiting: queue.Queue[Served | None] = queue.Queue(MOST_WAITING)
        self._experimental = is_experimental(os.environ)
        self._ended = _Collected()
        resource = Resource.create({"service.name": "thor-policy", "service.version": __version__})
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("thor_policy", __version__)
        self._limit = logs.Limit(burst=1, per_s=0.1)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def offer(self, served: Served) -> None:
        """Take a decision whose reply was handed over. Main thread; never waits."""
        if not is_kept(served, self._ratio, random.random()):  # noqa: S311  a sample, not a secret
            self.counters["spans_sampled_out"] += 1
            return
        try:
            self._waiting.put_nowait(served)
        except queue.Full:
            self.counters["spans_dropped"] += 1

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most so many seconds; the rest is lost and counted. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        deadline = time.monotonic() + timeout_s
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            log.warning("the collector of spans takes nothing: what waits for it is lost")
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._exporter.shutdown()
        self.counters["spans_lost"] += self._waiting.qsize()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < MOST_AT_ONCE and batch[-1] is not None:
                try:
                    batch.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            self._send([served for served in batch if served is not None])
            if batch[-1] is None:
                return

    def _send(self, batch: Sequence[Served]) -> None:
        """Make and send the spans of a batch; no fault of a collector or a library ends the thread."""
        if not batch:
            return
        sent: Any = None
        try:
            for served in batch:
                self._make(served)
            sent = self._exporter.export(self._ended.take())
        except Exception as error:  # counted and logged below
            log.debug("spans could not be made or sent", exc_info=error)
        self._ended.take()
        if sent is SpanExportResult.SUCCESS:
            self.counters["spans_sent"] += len(batch)
            return
        self.counters["spans_lost"] += len(batch)
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            log.warning("the collector did not take spans", extra=logs.fields(unlogged=unlogged or None))

    def _make(self, served: Served) -> None:
        above = trace.set_span_in_context(trace.INVALID_SPAN)
        if (parent := served.parent) is not None:
            flags = TraceFlags(parent.flags)
            caller = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
            above = trace.set_span_in_context(NonRecordingSpan(caller))
        made = decide_span(served, experimental=self._experimental)
        decide = self._tracer.start_span(
            made.name,
            context=above,
            kind=SpanKind.SERVER,
            attributes=made.attributes,
            start_time=made.start_ns,
        )
        inner = decide
        if (call := model_span(served)) is not None:
            inner = self._tracer.start_span(
                call.name,
                context=trace.set_span_in_context(decide),
                kind=SpanKind.CLIENT if call.leaves else SpanKind.INTERNAL,
                attributes=call.attributes,
                start_time=call.start_ns,
            )
        if (event := evaluation_event(served.decision)) is not None:
            inner.add_event(EVALUATION, event, timestamp=call.end_ns if call else made.end_ns)
        if call is not None:
            inner.end(end_time=call.end_ns)
        decide.end(end_time=made.end_ns)


def over_http(endpoint: str, *, ratio: float) -> Tracing:
    """Spans to the collector whose base URL is `endpoint`, such as http://127.0.0.1:4318."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it logs each failure; ours are bounded
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_S)
    return Tracing(exporter, ratio=ratio)
