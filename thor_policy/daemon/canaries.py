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
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from msgspec import structs, to_builtins

from thor_policy import catalog
from thor_policy.catalog import ModelFile
from thor_policy.config import Config
from thor_policy.core.canary import SALT_BYTES, Breach, Canary, Cause, Terms
from thor_policy.core.decisions import Adapter, ModelInfo, resident_key
from thor_policy.core.engine import Engine, Steps
from thor_policy.core.errors import EngineError, PackError, RequestError, ThorPolicyError
from thor_policy.core.ids import new_id
from thor_policy.core.records import CanaryChange, Candidate
from thor_policy.core.requests import Caller, Json
from thor_policy.core.status import CanaryStatus
from thor_policy.daemon.canary_choice import Merit, choose, merit
from thor_policy.daemon.loading import OpenAdapter, find_adapter, open_pack
from thor_policy.engine.engines import BESIDE, Engines
from thor_policy.journal import canary_queries, events
from thor_policy.journal.canary_queries import Record
from thor_policy.journal.events import Event
from thor_policy.journal.projections import version_of
from thor_policy.journal.reader import Reader
from thor_policy.policy.canary import misfits
from thor_policy.policy.decider import Beside, Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import DIGEST_CHARS, OnTrial, Resident
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
    """A candidate whose files can be used.

    `adapter` is the one that it is judged under, and `model` the file of its model, if it is not that of the
    daemon. `place` is what the candidate's parts were called.
    """

    pack: Pack
    adapter: Adapter | None
    file: OpenAdapter | None
    model: ModelFile | None
    place: Candidate

    @property
    def key(self) -> str:
        mark = BESIDE if self.model is not None else ""
        return mark + resident_key(self.pack.info.sha256, self.adapter)

    @property
    def name(self) -> str:
        info = self.pack.info
        parts = [part.name for part in (self.model, self.adapter) if part is not None]
        return f"{info.name}@{info.version}" + (f" with {' and '.join(parts)}" if parts else "")


class Canaries:
    """Changes the canary of `policy`; `figures` gives what is known of it now.

    `load_engine` loads the model of a candidate, which decides beside that of the daemon.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        manager: Manager,
        figures: Callable[[], CanaryStatus | None],
        load_engine: Callable[[Config], Engine],
    ) -> None:
        self._config, self._policy, self._manager = config, policy, manager
        self._figures, self._load_engine = figures, load_engine

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
            if self._is_active(canary):
                self._note(events.canary_ended(canary.id, "promoted", time.time()))
                return
            opened = self._open_again(canary)
            self._know_calibration(opened)
            beside = self._load_model(opened)
            resuming = partial(self._resuming, canary=canary, opened=opened, beside=beside)
            self._manager.run_on_engine(resuming)
            log.info("the canary %s goes on with a share of %g", opened.name, canary.share)
        except (ThorPolicyError, OSError) as error:
            reason = str(error)[:1_000]
            log.error("the canary %s cannot go on, so it ends: %s", canary.pack.name, logs.Hidden(reason))
            self._note(events.canary_ended(canary.id, "failed", time.time(), reason=reason))

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
            beside=self._load_model(candidate),
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
        model = None
        if candidate.model is not None:
            if pack.rules_only:
                raise PackError(f"{pack.info.name} is a pack of rules alone, which no model judges")
            model = catalog.resolve(candidate.model, self._config.models_dir)
        if pack.rules_only or (candidate.adapter is None and model is None):
            return _Opened(pack, residents.adapter_for(pack), None, None, candidate)
        name = model.name if model else self._policy.engine.model.name
        file = find_adapter(candidate.adapter or "", candidate.scale, self._config, name)
        return _Opened(pack, file.adapter if file else None, file, model, candidate)

    def _load_model(self, opened: _Opened) -> Beside | None:
        """The engine with the candidate's own model; None if it has none. Raises EngineError."""
        if opened.model is None:
            return None
        config = replace(self._config, model=str(opened.model.path), engine_url="", resident_packs=1)
        engine = self._load_engine(config)
        if engine.model.sha256 != opened.model.sha256:
            engine.close()
            raise PackError(f"{opened.model.path} has changed while it was loaded: start the canary again")
        return Beside(engine, BESIDE)

    def _judge_of(self, opened: _Opened) -> ModelInfo:
        """The model that judges a candidate; of one that is not loaded only the identity is known."""
        model = self._policy.engine.model
        if opened.model is not None:
            model = structs.replace(model, name=opened.model.name, sha256=opened.model.sha256)
        return structs.replace(model, adapter=opened.adapter)

    def _know_calibration(self, opened: _Opened) -> None:
        self._manager.know_calibration(opened.pack, self._judge_of(opened))

    def _check(self, opened: _Opened) -> None:
        """Raise RequestError if this cannot be on trial."""
        residents = self._policy.residents
        if opened.model is not None and opened.model.sha256 == self._policy.engine.model.sha256:
            raise RequestError("conflict", f"{opened.model.name} is the daemon's own model: leave it out")
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
        merits = [
            self._merit(each.name, each.pack, self._judge_of(each), records, one_pack) for each in opened
        ]
        ours = self._merit("the active pack", active.pack, active.model, records, one_pack)
        place, why = choose(merits, ours, least=terms.least)
        return place, why, (*merits, ours)

    def _merit(self, name: str, pack: Pack, model: ModelInfo, records: list[Record], one_pack: bool) -> Merit:
        """The record of a pack on the weights of this model.

        What rules decided alone counts too, unless all candidates are of `one_pack`: then it says nothing.
        """
        weights = f"+{model.identity[:DIGEST_CHARS]}"
        counted = [
            record
            for record in records
            if record.pack == version_of(pack.info)
            and (record.model.endswith(weights) if record.model is not None else not one_pack)
        ]
        return merit(name, sum(each.hits for each in counted), sum(each.of for each in counted))

    def _resident(self, policy: Policy, opened: _Opened, beside: Beside | None) -> Steps[Resident]:
        """Engine thread: the candidate, loaded if it is not resident. What fails is closed."""
        try:
            if beside is not None:
                self._engines.take(beside.engine)
            if opened.file is not None:
                yield
                opened.file.adopt(beside.engine if beside is not None else policy.engine)
            resident = policy.residents.by_key(opened.key)
            if resident is None:
                self._manager.check_room(policy)
                resident = yield from policy.loading(opened.pack, opened.adapter, time.time(), beside)
                self._manager.record(events.pack_loaded(opened.pack.info, time.time()))
        except BaseException:
            if beside is not None:
                self._engines.let_go()
            raise
        if beside is not None:
            self._manager.record(events.model_loaded(beside.engine.model, time.time()))
        return resident

    def _starting(
        self,
        policy: Policy,
        opened: _Opened,
        beside: Beside | None,
        share: float,
        terms: Terms,
        by: Caller,
        choice: list[dict[str, Json]],
    ) -> Steps[Canary]:
        """Engine thread: let the candidate decide."""
        resident = yield from self._resident(policy, opened, beside)
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
            adapter_place=opened.place.adapter,
            model=opened.model.name if opened.model else None,
            model_place=str(opened.model.path) if opened.model else None,
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
        if (place := trial.canary.model_place) is not None:
            raise RequestError(
                "conflict",
                f'a daemon has one model from start to end: set model = "{place}" in its settings, with the '
                "candidate's pack and adapter, and restart it; the canary then ends as promoted",
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
            if resident.mark:
                self._manager.run_on_engine(self._closing)

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

    def _closing(self, policy: Policy) -> Steps[None]:
        """Engine thread: close the model of a candidate, when it explains nothing any more."""
        while self._engines.explaining_beside:
            policy.awaits_explanations = True
            yield
        policy.awaits_explanations = False
        self._engines.let_go()
        yield

    @property
    def _engines(self) -> Engines:
        engine = self._policy.engine
        if not isinstance(engine, Engines):
            raise EngineError("this daemon has no place for another model")
        return engine

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
        opened = self._open(
            Candidate(pack=canary.path, model=canary.model_place, adapter=canary.adapter_place, scale=scale)
        )
        if opened.pack.info.sha256 != canary.pack.sha256:
            raise PackError(f"{canary.path} has changed since the canary was started: start a new one")
        if self._judge_of(opened).identity != canary.weights:
            raise PackError("its model or adapter has changed since it was started: start a new one")
        self._check(opened)
        return opened

    def _is_active(self, canary: Canary) -> bool:
        """True if the settings made the candidate active."""
        active = self._policy.residents.active
        return (active.pack.info.sha256, active.model.identity) == (canary.pack.sha256, canary.weights)

    def _resuming(
        self, policy: Policy, canary: Canary, opened: _Opened, beside: Beside | None
    ) -> Steps[None]:
        resident = yield from self._resident(policy, opened, beside)
        policy.set_residents(policy.residents.with_trial(OnTrial(canary, resident)))

    def _note(self, event: Event) -> None:
        self._manager.run_on_engine(partial(self._noting, event=event))

    def _noting(self, _policy: Policy, event: Event) -> Steps[None]:
        yield
        self._manager.record(event)
