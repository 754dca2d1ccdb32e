"""Sources in a pack: what expressions read of them, what lint finds, and that no failure is loose."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import write_pack, write_rules_only_pack
from thor_policy.core.decisions import Floor
from thor_policy.core.engine import all_steps
from thor_policy.core.errors import PackError
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Json, Request
from thor_policy.core.sources import Consulted
from thor_policy.engine.absent import NoEngine
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.lint import lint
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Residents
from thor_policy.policy.rule_checks import RuleFaults
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.rules import RuleBook
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.policy.source_specs import SourceSpec, stated
from thor_policy.testing import StubEngine

OUTCOMES = ("allow", "require_mfa", "deny")
SPEC: dict[str, Any] = {
    "of": "subject",
    "types": ["user"],
    "attributes": {"tier": {"type": "string"}, "limit": {"type": "number"}, "tags": {"type": "list(string)"}},
    "table": {"path": "t.csv"},
}


def specs(**changes: Any) -> dict[str, SourceSpec]:
    return {"accounts": msgspec.convert(SPEC | changes, SourceSpec)}


def book(*rules: str, facts: Mapping[str, str] | None = None, **changes: Any) -> RuleBook:
    return RuleBook(
        outcomes=OUTCOMES,
        facts=facts or {},
        rules=[
            Rule(id=f"r{at}", when=when, outcome="allow", because="It may.", final=True)
            for at, when in enumerate(rules)
        ],
        risk='"low"',
        default="require_mfa",
        rules_only=True,
        sources=specs(**changes),
    )


def evaluation(type: str = "user") -> Evaluation:
    return Evaluation(
        subject=Entity(type=type, id="ann", properties={"tier": "gold"}),
        action=Action(name="buy"),
        resource=Entity(type="doc", id="d"),
    )


def floor(when: str, values: Mapping[str, Json] | None, **changes: Any) -> Floor:
    """The floor of a rule where the source says `values`; None: it was not consulted."""
    sources = stated(specs(**changes), {} if values is None else {"accounts": values})
    return book(when, **changes).apply(evaluation(), 0.0, sources=sources)


FAILED = Consulted(source="accounts", of="subject", system="CRM", error="it hangs")


class TestReading:
    @pytest.mark.parametrize(
        ("when", "values", "outcome"),
        [
            ('sources.accounts.tier == "gold"', {"tier": "gold"}, "allow"),
            ('sources.accounts.tier == "gold"', {"tier": "tin"}, "require_mfa"),
            ("sources.accounts.limit >= 10.0", {"limit": 10}, "allow"),
            ('"vip" in sources.accounts.tags', {"tags": ["vip"]}, "allow"),
            ('sources.accounts.tags.exists(t, t.startsWith("v"))', {"tags": ["vip"]}, "allow"),
            ("has(sources.accounts.tier)", {"tier": "x"}, "allow"),
            ("has(sources.accounts.tier)", {"limit": 1}, "require_mfa"),
            ("!has(sources.accounts.tier)", {}, "allow"),
            ("size(sources.accounts) == 0", {}, "allow"),
            ('"tier" in sources.accounts', {"tier": "x"}, "allow"),
            ('has(sources.accounts.tier) && sources.accounts.tier == "x"', {}, "require_mfa"),
            ('sources.?accounts.?tier.orValue("none") == "none"', {}, None),
            ('sources.accounts.?tier.orValue("none") == "none"', {}, "allow"),
        ],
    )
    def test_rules_read_attributes_of_their_declared_types(
        self, when: str, values: dict[str, Json], outcome: str | None
    ) -> None:
        if outcome is None:
            with pytest.raises(RuleFaults, match=r"write sources\.NAME\.ATTRIBUTE|no name"):
                book(when)
        else:
            assert floor(when, values).outcome == outcome

    def test_facts_read_attributes_and_are_shown(self) -> None:
        facts = {"tier": 'has(sources.accounts.tier) ? sources.accounts.tier : "none"'}
        for values, tier in (({"tier": "gold"}, "gold"), ({}, "none")):
            rules = book('tier == "gold"', facts=facts)
            result = rules.apply(evaluation(), 0.0, sources=stated(specs(), {"accounts": values}))
            assert result.facts == {"tier": tier}

    def test_a_rule_that_reads_an_absent_attribute_fails_closed(self) -> None:
        result = floor('sources.accounts.tier == "gold"', {})
        assert (result.outcome, list(result.errors)) == ("deny", ["r0"])

    @pytest.mark.parametrize(
        ("when", "message"),
        [
            ('sources.other.tier == "x"', "there is no source 'other' in pack.yaml"),
            (
                'sources.accounts.teir == "x"',
                "the source accounts has no attribute 'teir'; it has tier, limit, tags",
            ),
            (
                "has(sources.accounts.teir)",
                "the source accounts has no attribute 'teir'; it has tier, limit, tags",
            ),
            ("sources.accounts.tier > 3", "no matching overload"),
            ("sources.accounts.tags == 3", "no matching overload"),
            ('given("sources.accounts.tier", "") == ""', "given reads subject, action, resource and context"),
            ("sources == 3", "write sources.NAME.ATTRIBUTE"),
            ("sources.accounts.?teir.hasValue()", "the source accounts has no attribute 'teir'"),
        ],
    )
    def test_an_expression_that_misreads_a_source_is_a_fault_of_the_pack(
        self, when: str, message: str
    ) -> None:
        with pytest.raises(RuleFaults) as refused:
            book(when)
        assert message in str(refused.value)

    def test_no_fact_can_be_named_sources(self) -> None:
        with pytest.raises(RuleFaults, match="be none of"):
            book("true", facts={"sources": "1"})


class TestFailing:
    @pytest.mark.parametrize("consulted", [(), (FAILED,), stated(specs(), {"other": {"tier": "gold"}})])
    def test_a_required_source_without_an_answer_gives_the_strictest_outcome(
        self, consulted: tuple[Consulted, ...]
    ) -> None:
        result = book("true").apply(evaluation(), 0.0, sources=consulted)
        assert (result.outcome, result.final, result.unavailable) == ("deny", True, ("accounts",))
        assert result.because == "The source accounts gave no answer, so the answer is deny."

    def test_a_source_of_another_type_is_not_missed(self) -> None:
        assert book("true").apply(evaluation("agent"), 0.0).outcome == "allow"

    def test_an_optional_source_without_an_answer_has_no_attributes(self) -> None:
        rules = book('has(sources.accounts.tier) && sources.accounts.tier == "gold"', required=False)
        assert rules.apply(evaluation(), 0.0, sources=(FAILED,)).outcome == "require_mfa"

    @pytest.mark.parametrize("value", [7, None, True, ["gold"], {"a": 1}])
    def test_a_value_of_another_type_is_absent(self, value: Json) -> None:
        assert floor("has(sources.accounts.tier)", {"tier": value}).outcome == "require_mfa"

    def test_an_attribute_that_the_pack_does_not_declare_is_not_read(self) -> None:
        assert floor("size(sources.accounts) == 0", {"other": "x"}).outcome == "allow"

    @given(
        errors=st.lists(st.sampled_from([None, "it hangs"]), min_size=2, max_size=2),
        required=st.lists(st.booleans(), min_size=2, max_size=2),
    )
    def test_a_failure_never_gives_a_looser_outcome_than_the_values(
        self, errors: list[str | None], required: list[bool]
    ) -> None:
        both = {
            name: msgspec.convert(SPEC | {"required": needed}, SourceSpec)
            for name, needed in zip(("a", "b"), required, strict=True)
        }
        when = 'has(sources.a.tier) && sources.a.tier == "x" && has(sources.b.tier)'
        rules = RuleBook(
            outcomes=OUTCOMES,
            facts={},
            rules=[Rule(id="r", when=when, outcome="allow", because="Yes.", final=True)],
            risk='"low"',
            default="require_mfa",
            rules_only=True,
            sources=both,
        )
        entries = [
            Consulted(
                source=name,
                of="subject",
                system=name,
                element=None if error else "tier",
                value="x",
                error=error,
            )
            for name, error in zip(("a", "b"), errors, strict=True)
        ]
        result = rules.apply(evaluation(), 0.0, sources=entries)
        assert result.outcome == ("allow" if errors == [None, None] else result.outcome)
        if any(errors):
            assert result.outcome != "allow"


FAULTS = [
    ({"table": None}, "must have exactly one of table, sqlite, http, pushed; it has none"),
    ({"pushed": {}}, "it has table and pushed"),
    ({"table": {"path": "t.txt"}}, "'t.txt' must end with .yaml, .yml, .csv or .jsonl"),
    ({"attributes": {"Tier": {"type": "string"}}}, "the name must be lower case letters"),
    ({"attributes": {"in": {"type": "string"}}}, "be no word of CEL"),
    ({"attributes": {"tier": {"type": "string", "at": "a..b"}}}, "must be a dotted path, as limits.discount"),
    ({"fresh_at": "a b"}, "must be a dotted path, as meta.updated_at"),
    ({"table": None, "sqlite": {"path": "t.db", "query": "SELECT 1"}}, "must use the parameter :id"),
    ({"table": None, "http": {"url": "https://x.example/"}}, "must use the parameter {id}"),
    ({"table": None, "http": {"url": "ftp://x.example/{id}"}}, "must be a URL"),
    ({"table": None, "http": {"url": "https://{id}.example/"}}, "the host must not depend on the request"),
    ({"table": None, "http": {"url": "https://u:p@x.example/{id}"}}, "must not have a user or password"),
    ({"table": None, "http": {"url": "https://x.example/{id}/{name}"}}, "has the parameter {name}"),
    ({"table": None, "http": {"url": "https://[x/{id}"}}, "must be a URL"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_a_source_that_cannot_work_is_a_fault_of_the_pack(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleFaults) as refused:
        book("true", **changes)
    assert message in str(refused.value)


ALWAYS = "- {id: all, when: 'true', outcome: allow, final: true, because: It may.}\n"
PACK_SOURCE = """
sources:
  accounts:
    of: subject
    {more}attributes: {{tier: {{type: string}}}}
    table: {{path: accounts.csv}}
"""


def findings(folder: Path, when: str, *, more: str = "") -> list[str]:
    rules = f"- {{id: r, when: '{when}', outcome: allow, final: true, because: It may.}}\n"
    write_rules_only_pack(folder, rules=rules, more=PACK_SOURCE.format(more=more))
    return [finding.message for finding in lint(folder)]


class TestLint:
    @pytest.mark.parametrize(
        ("when", "path"),
        [
            ('subject.properties.tier == "gold" && action.name == "buy"', "subject.properties.tier"),
            ('given("context.tier", "") == "gold" && resource.id == "x"', "context.tier"),
        ],
    )
    def test_a_final_allow_that_rests_on_asserted_data_though_a_source_offers_it_is_advised_against(
        self, tmp_path: Path, when: str, path: str
    ) -> None:
        message = f"is a final allow that rests on {path}, which the caller asserts; "
        message += "sources.accounts.tier offers it"
        assert message in findings(tmp_path, when)
        both = f'{when} && sources.accounts.tier == "gold"'
        assert message not in findings(tmp_path, both)

    @pytest.mark.parametrize(
        ("more", "warned"), [("", False), ("required: false\n    ", True), ("types: [user]\n    ", True)]
    )
    def test_a_final_allow_because_a_source_says_nothing_is_advised_against(
        self, tmp_path: Path, more: str, warned: bool
    ) -> None:
        messages = findings(tmp_path, 'action.name == "buy" && !has(sources.accounts.tier)', more=more)
        assert (
            any("may hold because sources.accounts says nothing" in message for message in messages) is warned
        )

    def test_the_table_of_a_source_is_no_stray_file(self, tmp_path: Path) -> None:
        (tmp_path / "accounts.csv").write_text("id,tier\n")
        (tmp_path / "other.csv").write_text("")
        strays = findings(tmp_path, 'sources.accounts.tier == "gold"')
        assert strays.count("is not part of a pack; the digest does not cover it") == 1

    def test_a_misspelt_member_of_a_source_is_found_at_its_place(self, tmp_path: Path) -> None:
        messages = findings(tmp_path, "true", more="timeout: 5\n    ")
        assert any("unknown field `timeout`" in message for message in messages)


class TestDeciding:
    def pack(self, folder: Path) -> Pack:
        more = PACK_SOURCE.format(more="") + "facts: {tier: sources.accounts.tier}\n"
        return pack_files.load(write_rules_only_pack(folder, rules="[]\n", more=more))

    def request(self, **changes: Any) -> Request:
        request = Request(
            ticket=1,
            evaluation=evaluation(),
            caller=Caller(transport="inproc"),
            received_at=1.8e9,
            received_ns=time.monotonic_ns(),
            deadline_ns=2**62,
        )
        return replace(request, **changes)

    def test_a_decision_carries_what_was_consulted(self, tmp_path: Path) -> None:
        pack = self.pack(tmp_path)
        sources = pack.stated({"accounts": {"tier": "gold"}})
        decision = Policy(NoEngine(), pack).decide(self.request(sources=sources))
        assert (decision.sources, decision.floor.facts) == (sources, {"tier": "gold"})

    def test_the_pack_whose_sources_were_consulted_decides_though_another_became_active(
        self, tmp_path: Path
    ) -> None:
        before = pack_files.load(write_rules_only_pack(tmp_path / "before", rules=ALWAYS))
        after = self.pack(tmp_path / "after")
        policy = Policy(NoEngine(), before)
        request = self.request(judge=before.info.sha256)
        loaded = all_steps(policy.loading(after, None, 0.0))
        candidate = policy.residents.with_candidate(loaded)
        policy.set_residents(candidate.with_active(loaded))
        assert policy.decide(request).pack == before.info
        assert policy.decide(self.request()).pack == after.info
        policy.set_residents(Residents(loaded))  # before waits to be retired, and decides until then
        assert policy.decide(request).pack == before.info
        all_steps(policy.retiring(candidate.active))
        assert policy.decide(request).pack == after.info

    def test_a_failed_required_source_is_a_fallback_with_its_reason_code(self, tmp_path: Path) -> None:
        policy = Policy(NoEngine(), self.pack(tmp_path))
        decision = policy.decide(self.request(sources=(FAILED,)))
        assert (decision.outcome, decision.tier, decision.reason_code) == (
            "deny",
            "fallback",
            "source_failed",
        )
        assert policy.counters["source_failed"] == 1

    def test_a_score_is_cached_for_the_values_that_the_model_saw(self, tmp_path: Path) -> None:
        """The values reach the model as facts, so they are in the question, which is the key."""
        folder = write_pack(tmp_path / "pack")
        text = (folder / "pack.yaml").read_text()
        head = text.replace("fields: [", "fields: [{name: tier, value: facts.tier}, ", 1)
        source = PACK_SOURCE.format(more="required: false\n    ")
        fact = 'has(sources.accounts.tier) ? sources.accounts.tier : "none"'
        (folder / "pack.yaml").write_text(f"{head}\n{source}\n" + (f"facts: {{tier: '{fact}'}}\n"))
        pack = pack_files.load(folder)
        policy = Policy(StubEngine(), pack, cache=ScoreCache(10, 60))
        tiers = []
        for tier in ("gold", "gold", "tin", "gold"):
            sources = pack.stated({"accounts": {"tier": tier}})
            tiers.append(policy.decide(self.request(sources=sources)).tier)
        assert tiers == ["model", "cache", "model", "cache"]

    def test_examples_state_what_sources_say(self, tmp_path: Path) -> None:
        folder = write_pack(tmp_path / "pack")
        (folder / "pack.yaml").write_text((folder / "pack.yaml").read_text() + PACK_SOURCE.format(more=""))
        assert any("does not state what accounts says" in finding.message for finding in lint(folder))
        examples = (folder / "examples.yaml").read_text()
        stating = examples.replace("evaluation:", "sources: {accounts: {tier: gold}}, evaluation:")
        (folder / "examples.yaml").write_text(stating)
        assert not any("does not state" in finding.message for finding in lint(folder))


def test_a_pack_with_a_source_of_no_kind_is_not_loaded(tmp_path: Path) -> None:
    more = "sources: {a: {of: subject, attributes: {b: {type: string}}}}\n"
    with pytest.raises(PackError, match="exactly one of"):
        pack_files.load(write_rules_only_pack(tmp_path, rules="[]\n", more=more))
