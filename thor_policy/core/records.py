"""What hangs on a decision, and decisions that others made: the nouns of a decision trace.

Owns the records that services and people send to be kept: decisions made elsewhere, data consulted,
outcomes in the world, reviews, approvals, nodes, edges and states of traces. Invariant: all of them are
frozen, bounded by their types, and none does any input or output. Used by every thread.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from thor_policy.core.approvals import State
from thor_policy.core.canary import Terms
from thor_policy.core.decisions import ConfidenceLevel, Tier
from thor_policy.core.graph import ActorType, EdgeType, NodeType, TraceStatus, WorkStatus
from thor_policy.core.requests import Json, Risk, Urgency

#: Judged decisions below which nothing is fitted.
LEAST = 50
#: Temperatures that are looked at.
LOWEST, HIGHEST = 0.05, 20.0

Digest: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Calibration(Struct, frozen=True, kw_only=True):
    """A temperature for one pack on one model; `judged` decisions stand behind it."""

    temperature: Annotated[float, Meta(ge=LOWEST, le=HIGHEST)]
    pack_sha256: Digest
    model_sha256: Digest
    judged: Annotated[int, Meta(ge=LEAST)]

    @property
    def digest(self) -> str:
        """sha256 of what it says: the identity that decisions are recorded with."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


#: Characters of a name or an id; of a text that people or models wrote.
MAX_NAME_CHARS, MAX_TEXT_CHARS = 256, 32_768

#: Seconds for which one lease keeps a decision from other reviewers, at most.
MAX_LEASE_S = 3_600

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
#: Milliseconds.
Ms: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]

#: How a decision turned out in the world.
Status: TypeAlias = Literal["SUCCESS", "FAILURE", "PENDING"]
#: Who made a decision that is only recorded here.
MadeBy: TypeAlias = Literal["agent", "human", "committee", "system"]
#: What a person may say of a decision.
Judgement: TypeAlias = Literal["accept", "correct_decision", "correct_reasoning", "correct_both"]
Verdict: TypeAlias = Literal["accept", "correct_decision", "correct_reasoning", "correct_both", "withdrawn"]


class DecisionReport(Struct, frozen=True, kw_only=True):
    """A decision that somebody else made, for the record.

    `type` is the kind of decision (`signal`, `risk`, `exception`, ...), `entity` the symbol or resource it
    is about, `outcome` what was decided. `prompt` and `response` are those of the agent's own model.
    `agent` is left out where `made_by` is human: the kernel or a key says which person sent it.
    `timestamp_decision` is when it was made, RFC 3339; without it, the time of its receipt.
    """

    outcome: Name
    agent: Name | None = None
    type: Name = "policy_application"
    made_by: MadeBy = "agent"
    entity: Name | None = None
    session: Name | None = None
    model: Name | None = None
    prompt: Text | None = None
    response: Text | None = None
    reasoning: Text | None = None
    context: dict[str, Json] = {}
    confidence: Share | None = None
    risk: Risk | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    latency_ms: Ms | None = None
    is_exception: bool = False
    urgency: Urgency = "normal"
    judgment_call: bool | None = None
    confidence_level: ConfidenceLevel | None = None
    timestamp_decision: Name | None = None
    precedents: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    tags: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()


class Consultation(Struct, frozen=True, kw_only=True):
    """Data that was gathered for a decision: from which system, about what, how fresh.

    It belongs to `decision_id`, or to a `session` whose decision comes later. `fresh_at` is the time the
    value was true at, RFC 3339; `took_ms` what the look-up cost.
    """

    system: Name
    decision_id: Name | None = None
    session: Name | None = None
    entity: Name | None = None
    query: Text | None = None
    value: Json = None
    relevance: Share | None = None
    took_ms: Ms | None = None
    fresh_at: Name | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """How a decision turned out; `value` is a number such as profit or loss. The newest one counts."""

    decision_id: Name
    status: Status
    value: float | None = None
    note: Text | None = None


class Review(Struct, frozen=True, kw_only=True):
    """A person's verdict on a decision. `decision` and `reasoning` are what they should have been.

    `blind`: without sight of earlier verdicts; `adjudicates`: settles a disagreement; `sampled`: the decision
    was drawn at random, not by its priority. `withdrawn` takes the review with the id `withdraws` back:
    `stands` and `decision` are the verdict that counts again, if there is one; else `right` says whether a
    scenario expected the outcome.
    """

    decision_id: Name
    reviewer: Name
    verdict: Verdict
    decision: Name | None = None
    reasoning: Text | None = None
    blind: bool = False
    adjudicates: bool = False
    sampled: bool = False
    withdraws: Name | None = None
    stands: Judgement | None = None
    right: bool | None = None


class Assignment(Struct, frozen=True, kw_only=True):
    """Who reviews a decision: a `lease` keeps others away for some seconds, an `assign` until an `unassign`.

    A review by its holder, or a `release`, ends a lease. The newest of either pair counts.
    """

    decision_id: Name
    reviewer: Name
    type: Literal["lease", "release", "assign", "unassign"]
    given_by: Name | None = None
    seconds: Annotated[int, Meta(ge=1, le=MAX_LEASE_S)] | None = None


class Approval(Struct, frozen=True, kw_only=True):
    """A person's consent to a decision, wherever it was given; `step` counts along a chain of approvals."""

    decision_id: Name
    approver: Name
    verdict: Literal["approved", "rejected"] = "approved"
    role: Name | None = None
    channel: Name | None = None
    evidence: Text | None = None
    step: Count = 1


class DeniedQuestion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a decision was about: `subject` and `resource` as `type:id`, and the name of the action."""

    subject: Text
    action: Name
    resource: Text


class ApprovalRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to lift the outcome of a decision, by the caller that it was made for (`core.approvals`).

    With `question` it is refused if the decision was about something else. It is not recorded.
    """

    decision_id: Name
    reason: Text | None = None
    urgency: Urgency = "normal"
    question: DeniedQuestion | None = None


class Consent(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A consent that was given elsewhere: by whom, over which `channel` (email, verbal, messaging,
    committee),
    and where the evidence is."""

    approver: Name
    channel: Name
    evidence: Text | None = None


class Approve(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's approval of a task. Who approves is what the kernel or a key says; with a `consent`, who
    records it."""

    task: Name
    comment: Text | None = None
    consent: Consent | None = None


class Deny(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's rejection of a task: it ends."""

    task: Name
    comment: Text | None = None


class Cancel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of a task, by the caller that requested it."""

    task: Name
    reason: Text | None = None


class ApprovalQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tasks to list: one by its `id`, or those in one of the `states`, the newest first."""

    id: Name | None = None
    states: Annotated[tuple[State, ...], Meta(max_length=6)] = ("pending", "partial")
    limit: Annotated[int, Meta(ge=1, le=200)] = 100


class Supplement(Struct, frozen=True, kw_only=True):
    """What a recorded decision lacks: values of members by name (`core.traces.REQUIREMENTS`)."""

    decision_id: Name
    values: Annotated[dict[Name, Json], Meta(min_length=1, max_length=16)]


class Node(Struct, frozen=True, kw_only=True):
    """A goal, option, action, actor, entity, event, ...: a node that somebody states (`core.graph.NODES`).

    The `title` of an entity is its `type:id`. `actor_type`, and `role` at the time, are those of an actor.
    `agent` is the agent or the person whose work it is, as the sender states it. `supersedes` is the id of a
    node of the same type whose place it takes, and `rationale` why: node and link are recorded in one
    transaction, or neither is.
    """

    type: NodeType
    title: Name
    description: Text | None = None
    status: WorkStatus = "active"
    confidence: Annotated[int, Meta(ge=0, le=100)] | None = None
    session: Name | None = None
    metadata: dict[str, Json] = {}
    actor_type: ActorType | None = None
    role: Name | None = None
    agent: Name | None = None
    supersedes: Name | None = None
    rationale: Text | None = None


class Edge(Struct, frozen=True, kw_only=True):
    """A link between two recorded things, by their ids; `core.graph.EDGES` says which ends each type has.

    A precedent (`CITES`) has a `similarity`, says `how` it was found, and whether it is `favourable` to what
    was decided.
    """

    source: Name
    target: Name
    type: EdgeType
    weight: float | None = None
    rationale: Text | None = None
    similarity: Share | None = None
    how: Name | None = None
    favourable: bool | None = None


class TraceState(Struct, frozen=True, kw_only=True):
    """The state of a decision's trace, and `because` of what: the newest one counts.

    `superseded` and `overturned` name the decision `by` which it was.
    """

    decision_id: Name
    status: TraceStatus
    because: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
    by: Name | None = None


#: How the outcome of a past request changes under another pack, model or adapter.
Direction: TypeAlias = Literal["same", "loosened", "tightened"]
#: Most results in one record, and most clauses in one result: so a record stays within its limits.
MAX_REDECIDED, MAX_CLAUSES = 20, 32


class Redecided(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of deciding a past request again; `served` is the recorded outcome.

    `score_ms` is the model's part of `took_ms`.
    """

    decision_id: Name
    served: Name
    outcome: Name
    direction: Direction
    tier: Tier
    floor: Name
    label: Name | None = None
    confidence: Share | None = None
    clauses: Annotated[tuple[Name, ...], Meta(max_length=MAX_CLAUSES)] = ()
    reason_code: Name | None = None
    score_ms: Ms = 0.0
    took_ms: Ms = 0.0


class JudgePack(Struct, frozen=True, kw_only=True):
    """The pack of a run (`core.decisions.PackInfo`)."""

    name: Name
    version: Name
    sha256: Digest


class JudgeAdapter(Struct, frozen=True, kw_only=True):
    """The adapter of a run (`core.decisions.Adapter`)."""

    name: Name
    sha256: Digest
    scale: Annotated[float, Meta(ge=0.01, le=10)] = 1.0


class JudgeModel(Struct, frozen=True, kw_only=True):
    """The model of a run: identity of its file, and the adapter that it used."""

    name: Name
    sha256: Digest
    quantisation: Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
    adapter: JudgeAdapter | None = None


class Counterfactuals(Struct, frozen=True, kw_only=True):
    """Results of one `run` over past decisions, and what decided in it."""

    run: Name
    pack: JudgePack
    model: JudgeModel
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    results: Annotated[tuple[Redecided, ...], Meta(max_length=MAX_REDECIDED)] = ()


class Promotion(Struct, frozen=True, kw_only=True):
    """Whether a pack passed the gate that lets it replace the pack `against`, on a model's weights.

    `report` holds the findings, as JSON; `signature` is that of the key `key` over the sha256 of report and
    pack (`security.signatures`). Both are None without a key, or if the pack was refused.
    """

    name: Name
    version: Name
    sha256: Digest
    against: Digest
    model_sha256: Digest
    passed: bool
    report: Text
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")] | None = None
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")] | None = None


class Shipped(Struct, frozen=True, kw_only=True):
    """How far `sink` is: it has every event up to `seq`. `alarm` is why it takes no more; None: it does."""

    sink: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,63}\Z")]
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    alarm: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None


#: Most nodes, and most edges, of one import; a whole graph is imported in several.
MAX_IMPORTED = 200


class ImportedNode(Struct, frozen=True, kw_only=True):
    """A node with the id that it keeps."""

    id: Name
    node: Node


class ImportedEdge(Struct, frozen=True, kw_only=True):
    """An edge with the id that it keeps."""

    id: Name
    edge: Edge


class GraphImport(Struct, frozen=True, kw_only=True):
    """Nodes and edges that keep their ids. What is recorded under one of these ids stays as it is."""

    nodes: Annotated[tuple[ImportedNode, ...], Meta(max_length=MAX_IMPORTED)] = ()
    edges: Annotated[tuple[ImportedEdge, ...], Meta(max_length=MAX_IMPORTED)] = ()


class Maintenance(Struct, frozen=True, kw_only=True):
    """Work on the journal: erase `actor`, archive what is older than `before`, sign a checkpoint now, replace
    the key of its digests (`rekey`), put a `calibration` in force, record `counterfactuals` or a `promotion`,
    note how far a sink of the shipper is (`shipped`), forget that sink (`unship`), or import a `graph`.

    `unshipped`: archive and erase also what a sink has not acknowledged yet.
    """

    task: Literal[
        "erase",
        "archive",
        "checkpoint",
        "rekey",
        "calibrate",
        "counterfactual",
        "promote",
        "import_graph",
        "shipped",
        "unship",
    ]
    actor: Name | None = None
    before: Name | None = None
    calibration: Calibration | None = None
    counterfactuals: Counterfactuals | None = None
    promotion: Promotion | None = None
    shipped: Shipped | None = None
    sink: Name | None = None
    unshipped: bool = False
    graph: GraphImport | None = None


#: A name, or a path on the daemon's machine.
Place: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]


Scale: TypeAlias = Annotated[float, Meta(ge=0.01, le=10)]


class Candidate(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What may be put on trial: a pack, a model, an adapter at a scale (`none`: no adapter), or several.

    What is left out is that of the active pack; another model has no adapter unless one is named.
    """

    pack: Place | None = None
    model: Place | None = None
    adapter: Place | None = None
    scale: Scale = 1.0


#: Most candidates that one canary is chosen from.
MAX_CANDIDATES = 16


class CanaryChange(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A change of the canary: `start` one on these `terms`, give it another `share`, `stop` it, or `promote`
    its candidate.

    `choose`: of several candidates, that with the best record; it is refused if the record does not say.
    """

    change: Literal["start", "share", "stop", "promote"]
    candidates: Annotated[tuple[Candidate, ...], Meta(max_length=MAX_CANDIDATES)] = ()
    choose: bool = False
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    terms: Terms = Terms()


class Control(Struct, frozen=True, kw_only=True):
    """A change of packs, adapter or canary.

    It makes `pack` resident, activates it, makes it the shadow (`none`: no shadow), unloads it, reloads every
    resident pack from its directory, uses `adapter` at `scale` (`none`: no adapter), or changes the `canary`.
    """

    task: Literal["load", "activate", "shadow", "unload", "reload", "adapter", "canary"]
    pack: Place | None = None
    adapter: Place | None = None
    scale: Scale = 1.0
    canary: CanaryChange | None = None


Record: TypeAlias = (
    DecisionReport
    | Consultation
    | Outcome
    | Review
    | Assignment
    | Approval
    | ApprovalRequest
    | Approve
    | Deny
    | Cancel
    | Supplement
    | Node
    | Edge
    | TraceState
)

#: Each record by the name of the operation which hands it over.
RECORDS: dict[str, type[Record]] = {
    "decision_report": DecisionReport,
    "consultation": Consultation,
    "outcome": Outcome,
    "review": Review,
    "assignment": Assignment,
    "approval": Approval,
    "request_approval": ApprovalRequest,
    "approve": Approve,
    "deny": Deny,
    "cancel": Cancel,
    "supplement": Supplement,
    "node": Node,
    "edge": Edge,
    "trace_state": TraceState,
}
OP_OF: dict[type, str] = {record: op for op, record in RECORDS.items()}
#: The kind of event that each becomes: the name of its operation, but for what is done with a task.
KIND_OF: dict[type, str] = OP_OF | {
    ApprovalRequest: "approval_request",
    Approve: "approval",
    Deny: "approval",
    Cancel: "approval_end",
}

#: Fields that hold people's names or free text: they live beside the chain and can be erased.
PRIVATE_FIELDS: dict[type, tuple[str, ...]] = {
    DecisionReport: ("agent", "entity", "prompt", "response", "reasoning", "context"),
    Consultation: ("entity", "query", "value"),
    Outcome: ("note",),
    Review: ("reviewer", "reasoning"),
    Assignment: ("reviewer", "given_by"),
    Approval: ("approver", "role", "evidence"),
    ApprovalRequest: ("reason",),
    Approve: ("comment", "consent"),
    Deny: ("comment",),
    Cancel: ("reason",),
    Supplement: ("values",),
    Node: ("title", "description", "metadata", "role", "agent"),
    Edge: ("rationale",),
    TraceState: ("because",),
}
