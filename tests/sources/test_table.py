"""Tables: a replaced file counts when it is whole, and until then the old one does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from thor_policy.policy.source_specs import SourceSpec, Table
from thor_policy.sources.source import SourceError
from thor_policy.sources.table import SETTLE_S, TableSource

SPEC = msgspec.convert(
    {"of": "subject", "attributes": {"tier": {"type": "string"}}, "table": {"path": "t"}}, SourceSpec
)
NOW = 1.8e9


def soon() -> int:
    return time.monotonic_ns() + 20 * 10**9


def write(path: Path, text: str | bytes, age_s: float = 60.0) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    os.utime(path, (NOW - age_s, NOW - age_s))


def opened(path: Path, **table: str) -> TableSource:
    return TableSource(SPEC, Table(path=str(path), **table), path, clock=lambda: NOW)


def tier(source: TableSource, id: str = "ann", type: str = "user") -> object:
    answer = source.look_up(type, id, soon())
    return answer.values.get("tier") if answer else None


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("t.csv", "id,tier\nann,gold\n", "id,tier\nann,silver\n"),
        ("t.jsonl", '{"id": "ann", "tier": "gold"}\n', '{"id": "ann", "tier": "silver"}\n'),
        ("t.yaml", "ann: {tier: gold}\n", "- {id: ann, tier: silver}\n"),
    ],
)
def test_a_replaced_file_is_read_again(tmp_path: Path, name: str, first: str, second: str) -> None:
    path = tmp_path / name
    write(path, first)
    source = opened(path)
    assert tier(source) == "gold"
    write(path, second, age_s=30.0)
    assert tier(source) == "silver"
    assert source.problem is None


BROKEN = [
    ("t.csv", "id,tier\nann,silver", "half-written"),
    ("t.csv", "id,tier\nann\n", "line 2 does not have 2 cells"),
    ("t.csv", "id,tier\nann,silver,x\n", "line 2 does not have 2 cells"),
    ("t.csv", "id,level\nann,silver\n", "has no column tier"),
    ("t.csv", "", "has no column id"),
    ("t.csv", "id,tier\nann,silver\nann,tin\n", "line 3 has the id of an earlier row"),
    ("t.csv", 'id,tier\n"ann,silver\n', "line"),
    ("t.csv", "id,tier\n,silver\n", "line 2 has no id"),
    ("t.csv", b"id,tier\nann,\xff\n", "utf-8"),
    ("t.jsonl", '{"id": "ann", "tier": "silver"}', "half-written"),
    ("t.jsonl", '{"id": "ann", "tier"\n', "line 1 is no JSON"),
    ("t.jsonl", "[]\n", "line 1 is no map"),
    ("t.jsonl", '{"tier": "silver"}\n', "line 1 has no id"),
    ("t.jsonl", '{"id": "ann", "id": "ann", "tier": "silver"}\n', "line 1 is no JSON"),
    ("t.yaml", "ann: {tier: silver\n", "t.yaml"),
    ("t.yaml", "silver\n", "is neither a list of rows nor a map of rows by id"),
    ("t.yaml", "ann: silver\n", "row 1 is no map"),
    ("t.yaml", "", "is neither a list of rows nor a map of rows by id"),
]
WHOLE = {
    "t.csv": "id,tier\nann,gold\n",
    "t.jsonl": '{"id": "ann", "tier": "gold"}\n',
    "t.yaml": "ann: {tier: gold}\n",
}


@pytest.mark.parametrize(("name", "broken", "problem"), BROKEN)
def test_a_broken_replacement_leaves_the_old_rows_and_says_why(
    tmp_path: Path, name: str, broken: str | bytes, problem: str
) -> None:
    path = tmp_path / name
    write(path, WHOLE[name])
    source = opened(path)
    assert tier(source) == "gold"
    write(path, broken, age_s=30.0)
    assert tier(source) == "gold"
    assert source.problem is not None
    assert problem in source.problem
    assert source.problem.endswith("still count")
    write(path, WHOLE[name].replace("gold", "tin"), age_s=20.0)
    assert (tier(source), source.problem) == ("tin", None)


@pytest.mark.parametrize(("name", "broken", "problem"), BROKEN)
def test_a_table_that_was_never_whole_gives_no_answer(
    tmp_path: Path, name: str, broken: str | bytes, problem: str
) -> None:
    write(tmp_path / name, broken)
    with pytest.raises(SourceError) as failed:
        opened(tmp_path / name).look_up("user", "ann", soon())
    assert problem in str(failed.value)


def test_a_file_that_changed_a_moment_ago_is_left_until_it_rests(tmp_path: Path) -> None:
    path, now = tmp_path / "t.csv", [NOW]
    write(path, "id,tier\nann,gold\nbob,gold\n")
    source = TableSource(SPEC, Table(path=str(path)), path, clock=lambda: now[0])
    assert tier(source, "bob") == "gold"
    write(path, "id,tier\nann,silver\n", age_s=0.0)  # whole lines, but bob's may be still to come
    assert tier(source, "bob") == "gold"
    now[0] += SETTLE_S
    assert tier(source, "bob") is None


def test_a_missing_file_leaves_the_old_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write(path, "id,tier\nann,gold\n")
    source = opened(path)
    assert tier(source) == "gold"
    path.unlink()
    assert tier(source) == "gold"
    assert source.problem is not None
    assert "No such file or directory" in source.problem


def test_a_table_with_a_column_of_types_tells_equal_ids_apart(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "id,kind,tier\nann,user,gold\nann,agent,tin\n")
    source = opened(tmp_path / "t.csv", type_key="kind")
    assert (tier(source), tier(source, type="agent"), tier(source, type="doc")) == ("gold", "tin", None)
    assert source.listing("agent", soon()) == ["ann"]


@pytest.mark.parametrize("place", ["folder", "pipe"])
def test_what_is_no_regular_file_gives_no_answer(tmp_path: Path, place: str) -> None:
    path = tmp_path / "t.csv"
    path.mkdir() if place == "folder" else os.mkfifo(path)
    with pytest.raises(SourceError):
        opened(path).look_up("user", "ann", soon())
