"""Shared by tests: values to record, a callback that waits, reads of the journal file, packs and adapters."""

from __future__ import annotations

import itertools
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from msgspec.structs import replace

from thor_policy.core import records
from thor_policy.core.canary import Breach, Canary
from thor_policy.core.decisions import (
    Adapter,
    Decision,
    Explanation,
    Floor,
    ModelInfo,
    PackInfo,
    Scored,
    Timings,
    Trial,
)
from thor_policy.core.enrichment import Enrichment
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Json
from thor_policy.core.results import Committed
from thor_policy.journal import chain, events, projections, schema
from thor_policy.journal.checkpoints import Signer
from thor_policy.journal.events import Event
from thor_policy.journal.reader import read_only_uri
from thor_policy.journal.rewrites import Rewrite
from thor_policy.journal.signing_rule import Checkpoints
from thor_policy.journal.writer import Journal
from thor_policy.suites.run_files import Item, Judge, Run, Tokens, how_wrong
from thor_policy.telemetry.clocks import Instant

#: How long a test waits for an expected event, in seconds; far more than it takes.
WAIT_S = 60.0
#: Scores before a daemon is ready: the questions without content, and the warm-up.
SCORES_AT_START = 4
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
ENRICHED = Enrichment(
    why=("low_confidence",),
    risk="The release breaks for alice.",
    alternative="allow",
    alternatives="It is too loose.",
    rationale="It is a Friday.",
    quality="the model's confidence was 0.75 (uncalibrated)",
    model=MODEL,
    generated_tokens=40,
    device_ms=900.5,
    took_ms=1_200.25,
)
_numbers = itertools.count(1)


def by_model(**changes: Any) -> Decision:
    """A decision of the model, not explained yet."""
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
    """A decision without the model."""
    nothing = {"model": None, "label": None, "confidence": None, "probabilities": {}, "scored": None}
    return by_model(**nothing | {"timings": Timings()} | changes)


def by_rule(**changes: Any) -> Decision:
    """A decision of a rule alone, with its reason."""
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
    """A decision after a failure of the engine: the strictest outcome."""
    return without_model(**{"tier": "fallback", "reason_code": "engine_failed"} | changes)


def note(text: str = "", **changes: Any) -> Event:
    """An event of a kind without a table: it is on the chain only."""
    fields: dict[str, Any] = {"kind": "note", "subject_id": "n", "at": NOON, "body": {"text": text}}
    return Event(**fields | changes)


def about(**properties: Json) -> Evaluation:
    """The usual request, with this context."""
    return Evaluation(subject=ASKED.subject, action=ASKED.action, resource=ASKED.resource, context=properties)


def booted(seconds: float, boot: str = "a") -> Callable[[], Instant]:
    """A clock that stands so many seconds after a boot."""
    return lambda: Instant(boot, round(seconds * 1e9))


def sent(record: records.Record, *, at: float = NOON, **changes: Any) -> Event:
    """The event of a record that a client sent, with a new id."""
    record_id, caller = changes.pop("record_id", f"r-{next(_numbers):08}"), changes.pop("caller", CALLER)
    return events.record_event(record, record_id=record_id, at=at, caller=caller, **changes)


class Fates:
    """The callback of a journal: collects the fates of events, batch by batch, in order."""

    def __init__(self) -> None:
        self._batches: queue.SimpleQueue[list[Committed]] = queue.SimpleQueue()
        self._go_on = threading.Event()
        self._go_on.set()

    def __call__(self, batch: list[Committed]) -> None:
        self._batches.put(batch)
        assert self._go_on.wait(WAIT_S)

    @property
    def silent(self) -> bool:
        return self._batches.empty()

    def batch(self) -> list[Committed]:
        """The fates of the next batch."""
        return self._batches.get(timeout=WAIT_S)

    def wait(self, count: int) -> list[Committed]:
        """The fates of the next `count` events, which must end with a batch."""
        fates: list[Committed] = []
        while len(fates) < count:
            fates += self.batch()
        assert len(fates) == count
        return fates

    @contextmanager
    def one_batch(self, journal: Journal) -> Iterator[None]:
        """Events appended inside this context make one batch: the journal is kept busy meanwhile."""
        self._go_on.clear()
        journal.append(note("keeps the journal busy"))
        self.batch()
        try:
            yield
        finally:
            self._go_on.set()


def record(path: Path, *what: Decision | Event, **options: Any) -> list[Committed]:
    """Open the journal, record these, and close it; returns their fates. Nothing is synced to disk."""
    fates = Fates()
    with Journal(path, on_committed=fates, **{"synchronous": "OFF"} | options) as journal:
        for item in what:
            if isinstance(item, Decision):
                journal.decided(item)
            else:
                journal.append(item)
        recorded = fates.wait(len(what))
    assert [fate.error for fate in recorded] == [None] * len(what)
    return recorded


def signing(path: Path, *, every_events: int = 1_000_000, every_s: float = 1e9) -> Checkpoints:
    """Checkpoints beside the journal at `path`; by default only a clean stop signs one."""
    signer = Signer.load(path.parent / "checkpoint.key")
    signer.publish(path.parent / "checkpoints")
    return Checkpoints(signer, path.parent / "checkpoints", every_events, every_s)


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a query, read from the file as another process would."""
    with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
        return connection.execute(sql, values).fetchall()


def row(path: Path, table: str, where: str = "1", *values: Any) -> dict[str, Any]:
    """The only row of a table that matches, as it is stored."""
    with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        (stored,) = connection.execute(f"SELECT * FROM {table} WHERE {where}", values).fetchall()
        return dict(stored)


def decision_row(path: Path, decision_id: str) -> dict[str, Any]:
    """The stored row of a decision."""
    return row(path, "decisions", "decision_id = ?", decision_id)


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that may write, as the owner of the file could open one."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


@contextmanager
def stalled(path: Path) -> Iterator[None]:
    """No commit succeeds inside this context: another connection holds the write lock."""
    with writing(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def erasing(path: Path, *seqs: int, keep: str | None = None) -> Event:
    """The event that erases the private parts of these events, or replaces them by `keep`."""
    rewrites = []
    for seq in seqs:
        ((kind, subject_id, at, body),) = rows(
            path, "SELECT kind, subject_id, at, body FROM events WHERE seq = ?", seq
        )
        private = None if keep is None else (chain.seal(b"")[0], keep)
        read = projections.read(kind, body.encode(), keep.encode() if keep is not None else None)
        rewrites.append(
            Rewrite(
                seq=seq,
                kind=kind,
                subject_id=subject_id,
                private=private,
                projection=projections.project(kind, seq, at, subject_id, *read),
            )
        )
    parts = {str(rewrite.seq): rewrite.digest.hex() for rewrite in rewrites}
    return Event(kind="erased", subject_id="erased", at=NOON, body={"parts": parts}, rewrites=tuple(rewrites))


CALIBRATION = Calibration(temperature=2.0, pack_sha256="a" * 64, model_sha256="b" * 64, judged=60)
PROMOTION = records.Promotion(
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


CANARY = Canary(
    id="canary-1",
    salt="0f" * 16,
    share=0.25,
    pack=PackInfo(name="core", version="1.3.0", sha256="e" * 64),
    path="/packs/core",
    weights="f" * 64,
    against=PACK,
    against_weights="f" * 64,
)
BREACH = Breach(
    condition="looser",
    value=0.1,
    low=0.05,
    high=0.2,
    level=0.975,
    sample=50,
    control_sample=0,
    threshold=0.0,
)


def canary_events() -> list[Event]:
    """A canary that is started, gets a larger share, and is rolled back."""
    choice = [{"name": "core@1.3.0", "hits": 60, "of": 60, "low": 0.94, "high": 1.0}]
    return [
        events.canary_started(CANARY, NOON, by=CALLER, choice=choice),
        events.canary_resized(CANARY.id, 0.5, NOON + 1, by=CALLER),
        events.canary_ended(CANARY.id, "rolled_back", NOON + 2, breach=BREACH),
    ]


def on_trial(**changes: Any) -> Decision:
    """A decision of the candidate of a canary, whose own floor is looser than that of the active pack."""
    bound = Floor(outcome="deny", final=True, rules=("freeze",), clauses=("R3",), because="the freeze is on")
    trial = Trial(id=CANARY.id, arm="canary", note="looser", own="allow", bound=bound)
    return by_rule(**{"trial": trial, "pack": CANARY.pack, "reason_code": "active_floor"} | changes)


def one_of_each() -> list[Event]:
    """Events of every kind, with reviews, outcomes and explanations, some of them twice on one decision.

    Twenty-two events, in an order that the journal accepts.
    """
    first = by_model(evaluation=about(details="a change", team_context="platform"))
    second = by_rule()
    reported = sent(
        records.DecisionReport(
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
    node = sent(records.Node(type="goal", title="ship", description="it", confidence=80, metadata={"k": [1]}))
    return [
        events.model_loaded(MODEL, NOON),
        events.pack_activated(PACK, NOON),
        events.decision_event(first),
        events.decision_event(second),
        sent(records.Consultation(system="prices", session="s1", entity="ACME", query="q", value={"p": 7.5})),
        reported,
        sent(records.Consultation(system="risk", decision_id=subject, value=[1], relevance=0.5, took_ms=1.5)),
        events.explanation_event(first.id, EXPLAINED, NOON + 1),
        sent(records.Review(decision_id=first.id, reviewer="robin", verdict="accept")),
        sent(
            records.Review(
                decision_id=first.id,
                reviewer="kim",
                verdict="correct_both",
                decision="allow",
                reasoning="no",
            )
        ),
        sent(
            records.Review(decision_id=second.id, reviewer="kim", verdict="correct_reasoning", reasoning="it")
        ),
        sent(records.Outcome(decision_id=subject, status="PENDING")),
        sent(records.Outcome(decision_id=subject, status="SUCCESS", value=12.5, note="sold")),
        sent(records.Outcome(decision_id=first.id, status="FAILURE", value=-3.0)),
        sent(
            records.Approval(
                decision_id=first.id, approver="robin", role="lead", channel="mail", evidence="ok"
            )
        ),
        sent(records.Approval(decision_id=first.id, approver="kim", verdict="rejected", step=2)),
        node,
        events.calibration_event(CALIBRATION, NOON),
        sent(
            records.Edge(source=node.subject_id, target=first.id, type="leads_to", weight=0.5, rationale="b")
        ),
        events.gap_event("something was lost", NOON, decision=2),
        events.decision_event(fallback()),
        note("a kind of its own"),
    ]


_RARE_TYPE = schema.rare_condition("decision_type", schema.COMMON["decision_type"])
#: What makes a journal of this version one of the version before a migration, newest first.
_UNDO: dict[str, tuple[str, ...]] = {
    "0028_canaries": (
        "DROP TABLE canaries",
        *(f"ALTER TABLE decisions DROP COLUMN {name}" for name in ("canary", "canary_arm", "canary_note")),
    ),
    "0023_shipping": ("DROP TABLE shipping",),
    "0021_bounded_lists": (
        *(f"DROP INDEX {name}" for name in ("nodes_end", "edges_superseding")),
        *(f"DROP INDEX decisions_{name}" for name in ("exception", "decision_type")),
        "CREATE INDEX decisions_exception ON decisions (is_exception) WHERE is_exception = 1",
        f"CREATE INDEX decisions_decision_type ON decisions (decision_type) WHERE {_RARE_TYPE}",
    ),
    "0020_alerts": ("DROP TABLE alerts",),
    "0019_enrichments": ("DROP TABLE enrichments",),
    "0017_vectors": ("DROP TABLE vectors",),
    "0016_work": (
        *(
            f"DROP INDEX nodes_{name}"
            for name in ("type", "timestamp", "session", "agent", "ended", "doubtful")
        ),
        *(f"DROP INDEX edges_{name}" for name in ("supersedes", "work")),
        "ALTER TABLE nodes DROP COLUMN agent",
    ),
    "0015_approvals": (
        "DROP VIEW trace_edges",
        *(f"DROP TABLE {name}" for name in ("approval_requests", "approval_ends", "approvals_open")),
        "DROP INDEX approvals_task",
        "DROP INDEX decisions_approval_task",
        *(f"ALTER TABLE decisions DROP COLUMN {name}" for name in ("approval_task", "lifted")),
        *(
            f"ALTER TABLE approvals DROP COLUMN {name}"
            for name in ("task", "roles", "groups", "parties", "recorded_by", "comment")
        ),
        schema._EDGES_VIEW,
    ),
    "0014_cheap_conditions": (
        *(f"DROP INDEX decisions_{column}" for column in schema.COMMON),
        *(
            f"CREATE INDEX decisions_{column} ON decisions ({column}) "
            f"WHERE {column} NOT IN ({', '.join(map(repr, common))})"
            for column, common in schema.COMMON.items()
        ),
    ),
    "0013_graph": (
        "DROP VIEW trace_edges",
        "DROP TABLE trace_states",
        *(f"DROP INDEX {name}" for name in ("nodes_entity", "consultations_id", "outcomes_id")),
        "DROP INDEX decisions_trace_status",
        *(f"ALTER TABLE decisions DROP COLUMN {name}" for name in ("trace_status", "status_seq")),
        *(f"ALTER TABLE nodes DROP COLUMN {name}" for name in ("actor_type", "role")),
        *(f"ALTER TABLE edges DROP COLUMN {name}" for name in ("similarity", "how", "favourable")),
    ),
    "0012_completeness": (
        *(f"DROP INDEX decisions_{name}" for name in ("lacks", "urgency", "exception")),
        *(
            f"ALTER TABLE decisions DROP COLUMN {name}"
            for name in (
                *("timestamp_decision", "confidence_level", "urgency", "judgment_call"),
                *("required", "lacks"),
            )
        ),
        *(f"DROP TABLE {name}" for name in ("supplements", "summaries_words", "summaries", "summaries_due")),
    ),
    "0011_claims": (
        "ALTER TABLE decisions DROP COLUMN claimed",
        "ALTER TABLE outcomes DROP COLUMN claimed",
    ),
}


def undo_migrations(path: Path, first: str) -> None:
    """Take the migrations from `first` on back, as if an earlier version had written the journal."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for name, statements in _UNDO.items():
            if name >= first:
                for statement in statements:
                    connection.execute(statement)
                connection.execute("DELETE FROM _sqlite_migrations WHERE name = ?", (name,))


def redecided(*decisions: Decision, **changes: Any) -> records.Counterfactuals:
    """A run that decides these decisions again, by another pack on a tuned model, each the opposite way."""
    fields: dict[str, Any] = {
        "run": "run-1",
        "pack": records.JudgePack(name="core", version="2", sha256="d" * 64),
        "model": records.JudgeModel(
            name=MODEL.name,
            sha256=MODEL.sha256,
            quantisation=MODEL.quantisation,
            adapter=records.JudgeAdapter(name="tuned", sha256="c" * 64, scale=0.5),
        ),
        "temperature": 1.5,
        "results": tuple(
            records.Redecided(
                decision_id=decision.id,
                served=decision.outcome,
                outcome="deny" if decision.allow else "allow",
                direction="tightened" if decision.allow else "loosened",
                tier="model",
                floor="allow",
                label="allow",
                confidence=0.75,
                clauses=("R1",),
                score_ms=12.5,
                took_ms=13.25,
            )
            for decision in decisions
        ),
    }
    return records.Counterfactuals(**fields | changes)


def what_judges() -> list[Event]:
    """Events of packs and adapters that are loaded and unloaded, and of a shadow pack."""
    tuned = replace(MODEL, adapter=Adapter(name="tuned", sha256="c" * 64, scale=0.5))
    served, other = by_model(), by_model(model=tuned, outcome="allow")
    return [
        events.pack_loaded(PACK, NOON),
        events.pack_shadowed(PACK, NOON),
        events.decision_event(served),
        events.shadow_event(served, other, NOON + 1),
        events.shadow_event(served, fallback(), NOON + 1),
        *events.counterfactual_events(redecided(served), NOON + 2),
        events.pack_shadowed(None, NOON),
        events.pack_unloaded(PACK, NOON),
        events.adapter_activated(tuned.adapter, MODEL.sha256, NOON),
        events.adapter_activated(None, MODEL.sha256, NOON),
    ]


LABELS = ("allow", "mfa", "deny")
JUDGE = Judge(
    pack=PackInfo(name="small", version="1.0.0", sha256="ab" * 32),
    labels=LABELS,
    model="tiny-q4",
    model_sha256="cd" * 32,
)


def answered(id: str, outcome: str | None = "deny", *, wanted: str = "deny", **changes: Any) -> Item:
    """An item that the model decided; `wanted` may name several outcomes, separated by `|`."""
    accepted = tuple(wanted.split("|"))
    fields: dict[str, Any] = {
        "suite": "trial",
        "pack": "small",
        "title": f"About {id}",
        "difficulty": "easy",
        "status": "passed" if outcome in accepted else "failed",
        "accepted": accepted,
        "outcome": outcome,
        "label": outcome,
        "floor": "allow",
        "tier": "model",
        "wrong": how_wrong(outcome, accepted, LABELS),
        "probabilities": {label: 0.8 if label == outcome else 0.1 for label in LABELS},
        "structure": 1.0,
        "total_ms": 100.0,
        "score_ms": 80.0,
        "tokens": Tokens(prefix=1000, question=70, explanation=10),
    }
    return Item(id=id, **fields | changes)


def run_of(*items: Item, repeats: int = 1, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "at": "2026-05-13T10:00:00Z",
        "version": "0.1.0",
        "where": "in process",
        "machine": "a desk",
        "selection": "full",
        "judges": (JUDGE,),
    }
    return Run(repeats=repeats, results=items, **fields | changes)


def error(id: str, **changes: Any) -> Item:
    return answered(id, None, status="error", tier=None, floor=None, probabilities={}, tokens=None, **changes)


def skipped(id: str, **changes: Any) -> Item:
    unasked = {"tier": None, "floor": None, "label": None, "probabilities": {}, "tokens": None}
    return answered(id, None, status="skipped", **unasked | changes)


def many(right: int, wrong: int) -> list[Item]:
    """`right` scenarios decided right, then `wrong` decided wrong (too strict)."""
    outcomes = ["mfa"] * right + ["deny"] * wrong
    return [answered(f"Q{n}", outcome, wanted="mfa") for n, outcome in enumerate(outcomes)]


PACK_MANIFEST = """
name: small
version: "{version}"
description: Three outcomes and a rule for each way to answer.
outcomes: [{{label: allow}}, {{label: require_mfa}}, {{label: deny}}]
classifications: [routine, odd]
fields: [{{name: who, value: subject.id}}, {{name: does, value: action.name}}]
risk: '"low"'
limits: {{max_reasoning_tokens: 4}}
"""
PACK_RULES = """
- {id: banned, when: 'action.name == "banned"', outcome: deny, clause: R1, because: It is banned.}
"""
PACK_EXAMPLES = """
- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: look}, resource: {type: doc, id: d}},
   outcome: allow, classification: routine, risk: low, clauses: [R1], reasoning: Fine.}
- {id: X2, evaluation: {subject: {type: user, id: b}, action: {name: burn}, resource: {type: doc, id: d}},
   outcome: deny, classification: odd, risk: low, clauses: [R2], reasoning: Never.}
"""


def write_pack(
    folder: Path, *, version: str = "1", system: str = "Decide.", rules: str = PACK_RULES, more: str = ""
) -> Path:
    """Write a pack called small to `folder`; another `system` makes it another pack.

    `more` ends its pack.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "pack.yaml": PACK_MANIFEST.format(version=version) + more,
        "rules.yaml": rules,
        "examples.yaml": PACK_EXAMPLES,
        "clauses.yaml": "R1: Looking is free.\nR2: Nothing may be destroyed.\n",
        "system.md": f"{system}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


ADAPTER_RANK = 4


def write_rules_only_pack(folder: Path, *, rules: str, more: str = "") -> Path:
    """A pack named `alone`, of rules alone, where deny is the default; `more` ends its pack.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.yaml").write_text(
        'name: alone\nversion: "1"\ndescription: Rules alone.\nmodel: never\ndefault: deny\n'
        f"outcomes: [{{label: allow}}, {{label: require_mfa}}, {{label: deny}}]\n{more}"
    )
    (folder / "rules.yaml").write_text(rules)
    return folder


def write_adapter(
    path: Path,
    *,
    base: Path,
    base_sha256: str | None = None,
    base_name: str | None = None,
    architecture: str | None = None,
    seed: int = 0,
    blocks: int = 2,
    narrower: int = 0,
    rendering: str | None = None,
) -> Path:
    """Write an adapter of the first `blocks` blocks of the model `base`; the same seed gives the same bytes.

    It says that it was trained on the file with `base_sha256`, or on the model `base_name`, or nothing.
    `narrower` makes its tensors too small for the model.
    """
    model = gguf.GGUFReader(base)
    own = str(model.fields["general.architecture"].contents())
    out = gguf.GGUFWriter(path, architecture or own)
    out.add_type(gguf.GGUFType.ADAPTER)
    out.add_string(gguf.Keys.Adapter.TYPE, "lora")
    out.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(2 * ADAPTER_RANK))
    if base_sha256 is not None:
        out.add_string("thor_policy.base_sha256", base_sha256)
    if rendering is not None:
        out.add_string("thor_policy.rendering", rendering)
    if base_name is not None:
        out.add_string("general.base_model.0.name", base_name)
    wanted = tuple(f"blk.{block}.ffn_{part}.weight" for block in range(blocks) for part in ("up", "down"))
    for tensor in model.tensors:
        if tensor.name in wanted:
            width, height = (int(size) - narrower for size in tensor.shape)
            random = np.random.default_rng([seed, *tensor.name.encode()])
            out.add_tensor(
                f"{tensor.name}.lora_a", random.normal(0, 0.3, (ADAPTER_RANK, width)).astype(np.float32)
            )
            out.add_tensor(
                f"{tensor.name}.lora_b", random.normal(0, 0.3, (height, ADAPTER_RANK)).astype(np.float32)
            )
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def write_adapter_header(path: Path, **metadata: str | float | bool) -> Path:
    """Write an adapter without tensors and with this metadata, `__` for `.`: it can be read, but not used.

    Each field that an adapter must have is written, unless `metadata` has another value for it.
    """
    out = gguf.GGUFWriter(path, "llama")
    kinds = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    for name, value in (kinds | {key.replace("__", "."): value for key, value in metadata.items()}).items():
        if isinstance(value, bool):
            out.add_bool(name, value)
        elif isinstance(value, float):
            out.add_float32(name, value)
        else:
            out.add_string(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


# ---------------------------------------------------------------- the wire

#: For each op the least that its record says, and what that is.
LEAST_RECORDS: dict[str, tuple[dict[str, Any], records.Record]] = {
    "decision_report": (
        {"agent": "trader", "outcome": "BUY"},
        records.DecisionReport(agent="trader", outcome="BUY", type="policy_application", made_by="agent"),
    ),
    "consultation": ({"system": "crm", "session": "s"}, records.Consultation(system="crm", session="s")),
    "outcome": (
        {"decision_id": "d", "status": "SUCCESS"},
        records.Outcome(decision_id="d", status="SUCCESS"),
    ),
    "review": (
        {"decision_id": "d", "reviewer": "ines", "verdict": "accept"},
        records.Review(decision_id="d", reviewer="ines", verdict="accept"),
    ),
    "assignment": (
        {"decision_id": "d", "reviewer": "ines", "type": "assign"},
        records.Assignment(decision_id="d", reviewer="ines", type="assign"),
    ),
    "approval": (
        {"decision_id": "d", "approver": "ines"},
        records.Approval(decision_id="d", approver="ines", verdict="approved", step=1),
    ),
    "request_approval": ({"decision_id": "d"}, records.ApprovalRequest(decision_id="d")),
    "approve": ({"task": "t"}, records.Approve(task="t")),
    "deny": ({"task": "t"}, records.Deny(task="t")),
    "cancel": ({"task": "t"}, records.Cancel(task="t")),
    "supplement": (
        {"decision_id": "d", "values": {"reasoning": "So."}},
        records.Supplement(decision_id="d", values={"reasoning": "So."}),
    ),
    "node": ({"type": "goal", "title": "t"}, records.Node(type="goal", title="t", status="active")),
    "edge": (
        {"source": "a", "target": "b", "type": "leads_to"},
        records.Edge(source="a", target="b", type="leads_to"),
    ),
    "trace_state": (
        {"decision_id": "d", "status": "under_review", "because": "a doubt"},
        records.TraceState(decision_id="d", status="under_review", because="a doubt"),
    ),
}


def changed(document: Json, path: Sequence[str | int], value: Json) -> Json:
    """The document with one place changed, in place; `...` removes the member."""
    if not path:
        return value
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document
