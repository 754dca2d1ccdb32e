"""JSON Schemas of the files of a pack, for editors that check a file while it is written.

Owns what a schema says beyond the types: what each member means, and the form of names. Invariant: a schema
refuses nothing that lint accepts. Only lint can check expressions, and whether what a file names exists.
Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from thor_policy.core.requests import RISKS, Json
from thor_policy.policy.pack_files import TYPES
from thor_policy.policy.tokens import RESERVED, ROOTS

#: A JSON Schema, or a part of one.
Schema = dict[str, Any]

_LABEL = "^[a-z][a-z0-9_]{0,63}$"
_NAMES = {"pattern": "^[a-z][a-z0-9_]*$"}
_FACTS = {"pattern": "^_?[a-z][a-z0-9_]*$"}
_MEMBER_PATHS = {
    "pattern": r"^((subject|action|resource)\.properties|context)(\.[A-Za-z_][A-Za-z0-9_]*)+$",
}
_NAMED_PATHS = {
    "pattern": r"^((subject|resource)\.type|action\.name"
    r"|((subject|action|resource)\.properties|context)(\.[A-Za-z_][A-Za-z0-9_]*)+)$",
}
_SHOWN = (
    r"^((subject|resource)\.(type|id|properties)(\..*)?|action\.(name|properties)(\..*)?|context(\..*)?"
    r"|facts\.[a-z][a-z0-9_]*(\..*)?)$"
)

_FILES = {
    "pack.yaml": "The head of a policy pack: what it can answer, what it reads, and its facts.",
    "rules.yaml": "The rules of a policy pack. All are evaluated; the strictest outcome that matches counts.",
    "clauses.yaml": "The numbered policy text: a name such as R1, and its sentence.",
    "examples.yaml": "The few-shot examples of a policy pack: questions with their right answers.",
    "data.yaml": "The tables of a policy pack, by name. Expressions read them as data.NAME.",
}

#: For each struct and member: what it means, and what a schema can say about it beyond its type.
_MEMBERS: dict[str, dict[str, tuple[str, Schema]]] = {
    "Manifest": {
        "name": ("Name of the pack.", {"pattern": "^[a-z0-9][a-z0-9-]{0,63}$"}),
        "version": ("Version of the pack, such as 1.0.0. The sha256 of its files tells packs apart.", {}),
        "description": ("What the pack decides, in one sentence.", {}),
        "outcomes": ("All outcomes, loosest first. The last one answers every failure.", {"minItems": 2}),
        "model": ("`never`: rules alone decide. `tightens`: a model can make an outcome stricter.", {}),
        "default": ("The outcome where no rule decides. Without it the model decides there.", {}),
        "requires": ("Members that a request must have, and the outcome of a request without them.", {}),
        "reads": ("Members that a request may have, with their types.", {"propertyNames": _MEMBER_PATHS}),
        "classifications": ("The classes that an answer can have.", {"uniqueItems": True}),
        "fields": ("The lines of the question to the model, in this order.", {}),
        "vocabulary": (
            "For members of a request, by path: the names that they can have.",
            {"propertyNames": _NAMED_PATHS},
        ),
        "sources": (
            "Where the daemon looks attributes up, by name. Expressions read them as sources.NAME.ATTRIBUTE.",
            {"propertyNames": _NAMES},
        ),
        "words": ("Word lists for mentions(..) and starts(..), by name.", {}),
        "facts": (
            "Named CEL expressions. Each sees the request, `data` and facts above it; _x is a step.",
            {"propertyNames": _FACTS | {"not": {"enum": sorted({*ROOTS, *RESERVED})}}},
        ),
        "risk": ("A CEL expression that gives low, medium, high or critical.", {}),
        "supersedes": ("The version that this one replaces.", {}),
        "limits": ("Limits of a question and of an explanation.", {}),
        "clock": (
            "`daemon`: expressions may read `now`. `request`: only the time that a request states.",
            {},
        ),
        "trace": ("What kind of decision an answer is, and when its trace is complete.", {}),
        "precedents": ("Past decisions that are looked up and shown beside the question.", {}),
        "cache": ("false: the model scores every question, also repeated ones.", {}),
    },
    "TraceSection": {
        "types": ("Types of decisions besides policy_application.", {"items": {"pattern": _LABEL}}),
        "decision_type": ("A CEL expression that gives the type of the decision.", {}),
        "is_exception": ("A CEL expression: true if the decision is an exception from the policy.", {}),
        "urgency": ("A CEL expression that gives normal, urgent or emergency.", {}),
        "judgment_call": ("A CEL expression: true if the decision is a judgment call.", {}),
        "complete": (
            "By type: what a trace must have before it counts.",
            {"propertyNames": {"pattern": _LABEL}},
        ),
        "summaries": ("By type: the template of context summaries.", {"propertyNames": {"pattern": _LABEL}}),
    },
    "PrecedentsSpec": {
        "k": ("How many at most.", {}),
        "budget_ms": ("Longest look-up, in milliseconds; then the question is decided without.", {}),
        "least_similarity": ("Leave out what is less similar than this, 0 to 1.", {}),
        "same": ("What they must have in common with the question: pack, actor, entity.", {}),
        "type": ("Only decisions of this type.", {"pattern": _LABEL}),
        "rules": ("true: expressions may read precedents.count and call precedents.share(OUTCOME).", {}),
        "prompt": ("true: the model is shown a line for each.", {}),
    },
    "Outcome": {
        "label": ("Name of the outcome.", {"pattern": _LABEL}),
        "obligations": ("What the caller must see to when it gets this outcome.", {}),
        "lifted_by": ("The approvals that lift the outcome: a question asked again is then allowed.", {}),
        "step_up": (
            "true: it allows, to a caller whose context.supported_obligations names its one obligation.",
            {},
        ),
    },
    "LiftedBy": {
        "steps": ("Who has to approve, in this order.", {}),
        "any_of": ("Several lists of steps, of which one is enough.", {}),
        "break_glass": ("One step that is enough for a request that is an emergency.", {}),
        "binds": (
            "Paths of the members that may not change. Default: all that rules and prompt read.",
            {},
        ),
        "holds_s": ("Seconds for which the approval holds after its last step.", {}),
        "uses": ("`once`: for one decision. `until`: for any number while it holds.", {}),
        "request_within_s": ("Seconds after the decision in which it can be requested.", {}),
        "pending_s": ("Seconds for which a request waits for its approvals.", {}),
        "consents": ("Channels of consents given elsewhere that count, such as email.", {}),
    },
    "ApprovalStep": {
        "role": ("Role in the setting `people`.", {}),
        "group": ("Group in the setting `people`.", {}),
        "quorum": ("How many different persons.", {}),
        "not": ("Who may not approve. Default: subject and caller.", {}),
    },
    "Obligation": {
        "id": ("Name of the obligation.", {}),
        "type": ("Type of the obligation (AuthZEN obligations profile).", {}),
        "properties": ("What the caller needs to know for it.", {}),
    },
    "Requires": {
        "members": ("Path of each member, with its type.", {"propertyNames": _MEMBER_PATHS}),
        "outcome": ("Outcome of a request without them. Default: the strictest.", {}),
    },
    "Vocabulary": {
        "names": ("Each name with its kind, which kind(..) gives; or a list of names.", {}),
        "unknown": ("Least outcome of a request with another name. Default: the strictest.", {}),
        "clause": ("Name of the clause that it enforces.", {}),
        "classification": ("Class of the answer.", {}),
    },
    "SourceSpec": {
        "of": ("The part of a question that it describes.", {}),
        "attributes": ("What expressions may read of it, by name.", {"propertyNames": _NAMES}),
        "types": ("Types of the subject or resource that it describes. Default: every type.", {}),
        "system": ("What records call it. Default: its name.", {}),
        "required": (
            "true: if it fails, the answer is the strictest outcome. false: its attributes are absent.",
            {},
        ),
        "timeout_ms": ("Longest look-up, in milliseconds.", {}),
        "workers": ("Look-ups that may run at once.", {}),
        "fresh_at": ("Path to the RFC 3339 time of its values.", {}),
        "quality": ("Path to the quality of its values, 0 to 1.", {}),
        "table": ("It is a file of rows.", {}),
        "sqlite": ("It is a query on a SQLite file.", {}),
        "http": ("It is a JSON endpoint.", {}),
        "pushed": ("Programs with the role push send its values.", {}),
    },
    "Attribute": {
        "type": ("Type of the attribute. A value of another type makes the look-up fail.", {}),
        "at": ("Dotted path in what the source gives. Default: the attribute's name.", {}),
    },
    "Table": {
        "path": (
            "File that ends with .yaml, .csv or .jsonl. A relative path begins at the pack's directory.",
            {},
        ),
        "key": ("Column of the entity's id.", {}),
        "type_key": ("Column of the entity's type. Without it the rows are of every type.", {}),
    },
    "Sqlite": {
        "path": ("SQLite file, opened read-only. A relative path begins at the pack's directory.", {}),
        "query": ("SELECT with the parameters :id and :type. Its first row counts.", {}),
        "listing": ("SELECT whose first column has the ids of all entities.", {}),
    },
    "Http": {
        "url": ("URL with {id} and {type}, which are percent-escaped.", {}),
        "hosts": ("Further hosts that a redirect may lead to.", {}),
        "ttl_s": ("Seconds for which an answer may be used again. 0: never.", {}),
        "max_bytes": ("Largest answer, in bytes.", {}),
        "listing": ("URL of a JSON list of ids.", {}),
    },
    "Pushed": {
        "max_ttl_s": ("Seconds for which a value counts at most.", {}),
    },
    "Field": {
        "name": ("Name of the line.", {}),
        "value": ("Path into the request, or facts.NAME. An absent value has no line.", {"pattern": _SHOWN}),
        "rest": ("Show the members of the map at `value` that no other field shows.", {}),
    },
    "Limits": {
        "max_reasoning_tokens": ("Most tokens of the model's reason.", {}),
        "max_field_chars": ("A longer value is shown truncated, with an ellipsis.", {}),
        "max_text_chars": ("A request with a longer value in one of the fields is refused.", {}),
        "texts": (
            "Paths of a request whose texts may have more characters than the setting max_text_chars.",
            {"propertyNames": _MEMBER_PATHS},
        ),
        "max_clauses": ("Most clauses that the model cites.", {}),
        "tighten_at": (
            "The doubt, 0 to 1, from which a stricter label counts: one number, or one for each risk.",
            {"propertyNames": {"enum": list(RISKS)}},
        ),
        "abstain": ("What becomes of an allow of the model with little confidence.", {}),
    },
    "Abstention": {
        "outcome": ("The outcome instead.", {}),
        "below": (
            "Confidence from 0 to 1 for each risk: an allow with less becomes `outcome`.",
            {"propertyNames": {"enum": list(RISKS)}},
        ),
    },
    "Rule": {
        "id": ("Name of the rule, different from all others.", {}),
        "when": ("A CEL expression that gives true or false. A rule that fails counts as matched.", {}),
        "outcome": ("No answer is looser than this outcome if the rule matches.", {}),
        "because": ("The reason, in one sentence.", {}),
        "clause": ("Name of the clause that the rule enforces.", {}),
        "classification": ("Class of the answer.", {}),
        "final": ("true: the rule decides without the model, unless a stricter rule matched.", {}),
    },
    "Example": {
        "id": ("Name of the example, different from all others.", {}),
        "evaluation": ("The question.", {}),
        "outcome": ("The right outcome.", {}),
        "classification": ("The right class.", {}),
        "risk": ("The risk, as the expression in pack.yaml gives it.", {}),
        "clauses": ("Names of the clauses to cite.", {}),
        "reasoning": ("The reason, in one sentence.", {}),
        "at": ("Receipt time of the question, in Unix seconds.", {}),
        "sources": ("What the sources of the pack say: attributes by source.", {}),
    },
    "Evaluation": {
        "subject": ("Who wants to do it.", {}),
        "action": ("What the subject wants to do.", {}),
        "resource": ("What it is done to.", {}),
        "context": ("Circumstances, such as a reason or a time.", {}),
    },
    "Entity": {
        "type": ("Type of the subject or resource.", {}),
        "id": ("Its id within the type.", {}),
        "properties": ("What is known about it.", {}),
    },
    "Action": {
        "name": ("Name of the action.", {}),
        "properties": ("What is known about it.", {}),
    },
}

#: Rules of pack.yaml that concern several members.
_WITH_OR_WITHOUT_MODEL = {
    "if": {"required": ["model"], "properties": {"model": {"const": "never"}}},
    "then": {"required": ["default"], "properties": {"default": {"type": "string"}}},
    "else": {
        "required": ["classifications", "fields", "risk"],
        "properties": {
            "classifications": {"minItems": 1},
            "fields": {"minItems": 1},
            "risk": {"type": "string"},
        },
    },
}


def schemas() -> dict[str, Schema]:
    """The JSON Schema (draft 2020-12) of each YAML file of a pack, by the name of the schema's file."""
    return {f"{name.removesuffix('.yaml')}.schema.json": _schema(name) for name in TYPES}


def _schema(name: str) -> Schema:
    (file,), structs = msgspec.json.schema_components((TYPES[name],), ref_template="#/$defs/{name}")
    if name == "pack.yaml":
        file = structs.pop("Manifest") | _WITH_OR_WITHOUT_MODEL
        _describe(file, "Manifest")
    if name == "data.yaml":
        file["propertyNames"] = _NAMES
    for struct, definition in structs.items():
        _describe(definition, struct)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{name} of a policy pack of thor-policy",
        "description": _FILES[name],
    }
    plain: Schema = msgspec.to_builtins(head | {key: file[key] for key in file if key not in head})
    return plain | ({"$defs": msgspec.to_builtins(structs)} if structs else {})


def _describe(definition: Schema, struct: str) -> None:
    """Add to the schema of a struct what its members mean."""
    definition["description"] = " ".join(definition["description"].split())
    members: dict[str, Json] = definition["properties"]
    for name, schema in members.items():
        description, details = _MEMBERS[struct][name]
        members[name] = {"description": description} | schema | details
    if struct == "Manifest":
        members["words"]["additionalProperties"]["minItems"] = 1
