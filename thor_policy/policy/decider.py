"""How a request becomes a decision: the rules, then the model, then what `tightening` makes of both.

Owns the decision semantics. Invariant: the outcome is never looser than the floor that the rules and a valid
approval leave, nor, for the candidate of a canary, than the floor of the active pack; every failure ends in
the strictest outcome with a reason code; one `Resident` makes the whole decision, which carries the digests
of that resident. Deciding has two parts: `assess` runs the rules, on any
thread, and `judge` asks the model where they leave the answer to it. Engine thread, except where a docstring
says "any thread". It reads only the monotonic clock, for timings and deadlines.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from thor_policy.core.decisions import (
    Adapter,
    Decision,
    Explanation,
    Floor,
    ModelInfo,
    Note,
    Scored,
    Tier,
    Timings,
    Trial,
    level_of,
)
from thor_policy.core.engine import Engine, LoadedPrefix, PromptPrefix, Steps, WrittenExplanation, all_steps
from thor_policy.core.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.core.ids import new_id
from thor_policy.core.lifting import Use
from thor_policy.core.records import Calibration
from thor_policy.core.requests import NEVER_NS, Action, Entity, Evaluation, Request
from thor_policy.core.results import Explained, Unexplained
from thor_policy.policy import reasons
from thor_policy.policy.budget import Budget, RulesStopped, StopCode
from thor_policy.policy.calibration import contextual, mean, scaled
from thor_policy.policy.canary import bounded, is_looser
from thor_policy.policy.lifting import Approvals
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Resident, Residents
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.policy.structure import names
from thor_policy.policy.tightening import DOUBT, outcome_of
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Deadline of an explanation that no reply waits for, in seconds.
EXPLAIN_LATER_S = 120
#: The note of a decision whose question had no room for the lines of its precedents.
NOT_SHOWN = "the model was not shown them: the question has no room for their lines"
#: Reason codes of decisions of a canary: the active pack's rules asked for more than the candidate's, or the
#: candidate gave no answer and the active pack decided.
ACTIVE_FLOOR, CANARY_FAILED = "active_floor", "canary_failed"
#: The evaluation of the warm-up, before the first request is served.
_WARM_UP = Evaluation(
    subject=Entity(type="service", id="thor-policy"),
    action=Action(name="warm_up"),
    resource=Entity(type="service", id="thor-policy"),
)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the rules make of a request: the floor, and the resident pack that it comes from.

    `stopped`: why the rules were stopped. `final`: the model is not asked. `use`: what an approval did for a
    request of the past. `trial`: its arm of a canary. Times are monotonic nanoseconds.
    """

    request: Request
    resident: Resident
    decision_id: str
    floor: Floor
    stopped: StopCode | None
    started_ns: int
    done_ns: int
    use: Use | None = None
    trial: Trial | None = None

    @property
    def final(self) -> bool:
        return self.floor.final

    @property
    def by_candidate(self) -> bool:
        """True if the candidate of a canary decides."""
        return self.trial is not None and self.trial.arm == "canary" and self.trial.note != "failed"


@dataclass(frozen=True, slots=True)
class Beside:
    """An engine beside that of a policy, which passes it what has a key that begins with `mark`."""

    engine: Engine
    mark: str


class Policy:
    """Decides requests by the resident packs on one engine.

    `pack` is active from the start, under `adapter` if one is given. `calibration` applies to the label
    probabilities of that pack; None: they stay uncalibrated. `rule_budget_ms` is the processor time that the
    rules of one request may take, in milliseconds; None, for replays and trials: neither it nor the deadline
    stops rules, so that no clock decides. `approvals` are those of the daemon; without them no outcome is
    lifted. `contextual`: confidence has a contextual calibration where no other is in force, but not under
    an adapter, which was trained. `on_judged` gets each decision, on the thread that made it, and must not
    block.
    """

    def __init__(
        self,
        engine: Engine,
        pack: Pack,
        *,
        adapter: Adapter | None = None,
        max_explanations: int = 64,
        max_shadows: int = 256,
        rule_budget_ms: float | None = None,
        cache: ScoreCache | None = None,
        calibration: Calibration | None = None,
        contextual: bool = False,
        approvals: Approvals | None = None,
        on_judged: Callable[[Request, Resident, Decision], None] | None = None,
    ) -> None:
        self.engine = engine
        self._on_judged = on_judged
        self._approvals = approvals
        self._max_explanations = max_explanations
        self._max_shadows = max_shadows
        self._rule_budget_ms = rule_budget_ms
        #: Scores of earlier questions, for packs whose manifest allows a cache.
        self.cache = cache if cache is not None else ScoreCache(0, 0)
        #: Whether scores without another calibration get a contextual one; a replay sets it as recorded.
        self.contextual = contextual
        first = self._of_rules_alone(pack) if pack.rules_only else all_steps(self._resident(pack, adapter))
        #: Any thread may read it; the engine thread replaces it as a whole (`set_residents`).
        self.residents = Residents(first)
        self._leaving: tuple[Resident, ...] = ()
        self._calibrations = {first.calibration_key: calibration} if calibration else {}
        self._explaining: dict[int, tuple[Pack, Decision]] = {}
        self._awaiting_shadow: deque[tuple[Request, Decision]] = deque()
        #: Requests that the shadow pack did not decide. Dropped: too many waited, or the pack was unloaded.
        #: Failed: the request did not fit the pack.
        #: Rule errors: decisions in which a fact, a rule or the risk failed. Fields missing: decisions on
        #: requests without the members that the pack requires. Doubts: decisions in which the model's label
        #: was stricter than the floor and did not count. Reasons replaced: explanations of the model that
        #: did not hold. Rules stopped: decisions whose rules met their budget or the deadline. Source failed:
        #: decisions for which a required source gave no answer. Canary failed: decisions of the active pack
        #: because the candidate of a canary gave no answer.
        self.counters = Counter(
            shadows_dropped=0,
            shadows_failed=0,
            rule_errors=0,
            rules_stopped=0,
            source_failed=0,
            fields_missing=0,
            doubts=0,
            reasons_replaced=0,
            canary_failed=0,
        )
        #: How often each expression failed, by pack and id; bounded by the expressions of the packs.
        self.failed_expressions = Counter[tuple[str, str]]()
        #: True while a change of packs waits for explanations; then they go before waiting decisions.
        self.awaits_explanations = False
        self._limit = logs.Limit()
        #: Two threads run rules: one for requests, and the engine's for the shadow pack.
        self._counting = threading.Lock()
        #: Duration of the warm-up in milliseconds; 0 before it.
        self.warm_up_ms = 0.0

    # ------------------------------------------------------------ what is resident

    def warm_up(self, at: float) -> None:
        """Run one evaluation of our own through rules, prompt and model, with the receipt time `at` (Unix).

        The model scores it even where the rules alone would decide. Nothing is recorded: a row would count
        in every statistic like a request of a client. Raises EngineError.
        """
        started_ns = time.monotonic_ns()
        self._run_warm_up(self.residents.active, at)
        self.warm_up_ms = (time.monotonic_ns() - started_ns) / 1e6

    def loading(
        self, pack: Pack, adapter: Adapter | None, at: float, beside: Beside | None = None
    ) -> Steps[Resident]:
        """Make another pack resident, in bounded steps, and run the warm-up on it; it has no role yet.

        `beside` is another engine that judges it. Raises EngineError.
        """
        if pack.rules_only:
            yield
            return self._of_rules_alone(pack)
        resident = yield from self._resident(pack, adapter, beside)
        yield
        try:
            self._run_warm_up(resident, at)
        except BaseException:
            self.engine.unload(resident.key)
            raise
        return resident

    def _resident(self, pack: Pack, adapter: Adapter | None, beside: Beside | None = None) -> Steps[Resident]:
        """Load a pack's prefix, and ask it the questions without content, one a step. Raises EngineError."""
        engine, mark = (self.engine, "") if beside is None else (beside.engine, beside.mark)
        loaded = yield from engine.loading(_prefix(pack, adapter), adapter)
        resident = Resident(pack, structs.replace(engine.model, adapter=adapter), loaded, mark)
        if not self.contextual or adapter is not None:
            return resident
        answers: list[dict[str, float]] = []
        try:
            for question in pack.content_free():
                yield
                answers.append(self.engine.score(resident.key, question, NEVER_NS).probabilities)
        except BaseException as error:
            self.engine.unload(resident.key)
            if isinstance(error, RequestError):
                message = f"the model cannot answer a question without content: {error}"
                raise EngineError(message) from error
            raise
        return replace(resident, prior=mean(answers))

    def set_residents(self, residents: Residents) -> None:
        """Use another table from the next decision on.

        A pack that is no longer in the table still decides requests that name it and were admitted before,
        until it is retired.
        """
        removed = tuple(old for old in self.residents if residents.by_key(old.key) is not old)
        self._leaving = (*self._leaving, *removed)
        self.residents = residents

    def retiring(self, resident: Resident) -> Steps[None]:
        """Unload a pack that is no longer in the table, when no explanation needs its prefix any more.

        Begin it behind the requests that were admitted while the pack was in the table.
        """
        while not resident.pack.rules_only and self.engine.needs(resident.key):
            self.awaits_explanations = True
            yield
        self.awaits_explanations = False
        self._leaving = tuple(leaving for leaving in self._leaving if leaving is not resident)
        if not resident.pack.rules_only:
            self.engine.unload(resident.key)

    def calibrate(self, calibration: Calibration, *, unless_known: bool = False) -> None:
        """Apply a calibration to every further decision by its pack and weights. Any thread.

        `unless_known`: keep a calibration that is already in force for them.
        """
        calibration_key = (calibration.pack_sha256, calibration.model_sha256)
        if unless_known:
            self._calibrations.setdefault(calibration_key, calibration)
        else:
            self._calibrations[calibration_key] = calibration

    def clear_calibrations(self) -> None:
        """Remove every calibration: all probabilities are uncalibrated from now on. Any thread."""
        self._calibrations = {}

    def temperature_of(self, resident: Resident) -> float:
        """The temperature for a resident's probabilities; 1 without a calibration. Any thread."""
        calibration = self._calibrations.get(resident.calibration_key)
        return calibration.temperature if calibration else 1.0

    def prior_of(self, resident: Resident) -> dict[str, float]:
        """The prior of the contextual calibration of a resident's scores; empty without one. Any thread."""
        if not self.contextual or resident.calibration_key in self._calibrations:
            return {}
        return resident.prior

    def _model_with(self, adapter: Adapter | None) -> ModelInfo:
        return structs.replace(self.engine.model, adapter=adapter)

    def _of_rules_alone(self, pack: Pack) -> Resident:
        """A resident that no model judges by."""
        nothing = LoadedPrefix(prefix_tokens=0, restored=False, golden_scores=0)
        return Resident(pack, self._model_with(None), nothing)

    def _run_warm_up(self, resident: Resident, at: float) -> None:
        pack = resident.pack
        names.load()
        floor = pack.book.apply(_WARM_UP, at)
        if pack.rules_only:
            return
        try:
            question = resident.question(_WARM_UP, floor)
            scored = self.engine.score(resident.key, question, NEVER_NS)
            outcome_of(pack, floor, scored.label, scored.probabilities)
        except (RequestError, EngineError) as error:
            raise EngineError(f"the model cannot answer the warm-up question: {error}") from error

    # ------------------------------------------------------------ decisions

    def decide(
        self,
        request: Request,
        *,
        stopped: StopCode | None = None,
        use: Use | None = None,
        trial: Trial | None = None,
    ) -> Decision:
        """Decide an admitted request: both parts of it, and their errors.

        For replays. `stopped`: decide it as a request whose rules were stopped for this reason. `use`: what
        an approval did for it. `trial`: what was recorded of a canary, the floor of the other pack included.
        """
        if trial is None:
            return self.judge(self.assess(request, stopped=stopped, use=use))
        resident = self._judge_of(request, self.residents)
        return self._judge(self._assess(resident, request, stopped, use, trial), None)

    def assess(
        self, request: Request, *, stopped: StopCode | None = None, use: Use | None = None
    ) -> Assessment:
        """Run the rules on an admitted request. Any thread, but one at a time.

        Where the candidate of a canary decides, the rules of the active pack are run too.
        Raises RequestError: `expired` if the deadline passed in the queue, `not_found` if the pack that it
        names is not loaded.
        """
        _check_deadline(request)
        residents = self.residents
        candidate, arm = residents.on_trial(request), residents.arm_of(request)
        member = request.member if arm is not None else None
        if member is not None and candidate is not None:
            on_trial = Trial(id=member.id, arm="canary")
            return self._assess(candidate, request, stopped, use, on_trial, against=residents.active)
        trial = None if member is None else Trial(id=member.id, arm="control")
        return self._assess(self._judge_of(request, residents), request, stopped, use, trial)

    def judge(self, assessment: Assessment) -> Decision:
        """Decide an assessed request; start its explanation if it asks for one and the model scored it.

        Where its pack or adapter was exchanged meanwhile, it is assessed again. Any thread where the
        assessment is final. Raises RequestError: `expired` if the deadline passed in the queue, `too_large`
        if the question does not fit the model's context, `not_found` if the pack that it names was unloaded.
        """
        request = assessment.request
        if not assessment.final:
            _check_deadline(request)
            if assessment.resident not in (*self.residents, *self._leaving) or self._is_over(assessment):
                assessment = self.assess(request, use=assessment.use)
        try:
            decision = self._judge(
                *(assessment, self._cache_of(assessment), self._approvals), hand_back=assessment.by_candidate
            )
        except (EngineError, RequestError) as error:
            if not assessment.by_candidate or (isinstance(error, RequestError) and error.code == "expired"):
                raise
            assessment = self._without_candidate(assessment, error)
            decision = self._judge(assessment, self._cache_of(assessment), self._approvals)
        resident, scored = assessment.resident, decision.scored
        if scored and request.explain != "none" and len(self._explaining) < self._max_explanations:
            self._begin_explanation(resident, request, decision, scored)
        residents = self.residents
        # rules were compared already, and what the cache repeats is no further evidence
        compares = assessment.by_candidate and decision.tier == "model"
        if compares or (residents.shadow is not None and resident is residents.active):
            self._remember_for_shadow(request, decision)
        if self._on_judged is not None:
            self._on_judged(request, resident, decision)
        return decision

    def _is_over(self, assessment: Assessment) -> bool:
        """True if the candidate of a canary would decide that has ended since the rules were run."""
        trial, running = assessment.trial, self.residents.trial
        return assessment.by_candidate and (running is None or trial is None or trial.id != running.canary.id)

    def _cache_of(self, assessment: Assessment) -> ScoreCache | None:
        return self.cache if assessment.resident.pack.manifest.cache else None

    def _without_candidate(self, assessment: Assessment, error: Exception) -> Assessment:
        """The request as the active pack sees it, because the candidate of the canary gave no answer."""
        request, trial = assessment.request, assessment.trial
        self.counters["canary_failed"] += 1
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            extra = logs.fields(decision_id=assessment.decision_id, unlogged=unlogged or None)
            message = "the canary %s gave no answer, so the active pack decides: %s"
            log.warning(message, assessment.resident, logs.Hidden(str(error)), extra=extra)
        failed = None if trial is None else Trial(id=trial.id, arm="canary", note="failed")
        return self._assess(self.residents.active, request, use=assessment.use, trial=failed)

    def _judge_of(self, request: Request, residents: Residents) -> Resident:
        """The pack that a request names, or whose sources were consulted for it; otherwise the active one."""
        if request.pack is not None:
            return self._pack_named(request.pack)
        if request.judge in (None, residents.active.pack.info.sha256):
            return residents.active
        loaded = (*residents, *self._leaving)
        judges = (resident for resident in loaded if resident.pack.info.sha256 == request.judge)
        return next(judges, residents.active)

    def _pack_named(self, name: str) -> Resident:
        """The pack that a request names, from the table or from those that wait to be retired."""
        try:
            return self.residents.named(name)
        except RequestError:
            for resident in self._leaving:
                if resident.matches(name):
                    return resident
            raise

    def _assess(
        self,
        resident: Resident,
        request: Request,
        stopped: StopCode | None = None,
        use: Use | None = None,
        trial: Trial | None = None,
        *,
        against: Resident | None = None,
    ) -> Assessment:
        """The floor of a pack, no looser than that of the pack `against` or of a recorded trial."""
        started_ns, decision_id = time.monotonic_ns(), new_id()
        floor, stopped = self._floor_of(resident, request, stopped)
        done_ns = time.monotonic_ns()
        bound = trial.bound if trial is not None else None
        if against is not None:  # behind the candidate's own, whose time is compared with that of others
            bound, _ = self._floor_of(against, request)
            if bound.errors:
                self._count_errors(against.pack, bound.errors, decision_id, done_ns)
        if trial is not None and bound is not None:
            floor, trial = _on_trial(floor, bound, trial, resident.pack.labels)
        return Assessment(
            request, resident, decision_id, floor, stopped, started_ns, done_ns, use=use, trial=trial
        )

    def _floor_of(
        self, resident: Resident, request: Request, stopped: StopCode | None = None
    ) -> tuple[Floor, StopCode | None]:
        """The floor of a pack's rules, and why they were stopped."""
        book, budget_ms = resident.pack.book, self._rule_budget_ms
        limit = None if budget_ms is None else Budget(budget_ms, request.deadline_ns)
        try:
            if stopped:
                raise RulesStopped(stopped)
            return (
                book.apply(
                    request.evaluation, request.received_at, limit, request.sources, request.precedents
                ),
                None,
            )
        except RulesStopped as stop:
            return book.stopped(stop.code), stop.code

    def _judge(
        self,
        assessment: Assessment,
        cache: ScoreCache | None,
        approvals: Approvals | None = None,
        *,
        hand_back: bool = False,
    ) -> Decision:
        """The decision; with `hand_back` it raises EngineError where the model gives no answer."""
        request, resident, floor = assessment.request, assessment.resident, assessment.floor
        pack, decision_id, started_ns = resident.pack, assessment.decision_id, time.monotonic_ns()
        scored: Scored | None = None
        original: str | None = None
        tier: Tier = "fallback" if assessment.stopped or floor.unavailable else "rule"
        reason_code, outcome = self._reason_code(assessment), floor.outcome
        prior, calibration = self.prior_of(resident), self._calibrations.get(resident.calibration_key)
        prior = {} if calibration else prior  # it may have come into force just now
        temperature = calibration.temperature if calibration else 1.0
        probabilities: dict[str, float] = {}
        spec, note = pack.manifest.precedents, request.precedents_note
        confidences: dict[str, float] = {}
        if not floor.final:
            try:
                scored, original, note = self._answer(assessment, cache)
                tier = "cache" if original else "model"
                probabilities = scaled(scored.probabilities, temperature)
                confidences = contextual(probabilities, prior) if prior else probabilities
                outcome, unsure = outcome_of(pack, floor, scored.label, probabilities, confidences)
                reason_code = unsure or reason_code
                self.counters["doubts"] += unsure == DOUBT
            except DeadlineExceeded:
                tier, outcome, reason_code = "fallback", pack.strictest, "deadline_exceeded"
            except EngineError as error:
                if hand_back:
                    raise
                tier, outcome, reason_code = "fallback", pack.strictest, "engine_failed"
                if (unlogged := self._limit.admit(started_ns)) is not None:
                    extra = logs.fields(decision_id=decision_id, unlogged=unlogged or None)
                    log.warning("the model gave no answer: %s", error, extra=extra)
        unseen = note == NOT_SHOWN and spec is not None and not spec.rules  # nothing rests on them
        lifted = pack.lifting.apply(
            outcome,
            request.evaluation,
            who=request.caller.who,
            ticket=request.ticket,
            pack=pack.info,
            approvals=approvals,
            recorded=assessment.use,
        )
        if lifted.use is not None and lifted.use.code is not None:
            reason_code = reason_code or lifted.use.code
        rules_ns, before_ns = assessment.done_ns - assessment.started_ns, started_ns - request.received_ns
        return Decision(
            id=decision_id,
            at=request.received_at,
            evaluation=request.evaluation,
            caller=request.caller,
            outcome=lifted.outcome,
            allow=lifted.allow,
            tier=tier,
            floor=floor,
            risk=floor.risk,
            pack=pack.info,
            model=resident.model if scored else None,
            reason_code=reason_code,
            label=scored.label if scored else None,
            confidence=confidences[outcome] if scored else None,
            probabilities=probabilities,
            scored=scored,
            explanation=None if scored else _without_model(floor, tier, outcome),
            obligations=pack.obligations[lifted.outcome],
            annotations=request.annotations,
            timings=Timings(
                queue_ms=(before_ns - rules_ns) / 1e6,
                rules_ms=rules_ns / 1e6,
                score_ms=scored.score_ms if scored and not original else 0.0,
            ),
            original=original,
            temperature=temperature if scored else 1.0,
            confidence_level=level_of(confidences.get(outcome), calibrated=calibration is not None),
            idempotency=request.idempotency,
            sources=request.sources,
            precedents=() if spec is None or unseen else request.precedents,
            precedents_note=note if spec is not None else None,
            offer=lifted.offer,
            use=lifted.use,
            stepped_up=lifted.stepped_up,
            prior=prior if scored else {},
            trial=assessment.trial,
        )

    def _reason_code(self, assessment: Assessment) -> str | None:
        """Why the rules could not say all that they should; counted and logged."""
        floor, pack = assessment.floor, assessment.resident.pack
        with self._counting:
            if assessment.stopped:
                self.counters["rules_stopped"] += 1
                if (unlogged := self._limit.admit(assessment.done_ns)) is not None:
                    extra = logs.fields(decision_id=assessment.decision_id, unlogged=unlogged or None)
                    log.warning("%s", floor.because, extra=extra)
                return assessment.stopped
            if floor.unavailable:
                self.counters["source_failed"] += 1
                return "source_failed"
            if floor.missing:
                self.counters["fields_missing"] += 1
                return "fields_missing"
            if floor.errors:
                self._count_errors(pack, floor.errors, assessment.decision_id, assessment.done_ns)
                return "rule_error"
            if (trial := assessment.trial) is not None and trial.note == "failed":
                return CANARY_FAILED
            return ACTIVE_FLOOR if trial is not None and trial.bound is not None else None

    def failures_of(self, pack_name: str) -> dict[str, int]:
        """How often each expression of the packs of this name failed. Any thread."""
        return {
            name: count for (pack, name), count in dict(self.failed_expressions).items() if pack == pack_name
        }

    def _count_errors(self, pack: Pack, errors: Mapping[str, str], decision_id: str, now_ns: int) -> None:
        self.counters["rule_errors"] += 1
        self.failed_expressions.update((pack.info.name, name) for name in errors)
        if (unlogged := self._limit.admit(now_ns)) is not None:
            extra = logs.fields(decision_id=decision_id, unlogged=unlogged or None)
            reasons = "; ".join(f"{name}: {message}" for name, message in errors.items())
            named, failed = f"{pack.info.name} {pack.info.version}", ", ".join(errors)
            why = logs.Hidden(reasons[:500])
            log.error("expressions of the pack %s failed: %s: %s", named, failed[:500], why, extra=extra)

    # ------------------------------------------------------------ the shadow

    @property
    def shadows_waiting(self) -> int:
        """Requests that wait for the shadow pack. Any thread."""
        return len(self._awaiting_shadow)

    def decide_shadow(self) -> tuple[Decision, Decision] | None:
        """Decide the oldest waiting request by the shadow pack: the decision served, and the shadow's.

        One that the candidate of a canary decided is decided by the active pack. None if that is impossible:
        the shadow pack was unloaded, the canary ended, or the request is too long.
        """
        request, served = self._awaiting_shadow.popleft()
        residents = self.residents
        resident = residents.shadow
        if served.trial is not None and served.trial.arm == "canary":
            resident = residents.active if residents.on_trial(request) is not None else None
        if resident is None:
            with self._counting:
                self.counters["shadows_dropped"] += 1
            return None
        try:
            # without the cache: a cached score names the decision that first got it; a shadow's is not served
            lasting = structs.replace(request, deadline_ns=NEVER_NS)
            return served, self._judge(self._assess(resident, lasting, use=served.use), None)
        except RequestError:
            self.counters["shadows_failed"] += 1
            return None

    def _remember_for_shadow(self, request: Request, decision: Decision) -> None:
        with self._counting:
            if len(self._awaiting_shadow) >= self._max_shadows:
                self.counters["shadows_dropped"] += 1
            else:
                self._awaiting_shadow.append((request, decision))

    # ------------------------------------------------------------ explanations

    def is_explaining(self, ticket: int) -> bool:
        """True while an explanation for `ticket` runs or waits."""
        return ticket in self._explaining

    def step(self) -> list[Explained | Unexplained]:
        """Advance the running explanations by one decode; return those that ended."""
        return [self._result_of(written) for written in self.engine.step()]

    def abandon(self) -> list[Unexplained]:
        """Give up every running explanation, because the engine failed."""
        self.engine.give_up()
        given_up = [Unexplained(ticket) for ticket in self._explaining]
        self._explaining.clear()
        return given_up

    def _answer(
        self, assessment: Assessment, cache: ScoreCache | None
    ) -> tuple[Scored, str | None, str | None]:
        """The score, as `_score` returns it, and the note about the precedents.

        A question that is too long only with the lines of its precedents is put without them.
        """
        request, resident = assessment.request, assessment.resident
        note = request.precedents_note
        shown = () if note == NOT_SHOWN else request.precedents  # a replay shows what was shown then
        while True:
            try:
                question = resident.question(request.evaluation, assessment.floor, shown)
                scored = self._score(resident, question, request.deadline_ns, assessment.decision_id, cache)
            except RequestError as error:
                if error.code != "too_large" or not shown:
                    raise
                shown, note = (), NOT_SHOWN
            else:
                return *scored, note

    def _score(
        self, resident: Resident, question: str, deadline_ns: int, decision_id: str, cache: ScoreCache | None
    ) -> tuple[Scored, str | None]:
        """The score of a question; from the cache, with the id of the decision that first got it."""
        if cache is None:
            return self.engine.score(resident.key, question, deadline_ns), None
        key = (*resident.calibration_key, resident.model.build, question)
        now_ns = time.monotonic_ns()
        if cached := cache.get(key, now_ns):
            original_id, scored = cached
            return scored, original_id
        scored = self.engine.score(resident.key, question, deadline_ns)
        cache.put(key, decision_id, scored, now_ns)
        return scored, None

    def _begin_explanation(
        self, resident: Resident, request: Request, decision: Decision, scored: Scored
    ) -> None:
        pack = resident.pack
        steps = pack.explanation_steps(decision.judged, decision.floor, reasons.settled(pack, decision))
        self._explaining[request.ticket] = pack, decision
        later_ns = time.monotonic_ns() + EXPLAIN_LATER_S * 10**9
        deadline_ns = request.deadline_ns if request.explain == "inline" else later_ns
        self.engine.explain(request.ticket, resident.key, scored, steps, deadline_ns)

    def _result_of(self, written: WrittenExplanation) -> Explained | Unexplained:
        pack, decision = self._explaining.pop(written.ticket, (None, None))
        if pack is None or decision is None or (written.truncated and not written.text):
            return Unexplained(written.ticket)
        explanation = reasons.explanation(pack, decision, written)
        self.counters["reasons_replaced"] += explanation.source == "replaced"
        return Explained(written.ticket, decision.id, explanation, decision.caller.who)


def _on_trial(own: Floor, bound: Floor, trial: Trial, labels: Sequence[str]) -> tuple[Floor, Trial]:
    """The floor of a candidate's decision, and what is recorded of its bound."""
    note: Note | None = "looser" if is_looser(own, bound, labels) else None
    floor = bounded(own, bound, labels)
    if floor is own:  # the bound asks for no more
        return own, structs.replace(trial, note=note, bound=None)
    return floor, structs.replace(trial, note=note, own=own.outcome, bound=bound)


def _check_deadline(request: Request) -> None:
    if time.monotonic_ns() >= request.deadline_ns:
        raise RequestError("expired", "the deadline passed while the request waited for the model")


def _prefix(pack: Pack, adapter: Adapter | None) -> PromptPrefix:
    """The prompt before every question, in the rendering that the adapter was trained on."""
    return pack.brief_prefix if adapter and adapter.rendering == "brief" else pack.prefix


def _without_model(floor: Floor, tier: Tier, outcome: str) -> Explanation:
    """Explanation of a decision without a score: the reason that the rules state, or the failure."""
    failed = f"The model gave no answer, so the answer is {outcome}."
    return Explanation(
        classification=floor.classification,
        clauses=floor.clauses,
        reasoning=floor.because or "" if tier == "rule" or floor.final else failed,
        text="",
        source="rule" if tier == "rule" else "failure",
    )
