"""The watch over a canary: it reads what was recorded of both arms, and has the canary rolled back.

Owns the figures of the newest canary. Invariant: they are read from the journal alone, a bounded number of
rows a turn, so a restart begins with the same figures; a canary is judged only when all that is recorded of
it was read. The pack manager's thread, between its jobs and after a change of the canary: the maintenance
thread may archive for an hour. The status may be read from any.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable

from thor_policy.core.canary import Breach
from thor_policy.core.status import ArmStatus, CanaryStatus
from thor_policy.daemon.canary_rules import Arm, Conditions, Times, times_of
from thor_policy.journal import canary_queries
from thor_policy.journal.canary_queries import Compared, Known, Result
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.policy.residents import Residents
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Rows that a turn reads at most, of decisions and of results.
PAGE = 1_000
#: Seconds between two turns, and where more is to be read at once.
REST_S, NEXT_S = 0.25, 0.02
#: Results of decisions that are kept, the newest; more would be memory without an end.
MOST_RESULTS = 100_000


class CanaryWatch:
    """Watches the newest canary of `journal`; `roll_back` gets its id with the figures that end it.

    `residents` gives the packs of now. Times are monotonic nanoseconds.
    """

    def __init__(
        self,
        journal: Journal,
        roll_back: Callable[[str, Breach], None],
        residents: Callable[[], Residents],
        *,
        now_ns: int,
    ) -> None:
        self._journal, self._roll_back, self._residents = journal, roll_back, residents
        self._due_ns = now_ns
        self._first = True
        self._known: Known | None = None
        self._begin(None)
        #: Turns that could not read the journal, and canaries that were rolled back.
        self.counters = Counter(canary_unread=0, canaries_rolled_back=0)

    def _begin(self, known: Known | None) -> None:
        self._of = known.canary.id if known else None
        self._arms = {"canary": Arm(), "control": Arm()}
        self._results: OrderedDict[str, Result] = OrderedDict()
        self._conditions = Conditions(known.canary.terms) if known else None
        self._decisions_seq = self._results_seq = self._compared_seq = known.seq if known else 0
        self._rolled_back = False

    def status(self) -> CanaryStatus | None:
        """The newest canary as the newest turn saw it; None if there was none."""
        known, arms = self._known, self._arms
        if known is None:
            return None
        canary, (ours, theirs) = known.canary, times_of(arms["canary"], arms["control"])
        return CanaryStatus(
            id=canary.id,
            state=known.cause or "running",
            share=canary.share,
            pack=canary.pack,
            model=canary.model,
            adapter=canary.adapter.name if canary.adapter else None,
            started=known.started,
            ended=known.ended,
            terms=canary.terms,
            canary=_status_of(arms["canary"], ours),
            control=_status_of(arms["control"], theirs),
            breach=known.breach,
            reason=known.reason,
        )

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next turn."""
        return max(0, self._due_ns - now_ns) / 1e9

    def turn(self, now_ns: int) -> None:
        """Read what is new, and judge it; nothing is read while no canary runs. No error is raised."""
        known = self._known
        more = False
        if self._first or self._residents().trial is not None or (known is not None and known.cause is None):
            more = self.refresh()
        self._due_ns = now_ns + int((NEXT_S if more else REST_S) * 1e9)

    def refresh(self) -> bool:
        """Read what is new; True if there is more. No error is raised."""
        try:
            return self._read()
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            self.counters["canary_unread"] += 1
            log.warning("the watch over the canary could not read: %s", logs.Hidden(str(error)))
            return False

    def _read(self) -> bool:
        """Take the next rows of both arms, and judge them when no more wait; True if more do."""
        if self._journal.seq == 0:
            return False  # the file has no event yet
        with Reader(self._journal.path) as reader, reader.snapshot() as connection:
            self._known = known = canary_queries.newest(connection)
            self._first = False
            if (known.canary.id if known else None) != self._of:
                self._begin(known)
            if known is None:
                return False
            decided, decisions, self._decisions_seq = canary_queries.decided_after(
                connection, self._decisions_seq, PAGE
            )
            results, records, self._results_seq = canary_queries.results_after(
                connection, self._results_seq, PAGE
            )
            compared, shadows, self._compared_seq = canary_queries.compared_after(
                connection, self._compared_seq, PAGE
            )
        for each in decided:
            if each.canary == self._of:
                self._arms[each.arm].decided(note=each.note, tier=each.tier, took_ms=each.took_ms)
        for result in results:
            if result.canary == self._of:
                self._take(result)
        for pair in compared:
            if pair.canary == self._of:
                self._compare(pair)
        if PAGE in (decisions, records, shadows):
            return True
        if known.cause is None and self._conditions is not None and not self._rolled_back:
            self._judge(known, self._conditions)
        return False

    def _take(self, result: Result) -> None:
        """Take how a decision turned out, in the place of what was known of it."""
        before = self._results.pop(result.decision_id, None)
        if before is None and len(self._results) >= MOST_RESULTS:
            _, before = self._results.popitem(last=False)
        if before is not None:
            self._count(before, -1)
        if result.good is not None:
            self._results[result.decision_id] = result
            self._count(result, 1)

    def _compare(self, pair: Compared) -> None:
        """Count a question that both packs answered."""
        labels, arm = self._residents().active.pack.labels, self._arms["canary"]
        if pair.served in labels and pair.active in labels:
            by = labels.index(pair.served) - labels.index(pair.active)
            arm.compared += 1
            arm.loosened += by < 0
            arm.tightened += by > 0

    def _count(self, result: Result, by: int) -> None:
        arm = self._arms[result.arm]
        arm.results += by
        arm.hits += by * bool(result.good)

    def _judge(self, known: Known, conditions: Conditions) -> None:
        breach = conditions.breach(self._arms["canary"], self._arms["control"])
        if breach is None:
            return
        self._rolled_back = True
        self.counters["canaries_rolled_back"] += 1
        figures = {
            name: getattr(breach, name)
            for name in ("condition", "value", "low", "high", "sample", "threshold")
        }
        pack = f"{known.canary.pack.name} {known.canary.pack.version}"
        log.warning(
            "the canary %s is rolled back", pack, extra=logs.fields(canary=known.canary.id, **figures)
        )
        self._roll_back(known.canary.id, breach)


def _status_of(arm: Arm, times: Times) -> ArmStatus:
    return ArmStatus(
        decisions=arm.decisions,
        looser=arm.looser,
        failed=arm.failed,
        unanswered=arm.unanswered,
        results=arm.results,
        hits=arm.hits,
        mean_ms=None if times.mean_ms is None else round(times.mean_ms, 3),
        compared=arm.compared,
        loosened=arm.loosened,
        tightened=arm.tightened,
    )
