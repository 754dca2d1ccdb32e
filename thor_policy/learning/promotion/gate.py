"""The gate: checks that compare a candidate with the active pack.

Owns what each check evaluates. Invariant: both packs are evaluated by the same code on the same weights, each
under its own calibration; decisions that could not be compared are counted, and each request that the
candidate cannot answer is a reason against it. One thread, which also owns the engine.

    signature       one of `pack_keys` signed the candidate (only if `pack_keys` is set)
    outcomes        it has every outcome of the active pack, in the same order
    lint, leaks     no lint error; no example gives a scenario of a suite away
    suites          no scenario that the active pack passes fails, and none is newly answered too loosely
    held out        reviewed decisions that no pack shows as an example: the candidate agrees with reviewers
                    as often as the active pack, and is looser than a review only where that pack is too
    counterfactual  no past decision is loosened, unless a review asks for it or it is accepted
    invariance      no variant of a scenario is answered below the floor
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import structs

from thor_policy import __version__
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, PackInfo
from thor_policy.core.engine import Engine
from thor_policy.core.errors import PackError, RequestError
from thor_policy.core.precedents import Precedent
from thor_policy.core.records import Calibration
from thor_policy.core.requests import NEVER_NS, Caller, Evaluation, Json, Request
from thor_policy.core.results import Explained
from thor_policy.core.sources import Consulted
from thor_policy.journal import events, statistics
from thor_policy.journal.past_requests import Unasked, request_of
from thor_policy.journal.projections import version_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import similarity
from thor_policy.learning.counterfactual import Counterfactual, Redecider, Skipped
from thor_policy.learning.display import SILENT, Display
from thor_policy.learning.export import ALIKE
from thor_policy.learning.promotion.report import Check, Merit, Report, Terms
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.replies import decision_item, decode_reply, encode_reply, encode_request
from thor_policy.protocol.requests import decode_request
from thor_policy.protocol.texts import TextLimits
from thor_policy.security import signatures
from thor_policy.suites import invariance, leaks
from thor_policy.suites.comparison import compare
from thor_policy.suites.intervals import Rate, rate
from thor_policy.suites.invariance import Material, Variant
from thor_policy.suites.run_files import Judge, Run, item, worst
from thor_policy.suites.scenarios import Embedder, Suite
from thor_policy.suites.verdicts import run as run_suite

#: Decisions that are read at a time.
_PAGE = 500


# ---------------------------------------------------------------- one pack on the engine


class _LoadedPack:
    """A pack on the gate's engine: it decides requests as a daemon does, and past requests again."""

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        pack: Pack,
        adapter: Adapter | None,
        now: float,
        max_request_bytes: int,
        contextual: bool,
    ) -> None:
        self.pack, self._now, self._max_request_bytes = pack, now, max_request_bytes
        model = structs.replace(engine.model, adapter=adapter)
        row = reader.calibration(pack.info.sha256, model.identity)
        calibration = Calibration(**row) if row else None
        self._policy = Policy(engine, pack, adapter=adapter, calibration=calibration, contextual=contextual)
        self.past = Redecider(reader, engine, pack, adapter=adapter, contextual=contextual)
        self._ticket = 0

    def unload(self) -> None:
        """Free what the pack holds of the engine."""
        resident = self._policy.residents.active
        if not self.pack.rules_only:
            self._policy.engine.unload(resident.key)

    def ask(self, fields: dict[str, Json]) -> dict[str, Json]:
        """The reply to an `evaluate` request of a client, with the explanation if the request asks for one.

        Its times are 0: measured at the lowest priority beside a daemon, they would say nothing of the pack.
        Raises RequestError.
        """
        frame = encode_request("", "evaluate", fields)
        texts = TextLimits(self._max_request_bytes)  # a suite's own may have any length
        message = decode_request(frame, max_bytes=self._max_request_bytes, max_deadline_ms=1, texts=texts)
        assert isinstance(message, EvaluateRequest)  # noqa: S101  `evaluate` gives nothing else
        self._ticket += 1
        decision = self._policy.decide(
            Request(
                ticket=self._ticket,
                evaluation=message.evaluation,
                caller=Caller(transport="inproc"),
                received_at=self._now,
                received_ns=time.monotonic_ns(),
                deadline_ns=NEVER_NS,
                explain=message.explain,
                annotations=message.annotations,
                pack=message.pack,
            )
        )
        while self._policy.is_explaining(self._ticket):
            for result in self._policy.step():
                if isinstance(result, Explained):
                    decision = structs.replace(decision, explanation=result.explanation)
        fields = decision_item(decision, explained=True, commit_ms=0.0, total_ms=0.0)
        return decode_reply(encode_reply("", **fields))

    def run(
        self,
        suites: Sequence[Suite],
        judge: Judge,
        embedder: Embedder | None,
        advance: Callable[[], None],
    ) -> Run:
        """Run every scenario once, and call `advance` after each.

        Raises SuiteError if one expects an outcome that the pack lacks.
        """
        labels, name = self.pack.labels, self.pack.info.name
        results = []
        for suite in suites:
            for result in run_suite(suite, self.ask, labels=labels, quick=False, embedder=embedder):
                results.append(item(result, suite=suite.name, pack=name, labels=labels))
                advance()
        return Run(
            at=events.timestamp(self._now),
            version=__version__,
            where="the gate of promotion",
            machine="",
            selection="all scenarios",
            repeats=1,
            judges=(judge,),
            results=tuple(results),
        )


# ---------------------------------------------------------------- the gate


class Gate:
    """Compares candidates with the active pack, on an engine that the calling thread owns.

    `suites` are those for the pack's name. `shown` are the evaluations that any candidate shows as an
    example: they are left out, so that all candidates are compared on the same reviewed decisions. `announce`
    is called with a line of text before each long part; `display` shows how far it is. Raises EngineError if
    the active pack cannot be loaded.
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        active: Pack,
        *,
        adapter: Adapter | None = None,
        suites: Sequence[Suite] = (),
        shown: Sequence[Evaluation] = (),
        material: Material | None = None,
        embedder: Embedder | None = None,
        pack_keys: Sequence[str] = (),
        max_request_bytes: int = Config.max_request_bytes,
        contextual: bool = False,
        now: float,
        announce: Callable[[str], None] = lambda _: None,
        display: Display = SILENT,
    ) -> None:
        self._reader, self._engine, self._adapter = reader, engine, adapter
        self._suites, self._material, self._embedder = suites, material, embedder
        self._pack_keys, self._max_request_bytes = pack_keys, max_request_bytes
        self._contextual = contextual
        self._now, self._announce, self._display = now, announce, display
        self._model = structs.replace(engine.model, adapter=adapter)
        self._active = self._load(active)
        self._shown = [*shown, *(example.evaluation for example in active.examples)]
        self._active_run: Run | None = None

    def judge(self, candidate: Pack, terms: Terms) -> Report:
        """Make every check; those that need the model only if `outcomes` and `lint` passed.

        Raises PackError if the candidate has another name, or is the active pack itself.
        """
        info, active = candidate.info, self._active.pack.info
        if info.name != active.name:
            raise PackError(
                f"{candidate.path} is the pack {info.name}, and {active.name} is active: only a pack of the "
                "same name can be promoted; `thorpolicy packs activate` puts another one in force"
            )
        if info.sha256 == active.sha256:
            raise PackError(f"{candidate.path} is already the active pack ({info.sha256[:12]})")
        checks = [*self._signature(candidate), self._outcomes(candidate), self._lint(candidate)]
        merit = merit_of_active = None
        checks.append(self._leaks(candidate))
        if all(check.passed for check in checks if check.name in ("outcomes", "lint")):
            loaded = self._load(candidate)
            try:
                suites, passing = self._scenarios(loaded)
                held_out, agreeing = self._held_out(loaded, terms)
                checks += [suites, held_out, self._counterfactual(loaded, terms)]
                checks.append(self._invariance(loaded, terms))
            finally:
                loaded.unload()
            merit, merit_of_active = (
                Merit(pack=pack, held_out=agreeing[side], suites=passing[side], served=self._served(pack))
                for side, pack in enumerate((info, active))
            )
        return Report(
            at=events.timestamp(self._now),
            version=__version__,
            pack=info,
            against=active,
            model=self._model.name,
            model_sha256=self._model.identity,
            terms=terms,
            checks=tuple(checks),
            merit=merit,
            merit_of_active=merit_of_active,
        )

    def _load(self, pack: Pack) -> _LoadedPack:
        return _LoadedPack(
            self._reader,
            self._engine,
            pack,
            self._adapter,
            self._now,
            self._max_request_bytes,
            self._contextual,
        )

    # ------------------------------------------------------------ checks of the files

    def _signature(self, candidate: Pack) -> list[Check]:
        if not self._pack_keys:
            return []
        limit = "by a key of pack_keys"
        try:
            keys = map(Path, self._pack_keys)
            signature = signatures.check_pack(candidate.info, candidate.path / pack_files.SIGNATURE, keys)
        except PackError as error:
            return [Check(name="signature", figure="no", limit=limit, reasons=(str(error),))]
        return [Check(name="signature", figure=f"by {signature.key}", limit=limit)]

    def _outcomes(self, candidate: Pack) -> Check:
        then, now = self._active.pack.labels, candidate.labels
        common = tuple(label for label in now if label in then)
        reasons = [] if common == then else [f"{' < '.join(then)} became {' < '.join(now)}"]
        if not reasons and now[0] != then[0]:
            reasons = [f"{now[0]} is looser than {then[0]}, which was the loosest"]
        figure = f"{len(common)} of {len(then)} kept, {len(now) - len(common)} new"
        return Check(name="outcomes", figure=figure, limit="all, in their order", reasons=tuple(reasons))

    def _lint(self, candidate: Pack) -> Check:
        findings = lint_pack(candidate)
        errors = tuple(
            f"{finding.where}: {finding.message}" for finding in findings if finding.level == "error"
        )
        figure = f"{len(errors)} errors, {len(findings) - len(errors)} warnings"
        return Check(name="lint", figure=figure, limit="no error", reasons=errors)

    def _leaks(self, candidate: Pack) -> Check:
        scenarios = [scenario for suite in self._suites for scenario in suite.scenarios]
        leaking = leaks.find(scenarios, candidate, self._embedder)
        reasons = tuple(
            f"{leak.scenario} is shown as the example {leak.example} ({leak.look} {leak.similarity:.2f})"
            for leak in leaking
        )
        figure = f"{len(leaking)} of {len(scenarios)}"
        return Check(name="leaks", figure=figure, limit="none", reasons=reasons)

    # ------------------------------------------------------------ checks of the answers

    def _scenarios(self, loaded: _LoadedPack) -> tuple[Check, tuple[Rate, Rate]]:
        """The check of the suites, and the scenarios that candidate and active pack pass."""
        count = sum(len(suite.scenarios) for suite in self._suites)
        if self._active_run is None:
            self._active_run = self._run(self._active, count)
        before, after = self._active_run, self._run(loaded, count)
        versions = (self._active.pack.info.version, loaded.pack.info.version)
        reasons = []
        for change in compare(before, after).changes:
            was, now = change.before or "no answer", change.after or "no answer"
            if change.passed_before and not change.passed_after:
                reasons.append(
                    f"{change.id} passes under {versions[0]} and fails under {versions[1]}: {was} before, "
                    f"{now} now"
                )
            elif change.loosened:
                reasons.append(f"{change.id} is newly too loose: {was} before, {now} now")
        passing = (_passing(after), _passing(before))
        new, old = passing
        figure = f"{new.hits} of {new.of} pass, {old.hits} now" if new.of else "there is no suite"
        check = Check(
            name="suites", figure=figure, limit="none that passes now fails", reasons=tuple(reasons)
        )
        return check, passing

    def _run(self, loaded: _LoadedPack, count: int) -> Run:
        judge = Judge(
            pack=loaded.pack.info,
            labels=loaded.pack.labels,
            model=self._model.name,
            model_sha256=self._model.identity,
        )
        with self._part(f"running {count} scenarios by {loaded.pack.info.version}", count) as advance:
            return loaded.run(self._suites, judge, self._embedder, advance)

    @contextmanager
    def _part(self, activity: str, count: int) -> Iterator[Callable[[], None]]:
        """Announce a long part of `count` steps; yields the function to call after each."""
        self._announce(activity)
        with self._display.progress(count, activity.partition(" ")[0]) as advance:
            yield advance

    def _held_out(self, loaded: _LoadedPack, terms: Terms) -> tuple[Check, tuple[Rate, Rate]]:
        """The check of reviewed decisions that no example shows, and how often each pack agrees."""
        shown = self._questions(loaded.pack)
        rank = {label: number for number, label in enumerate(loaded.pack.labels)}
        hits, reasons, count = Counter[str](), [], 0
        rows = self._reviewed(terms.reviewed)
        with self._part(f"deciding {len(rows)} reviewed decisions by both packs", len(rows)) as advance:
            for row in rows:
                advance()
                decision_id, right = row["decision_id"], row["right"]
                if right not in rank or self._is_shown(decision_id, loaded.pack, shown):
                    continue
                new = _outcome(loaded.past.redecide(decision_id))
                old = _outcome(self._active.past.redecide(decision_id))
                if new is None and old is None:
                    continue
                count += 1
                hits["new"] += new == right
                hits["old"] += old == right
                if _is_looser(rank, new, right) and not _is_looser(rank, old, right):
                    reasons.append(f"{decision_id} is looser than its review: {right} is right, not {new}")
        agreeing = rate(hits["new"], count), rate(hits["old"], count)
        if hits["new"] < hits["old"]:
            reasons.append(
                f"it agrees with reviewers on {hits['new']} of {count} decisions, the active pack on "
                f"{hits['old']}"
            )
        return (
            Check(
                name="held out",
                figure=f"{hits['new']} of {count} agree, {hits['old']} now" if count else "none was reviewed",
                limit="no fewer, and none looser",
                reasons=tuple(reasons),
            ),
            agreeing,
        )

    def _reviewed(self, most: int) -> list[Record]:
        """The newest reviewed decisions by packs of this name, each with the `right` outcome."""
        rows: list[Record] = []
        before: str | None = None
        while len(rows) < most:
            page = self._reader.decisions(limit=_PAGE, reviewed=True, before=before)
            for row in page:
                known = row["decision_correct"] == 1 or row["review_decision"] is not None
                known = known and row["approval_task"] is None
                if known and (row["prompt_version"] or "").startswith(f"{self._active.pack.info.name}@"):
                    rows.append(row | {"right": row["review_decision"] or row["decision"]})
            if len(page) < _PAGE:
                break
            before = page[-1]["decision_id"]
        return rows[:most]

    def _questions(self, pack: Pack) -> list[frozenset[str]]:
        """The questions of all shown examples, as sets of three-word runs."""
        evaluations = [*self._shown, *(example.evaluation for example in pack.examples)]
        return [similarity.shingles(_question(pack, evaluation, self._now)) for evaluation in evaluations]

    def _is_shown(self, decision_id: str, pack: Pack, shown: Sequence[frozenset[str]]) -> bool:
        """Whether an example is a near-duplicate. False for a lost request, which `redecide` skips."""
        try:
            request = request_of(self._reader, self._reader.recorded(decision_id)[1])
        except Unasked:
            return False
        text = _question(pack, request.evaluation, request.received_at, request.sources, request.precedents)
        question = similarity.shingles(text)
        return any(similarity.alike(question, example) >= ALIKE for example in shown)

    def _counterfactual(self, loaded: _LoadedPack, terms: Terms) -> Check:
        ids = self._reader.past(since=terms.since, limit=terms.past)
        total = len(self._reader.past(since=terms.since)) if len(ids) == terms.past else len(ids)
        rank = {label: number for number, label in enumerate(loaded.pack.labels)}
        counts: Counter[str] = Counter()
        reasons = []
        with self._part(f"deciding {len(ids)} past decisions again", len(ids)) as advance:
            for decision_id in ids:
                advance()
                result = loaded.past.redecide(decision_id)
                if isinstance(result, Skipped):
                    counts["skipped"] += 1
                    if result.reason in ("no_answer_now", "too_large"):
                        reasons.append(f"{decision_id} would get no answer: {result.message}")
                    continue
                counts["compared"] += 1
                if result.direction != "loosened":
                    counts["tightened"] += result.direction == "tightened"
                    continue
                excuse = self._excuse(result, rank, terms)
                counts[excuse or "loosened"] += 1
                if excuse is None:
                    then, now = result.then.outcome, result.now.outcome
                    reasons.append(f"{decision_id} is loosened: {then} was served, {now} would be")
        figure = f"{counts['loosened']} of {counts['compared']} loosened, {counts['tightened']} tightened"
        for name in ("as reviewed", "accepted", "loose already", "skipped"):
            figure += f", {counts[name]} {name}" if counts[name] else ""
        if total > len(ids):
            figure += f"; the newest {len(ids)} of {total}"
        return Check(
            name="counterfactual", figure=figure, limit="none loosened unasked", reasons=tuple(reasons)
        )

    def _excuse(self, loosened: Counterfactual, rank: dict[str, int], terms: Terms) -> str | None:
        """Why a decision may be loosened; None if it may not.

        If the active pack now answers as loosely as the candidate, the candidate loosens nothing.
        """
        if loosened.decision_id in terms.accepted:
            return "accepted"
        row = self._reader.recorded(loosened.decision_id)[0]
        right = row["review_decision"] if row["reviewed"] else None
        if right in rank and rank[loosened.now.outcome] >= rank[right]:
            return "as reviewed"
        active = self._active.past.redecide(loosened.decision_id)
        if isinstance(active, Counterfactual) and rank[active.now.outcome] <= rank[loosened.now.outcome]:
            return "loose already"
        return None

    def _invariance(self, loaded: _LoadedPack, terms: Terms) -> Check:
        limit = "none below the floor"
        scenarios = [
            scenario for suite in self._suites for scenario in suite.scenarios if scenario.skip is None
        ]
        if self._material is None or not scenarios:
            return Check(name="invariance", figure="there is no scenario to vary", limit=limit)
        material = self._material
        every: list[Variant] = [
            variant for scenario in scenarios for variant in invariance.variants(scenario, material)
        ]
        drawn = invariance.sample(every, terms.variants, terms.seed)
        reasons, count = [], 0
        try:
            with self._part(f"running {len(drawn)} variants of scenarios", len(drawn)) as advance:
                for comparison in invariance.compare(scenarios, drawn, loaded.ask, loaded.pack.labels):
                    count += 1
                    advance()
                    if comparison.below_floor:
                        variant, after = comparison.variant, comparison.after
                        what = variant.detail or variant.kind
                        reasons.append(f"{variant.scenario} with {what} gets {after}, below its floor")
        except RequestError as error:
            reasons.append(f"a scenario that is to be varied is refused: {error.code}: {error}")
        figure = f"{len(reasons)} of {count} below, seed {terms.seed}"
        return Check(name="invariance", figure=figure, limit=limit, reasons=tuple(reasons))

    # ------------------------------------------------------------ decisions while the pack was active

    def _served(self, pack: PackInfo) -> Rate:
        """The right ones among the pack's live decisions that are known to be right or wrong."""
        for row in statistics.breakdown(self._reader, "pack"):
            if row["pack"] == version_of(pack):
                return rate(row["correct"], row["expected"])
        return rate(0, 0)


def _passing(run: Run) -> Rate:
    results = [result for result in worst(run.results).values() if result.status != "skipped"]
    return rate(sum(result.status == "passed" for result in results), len(results))


def _question(
    pack: Pack,
    evaluation: Evaluation,
    at: float,
    sources: Sequence[Consulted] = (),
    precedents: Sequence[Precedent] = (),
) -> str:
    """The question that the pack asks; the evaluation as JSON where that is too long."""
    try:
        floor = pack.book.apply(evaluation, at, sources=sources, precedents=precedents)
        return pack.question(evaluation, floor.facts, precedents)
    except RequestError:
        return msgspec.json.encode(evaluation).decode()


def _outcome(result: Counterfactual | Skipped) -> str | None:
    """The outcome that would be served; None where there is no answer."""
    return None if isinstance(result, Skipped) else result.now.outcome


def _is_looser(rank: dict[str, int], outcome: str | None, right: str) -> bool:
    return outcome is not None and rank[outcome] < rank[right]
