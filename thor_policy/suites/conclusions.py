"""The conclusion of a run: one value from which the exit status and every report are made.

Owns whether a run is a success. Invariant: the status is 0 exactly if no point of the conclusion has a reason
against the run and, unless a gate decides, every answered scenario passed. Reports show the points and the
scenarios of this value, so none of them can contradict the status. Pure; any thread.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Json
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.suites import run_files
from thor_policy.suites.baselines import Gate
from thor_policy.suites.coverage import Coverage
from thor_policy.suites.figures import Figures, figures
from thor_policy.suites.run_files import FAILURES, ITEM_RESULTS, Item, Run, worst


class Point(Struct, frozen=True, kw_only=True):
    """Something beside the scenarios that the status depends on, with the `reasons` against the run.

    Without reasons it is passed. With reasons the status is `status`: 1 if a check failed, above 1 if
    something could not be done.
    """

    name: str
    reasons: tuple[str, ...] = ()
    status: int = 1


class Recorded(Struct, frozen=True, kw_only=True):
    """Where the decisions are recorded: a state directory, None if they are not; `remote`: elsewhere."""

    state_dir: Path | None = None
    remote: bool = False


NOT_RECORDED = Recorded()


class Conclusion(Struct, frozen=True, kw_only=True):
    """A run, its figures, and what the status depends on beside its scenarios.

    With a `gate` the gate decides whether failed scenarios matter. `blessed` are the baseline files that were
    written. `coverage_threshold` is in per cent.
    """

    run: Run
    figures: Figures
    recorded: Recorded = NOT_RECORDED
    points: tuple[Point, ...] = ()
    gate: Gate | None = None
    blessed: tuple[Path, ...] = ()
    coverage_threshold: float | None = None

    @property
    def status(self) -> int:
        """The exit status: 0 success, 1 a check failed, 2 something could not be done."""
        statuses = [point.status for point in self.points if point.reasons]
        if self.gate is None and (self.figures.failed or self.figures.errors):
            statuses.append(1)
        return max(statuses, default=0)

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def failures(self) -> list[Item]:
        """The scenarios that did not pass, the gravest first, each by its worst answer."""
        items = by_gravity(worst(self.run.results).values())
        return [item for item in items if item.result in FAILURES]

    @property
    def headline(self) -> str:
        """How many scenarios did not pass, and how gravely, in one line."""
        return headline(list(worst(self.run.results).values()))

    def adding(self, *points: Point) -> Conclusion:
        """This conclusion with more points."""
        return msgspec.structs.replace(self, points=(*self.points, *points))

    def command(self, item: Item) -> str | None:
        """The command that shows the decision on a scenario; None if it is not recorded."""
        if item.decision_id is None or self.recorded.state_dir is None:
            return None
        place = shlex.quote(str(self.recorded.state_dir))
        command = f"thorpolicy log show {item.decision_id[-ENDING_CHARS:]} --state-dir {place}"
        return f"on the daemon's machine: {command}" if self.recorded.remote else command

    def plain(self) -> dict[str, Json]:
        """The run as JSON values; beside it figures (`summary`), gate, exit status and the reasons for it."""
        gate = {} if self.gate is None else {"gate": self.gate}
        reasons = [f"{point.name}: {reason}" for point in self.points for reason in point.reasons]
        return run_files.plain(
            self.run, summary=self.figures, **gate, exit_status=self.status, reasons=reasons
        )


def conclude(
    run: Run,
    *,
    recorded: Recorded = NOT_RECORDED,
    points: Sequence[Point] = (),
    gate: Gate | None = None,
    blessed: Sequence[Path] = (),
    coverage_threshold: float | None = None,
) -> Conclusion:
    """The conclusion of a run: `points`, and those of coverage, gate, and whether anything was answered."""
    summary = figures(run)
    every = [*points]
    if coverage_threshold is not None:
        every += [_point_of(coverage, coverage_threshold) for coverage in run.coverage]
    if gate is not None:
        every.append(Point(name="gate", reasons=gate.reasons))
    elif not summary.not_skipped:
        count = summary.scenarios
        every.append(Point(name="run", reasons=(f"nothing was asked: {count} of {count} scenarios skipped",)))
    return Conclusion(
        run=run,
        figures=summary,
        recorded=recorded,
        points=tuple(every),
        gate=gate,
        blessed=tuple(blessed),
        coverage_threshold=coverage_threshold,
    )


def _point_of(coverage: Coverage, threshold: float) -> Point:
    """Whether a run covers a pack. `threshold` is in per cent."""
    name = f"coverage of {coverage.pack}"
    if coverage.reaches(threshold):
        return Point(name=name)
    share = f"{100 * coverage.share:.0f} %"
    reason = (
        f"{share} is below the threshold of {threshold:g} %: add scenarios, or lower --coverage-threshold"
    )
    return Point(name=name, reasons=(reason,))


def by_gravity(items: Iterable[Item]) -> list[Item]:
    """The items, the gravest first; those alike stay in their order."""
    return sorted(items, key=lambda item: ITEM_RESULTS.index(item.result))


def kinds(items: Iterable[Item]) -> str:
    """How many of these scenarios failed in each way, the gravest first; empty if none did."""
    counts = Counter(item.result for item in items)
    return ", ".join(f"{counts[name]} {name}" for name in FAILURES if counts[name])


def headline(items: Sequence[Item]) -> str:
    """How many of these scenarios did not pass, and how gravely, in one line."""
    counts = Counter(item.result for item in items)
    count = len(items) - counts["skipped"]
    failures = kinds(items)
    skipped = f"; {counts['skipped']} skipped" if counts["skipped"] else ""
    if not failures:
        passed = f"all {count} scenarios passed" if count > 1 else f"{count or 'no'} scenario passed"
        return passed + skipped
    return f"{count - counts['passed']} of {count} scenarios did not pass: {failures}{skipped}"


def details(item: Item) -> list[tuple[str, str]]:
    """What a reader of a failure needs, as names and values: question, answer, rules, reason given."""
    pairs = [("wrong", "; ".join(item.misses))]
    if item.why is not None:
        pairs.append(("question", item.why.question))
    if item.outcome is not None:
        answer = f"{item.outcome}, by {item.tier}; expected {' or '.join(item.accepted)}"
        pairs.append(("answer", answer))
    if item.label is not None:
        pairs.append(("model", f"{item.label} {item.probabilities.get(item.label, 0.0):.2f}"))
    if item.why is None:
        return pairs
    fired = f"{', '.join(item.why.rules)}: {item.why.because or ''}" if item.why.rules else "no rule fired"
    pairs.append(("rules", f"{item.floor}; {fired}" if item.floor is not None else fired))
    pairs += [("failed", f"{name}: {message}") for name, message in item.why.errors.items()]
    if item.why.reasoning:
        pairs.append(("reason", item.why.reasoning))
    return pairs
