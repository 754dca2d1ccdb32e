"""Metrics: what the daemon measures.

Owns the names of all metrics and their histograms. Invariant: every counter of `status` is also a metric,
under the same name; no label holds text of a request. The main thread measures, with a few additions for each
decision; any thread reads, and all other work is done on reading, the import of the library included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias, get_args

from msgspec import structs

from thor_policy.core.decisions import Decision, Tier
from thor_policy.core.errors import ERROR_CODES
from thor_policy.core.requests import Json
from thor_policy.core.status import EngineStatus, JobStatus, JournalStatus, RulesStatus, Status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

#: Bucket bounds of the time histograms, in seconds: from a rule's decision to a decode on a slow processor.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
#: Bucket bounds of the confidence histogram.
CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
#: Stages of a decision. `reply` is the rest: rendering, passing between threads, encoding.
STAGES = ("queue", "rules", "score", "commit", "explain", "reply")

#: Metrics with their current values, as types of the Prometheus client.
Families: TypeAlias = "Iterator[Metric]"
#: The status of a part that is a thread.
_Thread: TypeAlias = RulesStatus | EngineStatus | JournalStatus | JobStatus

_TIERS: tuple[str, ...] = get_args(Tier)
#: Counters of `status` that are exported as 0 before they first count: a rate needs a zero to begin from.
_FROM_ZERO: dict[str, tuple[str, ...]] = {
    "server": (
        "received",
        *(f"served_{tier}" for tier in _TIERS),
        *(f"refused_{code}" for code in ERROR_CODES),
        *(
            f"{kinds}_{fate}"
            for kinds in ("decisions", "explanations")
            for fate in ("recorded", "lost", "late")
        ),
        *("replies_dropped", "events_dropped", "unlogged"),
        *("journal_quota_warned", "journal_quota_refused"),
    ),
    "journal": ("committed", "refused", "lost", "checkpoints_failed", "ballast_released", "recoveries_tried"),
}
#: Numbers of the status: name of the metric, what it says, and its value in base units; None: not known.
_GAUGES: tuple[tuple[str, str, Callable[[Status], float | None]], ...] = (
    ("uptime_seconds", "Seconds since the daemon started.", lambda status: status.uptime_s),
    ("in_flight", "Requests admitted and not yet answered.", lambda status: status.in_flight),
    (
        "approvals_pending",
        "Requests for approvals that wait for a person.",
        lambda status: status.approvals.pending if status.approvals else None,
    ),
    (
        "approvals_oldest_seconds",
        "How long the oldest of them waits.",
        lambda status: status.approvals.oldest_s if status.approvals else None,
    ),
    (
        "enrichments_today",
        "Enrichments that began since the day turned.",
        lambda status: status.enrichment.today if status.enrichment else None,
    ),
    (
        "enrichment_device_seconds_today",
        "Time of the device that they took.",
        lambda status: status.enrichment.today_s if status.enrichment else None,
    ),
    (
        "enrichments_waiting",
        "Decisions that wait to be enriched.",
        lambda status: status.enrichment.waiting if status.enrichment else None,
    ),
    ("in_flight_limit", "Most requests that may be in flight.", lambda status: status.max_in_flight),
    ("explaining", "Explanations that run or wait.", lambda status: status.engine.explaining),
    (
        "shadows_waiting",
        "Requests that wait for the shadow pack.",
        lambda status: status.engine.shadows_waiting,
    ),
    (
        "mean_decision_seconds",
        "Running mean of the duration of a decision that the model is asked for.",
        lambda status: status.engine.mean_decision_ms * 1e-3,
    ),
    (
        "mean_rules_seconds",
        "Running mean of the duration of the rules of a request.",
        lambda status: status.rules.mean_ms * 1e-3,
    ),
    (
        "warm_up_seconds",
        "Duration of the warm-up before the first request.",
        lambda status: status.engine.warm_up_ms * 1e-3,
    ),
    ("cache_entries", "Scores in the cache.", lambda status: status.cache.entries),
    ("journal_seq", "Sequence number of the newest event.", lambda status: status.journal.seq),
    (
        "journal_verified_seq",
        "Event up to which the chain was checked since the start.",
        lambda status: status.journal.verified_seq,
    ),
    (
        "journal_damaged",
        "1 while a damage of the journal is known.",
        lambda status: status.journal.damage is not None,
    ),
    ("journal_batches", "Transactions since the start.", lambda status: status.journal.batches),
    (
        "journal_ballast",
        "1 while the reserve file for a full disk exists.",
        lambda status: status.journal.ballast,
    ),
    (
        "journal_free_bytes",
        "Free space on the journal's disk.",
        lambda status: None if status.journal.free_mb is None else status.journal.free_mb * 2**20,
    ),
    (
        "journal_min_free_bytes",
        "Free space below which the journal refuses requests.",
        lambda status: status.journal.min_free_mb * 2**20,
    ),
    (
        "journal_failing",
        "1 while the journal cannot be written.",
        lambda status: status.journal.failing is not None,
    ),
)
_GAUGES_OF_THREADS: tuple[tuple[str, str, Callable[[_Thread], float]], ...] = (
    ("alive", "1 while the thread of the part runs.", lambda thread: thread.alive),
    ("waiting", "Items that wait for the part.", lambda thread: thread.waiting),
    (
        "stalled_seconds",
        "Seconds without progress of a part that has work.",
        lambda thread: thread.stalled_s,
    ),
)


def _model_labels(status: Status) -> dict[str, Json]:
    model, adapter = status.model, status.model.adapter
    return {
        "name": model.name,
        "sha256": model.sha256,
        "quantisation": model.quantisation,
        "device": model.device,
        "build": model.build,
        "exact": model.exact,
        "adapter": adapter.name if adapter else "",
        "adapter_sha256": adapter.sha256 if adapter else "",
        "adapter_scale": adapter.scale if adapter else "",
    }


#: Figures of an arm of a canary.
_CANARY_FIGURES = (
    *("decisions", "looser", "failed", "unanswered", "results", "hits"),
    *("compared", "loosened", "tightened"),
)
#: Info metrics (value 1): their labels identify build, model and pack.
_INFOS: tuple[tuple[str, Callable[[Status], dict[str, Json]]], ...] = (
    ("build", lambda status: {"version": status.version}),
    ("model", _model_labels),
    ("pack", lambda status: structs.asdict(status.pack)),
)


class Histogram:
    """A Prometheus histogram: counts of values by upper bound. One thread writes."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound it does not exceed."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound, as text, with the number of values that do not exceed it."""
        bounds = (*map(str, self._bounds), "+Inf")
        return list(zip(bounds, accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        return self._sum


class Metrics:
    """The measurements of all decisions."""

    def __init__(self) -> None:
        self._stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self._latency = {tier: Histogram(SECONDS) for tier in _TIERS}
        self._confidence = Histogram(CONFIDENCES)
        self._outcomes: Counter[tuple[str, str]] = Counter()

    def decided(self, decision: Decision, commit_ms: float) -> None:
        """Count a decision that was recorded."""
        timings, stages = decision.timings, self._stages
        stages["queue"].observe(timings.queue_ms / 1e3)
        stages["rules"].observe(timings.rules_ms / 1e3)
        if decision.tier == "model":
            stages["score"].observe(timings.score_ms / 1e3)
        stages["commit"].observe(commit_ms / 1e3)
        if decision.confidence is not None:
            self._confidence.observe(decision.confidence)
        self._outcomes[decision.outcome, decision.tier] += 1

    def explained(self, explain_ms: float) -> None:
        """Count an explanation that was recorded."""
        self._stages["explain"].observe(explain_ms / 1e3)

    def served(self, decision: Decision, commit_ms: float, total_ms: float, *, waited: bool) -> None:
        """Count a decision whose reply was sent.

        `waited`: the reply may have waited for the explanation, so the stage `reply` cannot be computed.
        """
        self._latency[decision.tier].observe(total_ms / 1e3)
        if not waited:
            timings = decision.timings
            stages_ms = timings.queue_ms + timings.rules_ms + timings.score_ms + commit_ms
            self._stages["reply"].observe(max(0.0, total_ms - stages_ms) / 1e3)

    def families(self, status: Status) -> Families:
        """All metrics: the measurements here, and the numbers of `status`."""
        from prometheus_client import ProcessCollector
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        latency = HistogramMetricFamily(
            "thorpolicy_decision_seconds", "Time from the arrival of a request to its reply.", labels=["tier"]
        )
        for tier, histogram in self._latency.items():
            latency.add_metric([tier], histogram.buckets(), histogram.sum)
        yield latency
        stages = HistogramMetricFamily(
            "thorpolicy_stage_seconds", "Time spent in each stage of a decision.", labels=["stage"]
        )
        for stage, histogram in self._stages.items():
            stages.add_metric([stage], histogram.buckets(), histogram.sum)
        yield stages
        yield HistogramMetricFamily(
            "thorpolicy_confidence",
            "Probability of the recorded outcome, calibrated if a calibration is in force.",
            buckets=self._confidence.buckets(),
            sum_value=self._confidence.sum,
        )
        outcomes = CounterMetricFamily(
            "thorpolicy_decisions", "Decisions recorded.", labels=["outcome", "tier"]
        )
        for labels, count in sorted(dict(self._outcomes).items()):
            outcomes.add_metric(labels, count)
        yield outcomes
        yield from _of_status(status)
        yield from ProcessCollector(registry=None).collect()


def _of_status(status: Status) -> Families:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    events = CounterMetricFamily(
        "thorpolicy_events",
        "Counters of each part, with their names in `status`.",
        labels=["part", "event"],
    )
    for part, counters in status.all_counters().items():
        for name, count in (dict.fromkeys(_FROM_ZERO.get(part, ()), 0) | counters).items():
            events.add_metric([part, name], count)
    yield events
    if status.alerts is not None:
        raised = GaugeMetricFamily("thorpolicy_alerts_raised", "Alerts that are raised.", labels=["kind"])
        kinds = Counter(alert.kind for alert in status.alerts.raised)
        for kind in ("success_rate", "volume", "drift", "shipping", "canary"):
            raised.add_metric([kind], kinds[kind])
        yield raised
    yield from _of_shipping(status)
    yield from _of_canary(status)
    yield GaugeMetricFamily(
        "thorpolicy_serving", "1 while requests are admitted.", value=float(status.state == "serving")
    )
    for name, help_text, value_of in _GAUGES:
        value = value_of(status)
        if value is not None:  # the free space of a disk may be unknown
            yield GaugeMetricFamily(f"thorpolicy_{name}", help_text, value=float(value))
    threads: dict[str, _Thread] = {
        "rules": status.rules,
        "engine": status.engine,
        "journal": status.journal,
        "maintenance": status.maintenance,
        "pack_manager": status.pack_manager,
    }
    for name, help_text, value_of_thread in _GAUGES_OF_THREADS:
        gauge = GaugeMetricFamily(f"thorpolicy_{name}", help_text, labels=["part"])
        for part, thread in threads.items():
            gauge.add_metric([part], float(value_of_thread(thread)))
        yield gauge
    free = GaugeMetricFamily(
        "thorpolicy_device_memory_free_bytes", "Free memory of a GPU.", labels=["device"]
    )
    total = GaugeMetricFamily("thorpolicy_device_memory_total_bytes", "Memory of a GPU.", labels=["device"])
    for memory in status.engine.memory:
        free.add_metric([memory.device], memory.free_bytes)
        total.add_metric([memory.device], memory.total_bytes)
    yield free
    yield total
    for name, labels_of in _INFOS:
        labels = {label: str(value) for label, value in labels_of(status).items()}
        yield InfoMetricFamily(f"thorpolicy_{name}", f"Identity of the {name}.", value=labels)


def _of_shipping(status: Status) -> Families:
    from prometheus_client.core import GaugeMetricFamily

    behind = GaugeMetricFamily(
        "thorpolicy_shipping_behind_events", "Events that a sink lacks.", labels=["sink"]
    )
    seconds = GaugeMetricFamily(
        "thorpolicy_shipping_behind_seconds", "How long ago the oldest of them was recorded.", labels=["sink"]
    )
    alarm = GaugeMetricFamily("thorpolicy_shipping_alarm", "1 while a sink takes no events.", labels=["sink"])
    for sink in status.shipping:
        behind.add_metric([sink.sink], sink.behind)
        seconds.add_metric([sink.sink], sink.behind_s)
        alarm.add_metric([sink.sink], float(sink.alarm is not None))
    yield from (behind, seconds, alarm)


def _of_canary(status: Status) -> Families:
    """The canary that runs: its share, and the figures of both arms. Without one its share is 0."""
    from prometheus_client.core import GaugeMetricFamily

    newest = status.canary
    running = newest is not None and newest.state == "running"
    share = newest.share if newest is not None and running else 0.0
    yield GaugeMetricFamily("thorpolicy_canary_share", "Share of callers on trial; 0: none.", value=share)
    figures = GaugeMetricFamily(
        "thorpolicy_canary_decisions",
        "Decisions of the newest canary and its control, and what they are noted for.",
        labels=["arm", "figure"],
    )
    if newest is not None:
        for name, arm in (("canary", newest.canary), ("control", newest.control)):
            for figure in _CANARY_FIGURES:
                figures.add_metric([name, figure], getattr(arm, figure))
    yield figures


# ---------------------------------------------------------------- how they are read


def as_json(families: Families) -> dict[str, Json]:
    """Metrics by name: type, help, and samples with their labels and values."""
    return {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": [
                {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
                for sample in family.samples
            ],
        }
        for family in families
    }


@dataclass(frozen=True)
class Line:
    """One metric with one set of labels, for people: its value, or the summary of a histogram."""

    name: str
    labels: str
    value: float
    #: Of a histogram: mean, and the bucket bounds of the 50 % and 99 % quantiles (None: above the last).
    mean: float | None = None
    half: float | None = None
    most: float | None = None


def lines(metrics: Mapping[str, Json]) -> list[Line]:
    """The result of `as_json`, one line for each set of labels; the value of a histogram is its count."""
    summaries = []
    for name, metric in metrics.items():
        groups: dict[str, list[dict[str, Json]]] = {}
        for sample in metric["samples"]:
            pairs = (f"{key}={value}" for key, value in sample["labels"].items() if key != "le")
            groups.setdefault(" ".join(pairs), []).append(sample)
        for labels, samples in groups.items():
            if metric["type"] == "histogram":
                summaries.append(_line_of_histogram(name, labels, samples))
            else:
                summaries += [Line(sample["name"], labels, sample["value"]) for sample in samples]
    return summaries


def _line_of_histogram(name: str, labels: str, samples: Sequence[Mapping[str, Json]]) -> Line:
    buckets = [(sample["labels"]["le"], sample["value"]) for sample in samples if "le" in sample["labels"]]
    count = buckets[-1][1]
    if not count:
        return Line(name, labels, 0)
    total = next(sample["value"] for sample in samples if sample["name"] == f"{name}_sum")

    def within(share: float) -> float | None:
        bound = next(bound for bound, reached in buckets if reached >= share * count)
        return None if bound == "+Inf" else float(bound)

    return Line(name, labels, count, mean=total / count, half=within(0.5), most=within(0.99))
