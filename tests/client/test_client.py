"""The clients: one contract for both, and the concurrency of the asyncio client."""

from __future__ import annotations

import asyncio
import dataclasses
import decimal
import enum
import inspect
import json
import math
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.client.aio import AsyncClient
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import RequestError, Unreachable
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.protocol.replies import encode_request, reply_id
from thor_policy.testing import load_stub_engine

#: Longest wait of any test, in milliseconds.
PATIENCE_MS = 20_000
QUESTION: Json = {
    "subject": {"type": "user", "id": "ivo", "properties": {"role": "developer"}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
}


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


class Calls:
    """Either client with blocking calls; each call uses a new client."""

    def __init__(self, endpoint: str, *, awaited: bool) -> None:
        self._endpoint, self._awaited = endpoint, awaited

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, timeout: int = PATIENCE_MS, **kwargs: Any) -> Any:
            if not self._awaited:
                with Client(self._endpoint, timeout_ms=timeout) as client:
                    return getattr(client, name)(*args, **kwargs)

            async def ask() -> Any:
                async with AsyncClient(self._endpoint, timeout_ms=timeout) as client:
                    return await getattr(client, name)(*args, **kwargs)

            return asyncio.run(ask())

        return call


@pytest.fixture(params=[False, True], ids=["blocking", "awaited"])
def awaited(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


class TestEither:
    """The contract of both clients."""

    @pytest.fixture
    def calls(self, served: Config, awaited: bool) -> Calls:
        return Calls(served.endpoint, awaited=awaited)

    def test_gets_a_decision(self, calls: Calls) -> None:
        reply = calls.evaluate(QUESTION, explain="inline", deadline_ms=PATIENCE_MS)
        assert reply["context"]["tier"] == "model"
        assert reply["context"]["reasoning"] is not None

    def test_gets_status_and_metrics(self, calls: Calls) -> None:
        assert calls.status().state == "serving"
        assert calls.metrics()

    def test_records_every_kind_of_record(self, calls: Calls) -> None:
        decision_id = calls.track_signal(agent="scout", symbol="ACME", signal="BUY", confidence=0.5)
        newer = calls.decision_report(records.DecisionReport(agent="trader", outcome="HOLD"))
        ids = [
            newer,
            calls.track_risk(agent="warden", symbol="ACME", outcome="REDUCE"),
            calls.consultation(records.Consultation(system="crm", session="s")),
            calls.outcome(decision_id, "SUCCESS", 12.5, note="sold"),
            calls.review(records.Review(decision_id=decision_id, reviewer="ines", verdict="accept")),
            calls.approval(records.Approval(decision_id=decision_id, approver="ines")),
            goal := calls.node(records.Node(type="goal", title="Ship")),
            calls.edge(records.Edge(source=goal, target=decision_id, type="leads_to")),
            calls.supersede(decision_id, by=newer, because="newer")["id"],
            calls.overturn(decision_id, by=newer, because="wrong")["id"],
        ]
        assert len({decision_id, *ids}) == 11
        recorded = calls.status().counters
        assert sum(count for name, count in recorded.items() if name.endswith("_recorded")) == 11

    def test_sends_maintenance_tasks(self, calls: Calls) -> None:
        assert calls.maintenance(records.Maintenance(task="checkpoint"))["checkpoint"] > 0

    def test_raises_the_refusal_of_a_request(self, calls: Calls) -> None:
        with pytest.raises(RequestError, match=r"situation\.action_type") as caught:
            calls.evaluate({"actor_id": "user:ivo"})
        assert caught.value.code == "bad_request"

    def test_raises_the_refusal_of_an_oversized_request(self, calls: Calls) -> None:
        with pytest.raises(RequestError, match="65536") as caught:
            calls.evaluate({"padding": "x" * 70_000})
        assert caught.value.code == "too_large"

    @pytest.mark.parametrize("amount", [float("inf"), float("-inf"), float("nan")])
    def test_sends_no_number_that_is_not_finite(self, calls: Calls, amount: float) -> None:
        report = records.DecisionReport(agent="a", outcome="b", context={"amounts": [amount]})
        for name, arguments, place in (
            ("evaluate", [QUESTION | {"context": {"amount": amount}}], "request.context.amount"),
            ("evaluate", [{"actor_id": "user:ivo", "details": {"n": amount}}], "situation.details.n"),
            ("outcome", ["an-id", "SUCCESS", amount], "record.value"),
            ("decision_report", [report], "record.context.amounts.0"),
            ("consultation", [records.Consultation(system="a", session="b", value=amount)], "record.value"),
            (
                "node",
                [records.Node(type="goal", title="t", metadata={"n": {"m": amount}})],
                "record.metadata.n.m",
            ),
            ("edge", [records.Edge(source="a", target="b", type="c", weight=amount)], "record.weight"),
            ("control", [records.Control(task="adapter", adapter="a", scale=amount)], "record.scale"),
            ("call", ["evaluate", {"evaluations": [{"context": {"n": amount}}]}], "evaluations.0.context.n"),
        ):
            with pytest.raises(RequestError) as caught:
                getattr(calls, name)(*arguments)
            problem = f"{amount} is no JSON number; give a finite number, or leave the member out"
            assert (caught.value.code, caught.value.message) == ("bad_request", f"{place}: {problem}")
        with pytest.raises(RequestError, match=r"^annotations\.tags\.0: "):
            calls.evaluate(QUESTION, annotations={"tags": [amount]})
        with pytest.raises(RequestError, match=r"^record\.confidence: "):
            calls.track_signal(agent="a", symbol="b", signal="BUY", confidence=amount)
        assert calls.status().counters == {"received": 1}

    def test_raises_unreachable_at_once_if_no_daemon_listens(self, config: Config, awaited: bool) -> None:
        with pytest.raises(Unreachable, match="thorpolicy serve"):
            Calls(config.endpoint, awaited=awaited).status()

    def test_raises_unreachable_after_the_timeout(self, config: Config, awaited: bool) -> None:
        with silent_daemon(config), pytest.raises(Unreachable, match="no reply within 50 ms"):
            Calls(config.endpoint, awaited=awaited).evaluate(QUESTION, timeout=50)


#: A pack whose outcome is lifted by a person with a role, whoever else that person is.
APPROVED_BY_ANYBODY = """
name: deploys
version: "1"
description: Deploys need a manager.
model: never
default: review
outcomes:
  - label: allow
  - {label: review, lifted_by: {steps: [{role: manager, not: []}], uses: until}}
  - label: deny
"""


def test_either_client_requests_lists_gives_and_ends_approvals(
    config: Config, tmp_path: Path, awaited: bool
) -> None:
    (tmp_path / "pack.yaml").write_text(APPROVED_BY_ANYBODY)
    (tmp_path / "rules.yaml").write_text("[]")
    config = dataclasses.replace(config, pack=str(tmp_path), people=(f"uid:{os.getuid()}=kim;manager",))
    calls = Calls(config.endpoint, awaited=awaited)

    def requested(key: str | None = None) -> dict[str, Json]:
        request = records.ApprovalRequest(decision_id=decision_id, reason="now")
        task: dict[str, Json] = calls.request_approval(request, idempotency_key=key)
        return task

    def listed(**query: Any) -> list[str]:
        return [task["id"] for task in calls.approvals(records.ApprovalQuery(**query))]

    with serving(config, load_engine=load_stub_engine):
        decision_id = calls.evaluate(QUESTION)["context"]["decision_id"]
        first = requested("a key")
        assert (first["status"], first["missing"]) == ("pending", [["manager"]])
        assert requested("a key")["id"] == first["id"], "the same key is the same request"
        with pytest.raises(RequestError, match="is open") as caught:
            requested()
        assert caught.value.reason_code == "duplicate_request"
        assert calls.change_approval(records.Cancel(task=first["id"]))["status"] == "cancelled"
        second = requested()["id"]
        assert calls.change_approval(records.Deny(task=second, comment="no"))["status"] == "denied"
        third = requested()["id"]
        assert [task["id"] for task in calls.approvals()] == [third]
        approved = calls.change_approval(records.Approve(task=third), idempotency_key="yes")
        assert (approved["status"], approved["approval"]) == ("approved", {"id": third})
        assert listed() == []
        assert listed(states=("approved", "denied", "cancelled")) == [third, second, first["id"]]
        (task,) = calls.approvals(records.ApprovalQuery(id=third))
        assert task["question"]["action"]["name"] == "deploy"
        allowed = calls.evaluate(QUESTION | {"context": {"approval": {"id": third}}})
        assert allowed["decision"] is True
        with pytest.raises(RequestError) as unknown:
            calls.approvals(records.ApprovalQuery(id="nobody"))
        assert (unknown.value.code, unknown.value.reason_code) == ("not_found", "unknown_task")


class Sides(enum.Enum):
    LEFT = "left"
    NONE = math.nan


class Text(str):
    __slots__ = ()


ITSELF: list[Any] = []
ITSELF.append(ITSELF)

NO_JSON: dict[str, tuple[Any, str]] = {
    "nan in a tuple": ((1, [math.nan]), ".1.0: nan is no JSON number; give a finite number"),
    "enum of nan": (Sides.NONE, ": nan is no JSON number"),
    "2**63": (2**63, ": the integer does not fit 64 bits; give a float or a string"),
    "2**64": ([2**64], ".0: the integer does not fit 64 bits"),
    "-2**63-1": (-(2**63) - 1, ": the integer does not fit 64 bits"),
    "10**30": ({"n": 10**30}, ".n: the integer does not fit 64 bits"),
    "surrogate": ("a\ud800", r": the text holds the lone surrogate '\ud800', which UTF-8 cannot encode"),
    "surrogate in a name": ({"\udfff": 1}, r": the text holds the lone surrogate '\udfff'"),
    "integer as a name": ({1: 2}, ": the name 1 is no string; make it one"),
    "float as a name": ({1.5: 2}, ": the name 1.5 is no string"),
    "None as a name": ({"a": {None: 2}}, ".a: the name None is no string"),
    "tuple as a name": ({(1, 2): 2}, ": the name (1, 2) is no string"),
    "Decimal": (
        decimal.Decimal("1.50"),
        ": a value of type decimal.Decimal is no JSON; give a string, a num",
    ),
    "datetime": (datetime(2026, 1, 1), ": a value of type datetime.datetime is no JSON"),  # noqa: DTZ001
    "UUID": (uuid.UUID(int=1), ": a value of type uuid.UUID is no JSON"),
    "bytes": (b"ab", ": a value of type builtins.bytes is no JSON"),
    "set": ({1, 2}, ": a value of type builtins.set is no JSON"),
    "text of another class": (Text("a"), ": a value of type tests.client.test_client.Text is no JSON"),
    "NumPy": (numpy.float64(1.5), ": a value of type numpy.float64 is no JSON"),
    "object": (object(), ": a value of type builtins.object is no JSON"),
    "a list in itself": (ITSELF, ": is nested too deep, or contains itself"),
}


@pytest.mark.parametrize(("value", "problem"), NO_JSON.values(), ids=NO_JSON)
def test_a_value_that_json_cannot_say_is_refused_with_its_path(value: Any, problem: str) -> None:
    for fields, place in (
        ({"request": QUESTION | {"context": {"x": value}}}, "request.context.x"),
        ({"record": records.Consultation(system="a", session="b", value=value)}, "record.value"),
        ({"anything": [{"x": value}]}, "anything.0.x"),
    ):
        with pytest.raises(RequestError) as caught:
            encode_request("q", "evaluate", fields)
        assert caught.value.code == "bad_request"
        path = caught.value.message if value is not ITSELF else f"{place}{problem}"
        assert path.startswith(f"{place}{problem}")


def test_values_that_json_can_say_are_sent_as_they_are() -> None:
    value = {
        "a": (1, [2.5, None, True]),
        "b": OrderedDict(c="ü"),
        "d": Sides.LEFT,
        "": 2**63 - 1,
        "e": -(2**63),
    }
    sent = json.loads(encode_request("q", "evaluate", {"request": value}))
    read = {"a": [1, [2.5, None, True]], "b": {"c": "ü"}, "d": "left", "": 2**63 - 1, "e": -(2**63)}
    assert sent == {"v": 1, "id": "q", "op": "evaluate", "request": read}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def signatures(kind: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(function).replace(return_annotation=None)
            for name, function in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert signatures(Client) == signatures(AsyncClient)
    assert all(
        inspect.iscoroutinefunction(getattr(AsyncClient, name))
        for name in signatures(Client).keys() - {"alive"}
    )


@contextmanager
def silent_daemon(config: Config) -> Iterator[zmq.Socket[bytes]]:
    """A daemon's socket on which only the test replies."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.set(zmq.LINGER, 0)
        router.set(zmq.RCVTIMEO, PATIENCE_MS)
        router.bind(config.endpoint)
        yield router


def in_loop(
    config: Config, use: Callable[[AsyncClient], Coroutine[Any, Any, None]], timeout_ms: int = PATIENCE_MS
) -> None:
    async def run() -> None:
        async with AsyncClient(config.endpoint, timeout_ms=timeout_ms) as client:
            await use(client)

    asyncio.run(run())


async def receive(router: zmq.Socket[bytes], count: int) -> list[tuple[bytes, dict[str, Json]]]:
    """The next requests, each with its routing id."""
    messages = [await asyncio.to_thread(router.recv_multipart) for _ in range(count)]
    return [(route, json.loads(frame)) for route, frame in messages]


def answer(router: zmq.Socket[bytes], route: bytes, request: dict[str, Json], **members: Json) -> None:
    router.send_multipart([route, msgspec.json.encode({"v": 1, "id": request["id"]} | members)])


class TestAwaited:
    """Many calls at once over one socket; the test itself replies in place of a daemon."""

    def test_each_call_gets_its_own_reply_in_any_order_of_replies(self, config: Config) -> None:
        with silent_daemon(config) as router:

            async def use(client: AsyncClient) -> None:
                calls = [asyncio.create_task(client.call("evaluate", {"n": n})) for n in range(20)]
                requests = await receive(router, 20)
                assert len({route for route, _ in requests}) == 1
                for route, request in reversed(requests):
                    answer(router, route, request, echo=request["n"])
                assert [reply["echo"] for reply in await asyncio.gather(*calls)] == list(range(20))

            in_loop(config, use)

    def test_a_cancelled_call_does_not_affect_other_calls(self, config: Config) -> None:
        with silent_daemon(config) as router:

            async def use(client: AsyncClient) -> None:
                calls = [asyncio.create_task(client.call("evaluate", {"n": n})) for n in range(3)]
                requests = await receive(router, 3)
                calls[1].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await calls[1]
                for route, request in requests:  # that of the cancelled call too
                    answer(router, route, request, echo=request["n"])
                assert [(await calls[n])["echo"] for n in (0, 2)] == [0, 2]
                later = asyncio.create_task(client.call("evaluate", {"n": 3}))
                ((route, request),) = await receive(router, 1)
                answer(router, route, request, echo=3)
                assert (await later)["echo"] == 3

            in_loop(config, use)

    def test_a_late_reply_is_never_given_to_another_call(self, config: Config) -> None:
        with silent_daemon(config) as router:

            async def use(client: AsyncClient) -> None:
                with pytest.raises(Unreachable, match="no reply within 50 ms"):
                    await client.call("evaluate", {"n": 0}, timeout_ms=50)
                ((route, late),) = await receive(router, 1)
                second = asyncio.create_task(client.call("evaluate", {"n": 1}))
                ((_, request),) = await receive(router, 1)
                answer(router, route, late, echo=0)
                answer(router, route, request, echo=1)
                assert (await second)["echo"] == 1

            in_loop(config, use)

    def test_a_reply_without_id_is_given_to_the_largest_waiting_request(self, config: Config) -> None:
        with silent_daemon(config) as router:

            async def use(client: AsyncClient) -> None:
                with pytest.raises(Unreachable):
                    await client.call("evaluate", {"padding": "x" * 200}, timeout_ms=50)
                await receive(router, 1)
                small, large = (
                    asyncio.create_task(client.call("evaluate", {"padding": "x" * size})) for size in (1, 100)
                )
                (route, request), _ = await receive(router, 2)
                answer(router, route, {"id": ""}, error={"code": "too_large", "message": "too large"})
                with pytest.raises(RequestError, match="too large"):
                    await large
                answer(router, route, request, echo=1)
                assert (await small)["echo"] == 1

            in_loop(config, use)

    def test_close_ends_the_waiting_calls(self, config: Config) -> None:
        with silent_daemon(config) as router:

            async def use(client: AsyncClient) -> None:
                waits = asyncio.create_task(client.status())
                await receive(router, 1)
                await client.close()
                await client.close()
                with pytest.raises(Unreachable, match="closed"):
                    await waits

            in_loop(config, use)

    def test_waiting_calls_end_if_the_daemon_is_gone_and_later_calls_reconnect(self, config: Config) -> None:
        async def use(client: AsyncClient) -> None:
            with silent_daemon(config) as router:
                waits = asyncio.create_task(client.status())
                await receive(router, 1)
                router.unbind(config.endpoint)
                config.socket_path.unlink(missing_ok=True)
                with pytest.raises(Unreachable):
                    await client.call("status", {}, timeout_ms=50)
                with pytest.raises(Unreachable, match="no longer listens"):
                    await waits
                with pytest.raises(Unreachable, match="thorpolicy serve"):
                    await client.status()
            with silent_daemon(config) as router:
                again = asyncio.create_task(client.status())
                ((route, request),) = await receive(router, 1)
                answer(router, route, request, status={"state": "serving"})
                with pytest.raises(RequestError, match="another version"):  # it is a reply, to this call
                    await again

        in_loop(config, use)

    def test_hundreds_of_calls_at_once_are_answered(self, served: Config) -> None:
        async def use(client: AsyncClient) -> None:
            questions = [QUESTION | {"resource": {"type": "env", "id": f"e{n}"}} for n in range(200)]
            replies = await asyncio.gather(*map(client.evaluate, questions))
            assert len({reply["context"]["decision_id"] for reply in replies}) == 200

        in_loop(served, use)


@given(st.one_of(st.binary(), st.builds(msgspec.json.encode, st.dictionaries(st.text(), st.integers()))))
def test_a_frame_that_is_not_a_reply_has_no_request_id(frame: bytes) -> None:
    assert reply_id(frame) == ""
