"""What the tests of the journal share: values to record, a callback that waits, and looks at the file."""

from __future__ import annotations

import itertools
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from thor_policy import trace
from thor_policy.calibration import Calibration
from thor_policy.core import (
    Action,
    Adapter,
    Caller,
    Decision,
    Entity,
    Evaluation,
    Explanation,
    Floor,
    Json,
    ModelInfo,
    PackInfo,
    Scored,
    Timings,
)
from thor_policy.journal import chain, events, projections
from thor_policy.journal.checkpoints import Signer
from thor_policy.journal.events import Event
from thor_policy.journal.placing import Rewrite
from thor_policy.journal.reader import read_only_uri
from thor_policy.journal.writer import Checkpoints, Committed, Journal

#: How long a test waits for what must come; far more than it takes.
WAIT_S = 60.0
#: 2026-07-01T12:00:00Z.
NOON = 1_782_907_200.0

PACK = PackInfo(name="core", version="1.2.0", sha256="c0ffee" + "0" * 58)
MODEL = ModelInfo(
    name="phi-4-mini",
    sha256="f" * 64,
    quantisation="Q4_K_M",
    architecture="phi3",
    parameters=3_800_000_000,
    build="llama-cpp-python 0.3.36",
    device="cpu",
)
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
ASKED = Evaluation(
    subject=Entity(type="user", id="alice", properties={"role": "developer", "trust": {"competence": 0.9}}),
    action=Action(name="deploy"),
    resource=Entity(type="env", id="production"),
    context={"team_context": "platform", "details": "the release, on a Friday", "change/~7": [1, 2]},
)
SCORED = Scored(
    label="deny",
    probabilities={"allow": 0.25, "deny": 0.75},
    logits=(1.5, 2.25, -3.0),
    suffix_tokens=(17, 4, 99),
    prefix_tokens=1527,
    prefix_digest="ab" * 32,
    score_ms=12.5,
)
EXPLAINED = Explanation(
    classification="freeze_violation",
    clauses=("R3", "R1"),
    reasoning="Nobody deploys on a Friday.",
    text="deny\nR3,R1\nNobody deploys on a Friday.",
    generated_tokens=9,
    explain_ms=80.5,
)
_numbers = itertools.count(1)


def by_model(**changes: Any) -> Decision:
    """A decision that the model took, not explained yet."""
    fields: dict[str, Any] = {
        "id": f"018f-{next(_numbers):08}",
        "at": NOON,
        "evaluation": ASKED,
        "caller": CALLER,
        "outcome": "deny",
        "allow": False,
        "tier": "model",
        "floor": Floor(outcome="allow", final=False, facts={"friday": True}, risk="high"),
        "risk": "high",
        "pack": PACK,
        "model": MODEL,
        "label": "deny",
        "confidence": 0.75,
        "probabilities": SCORED.probabilities,
        "scored": SCORED,
        "timings": Timings(queue_ms=0.5, rules_ms=0.25, score_ms=12.5),
    }
    return Decision(**fields | changes)


def without_model(**changes: Any) -> Decision:
    """A decision for which no model was asked."""
    nothing = {"model": None, "label": None, "confidence": None, "probabilities": {}, "scored": None}
    return by_model(**nothing | {"timings": Timings()} | changes)


def by_rule(**changes: Any) -> Decision:
    """A decision that a rule took alone, with its reason."""
    floor = Floor(
        outcome="deny",
        final=True,
        rules=("freeze",),
        clauses=("R3",),
        because="the freeze is on",
        classification="freeze_violation",
    )
    explanation = Explanation(
        classification="freeze_violation", clauses=("R3",), reasoning="the freeze is on", text=""
    )
    return without_model(**{"tier": "rule", "floor": floor, "explanation": explanation} | changes)


def fallback(**changes: Any) -> Decision:
    """A decision that nobody could take, so that it is the strictest."""
    return without_model(**{"tier": "fallback", "reason_code": "engine_failed"} | changes)


def note(text: str = "", **changes: Any) -> Event:
    """An event of a kind that no table shows: it stands on the chain alone."""
    fields: dict[str, Any] = {"kind": "note", "subject_id": "n", "at": NOON, "body": {"text": text}}
    return Event(**fields | changes)


def about(**properties: Json) -> Evaluation:
    """The usual question, with this context."""
    return Evaluation(subject=ASKED.subject, action=ASKED.action, resource=ASKED.resource, context=properties)


def sent(record: trace.Record, *, at: float = NOON, **changes: Any) -> Event:
    """The event of a record that somebody sent, with an id of its own."""
    return events.recorded(
        record, record_id=changes.pop("record_id", f"r-{next(_numbers):08}"), at=at, caller=CALLER, **changes
    )


class Fates:
    """The callback of a journal: what became of each event, in the order in which it was told."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[list[Committed]] = queue.SimpleQueue()
        self._go_on = threading.Event()
        self._go_on.set()

    def __call__(self, batch: list[Committed]) -> None:
        self._told.put(batch)
        assert self._go_on.wait(WAIT_S)

    @property
    def silent(self) -> bool:
        return self._told.empty()

    def batch(self) -> list[Committed]:
        """The next batch."""
        return self._told.get(timeout=WAIT_S)

    def wait(self, count: int) -> list[Committed]:
        """The fates of the next `count` events, which whole batches must make up."""
        fates: list[Committed] = []
        while len(fates) < count:
            fates += self.batch()
        assert len(fates) == count
        return fates

    @contextmanager
    def one_batch(self, journal: Journal) -> Iterator[None]:
        """What is appended inside arrives while the journal is busy with an event of ours."""
        self._go_on.clear()
        journal.append(note("keeps the journal busy"))
        self.batch()
        try:
            yield
        finally:
            self._go_on.set()


def record(path: Path, *what: Decision | Event, **options: Any) -> list[Committed]:
    """Open the journal, record all this, and close it. No test pulls the plug, so nothing is synced."""
    fates = Fates()
    with Journal(path, on_committed=fates, **{"synchronous": "OFF"} | options) as journal:
        for one in what:
            if isinstance(one, Decision):
                journal.decided(one)
            else:
                journal.append(one)
        told = fates.wait(len(what))
    assert [fate.error for fate in told] == [None] * len(what)
    return told


def signing(path: Path, *, every_events: int = 1_000_000, every_s: float = 1e9) -> Checkpoints:
    """Checkpoints beside the journal at `path`; by default only a clean stop makes one."""
    signer = Signer.load(path.parent / "checkpoint.key")
    signer.publish(path.parent / "checkpoints")
    return Checkpoints(signer, path.parent / "checkpoints", every_events, every_s)


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a process beside the daemon sees."""
    with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
        return connection.execute(sql, values).fetchall()


def row(path: Path, table: str, where: str = "1", *values: Any) -> dict[str, Any]:
    """The only stored row of a table that fits, as it stands, nothing decoded."""
    with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        (found,) = connection.execute(f"SELECT * FROM {table} WHERE {where}", values).fetchall()
        return dict(found)


def decision_row(path: Path, decision_id: str) -> dict[str, Any]:
    """The stored row of a decision."""
    return row(path, "decisions", "decision_id = ?", decision_id)


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that may write, as somebody has who owns the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


@contextmanager
def stalled(path: Path) -> Iterator[None]:
    """While this lasts no commit comes through: somebody else holds the write lock."""
    with writing(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def erasing(path: Path, *seqs: int, keep: str | None = None) -> Event:
    """The event that erases the private parts of these events, or puts `keep` in their place."""
    effect = []
    for seq in seqs:
        ((kind, subject_id, at, body),) = rows(
            path, "SELECT kind, subject_id, at, body FROM events WHERE seq = ?", seq
        )
        private = None if keep is None else (chain.seal(b"")[0], keep)
        parts = projections.read(kind, body.encode(), keep.encode() if keep is not None else None)
        effect.append(
            Rewrite(
                seq=seq,
                kind=kind,
                subject_id=subject_id,
                private=private,
                projection=projections.project(kind, seq, at, subject_id, *parts),
            )
        )
    parts_told = {str(one.seq): one.digest.hex() for one in effect}
    return Event(kind="erased", subject_id="erased", at=NOON, body={"parts": parts_told}, effect=effect)


CALIBRATION = Calibration(temperature=2.0, pack_sha256="a" * 64, model_sha256="b" * 64, judged=60)
PROMOTION = trace.Promotion(
    name="team",
    version="2",
    sha256="d" * 64,
    against=PACK.sha256,
    model_sha256="b" * 64,
    passed=True,
    report='{"checks":[{"name":"lint","passed":true}]}',
    key="ab" * 8,
    signature="cd" * 64,
)


def one_of_each() -> list[Event]:
    """Events of every kind, with reviews, outcomes and explanations, some of them twice on one decision.

    Twenty-two events, in an order that the journal takes.
    """
    asked, other, told = (
        by_model(evaluation=about(details="a change", team_context="platform")),
        by_rule(),
        "b",
    )
    reported = sent(
        trace.Reported(
            agent="trader",
            outcome="buy",
            type="signal",
            entity="ACME",
            prompt="what now?",
            response="buy",
            reasoning="it is cheap",
            context={"price": 7.5},
            confidence=0.625,
            session="s1",
            tags=("x",),
            latency_ms=12.0,
            input_tokens=5,
            output_tokens=1,
        ),
        record_id=f"reported-{next(_numbers)}",
    )
    subject = reported.subject_id
    return [
        events.model_loaded(MODEL, NOON),
        events.pack_activated(PACK, NOON),
        events.decided(asked),
        events.decided(other),
        sent(trace.Consulted(system="prices", session="s1", entity="ACME", query="q", value={"p": 7.5})),
        reported,
        sent(trace.Consulted(system="risk", decision_id=subject, value=[1], relevance=0.5, took_ms=1.5)),
        events.explained(asked.id, EXPLAINED, NOON + 1),
        sent(trace.Review(decision_id=asked.id, reviewer="robin", verdict="accept")),
        sent(
            trace.Review(
                decision_id=asked.id, reviewer="kim", verdict="correct_both", decision="allow", reasoning="no"
            )
        ),
        sent(trace.Review(decision_id=other.id, reviewer="kim", verdict="correct_reasoning", reasoning="it")),
        sent(trace.Happened(decision_id=subject, status="PENDING")),
        sent(trace.Happened(decision_id=subject, status="SUCCESS", value=12.5, note="sold")),
        sent(trace.Happened(decision_id=asked.id, status="FAILURE", value=-3.0)),
        sent(
            trace.Approval(decision_id=asked.id, approver="robin", role="lead", channel="mail", evidence="ok")
        ),
        sent(trace.Approval(decision_id=asked.id, approver="kim", verdict="rejected", step=2)),
        sent(trace.Node(type="goal", title="ship", description="it", confidence=80, metadata={"k": [1]})),
        events.calibrated(CALIBRATION, NOON),
        sent(trace.Edge(source="n1", target="n2", type="leads_to", weight=0.5, rationale=told)),
        events.gap("something was lost", NOON, decision=2),
        events.decided(fallback()),
        note("a kind of its own"),
    ]


def redecided(*decisions: Decision, **changes: Any) -> trace.Counterfactuals:
    """What these decisions would have been in a run: the opposite, by another pack on a tuned model."""
    fields: dict[str, Any] = {
        "run": "run-1",
        "pack": trace.JudgePack(name="core", version="2", sha256="d" * 64),
        "model": trace.JudgeModel(
            name=MODEL.name,
            sha256=MODEL.sha256,
            quantisation=MODEL.quantisation,
            adapter=trace.JudgeAdapter(name="tuned", sha256="c" * 64, scale=0.5),
        ),
        "temperature": 1.5,
        "results": tuple(
            trace.Redecided(
                decision_id=one.id,
                served=one.outcome,
                outcome="deny" if one.allow else "allow",
                direction="tightened" if one.allow else "loosened",
                tier="model",
                floor="allow",
                label="allow",
                confidence=0.75,
                clauses=("R1",),
                score_ms=12.5,
                took_ms=13.25,
            )
            for one in decisions
        ),
    }
    return trace.Counterfactuals(**fields | changes)


def what_judges() -> list[Event]:
    """Events of packs and adapters that come and go, and of a pack in the shadow of another."""
    tuned = replace(MODEL, adapter=Adapter(name="tuned", sha256="c" * 64, scale=0.5))
    served, other = by_model(), by_model(model=tuned, outcome="allow")
    return [
        events.pack_loaded(PACK, NOON),
        events.pack_shadowed(PACK, NOON),
        events.decided(served),
        events.shadowed(served, other, NOON + 1),
        events.shadowed(served, fallback(), NOON + 1),
        *events.redecided(redecided(served), NOON + 2),
        events.pack_shadowed(None, NOON),
        events.pack_unloaded(PACK, NOON),
        events.adapter_activated(tuned.adapter, MODEL.sha256, NOON),
        events.adapter_activated(None, MODEL.sha256, NOON),
    ]
