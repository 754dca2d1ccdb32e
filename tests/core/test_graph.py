"""The vocabulary of traces: its tables agree with the types of the wire and with the documents; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from thor_policy.core import graph, records
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.protocol.replies import encode_request
from thor_policy.protocol.requests import decode_request

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trace.md"


def refusal(op: str, **record: Json) -> tuple[str, str]:
    with pytest.raises(RequestError) as caught:
        decode_request(encode_request("", op, {"record": record}), max_bytes=10_000, max_deadline_ms=1)
    return caught.value.code, caught.value.message


def test_the_tables_have_each_type_of_the_wire_once() -> None:
    assert tuple(graph.NODES) == get_args(graph.NodeType)
    assert tuple(graph.EDGES) == get_args(graph.EdgeType)
    assert tuple(graph.NEXT_STATES) == get_args(graph.TraceStatus)


def test_each_end_is_a_type_of_node_and_each_op_an_op_of_records() -> None:
    for edge in graph.EDGES.values():
        assert {name for pair in edge.ends for name in pair} <= graph.NODES.keys()
        assert edge.ops or edge.follows_from
    for known in (*graph.EDGES.values(), *graph.NODES.values()):
        assert {*known.ops} <= {*records.RECORDS, "evaluate"}


@pytest.mark.parametrize("name", [*graph.NODES, *graph.EDGES])
def test_the_reference_has_a_row_for_each_type_with_its_ends_and_ops(name: str) -> None:
    rows = [line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    (cells,) = [
        [cell.strip() for cell in row] for row in rows if row[0].strip() == f"`{name}`" and len(row) > 3
    ]
    known = graph.EDGES.get(name) or graph.NODES[name]  # type: ignore[call-overload]
    ops = ", ".join(f"`{op}`" for op in known.ops)
    if isinstance(known, graph.Edge):
        sources, targets = (set(cell.split(", ")) for cell in cells[2:4])
        assert {pair[0] for pair in known.ends} == sources
        assert {pair[1] for pair in known.ends} == targets
    assert cells[1] == known.meaning
    assert cells[-2:] == [ops, known.follows_from]


@pytest.mark.parametrize("type_", [name for name, edge in graph.EDGES.items() if "edge" not in edge.ops])
def test_an_edge_that_another_op_states_or_that_follows_is_refused(type_: str) -> None:
    code, message = refusal("edge", source="a", target="b", type=type_)
    assert code == "bad_request"
    assert message.startswith(f"record.type: {type_} is not for the op edge; ")


@pytest.mark.parametrize("type_", [name for name, node in graph.NODES.items() if "node" not in node.ops])
def test_a_node_that_another_op_states_or_that_follows_is_refused(type_: str) -> None:
    code, message = refusal("node", type=type_, title="t")
    assert code == "bad_request"
    assert message.startswith(f"record.type: {type_} is not for the op node; ")


@pytest.mark.parametrize(
    ("op", "record", "message"),
    [
        ("node", {"type": "person", "title": "t"}, f"type: must be one of {', '.join(graph.NODES)}"),
        (
            "edge",
            {"source": "a", "target": "b", "type": "likes"},
            f"type: must be one of {', '.join(graph.EDGES)}",
        ),
        (
            "edge",
            {"source": "a", "target": "a", "type": "CITES"},
            "target: is the source itself; no edge may be a loop (CITES)",
        ),
        *(
            (
                "edge",
                {"source": "a", "target": "b", "type": "leads_to", field: value},
                f"{field}: is for edges of the type CITES only; leave it out",
            )
            for field, value in (("similarity", 0.5), ("how", "by hand"), ("favourable", False))
        ),
        (
            "node",
            {"type": "actor", "title": "t"},
            "actor_type: is missing; a node of the type actor needs it",
        ),
        *(
            (
                "node",
                {"type": "goal", "title": "t", field: value},
                f"{field}: is for nodes of the type actor only; leave it out",
            )
            for field, value in (("actor_type", "human"), ("role", "lead"))
        ),
        *(
            (
                "trace_state",
                {"decision_id": "a", "status": status, "because": "b"},
                f"by: is missing; the status {status} needs the decision that made it so",
            )
            for status in ("superseded", "overturned")
        ),
        *(
            (
                "trace_state",
                {"decision_id": "a", "status": status, "because": "b", "by": "c"},
                "by: is for the statuses superseded and overturned only; leave it out",
            )
            for status in ("active", "under_review")
        ),
        (
            "trace_state",
            {"decision_id": "a", "status": "superseded", "because": "b", "by": "a"},
            "by: is the decision itself; no edge may be a loop (SUPERSEDED_BY)",
        ),
        (
            "trace_state",
            {"decision_id": "a", "status": "overturned", "because": "b", "by": "a"},
            "by: is the decision itself; no edge may be a loop (OVERTURNED_BY)",
        ),
        (
            "trace_state",
            {"decision_id": "a", "status": "active", "because": ""},
            "because: must not be empty",
        ),
        ("trace_state", {"decision_id": "a", "status": "active"}, None),
    ],
)
def test_the_wire_refuses_what_breaks_a_rule_by_itself(
    op: str, record: dict[str, Json], message: str | None
) -> None:
    expected = "record: object missing required field `because`" if message is None else f"record.{message}"
    assert refusal(op, **record) == ("bad_request", expected)


@pytest.mark.parametrize(("type_", "edge"), graph.EDGES.items())
def test_ends_fit_an_edge_only_if_the_table_says_so(type_: str, edge: graph.Edge) -> None:
    for source in graph.NODES:
        for target in graph.NODES:
            problem = graph.problem_of_ends(type_, source, target)
            assert (problem is None) == ((source, target) in edge.ends)
            assert problem is None or f"{type_} cannot lead from {source} to {target}" in problem
