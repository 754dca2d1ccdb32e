"""How a question becomes a decision: rules, then the model, then the strictest of all.

Owns the decision semantics. Invariant: the outcome is never looser than the floor, every failure ends in
the strictest outcome with a reason, and a decision is made by one `Resident` from beginning to end, whose
digests it carries. Called by the engine thread only, but for what says otherwise; it reads no clock but
the monotonic one, for timings and deadlines.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from msgspec import structs

from thor_policy.core.decisions import Adapter, Decision, Explanation, Floor, ModelInfo, Scored, Tier, Timings
from thor_policy.core.engine import Engine, PromptPrefix, Steps, WrittenExplanation
from thor_policy.core.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.core.ids import new_id
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Action, Entity, Evaluation, Request
from thor_policy.core.results import Explained, Unexplained
from thor_policy.policy.calibration import scaled
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Resident, Residents
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: How long an explanation that nobody waits for may take, in seconds.
EXPLAIN_LATER_S = 120
#: What is asked before anything is served.
_WARM_UP = Evaluation(
    subject=Entity(type="service", id="thor-policy"),
    action=Action(name="warm_up"),
    resource=Entity(type="service", id="thor-policy"),
)
#: A deadline that does not come, in monotonic nanoseconds.
_NEVER_NS = 2**63 - 1


class Policy:
    """Packs judged by one engine: `pack` decides from the start, under `adapter` if one is given.

    `calibration` says how sure a label's probability is by that pack; None: as sure as it sounds.
    """

    def __init__(
        self,
        engine: Engine,
        pack: Pack,
        *,
        adapter: Adapter | None = None,
        max_explanations: int = 64,
        max_shadows: int = 256,
        cache: ScoreCache | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.engine = engine
        self._max_explanations = max_explanations
        self._max_shadows = max_shadows
        #: Scores of questions asked before, of those packs that want them kept.
        self.cache = cache if cache is not None else ScoreCache(0, 0)
        first = Resident(pack, self._model_with(adapter), engine.load(_prefix(pack, adapter), adapter))
        #: Any thread may read it; it is replaced as a whole, by the engine thread (`change_to`).
        self.residents = Residents(first)
        self._leaving: tuple[Resident, ...] = ()
        self._calibrations = {first.judged: calibration} if calibration else {}
        self._explaining: dict[int, Decision] = {}
        self._unshadowed: deque[tuple[Request, Decision]] = deque()
        #: Questions that the shadow pack was not asked: too many waited, or it was gone; it could not read.
        self.shadows_dropped = self.shadows_failed = 0
        #: True while a change cannot go on before explanations do, however many decisions wait.
        self.awaits_explanations = False
        self._limit = logs.Limit()
        #: How long the warm-up took, in milliseconds; 0 before it.
        self.warm_up_ms = 0.0

    # ------------------------------------------------------------ what is resident

    def warm_up(self, at: float) -> None:
        """Take a question of our own through rules, prompt and model, as at Unix time `at`.

        The model is asked even where the rules alone would answer. Nothing comes out of it and nothing is
        recorded: nobody asked, and a row would count in every statistic as if somebody had. Raises
        EngineError.
        """
        started_ns = time.monotonic_ns()
        self._try(self.residents.active, at)
        self.warm_up_ms = (time.monotonic_ns() - started_ns) / 1e6

    def loading(self, pack: Pack, adapter: Adapter | None, at: float) -> Steps[Resident]:
        """Make another pack resident, in bounded steps, and put our own question to it; it has no role yet.

        Raises EngineError.
        """
        loaded = yield from self.engine.loading(_prefix(pack, adapter), adapter)
        resident = Resident(pack, self._model_with(adapter), loaded)
        yield
        try:
            self._try(resident, at)
        except BaseException:
            self.engine.unload(resident.key)
            raise
        return resident

    def change_to(self, residents: Residents) -> None:
        """Put another table in force, for the next decision.

        A pack that is not in it any more answers requests that name it and were admitted before, until it is
        retired.
        """
        gone = tuple(one for one in self.residents if residents.holding(one.key) is not one)
        self._leaving = (*self._leaving, *gone)
        self.residents = residents

    def retiring(self, resident: Resident) -> Steps[None]:
        """Free what a pack that is in the table no more holds, once no explanation waits that begins with it.

        Begin it behind the requests that were admitted while the pack was there.
        """
        while self.engine.needs(resident.key):
            self.awaits_explanations = True
            yield
        self.awaits_explanations = False
        self._leaving = tuple(one for one in self._leaving if one is not resident)
        self.engine.unload(resident.key)

    def calibrate(self, calibration: Calibration, *, unless_known: bool = False) -> None:
        """Put a calibration in force, for every decision from now on by its pack and weights. Any thread."""
        judged = (calibration.pack_sha256, calibration.model_sha256)
        if unless_known:
            self._calibrations.setdefault(judged, calibration)
        else:
            self._calibrations[judged] = calibration

    def forget_calibrations(self) -> None:
        """Put none in force any more: every probability counts as it is. Any thread."""
        self._calibrations = {}

    def temperature_of(self, resident: Resident) -> float:
        """The temperature of a resident's confidence; 1 where no calibration is in force. Any thread."""
        calibration = self._calibrations.get(resident.judged)
        return calibration.temperature if calibration else 1.0

    def _model_with(self, adapter: Adapter | None) -> ModelInfo:
        return structs.replace(self.engine.model, adapter=adapter)

    def _try(self, resident: Resident, at: float) -> None:
        pack = resident.pack
        floor = pack.book.apply(_WARM_UP, at)
        try:
            question = resident.question(_WARM_UP, floor)
            scored = self.engine.score(resident.key, question, _NEVER_NS)
            _strictest(pack, floor, scored.label, scored.probabilities)
        except (RequestError, EngineError) as error:
            raise EngineError(f"the model cannot answer a question of three short fields: {error}") from error

    # ------------------------------------------------------------ decisions

    def decide(self, request: Request) -> Decision:
        """The decision on an admitted request; starts its explanation if one is wanted and needed.

        Raises RequestError `expired` when the deadline passed in the queue, `too_large` when the question
        does not fit the model's context, `not_found` when no pack is there that it may mean.
        """
        if time.monotonic_ns() >= request.deadline_ns:
            raise RequestError("expired", "the deadline passed while the request waited for the model")
        residents = self.residents
        resident = residents.active if request.pack is None else self._named(request.pack)
        cache = self.cache if resident.pack.manifest.cache else None
        decision = self._decide(resident, request, cache)
        scored = decision.scored
        if scored and request.explain != "none" and len(self._explaining) < self._max_explanations:
            self._begin_explanation(resident, request, decision, scored)
        if residents.shadow is not None and resident is residents.active:
            self._remember_for_shadow(request, decision)
        return decision

    def _named(self, told: str) -> Resident:
        """The pack that a request means, be it on its way out."""
        try:
            return self.residents.named(told)
        except RequestError:
            for resident in self._leaving:
                if resident.answers_to(told):
                    return resident
            raise

    def _decide(self, resident: Resident, request: Request, cache: ScoreCache | None) -> Decision:
        started_ns = time.monotonic_ns()
        pack = resident.pack
        floor = pack.book.apply(request.evaluation, request.received_at)
        rules_done_ns = time.monotonic_ns()
        scored: Scored | None = None
        reason_code = original = None
        tier: Tier = "rule"
        outcome, decision_id = floor.outcome, new_id()
        temperature = self.temperature_of(resident)
        probabilities: dict[str, float] = {}
        if not floor.final:
            try:
                question = resident.question(request.evaluation, floor)
                scored, original = self._score(resident, question, request.deadline_ns, decision_id, cache)
                tier = "cache" if original else "model"
                probabilities = scaled(scored.probabilities, temperature)
                outcome, reason_code = _strictest(pack, floor, scored.label, probabilities)
            except DeadlineExceeded:
                tier, outcome, reason_code = "fallback", pack.strictest, "deadline_exceeded"
            except EngineError as error:
                tier, outcome, reason_code = "fallback", pack.strictest, "engine_failed"
                if (unlogged := self._limit.admit(started_ns)) is not None:
                    told = logs.fields(decision_id=decision_id, unlogged=unlogged or None)
                    log.warning("the model gave no answer: %s", error, extra=told)
        return Decision(
            id=decision_id,
            at=request.received_at,
            evaluation=request.evaluation,
            caller=request.caller,
            outcome=outcome,
            allow=outcome == pack.loosest,
            tier=tier,
            floor=floor,
            risk=floor.risk,
            pack=pack.info,
            model=resident.model if scored else None,
            reason_code=reason_code,
            label=scored.label if scored else None,
            confidence=probabilities[outcome] if scored else None,
            probabilities=probabilities,
            scored=scored,
            explanation=None if scored else _without_model(floor, tier, outcome),
            obligations=pack.obligations[outcome],
            annotations=request.annotations,
            timings=Timings(
                queue_ms=(started_ns - request.received_ns) / 1e6,
                rules_ms=(rules_done_ns - started_ns) / 1e6,
                score_ms=scored.score_ms if scored and not original else 0.0,
            ),
            original=original,
            temperature=temperature if scored else 1.0,
            idempotency=request.idempotency,
        )

    # ------------------------------------------------------------ the shadow

    @property
    def shadowing(self) -> int:
        """Questions that wait for the shadow pack. Any thread."""
        return len(self._unshadowed)

    def shadow(self) -> tuple[Decision, Decision] | None:
        """Decide the question that has waited longest by the shadow pack: what was served, and what was not.

        None if it cannot be: the pack is gone, or it is too long for it.
        """
        request, served = self._unshadowed.popleft()
        resident = self.residents.shadow
        if resident is None:
            self.shadows_dropped += 1
            return None
        try:
            # not by the cache: what it holds names the decision that first got a score, and this is none
            return served, self._decide(resident, structs.replace(request, deadline_ns=_NEVER_NS), None)
        except RequestError:
            self.shadows_failed += 1
            return None

    def _remember_for_shadow(self, request: Request, decision: Decision) -> None:
        if len(self._unshadowed) >= self._max_shadows:
            self.shadows_dropped += 1
        else:
            self._unshadowed.append((request, decision))

    # ------------------------------------------------------------ explanations

    def is_explaining(self, ticket: int) -> bool:
        """True while an explanation for `ticket` runs or waits."""
        return ticket in self._explaining

    def step(self) -> list[Explained | Unexplained]:
        """Advance the running explanations by one decode; returns those that ended."""
        return [self._ended(written) for written in self.engine.step()]

    def abandon(self) -> list[Unexplained]:
        """Give up every running explanation, for the engine failed."""
        self.engine.give_up()
        left = [Unexplained(ticket) for ticket in self._explaining]
        self._explaining.clear()
        return left

    def _score(
        self, resident: Resident, question: str, deadline_ns: int, decision_id: str, cache: ScoreCache | None
    ) -> tuple[Scored, str | None]:
        """The score of a question, and the decision that was first given it if it was asked before."""
        if cache is None:
            return self.engine.score(resident.key, question, deadline_ns), None
        key = (*resident.judged, resident.model.build, question)
        now_ns = time.monotonic_ns()
        if found := cache.get(key, now_ns):
            return found[1], found[0]
        scored = self.engine.score(resident.key, question, deadline_ns)
        cache.put(key, decision_id, scored, now_ns)
        return scored, None

    def _begin_explanation(
        self, resident: Resident, request: Request, decision: Decision, scored: Scored
    ) -> None:
        steps = resident.pack.explanation_steps(decision.outcome, decision.floor)
        self._explaining[request.ticket] = decision
        later_ns = time.monotonic_ns() + EXPLAIN_LATER_S * 10**9
        deadline_ns = request.deadline_ns if request.explain == "inline" else later_ns
        self.engine.explain(request.ticket, resident.key, scored, steps, deadline_ns)

    def _ended(self, written: WrittenExplanation) -> Explained | Unexplained:
        decision = self._explaining.pop(written.ticket, None)
        if decision is None or (written.truncated and not written.text):
            return Unexplained(written.ticket)
        floor = decision.floor
        by_rules = floor.settles(decision.outcome)
        explanation = Explanation(
            classification=next(iter(written.values.get("classification", ())), None),
            clauses=tuple(dict.fromkeys((*floor.clauses, *written.values.get("clauses", ())))),
            reasoning=(floor.because or "") if by_rules else " ".join(written.values.get("reasoning", ())),
            text=written.text,
            truncated=written.truncated,
            generated_tokens=written.generated_tokens,
            explain_ms=written.explain_ms,
        )
        return Explained(written.ticket, decision.id, explanation)


def _prefix(pack: Pack, adapter: Adapter | None) -> PromptPrefix:
    """What comes before every question, as the adapter was trained to be asked."""
    return pack.brief_prefix if adapter and adapter.rendering == "brief" else pack.prefix


def _strictest(
    pack: Pack, floor: Floor, label: str, probabilities: dict[str, float]
) -> tuple[str, str | None]:
    """Outcome and, where the model was too unsure of an allow, the reason."""
    outcome = pack.book.stricter(floor.outcome, pack.default_floor, label)
    abstain = pack.manifest.limits.abstain
    unsure = abstain and probabilities[outcome] < abstain.below.get(floor.risk, 0.0)
    if abstain and unsure and outcome == pack.loosest:
        return abstain.outcome, "low_confidence"
    return outcome, None


def _without_model(floor: Floor, tier: Tier, outcome: str) -> Explanation:
    """The reason for an answer that took no model: the rules' own words, or what failed."""
    failed = f"The model gave no answer, so the answer is {outcome}."
    return Explanation(
        classification=floor.classification,
        clauses=floor.clauses,
        reasoning=(floor.because or "") if tier == "rule" else failed,
        text="",
    )
