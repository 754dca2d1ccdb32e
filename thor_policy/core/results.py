"""What one thread reports to another: decisions, refusals, commits, results of long work.

Owns the values that end in the main thread's mailbox. Invariant: each is frozen, and names the request it
belongs to by its ticket where somebody waits for it. Made by the engine, journal, maintenance and pack
threads; read by the main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from msgspec import Struct

from thor_policy.core.approvals import Moment, Task
from thor_policy.core.decisions import Decision, Explanation
from thor_policy.core.errors import ErrorCode, RequestError
from thor_policy.core.requests import Json


@dataclass(frozen=True)
class Explained:
    """An explanation that is ready to be recorded with decision `decision_id`.

    `sender` is the caller (`Caller.who`) that the decision was made for.
    """

    ticket: int
    decision_id: str
    explanation: Explanation
    sender: str | None = None


@dataclass(frozen=True)
class Unexplained:
    """An explanation that could not be given before its deadline."""

    ticket: int


@dataclass(frozen=True)
class Refused:
    """A request that got no decision."""

    ticket: int
    error: RequestError


#: What the engine thread reports of a request.
EngineResult: TypeAlias = Decision | Explained | Unexplained | Refused


class Committed(Struct, frozen=True, kw_only=True, gc=False):
    """What became of one event: on disk as number `seq`, or (with `error`) not.

    `commit_ms` is queue plus transaction time, `size` the bytes of body and private part, `sender` the caller
    (`Caller.who`) whose request it comes from; None: it comes from the daemon. `reason_code` is that of the
    error. `cited_by` has the `count` and the `ids` of the decisions that cite the one whose state changed;
    `task` is a task of approvals that changed, as it is at `moment`.
    """

    ticket: int | None
    kind: str
    seq: int = 0
    commit_ms: float = 0.0
    error: ErrorCode | None = None
    message: str | None = None
    size: int = 0
    sender: str | None = None
    reason_code: str | None = None
    cited_by: dict[str, Json] | None = None
    task: Task | None = None
    moment: Moment | None = None


@dataclass(frozen=True)
class JobDone:
    """What became of a job: maintenance of the journal, a change of packs or adapter, or a search.

    `record` hands an event of the job's ticket to the journal: the answer waits for its commit.
    """

    answer: dict[str, Json] | RequestError
    record: Callable[[], None] | None = None


class PriorRecord(Struct, frozen=True, kw_only=True):
    """What was recorded for an idempotency key: an event, and the decision that it tells of.

    `content` is that of its `Mark`; `id` that of the decision or record. `task` is the task of approvals that
    the record changed, as it is at `moment`.
    """

    content: str
    kind: str
    id: str
    seq: int
    decision: Decision | None = None
    task: Task | None = None
    moment: Moment | None = None


@dataclass(frozen=True)
class KeyLookup:
    """What the journal holds for an idempotency key: a record, nothing, or why it cannot say."""

    prior: PriorRecord | RequestError | None


#: What arrives in the main thread's mailbox with a ticket.
Report: TypeAlias = EngineResult | JobDone | KeyLookup
