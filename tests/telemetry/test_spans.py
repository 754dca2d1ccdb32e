"""Spans of decisions: their names and attributes, which are kept, and that none is in the way."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.build import MODEL, NOON, SCORED, by_model, by_rule, fallback, write_rules_only_pack
from tests.documents import ROOT
from tests.otlp_receiver import receiving, values_of
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.requests import Annotations
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.telemetry import logs, span_mapping, spans
from thor_policy.telemetry.span_mapping import Served, is_kept
from thor_policy.telemetry.spans import Tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
WAIT_S = 60.0
QUESTION = {
    "subject": {"type": "user", "id": "secret-ana"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "secret-guide"},
}
RULES = """
- {id: reads, when: 'action.name == "read"', outcome: allow, because: Reading is free.}
- {id: writes, when: 'action.name == "write"', outcome: deny, because: Nobody writes.}
"""


def of_trace(text: str = PARENT) -> Annotations:
    return Annotations(tags=("mine", f"traceparent:{text}"))


def exported(*served: Served, ratio: float = 1.0) -> tuple[ReadableSpan, ...]:
    """The spans that an exporter in memory got of these decisions."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, ratio=ratio)
    for item in served:
        tracing.offer(item)
    tracing.close(WAIT_S)
    return exporter.get_finished_spans()


def test_a_decision_of_the_model_has_two_spans_of_the_callers_trace() -> None:
    decide, call = sorted(
        exported(Served(by_model(annotations=of_trace()), 2.0, 20.0)),
        key=lambda span: len(span.name),
        reverse=True,
    )
    assert (decide.name, call.name.split()[0]) == ("thor_policy.decide", "chat")
    assert decide.context is not None
    assert call.context is not None
    assert decide.context.trace_id == call.context.trace_id == int(TRACE, 16)
    assert decide.parent is not None
    assert decide.parent.span_id == int(SPAN, 16)
    assert call.parent is not None
    assert call.parent.span_id == decide.context.span_id
    assert (decide.start_time, decide.end_time) == (round(NOON * 1e9), round(NOON * 1e9) + 20_000_000)
    assert decide.start_time <= (call.start_time or 0) < (call.end_time or 0) <= (decide.end_time or 0)
    (event,) = call.events
    assert (event.name, dict(event.attributes or {})) == (
        "gen_ai.evaluation.result",
        {
            "gen_ai.evaluation.name": "thor_policy.core",
            "gen_ai.evaluation.score.label": "deny",
            "gen_ai.evaluation.score.value": 0.75,
        },
    )


@pytest.mark.parametrize(
    ("build", "url", "provider", "address", "port"),
    [
        ("vLLM 0.11.0", "http://127.0.0.1:8000", "vllm", "127.0.0.1", 8000),
        ("vLLM ", "https://models.example", "vllm", "models.example", 443),
        ("llama-server b6500", "http://localhost", "llama.cpp", "localhost", 80),
        ("llama-server ", "http://[::1]:8080/models", "llama.cpp", "::1", 8080),
    ],
)
def test_a_model_on_a_server_has_the_servers_provider_and_address(
    build: str, url: str, provider: str, address: str, port: int
) -> None:
    model = replace(MODEL, build=build, device=url, exact=False)
    call = exported(Served(by_model(model=model), 2.0, 20.0))[0]
    attributes = dict(call.attributes or {})
    assert attributes["gen_ai.provider.name"] == provider
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)
    assert "gen_ai.usage.cache_read.input_tokens" not in attributes
    assert call.kind is SpanKind.CLIENT


def test_a_model_in_the_daemon_has_no_server() -> None:
    call = exported(Served(by_model(), 2.0, 20.0))[0]
    attributes = dict(call.attributes or {})
    assert attributes["gen_ai.provider.name"] == "llama.cpp"
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == SCORED.prefix_tokens
    assert not [name for name in attributes if name.startswith("server.")]
    assert call.kind is SpanKind.INTERNAL


def test_a_decision_of_a_rule_has_one_span_and_no_trace_but_its_own() -> None:
    (span,) = exported(Served(by_rule(), 1.0, 2.0))
    assert span.parent is None
    attributes = dict(span.attributes or {})
    assert attributes["thor_policy.floor.rules"] == ("freeze",)
    assert attributes["thor_policy.decision.outcome"] == "deny"
    assert not [name for name in attributes if name.startswith("gen_ai.")]


def test_a_score_of_the_cache_is_no_call_of_the_model() -> None:
    (span,) = exported(Served(by_model(original="018f-first", tier="cache"), 1.0, 2.0))
    assert [event.name for event in span.events] == ["gen_ai.evaluation.result"]


def test_a_decision_that_came_too_late_for_its_caller_is_marked() -> None:
    (span,) = exported(Served(by_rule(), 1.5, None))
    assert (span.attributes or {})["thor_policy.decision.late"] is True
    assert (span.end_time or 0) - (span.start_time or 0) == 1_500_000


def test_no_attribute_holds_a_name_or_a_text_of_the_question() -> None:
    text = "".join(
        span.to_json() for span in exported(Served(by_model(), 1.0, 2.0), Served(by_rule(), 1.0, 2.0))
    )
    for private in ("alice", "production", "Friday", "freeze is on"):
        assert private not in text


def test_guardrail_names_need_the_opt_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(span_mapping.OPT_IN, f"http, {span_mapping.EXPERIMENTAL}")
    (span,) = exported(Served(by_rule(), 1.0, 2.0))
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "run_guardrail"
    assert attributes["gen_ai.security.decision.type"] == "deny"


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_no_denial_and_no_fallback_is_ever_sampled_out(ratio: float, draw: float) -> None:
    for decision in (by_rule(), by_model(), fallback(), fallback(allow=True, outcome="allow")):
        assert is_kept(Served(decision, 1.0, 2.0), ratio, draw)
        assert is_kept(Served(changed_trace(decision, "f" * 32), 1.0, 2.0), ratio, draw)


def changed_trace(decision: Any, trace: str) -> Any:
    return replace(decision, annotations=of_trace(f"00-{trace}-{SPAN}-00"))


def test_allows_are_sampled_by_trace_so_that_all_services_keep_the_same() -> None:
    allow = by_rule(outcome="allow", allow=True)
    low, high = (Served(changed_trace(allow, trace), 1.0, 2.0) for trace in ("1" + "0" * 31, "f" * 32))
    assert is_kept(low, 0.1, 1.0)
    assert not is_kept(high, 0.9, 0.0)
    assert [is_kept(Served(allow, 1.0, 2.0), 0.5, draw) for draw in (0.4, 0.6)] == [True, False]
    tracing = Tracing(InMemorySpanExporter(), ratio=0.0)
    tracing.offer(low)
    tracing.close(WAIT_S)
    assert tracing.counters["spans_sampled_out"] == 1


class Stuck(SpanExporter):
    """A collector that takes nothing until it is released, or fails."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.released.wait(WAIT_S)
        raise OSError("it is gone")


def test_a_collector_that_hangs_costs_spans_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST_WAITING", 4)
    exporter = Stuck()
    tracing = Tracing(exporter, ratio=1.0)
    tracing.offer(Served(by_rule(), 1.0, 2.0))
    assert exporter.entered.wait(WAIT_S)
    for _ in range(10):
        tracing.offer(Served(by_rule(), 1.0, 2.0))  # returns at once
    assert tracing.counters["spans_dropped"] == 6
    exporter.released.set()
    tracing.close(WAIT_S)
    assert (tracing.counters["spans_lost"], tracing.counters["spans_sent"]) == (5, 0)


def test_the_table_of_the_documentation_is_the_mapping() -> None:
    text = (ROOT / "docs/reference/opentelemetry.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.0-9]+)` \|", text, re.MULTILINE))
    by_all = by_model(reason_code="x", use=None)
    made = span_mapping.decide_span(Served(by_all, 1.0, 2.0), experimental=True).attributes
    rules = span_mapping.decide_span(Served(by_rule(), 1.0, 2.0), experimental=True).attributes
    call = span_mapping.model_span(Served(by_all, 1.0, 2.0))
    event = span_mapping.evaluation_event(by_all)
    assert call is not None
    assert event is not None
    used = set(made) | set(rules) | set(call.attributes) | set(event) | {"thor_policy.approval.task"}
    assert documented == used


@pytest.fixture
def pack(short_dir: Path) -> Path:
    return write_rules_only_pack(short_dir / "pack", rules=RULES)


def decision_of(config: Config, action: str, **options: Any) -> str:
    with Client(config.endpoint, timeout_ms=60_000) as client:
        question = QUESTION | {"action": {"name": action}}
        return str(client.evaluate(question, **options)["context"]["decision_id"])


def test_a_daemon_sends_spans_to_a_receiver_of_otlp_over_http(config: Config, pack: Path) -> None:
    with receiving() as receiver:
        tracing = changed(config, pack=str(pack), otel_endpoint=receiver.url, otel_ratio=0.0)
        with serving(tracing):
            decision_of(tracing, "read")  # an allow, which is sampled out
            denied = decision_of(tracing, "write", traceparent=PARENT)
            span = receiver.next()
            with Client(tracing.endpoint) as client:
                counters = client.status().counters
        assert counters["spans_sampled_out"] == 1
        attributes = values_of(span.attributes)
        assert attributes["thor_policy.decision.id"] == denied
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
        assert receiver.resources[0]["service.name"] == "thor-policy"
        with Reader(config.journal_path) as reader:
            assert f"traceparent:{PARENT}" in (reader.get(denied) or {})["tags"]


def test_log_lines_about_a_request_have_the_id_of_its_trace(
    config: Config, pack: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = changed(config, pack=str(pack))
    with serving(without), caplog.at_level("DEBUG", "thor_policy.daemon.server"):
        decision_of(without, "read", traceparent=PARENT)
        decision_of(without, "read")
    lines = [logs.fields_of(line) for line in caplog.records if line.getMessage() == "decided"]
    assert [line.get("trace_id") for line in lines] == [TRACE, None]


def test_a_receiver_that_refuses_is_counted_and_the_daemon_answers(config: Config, pack: Path) -> None:
    with receiving() as receiver:
        receiver.status = 400
        tracing = changed(config, pack=str(pack), otel_endpoint=receiver.url)
        with serving(tracing):
            assert decision_of(tracing, "write")
            with Client(tracing.endpoint) as client:
                while not (lost := client.status().counters.get("spans_lost")):
                    pass
        assert lost == 1


def test_a_malformed_traceparent_is_refused_over_the_socket(config: Config, pack: Path) -> None:
    without = changed(config, pack=str(pack))
    with serving(without), pytest.raises(RequestError, match="traceparent: must be"):
        decision_of(without, "read", traceparent="00-x")


def test_a_request_that_is_sent_again_in_another_trace_is_the_same_request(
    config: Config, pack: Path
) -> None:
    without = changed(config, pack=str(pack))
    with serving(without):
        again = f"00-{TRACE}-{'1' * 16}-01"
        ids = {
            decision_of(without, "read", idempotency_key="k", traceparent=parent)
            for parent in (PARENT, again)
        }
    assert len(ids) == 1


@pytest.mark.parametrize("url", ["http://198.51.100.1:4318", "ftp://x", "http://a:b@127.0.0.1:1", "x"])
def test_an_endpoint_that_is_not_https_or_loopback_is_refused(config: Config, url: str) -> None:
    with pytest.raises(ConfigError, match="otel_endpoint"):
        changed(config, otel_endpoint=url)
