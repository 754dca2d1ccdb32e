"""Which attributes of OpenTelemetry a decision has: the one table of docs/reference/opentelemetry.md.

Owns the names of spans, attributes and events, and which decisions are kept. Invariant: no attribute holds a
name of a subject or resource, or a text; a decision that is no allow is always kept. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias
from urllib.parse import SplitResult, urlsplit

from thor_policy.core.decisions import Decision, ModelInfo
from thor_policy.core.trace_context import Parent, parent_in

Value: TypeAlias = str | bool | int | float | tuple[str, ...]
Attributes: TypeAlias = dict[str, Value]

#: The span of a decision, and the event of its evaluation by the model.
DECIDE, EVALUATION = "thor_policy.decide", "gen_ai.evaluation.result"
#: The variable, and the word in it, that turn experimental names of guardrails on.
OPT_IN, EXPERIMENTAL = "OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental"
#: Schemes of a server's URL, and the port where the URL has none.
_PORTS = {"http": 80, "https": 443}
#: A sampled share is of the low 63 bits of a trace id, so that all services keep the same traces.
_TRACE_RANGE = 2**63


class Served(NamedTuple):
    """A decision, the time of its commit and, if its caller got it, of the whole; in milliseconds."""

    decision: Decision
    commit_ms: float
    total_ms: float | None

    @property
    def parent(self) -> Parent | None:
        return parent_in(self.decision.annotations.tags)


class Span(NamedTuple):
    """A span; `start_ns` and `end_ns` are Unix time in nanoseconds. `leaves`: it calls another process."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    leaves: bool = False


def is_experimental(environ: Mapping[str, str]) -> bool:
    """True if the environment opts in to experimental names."""
    return EXPERIMENTAL in (word.strip() for word in environ.get(OPT_IN, "").split(","))


def is_kept(served: Served, ratio: float, draw: float) -> bool:
    """Whether a span is made: always where the outcome is no allow or no model answered, else by the share.

    The share is of trace ids; `draw`, from 0 to 1, decides without a trace.
    """
    decision = served.decision
    if not decision.allow or decision.tier == "fallback":
        return True
    parent = served.parent
    return (draw if parent is None else parent.trace_id % _TRACE_RANGE / _TRACE_RANGE) < ratio


def decide_span(served: Served, *, experimental: bool) -> Span:
    """The span of a decision, from its receipt to its reply."""
    decision, timings = served.decision, served.decision.timings
    total_ms = served.total_ms
    if total_ms is None:
        total_ms = timings.queue_ms + timings.rules_ms + timings.score_ms + served.commit_ms
    attributes = _present(
        {
            "thor_policy.decision.id": decision.id,
            "thor_policy.decision.outcome": decision.outcome,
            "thor_policy.decision.allow": decision.allow,
            "thor_policy.decision.tier": decision.tier,
            "thor_policy.decision.risk": decision.risk,
            "thor_policy.decision.reason_code": decision.reason_code,
            "thor_policy.decision.confidence": decision.confidence,
            "thor_policy.decision.late": served.total_ms is None,
            "thor_policy.floor.outcome": decision.floor.outcome,
            "thor_policy.floor.rules": decision.floor.rules,
            "thor_policy.pack.name": decision.pack.name,
            "thor_policy.pack.version": decision.pack.version,
            "thor_policy.pack.sha256": decision.pack.sha256,
            "thor_policy.model.sha256": decision.model.sha256 if decision.model else None,
            "thor_policy.approval.task": decision.use.task if decision.use else None,
            "thor_policy.queue_ms": timings.queue_ms,
            "thor_policy.rules_ms": timings.rules_ms,
            "thor_policy.score_ms": timings.score_ms,
            "thor_policy.commit_ms": served.commit_ms,
        }
    )
    if experimental:
        attributes |= {
            "gen_ai.operation.name": "run_guardrail",
            "gen_ai.security.decision.type": "allow" if decision.allow else "deny",
            "gen_ai.security.policy.name": decision.pack.name,
            "gen_ai.security.policy.version": decision.pack.version,
        }
    start_ns = round(decision.at * 1e9)
    return Span(DECIDE, start_ns, start_ns + round(total_ms * 1e6), attributes)


def model_span(served: Served) -> Span | None:
    """The span of the model's call; None if the model was not called: by rules, or from the cache."""
    decision = served.decision
    scored, model, timings = decision.scored, decision.model, decision.timings
    if scored is None or model is None or decision.original is not None:
        return None
    server = _server(model)
    attributes = _present(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _provider(model),
            "gen_ai.request.model": model.name,
            "gen_ai.response.model": model.name,
            "gen_ai.usage.input_tokens": scored.prefix_tokens + len(scored.suffix_tokens),
            # a server does not say which tokens it had already
            "gen_ai.usage.cache_read.input_tokens": None if server else scored.prefix_tokens,
            "server.address": server.hostname if server else None,
            "server.port": _port(server) if server else None,
            "thor_policy.model.quantisation": model.quantisation,
        }
    )
    start_ns = round((decision.at + (timings.queue_ms + timings.rules_ms) / 1e3) * 1e9)
    end_ns = start_ns + round(scored.score_ms * 1e6)
    return Span(f"chat {model.name}", start_ns, end_ns, attributes, leaves=server is not None)


def evaluation_event(decision: Decision) -> Attributes | None:
    """The attributes of the event `gen_ai.evaluation.result`; None if the model evaluated nothing."""
    if decision.label is None:
        return None
    return _present(
        {
            "gen_ai.evaluation.name": f"thor_policy.{decision.pack.name}",
            "gen_ai.evaluation.score.label": decision.label,
            "gen_ai.evaluation.score.value": decision.confidence,
        }
    )


def _provider(model: ModelInfo) -> str:
    """Whose program ran the model: the daemon's own llama.cpp, that of a llama-server, or vLLM."""
    return "vllm" if model.build.startswith("vLLM") else "llama.cpp"


def _server(model: ModelInfo) -> SplitResult | None:
    """The URL of the server that the model is on; None for a model in this process."""
    url = urlsplit(model.device)
    return url if url.scheme in _PORTS else None


def _port(server: SplitResult) -> int:
    return server.port or _PORTS[server.scheme]


def _present(values: Mapping[str, Value | None]) -> Attributes:
    return {name: value for name, value in values.items() if value is not None and value != ()}
