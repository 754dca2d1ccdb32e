"""What the daemon says of itself, as typed values.

Owns the members of `status` on the wire. Invariant: all values are frozen; each part of the daemon counts
in one `counters`, and every counter has the same name here, in metrics and in the documents. Made by
`daemon.status`; read by metrics, commands and clients.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from msgspec import Struct

from thor_policy.core.canary import Breach, Terms
from thor_policy.core.decisions import Adapter, PackInfo
from thor_policy.core.engine import DeviceMemory

#: What a daemon is doing: admitting requests, refusing them (`trouble` says why), or stopping.
State = Literal["serving", "refusing", "stopping"]
#: What a resident pack does: it decides; it repeats decisions for comparison; it decides for the callers of
#: a canary; nothing unless it is named.
PackRole = Literal["active", "shadow", "canary", "candidate"]


def sum_of(*parts: Counter[str]) -> Counter[str]:
    """The sums of counters that other threads go on counting in; names that are 0 are left out.

    Each is copied first, which no thread can interrupt: Counter's own sums end with RuntimeError where
    another thread counts under a new name.
    """
    total: Counter[str] = Counter()
    for part in parts:
        total += Counter(part)
    return total


class ModelStatus(Struct, frozen=True, kw_only=True):
    """The model that decides. `file` says what became of its file since the start; None if it has none."""

    name: str
    sha256: str
    quantisation: str
    device: str
    build: str
    exact: bool
    file: str | None = None
    adapter: Adapter | None = None


class PackStatus(Struct, frozen=True, kw_only=True):
    """A resident pack. `temperature` is that of its calibration, 1 without one; `adapter` a name.

    `contextual`: its scores have a contextual calibration.

    `failed_expressions`: how often each rule, fact (`fact:NAME`) or risk of the pack failed since the start.
    """

    name: str
    version: str
    sha256: str
    role: PackRole
    prefix_tokens: int
    temperature: float
    adapter: str | None
    path: str
    failed_expressions: dict[str, int] = {}
    contextual: bool = False


class ApprovalsStatus(Struct, frozen=True, kw_only=True):
    """Requests for approvals: how many are `pending`, and for how long the oldest, in seconds."""

    pending: int
    oldest_s: float
    counters: dict[str, int]


class RulesStatus(Struct, frozen=True, kw_only=True):
    """The rules thread. `mean_ms` is how long it takes for a request, in milliseconds."""

    alive: bool
    stalled_s: float
    waiting: int
    mean_ms: float
    counters: dict[str, int]


class EngineStatus(Struct, frozen=True, kw_only=True):
    """The engine thread. Times are milliseconds, but for `stalled_s` (seconds)."""

    alive: bool
    stalled_s: float
    waiting: int
    explaining: int
    shadows_waiting: int
    memory: tuple[DeviceMemory, ...]
    prefix_tokens: int
    prefix_restored: bool
    self_test: str
    warm_up_ms: float
    mean_decision_ms: float
    explanation_step_ms_max: float
    loading_step_ms_max: float
    wait_for_step_ms_max: float
    counters: dict[str, int]


class CacheStatus(Struct, frozen=True, kw_only=True):
    """The cache of scores."""

    entries: int
    counters: dict[str, int]


class JournalStatus(Struct, frozen=True, kw_only=True):
    """The journal. `failing` says why it cannot be written; `free_mb` is None if the disk does not say.

    Every event up to `verified_seq` was checked since the start. `damage` is the first that the newest check
    found; None: none so far.
    """

    alive: bool
    stalled_s: float
    path: str
    seq: int
    waiting: int
    batches: int
    failing: str | None
    free_mb: int | None
    min_free_mb: int
    ballast: bool
    verified_seq: int = 0
    damage: str | None = None
    counters: dict[str, int]


class JobStatus(Struct, frozen=True, kw_only=True):
    """A thread for long work; `task` is what it does now."""

    alive: bool
    stalled_s: float
    task: str | None
    waiting: int
    counters: dict[str, int]


class PackManagerStatus(JobStatus, frozen=True, kw_only=True):
    """The thread that changes packs. `refused` maps a pack to why the newest reload refused it.

    `max_packs` is the setting resident_packs.
    """

    refused: dict[str, str]
    max_packs: int


class DriftStatus(Struct, frozen=True, kw_only=True):
    """The drift sentinel: golden questions, seconds between two rounds of them, the largest logit shift."""

    every_s: float
    golden: int
    shift_max: float
    counters: dict[str, int]


class EnrichmentStatus(Struct, frozen=True, kw_only=True):
    """Enrichment on idle time. `today` and `today_s` (seconds of the device) are what is used of the day.

    `days` counts the turns of the day since the start.
    """

    mode: str
    waiting: int
    running: bool
    today: int
    per_day: int
    today_s: float
    s_per_day: float
    day_turns_in_s: float
    days: int
    counters: dict[str, int]


class AlertStatus(Struct, frozen=True, kw_only=True):
    """An alert that is raised: `success_rate` of a model or an agent, `volume` of decisions, `drift`,
    `shipping` to a sink, or a `canary` that was rolled back.

    The name of an agent is in the journal only. `value` is the newest figure and `low` to `high` its
    interval, or what is usual; they are None until it is judged again after a start.
    """

    id: str
    kind: str
    of: str | None
    name: str | None
    value: float | None
    low: float | None
    high: float | None


class AlertsStatus(Struct, frozen=True, kw_only=True):
    """The alerts that are raised, and how many agents and models are watched."""

    raised: tuple[AlertStatus, ...]
    watched: int
    counters: dict[str, int]


class ArmStatus(Struct, frozen=True, kw_only=True):
    """An arm of a canary: its decisions, and how many of its `results` turned out well (`hits`).

    `looser`: the candidate's rules asked for less than the active pack's. `failed`: the candidate gave no
    answer. `unanswered`: nobody did. `compared`: the active pack was asked too, on idle time; of these the
    candidate `loosened` some and `tightened` some. `mean_ms` is the geometric mean of the times that count.
    """

    decisions: int
    looser: int
    failed: int
    unanswered: int
    results: int
    hits: int
    mean_ms: float | None
    compared: int = 0
    loosened: int = 0
    tightened: int = 0


class CanaryStatus(Struct, frozen=True, kw_only=True):
    """The newest canary. `state` is `running`, or how it ended; `breach` are the figures that ended it."""

    id: str
    state: Literal["running", "promoted", "stopped", "rolled_back", "failed"]
    share: float
    pack: PackInfo
    model: str | None
    adapter: str | None
    started: str
    ended: str | None
    terms: Terms
    canary: ArmStatus
    control: ArmStatus
    breach: Breach | None
    reason: str | None


class ShippingStatus(Struct, frozen=True, kw_only=True):
    """A sink of `thorpolicy ship`: it has every event up to `acknowledged`, and lacks `behind` events.

    `behind_s` is how long ago the oldest of them was recorded, in seconds. `alarm` is why it takes no more.
    """

    sink: str
    acknowledged: int
    behind: int
    behind_s: float
    alarm: str | None = None


class SourceStatus(Struct, frozen=True, kw_only=True):
    """A source of a resident pack. `waiting` look-ups have not begun; times are those of all look-ups, in ms.

    `problem` says what is wrong with it: why the newest look-up failed, or why its old rows still count.
    """

    name: str
    pack: str
    kind: str
    system: str
    required: bool
    waiting: int
    mean_ms: float
    max_ms: float
    problem: str | None
    counters: dict[str, int]


class RecallStatus(Struct, frozen=True, kw_only=True):
    """The search for precedents: `problem` says why vectors are not compared."""

    vectors: int
    index_mb: int
    problem: str | None
    mean_ms: float
    max_ms: float
    counters: dict[str, int]


class ReloadStatus(Struct, frozen=True, kw_only=True):
    """What came of reading the settings again: why they were refused, which changed, which need a restart."""

    refused: str | None
    changed: tuple[str, ...] = ()
    need_restart: tuple[str, ...] = ()


class PartsStatus(Struct, frozen=True, kw_only=True):
    """What all parts but the server say; `pack` and `model` are those that decide now.

    `sources` are those of all resident packs that were consulted; `pushed` the values that programs pushed,
    `approvals` the requests for approvals, `recall` the search for precedents.
    """

    pack: PackInfo
    model: ModelStatus
    packs: tuple[PackStatus, ...]
    rules: RulesStatus
    engine: EngineStatus
    cache: CacheStatus
    journal: JournalStatus
    maintenance: JobStatus
    pack_manager: PackManagerStatus
    drift: DriftStatus
    sources: tuple[SourceStatus, ...] = ()
    pushed: CacheStatus | None = None
    approvals: ApprovalsStatus | None = None
    recall: RecallStatus | None = None
    enrichment: EnrichmentStatus | None = None
    alerts: AlertsStatus | None = None
    shipping: tuple[ShippingStatus, ...] = ()
    canary: CanaryStatus | None = None


class Status(PartsStatus, frozen=True, kw_only=True):
    """The whole status. `settings` is None until a reload; `counters` are those of the server."""

    version: str
    pid: int
    state: State
    trouble: str | None
    uptime_s: float
    endpoint: str
    tcp_endpoint: str | None
    events_endpoint: str
    control_endpoint: str
    connections: int
    in_flight: int
    max_in_flight: int
    settings: ReloadStatus | None
    counters: dict[str, int]

    def all_counters(self) -> dict[str, dict[str, int]]:
        """Every counter, by part and name."""
        return {
            "server": self.counters,
            "rules": self.rules.counters,
            "engine": self.engine.counters,
            "cache": self.cache.counters,
            "journal": self.journal.counters,
            "maintenance": self.maintenance.counters,
            "pack_manager": self.pack_manager.counters,
            "drift": self.drift.counters,
            "pushed": self.pushed.counters if self.pushed else {},
            "approvals": self.approvals.counters if self.approvals else {},
            "recall": self.recall.counters if self.recall else {},
            "enrichment": self.enrichment.counters if self.enrichment else {},
            "alerts": self.alerts.counters if self.alerts else {},
            **{f"source:{source.name}": source.counters for source in self.sources},
        }
