"""The pack manager: changes which packs are resident, which of them decides, and with which adapter.

Owns the changes. It reads files on its own thread, and has the engine thread do the rest in bounded steps
while decisions go on. Invariant: that of `JobThread`; what fails leaves in force what was; each change of
what can decide is an event on the chain, between the decisions before it and those after it.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from msgspec import to_builtins
from msgspec.structs import replace

from thor_policy.config import Config
from thor_policy.core.canary import Breach
from thor_policy.core.decisions import Adapter, ModelInfo, PackInfo, resident_key
from thor_policy.core.engine import Engine, Steps
from thor_policy.core.errors import EngineError, PackError, RequestError, ThorPolicyError
from thor_policy.core.records import Calibration, Control
from thor_policy.core.requests import Caller, Json
from thor_policy.core.results import Committed, JobDone
from thor_policy.core.status import PackStatus
from thor_policy.daemon.canaries import Canaries
from thor_policy.daemon.canary_watch import CanaryWatch
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.daemon.job_thread import JobThread
from thor_policy.daemon.loading import NONE, OpenAdapter, find_adapter, open_pack
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.journal.writer import Journal
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Resident, Residents
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Job:
    """A change that a caller asked for, or work that the daemon itself wants done; `done` is its end."""

    task: str
    work: Callable[[], dict[str, Json]]
    done: Future[None] | None = None


class PackManager(JobThread[_Job]):
    """Changes the packs, the adapter and the canary of `policy`, whose engine runs on `engine_thread`.

    `calibration_of` finds the calibration that is recorded for a pack on a model; `watch` gives the
    watch over the canary, and `load_engine` loads the model of its candidate.
    """

    def __init__(
        self,
        config: Config,
        engine_thread: EngineThread,
        policy: Policy,
        journal: Journal,
        on_outcome: Callable[[int, JobDone], None],
        *,
        calibration_of: Callable[[PackInfo, ModelInfo], Calibration | None],
        watch: CanaryWatch,
        load_engine: Callable[[Config], Engine],
    ) -> None:
        self._config = config
        self.max_packs, self._trusted_keys = config.resident_packs, config.pack_keys
        self._engine_thread, self._policy, self._journal = engine_thread, policy, journal
        self._calibration_of = calibration_of
        self._commits: list[Future[Committed]] = []
        self._watch = watch
        self._canaries = Canaries(config, policy, self, watch.status, load_engine)
        #: What the newest reload refused, and why; empty if nothing.
        self.refused: dict[str, str] = {}
        super().__init__("packs", on_outcome)

    def submit(self, ticket: int, control: Control, caller: Caller) -> None:
        """Queue a change that `caller` asks for; returns at once."""
        self._submit(ticket, _Job(control.task, partial(self._change, control, caller)))

    def reload(self) -> None:
        """Queue a reload that nobody waits for; safe in a signal handler."""
        self._post(_Job("reload", self._reload))

    def roll_back(self, canary_id: str, breach: Breach) -> None:
        """Queue the end of a canary because of these figures. Any thread."""

        def work() -> dict[str, Json]:
            self._canaries.roll_back(canary_id, breach)
            return {}

        self._post(_Job("canary", work))

    def resume_canary(self) -> None:
        """Go on with the canary that ran when the daemon ended; returns when its candidate can decide."""

        def work() -> dict[str, Json]:
            self._canaries.resume()
            return {}

        done: Future[None] = Future()
        self._post(_Job("canary", work, done))
        done.result()

    # ------------------------------------------------------------ on its own thread

    def _take(self) -> tuple[int | None, _Job] | None:
        """Wait for the next job; between jobs the watch over the canary has its turns."""
        while True:
            try:
                return self._queue.get(timeout=self._watch.wait_s(time.monotonic_ns()))
            except queue.Empty:
                self._watch.turn(time.monotonic_ns())

    def _perform(self, job: _Job) -> dict[str, Json]:
        try:
            done = job.work()
            self._wait_for_commits()
            if job.task == "canary":
                self._watch.refresh()
        except ThorPolicyError as error:
            log.error("%s failed: %s", job.task, logs.Hidden(error))
            raise
        finally:
            self._commits.clear()
            if job.done is not None:
                job.done.set_result(None)
        return {"packs": to_builtins(describe_packs(self._policy)), **done}

    def _change(self, control: Control, caller: Caller) -> dict[str, Json]:
        name = control.pack or ""
        if control.task == "reload":
            return self._reload()
        if control.canary is not None and control.task == "canary":
            return self._canaries.change(control.canary, caller)
        if control.task in ("adapter", "activate"):
            self._canaries.refuse_other_changes(f"the task {control.task}")
        if control.task == "adapter":
            model = self._policy.engine.model.name
            return self._adapt(find_adapter(control.adapter or "", control.scale, self._config, model))
        if control.task == "unload":
            self.retire(self.run_on_engine(partial(self._unloading, name=name)))
        elif control.task == "shadow" and name == NONE:
            self.run_on_engine(self._ending_shadow)
        else:
            change = {"load": _stay, "activate": self._activate, "shadow": self._shadow}[control.task]
            resident = None if control.task == "load" else _only(self._policy.residents, name)
            pack = resident.pack if resident else open_pack(name, self._trusted_keys)
            self.know_calibration(pack, self._policy.residents.active.model)
            self.run_on_engine(partial(self._changing, pack=pack, change=change))
        return {}

    def run_on_engine(self, task: Callable[[Policy], Steps[T]]) -> T:
        """The result of a task of the engine thread; raises what it raises."""
        return self._engine_thread.do(task).result()

    def retire(self, resident: Resident) -> None:
        """A task of its own, so that it runs behind the requests that may name the pack."""
        self.run_on_engine(partial(self._retiring, resident=resident))

    def _exchange(self, old: Resident, pack: Pack, adapter: Adapter | None) -> Resident:
        """Load a pack in the place of `old`, which decides until then; then free what `old` held."""
        new = self.run_on_engine(partial(self._exchanging, old=old, pack=pack, adapter=adapter))
        self.retire(old)
        return new

    def record(self, event: Event) -> None:
        """Engine thread: put an event on the chain, in its place between the decisions."""
        self._commits.append(self._journal.commit(event))

    def _wait_for_commits(self) -> None:
        """Raises RequestError if a change that is in force could not be recorded."""
        for future in self._commits:
            fate = future.result()
            if fate.error is not None:
                raise RequestError(fate.error, f"it is in force, but not recorded: {fate.message}")

    def know_calibration(self, pack: Pack, model: ModelInfo) -> None:
        if calibration := self._calibration_of(pack.info, model):
            self._policy.calibrate(calibration, unless_known=True)

    # ------------------------------------------------------------ packs (engine thread)

    def _changing(
        self, policy: Policy, pack: Pack, change: Callable[[Policy, Resident], None]
    ) -> Steps[None]:
        """Make a pack resident if it is not, and give it its role."""
        adapter = policy.residents.adapter_for(pack)
        resident = policy.residents.by_key(resident_key(pack.info.sha256, adapter))
        if resident is None:
            self.check_room(policy)
            resident = yield from policy.loading(pack, adapter, time.time())
            policy.set_residents(policy.residents.with_candidate(resident))
            self.record(events.pack_loaded(pack.info, time.time()))
        change(policy, resident)

    def check_room(self, policy: Policy) -> None:
        """Raise RequestError if no further pack can be resident."""
        if len(policy.residents) >= self.max_packs:
            there = ", ".join(map(str, policy.residents))
            raise RequestError(
                "conflict",
                f"{len(policy.residents)} packs are resident ({there}) and resident_packs is "
                f"{self.max_packs}: unload one, or raise it",
            )

    def resident_pack(self, name: str) -> Pack | None:
        """The only resident pack of that name; None if there is none. Raises RequestError for several."""
        resident = _only(self._policy.residents, name)
        return resident.pack if resident else None

    def _activate(self, policy: Policy, resident: Resident) -> None:
        if resident is not policy.residents.active:
            policy.set_residents(policy.residents.with_active(resident))
            self.record(events.pack_activated(resident.pack.info, time.time()))

    def _shadow(self, policy: Policy, resident: Resident) -> None:
        _refuse_on_trial(policy.residents, resident)
        if resident is policy.residents.active:
            raise RequestError("conflict", f"pack: {resident} is active; it cannot be its own shadow")
        if resident is not policy.residents.shadow:
            policy.set_residents(policy.residents.with_shadow(resident))
            self.record(events.pack_shadowed(resident.pack.info, time.time()))

    def _ending_shadow(self, policy: Policy) -> Steps[None]:
        if policy.residents.shadow is not None:
            policy.set_residents(policy.residents.with_shadow(None))
            self.record(events.pack_shadowed(None, time.time()))
        yield

    def _unloading(self, policy: Policy, name: str) -> Steps[Resident]:
        yield
        resident = _only(policy.residents, name) or policy.residents.named(name)
        if resident is policy.residents.active:
            raise RequestError("conflict", f"pack: {resident} is active; activate another one first")
        _refuse_on_trial(policy.residents, resident)
        if resident is policy.residents.shadow:
            self.record(events.pack_shadowed(None, time.time()))
        policy.set_residents(policy.residents.without(resident))
        return resident

    def _retiring(self, policy: Policy, resident: Resident) -> Steps[None]:
        yield from policy.retiring(resident)
        if all(
            other.pack.info != resident.pack.info for other in policy.residents
        ):  # else it stays under another adapter
            self.record(events.pack_unloaded(resident.pack.info, time.time()))

    def _exchanging(
        self, policy: Policy, old: Resident, pack: Pack, adapter: Adapter | None
    ) -> Steps[Resident]:
        new = yield from policy.loading(pack, adapter, time.time())
        policy.set_residents(policy.residents.with_replaced(old, new))
        if old.pack.info != pack.info:
            event_of = {"active": events.pack_activated, "shadow": events.pack_shadowed}
            role = policy.residents.role_of(new)
            self.record(event_of.get(role, events.pack_loaded)(pack.info, time.time()))
        if old.model.adapter != adapter and new is policy.residents.active:
            self.record(events.adapter_activated(adapter, new.model.sha256, time.time()))
        return new

    # ------------------------------------------------------------ reload

    def _reload(self) -> dict[str, Json]:
        """Load each pack that changed on disk; one that cannot be used is refused, and the old one stays."""
        refused: dict[str, str] = {}
        self.refused = refused
        reloaded: list[str] = []
        same_version: list[str] = []
        for old in self._policy.residents:
            try:
                pack = open_pack(str(old.pack.path), self._trusted_keys)
                if pack.info.sha256 == old.pack.info.sha256:
                    continue
                if self._policy.residents.role_of(old) in ("active", "canary"):
                    self._canaries.refuse_other_changes("a reload of it")
                adapter = self._policy.residents.adapter_for(pack)
                self.know_calibration(pack, replace(old.model, adapter=adapter))
                if self._policy.residents.by_key(resident_key(pack.info.sha256, adapter)):
                    raise PackError(f"{old.pack.path} now holds {pack.info.sha256}, which is resident")
                new = self._exchange(old, pack, adapter)
                reloaded.append(str(new))
                log.warning("%s takes the place of %s", new, old)
                if pack.info.version == old.pack.info.version:
                    same_version.append(str(new))
                    log.warning("%s has the version of the pack before it: give each change a version", new)
            except ThorPolicyError as error:
                refused[str(old)] = str(error)
                log.error("%s stays as it is: %s", old, error)
        return {"reloaded": reloaded, "refused": refused, "same_version": same_version}

    # ------------------------------------------------------------ the adapter

    def _adapt(self, opened: OpenAdapter | None) -> dict[str, Json]:
        """Load every pack under the adapter, each in the place of itself, the active one first.

        A pack decides under the adapter that it had until it is loaded under the new one. Where one cannot
        be, those before it get back what they had.
        """
        adapter = opened.adapter if opened else None
        for resident in self._policy.residents:
            self.know_calibration(resident.pack, replace(resident.model, adapter=adapter))
        before = self._policy.residents.active.model.adapter
        if opened is not None:
            self.run_on_engine(partial(_adopting, opened=opened))
        try:
            self.load_all_under(adapter)
        except EngineError:
            self.load_all_under(before)
            raise
        return {"adapter": to_builtins(adapter)}

    def load_all_under(self, adapter: Adapter | None) -> None:
        for resident in self._policy.residents:
            if resident.model.adapter != adapter and not resident.pack.rules_only:
                self._exchange(resident, resident.pack, adapter)


def describe_packs(policy: Policy) -> tuple[PackStatus, ...]:
    """Every resident pack with its role, the active one first. Any thread."""
    residents = policy.residents
    return tuple(
        PackStatus(
            name=resident.pack.info.name,
            version=resident.pack.info.version,
            sha256=resident.pack.info.sha256,
            role=residents.role_of(resident),
            prefix_tokens=resident.loaded.prefix_tokens,
            temperature=policy.temperature_of(resident),
            contextual=bool(policy.prior_of(resident)),
            adapter=resident.model.adapter.name if resident.model.adapter else None,
            path=str(resident.pack.path),
            failed_expressions=policy.failures_of(resident.pack.info.name),
        )
        for resident in residents
    )


def _adopting(policy: Policy, opened: OpenAdapter) -> Steps[None]:
    yield
    opened.adopt(policy.engine)


def _refuse_on_trial(residents: Residents, resident: Resident) -> None:
    if residents.trial is not None and resident is residents.trial.resident:
        raise RequestError("conflict", f"pack: {resident} is on trial; first `thorpolicy canary stop`")


def _stay(_policy: Policy, _resident: Resident) -> None:
    """A pack that is only loaded has no role."""


def _only(residents: Residents, name: str) -> Resident | None:
    """The only resident pack of that name; None if there is none, or `name` is a directory."""
    matches = residents.matching(name)
    if len(matches) > 1:
        raise RequestError(
            "conflict", f"pack: {name[:64]!r} may be {' or '.join(map(str, matches))}; give its digest"
        )
    return matches[0] if matches else None
