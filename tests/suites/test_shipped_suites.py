"""Every shipped pack and suite: they fit each other, and no rule allows what its suite forbids."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import pytest

from thor_policy.config import data_path
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.protocol.requests import evaluation_of
from thor_policy.suites import suite_files
from thor_policy.suites.scenarios import DIFFICULTIES, Scenario, Suite

PACKS = pack_files.available(data_path("prompts"))
SUITES = [path.stem for path in suite_files.available(data_path("scenarios"))]
#: When the daemon is taken to receive a scenario; those that look at the time state their own.
AT = 1_767_279_600.0
#: Values that no field of any pack can mean.
WRONG_TYPES: tuple[Json, ...] = ([], {}, {"a": 1}, [["x"]], True)

each_pack = pytest.mark.parametrize("name", PACKS)
each_suite = pytest.mark.parametrize("name", SUITES)


@cache
def pack_of(name: str) -> Pack:
    return pack_files.load(pack_files.find(name, data_path("prompts")))


@cache
def suite_of(name: str) -> Suite:
    return suite_files.load(data_path("scenarios") / f"{name}.yaml")


def forbids_allow(scenario: Scenario, pack: Pack) -> bool:
    return pack.loosest not in scenario.expect.accepted(pack.labels)


def ids(scenarios: list[Scenario]) -> list[str]:
    return [scenario.id for scenario in scenarios]


# ---------------------------------------------------------------- packs and suites fit each other


@each_pack
def test_every_pack_loads_under_its_own_name_and_lint_finds_no_problem(name: str) -> None:
    pack = pack_of(name)
    assert pack.info.name == name
    assert lint_pack(pack) == []
    assert pack.loosest == "allow"


def test_every_pack_has_a_suite_and_every_suite_a_pack() -> None:
    assert sorted(suite_of(name).pack for name in SUITES) == PACKS
    assert [suite_of(name).name for name in SUITES] == SUITES


@each_suite
def test_every_outcome_and_clause_that_a_suite_expects_is_in_its_pack(name: str) -> None:
    loaded = suite_of(name)
    pack = pack_of(loaded.pack)
    for scenario in loaded.scenarios:
        expect = scenario.expect
        named = {expect.outcome, expect.never, *expect.one_of} - {None}
        assert named <= set(pack.labels), scenario.id
        assert set(expect.clauses) <= set(pack.clauses), scenario.id
        assert expect.reasoning, scenario.id


@each_suite
def test_a_suite_is_large_enough_and_expects_every_outcome(name: str) -> None:
    scenarios = suite_of(name).scenarios
    assert len(scenarios) >= 16
    assert len(set(ids(list(scenarios)))) == len(scenarios)
    assert {scenario.expect.outcome for scenario in scenarios} >= set(pack_of(suite_of(name).pack).labels)
    assert {scenario.difficulty for scenario in scenarios} == set(DIFFICULTIES)
    assert sum(scenario.quick for scenario in scenarios) == 3


def test_the_shipped_suites_have_enough_scenarios() -> None:
    assert sum(len(suite_of(name).scenarios) for name in SUITES) >= 120


@each_suite
def test_no_example_of_a_pack_is_a_scenario(name: str) -> None:
    """Neither word for word, nor with other names of subject and resource."""

    def canonical(evaluation: Evaluation, *, named: bool) -> bytes:
        raw = msgspec.to_builtins(evaluation)
        raw["context"].pop("timestamp", None)
        if not named:
            raw["subject"].pop("id")
            raw["resource"].pop("id")
        return msgspec.json.encode(raw, order="deterministic")

    pack = pack_of(suite_of(name).pack)
    for named in (True, False):
        shown = {canonical(example.evaluation, named=named) for example in pack.examples}
        scenarios = {s.id: canonical(s.evaluation(), named=named) for s in suite_of(name).scenarios}
        assert [scenario for scenario, form in scenarios.items() if form in shown] == []


# ---------------------------------------------------------------- rules only tighten


@each_suite
def test_no_rule_settles_an_allow_that_the_suite_forbids(name: str) -> None:
    pack = pack_of(suite_of(name).pack)
    loosened = []
    for scenario in suite_of(name).scenarios:
        floor = pack.book.apply(scenario.evaluation(), AT)
        if floor.final and floor.outcome == pack.loosest and forbids_allow(scenario, pack):
            loosened.append(scenario)
    assert ids(loosened) == []


@each_suite
def test_no_rule_is_stricter_than_what_the_suite_accepts(name: str) -> None:
    """The model cannot loosen, so such a rule would make a right answer impossible."""
    pack = pack_of(suite_of(name).pack)
    rank = pack.labels.index
    too_strict = [
        scenario
        for scenario in suite_of(name).scenarios
        if rank(pack.book.apply(scenario.evaluation(), AT).outcome)
        > max(map(rank, scenario.expect.accepted(pack.labels)))
    ]
    assert ids(too_strict) == []


@each_suite
def test_a_value_of_a_wrong_type_never_leads_to_an_allow(name: str) -> None:
    """At any place of the request: no answer becomes a final allow, and no floor sinks to allow."""
    pack = pack_of(suite_of(name).pack)
    for scenario in suite_of(name).scenarios:
        if "wrong_type" in scenario.tags:  # there the wrong value would be set right
            continue
        before = pack.book.apply(scenario.evaluation(), AT)
        if before.outcome == pack.loosest and before.final:
            continue
        for place, evaluation in with_wrong_types(scenario.evaluation()):
            after = pack.book.apply(evaluation, AT)
            assert not (after.final and after.outcome == pack.loosest), (scenario.id, place)
            if before.outcome != pack.loosest:
                assert after.outcome != pack.loosest, (scenario.id, place)


def with_wrong_types(evaluation: Evaluation) -> Iterator[tuple[str, Evaluation]]:
    """The evaluation with each value replaced by each wrong type, with the place of the change."""
    raw = msgspec.to_builtins(evaluation)
    for path in paths(raw):
        # What a name or type has to be, the wire sees to; `details` may be text, a list or an object.
        if len(path) < 2 or path[-1] in {"type", "id", "name", "properties"} or "details" in path:
            continue
        for wrong in WRONG_TYPES:
            changed = copy.deepcopy(raw)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if type(wrong) is type(place[path[-1]]):
                continue
            place[path[-1]] = wrong
            try:
                yield f"{'.'.join(map(str, path))} = {wrong}", evaluation_of(changed, "request")
            except RequestError:
                continue


def paths(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))
