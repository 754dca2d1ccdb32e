"""Patterns: similar corrections, the proposed rule and its effect, and the reasons for no proposal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import NOON, by_model, erasing, record, sent
from tests.tasks import KIM, LEE, lift, liftable, requested
from tests.tasks import given as approved
from thor_policy.cli.main import cli
from thor_policy.core import records
from thor_policy.core.decisions import Decision
from thor_policy.core.lifting import Use
from thor_policy.core.requests import Action, Entity, Evaluation, Json
from thor_policy.journal.reader import Reader
from thor_policy.learning import patterns
from thor_policy.learning.corrections import wilson_low
from thor_policy.learning.patterns import Patterns
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.policy.rule_specs import Rule

MANIFEST = """
name: small
version: "1"
clock: daemon
description: Facts of each kind, and a rule.
outcomes: [{label: allow}, {label: require_mfa}, {label: deny}]
classifications: [routine, odd]
fields:
  - {name: who, value: subject.id}
  - {name: does, value: action.name}
  - {name: team, value: context.team}
  - {name: details, value: context.details}
facts:
  large: given("context.euros", 0) > 100
  size: given("context.euros", 0)
  share: given("context.share", 0.0)
  seconds: (now - timestamp("1970-01-05T00:00:00Z")).getSeconds()
  stated: stated_times().map(at, int(timestamp(at))).sum()
risk: '"low"'
"""
RULES = '- {id: banned, when: action.name == "banned", outcome: deny, clause: R1, because: It is banned.}\n'
EXAMPLE = """
- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: pay}, resource: {type: doc, id: d},
   context: {euros: 500, team: west}},
   outcome: deny, classification: routine, risk: low, clauses: [R1], reasoning: No.}
- {id: X2, evaluation: {subject: {type: user, id: a}, action: {name: look}, resource: {type: doc, id: d}},
   outcome: allow, classification: routine, risk: low, clauses: [R1], reasoning: Fine.}
"""


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    texts = {
        "pack.yaml": MANIFEST,
        "rules.yaml": RULES,
        "examples.yaml": EXAMPLE,
        "clauses.yaml": "R1: One.\nR2: Two.\n",
        "system.md": "Decide.\n",
    }
    (tmp_path / "small").mkdir()
    for name, text in texts.items():
        (tmp_path / "small" / name).write_text(text)
    return pack_files.load(tmp_path / "small")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def payment(
    pack: Pack, outcome: str = "allow", action: str = "pay", at: float = NOON, **context: Json
) -> Decision:
    return by_model(
        evaluation=Evaluation(
            subject=Entity(type="user", id="ivo"),
            action=Action(name=action),
            resource=Entity(type="invoice", id="i"),
            context=context,
        ),
        pack=pack.info,
        outcome=outcome,
        allow=outcome == "allow",
        label=outcome,
        at=at,
    )


def review(decision: Decision, outcome: str | None, reasoning: str | None = "R2, too much.") -> Any:
    verdict: Any = "accept" if outcome is None else "correct_both"
    review = records.Review(
        decision_id=decision.id, reviewer="kim", verdict=verdict, decision=outcome, reasoning=reasoning
    )
    return sent(review, at=decision.at)


def payments(pack: Pack, journal: Path, count: int = 15) -> list[Decision]:
    """Large payments of the west that should have been denied, among small ones, and payments of the east."""
    wrong = [payment(pack, euros=200 + n, team="west", share=0.5) for n in range(count)]
    fine = [payment(pack, euros=10 + n, team="west", share=0.5) for n in range(20)]
    fine += [payment(pack, euros=200 + n, team="east", share=0.5) for n in range(20)]
    # one that nobody reviewed and one that was accepted, both of the same kind
    same = [payment(pack, euros=205, team="west", share=0.5) for _ in range(2)]
    reviews = [review(same[0], None, None), *(review(decision, "deny") for decision in wrong)]
    record(journal, *wrong, *fine, *same, *reviews)
    return wrong


def find(journal: Path, pack: Pack, **more: Any) -> Patterns:
    with Reader(journal) as reader:
        return patterns.find(reader, pack, **more)


class TestProposal:
    def test_a_proposed_rule_holds_in_all_cases_and_few_other_decisions(
        self, pack: Pack, journal: Path
    ) -> None:
        wrong = payments(pack, journal)
        (pattern,) = find(journal, pack).patterns
        assert (pattern.kind, pattern.change) == ("correction", "allow -> deny")
        assert set(pattern.cases) == {case.id for case in wrong}
        assert pattern.proposal is not None
        (rule,) = yaml_text.parse(pattern.proposal.rule, tuple[Rule, ...], "here")
        assert set(rule.when.split(" && ")) <= set(pattern.common)
        assert {"large", 'given("context.team", "") == "west"'} == set(rule.when.split(" && "))
        assert (rule.outcome, rule.clause, rule.final) == ("deny", "R2", False)
        for case in wrong:
            revised = pack.revised(rules=(*pack.book.rules, rule))
            assert revised.book.apply(case.evaluation, case.at).outcome == "deny"

    def test_the_effect_of_a_proposed_rule_is_counted_by_change(self, pack: Pack, journal: Path) -> None:
        payments(pack, journal)
        (pattern,) = find(journal, pack).patterns
        assert pattern.proposal is not None
        assert pattern.proposal.changes == {"allow -> deny": 17}
        assert (pattern.proposal.agree, pattern.proposal.against, pattern.proposal.unreviewed) == (15, 1, 1)

    def test_a_rule_may_change_a_few_decisions_that_nobody_reviewed(self, pack: Pack, journal: Path) -> None:
        wrong = [payment(pack, euros=200, team="west") for _ in range(15)]
        same = [payment(pack, euros=200, team="west") for _ in range(30)]
        fine = [payment(pack, euros=5, team="west") for _ in range(150)]
        accepted = [review(decision, None, None) for decision in fine[:20]]
        record(journal, *wrong, *same, *fine, *accepted, *(review(decision, "deny") for decision in wrong))
        (pattern,) = find(journal, pack).patterns
        assert pattern.common[0] == "large"
        assert pattern.proposal is not None
        assert (pattern.proposal.agree, pattern.proposal.against, pattern.proposal.unreviewed) == (15, 0, 30)

    def test_a_proposed_rule_passes_lint_in_the_pack(self, pack: Pack, journal: Path) -> None:
        payments(pack, journal)
        (pattern,) = find(journal, pack).patterns
        assert pattern.proposal is not None
        rules = pack.path / "rules.yaml"
        rules.write_text(rules.read_text() + pattern.proposal.rule)
        assert [each for each in lint_pack(pack_files.load(pack.path)) if each.level == "error"] == []

    def test_a_proposal_that_loosens_is_a_final_rule(self, pack: Pack, journal: Path) -> None:
        wrong = [payment(pack, "deny", "look", euros=n) for n in range(15)]
        others = [payment(pack, "deny", "write", euros=n) for n in range(15)]
        record(journal, *wrong, *others, *(review(decision, "allow", "Fine.") for decision in wrong))
        (pattern,) = find(journal, pack).patterns
        assert pattern.proposal is not None
        (rule,) = yaml_text.parse(pattern.proposal.rule, tuple[Rule, ...], "here")
        assert (rule.when, rule.outcome, rule.final) == ('action.name == "look"', "allow", True)
        assert pattern.proposal.changes == {"deny -> allow": 15}

    def test_what_an_approval_lifted_is_no_correction(self, pack: Pack, journal: Path) -> None:
        payments(pack, journal)
        before = find(journal, pack)
        for number in range(3):
            case = payment(pack, euros=200, team="west")
            changes = {"evaluation": case.evaluation, "pack": pack.info, "at": case.at, "label": "allow"}
            _, allowed = lift(journal, task=f"task-{number}", urgency="emergency", **changes)
            record(journal, review(allowed, "deny"))
        after = find(journal, pack)
        assert (after.patterns[0].cases, after.corrected) == (before.patterns[0].cases, before.corrected)
        assert after.looked_at == before.looked_at + 3  # the denials

    def test_exceptions_count_as_cases_of_the_decisions_that_they_name(
        self, pack: Pack, journal: Path
    ) -> None:
        denied = [payment(pack, "deny", "look", euros=n) for n in range(15)]
        others = [payment(pack, "deny", "write", euros=n) for n in range(15)]
        exceptions = [
            sent(
                records.DecisionReport(
                    agent="desk", outcome="allow", is_exception=True, precedents=(decision.id,)
                )
            )
            for decision in denied
        ]
        record(journal, *denied, *others, *exceptions)
        (pattern,) = find(journal, pack).patterns
        assert (pattern.kind, pattern.change) == ("exception", "deny -> allow")
        assert pattern.proposal is not None
        assert (pattern.proposal.changes, pattern.proposal.agree) == ({"deny -> allow": 15}, 15)

    def test_a_text_of_a_request_is_quoted_in_a_rule_or_not_used(self, pack: Pack, journal: Path) -> None:
        hostile = '" || true || "'
        wrong = [payment(pack, euros=200 + n, team=hostile) for n in range(15)]
        others = [payment(pack, euros=200 + n, team="east") for n in range(15)]
        record(journal, *wrong, *others, *(review(decision, "deny") for decision in wrong))
        (pattern,) = find(journal, pack).patterns
        assert not any("true" in text for text in pattern.common)

    def test_a_number_that_uses_a_time_is_no_condition(self, pack: Pack, journal: Path) -> None:
        early, late = "2026-05-13T10:00:00Z", "2026-05-13T11:00:00Z"
        wrong = [payment(pack, euros=200, team="west", time=early, at=NOON + n) for n in range(15)]
        others = [payment(pack, euros=200, team="west", time=late, at=NOON + 99) for n in range(15)]
        record(journal, *wrong, *others, *(review(decision, "deny") for decision in wrong))
        (pattern,) = find(journal, pack).patterns
        assert "size >= 200" in pattern.common
        assert not any("seconds" in text or "stated" in text for text in pattern.common)


def exception(decision: Decision, outcome: str = "allow", **members: Any) -> Any:
    """A report that somebody decided otherwise than a decision."""
    report = {"agent": "desk", "outcome": outcome, "is_exception": True, "precedents": (decision.id,)}
    claimed = members.pop("claimed", "no")
    return sent(records.DecisionReport(**report | members), claimed=claimed)


class TestExceptions:
    """The denied looks of which people made exceptions, among denied writes."""

    def looks(self, pack: Pack, count: int) -> list[Decision]:
        return [payment(pack, "deny", "look", euros=n) for n in range(count)]

    def writes(self, pack: Pack) -> list[Decision]:
        return [payment(pack, "deny", "write", euros=n) for n in range(15)]

    def test_fourteen_exceptions_propose_nothing_and_fifteen_a_rule(self, pack: Pack, journal: Path) -> None:
        looks = self.looks(pack, 15)
        record(journal, *looks, *self.writes(pack), *map(exception, looks[:14]))
        (pattern,) = find(journal, pack).patterns
        assert (len(pattern.cases), pattern.proposal, pattern.counter_examples) == (14, None, ())
        assert pattern.why_not == "a rule is proposed from 15 cases on"
        record(journal, exception(looks[14]))
        (pattern,) = find(journal, pack).patterns
        assert pattern.proposal is not None
        (rule,) = yaml_text.parse(pattern.proposal.rule, tuple[Rule, ...], "here")
        assert (rule.when, rule.outcome, rule.final) == ('action.name == "look"', "allow", True)
        assert rule.because == "Exceptions were made to allow in 15 cases of this kind."
        assert set(pattern.cases) == {look.id for look in looks}
        assert (pattern.proposal.loosened, pattern.proposal.tightened) == (15, 0)

    def test_the_least_number_of_cases_is_a_setting(self, pack: Pack, journal: Path) -> None:
        looks = self.looks(pack, 5)
        record(journal, *looks, *self.writes(pack), *map(exception, looks))
        (pattern,) = find(journal, pack, proposed_from=5).patterns
        assert pattern.proposal is not None

    def test_claimed_and_overturned_exceptions_do_not_count(self, pack: Pack, journal: Path) -> None:
        looks = self.looks(pack, 17)
        claim = exception(looks[15], claimed="yes")
        overturned = exception(looks[16])
        later = payment(pack, "deny", "look")
        state = records.TraceState(
            decision_id=overturned.subject_id, status="overturned", because="wrong", by=later.id
        )
        record(journal, *looks, *self.writes(pack), *map(exception, looks[:14]), claim, overturned, later)
        record(journal, sent(state))
        result = find(journal, pack)
        assert (result.claimed, result.overturned) == (1, 1)
        (pattern,) = result.patterns
        assert (len(pattern.cases), pattern.proposal) == (14, None)

    def test_the_denials_that_people_lifted_in_an_emergency_are_cases(
        self, pack: Pack, journal: Path
    ) -> None:
        record(journal, *self.writes(pack))
        denied = []
        for number in range(15):
            look = payment(pack, "deny", "look", euros=number)
            offered = liftable(evaluation=look.evaluation, pack=pack.info, outcome="deny", label="deny")
            task = f"task-{number}"
            record(journal, offered)
            record(
                journal, requested(offered, task=task, reason="the ward needs it"), approved(KIM, task=task)
            )
            record(journal, approved(LEE, task=task))
            use = Use(task=task, lifts="deny", urgency="emergency")
            allowed = payment(pack, "allow", "look", at=NOON + 5, euros=number)
            record(journal, replace(allowed, label="deny", use=use))
            denied.append(offered)
        (pattern,) = find(journal, pack).patterns
        assert (pattern.kind, pattern.change) == ("exception", "deny -> allow")
        assert set(pattern.cases) == {decision.id for decision in denied}
        assert {"ward", "needs"} <= set(pattern.reasons)
        assert pattern.proposal is not None

    def test_cases_with_other_reasons_are_separate_patterns(self, pack: Pack, journal: Path) -> None:
        looks = self.looks(pack, 9)
        reasons = ["the auditors need every invoice", "the printer caught fire again", None]
        made = [exception(look, reasoning=reasons[n % 3]) for n, look in enumerate(looks)]
        record(journal, *looks, *self.writes(pack), *made)
        first, second = find(journal, pack).patterns
        assert (len(first.cases), len(second.cases)) == (6, 3), "cases without a reason join the largest"
        assert {first.reasons, second.reasons} == {
            ("auditors", "every", "invoice", "need"),
            ("again", "caught", "fire", "printer"),
        }

    def test_the_two_nearest_decisions_that_speak_against_a_rule_are_named(
        self, pack: Pack, journal: Path
    ) -> None:
        looks, writes = self.looks(pack, 15), self.writes(pack)
        near = [payment(pack, "deny", "look", euros=n, team="west") for n in (1, 2)]
        record(journal, *looks, *writes, *near, *map(exception, looks))
        record(journal, *(review(decision, None, "Right.") for decision in near))
        (pattern,) = find(journal, pack).patterns
        first, second = pattern.counter_examples
        assert {first.decision_id, second.decision_id} == {decision.id for decision in near}
        assert (first.right, first.reviewed, first.differs) == ("deny", True, ())
        assert first.similarity > 0.5

    def test_what_tells_a_counter_example_from_the_cases_is_named(self, pack: Pack, journal: Path) -> None:
        looks = self.looks(pack, 15)
        record(journal, *looks, *self.writes(pack), *map(exception, looks))
        (pattern,) = find(journal, pack).patterns
        assert len(pattern.counter_examples) == 2
        assert all('action.name == "look"' in example.differs for example in pattern.counter_examples)


class TestNoProposal:
    def why(self, journal: Path, pack: Pack) -> str:
        (pattern,) = find(journal, pack).patterns
        assert pattern.proposal is None
        return str(pattern.why_not)

    def test_there_is_no_proposal_for_fewer_than_fifteen_cases(self, pack: Pack, journal: Path) -> None:
        payments(pack, journal, count=14)
        assert "from 15 cases on" in self.why(journal, pack)

    def test_there_is_no_proposal_if_the_conditions_fit_too_many_other_decisions(
        self, pack: Pack, journal: Path
    ) -> None:
        wrong = [payment(pack, euros=200, team="west") for _ in range(15)]
        same = [payment(pack, euros=200, team="west") for _ in range(15)]
        record(journal, *wrong, *same, *(review(decision, "deny") for decision in wrong))
        assert "15 of 15 other decisions" in self.why(journal, pack)

    def test_there_is_no_proposal_against_too_many_reviews(self, pack: Pack, journal: Path) -> None:
        wrong = [payment(pack, euros=200, team="west") for _ in range(15)]
        right = [payment(pack, euros=200, team="west") for _ in range(4)]
        others = [payment(pack, euros=5, team="east") for _ in range(40)]
        accepted = [review(decision, None, None) for decision in right]
        record(journal, *wrong, *right, *others, *accepted, *(review(decision, "deny") for decision in wrong))
        assert "4 of which reviewers wanted otherwise" in self.why(journal, pack)

    def test_there_is_no_proposal_without_other_decisions(self, pack: Pack, journal: Path) -> None:
        wrong = [payment(pack, euros=200, team="west") for _ in range(15)]
        record(journal, *wrong, *(review(decision, "deny") for decision in wrong))
        assert "no other decisions" in self.why(journal, pack)

    def test_there_is_no_proposal_that_loosens_to_another_outcome_than_the_loosest(
        self, pack: Pack, journal: Path
    ) -> None:
        wrong = [payment(pack, "deny", euros=n) for n in range(15)]
        record(journal, *wrong, *(review(decision, "require_mfa") for decision in wrong))
        assert "no rule can loosen an answer to require_mfa" in self.why(journal, pack)

    def test_there_is_no_proposal_if_a_rule_demands_more_and_that_rule_is_named(
        self, pack: Pack, journal: Path
    ) -> None:
        wrong = [payment(pack, "deny", "banned", euros=n) for n in range(15)]
        record(journal, *wrong, *(review(decision, "allow") for decision in wrong))
        assert "banned in 15" in self.why(journal, pack)

    def test_there_is_no_proposal_if_the_rules_demand_it_already(self, pack: Pack, journal: Path) -> None:
        wrong = [payment(pack, "allow", "banned", euros=n) for n in range(15)]
        record(journal, *wrong, *(review(decision, "deny") for decision in wrong))
        assert "rules of today" in self.why(journal, pack)

    def test_there_is_no_proposal_if_a_failing_fact_disables_the_rule(
        self, pack: Pack, journal: Path
    ) -> None:
        wrong = [payment(pack, "deny", "look", euros="no number") for _ in range(15)]
        others = [payment(pack, "deny", "write", euros=n) for n in range(15)]
        record(journal, *wrong, *others, *(review(decision, "allow", "Fine.") for decision in wrong))
        assert "would change nothing" in self.why(journal, pack)

    def test_there_is_no_proposal_that_contradicts_an_example_of_the_pack(
        self, pack: Pack, journal: Path
    ) -> None:
        wrong = [payment(pack, "allow", "look") for _ in range(15)]
        others = [payment(pack, "allow", "pay") for _ in range(15)]
        record(journal, *wrong, *others, *(review(decision, "deny") for decision in wrong))
        assert "examples.yaml X2: says allow" in self.why(journal, pack)


class TestPatterns:
    def test_cases_with_other_facts_or_another_change_are_separate_patterns(
        self, pack: Pack, journal: Path
    ) -> None:
        what: list[Any] = []
        for n in range(4):
            words = f"the quarterly invoice of the bakery number {n}"
            decision = payment(pack, action="pay", euros=500, team="west", details=words)
            two = payment(pack, action="read", details="somebody looks at a page about holidays in may")
            three = payment(pack, action="pay", euros=500, team="west", details=words)
            what += [
                decision,
                two,
                three,
                review(decision, "deny"),
                review(two, "deny"),
                review(three, "require_mfa"),
            ]
        record(journal, *what)
        assert sorted((pattern.change, len(pattern.cases)) for pattern in find(journal, pack).patterns) == [
            ("allow -> deny", 4),
            ("allow -> deny", 4),
            ("allow -> require_mfa", 4),
        ]

    def test_exceptions_that_name_no_decision_are_grouped_by_their_words(
        self, pack: Pack, journal: Path
    ) -> None:
        def exception(region: str, prompt: str) -> Any:
            return sent(
                records.DecisionReport(
                    agent="desk",
                    outcome="granted",
                    type="exception",
                    prompt=prompt,
                    context={"region": region},
                    is_exception=True,
                )
            )

        record(
            journal,
            *(exception("north", f"a discount above the limit for customer {n}") for n in range(3)),
            exception("south", "please open the door of the warehouse at night"),
        )
        (pattern,) = find(journal, pack).patterns
        assert (pattern.kind, pattern.change, len(pattern.cases)) == ("exception", "granted", 3)
        assert "context.region=north" in pattern.common
        assert pattern.proposal is None

    def test_erased_cases_and_other_packs_are_no_cases(self, pack: Pack, journal: Path) -> None:
        wrong = [payment(pack, euros=200, team="west") for _ in range(3)]
        other = [
            replace(decision, id=f"{decision.id}-other", pack=replace(pack.info, name="other"))
            for decision in wrong
        ]
        record(journal, *wrong, *other, *(review(decision, "deny") for decision in (*wrong, *other)))
        (pattern,) = find(journal, pack).patterns
        assert set(pattern.cases) == {case.id for case in wrong}
        with Reader(journal) as reader:
            seq = reader.trace(wrong[0].id)["event"]["seq"]
        record(journal, erasing(journal, seq))
        result = find(journal, pack)
        assert result.patterns == ()
        assert {rate.value: rate.corrected for rate in result.rates["actor type"]} == {"user": 5}

    def test_outcomes_that_the_pack_lacks_are_no_cases(self, pack: Pack, journal: Path) -> None:
        payments(pack, journal)
        before, strange = payment(pack, "ask_a_friend", euros=200), payment(pack, euros=200)
        record(journal, before, strange, review(before, "deny"), review(strange, "maybe"))
        (pattern,) = find(journal, pack).patterns
        assert len(pattern.cases) == 15
        assert pattern.proposal is not None

    def test_since_limits_the_decisions(self, pack: Pack, journal: Path) -> None:
        early = [payment(pack, euros=200, team="west") for _ in range(3)]
        late = [payment(pack, euros=200, team="west", at=NOON + 3600) for _ in range(4)]
        record(journal, *early, *late, *(review(decision, "deny") for decision in (*early, *late)))
        (pattern,) = find(journal, pack, since="2026-07-01T12:30:00Z").patterns
        assert len(pattern.cases) == 4


class TestFigures:
    def test_rates_mark_values_that_are_corrected_more_often_than_all(
        self, pack: Pack, journal: Path
    ) -> None:
        what: list[Any] = []
        for n in range(40):
            kind = "service" if n % 4 == 0 else "user"
            plain = payment(pack, euros=5)
            subject = Entity(type=kind, id=f"s{n}")
            decision = replace(plain, evaluation=replace(plain.evaluation, subject=subject))
            what += [decision, review(decision, "deny" if kind == "service" else None)]
        record(journal, *what)
        result = find(journal, pack)
        assert (result.reviewed, result.corrected) == (40, 10)
        rates = {rate.value: rate for rate in result.rates["actor type"]}
        assert (rates["service"].corrected, rates["service"].systematic) == (10, True)
        assert rates["service"].most_often == "allow -> deny"
        assert (rates["user"].corrected, rates["user"].systematic) == (0, False)

    def test_the_trend_is_by_week(self, pack: Pack, journal: Path) -> None:
        first, second = payment(pack, euros=5), payment(pack, euros=5, at=NOON + 7 * 86_400)
        record(journal, first, second, review(first, "deny"), review(second, None))
        assert find(journal, pack).trend == (("2026-W27", 1, 1), ("2026-W28", 1, 0))

    @given(st.integers(1, 10_000), st.data())
    def test_an_interval_begins_below_its_share(self, trials: int, data: st.DataObject) -> None:
        hits = data.draw(st.integers(0, trials))
        assert -1e-9 <= wilson_low(hits, trials) <= hits / trials + 1e-9

    def test_the_wilson_interval_matches_published_values(self) -> None:
        assert wilson_low(8, 10) == pytest.approx(0.4902, abs=1e-4)


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(tmp_path))
        return lambda *arguments: CliRunner().invoke(cli, ["patterns", *arguments])

    def test_patterns_prints_the_proposal_its_effect_and_what_it_cannot_show(
        self, pack: Pack, journal: Path, run: Callable[..., Any]
    ) -> None:
        payments(pack, journal)
        shown = run("--pack", str(pack.path))
        assert shown.exit_code == 0, shown.output
        for text in ("allow -> deny: 17", "- id: proposed-", "against their review", "This cannot show"):
            assert text in shown.stdout
        result = json.loads(run("--pack", str(pack.path), "--json").stdout)
        assert result["patterns"][0]["proposal"]["changes"] == {"allow -> deny": 17}

    def test_the_setting_and_the_counter_examples_reach_the_command(
        self, pack: Pack, journal: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("THOR_POLICY_PATTERN_CASES", "5")
        looks = [payment(pack, "deny", "look", euros=n) for n in range(5)]
        writes = [payment(pack, "deny", "write", euros=n) for n in range(15)]
        record(journal, *looks, *writes, *(exception(look, reasoning="It is urgent.") for look in looks))
        shown = run("--pack", str(pack.path)).stdout
        assert "% alike: not action.name" in shown
        assert "5 loosened, 0 tightened" in shown
        assert "urgent" in shown

    def test_control_characters_of_a_request_are_escaped(
        self, pack: Pack, journal: Path, run: Callable[..., Any]
    ) -> None:
        report = {"agent": "desk", "outcome": "so\x1b[31m", "prompt": "one\u202etwo", "is_exception": True}
        record(journal, *(sent(records.DecisionReport(**report)) for _ in range(3)))
        shown = run("--pack", str(pack.path)).stdout
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "so\\x1b[31m" in shown

    def test_without_decisions_there_are_no_patterns(
        self, pack: Pack, journal: Path, run: Callable[..., Any]
    ) -> None:
        payments(pack, journal)
        result = json.loads(run("--pack", str(pack.path), "--since", "2030-01-01", "--json").stdout)
        assert (result["looked_at"], result["patterns"], result["trend"]) == (0, [], [])
