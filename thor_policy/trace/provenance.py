"""A graph as PROV-JSON, the W3C's format of provenance, by the library `prov` of the extra [graph].

Owns what each type of item and edge is in PROV. Invariant: decisions and actions are activities, actors are
agents, everything else is an entity; an edge is the relation that PROV has for its ends, or else influence,
and says its own type. Pure.
"""

from __future__ import annotations

from typing import Any

from thor_policy.core import graph as vocabulary
from thor_policy.core.errors import ConfigError
from thor_policy.core.escape import visible
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Record
from thor_policy.trace.interchange import ITEMS, LINKS, OF_EDGE, OF_ITEM, TERMS, iri, link_id
from thor_policy.trace.work_graph import GraphView

#: Types of items that are activities and agents of PROV.
_ACTIVITIES, _AGENTS = frozenset({"decision", "action"}), frozenset({"actor"})
_ASSOCIATED = frozenset({"DECIDED_BY", "APPROVED_BY", "COUNTERSIGNED_BY"})
_USED = frozenset({"GOVERNED_BY", "CONSULTED", "APPLIES_TO"})


def prov_json(graph: GraphView) -> str:
    """The graph as PROV-JSON. Raises ConfigError without the extra [graph]."""
    try:
        from prov.identifier import Namespace
        from prov.model import ProvDocument
    except ImportError as error:
        raise ConfigError(
            f"prov-json needs the extra [graph]: {error.name} is not installed; run: ./scripts/setup graph"
        ) from error
    document = ProvDocument()
    terms, items, links = (
        Namespace(prefix, begin) for prefix, begin in (("tp", TERMS), ("item", ITEMS), ("link", LINKS))
    )
    for namespace in (terms, items, links):
        document.add_namespace(namespace)

    def name(id: str) -> Any:
        return items[iri("", id)]

    def shown(values: Record, columns: dict[str, str]) -> dict[Any, Json]:
        known = {column: values[column] for column in columns if values[column] is not None}
        return {
            terms[column]: visible(value) if isinstance(value, str) else value
            for column, value in known.items()
            if column != "type"
        }

    kinds = {item["id"]: _kind(item["type"]) for item in graph.items}
    for item in graph.items:
        attributes = {"prov:type": terms[item["type"]], **shown(item, OF_ITEM)}
        if item["title"] is not None:
            attributes["prov:label"] = visible(item["title"])
        if kinds[item["id"]] == "activity":
            document.activity(name(item["id"]), startTime=item["at"], other_attributes=attributes)
        elif kinds[item["id"]] == "agent":
            document.agent(name(item["id"]), attributes)
        else:
            document.entity(name(item["id"]), attributes)
    for edge in graph.edges:
        source, target, type_ = edge["source"], edge["target"], edge["type"]
        ends = kinds[source], kinds[target]
        id = links[iri("", link_id(edge))]
        attributes = {"prov:type": terms[type_], **shown(edge, OF_EDGE)}
        if type_ in _ASSOCIATED and ends == ("activity", "agent"):
            document.wasAssociatedWith(name(source), name(target), identifier=id, other_attributes=attributes)
        elif type_ in _USED and ends == ("activity", "entity"):
            document.used(name(source), name(target), identifier=id, other_attributes=attributes)
        elif type_ == "RESULTED_IN" and ends == ("activity", "entity"):
            document.wasGeneratedBy(name(target), name(source), identifier=id, other_attributes=attributes)
        else:
            known = vocabulary.EDGES.get(type_)
            by_source = known is not None and known.cause == "source"
            effect, cause = (target, source) if by_source else (source, target)
            document.wasInfluencedBy(name(effect), name(cause), identifier=id, other_attributes=attributes)
    return str(document.serialize(format="json", indent=2)) + "\n"


def _kind(type_: str) -> str:
    return "activity" if type_ in _ACTIVITIES else "agent" if type_ in _AGENTS else "entity"
