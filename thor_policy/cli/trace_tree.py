"""A trace as a tree of text: one branch for each question that a reader has.

Owns how `thorpolicy trace ID` reads. Invariant: every text from the journal is escaped, and the tree wraps at
the width of the terminal. Main thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from thor_policy.cli.render import clip
from thor_policy.core.escape import visible
from thor_policy.core.lifting import APPROVAL
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Record
from thor_policy.trace.nodes import Link, Node, Step
from thor_policy.trace.reading import Trace

#: Longest value that a line shows, in characters, and most lines of a branch; `--json` shows all.
MOST_CHARS, MOST_LINES = 160, 20
#: Longest outcome in the first line, in characters: that line must not wrap, for no branch indents it.
MOST_OUTCOME = 24
#: The branch of each type of edge, in the order of the branches.
_BRANCHES = {
    "data": ("CONSULTED",),
    "policy": ("GOVERNED_BY",),
    "people": ("DECIDED_BY", "APPROVED_BY", "COUNTERSIGNED_BY"),
    "about": ("APPLIES_TO", "TRIGGERED_BY"),
    "precedents": ("CITES",),
    "result": ("RESULTED_IN",),
}
_STYLES = {"active": "green", "under_review": "yellow", "superseded": "yellow", "overturned": "red"}


def tree(trace: Trace) -> Tree:
    """The tree of a trace, for a console of rich."""
    head = Text(trace.id, style="bold")
    head.append(f"  {clip(_plain(trace.answer.get('outcome')), MOST_OUTCOME)}")
    head.append(f"  {trace.status}", style=_STYLES.get(trace.status, ""))
    root = Tree(head)
    _branch(root, "as known before", [] if trace.as_of is None else [_line(trace.as_of)])
    _branch(root, "decision", _decision(trace))
    _branch(root, "question", _question(trace))
    links = {name: [link for link in trace.links if link.type in types] for name, types in _BRANCHES.items()}
    _branch(root, "data", map(_data, links["data"]))
    _branch(root, "rules", _rules(trace))
    _branch(root, "policy", map(_link, links["policy"]))
    _branch(root, "model", _model(trace))
    _branch(root, "enrichment", (line for row in trace.enrichments for line in _enrichment(row)))
    _branch(root, "people", [*map(_person, links["people"]), *map(_rejection, trace.rejections)])
    _branch(
        root, "approvals", [*_approval(trace), *(line for each in trace.requests for line in _request(each))]
    )
    _branch(root, "about", map(_link, links["about"]))
    _branch(root, "precedents", map(_link, links["precedents"]))
    _branch(root, "result", map(_link, links["result"]))
    known = {type_ for types in _BRANCHES.values() for type_ in types}
    fate = [link for link in trace.links if link.type not in known]
    _branch(root, "would have been", map(_otherwise, [*trace.counterfactuals, *trace.shadows]))
    _branch(root, "later", [*map(_state, trace.states), *map(_link, fate), *_later(trace)])
    _branch(root, "causes", (_step("from", step) for step in trace.causes))
    _branch(root, "consequences", (_step("to", step) for step in trace.consequences))
    _branch(root, "summary", [] if trace.summary is None else [Text(visible(trace.summary))])
    return root


def _branch(root: Tree, name: str, lines: Iterable[Text]) -> None:
    shown = list(lines)
    if not shown:
        return
    branch = root.add(Text(name, style="bold"))
    for line in shown[:MOST_LINES]:
        branch.add(line)
    if len(shown) > MOST_LINES:
        branch.add(Text(f"and {len(shown) - MOST_LINES:,} more: --json lists all", style="dim"))


def _decision(trace: Trace) -> list[Text]:
    answer = trace.answer
    flags = [name if value == 1 else value for name, value in trace.flags.items()]
    lines = [_line(trace.at, trace.type, *flags)]
    facts: dict[str, Json] = {
        name: answer[name]
        for name in ("tier", "risk", "reason_code", "confidence", "stepped_up")
        if name in answer
    }
    if facts:
        lines.append(_pairs(facts))
    if trace.lacks:
        lines.append(Text(f"in quarantine: lacks {_plain(trace.lacks)}", style="yellow"))
    if trace.session is not None:
        lines.append(_pairs({"session": trace.session}))
    for name in ("classification", "reasoning", "clauses"):
        if name in trace.explanation:
            lines.append(_pairs({name: trace.explanation[name]}))
    lines += map(_obligation, trace.obligations)
    return lines


def _obligation(obligation: Mapping[str, Json]) -> Text:
    return _line(
        *("obligation", obligation["id"], obligation["type"]), *_details(obligation.get("properties") or {})
    )


def _question(trace: Trace) -> list[Text]:
    if trace.question is None:
        return [Text("erased", style="dim")] if trace.erased else []
    lines = [_line(*(value for value in (trace.actor, trace.action, trace.entity) if value))]
    if "subject" not in trace.question:
        return [*lines, *(_pairs({name: value}) for name, value in trace.question.items())]
    for name in ("subject", "action", "resource"):
        properties = trace.question[name].get("properties") or {}
        lines += [_pairs({f"{name}.{key}": value}) for key, value in properties.items()]
    context = trace.question.get("context") or {}
    return [*lines, *(_pairs({name: value}) for name, value in context.items() if name != APPROVAL)]


def _rules(trace: Trace) -> list[Text]:
    floor = trace.floor
    if not floor:
        return []
    lines = [_pairs({"floor": floor.get("outcome"), "final": floor.get("final", False)})]
    lines += [
        _pairs({name: floor[name]})
        for name in ("rules", "clauses", "because", "also_because")
        if floor.get(name)
    ]
    return [*lines, *(_pairs({f"facts.{name}": value}) for name, value in trace.facts.items())]


def _model(trace: Trace) -> list[Text]:
    model, answer = trace.model, trace.answer
    if model is None:
        return []
    lines = [_line(*(model[name] for name in ("name", "quantisation") if name in model))]
    if "sha256" in model:
        lines.append(_pairs({"sha256": model["sha256"][:12]}))
    lines += [_pairs({name: answer[name]}) for name in ("label", "probabilities") if answer.get(name)]
    return lines


def _enrichment(row: Record) -> list[Text]:
    """What the model wrote on idle time; its texts may be erased."""
    head = _line(row["timestamp"], f"{row['model_name']} {row['model_sha256'][:12]}", *row["why"])
    against = {"next best": row["alternative"], "not taken because": row["alternatives"] or None}
    texts = {"risk": row["risk"] or None, "rationale": row["rationale"] or None}
    lines = [head, *(_pairs({name: text}) for name, text in (texts | against).items() if text)]
    if row["risk"] is None:
        lines.append(Text("the texts were erased", style="dim"))
    return [*lines, _pairs({"quality": row["quality"]})]


def _approval(trace: Trace) -> list[Text]:
    """What the approval did that came with the question."""
    use = trace.approval
    if use is None:
        return []
    if use.get("lifts"):
        fate = _line("lifted", use["lifts"], *(["emergency"] if use.get("urgency") == "emergency" else []))
    else:
        fate = _line("did not help", use["code"]) if use.get("code") else _line("not needed")
    return [fate, _pairs({"by task": use["task"]})] if use["task"] else [fate]


def _request(request: Mapping[str, Json]) -> list[Text]:
    """A request for approvals of the decision, and what became of it."""
    urgency = request["urgency"]
    head = _line(
        *("requested", request["requested_at"], *_details({"by": request["requested_by"]})),
        *([] if urgency == "normal" else [urgency]),
    )
    reason = [] if request["reason"] is None else [_pairs({"reason": request["reason"]})]
    task = _line(f"task {request['id']}", request["status"])
    return [head, *reason, task, *(_line("used by", used) for used in request["used_by"])]


def _person(link: Link) -> Text:
    """Who decided or consented: an approval has its time, and the task that it was for is shown once."""
    if link.type == "DECIDED_BY":
        return _link(link)
    rest = {name: value for name, value in link.details.items() if name != "task"}
    role = {"as": link.node.details.get("role")}
    name = link.node.name if link.node.name is not None else "(erased)"
    return _line(link.type, name, *_details(role), *(link.node.at or "",), *_details(rest))


def _link(link: Link) -> Text:
    return _line(link.type, *_node(link.node), *_details(link.details))


def _data(link: Link) -> Text:
    """A value that was consulted: what it is first, then from where and how fresh."""
    details = link.node.details
    value = {} if details.get("value") is None else {"=": details["value"]}
    rest = {name: other for name, other in details.items() if name not in ("value", "element", "of")}
    what = " ".join([link.node.name or "", *_details(value)])
    return _line(link.type, what, *_details(rest), *_details(link.details))


def _rejection(approval: Record) -> Text:
    details = {"as": approval["role"], **{name: approval[name] for name in ("evidence", "comment")}}
    by = "(erased)" if approval["approver"] is None else approval["approver"]
    return _line("rejected by", by, *_details(details))


def _state(state: Record) -> Text:
    return _line(state["timestamp"], state["status"], *_details({"because": state["because"]}))


def _otherwise(row: Record) -> Text:
    by = row.get("run")
    kind = f"what if {by}" if by else "shadow"
    model = row.get("model_name")
    return _line(kind, row["decision"], row["prompt_version"], *([model] if model else []))


def _later(trace: Trace) -> list[Text]:
    lines = [
        _line("then", *_node(successor)) for successor in trace.superseded_by[1:]
    ]  # the first is the link SUPERSEDED_BY or OVERTURNED_BY
    if trace.cited_by:
        lines.append(_line(f"cited by {len(trace.cited_by):,}:", *trace.cited_by[:3]))
    return lines


def _step(way: str, step: Step) -> Text:
    return _line(f"{'· ' * (step.depth - 1)}{step.type}", way, *_node(step.node))


def _node(node: Node) -> Sequence[str]:
    name = node.name if node.name is not None else "(erased)" if node.type == "actor" else ""
    shown = (
        [name] if node.type in ("actor", "policy_version", "entity", "source_data") else [node.id or "", name]
    )
    return [part for part in (*shown, *_details(node.details)) if part]


def _details(details: Mapping[str, Json]) -> list[str]:
    return [f"{name} {_plain(value)}" for name, value in details.items() if value is not None]


def _pairs(values: Mapping[str, Json]) -> Text:
    return _line(*_details(values))


def _line(*parts: Json) -> Text:
    return Text("  ".join(_plain(part) for part in parts))


def _plain(value: Json) -> str:
    """A value on one line, escaped and of bounded length."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        text = ", ".join(value)
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = visible(text)
    return f"{text[: MOST_CHARS - 1]}…" if len(text) > MOST_CHARS else text
