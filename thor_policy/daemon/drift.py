"""The drift sentinel: does the model still answer as it did?

Owns the golden questions (the examples of the active pack) and the model's first answer to each.
Invariant: it asks only when no request waits, one question at a time, and reports each change once: later
answers are compared with the newest. Engine thread; its counters may be read from any.

It finds a model file that was changed on disk, a driver that computes otherwise and bad memory before
they show in decisions. The active pack is asked, under its adapter. Another pack, model, adapter or build
is not drift: the comparison begins again.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

from thor_policy.core.decisions import Scored
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.status import DriftStatus
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.policy.decider import Policy
from thor_policy.policy.residents import Resident

log = logging.getLogger(__name__)

#: Longest that one golden question may take, in seconds.
DEADLINE_S = 60


class DriftSentinel:
    """Asks every golden question each `every_s` seconds; 0: never. `record` must not block.

    A change is another label, or a logit that moved by more than `tolerance` (where the model promises equal
    bits at all). Times are monotonic nanoseconds; `at` is Unix time in seconds.
    """

    def __init__(
        self, record: Callable[[Event], None], *, every_s: float, tolerance: float, now_ns: int
    ) -> None:
        self._record = record
        self._every_ns = int(every_s * 1e9)
        self._tolerance = tolerance
        self._due_ns = now_ns + self._every_ns
        self._place = 0
        self._of: tuple[str, str, str] | None = None
        self._known: dict[str, Scored] = {}
        #: Golden questions that got an answer, changes among them, and questions that got none.
        self.counters = Counter(answered=0, drifted=0, failed=0)
        #: Largest shift of a logit that was seen, within tolerance or not.
        self.shift_max = 0.0

    def status(self) -> DriftStatus:
        """What `status` says of it."""
        return DriftStatus(
            every_s=self._every_ns / 1e9,
            golden=len(self._known),
            shift_max=self.shift_max,
            counters=dict(self.counters),
        )

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until there is a question to ask; None: never."""
        if not self._every_ns:
            return None
        return 0.0 if self._place else max(0, self._due_ns - now_ns) / 1e9

    def turn(self, policy: Policy, now_ns: int, at: float) -> None:
        """Ask the next golden question."""
        active = policy.residents.active
        pack = active.pack
        if (of := (*active.calibration_key, active.model.build)) != self._of:
            self._of, self._known, self._place = of, {}, 0
        golden = () if pack.rules_only else pack.examples
        if self._place < len(golden):
            example = golden[self._place]
            try:
                sources = pack.stated(example.sources)
                floor = pack.book.apply(example.evaluation, example.at, sources=sources)
                question = active.question(example.evaluation, floor)
                scored = policy.engine.score(active.key, question, now_ns + DEADLINE_S * 10**9)
            except (RequestError, EngineError) as error:
                self.counters["failed"] += 1
                log.warning("the golden question %s got no answer: %s", example.id, error)
            else:
                self.counters["answered"] += 1
                self._hold(example.id, scored, active, at)
        self._place += 1
        if self._place >= len(golden):
            self._place, self._due_ns = 0, now_ns + self._every_ns

    def _hold(self, id: str, scored: Scored, active: Resident, at: float) -> None:
        known = self._known.setdefault(id, scored)
        shift = shifted(known.logits, scored.logits)
        self.shift_max = max(self.shift_max, shift)
        moved = active.model.exact and shift > self._tolerance
        if known.label == scored.label and not moved:
            return
        self._known[id] = scored
        self.counters["drifted"] += 1
        log.warning(
            "drift: the golden question %s gets %s, a logit moved by %g; before it got %s",
            id, scored.label, shift, known.label,
        )  # fmt: skip
        self._record(
            events.drift_event(
                golden=id,
                before=known.label,
                now=scored.label,
                shift=shift,
                pack=active.pack.info,
                model=active.model,
                at=at,
            )
        )


def shifted(before: tuple[float, ...], now: tuple[float, ...]) -> float:
    """The largest change of a logit; infinite if one is not a number or their count differs."""
    if len(before) != len(now):
        return math.inf
    shifts = [abs(a - b) if a != b else 0.0 for a, b in zip(before, now, strict=True)]
    return max((math.inf if math.isnan(shift) else shift for shift in shifts), default=0.0)
