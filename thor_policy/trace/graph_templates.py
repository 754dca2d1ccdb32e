"""Templates: the nodes and links of a usual piece of work, to begin with.

Owns the files in `assets/templates` and what one becomes. Invariant: a template gives new ids each time, and
only nodes and links that the vocabulary allows. Pure but for the reading of the files.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from msgspec import Struct

from thor_policy.core.errors import ConfigError
from thor_policy.core.graph import EdgeType, NodeType
from thor_policy.core.ids import new_id
from thor_policy.core.records import MAX_NAME_CHARS, Edge, GraphImport, ImportedEdge, ImportedNode, Node
from thor_policy.policy import yaml_text

#: What stands for the title of the work in the titles of a template.
_PLACE = "{title}"


class TemplateNode(Struct, frozen=True, forbid_unknown_fields=True):
    """A node of a template."""

    type: NodeType
    title: str


class Template(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says: nodes by their names in it, and links as source, type and target."""

    description: str
    nodes: dict[str, TemplateNode]
    links: list[tuple[str, EdgeType, str]]


@cache
def templates() -> dict[str, Template]:
    """The templates of the package, by name."""
    folder = resources.files("thor_policy.trace") / "assets" / "templates"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda f: f.name)
    return {
        file.name.removesuffix(".yaml"): yaml_text.parse(
            file.read_text(encoding="utf-8"), Template, f"templates/{file.name}"
        )
        for file in files
    }


def begun(
    name: str, title: str, *, session: str | None = None, agent: str | None = None
) -> tuple[str, GraphImport]:
    """New nodes and links of a template, and the id of its first node. Raises ConfigError."""
    template = templates().get(name)
    if template is None:
        raise ConfigError(
            f"--template: there is no template {name[:64]!r}; there are {', '.join(templates())}"
        )
    longest = max(len(node.title) for node in template.nodes.values()) - len(_PLACE)
    if not title.strip() or len(title) + longest > MAX_NAME_CHARS:
        raise ConfigError(f"title: must have 1 to {MAX_NAME_CHARS - longest} characters for this template")
    ids = {key: new_id() for key in template.nodes}
    nodes = [
        ImportedNode(
            id=ids[key],
            node=Node(type=node.type, title=node.title.replace(_PLACE, title), session=session, agent=agent),
        )
        for key, node in template.nodes.items()
    ]
    edges = [
        ImportedEdge(id=new_id(), edge=Edge(source=ids[source], target=ids[target], type=type_))
        for source, type_, target in template.links
    ]
    return nodes[0].id, GraphImport(nodes=tuple(nodes), edges=tuple(edges))
