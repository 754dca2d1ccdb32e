"""The steward: changes which packs are resident, which of them decides, and with which adapter.

Owns a thread that may wait: it reads files, and has the engine's thread do the rest in bounded steps
while decisions go on. Invariant: each order ends in exactly one answer, and what fails leaves in force
what was; each change of what can decide is an event on the chain, between the decisions before it and
those after it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from msgspec import to_builtins
from msgspec.structs import replace

from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, ModelInfo, PackInfo, resident_key
from thor_policy.core.engine import Steps
from thor_policy.core.errors import (
    CatalogError,
    EngineError,
    JournalError,
    PackError,
    RequestError,
    ThorPolicyError,
)
from thor_policy.core.records import Calibration, Control
from thor_policy.core.requests import Json
from thor_policy.core.results import Committed, JobDone
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.daemon.loading import NONE, OpenAdapter, find_adapter, open_pack
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.journal.writer import Journal
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Resident, Residents

log = logging.getLogger(__name__)

T = TypeVar("T")


class PackManager:
    """Carries out orders on `worker`'s policy, one at a time; `tell` must not block.

    `calibration_of` finds what calibration is recorded for a pack on a model.
    """

    def __init__(
        self,
        config: Config,
        worker: EngineThread,
        policy: Policy,
        journal: Journal,
        tell: Callable[[int, JobDone], None],
        *,
        calibration_of: Callable[[PackInfo, ModelInfo], Calibration | None],
    ) -> None:
        self._config, self._most = config, config.resident_packs
        self._trusted = config.pack_keys
        self._worker, self._policy, self._journal = worker, policy, journal
        self._tell = tell
        self._calibration_of = calibration_of
        self._stopping = False
        self._entry = threading.Lock()
        self._events: list[Future[Committed]] = []
        #: What is being done.
        self.task: str | None = None
        #: What the newest reload refused, and why; empty if nothing.
        self.refused: dict[str, str] = {}
        self._queue: queue.SimpleQueue[tuple[int | None, Control] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="steward", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread has ended."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Orders that have not begun."""
        return self._queue.qsize()

    def submit(self, ticket: int, control: Control) -> None:
        """Queue an order; returns at once. After a stop it is refused at once."""
        with self._entry:
            if not self._stopping:
                self._queue.put((ticket, control))
                return
        self._tell(ticket, JobDone(_stopping()))

    def reload(self) -> None:
        """Queue a reload that nobody waits for; from a signal handler too."""
        self._queue.put((None, Control(task="reload")))

    def stop(self, timeout_s: float) -> bool:
        """Finish what runs, then end; False if it did not within `timeout_s`."""
        with self._entry:
            self._stopping = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ the steward's thread

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            ticket, control = item
            self.task = control.task
            answer = self._answer(control)
            if isinstance(answer, RequestError):
                log.error("%s: %s", control.task, answer)
            if ticket is not None:
                self._tell(ticket, JobDone(answer))
            self.task = None

    def _answer(self, control: Control) -> dict[str, Json] | RequestError:
        if self._stopping:
            return _stopping()
        try:
            done = self._do(control)
            self._wait_for_the_chain()
            return {"done": {"packs": describe_packs(self._policy), **done}}
        except RequestError as error:
            return error
        except (PackError, CatalogError) as error:
            return RequestError("bad_request", str(error))
        except (EngineError, JournalError) as error:
            return RequestError("unavailable", str(error))
        except Exception:
            log.exception("%s failed for a reason that no code foresaw", control.task)
            return RequestError("internal", f"{control.task} failed; the daemon's log says why")
        finally:
            self._events.clear()

    def _do(self, control: Control) -> dict[str, Json]:
        told = control.pack or ""
        if control.task == "reload":
            return self._reload()
        if control.task == "adapter":
            model = self._policy.engine.model.name
            return self._adapt(find_adapter(control.adapter or "", control.scale, self._config, model))
        if control.task == "unload":
            self._retire(self._done(partial(self._unloading, told=told)))
        elif control.task == "shadow" and told == NONE:
            self._done(self._ending_shadow)
        else:
            change = {"load": _stay, "activate": self._activate, "shadow": self._shadow}[control.task]
            resident = None if control.task == "load" else _only(self._policy.residents, told)
            pack = resident.pack if resident else open_pack(told, self._trusted)
            self._know_calibration(pack, self._policy.residents.active.model)
            self._done(partial(self._changing, pack=pack, change=change))
        return {}

    def _done(self, errand: Callable[[Policy], Steps[T]]) -> T:
        """What an errand of the engine's thread comes to; raises what it raises."""
        return self._worker.do(errand).result()

    def _retire(self, resident: Resident) -> None:
        """An errand of its own, so that it comes behind the requests that may name the pack."""
        self._done(partial(self._retiring, resident=resident))

    def _exchange(self, old: Resident, pack: Pack, adapter: Adapter | None) -> Resident:
        """Load a pack in the place of one, which decides until then; then free what that one held."""
        new = self._done(partial(self._exchanging, old=old, pack=pack, adapter=adapter))
        self._retire(old)
        return new

    def _record(self, event: Event) -> None:
        """Engine thread: put an event on the chain, in its place between the decisions."""
        self._events.append(self._journal.commit(event))

    def _wait_for_the_chain(self) -> None:
        """Raises RequestError if a change that is in force could not be recorded."""
        for future in self._events:
            fate = future.result()
            if fate.error is not None:
                raise RequestError(fate.error, f"it is in force, but not recorded: {fate.message}")

    def _know_calibration(self, pack: Pack, model: ModelInfo) -> None:
        if found := self._calibration_of(pack.info, model):
            self._policy.calibrate(found, unless_known=True)

    # ------------------------------------------------------------ packs (engine thread)

    def _changing(
        self, policy: Policy, pack: Pack, change: Callable[[Policy, Resident], None]
    ) -> Steps[None]:
        """Make a pack resident if it is not, and give it its role."""
        adapter = policy.residents.active.model.adapter
        resident = policy.residents.by_key(resident_key(pack.info.sha256, adapter))
        if resident is None:
            if len(policy.residents) >= self._most:
                there = ", ".join(map(str, policy.residents))
                raise RequestError(
                    "conflict",
                    f"{len(policy.residents)} packs are resident ({there}) and resident_packs is "
                    f"{self._most}: unload one, or raise it",
                )
            resident = yield from policy.loading(pack, adapter, time.time())
            policy.set_residents(policy.residents.with_candidate(resident))
            self._record(events.pack_loaded(pack.info, time.time()))
        change(policy, resident)

    def _activate(self, policy: Policy, resident: Resident) -> None:
        if resident is not policy.residents.active:
            policy.set_residents(policy.residents.with_active(resident))
            self._record(events.pack_activated(resident.pack.info, time.time()))

    def _shadow(self, policy: Policy, resident: Resident) -> None:
        if resident is policy.residents.active:
            raise RequestError("conflict", f"pack: {resident} is active; it cannot be its own shadow")
        if resident is not policy.residents.shadow:
            policy.set_residents(policy.residents.with_shadow(resident))
            self._record(events.pack_shadowed(resident.pack.info, time.time()))

    def _ending_shadow(self, policy: Policy) -> Steps[None]:
        if policy.residents.shadow is not None:
            policy.set_residents(policy.residents.with_shadow(None))
            self._record(events.pack_shadowed(None, time.time()))
        yield

    def _unloading(self, policy: Policy, told: str) -> Steps[Resident]:
        yield
        resident = _only(policy.residents, told) or policy.residents.named(told)
        if resident is policy.residents.active:
            raise RequestError("conflict", f"pack: {resident} is active; activate another one first")
        if resident is policy.residents.shadow:
            self._record(events.pack_shadowed(None, time.time()))
        policy.set_residents(policy.residents.without(resident))
        return resident

    def _retiring(self, policy: Policy, resident: Resident) -> Steps[None]:
        yield from policy.retiring(resident)
        if all(one.pack.info != resident.pack.info for one in policy.residents):  # not so under an adapter
            self._record(events.pack_unloaded(resident.pack.info, time.time()))

    def _exchanging(
        self, policy: Policy, old: Resident, pack: Pack, adapter: Adapter | None
    ) -> Steps[Resident]:
        new = yield from policy.loading(pack, adapter, time.time())
        policy.set_residents(policy.residents.with_replaced(old, new))
        if old.pack.info != pack.info:
            told = {"active": events.pack_activated, "shadow": events.pack_shadowed}
            role = policy.residents.role_of(new)
            self._record(told.get(role, events.pack_loaded)(pack.info, time.time()))
        if old.model.adapter != adapter and new is policy.residents.active:
            self._record(events.adapter_activated(adapter, new.model.sha256, time.time()))
        return new

    # ------------------------------------------------------------ what lies in their directories now

    def _reload(self) -> dict[str, Json]:
        """Take what changed on disk, pack by pack; what cannot be used is refused, and the old one stays."""
        refused: dict[str, str] = {}
        self.refused = refused
        reloaded: list[str] = []
        for old in self._policy.residents:
            try:
                pack = open_pack(str(old.pack.path), self._trusted)
                if pack.info.sha256 == old.pack.info.sha256:
                    continue
                self._know_calibration(pack, old.model)
                if self._policy.residents.by_key(resident_key(pack.info.sha256, old.model.adapter)):
                    raise PackError(f"{old.pack.path} now holds {pack.info.sha256}, which is resident")
                new = self._exchange(old, pack, old.model.adapter)
                reloaded.append(str(new))
                log.warning("%s takes the place of %s", new, old)
            except ThorPolicyError as error:
                refused[str(old)] = str(error)
                log.error("%s stays as it is: %s", old, error)
        return {"reloaded": reloaded, "refused": refused}

    # ------------------------------------------------------------ the adapter

    def _adapt(self, found: OpenAdapter | None) -> dict[str, Json]:
        """Load every pack under the adapter, each in the place of itself, the active one first.

        A pack decides under the adapter that it had until it is loaded under the new one. Where one cannot
        be, those before it get back what they had.
        """
        adapter = found.adapter if found else None
        for resident in self._policy.residents:
            self._know_calibration(resident.pack, replace(resident.model, adapter=adapter))
        before = self._policy.residents.active.model.adapter
        if found is not None:
            self._done(partial(_adopting, found=found))
        try:
            self._load_all_under(adapter)
        except EngineError:
            self._load_all_under(before)
            raise
        return {"adapter": to_builtins(adapter)}

    def _load_all_under(self, adapter: Adapter | None) -> None:
        for resident in self._policy.residents:
            if resident.model.adapter != adapter:
                self._exchange(resident, resident.pack, adapter)


def describe_packs(policy: Policy) -> list[dict[str, Json]]:
    """Every resident pack with its role, as plain JSON values. Any thread."""
    residents = policy.residents
    return [
        {
            "name": one.pack.info.name,
            "version": one.pack.info.version,
            "sha256": one.pack.info.sha256,
            "role": residents.role_of(one),
            "prefix_tokens": one.loaded.prefix_tokens,
            "temperature": policy.temperature_of(one),
            "adapter": one.model.adapter and one.model.adapter.name,
            "path": str(one.pack.path),
        }
        for one in residents
    ]


def _adopting(policy: Policy, found: OpenAdapter) -> Steps[None]:
    yield
    found.adopt(policy.engine)


def _stay(_policy: Policy, _resident: Resident) -> None:
    """A pack that is only loaded has no role."""


def _only(residents: Residents, told: str) -> Resident | None:
    """The one resident pack that an order means; None if none is, or it names a directory."""
    found = residents.matching(told)
    if len(found) > 1:
        raise RequestError(
            "conflict", f"pack: {told[:64]!r} may be {' or '.join(map(str, found))}; give its digest"
        )
    return found[0] if found else None


def _stopping() -> RequestError:
    return RequestError("shutting_down", "the daemon is stopping")
