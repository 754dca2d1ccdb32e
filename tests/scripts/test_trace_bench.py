"""scripts/trace_bench.py: its journal is sound, and it prints a figure for each look-up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import trace_bench


def test_a_small_journal_is_sound_and_each_look_up_has_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_bench, "CHAIN", 20)
    monkeypatch.setattr(trace_bench, "CITING", 5)
    monkeypatch.setattr(trace_bench, "LOOKUPS", 5)
    path = tmp_path / "policy_decisions.db"
    ids = trace_bench.build(path, 60)
    assert len(ids) == 21
    assert verify(path).ok
    with Reader(path) as reader:
        states = [(reader.get(decision_id) or {})["trace_status"] for decision_id in ids]
    assert states == [*["superseded"] * 19, "active", "active"]
    trace_bench.measure(path, ids)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "built", "stated", "trace ID", "trace ID, cited by 500", "traces of an entity",
        "traces of an entity, superseded", "supersede chain of 1,000", "trace ID before a chain of 1,000",
        "compliance, page of 100", "compliance, page of 100 from the middle",
        "impact of a precedent, cited by 500", "impact of the first exception", "impact of a pack",
        "compliance, page of 100 of a common type",
    ]  # fmt: skip
