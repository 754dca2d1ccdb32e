"""Mappings of messages to questions, by the AuthZEN binding for MCP: what they may say and what they give."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.mcp import methods
from thor_policy.mcp.mapping import MAX_QUESTIONS, Template
from thor_policy.policy.mapped_values import ABSENT, MAX_CHARS, Expression, MappingError

TOKEN = {"sub": "alice@example.com", "aud": "files", "client_id": "coder"}
CALL = {
    "name": "get_customer",
    "arguments": {"id": "cust-12345", "amount": 20_000, "tags": ["a", "b"], "none": None},
}
RESOURCE = {"type": "customer", "id": "$params.arguments.id"}


def questions(body: dict[str, Any], *, token: dict[str, Any] = TOKEN) -> list[dict[str, Any]]:
    return Template({"evaluation": {"action": {"name": "read"}, "resource": RESOURCE} | body}).questions(
        CALL, token
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("params.name", "get_customer"),
        ("params.arguments['id']", "cust-12345"),
        ("token.?client_id", "coder"),
        ("token.?nothing", ABSENT),
        ("params.?arguments.?none", None),
        ("params.arguments.?nothing.orValue('standard')", "standard"),
        ("params.arguments.amount > 10000 ? 'high' : 'standard'", "high"),
        ("params.arguments.tags", ["a", "b"]),
        ("params.arguments.tags.exists(tag, tag == 'b')", True),
        ("has(params.arguments.case)", False),
        ("{'a': 1.5}", {"a": 1.5}),
    ],
)
def test_an_expression_gives_its_value_or_is_absent(text: str, value: Any) -> None:
    assert Expression(text).value(CALL, TOKEN) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("params.", "does not check"),
        ("subject.id", "does not check"),
        ("params.arguments.tags.map(tag, tag + tag)", "map is not available"),
        ("params.arguments.tags.filter(tag, true)", "filter is not available"),
        ("'" + "x" * MAX_CHARS + "'", "the limit is 512"),
        ("(" * 60 + "1" + ")" * 60, "does not check"),
    ],
)
def test_a_bad_expression_is_refused_before_it_runs(text: str, problem: str) -> None:
    with pytest.raises(MappingError, match=problem):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("params.arguments.region", "failed: .*region"),
        ("params.name + 1", "failed"),
        ("1.0 / 0.0", "no JSON value"),
        ("b'x'", "no JSON value"),
        ("timestamp('2026-01-01T00:00:00Z')", "no JSON value"),
        ("{1: 2}", "no JSON value"),
        ("18446744073709551615u", "no JSON value"),
        ("params", ""),
    ],
)
def test_an_expression_that_fails_or_gives_no_json_is_an_error(text: str, problem: str) -> None:
    if not problem:
        assert Expression(text).value(CALL, TOKEN) == CALL
        return
    with pytest.raises(MappingError, match=problem):
        Expression(text).value(CALL, TOKEN)


def test_nested_loops_end_at_the_iterations_of_the_runtime() -> None:
    many = {"items": list(range(5_000))}
    with pytest.raises(MappingError, match="budget"):
        Expression("params.items.all(a, params.items.all(b, params.items.all(c, true)))").value(many, TOKEN)


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    with suppress(MappingError):
        Expression(text).value(CALL, TOKEN)


def test_the_example_of_the_draft_gives_its_question() -> None:
    context = {
        "agent": "$token.?client_id",
        "price": "$$50",
        "missing": "$token.?none",
        "kept": [1, "$params.name"],
    }
    assert questions({"subject": {"type": "identity", "id": "$token.sub"}, "context": context}) == [
        {
            "subject": {"type": "identity", "id": "alice@example.com"},
            "action": {"name": "read"},
            "resource": {"type": "customer", "id": "cust-12345"},
            "context": {"agent": "coder", "price": "$50", "kept": [1, "get_customer"]},
        }
    ]


def test_evaluations_share_what_stands_above_them() -> None:
    entries = [
        {"action": {"name": "debit"}},
        {"action": {"name": "credit"}, "resource": {"type": "a", "id": "b"}},
    ]
    both = Template({"evaluations": {"resource": RESOURCE, "evaluations": entries}}).questions(CALL, TOKEN)
    assert [(q["subject"]["id"], q["action"]["name"], q["resource"]["id"]) for q in both] == [
        ("alice@example.com", "debit", "cust-12345"),
        ("alice@example.com", "credit", "b"),
    ]


def test_no_mapping_speaks_for_another_subject_or_sets_what_lifts() -> None:
    for other in ("root", "$params.arguments.id", "$$token.sub"):
        with pytest.raises(MappingError, match="not the subject of the token"):
            questions({"subject": {"id": other}})
    (question,) = questions(
        {
            "context": {
                "approval": {"id": "x"},
                "supported_obligations": ["mfa"],
                "mcp": {"server": "x"},
                "a": 1,
            }
        }
    )
    assert question["context"] == {"a": 1}


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        (None, "must be an object"),
        ({}, "one member"),
        ({"evaluation": {}, "evaluations": {}}, "one member"),
        ({"other": {}}, "write evaluation or evaluations"),
        ({"evaluation": []}, "must be an object"),
        ({"evaluation": {"options": {}}}, "options"),
        ({"evaluation": {"action": {"name": "a", "level": 1}}}, "put it into properties"),
        ({"evaluations": {"evaluations": []}}, "list of 1 to"),
        ({"evaluations": {"evaluations": [{}] * (MAX_QUESTIONS + 1)}}, "list of 1 to"),
        ({"evaluations": {"evaluations": [{"subject": {"id": "$token.sub"}}]}}, "has a subject"),
        ({"evaluation": {"context": {"a": "x" * 20_000}}}, "the limit is 16384"),
        ({"evaluation": {"context": {"a": [[[[[[[[[[1]]]]]]]]]]}}}, "nested deeper"),
        ({"evaluation": {"context": {"a": "$params.("}}}, "does not check"),
    ],
)
def test_a_malformed_mapping_is_refused(mapping: Any, problem: str) -> None:
    with pytest.raises(MappingError, match=problem):
        Template(mapping)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"action": None}, "action must be an object"),
        ({"action": {"name": 7}}, "action.name must be a text"),
        ({"action": {"name": ""}}, "action.name must be a text"),
        ({"resource": {"type": "a"}}, "resource.id must be a text"),
        ({"resource": {"type": "a", "id": "$params.?nothing"}}, "resource.id must be a text"),
        ({"resource": {"type": "a", "id": "$params.arguments.tags"}}, "resource.id must be a text"),
        ({"resource": {"type": "a", "id": "b", "properties": [1]}}, "resource.properties must be an object"),
        ({"context": "$params.name"}, "context must be an object"),
        ({"subject": "$params.name"}, "subject must be an object"),
    ],
)
def test_a_mapping_that_gives_no_question_is_an_error(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(MappingError, match=problem):
        questions(change)


@pytest.mark.parametrize("version", methods.VERSIONS)
def test_the_tables_have_the_requests_of_the_official_types(version: str) -> None:
    from mcp.types.methods import CLIENT_REQUESTS

    known = {method for method, since in CLIENT_REQUESTS if since == version}
    table = set(methods.table(version))
    assert known - table == ({"ping"} if version != methods.STATELESS else set())
    assert {name for name in table - known if not name.startswith("tasks/")} == set()


def test_every_default_mapping_gives_a_question() -> None:
    params = {"name": "n", "uri": "u", "taskId": "t", "level": "info", "protocolVersion": "v"}
    for version in methods.VERSIONS:
        for method, mapping in methods.table(version).items():
            (question,) = Template(mapping).questions(
                params | {"ref": {"type": "ref/prompt", "name": "n"}}, TOKEN
            )
            assert question["action"] == {"name": method}
            assert question["context"]["agent"] == "coder"
    (question,) = Template(methods.table("2025-11-25")["completion/complete"]).questions(
        {"ref": {"type": "ref/resource", "uri": "file:///{a}"}}, TOKEN
    )
    assert question["resource"] == {"type": "resource", "id": "file:///{a}"}
    assert methods.table("2031-01-01") == {}
