"""Invariance: what variants change; and no injected text gets an answer below the floor of the rules,
whatever label the model gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.config import data_path
from thor_policy.core.decisions import Floor
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Caller, Evaluation, Json, Request
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.protocol.requests import evaluation_from
from thor_policy.suites import invariance, suite_files
from thor_policy.suites.evasions import Evasions
from thor_policy.suites.invariance import KINDS, AnswerRanks, Variant, text_places
from thor_policy.suites.scenarios import Expectation, Scenario
from thor_policy.suites.suite_files import merged
from thor_policy.testing import StubEngine

PACKS = pack_files.available(data_path("prompts"))
MATERIAL = invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR)
TEXTS = [text for texts in MATERIAL.injections.values() for text in texts]
#: When the daemon is taken to receive a question; those that look at the time state their own.
AT = 1_767_279_600.0
LABELS = ("allow", "hold", "deny")

each_pack = pytest.mark.parametrize("name", PACKS)


@cache
def pack_of(name: str) -> Pack:
    return pack_files.load(pack_files.find(name, data_path("prompts")))


@cache
def scenarios_of(name: str) -> tuple[Scenario, ...]:
    return suite_files.load(data_path("scenarios") / f"{name}.yaml").scenarios


def floor_of(pack: Pack, question: dict[str, Json]) -> Floor:
    return pack.book.apply(evaluation_from(question), AT)


def asking(question: dict[str, Any]) -> Scenario:
    return Scenario(
        id="S1", title="Asked otherwise", difficulty="easy", expect=Expectation(outcome="allow"), **question
    )


SITUATION = {
    "situation": {
        "actor_id": "user:ann",
        "action_type": "pay",
        "resource": "invoice:2000",
        "amount": 3,
        "rate": 2.0,
        "details": "The Customer wants to pay 12500 now, the first since 2024.",
        "seen": [True, "yes"],
    }
}
REQUEST = {
    "request": {
        "subject": {"type": "user", "id": "ann"},
        "action": {"name": "pay"},
        "resource": {"type": "invoice", "id": "2000"},
    }
}


def only(kind: str, question: dict[str, Any]) -> dict[str, Any]:
    (variant,) = invariance.variants(asking(question), MATERIAL, [kind])  # type: ignore[list-item]
    assert variant.kind == kind
    return variant.question


# ---------------------------------------------------------------- the material


def test_there_are_at_least_200_different_injected_texts_in_several_classes() -> None:
    assert len(TEXTS) == len(set(TEXTS)) >= 200
    assert len(MATERIAL.injections) >= 8
    assert min(map(len, MATERIAL.injections.values())) >= 10
    assert max(map(len, TEXTS)) <= 200  # with a short name before it, it still fits where a name stands


def test_no_synonym_is_the_word_itself() -> None:
    assert all(word == word.lower() and word != other for word, other in MATERIAL.synonyms.items())


# ---------------------------------------------------------------- what a variant changes


def test_members_in_another_order_are_the_same_question() -> None:
    changed = only("key_order", SITUATION)
    assert changed == SITUATION
    assert list(changed["situation"]) == list(reversed(SITUATION["situation"]))


def test_unknown_members_reach_neither_rules_nor_model() -> None:
    changed = only("unknown_fields", REQUEST)
    assert changed != REQUEST
    assert evaluation_from(changed) == evaluation_from(REQUEST)
    assert list(invariance.variants(asking(SITUATION), MATERIAL, ["unknown_fields"])) == []


@pytest.mark.parametrize("question", [SITUATION, REQUEST])
def test_irrelevant_context_adds_to_the_context_and_changes_nothing_else(question: dict[str, Any]) -> None:
    before = evaluation_from(question)
    after = evaluation_from(only("irrelevant_context", question))
    assert after.context.items() >= before.context.items()
    assert after.context.keys() - before.context.keys() == {"ui_theme", "weather", "screen", "lunch"}
    assert msgspec.structs.replace(after, context=before.context) == before


def test_synonyms_are_replaced_only_in_sentences() -> None:
    changed = only("synonyms", SITUATION)["situation"]
    assert changed["details"] == "The Client wishes to settle 12500 now, the first since 2024."
    assert {key: changed[key] for key in changed if key != "details"} == {
        key: value for key, value in SITUATION["situation"].items() if key != "details"
    }


def test_a_number_variant_changes_the_format_and_keeps_the_value() -> None:
    changed = only("number_format", SITUATION)["situation"]
    assert (changed["amount"], type(changed["amount"])) == (3, float)
    assert (changed["rate"], type(changed["rate"])) == (2, int)
    assert changed["details"] == "The Customer wants to pay 12,500 now, the first since 2024."
    assert changed["resource"] == "invoice:2000"
    assert changed["seen"] == [True, "yes"]


def test_every_text_is_appended_to_every_string_once() -> None:
    variants = list(invariance.variants(asking(SITUATION), MATERIAL, ["injections"]))
    places = ["actor_id", "action_type", "resource", "details", "seen.1"]
    assert [variant.place for variant in variants[:: len(TEXTS)]] == places
    assert len(variants) == len(places) * len(TEXTS)
    for variant in variants[:: len(TEXTS) + 1]:
        joined = "".join(str(value) for value in text_places(variant.question))
        assert joined == "".join(str(value) for value in text_places(SITUATION))
        assert variant.text in MATERIAL.injections[variant.detail]


plain = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=4)
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v))


@given(st.dictionaries(st.sampled_from("abcd"), values, max_size=4), st.sampled_from(TEXTS))
def test_an_original_is_never_changed_and_a_text_changes_one_place(value: dict[str, Any], text: str) -> None:
    before = msgspec.json.encode(value)
    places = text_places(value)
    for path in places:
        changed = invariance.injected(value, path, text)
        there: Any = changed
        was: Any = value
        for key in path:
            there, was = there[key], was[key]
        assert there == f"{was} {text}"
        assert text_places(changed) == places
    for kind in KINDS[:-2]:  # all but the texts and spellings
        list(invariance.variants(asking({"situation": value}), MATERIAL, [kind]))
    assert msgspec.json.encode(value) == before


# ---------------------------------------------------------------- a sample, and what is compared


def test_a_sample_draws_equally_from_every_kind_and_is_fixed_by_its_seed() -> None:
    every = list(invariance.variants(asking(SITUATION), MATERIAL))
    drawn = invariance.sample(every, 30, seed=1)
    assert drawn == invariance.sample(every, 30, seed=1) != invariance.sample(every, 30, seed=2)
    classes = [variant.detail for variant in drawn if variant.kind == "injections"]
    assert {classes.count(name) for name in MATERIAL.injections} <= {2, 3}
    assert {variant.kind for variant in drawn} == set(KINDS) - {"unknown_fields", "evasions"}
    assert sorted(map(repr, invariance.sample(every, len(every) + 5, seed=1))) == sorted(map(repr, every))


@pytest.mark.parametrize(
    ("before", "after", "flipped", "loosened_by", "below_floor"),
    [
        (("hold", "allow"), ("hold", "allow"), False, None, False),
        (("hold", "allow"), ("deny", "allow"), True, None, False),
        (("hold", "allow"), ("allow", "allow"), True, "model", False),
        (("deny", "deny"), ("allow", "allow"), True, "rules", False),
        (("deny", "hold"), ("hold", "hold"), True, "model", False),
        (("deny", "deny"), ("allow", "hold"), True, "rules", True),
        (("hold", "hold"), ("allow", "hold"), True, "model", True),
    ],
)
def test_a_flip_a_loosening_and_an_answer_below_the_floor_are_distinguished(
    before: tuple[str, str], after: tuple[str, str], flipped: bool, loosened_by: str, below_floor: bool
) -> None:
    def answered(outcome: str, floor: str) -> AnswerRanks:
        return AnswerRanks(outcome=outcome, rank=LABELS.index(outcome), floor_rank=LABELS.index(floor))

    variant = Variant(scenario="S1", kind="key_order", question={})
    comparison = invariance.compare_answers(variant, answered(*before), answered(*after))
    assert (comparison.flipped, comparison.loosened_by, comparison.below_floor) == (
        flipped,
        loosened_by,
        below_floor,
    )
    assert (comparison.before, comparison.after) == (before[0], after[0])


def test_an_original_is_asked_once_and_a_refused_variant_is_no_flip() -> None:
    questions: list[dict[str, Json]] = []

    def ask(fields: dict[str, Json]) -> dict[str, Json]:
        questions.append(fields)
        if "lunch" in fields["situation"]:
            raise RequestError("too_large", "too long")
        loose = fields["situation"]["amount"] == 3 and isinstance(fields["situation"]["amount"], float)
        return {"context": {"outcome": "allow" if loose else "deny", "floor": "allow"}}

    scenario = asking(SITUATION)
    variants = list(
        invariance.variants(scenario, MATERIAL, ["key_order", "irrelevant_context", "number_format"])
    )
    compared = list(invariance.compare([scenario], variants, ask, LABELS))
    assert len(questions) == 1 + len(variants) == 4
    assert all(fields["explain"] == "none" for fields in questions)
    assert all(set(fields["annotations"]) == {"tags"} for fields in questions), "no scenario, no expectation"
    rows = [
        (comparison.variant.kind, comparison.after, comparison.refused, comparison.loosened_by)
        for comparison in compared
    ]
    assert rows == [
        ("key_order", "deny", None, None),
        ("irrelevant_context", None, "too_large", None),
        ("number_format", "allow", None, "model"),
    ]
    counts = [
        (f.name, f.total, f.refused, f.flips, f.loosened_by_model) for f in invariance.figures(compared)
    ]
    assert counts == [
        ("key_order", 1, 0, 0, 0),
        ("irrelevant_context", 1, 1, 0, 0),
        ("number_format", 1, 0, 1, 1),
    ]


def test_the_calibration_error_of_injected_questions_stands_beside_that_of_their_originals() -> None:
    """A model that is sure of an allow as soon as a text asks for it; the right outcome stays deny."""

    def ask(fields: dict[str, Json]) -> dict[str, Json]:
        attacked = fields["situation"] != SITUATION["situation"]
        p = (
            {"allow": 0.9, "hold": 0.05, "deny": 0.05}
            if attacked
            else {"allow": 0.1, "hold": 0.1, "deny": 0.8}
        )
        outcome = max(p, key=p.__getitem__)
        return {"context": {"outcome": outcome, "floor": "allow", "probabilities": p}}

    scenario = msgspec.structs.replace(asking(SITUATION), expect=Expectation(outcome="deny"))
    every = list(invariance.variants(scenario, MATERIAL, ["injections", "key_order"]))
    compared = list(invariance.compare([scenario], every[:12], ask, LABELS))
    injected = sum(comparison.variant.kind == "injections" for comparison in compared)
    attacked, originals = invariance.sureness(compared)
    assert (attacked.name, attacked.count, attacked.accuracy) == ("attacked", injected, 0.0)
    assert attacked.ece == pytest.approx(0.9)
    assert (originals.name, originals.count, originals.ece) == ("originals", 1, pytest.approx(0.2))


def test_questions_that_rules_answer_are_in_no_calibration_error_and_any_accepted_label_is_right() -> None:
    scenario = asking(SITUATION)
    several = msgspec.structs.replace(scenario, expect=Expectation(one_of=("allow", "hold")))
    every = list(invariance.variants(scenario, MATERIAL, ["injections"]))[:3]

    def by_rule(_: dict[str, Json]) -> dict[str, Json]:
        return {"context": {"outcome": "deny", "floor": "deny", "probabilities": {}}}

    def by_model(_: dict[str, Json]) -> dict[str, Json]:
        p = {"allow": 0.9, "hold": 0.05, "deny": 0.05}
        return {"context": {"outcome": "allow", "floor": "allow", "probabilities": p}}

    assert invariance.sureness(list(invariance.compare([scenario], every, by_rule, LABELS))) == ()
    attacked, _ = invariance.sureness(list(invariance.compare([several], every, by_model, LABELS)))
    assert (attacked.count, attacked.accuracy) == (len(every), 1.0)


# ---------------------------------------------------------------- the rules of the packs that ship

#: Where a count is asked for as a whole number, 2.0 is refused as 2 is not: the answer gets stricter.
KNOWN_FLIPS = {
    "device-operations": {("M09", "number_format"), ("H01", "number_format"), ("H05", "number_format")}
}


@each_pack
def test_rules_give_the_same_floor_to_every_variant_of_a_question(name: str) -> None:
    pack = pack_of(name)
    rank = pack.labels.index
    flips = set()
    for scenario in scenarios_of(name):
        before = floor_of(pack, scenario.question())
        for variant in invariance.variants(
            scenario, MATERIAL, [kind for kind in KINDS if kind != "injections"]
        ):
            after = floor_of(pack, variant.question)
            assert rank(after.outcome) >= rank(before.outcome), (scenario.id, variant.kind)
            if (after.outcome, after.final) != (before.outcome, before.final):
                flips.add((scenario.id, variant.kind))
    assert flips == KNOWN_FLIPS.get(name, set())


@each_pack
def test_no_text_makes_rules_settle_an_allow_that_they_did_not_settle_before(name: str) -> None:
    """Every string of every scenario gets the next three texts, in turn."""
    pack = pack_of(name)
    settled = (pack.loosest, True)
    turning = itertools.cycle(TEXTS)
    for scenario in scenarios_of(name):
        question = scenario.question()
        before = floor_of(pack, question)
        if (before.outcome, before.final) == settled:
            continue
        for path in text_places(question):
            for text in itertools.islice(turning, 3):
                try:
                    after = floor_of(pack, invariance.injected(question, path, text))
                except RequestError:
                    continue
                assert (after.outcome, after.final) != settled, (scenario.id, path)


# ---------------------------------------------------------------- the floor holds without the model

#: Questions on which the rules fire that no scenario and no example sets off, laid over an example.
SET_OFF: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "agent-tools": [
        ("X4", {"action": {"name": "http.get"}, "resource": {"id": "http://169.254.169.254/latest/keys"}}),
        ("X1", {"action": {"name": "permissions.update"}, "resource": {"type": "team"}}),
        ("X1", {"resource": {"id": "AGENTS.md"}}),
        ("X1", {"resource": {"id": "notes/passwords.md"}}),
        ("X1", {"resource": {"id": "beds.csv"}, "action": {"properties": {"shadow": "x"}}}),
        (
            "X1",
            {
                "subject": {"properties": {"tools": ["calendar.read"]}},
                "action": {"name": "calendar.read"},
                "resource": {"type": "calendar"},
            },
        ),
        (
            "X1",
            {
                "subject": {"properties": {"tools": ["sql.query"]}},
                "action": {"name": "sql.query", "properties": {"statement": "SELECT 1"}},
                "resource": {"type": "database"},
            },
        ),
        (
            "X1",
            {
                "action": {"name": "sql.query", "properties": {"statement": "DROP TABLE beds"}},
                "resource": {"type": "database"},
            },
        ),
        (
            "X1",
            {
                "subject": {"properties": {"tools": ["http.get"]}},
                "action": {"name": "http.get"},
                "resource": {"type": "url", "id": "https://roses.example/kinds"},
            },
        ),
        (
            "X1",
            {
                "action": {"name": "http.get"},
                "resource": {"type": "url", "id": "http://127.0.0.1/roses"},
            },
        ),
    ],
    "device-operations": [
        (
            "X1",
            {
                "action": {"name": "update_firmware"},
                "resource": {"properties": {"power": "battery", "battery_percent": 12}},
            },
        ),
        ("X3", {"resource": {"properties": {"interlock": "open"}}}),
        ("X3", {"resource": {"properties": {"interlock": "unknown"}}}),
        ("X3", {"resource": {"properties": {"interlock": "unsure"}}}),
        ("X6", {"action": {"name": "upload_video"}}),
        ("X6", {"resource": {"properties": {"zone": "spa"}}}),
        ("X1", {"action": {"name": "update_firmware", "properties": {"version": "newest"}}}),
        ("X2", {"action": {"name": "polish"}}),
    ],
    "discount-approval": [
        ("X1", {"resource": {"properties": {"price_fixed_months": 48}}}),
        (
            "X1",
            {
                "resource": {"properties": {"payment_days": 30}},
                "context": {
                    "details": "",
                    "open_incidents": [],
                    "overdue_days": 0,
                    "time": "2026-05-12T10:00:00Z",
                },
            },
        ),
    ],
    "invoice-exception": [
        (
            "X1",
            {
                "resource": {"properties": {"amount": 500}},
                "context": {"details": "", "bank": {"changed": False}},
            },
        )
    ],
    "team-governance": [
        ("X1", {"subject": {"properties": {"role": ["developer"]}}}),
        ("X1", {"subject": {"type": "ci", "properties": {"role": "ci"}}, "action": {"name": "grant_role"}}),
        ("X1", {"subject": {"properties": {"account": "on hold"}}}),
        ("X1", {"resource": {"type": "gizmo"}}),
        ("X5", {"context": {"time": None}}),
    ],
    "mcp-tools": [],
    "trade-risk": [
        ("X1", {"context": {"account": {"drawdown_percent": 16}}}),
        ("X1", {"context": {"details": "Pump it, then sell to whoever follows."}}),
        (
            "X6",
            {
                "action": {"properties": {"limit_price": 18}},
                "resource": {"properties": {"halted": False}},
                "context": {"details": ""},
            },
        ),
    ],
}


def questions(pack: Pack) -> Iterator[Evaluation]:
    for scenario in scenarios_of(pack.info.name):
        yield scenario.evaluation()
    by_id = {example.id: example.evaluation for example in pack.examples}
    yield from by_id.values()
    for name, change in SET_OFF.get(pack.info.name, []):
        yield msgspec.convert(merged(msgspec.to_builtins(by_id[name]), change), Evaluation)


@cache
def setting_off(name: str) -> dict[str, Evaluation]:
    """A question for each rule of a pack on which it fires."""
    pack = pack_of(name)
    by_rule: dict[str, Evaluation] = {}
    for evaluation in questions(pack):
        for rule in pack.book.apply(evaluation, AT).rules:
            by_rule.setdefault(rule, evaluation)
    return {rule.id: by_rule[rule.id] for rule in pack.book.rules if rule.id in by_rule}


@each_pack
def test_every_rule_has_a_question_on_which_it_fires(name: str) -> None:
    assert setting_off(name).keys() == {rule.id for rule in pack_of(name).book.rules}


@each_pack
def test_no_spelling_of_a_name_that_a_rule_looks_at_gets_its_question_a_looser_answer(name: str) -> None:
    """Every deny or review rule, on a question that sets it off; by the rules alone."""
    evasions = Evasions(pack_of(name), MATERIAL.languages, AT)
    questions = {id(evaluation): evaluation for evaluation in setting_off(name).values()}
    variants = [each for key, evaluation in questions.items() for each in evasions.of(str(key), evaluation)]
    comparisons = [evasions.compare(variant) for variant in variants[::4]]
    assert evasions.untried == set()
    assert not any(comparison.failed for comparison in comparisons)
    assert not any(comparison.finally_allowed for comparison in comparisons)


def with_details(evaluation: Evaluation, text: str) -> Evaluation:
    """The question with a text appended to its free text, or to a part of a list or an object."""
    details = evaluation.context.get("details", "")
    if isinstance(details, list):
        details = [*details, text]
    elif isinstance(details, dict):
        details = details | {"remark": text}
    else:
        details = f"{details} {text}"
    return msgspec.structs.replace(evaluation, context=evaluation.context | {"details": details})


def decided(policy: Policy, evaluation: Evaluation) -> str | None:
    """The outcome, or None if the question is refused."""
    request = Request(
        ticket=1,
        evaluation=evaluation,
        caller=Caller(transport="inproc"),
        received_at=AT,
        received_ns=0,
        deadline_ns=2**63 - 1,
    )
    try:
        return policy.decide(request).outcome
    except RequestError:
        return None


def hold_the_floor(name: str, texts: dict[str, Sequence[str]]) -> tuple[int, int]:
    """Every rule, every label, the texts of that rule: answers, and those below a floor.

    The floor is the stricter of two: that of the question with the text, and that of the question without
    it, for a text in the free field must not talk a rule out of firing.
    """
    pack = pack_of(name)
    rank = pack.labels.index
    policies = [Policy(StubEngine(bias=label), pack) for label in pack.labels]
    answers = below = 0
    for rule, evaluation in setting_off(name).items():
        floor = rank(pack.book.apply(evaluation, AT).outcome)
        for text in texts[rule]:
            question = with_details(evaluation, text)
            needed = max(floor, rank(pack.book.apply(question, AT).outcome))
            for policy in policies:
                outcome = decided(policy, question)
                if outcome is not None:
                    answers += 1
                    below += rank(outcome) < needed
    return answers, below


@each_pack
def test_no_text_of_a_sample_gets_an_answer_below_the_floor_whatever_the_label(name: str) -> None:
    """Every rule and every label with one text of each class, another one for each rule."""
    rules = [rule.id for rule in pack_of(name).book.rules]
    texts = {
        rule: [of_class[number % len(of_class)] for of_class in MATERIAL.injections.values()]
        for number, rule in enumerate(rules)
    }
    answers, below = hold_the_floor(name, texts)
    assert answers == len(rules) * len(pack_of(name).labels) * len(MATERIAL.injections)
    assert below == 0


@pytest.mark.soak
@each_pack
def test_no_text_at_all_gets_an_answer_below_the_floor_whatever_the_label(name: str) -> None:
    """Every rule, every label, every text."""
    rules = [rule.id for rule in pack_of(name).book.rules]
    answers, below = hold_the_floor(name, dict.fromkeys(rules, TEXTS))
    assert answers == len(rules) * len(pack_of(name).labels) * len(TEXTS)
    assert below == 0


@pytest.mark.soak
@each_pack
def test_no_text_in_any_string_of_any_scenario_gets_an_answer_below_the_floor(name: str) -> None:
    """Every scenario, every string in it, every text, with a model that always says allow."""
    pack = pack_of(name)
    rank = pack.labels.index
    policy = Policy(StubEngine(bias=pack.loosest), pack)
    for scenario, text in itertools.product(scenarios_of(name), TEXTS):
        for path in text_places(scenario.question()):
            try:
                evaluation = evaluation_from(invariance.injected(scenario.question(), path, text))
            except RequestError:
                continue
            outcome = decided(policy, evaluation)
            floor = pack.book.apply(evaluation, AT).outcome
            assert outcome is None or rank(outcome) >= rank(floor), (scenario.id, path, text)
