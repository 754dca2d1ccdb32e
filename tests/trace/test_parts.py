"""Parts: the walk from many roots finds what the walk from each alone finds."""

from __future__ import annotations

from pathlib import Path

from tests.build import record
from tests.work import link, node, recorded_history
from thor_policy.journal.reader import Reader
from thor_policy.trace.parts import Step, nearest


def shown(steps: list[Step]) -> list[tuple[int, str, str, str]]:
    return [(step.depth, step.source, step.via, step.part.id) for step in steps]


def test_roots_are_walked_together_as_each_is_alone(tmp_path: Path) -> None:
    roots = ["ship", "speed", "docs", "again", "old"]
    with Reader(recorded_history(tmp_path / "j.db")) as reader, reader.snapshot() as connection:
        together = nearest(connection, roots, most=100)
        for root in roots:
            assert together[root] == nearest(connection, [root], most=100)[root]
    assert shown(together["old"]) == []
    assert shown(together["again"]) == [(1, "again", "leads_to", "sure")]


def test_a_walk_ends_at_its_bound_and_in_a_cycle(tmp_path: Path) -> None:
    record(
        tmp_path / "j.db",
        *(node(name, "goal") for name in "abcd"),
        *(link(source, "leads_to", target) for source, target in ("ab", "ac", "ad", "da", "db", "bc")),
    )
    with Reader(tmp_path / "j.db") as reader, reader.snapshot() as connection:
        both = nearest(connection, ["a", "d"], most=2)
    assert shown(both["a"]) == [(1, "a", "leads_to", "b"), (1, "a", "leads_to", "c")]
    assert shown(both["d"]) == [(1, "d", "leads_to", "a"), (1, "d", "leads_to", "b")]
