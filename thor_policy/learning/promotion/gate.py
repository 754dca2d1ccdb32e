"""The gate: a candidate held against the pack that decides, check by check.

Owns what each check looks at. Invariant: both packs are asked by the same code on the same weights, each
under its own calibration; what could not be compared is counted, and what the candidate cannot answer
speaks against it. One thread, which also owns the engine.

    signature       one of `pack_keys` signed it (only where there are any)
    outcomes        it knows every outcome of the active pack, in the same order
    lint, leaks     no error; no scenario of a suite is shown as an example
    suites          no scenario that the active pack passes fails, and none is newly answered too loosely
    held out        reviewed decisions that no pack shows as an example: it agrees with reviewers as often as
                    the active pack does, and is looser than a review only where that one is, too
    counterfactual  no past decision is loosened, but where a correction asked for it or somebody accepts it
    invariance      no variant of a scenario is answered below the floor
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from thor_policy import __version__
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, PackInfo, resident_key
from thor_policy.core.engine import Engine
from thor_policy.core.errors import PackError, RequestError
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Caller, Evaluation, Json, Request
from thor_policy.core.results import Explained
from thor_policy.journal import events, statistics
from thor_policy.journal.past_requests import Unasked, request_of
from thor_policy.journal.projections import version_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import similarity
from thor_policy.learning.counterfactual import Counterfactual, Redecider, Skipped
from thor_policy.learning.export import ALIKE
from thor_policy.learning.promotion.report import Check, Merit, Report, Terms
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.replies import decision_item, decode_reply, encode_reply, encode_request
from thor_policy.protocol.requests import decode_request
from thor_policy.security import signatures
from thor_policy.suites import invariance, leaks
from thor_policy.suites.comparison import compare
from thor_policy.suites.intervals import Rate, rate
from thor_policy.suites.invariance import Material, Variant
from thor_policy.suites.run_files import Judge, Run, item, worst
from thor_policy.suites.scenarios import Embedder, Suite
from thor_policy.suites.verdicts import run as run_suite

#: A deadline that does not come, in monotonic nanoseconds.
_NEVER_NS = 2**63 - 1
#: Decisions that are read at a time.
_PAGE = 500


# ---------------------------------------------------------------- one pack, asked


class _Bench:
    """A pack on the gate's engine: asked like a daemon, and about the past."""

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        pack: Pack,
        adapter: Adapter | None,
        now: float,
        max_request_bytes: int,
    ) -> None:
        self.pack, self._now, self._max_request_bytes = pack, now, max_request_bytes
        model = structs.replace(engine.model, adapter=adapter)
        found = reader.calibration(pack.info.sha256, model.identity)
        calibration = Calibration(**found) if found else None
        self._policy = Policy(engine, pack, adapter=adapter, calibration=calibration)
        self.past = Redecider(reader, engine, pack, adapter=adapter)
        self._asked = 0

    def ask(self, fields: dict[str, Json]) -> dict[str, Json]:
        """The reply to a question as a client puts it, explained in it if it asks for that.

        It states no time: at the lowest priority, beside a daemon, that would say nothing of the pack. Raises
        RequestError.
        """
        frame = encode_request("", "evaluate", fields)
        message = decode_request(frame, max_bytes=self._max_request_bytes, max_deadline_ms=1)
        assert isinstance(message, EvaluateRequest)  # noqa: S101  what this room asks is one question
        self._asked += 1
        decision = self._policy.decide(
            Request(
                ticket=self._asked,
                evaluation=message.evaluation,
                caller=Caller(transport="inproc"),
                received_at=self._now,
                received_ns=time.monotonic_ns(),
                deadline_ns=_NEVER_NS,
                explain=message.explain,
                annotations=message.annotations,
                pack=message.pack,
            )
        )
        while self._policy.is_explaining(self._asked):
            for ended in self._policy.step():
                if isinstance(ended, Explained):
                    decision = structs.replace(decision, explanation=ended.explanation)
        told = decision_item(decision, explained=True, commit_ms=0.0, total_ms=0.0)
        return decode_reply(encode_reply("", **told))

    def run(self, suites: Sequence[Suite], judge: Judge, embedder: Embedder | None) -> Run:
        """Every scenario once. Raises SuiteError if one expects what the pack does not have."""
        labels, name = self.pack.labels, self.pack.info.name
        found = [
            item(result, suite=one.name, pack=name, labels=labels)
            for one in suites
            for result in run_suite(one, self.ask, labels=labels, quick=False, embedder=embedder)
        ]
        return Run(
            at=events.timestamp(self._now),
            version=__version__,
            where="the gate of promotion",
            machine="",
            selection="all scenarios",
            repeats=1,
            judges=(judge,),
            results=tuple(found),
        )


# ---------------------------------------------------------------- the gate


class Gate:
    """Holds candidates against the active pack, on an engine whose thread this is.

    `suites` are those of the pack's name; `shown` are all evaluations that some candidate shows as an
    example, so that each is held against the same reviewed decisions. Raises EngineError if the active pack
    cannot be loaded, PackError where a candidate is of another name or the active pack itself.
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
        now: float,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._reader, self._engine, self._adapter = reader, engine, adapter
        self._suites, self._material, self._embedder = suites, material, embedder
        self._pack_keys, self._max_request_bytes = pack_keys, max_request_bytes
        self._now, self._announce = now, announce
        self._model = structs.replace(engine.model, adapter=adapter)
        self._active = self._bench(active)
        self._shown = [*shown, *(example.evaluation for example in active.examples)]
        self._active_run: Run | None = None

    def judge(self, candidate: Pack, terms: Terms) -> Report:
        """Make every check. What lint or the closed list of outcomes rules out is put to no model."""
        info, active = candidate.info, self._active.pack.info
        if info.name != active.name:
            raise PackError(
                f"{candidate.path} is the pack {info.name}, and {active.name} decides: a pack takes the "
                "place of one of its own name; `thorpolicy packs activate` puts another one in force"
            )
        if info.sha256 == active.sha256:
            raise PackError(f"{candidate.path} is the pack that decides already ({info.sha256[:12]})")
        checks = [*self._signature(candidate), self._outcomes(candidate), self._lint(candidate)]
        merit = merit_of_active = None
        checks.append(self._leaks(candidate))
        if all(check.passed for check in checks if check.name in ("outcomes", "lint")):
            bench = self._bench(candidate)
            try:
                suites, passing = self._scenarios(bench)
                held_out, agreeing = self._held_out(bench, terms)
                checks += [suites, held_out, self._counterfactual(bench, terms)]
                checks.append(self._invariance(bench, terms))
            finally:
                self._engine.unload(resident_key(info.sha256, self._adapter))
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

    def _bench(self, pack: Pack) -> _Bench:
        return _Bench(self._reader, self._engine, pack, self._adapter, self._now, self._max_request_bytes)

    # ------------------------------------------------------------ by its files alone

    def _signature(self, candidate: Pack) -> list[Check]:
        if not self._pack_keys:
            return []
        limit = "by a key of pack_keys"
        try:
            keys = map(Path, self._pack_keys)
            found = signatures.check_pack(candidate.info, candidate.path / pack_files.SIGNATURE, keys)
        except PackError as error:
            return [Check(name="signature", figure="no", limit=limit, reasons=(str(error),))]
        return [Check(name="signature", figure=f"by {found.key}", limit=limit)]

    def _outcomes(self, candidate: Pack) -> Check:
        then, now = self._active.pack.labels, candidate.labels
        kept = tuple(label for label in now if label in then)
        reasons = [] if kept == then else [f"{' < '.join(then)} became {' < '.join(now)}"]
        if not reasons and now[0] != then[0]:
            reasons = [f"{now[0]} is looser than {then[0]}, which was the loosest"]
        figure = f"{len(kept)} of {len(then)} kept, {len(now) - len(kept)} new"
        return Check(name="outcomes", figure=figure, limit="all, in their order", reasons=tuple(reasons))

    def _lint(self, candidate: Pack) -> Check:
        found = lint_pack(candidate)
        errors = tuple(f"{one.where}: {one.message}" for one in found if one.level == "error")
        figure = f"{len(errors)} errors, {len(found) - len(errors)} warnings"
        return Check(name="lint", figure=figure, limit="no error", reasons=errors)

    def _leaks(self, candidate: Pack) -> Check:
        scenarios = [scenario for suite in self._suites for scenario in suite.scenarios]
        found = leaks.find(scenarios, candidate, self._embedder)
        reasons = tuple(
            f"{one.scenario} is shown as the example {one.example} ({one.look} {one.similarity:.2f})"
            for one in found
        )
        return Check(name="leaks", figure=f"{len(found)} of {len(scenarios)}", limit="none", reasons=reasons)

    # ------------------------------------------------------------ by its answers

    def _scenarios(self, bench: _Bench) -> tuple[Check, tuple[Rate, Rate]]:
        count = sum(len(suite.scenarios) for suite in self._suites)
        self._announce(f"asking {count} scenarios by {bench.pack.info.version}")
        if self._active_run is None:
            self._active_run = self._run(self._active)
        before, after = self._active_run, self._run(bench)
        versions = (self._active.pack.info.version, bench.pack.info.version)
        reasons = [
            f"{one.id} passes under {versions[0]} and fails under {versions[1]}: {one.before or 'no answer'} "
            f"before, {one.after or 'no answer'} now"
            if one.passed_before and not one.passed_after
            else f"{one.id} is newly too loose: {one.before or 'no answer'} before, {one.after} now"
            for one in compare(before, after).changes
            if one.loosened or (one.passed_before and not one.passed_after)
        ]
        passing = (_passing(after), _passing(before))
        new, old = passing
        figure = f"{new.hits} of {new.of} pass, {old.hits} now" if new.of else "there is no suite"
        check = Check(
            name="suites", figure=figure, limit="none that passes now fails", reasons=tuple(reasons)
        )
        return check, passing

    def _run(self, bench: _Bench) -> Run:
        judge = Judge(
            pack=bench.pack.info,
            labels=bench.pack.labels,
            model=self._model.name,
            model_sha256=self._model.identity,
        )
        return bench.run(self._suites, judge, self._embedder)

    def _held_out(self, bench: _Bench, terms: Terms) -> tuple[Check, tuple[Rate, Rate]]:
        """Reviewed decisions that no example shows, and whether both packs agree with the reviewers."""
        shown = self._questions(bench.pack)
        rank = {label: number for number, label in enumerate(bench.pack.labels)}
        hits, reasons, count = Counter[str](), [], 0
        rows = self._reviewed(terms.reviewed)
        self._announce(f"deciding {len(rows)} reviewed decisions by both packs")
        for row in rows:
            decision_id, right = row["decision_id"], row["right"]
            if right not in rank or self._is_shown(decision_id, bench.pack, shown):
                continue
            new, old = bench.past.redecide(decision_id), self._active.past.redecide(decision_id)
            served = _outcome(new), _outcome(old)
            if served == (None, None):
                continue
            count += 1
            hits["new"] += served[0] == right
            hits["old"] += served[1] == right
            if _looser(rank, served[0], right) and not _looser(rank, served[1], right):
                reasons.append(f"{decision_id} is looser than its review: {right} is right, not {served[0]}")
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
        """The newest reviewed decisions by packs of this name, each with the outcome that is `right`."""
        found: list[Record] = []
        before: str | None = None
        while len(found) < most:
            page = self._reader.decisions(limit=_PAGE, reviewed=True, before=before)
            for row in page:
                known = row["decision_correct"] == 1 or row["review_decision"] is not None
                if known and (row["prompt_version"] or "").startswith(f"{self._active.pack.info.name}@"):
                    found.append(row | {"right": row["review_decision"] or row["decision"]})
            if len(page) < _PAGE:
                break
            before = page[-1]["decision_id"]
        return found[:most]

    def _questions(self, pack: Pack) -> list[frozenset[str]]:
        """What the examples ask, as sets of words in runs of three."""
        evaluations = [*self._shown, *(example.evaluation for example in pack.examples)]
        return [similarity.shingles(_asked(pack, one, self._now)) for one in evaluations]

    def _is_shown(self, decision_id: str, pack: Pack, shown: Sequence[frozenset[str]]) -> bool:
        """Whether an example asks the same, or almost; what cannot be asked again is found out later."""
        try:
            request = request_of(self._reader, self._reader.recorded(decision_id)[1])
        except Unasked:
            return False
        words = similarity.shingles(_asked(pack, request.evaluation, request.received_at))
        return any(similarity.alike(words, one) >= ALIKE for one in shown)

    def _counterfactual(self, bench: _Bench, terms: Terms) -> Check:
        ids = self._reader.past(since=terms.since, limit=terms.past)
        every = len(self._reader.past(since=terms.since)) if len(ids) == terms.past else len(ids)
        self._announce(f"deciding {len(ids)} past decisions again")
        rank = {label: number for number, label in enumerate(bench.pack.labels)}
        counted: Counter[str] = Counter()
        reasons = []
        for decision_id in ids:
            found = bench.past.redecide(decision_id)
            if isinstance(found, Skipped):
                counted["skipped"] += 1
                if found.reason in ("no_answer_now", "too_large"):
                    reasons.append(f"{decision_id} would get no answer: {found.message}")
                continue
            counted["compared"] += 1
            if found.direction != "loosened":
                counted["tightened"] += found.direction == "tightened"
                continue
            excuse = self._excuse(found, rank, terms)
            counted[excuse or "loosened"] += 1
            if excuse is None:
                then, now = found.then.outcome, found.now.outcome
                reasons.append(f"{decision_id} is loosened: {then} was served, {now} would be")
        figure = f"{counted['loosened']} of {counted['compared']} loosened, {counted['tightened']} tightened"
        for name in ("as reviewed", "accepted", "loose already", "skipped"):
            figure += f", {counted[name]} {name}" if counted[name] else ""
        if every > len(ids):
            figure += f"; the newest {len(ids)} of {every}"
        return Check(
            name="counterfactual", figure=figure, limit="none loosened unasked", reasons=tuple(reasons)
        )

    def _excuse(self, found: Counterfactual, rank: dict[str, int], terms: Terms) -> str | None:
        """Why a decision may be loosened; None if nothing asks for it.

        What the active pack answers as loosely is not loosened by taking its place.
        """
        if found.decision_id in terms.accepted:
            return "accepted"
        row = self._reader.recorded(found.decision_id)[0]
        right = row["review_decision"] if row["reviewed"] else None
        if right in rank and rank[found.now.outcome] >= rank[right]:
            return "as reviewed"
        now = self._active.past.redecide(found.decision_id)
        if isinstance(now, Counterfactual) and rank[now.now.outcome] <= rank[found.now.outcome]:
            return "loose already"
        return None

    def _invariance(self, bench: _Bench, terms: Terms) -> Check:
        limit = "none below the floor"
        scenarios = [one for suite in self._suites for one in suite.scenarios if one.skip is None]
        if self._material is None or not scenarios:
            return Check(name="invariance", figure="there is no scenario to vary", limit=limit)
        material = self._material
        every: list[Variant] = [v for one in scenarios for v in invariance.variants(one, material)]
        drawn = invariance.sample(every, terms.variants, terms.seed)
        self._announce(f"asking {len(drawn)} variants of scenarios")
        reasons, asked = [], 0
        try:
            for one in invariance.compare(scenarios, drawn, bench.ask, bench.pack.labels):
                asked += 1
                if one.below_floor:
                    what = one.variant.detail or one.variant.kind
                    reasons.append(f"{one.variant.scenario} with {what} gets {one.after}, below its floor")
        except RequestError as error:
            reasons.append(f"a scenario that is to be varied is refused: {error.code}: {error}")
        figure = f"{len(reasons)} of {asked} below, seed {terms.seed}"
        return Check(name="invariance", figure=figure, limit=limit, reasons=tuple(reasons))

    # ------------------------------------------------------------ what it did when it was in force

    def _served(self, pack: PackInfo) -> Rate:
        """Of what the pack decided when it was in force, and is known to be right or wrong, the right."""
        for row in statistics.breakdown(self._reader, "pack"):
            if row["pack"] == version_of(pack):
                return rate(row["correct"], row["expected"])
        return rate(0, 0)


def _passing(run: Run) -> Rate:
    asked = [one for one in worst(run.results).values() if one.status != "skipped"]
    return rate(sum(one.status == "passed" for one in asked), len(asked))


def _asked(pack: Pack, evaluation: Evaluation, at: float) -> str:
    """The question as the pack asks it; what is too long to be asked, by its content alone."""
    try:
        return pack.question(evaluation, pack.book.apply(evaluation, at).facts)
    except RequestError:
        return msgspec.json.encode(evaluation).decode()


def _outcome(found: Counterfactual | Skipped) -> str | None:
    """What would be served; None where there is no answer."""
    return None if isinstance(found, Skipped) else found.now.outcome


def _looser(rank: dict[str, int], outcome: str | None, right: str) -> bool:
    return outcome is not None and rank[outcome] < rank[right]
