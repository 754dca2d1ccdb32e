"""Templates: each gives nodes and links that the journal takes."""

from __future__ import annotations

import pytest

from thor_policy.core import graph
from thor_policy.core.errors import ConfigError
from thor_policy.trace.graph_templates import begun, templates


@pytest.mark.parametrize("name", templates())
def test_a_template_has_nodes_and_links_that_the_vocabulary_allows(name: str) -> None:
    first, made = begun(name, "Billing", session="s", agent="a")
    types = {kept.id: kept.node.type for kept in made.nodes}
    assert types[first] == "goal"
    assert all("Billing" in kept.node.title and "{" not in kept.node.title for kept in made.nodes)
    assert {(kept.node.session, kept.node.agent) for kept in made.nodes} == {("s", "a")}
    assert {end for kept in made.edges for end in (kept.edge.source, kept.edge.target)} == set(types)
    for kept in made.edges:
        ends = types[kept.edge.source], types[kept.edge.target]
        assert graph.problem_of_ends(kept.edge.type, *ends) is None


def test_each_use_of_a_template_has_ids_of_its_own() -> None:
    ids = [{kept.id for kept in begun("incident", "x")[1].nodes} for _ in range(2)]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("name", "title", "problem"),
    [
        ("nobody", "x", "there is no template 'nobody'; there are api-design, incident, migration, release"),
        ("release", " ", "title: must have 1 to"),
        ("release", "x" * 250, "title: must have 1 to"),
    ],
)
def test_a_wrong_name_or_title_is_refused(name: str, title: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        begun(name, title)
