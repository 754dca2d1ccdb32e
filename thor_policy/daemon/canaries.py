"""Changes of the canary: start, share, stop, promotion, roll-back, and going on after a restart.

Owns the order of steps of each. Invariant: at most one canary runs; each change is an event on the chain, in
its place between the decisions; a candidate that cannot be used decides nothing, and the canary ends with the
reason. The pack manager's thread, but for what its docstring calls the engine thread.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from msgspec import structs, to_builtins

from thor_policy.config import Config
from thor_policy.core.canary import SALT_BYTES, Breach, Canary, Cause, Terms
from thor_policy.core.decisions import Adapter, ModelInfo, resident_key
from thor_policy.core.engine import Steps
from thor_policy.core.errors import PackError, RequestError, ThorPolicyError
from thor_policy.core.ids import new_id
from thor_policy.core.records import CanaryChange, Candidate
from thor_policy.core.requests import Caller, Json
from thor_policy.core.status import CanaryStatus
from thor_policy.daemon.canary_choice import Merit, choose, merit
from thor_policy.daemon.loading import OpenAdapter, find_adapter, open_pack
from thor_policy.journal import canary_queries, events
from thor_policy.journal.canary_queries import Record
from thor_policy.journal.events import Event
from thor_policy.journal.projections import version_of
from thor_policy.journal.reader import Reader
from thor_policy.policy.canary import misfits
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import OnTrial, Resident
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

T = TypeVar("T")


class Manager(Protocol):
    """The pack manager, as far as a canary needs it (`daemon.pack_manager`)."""

    def run_on_engine(self, task: Callable[[Policy], Steps[T]]) -> T: ...

    def record(self, event: Event) -> None:
        """Engine thread: put an event on the chain, in its place between the decisions."""

    def retire(self, resident: Resident) -> None: ...

    def know_calibration(self, pack: Pack, model: ModelInfo) -> None: ...

    def load_all_under(self, adapter: Adapter | None) -> None: ...

    def resident_pack(self, name: str) -> Pack | None: ...

    def check_room(self, policy: Policy) -> None:
        """Raise RequestError if no further pack can be resident."""


@dataclass(frozen=True)
class _Opened:
    """A candidate whose files can be used. `adapter` is the one that it is judged under."""

    pack: Pack
    adapter: Adapter | None
    file: OpenAdapter | None
    place: str | None

    @property
    def key(self) -> str:
        return resident_key(self.pack.info.sha256, self.adapter)

    @property
    def name(self) -> str:
        info = self.pack.info
        return f"{info.name}@{info.version}" + (f" with {self.adapter.name}" if self.adapter else "")


class Canaries:
    """Changes the canary of `policy`; `figures` gives what is known of it now."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        manager: Manager,
        figures: Callable[[], CanaryStatus | None],
    ) -> None:
        self._config, self._policy, self._manager = config, policy, manager
        self._figures = figures

    def refuse_other_changes(self, what: str) -> None:
        """Raise RequestError while a canary runs: what it is compared with must not change."""
        if (trial := self._policy.residents.trial) is not None:
            raise RequestError(
                "conflict",
                f"a canary runs ({trial.resident}), and {what} would change what it is compared with: first "
                "`thorpolicy canary stop`, or `canary promote`",
            )

    def change(self, change: CanaryChange, by: Caller) -> dict[str, Json]:
        """Make a change that a caller asked for. Raises ThorPolicyError."""
        if change.change == "start":
            return self._start(change, by)
        trial = self._policy.residents.trial
        if trial is None:
            raise RequestError("conflict", "no canary runs: start one with `thorpolicy canary start`")
        if change.change == "share":
            share = change.share or trial.canary.share
            self._manager.run_on_engine(partial(self._resizing, share=share, by=by))
        elif change.change == "stop":
            self._end(trial.canary.id, "stopped", by=by)
        else:
            self._promote(trial, by)
        return {"canary": {"id": trial.canary.id, "pack": to_builtins(trial.resident.pack.info)}}

    def roll_back(self, canary_id: str, breach: Breach) -> None:
        """End a canary because of these figures; one that has ended meanwhile stays as it is."""
        self._end(canary_id, "rolled_back", breach=breach)

    def resume(self) -> None:
        """Go on with the canary that ran when the daemon ended; end it if that is impossible."""
        with Reader(self._config.journal_path) as reader, reader.snapshot() as connection:
            known = canary_queries.newest(connection)
        if known is None or known.cause is not None:
            return
        canary = known.canary
        try:
            opened = self._open_again(canary)
            self._know_calibration(opened)
            self._manager.run_on_engine(partial(self._resuming, canary=canary, opened=opened))
            log.info("the canary %s goes on with a share of %g", opened.name, canary.share)
        except ThorPolicyError as error:
            reason = str(error)[:1_000]
            log.error("the canary %s cannot go on, so it ends: %s", canary.pack.name, logs.Hidden(reason))
            event = events.canary_ended(canary.id, "failed", time.time(), reason=reason)
            self._manager.run_on_engine(partial(self._noting, event=event))

    # ------------------------------------------------------------ start

    def _start(self, change: CanaryChange, by: Caller) -> dict[str, Json]:
        self.refuse_other_changes("another one")
        opened = [self._open(candidate) for candidate in change.candidates]
        for each in opened:
            self._check(each)
        chosen: int = 0
        why: str | None = None
        merits: tuple[Merit, ...] = ()
        if change.choose:
            chosen, why, merits = self._choose(opened, change.terms)
        candidate = opened[chosen]
        self._know_calibration(candidate)
        starting = partial(
            self._starting,
            opened=candidate,
            share=change.share or 0.0,
            terms=change.terms,
            by=by,
            choice=[to_builtins(each) for each in merits],
        )
        canary = self._manager.run_on_engine(starting)
        log.warning("the canary %s decides for a share of %g", candidate.name, canary.share)
        done: dict[str, Json] = {"id": canary.id, "pack": to_builtins(canary.pack), "share": canary.share}
        if why is not None:
            done["why"] = why
        return {"canary": done}

    def _open(self, candidate: Candidate) -> _Opened:
        """The files of a candidate. Raises PackError, CatalogError."""
        residents = self._policy.residents
        pack = residents.active.pack
        if candidate.pack is not None:
            known = self._manager.resident_pack(candidate.pack)
            pack = known or open_pack(candidate.pack, self._config.pack_keys)
        if candidate.adapter is None or pack.rules_only:
            return _Opened(pack, residents.adapter_for(pack), None, None)
        file = find_adapter(candidate.adapter, candidate.scale, self._config, self._policy.engine.model.name)
        return _Opened(pack, file.adapter if file else None, file, candidate.adapter)

    def _know_calibration(self, opened: _Opened) -> None:
        model = structs.replace(self._policy.engine.model, adapter=opened.adapter)
        self._manager.know_calibration(opened.pack, model)

    def _check(self, opened: _Opened) -> None:
        """Raise RequestError if this cannot be on trial."""
        residents = self._policy.residents
        if opened.key == residents.active.key:
            raise RequestError("conflict", f"{opened.name} is active: name another pack or adapter")
        if residents.shadow is not None and opened.key == residents.shadow.key:
            raise RequestError(
                "conflict", f"{opened.name} is the shadow: first `thorpolicy packs shadow none`"
            )
        if problems := misfits(residents.active.pack, opened.pack):
            raise RequestError(
                "conflict",
                f"{opened.name} cannot be on trial against {residents.active}: {'; '.join(problems)}",
            )

    def _choose(self, opened: list[_Opened], terms: Terms) -> tuple[int, str, tuple[Merit, ...]]:
        """The candidate with the best record, why, and the records. Raises RequestError."""
        active = self._policy.residents.active
        with Reader(self._config.journal_path) as reader, reader.snapshot() as connection:
            records = canary_queries.performance(connection)
        one_pack = all(each.pack.info == active.pack.info for each in opened)
        merits = [self._merit(each.name, each.pack, each.adapter, records, one_pack) for each in opened]
        ours = self._merit("the active pack", active.pack, active.model.adapter, records, one_pack)
        place, why = choose(merits, ours, least=terms.least)
        return place, why, (*merits, ours)

    def _merit(
        self, name: str, pack: Pack, adapter: Adapter | None, records: list[Record], one_pack: bool
    ) -> Merit:
        """The record of a pack on the weights with this adapter.

        What rules decided alone counts too, unless all candidates are of `one_pack`: then it says nothing.
        """
        model = structs.replace(self._policy.engine.model, adapter=adapter)
        weights = f"{model.quantisation}+{model.identity[:12]}"
        counted = [
            record
            for record in records
            if record.pack == version_of(pack.info)
            and (record.model == weights or (record.model is None and not one_pack))
        ]
        return merit(name, sum(each.hits for each in counted), sum(each.of for each in counted))

    def _resident(self, policy: Policy, opened: _Opened) -> Steps[Resident]:
        """Engine thread: the candidate, loaded if it is not resident."""
        if opened.file is not None:
            yield
            opened.file.adopt(policy.engine)
        resident = policy.residents.by_key(opened.key)
        if resident is None:
            self._manager.check_room(policy)
            resident = yield from policy.loading(opened.pack, opened.adapter, time.time())
            self._manager.record(events.pack_loaded(opened.pack.info, time.time()))
        return resident

    def _starting(
        self,
        policy: Policy,
        opened: _Opened,
        share: float,
        terms: Terms,
        by: Caller,
        choice: list[dict[str, Json]],
    ) -> Steps[Canary]:
        """Engine thread: let the candidate decide."""
        resident = yield from self._resident(policy, opened)
        active = policy.residents.active
        canary = Canary(
            id=new_id(),
            salt=secrets.token_hex(SALT_BYTES),
            share=share,
            pack=resident.pack.info,
            path=str(resident.pack.path),
            weights=resident.model.identity,
            against=active.pack.info,
            against_weights=active.model.identity,
            adapter=resident.model.adapter,
            adapter_place=opened.place,
            terms=terms,
        )
        policy.set_residents(policy.residents.with_trial(OnTrial(canary, resident)))
        self._manager.record(events.canary_started(canary, time.time(), by=by, choice=choice))
        return canary

    def _resizing(self, policy: Policy, share: float, by: Caller) -> Steps[None]:
        yield
        if (trial := policy.residents.trial) is not None:
            resized = OnTrial(structs.replace(trial.canary, share=share), trial.resident)
            policy.set_residents(policy.residents.with_trial(resized))
            self._manager.record(events.canary_resized(trial.canary.id, share, time.time(), by=by))

    # ------------------------------------------------------------ end

    def _promote(self, trial: OnTrial, by: Caller) -> None:
        least, figures = trial.canary.terms.least, self._figures()
        decisions = figures.canary.decisions if figures and figures.id == trial.canary.id else 0
        if decisions < least:
            raise RequestError(
                "conflict",
                f"the candidate has made {decisions} decisions, and {least} are the fewest that are judged: "
                "wait, or raise the share; `thorpolicy canary stop` and `packs activate` need no decisions",
            )
        adapter = trial.resident.model.adapter
        self._end(trial.canary.id, "promoted", by=by)
        if not trial.resident.pack.rules_only:
            for resident in self._policy.residents:
                model = structs.replace(resident.model, adapter=adapter)
                self._manager.know_calibration(resident.pack, model)
            self._manager.load_all_under(adapter)

    def _end(
        self, canary_id: str, cause: Cause, *, by: Caller | None = None, breach: Breach | None = None
    ) -> None:
        ending = partial(self._ending, canary_id=canary_id, cause=cause, by=by, breach=breach)
        for resident in self._manager.run_on_engine(ending):
            self._manager.retire(resident)

    def _ending(
        self, policy: Policy, canary_id: str, cause: Cause, by: Caller | None, breach: Breach | None
    ) -> Steps[list[Resident]]:
        """Engine thread: end a canary; returns the packs that are not resident any more."""
        yield
        before, at = policy.residents, time.time()
        if before.trial is None or before.trial.canary.id != canary_id:
            return []
        promoted = cause == "promoted"
        after = before.with_trial_active() if promoted else before.with_trial(None)
        policy.set_residents(after)
        self._manager.record(events.canary_ended(canary_id, cause, at, by=by, breach=breach))
        if promoted:
            new, old = after.active, before.active
            if new.pack.info != old.pack.info:
                self._manager.record(events.pack_activated(new.pack.info, at))
            if new.model.adapter != old.model.adapter:
                self._manager.record(events.adapter_activated(new.model.adapter, new.model.sha256, at))
        return [resident for resident in before if after.by_key(resident.key) is not resident]

    # ------------------------------------------------------------ after a restart

    def _open_again(self, canary: Canary) -> _Opened:
        """The candidate of a canary that ran before. Raises ThorPolicyError if anything has changed."""
        active = self._policy.residents.active
        if (active.pack.info.sha256, active.model.identity) != (
            canary.against.sha256,
            canary.against_weights,
        ):
            then = canary.against
            raise PackError(
                f"it ran against {then.name} {then.version}, and the settings now name {active} or another "
                "model or adapter: start a new one"
            )
        scale = canary.adapter.scale if canary.adapter else 1.0
        opened = self._open(Candidate(pack=canary.path, adapter=canary.adapter_place, scale=scale))
        model = structs.replace(self._policy.engine.model, adapter=opened.adapter)
        if opened.pack.info.sha256 != canary.pack.sha256:
            raise PackError(f"{canary.path} has changed since the canary was started: start a new one")
        if model.identity != canary.weights:
            raise PackError("its model or adapter has changed since it was started: start a new one")
        self._check(opened)
        return opened

    def _resuming(self, policy: Policy, canary: Canary, opened: _Opened) -> Steps[None]:
        resident = yield from self._resident(policy, opened)
        policy.set_residents(policy.residents.with_trial(OnTrial(canary, resident)))

    def _noting(self, _policy: Policy, event: Event) -> Steps[None]:
        yield
        self._manager.record(event)
