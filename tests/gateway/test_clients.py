"""Clients of other people get what they document: allow, deny, an error for 400, a timeout."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from apparitor.client import AuthZENClient
from apparitor.config import ScannerConfig
from apparitor.errors import AuthZENClientError, PDPTimeoutError, PDPUnavailableError
from apparitor.models import (
    Action,
    BatchEvaluationRequest,
    EvaluationRequest,
    EvaluationResponse,
    Resource,
    Subject,
)
from decern import Client as DecernClient
from decern import DecernError
from pydantic import AnyHttpUrl

from tests.gateways import Running, gateway

ALICE, BOB = {"type": "user", "id": "alice"}, {"type": "user", "id": "bob"}
RECORD = {"type": "record", "id": "record-1"}


@contextmanager
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class TestDecern:
    def test_it_gets_allow_and_deny_with_their_context(self, running: Running) -> None:
        client = DecernClient(running.url)
        allowed, denied = (client.evaluate(who, "write", RECORD) for who in (ALICE, BOB))
        assert (allowed.allowed, denied.allowed) == (True, False)
        assert allowed.context is not None
        assert allowed.context["outcome"] == "allow"
        assert client.healthy()

    def test_a_bad_request_is_its_error_with_the_status_and_the_reason(self, running: Running) -> None:
        with pytest.raises(DecernError, match="-> 400 Bad Request") as refusal:
            DecernClient(running.url).evaluate({"type": "user"}, "write", RECORD)
        assert refusal.value.status_code == 400
        assert "subject" in refusal.value.body

    def test_a_gateway_that_does_not_answer_is_a_timeout(self) -> None:
        with silent() as url, pytest.raises((DecernError, TimeoutError)):
            DecernClient(url, timeout=0.2).evaluate(ALICE, "write", RECORD)


def evaluated(url: str, subject: str, *, type: str = "user", budget_s: float = 20) -> EvaluationResponse:
    """What apparitor gets for a question whether a subject may write a record."""

    async def evaluate() -> EvaluationResponse:
        config = ScannerConfig(
            pdp_url=AnyHttpUrl(url),
            allow_insecure_pdp=True,
            request_budget_s=budget_s,
            read_timeout_s=budget_s,
            max_retries=1,
        )
        async with AuthZENClient(config) as client:
            question = EvaluationRequest(
                subject=Subject(type=type, id=subject),
                action=Action(name="write"),
                resource=Resource(type="record", id="record-1"),
            )
            return await client.evaluate(question)

    return asyncio.run(evaluate())


class TestApparitor:
    def test_it_gets_allow_and_deny(self, running: Running) -> None:
        assert evaluated(running.url, "alice").decision is True
        assert evaluated(running.url, "bob").decision is False

    def test_a_batch_keeps_its_order_and_ends_at_its_trigger(self, running: Running) -> None:
        async def evaluate() -> list[bool]:
            config = ScannerConfig(pdp_url=AnyHttpUrl(running.url), allow_insecure_pdp=True)
            async with AuthZENClient(config) as client:
                batch = BatchEvaluationRequest.model_validate(
                    {
                        "action": {"name": "write"},
                        "resource": RECORD,
                        "evaluations": [{"subject": who} for who in (ALICE, BOB, ALICE)],
                        "options": {"evaluations_semantic": "deny_on_first_deny"},
                    }
                )
                return [item.decision for item in (await client.evaluate_batch(batch)).evaluations]

        assert asyncio.run(evaluate()) == [True, False]

    def test_a_bad_request_is_its_error_of_the_client(self, running: Running) -> None:
        with pytest.raises(AuthZENClientError) as refusal:
            evaluated(running.url, "alice", type="")
        assert refusal.value.status_code == 400

    def test_a_gateway_that_does_not_answer_is_a_timeout(self) -> None:
        with silent() as url, pytest.raises(PDPTimeoutError):
            evaluated(url, "alice", budget_s=0.2)

    def test_a_daemon_that_is_away_is_unavailable(self, short_dir: Path) -> None:
        with gateway(f"ipc://{short_dir}/none.sock") as running, pytest.raises(PDPUnavailableError):
            evaluated(running.url, "alice")
