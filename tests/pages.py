"""A daemon and its pages, both real."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.gateway import serving
from thor_policy.web.serving import make_web_server
from thor_policy.web.visits import Places

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
#: The pack deploy-approval, and people who approve by its rules: Kim and Lee have tokens.
APPROVALS: dict[str, Any] = {
    "pack": str(EXAMPLES / "deploy-approval"),
    "people": ("token:kim=kim;manager", "token:lee=lee;security"),
}


@dataclass
class Running:
    """Pages that are served; `url` is where, `counters` what they count."""

    url: str
    counters: Counter[str]

    def client(self, **options: Any) -> httpx.Client:
        """A client that keeps cookies and sends what a page of this origin sends."""
        headers = {"Origin": self.url} | options.pop("headers", {})
        return httpx.Client(base_url=self.url, trust_env=False, timeout=30, headers=headers, **options)


@contextmanager
def pages(config: Config, **settings: Any) -> Iterator[Running]:
    """The pages of a daemon, on a thread, for the length of the block."""
    counters: Counter[str] = Counter()
    places = Places(
        journal=config.journal_path,
        events_endpoint=config.events_endpoint,
        results=settings.pop("results", config.state_dir),
        scenarios=data_path("scenarios"),
        reviewer="robin",
    )
    wanted = {"address": "127.0.0.1", "port": 0} | settings
    opened, known = serving.listen(serving.Settings(endpoint=config.endpoint, **wanted))
    ready = threading.Event()
    server = make_web_server(known, places, counters, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, name="web", daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        yield Running(known.base_url, counters)
    finally:
        server.should_exit = True
        thread.join(20)
        opened.close()
        assert not thread.is_alive()


def with_approvals(config: Config) -> Config:
    """A daemon whose pack has outcomes that approvals lift."""
    return replace(config, **APPROVALS)


def deploy(by: str = "alice", environment: str = "production", **context: Json) -> dict[str, Json]:
    """A question that the pack deploy-approval answers with a denial that can be lifted."""
    return {
        "subject": {"type": "user", "id": by},
        "action": {"name": "deploy"},
        "resource": {"type": "env", "id": environment},
        "context": {"change": "CHG-7"} | context,
    }


def requested(client: Client, question: Json) -> str:
    """The id of a new task, which asks for the approvals that the answer to a question needs."""
    decision_id = client.evaluate(question)["context"]["decision_id"]
    task = client.request_approval(
        records.ApprovalRequest(decision_id=decision_id, reason="The fix is ready.")
    )
    return str(task["id"])
