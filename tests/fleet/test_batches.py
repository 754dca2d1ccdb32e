"""Rows of a batch: with undecoded JSON they are the same rows, whatever is in the texts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import about, by_model, by_rule, one_of_each, record, what_judges
from thor_policy.core.requests import Entity
from thor_policy.fleet.batches import JournalSource, rows_of


def both(path: Path) -> tuple[Any, Any]:
    """The rows of a journal as a sink gets them, and with every value decoded."""
    source = JournalSource(path, "thor-1", path.parent / "none")
    batch = source.batch(0, bytes(32))
    source.close()
    assert batch is not None
    as_sent = msgspec.json.decode(msgspec.json.encode(batch.rows))
    lacks = as_sent.pop("lacks")
    assert lacks == []
    return as_sent, msgspec.json.decode(msgspec.json.encode(rows_of(batch.events)))


def test_rows_of_every_kind_are_the_same_undecoded(tmp_path: Path) -> None:
    path = tmp_path / "policy_decisions.db"
    record(path, *one_of_each(), *what_judges())
    as_sent, decoded = both(path)
    assert as_sent == decoded
    assert set(decoded) >= {"decisions", "reviews", "outcomes", "approvals", "edges", "changes"}


TEXTS = st.one_of(
    st.text(max_size=30), st.sampled_from(["\0", "\\u0000", "\\\0", "a\0b", "\\\\u0000", "\ufffd"])
)


@settings(max_examples=60, deadline=None)
@given(
    id=TEXTS.filter(bool),
    key=TEXTS,
    value=st.recursive(
        TEXTS
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.booleans()
        | st.none(),
        lambda v: st.lists(v, max_size=3),
        max_leaves=5,
    ),
)
def test_rows_with_any_text_are_the_same_undecoded_and_have_no_nul(id: str, key: str, value: Any) -> None:
    evaluation = replace(
        about(), subject=Entity(type="user", id=id), context={key: value, "team_context": value}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy_decisions.db"
        record(path, by_model(evaluation=evaluation), by_rule(evaluation=evaluation))
        as_sent, decoded = both(path)
    assert as_sent == decoded
    assert "\0" not in str(as_sent)
    assert b"\\u0000" not in msgspec.json.encode(as_sent).replace(b"\\\\", b"")
