"""Sources are consulted before a request reaches the rules.

Owns the workers of every source, and the requests that wait for them. Invariant: each submitted request
reaches the rules exactly once, with what its sources said by then, unless its connection ends first; a
source that hangs occupies only its own workers, and delays only requests that need it, by its timeout at
most. A request without sources goes straight on. The main thread submits, workers and a timer hand over; no
thread but the workers ever waits for a source.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.fair_queue import FairQueue, Lane
from thor_policy.core.requests import Caller, Json, Request
from thor_policy.core.sources import Consulted, Push
from thor_policy.core.status import SourceStatus
from thor_policy.daemon.admission import RulesQueue
from thor_policy.daemon.searching import OpenedSource
from thor_policy.daemon.shares import Places
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Residents
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.kinds import Reach, open_source, overridden
from thor_policy.sources.pushed import PushedValues
from thor_policy.sources.source import Source, SourceError, entries_of, failure_of, found_in
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Part of the time to the deadline that sources may take; the rest is for rules, model and journal.
_SHARE = 0.75
#: How long a stop waits for workers to end, in seconds; one that hangs ends with the process.
_STOP_S = 1.0


#: What sources say in scenarios, by scenario, source and attribute.
Stated: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Json]]]


class _Job(NamedTuple):
    """A look-up for one request."""

    ticket: int
    type: str
    id: str
    deadline_ns: int
    lane: Lane


@dataclass
class _Pending:
    """A request that waits for sources. `answers` has None for a source that has not answered."""

    request: Request
    lane: Lane
    runners: dict[str, _Runner]
    answers: dict[str, tuple[Consulted, ...] | None]


class _Runner:
    """A source, its workers and what waits for them. `pack` is the name of a pack that has it."""

    def __init__(self, name: str, spec: SourceSpec, folder: Path, pack: str) -> None:
        self.name, self.spec, self.folder, self.pack = name, spec, folder, pack
        self.queue: FairQueue[_Job] = FairQueue()
        self.places = Places()
        self.threads: list[threading.Thread] = []
        #: Workers that wait for a look-up.
        self.idle = 0
        #: One worker takes at a time, as the queue wants it.
        self.taking = threading.Lock()
        self.opening = threading.Lock()
        self.source: Source | None = None
        self.counters = Counter(calls=0, failures=0, cached=0, refused=0, late=0)
        self.ms_total = 0.0
        self.ms_max = 0.0
        self.newest_error: str | None = None

    def status(self) -> SourceStatus:
        source, calls = self.source, self.counters["calls"]
        return SourceStatus(
            name=self.name,
            pack=self.pack,
            kind=self.spec.kind,
            system=self.spec.system or self.name,
            required=self.spec.required,
            waiting=len(self.queue),
            mean_ms=round(self.ms_total / calls, 3) if calls else 0.0,
            max_ms=round(self.ms_max, 3),
            problem=(source.problem if source else None) or self.newest_error,
            counters=dict(self.counters),
        )


@dataclass
class _Table:
    """The runners of the resident packs: by pack, and all of them by what they are."""

    residents: Residents | None = None
    of_pack: dict[str, list[_Runner]] = field(default_factory=dict)
    runners: dict[tuple[str, bytes, Path], _Runner] = field(default_factory=dict)


class Consulting:
    """Takes the place of the rules' queue for requests: `rules` gets them when their sources answered.

    `residents` gives the packs of now. At most `max_waiting` look-ups wait for one source. Scenarios in
    `stated` get their values from there: for runs of suites in this process, never where others can ask.
    Raises ConfigError if a setting of the operator does not fit a source of the active pack.
    """

    def __init__(
        self,
        rules: RulesQueue,
        residents: Callable[[], Residents],
        *,
        pushed: PushedValues,
        reach: Reach = Reach(),  # noqa: B008  it is frozen
        max_waiting: int = 4_096,
        stated: Stated = {},  # noqa: B006  it is not changed
    ) -> None:
        self._rules, self._residents = rules, residents
        self._pushed, self._reach, self._max_waiting = pushed, reach, max_waiting
        self._stated = stated
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._pending: dict[int, _Pending] = {}
        #: When each look-up is given up: monotonic nanoseconds, ticket, source.
        self._deadlines: list[tuple[int, int, str]] = []
        self._stopping = False
        self._table = _Table()
        self._timer: threading.Thread | None = None
        self._limit = logs.Limit()
        for name, spec in residents().active.pack.manifest.sources.items():
            overridden(name, spec, reach)

    # ------------------------------------------------------------ as the rules' queue

    def expected_ms(self, lane: Lane) -> int:
        """How long the rules of the requests before one in this lane will take, in milliseconds."""
        return self._rules.expected_ms(lane)

    def submit(self, request: Request, lane: Lane) -> None:
        """Consult the sources of an admitted request, then queue it for the rules; returns at once."""
        residents = self._residents()
        request = residents.enrolled(request)
        if not any(resident.pack.manifest.sources for resident in residents):
            self._rules.submit(request, lane)
            return
        try:
            pack = (residents.active if request.pack is None else residents.named(request.pack)).pack
        except RequestError:  # it was unloaded since; the rules thread says so
            self._rules.submit(request, lane)
            return
        request = replace(request, judge=pack.info.sha256)
        if (values := self._stated.get(request.annotations.scenario_id or "")) is not None:
            self._rules.submit(replace(request, sources=pack.stated(values)), lane)
            return
        runners = self._runners_for(request, pack, residents)
        if not runners:
            self._rules.submit(request, lane)
            return
        now_ns = time.monotonic_ns()
        latest_ns = now_ns + int((request.deadline_ns - now_ns) * _SHARE)
        evaluation, jobs = request.evaluation, []
        for runner in runners:
            entity = evaluation.subject if runner.spec.of == "subject" else evaluation.resource
            deadline_ns = min(latest_ns, now_ns + runner.spec.timeout_ms * 1_000_000)
            jobs.append((runner, _Job(request.ticket, entity.type, entity.id, deadline_ns, lane)))
        with self._lock:
            by_name = {runner.name: runner for runner in runners}
            self._pending[request.ticket] = _Pending(request, lane, by_name, dict.fromkeys(by_name))
            first = self._deadlines[0][0] if self._deadlines else None
            for runner, job in jobs:
                heapq.heappush(self._deadlines, (job.deadline_ns, job.ticket, runner.name))
            if first is None or self._deadlines[0][0] < first:
                self._due.notify()
        for runner, job in jobs:
            self._put(runner, job)

    def drop(self, lane: Lane) -> list[Request]:
        """Take out the requests of a lane that no decision was begun for, and return them."""
        with self._lock:
            own = [ticket for ticket, pending in self._pending.items() if pending.lane == lane]
            dropped = [self._pending.pop(ticket).request for ticket in own]
            for runner in self._table.runners.values():
                for job in runner.queue.drop(lane):
                    runner.places.give_back(job.lane)
        return [*dropped, *self._rules.drop(lane)]

    def sources_of(self, pack: Pack) -> list[OpenedSource]:
        """The sources of a resident pack, for who looks them up on a thread of its own."""
        residents = self._residents()
        if self._table.residents is not residents:
            self._take_over(residents)
        return [
            OpenedSource(runner.name, runner.spec, partial(self._opened, runner))
            for runner in self._table.of_pack.get(pack.info.sha256, ())
        ]

    # ------------------------------------------------------------ pushed values

    def push(self, push: Push, caller: Caller, *, at: float, now_ns: int) -> None:
        """Keep values that `caller` pushed at Unix time `at`. Raises RequestError."""
        pushed = [
            (name, spec)
            for resident in self._residents()
            for name, spec in resident.pack.manifest.sources.items()
            if spec.pushed is not None
        ]
        specs = [spec for name, spec in pushed if name == push.source]
        if not specs:
            known = ", ".join(sorted({name for name, _ in pushed})) or "none"
            raise RequestError(
                "not_found",
                f"record.source: no resident pack has the pushed source {push.source!r}; known: {known}",
            )
        if all(spec.types and push.type not in spec.types for spec in specs):
            types = ", ".join(specs[0].types)
            raise RequestError("bad_request", f"record.type: the source {push.source} describes {types}")
        try:
            for spec in specs:
                found_in(spec, push.values, fresh_at="")
        except SourceError as error:
            raise RequestError("bad_request", f"record.values: {error}") from None
        self._pushed.push(push, caller.who or "daemon", at=at, now_ns=now_ns)

    # ------------------------------------------------------------ what is known of it

    def status(self) -> tuple[SourceStatus, ...]:
        """Every source of the resident packs. Any thread."""
        return tuple(runner.status() for runner in tuple(self._table.runners.values()))

    def stop(self) -> None:
        """End the workers and the timer; requests that wait still are not handed over."""
        with self._lock:
            self._stopping = True
            self._pending.clear()
            self._due.notify()
        runners = list(self._table.runners.values())
        for runner in runners:
            runner.queue.close()
        ends_at = time.monotonic() + _STOP_S
        for thread in [*filter(None, [self._timer]), *(t for runner in runners for t in runner.threads)]:
            thread.join(max(0.0, ends_at - time.monotonic()))

    # ------------------------------------------------------------ which sources

    def _runners_for(self, request: Request, pack: Pack, residents: Residents) -> list[_Runner]:
        """The sources of a pack, as far as they describe a part of the request.

        Where the candidate of a canary decides, its sources are consulted too; of two with one name, which
        are equal, that of the active pack.
        """
        if self._table.residents is not residents:
            self._take_over(residents)
        runners = {runner.name: runner for runner in self._table.of_pack[pack.info.sha256]}
        if (candidate := residents.on_trial(request)) is not None:
            own = self._table.of_pack[candidate.pack.info.sha256]
            runners = {runner.name: runner for runner in own} | runners
        return [runner for runner in runners.values() if runner.spec.describes(request.evaluation)]

    def _take_over(self, residents: Residents) -> None:
        """Make runners for sources of packs that are new, and end those of packs that are gone."""
        table = _Table(residents)
        for resident in residents:
            table.of_pack[resident.pack.info.sha256] = list(self._runners_of(resident.pack, table))
        gone = [runner for key, runner in self._table.runners.items() if key not in table.runners]
        self._table = table
        for runner in gone:
            runner.queue.close()  # its workers end when nothing waits any more
        if self._timer is None:
            self._timer = threading.Thread(target=self._watch, name="sources", daemon=True)
            self._timer.start()

    def _runners_of(self, pack: Pack, table: _Table) -> Iterator[_Runner]:
        for name, spec in pack.manifest.sources.items():
            try:
                spec = overridden(name, spec, self._reach)
            except ConfigError as error:
                log.error("the source %s of %s is used as the pack says: %s", name, pack.info.name, error)
            key = name, msgspec.json.encode(spec), pack.path
            if key not in table.runners:
                known = self._table.runners.get(key)
                table.runners[key] = known or _Runner(name, spec, pack.path, pack.info.name)
            yield table.runners[key]

    # ------------------------------------------------------------ workers

    def _put(self, runner: _Runner, job: _Job) -> None:
        with self._lock:
            if runner.places.has_place(job.lane, self._max_waiting):
                runner.places.take(job.lane)
                runner.queue.put(job, job.lane)
                busy = None
                if len(runner.threads) < runner.spec.workers and runner.idle < len(runner.queue):
                    name = f"source-{runner.name}-{len(runner.threads) + 1}"
                    thread = threading.Thread(target=self._work, args=(runner,), name=name, daemon=True)
                    runner.threads.append(thread)
                    thread.start()
            else:
                runner.counters["refused"] += 1
                held = runner.places.held(job.lane.share)
                busy = f"{held} look-ups of the caller wait for it (max_source_waiting)"
        if busy is not None:
            self._failed(runner, job.ticket, busy, 0.0)

    def _work(self, runner: _Runner) -> None:
        """A worker of one source, until its queue is closed."""
        while True:
            with self._lock:
                runner.idle += 1
            with runner.taking:
                job = runner.queue.get()
                if job is not None:
                    runner.queue.charge(1.0)
            if job is None:
                self._leave(runner)
                return
            with self._lock:
                runner.idle -= 1
                runner.places.give_back(job.lane)
                pending = self._pending.get(job.ticket)
                wanted = pending is not None and pending.answers.get(runner.name, ()) is None
            if wanted and time.monotonic_ns() < job.deadline_ns:
                self._look_up(runner, job)

    def _leave(self, runner: _Runner) -> None:
        """The end of a worker; the last one closes the source."""
        with self._lock:
            runner.threads.remove(threading.current_thread())
            last = not runner.threads
        if last and runner.source is not None:
            runner.source.close()

    def _look_up(self, runner: _Runner, job: _Job) -> None:
        started_ns = time.monotonic_ns()
        result, problem = None, None
        try:
            result = self._opened(runner).look_up(job.type, job.id, job.deadline_ns)
        except (SourceError, ConfigError) as error:
            problem = str(error)
        except Exception:
            problem = "the look-up failed with an unexpected error; the daemon's log says why"
            log.exception("the source %s failed with an unexpected error", runner.name)
        took_ms = round((time.monotonic_ns() - started_ns) / 1e6, 3)
        with self._lock:
            runner.counters["calls"] += 1
            runner.ms_total += took_ms
            runner.ms_max = max(runner.ms_max, took_ms)
            if result is not None and result.cached:
                runner.counters["cached"] += 1
        if problem is not None:
            self._failed(runner, job.ticket, problem, took_ms)
        else:
            self._answer(job.ticket, runner, entries_of(runner.name, runner.spec, result, took_ms))

    def _opened(self, runner: _Runner) -> Source:
        """The source, opened at its first look-up. Raises ConfigError."""
        with runner.opening:
            if runner.source is None:
                runner.source = open_source(
                    runner.name, runner.spec, folder=runner.folder, reach=self._reach, pushed=self._pushed
                )
            return runner.source

    # ------------------------------------------------------------ answers

    def _failed(self, runner: _Runner, ticket: int, problem: str, took_ms: float) -> None:
        entries = (failure_of(runner.name, runner.spec, problem, took_ms),)
        counted = self._answer(ticket, runner, entries, problem)
        if counted and (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            extra = logs.fields(unlogged=unlogged or None)
            log.warning("the source %s gave no answer: %s", runner.name, problem, extra=extra)

    def _answer(
        self, ticket: int, runner: _Runner, entries: tuple[Consulted, ...], problem: str | None = None
    ) -> bool:
        """Take what a source said; hand the request over if it was the last one. False: it came too late."""
        with self._lock:
            pending = self._pending.get(ticket)
            if pending is None or pending.answers.get(runner.name, ()) is not None:
                runner.counters["late"] += 1
                return False
            runner.newest_error = problem
            runner.counters["failures"] += problem is not None
            pending.answers[runner.name] = entries
            if None in pending.answers.values():
                return True
            del self._pending[ticket]
        self._hand_over(pending)
        return True

    def _hand_over(self, pending: _Pending) -> None:
        sources = tuple(entry for entries in pending.answers.values() for entry in entries or ())
        self._rules.submit(replace(pending.request, sources=sources), pending.lane)

    def _watch(self) -> None:
        """Give up look-ups whose time is over, until the stop."""
        while True:
            with self._due:
                while not self._stopping:
                    now_ns = time.monotonic_ns()
                    left_s = (self._deadlines[0][0] - now_ns) / 1e9 if self._deadlines else None
                    if left_s is not None and left_s <= 0:
                        break
                    self._due.wait(left_s)
                if self._stopping:
                    return
                _, ticket, name = heapq.heappop(self._deadlines)
                pending = self._pending.get(ticket)
                over = pending is not None and pending.answers.get(name, ()) is None
                runner = pending.runners[name] if pending is not None and over else None
            if runner is not None and pending is not None:
                self._failed(runner, ticket, "it gave no answer in time", float(runner.spec.timeout_ms))
