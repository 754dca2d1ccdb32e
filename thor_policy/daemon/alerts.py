"""The watch for alerts: it reads what was recorded, and records when an alert is raised and cleared.

Owns which alerts are raised. Invariant: each alert is raised by one event and cleared by one, with the same
id, also over a restart; a turn reads a bounded number of new rows while nothing waits, so its cost does not
grow with the journal. Names of agents are in memory and in the private parts of events only. The maintenance
thread, between its jobs; `forget` on any. Counters and status may be read from any.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from thor_policy.core.ids import new_id
from thor_policy.core.status import AlertsStatus, AlertStatus, CanaryStatus, DriftStatus, ShippingStatus
from thor_policy.daemon.alert_rules import Drift, Judged, SuccessRate, Volume, canary, shipping
from thor_policy.journal import alert_queries, events
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Rows that a turn reads at most, of outcomes and of decisions.
PAGE = 500
#: Seconds between two turns: where nothing is new, and where more is to be read at once.
REST_S, NEXT_S = 5.0, 0.1
#: A turn is postponed at most so often in a row while requests wait.
MOST_POSTPONED = 10
#: Outcomes that a start reads again, and most agents and models that are watched.
REREAD, MOST_WATCHED = 5_000, 1_000

#: The figures of an alert that its event has.
_FIGURES = ("value", "low", "high", "sample", "threshold")
#: What an alert is about: its kind, what it is of, and the name of that; empty where there is none.
_Key = tuple[str, str, str]


@dataclass(frozen=True)
class Thresholds:
    """What the settings say of alerts: see `Config`. A share, a number of results, deviations, seconds."""

    success_below: float = 0.5
    least: int = 30
    window: int = 200
    volume_sigma: float = 6.0
    bucket_s: float = 300.0
    shipping_s: float = 600.0


class AlertWatch:
    """Watches `journal`; `drift`, `sinks` and `canary` give the status of drift, sinks and the newest canary.

    `busy` is true while requests wait. Times are monotonic nanoseconds; `wall` gives Unix time, which is only
    recorded.
    """

    def __init__(
        self,
        journal: Journal,
        thresholds: Thresholds,
        *,
        drift: Callable[[], DriftStatus],
        sinks: Callable[[], tuple[ShippingStatus, ...]] = lambda: (),
        canary: Callable[[], CanaryStatus | None] = lambda: None,
        wall: Callable[[], float],
        busy: Callable[[], bool] = lambda: False,
        now_ns: int,
    ) -> None:
        self._journal, self._thresholds = journal, thresholds
        self._drift_status, self._wall, self._busy = drift, wall, busy
        self._shipping_status, self._canary_status = sinks, canary
        self._due_ns = now_ns
        self._postponed = 0
        self._drift = Drift()
        self._volume = Volume(
            sigma=thresholds.volume_sigma,
            least=thresholds.least,
            bucket_ns=int(thresholds.bucket_s * 1e9),
            now_ns=now_ns,
        )
        self._rates: OrderedDict[_Key, SuccessRate] = OrderedDict()
        self._changed: set[_Key] = set()
        self._raised: dict[_Key, tuple[str, Judged | None]] = {}
        self._results_seq: int | None = None
        self._decisions_seq: int | None = None
        self._forgets = self._forgot = 0
        #: Alerts raised and cleared; turns that could not read the journal; results of agents and models that
        #: are not watched, because too many others are raised.
        self.counters = Counter(alerts_raised=0, alerts_cleared=0, alerts_failed=0, alerts_unwatched=0)

    def status(self) -> AlertsStatus:
        """What `status` says of it. Names of agents are left out: the journal has them."""
        return AlertsStatus(
            raised=tuple(
                AlertStatus(
                    id=id_,
                    kind=kind,
                    of=of or None,
                    name=name if of in ("model", "sink") else None,
                    value=judged.value if judged else None,
                    low=judged.low if judged else None,
                    high=judged.high if judged else None,
                )
                for (kind, of, name), (id_, judged) in dict(self._raised).items()
            ),
            watched=len(self._rates),
            counters=dict(self.counters),
        )

    def forget(self) -> None:
        """Forget all names, and read what is left of them again; an erasure calls it. Any thread."""
        self._forgets += 1

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next turn."""
        return max(0, self._due_ns - now_ns) / 1e9

    def turn(self, now_ns: int) -> None:
        """Read what is new and judge it. No error is raised."""
        self._due_ns = now_ns + int(REST_S * 1e9)
        if self._busy() and self._postponed < MOST_POSTPONED:
            self._postponed += 1
            return
        self._postponed = 0
        try:
            if self._read(now_ns):
                self._due_ns = now_ns + int(NEXT_S * 1e9)
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            self.counters["alerts_failed"] += 1
            log.warning("the watch for alerts could not read the journal: %s", logs.Hidden(str(error)))

    # ------------------------------------------------------------ reading

    def _read(self, now_ns: int) -> bool:
        """Take the new rows, and judge them when no more wait; True if more do."""
        if self._journal.seq == 0:
            return False  # the file has no event yet
        with Reader(self._journal.path) as reader, reader.snapshot() as connection:
            if self._results_seq is None or self._forgot != self._forgets:
                self._begin(alert_queries.raised(connection), first=self._results_seq is None)
                self._results_seq = alert_queries.before_newest_outcomes(connection, REREAD)
            if self._decisions_seq is None:
                self._decisions_seq = alert_queries.newest_decision(connection)
            results, outcomes, self._results_seq = alert_queries.results_after(
                connection, self._results_seq, PAGE
            )
            counted, decisions, self._decisions_seq = alert_queries.decisions_after(
                connection, self._decisions_seq, PAGE
            )
        self._volume.add(counted)
        if self._thresholds.success_below:
            self._take(results)
        if PAGE in (outcomes, decisions):
            return True
        self._judge(now_ns)
        return False

    def _take(self, results: list[alert_queries.Result]) -> None:
        for result in results:
            for of, name in (("agent", result.actor), ("model", result.model)):
                key = ("success_rate", of, name or "")
                if name and (rate := self._rate_of(key)) is not None:
                    rate.add(result.decision_id, result.success)
                    self._changed.add(key)

    def _judge(self, now_ns: int) -> None:
        """Judge what has changed. A page of old results alone may look otherwise than all of them."""
        for key in sorted(self._changed & self._rates.keys()):
            self._hold(key, self._rates[key].judge())
        self._changed.clear()
        volume = self._volume.turn(now_ns)
        if volume is not None and self._thresholds.volume_sigma:
            self._hold(("volume", "", ""), volume)
        drift = self._drift_status()
        drifted, answered = drift.counters["drifted"], drift.counters["answered"]
        self._hold(
            ("drift", "", ""), self._drift.judge(drifted=drifted, answered=answered, golden=drift.golden)
        )
        self._judge_shipping()
        if (newest := self._canary_status()) is not None:
            self._hold(("canary", "", ""), canary(newest))

    def _judge_shipping(self) -> None:
        sinks = {("shipping", "sink", sink.sink): sink for sink in self._shipping_status()}
        for key, sink in sinks.items():
            self._hold(key, shipping(sink, self._thresholds.shipping_s))
        for key in [key for key in self._raised if key[0] == "shipping" and key not in sinks]:
            self._record(key, self._raised.pop(key)[0], "cleared", None)  # nobody ships there any more

    def _begin(self, raised: list[alert_queries.Raised], *, first: bool) -> None:
        """Begin anew: with the alerts that an earlier process raised, or with what an erasure left of names.

        An alert whose name was erased is cleared: nobody can say any more whose it is.
        """
        self._forgot = self._forgets
        self._rates.clear()
        self._changed.clear()
        names = {each.id: each.name or "" for each in raised}
        if first:
            self._raised = {(each.kind, each.of or "", each.name or ""): (each.id, None) for each in raised}
        for key, (id_, _) in list(self._raised.items()):
            _, of, name = key
            if of and (not name or names.get(id_, name) != name):
                self._record(("success_rate", of, ""), id_, "cleared", None)
                del self._raised[key]

    def _rate_of(self, key: _Key) -> SuccessRate | None:
        """The results of an agent or model; None if it cannot be watched, because all others are raised."""
        rate = self._rates.get(key)
        if rate is not None:
            self._rates.move_to_end(key)
            return rate
        if len(self._rates) >= MOST_WATCHED:
            idle = next((known for known in self._rates if known not in self._raised), None)
            if idle is None:
                self.counters["alerts_unwatched"] += 1
                return None
            del self._rates[idle]
        thresholds = self._thresholds
        rate = self._rates[key] = SuccessRate(
            below=thresholds.success_below, least=thresholds.least, window=thresholds.window
        )
        return rate

    # ------------------------------------------------------------ raising

    def _hold(self, key: _Key, judged: Judged) -> None:
        """Raise or clear an alert, if its figures say so."""
        if key in self._raised:
            id_, _ = self._raised[key]
            self._raised[key] = (id_, judged)
            if judged.ends:
                self._record(key, id_, "cleared", judged)
                del self._raised[key]
        elif judged.begins:
            id_ = new_id()
            self._raised[key] = (id_, judged)
            self._record(key, id_, "raised", judged)

    def _record(
        self, key: _Key, id_: str, state: Literal["raised", "cleared"], judged: Judged | None
    ) -> None:
        kind, of, name = key
        self.counters[f"alerts_{state}"] += 1
        figures = {} if judged is None else {field: getattr(judged, field) for field in _FIGURES}
        extra = logs.fields(alert=id_, kind=kind, of=of or None, **figures)
        (log.warning if state == "raised" else log.info)("an alert was %s: %s", state, kind, extra=extra)
        self._journal.append(
            events.alert_event(
                id_,
                kind=kind,
                state=state,
                of=of or None,
                name=name or None,
                figures=figures,
                at=self._wall(),
            )
        )
