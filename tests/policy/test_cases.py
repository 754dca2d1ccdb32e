"""Inputs that once got a wrong answer of the rules, and further ones of the same kinds.

`given.json` has requests to a pack, and `meaning.json` those that a rule got wrong because it read strings
(K10 to K29). `calls.yaml` has further tool calls. `further.json` has conditions, each with what it must come
to: true, false, `error`, or `refused` where the pack must not load. The kinds: time of offsets (K01),
functions of CEL (K02), numbers beyond 2^53 (K03), length in code points (K04), errors inside `exists` and
`all` (K05), characters that nobody sees (K08).
"""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from thor_policy.config import data_path
from thor_policy.core import strict_json
from thor_policy.core.errors import PackError
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint
from thor_policy.policy.pack import Pack
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.rules import RuleBook

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
GIVEN: list[dict[str, Any]] = strict_json.decode((CASES / "given.json").read_bytes())
MEANING: list[dict[str, Any]] = strict_json.decode((CASES / "meaning.json").read_bytes())
CALLS: dict[str, Any] = yaml.safe_load((CASES / "calls.yaml").read_text(encoding="utf-8"))
FURTHER: list[dict[str, Any]] = strict_json.decode((CASES / "further.json").read_bytes())
#: 2026-07-01T12:00:00Z.
NOON = 1_782_907_200.0


@pytest.fixture(scope="module")
def packs() -> dict[str, Pack]:
    folders = {case["pack"]: CASES / "packs" / case["pack"] for case in GIVEN}
    return {
        name: pack_files.load(folder if folder.is_dir() else data_path("prompts") / name)
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("case", GIVEN, ids=lambda case: case["id"])
def test_the_rules_give_the_right_outcome_without_the_model(
    case: dict[str, Any], packs: dict[str, Pack]
) -> None:
    evaluation = msgspec.convert(case["request"], Evaluation)
    floor = packs[case["pack"]].book.apply(evaluation, NOON)
    assert (floor.outcome, floor.final) == (case["right"], True), floor.errors


@pytest.mark.parametrize("case", MEANING, ids=lambda case: case["id"])
def test_the_floor_reads_meaning(case: dict[str, Any]) -> None:
    floor = shipped(case["pack"]).book.apply(msgspec.convert(case["request"], Evaluation), NOON)
    assert floor.outcome in case["right"], (floor.rules, floor.because, floor.errors)
    assert floor.final or case["pack"] != "agent-tools"


@pytest.mark.parametrize("call", CALLS["calls"], ids=lambda call: call["id"])
def test_a_tool_call_gets_an_outcome_that_would_do(call: dict[str, Any]) -> None:
    floor = shipped("agent-tools").book.apply(request_of(call), NOON)
    letter = {"allow": "a", "require_confirmation": "c", "deny": "d"}[floor.outcome]
    assert letter in call["right"], (floor.rules, floor.because, floor.errors)
    assert floor.final


@functools.cache
def shipped(name: str) -> Pack:
    return pack_files.load(data_path("prompts") / name)


def request_of(call: dict[str, Any]) -> Evaluation:
    """The request of a call of `calls.yaml`, over its base; the tool is granted."""
    base, (kind, name) = CALLS["base"], call["to"]
    properties = base["subject"]["properties"] | {"tools": [call["tool"]]} | call.get("properties", {})
    return Evaluation(
        subject=Entity(type="agent", id=base["subject"]["id"], properties=properties),
        action=Action(name=call["tool"], properties=call.get("with", {})),
        resource=Entity(type=kind, id=name),
        context=base["context"] | call.get("context", {}),
    )


@pytest.mark.parametrize("name", ["cel-cases", "cel-zone"])
def test_lint_finds_no_error_in_the_packs_of_these_cases(name: str) -> None:
    assert [str(finding) for finding in lint(CASES / "packs" / name) if finding.level == "error"] == []


@pytest.mark.parametrize("case", FURTHER, ids=lambda case: case["id"])
def test_a_condition_comes_to_what_cel_says(case: dict[str, Any]) -> None:
    evaluation = Evaluation(
        subject=Entity(type="user", id="kim"),
        action=Action(name=case.get("action", "look")),
        resource=Entity(type="case", id="x"),
        context=case.get("context", {}),
    )
    rule = Rule(id="case", when=case["when"], outcome="deny", because="It holds.")

    def book() -> RuleBook:
        return RuleBook(
            outcomes=("allow", "deny"),
            facts={},
            rules=(rule,),
            risk='"low"',
            words=case.get("words"),
            clock="daemon",
        )

    if case["right"] == "refused":
        with pytest.raises(PackError):
            book()
        return
    floor = book().apply(evaluation, NOON)
    assert ("error" if floor.errors else floor.outcome == "deny") == case["right"], floor.errors


def test_each_kind_has_ten_further_cases() -> None:
    kinds = collections.Counter(case["id"][:3] for case in FURTHER)
    assert kinds == dict.fromkeys(("K01", "K02", "K03", "K04", "K05", "K08"), 10)
