"""scripts/work_bench.py: its journal is sound, and it prints a figure for each call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import work_bench


def test_a_small_journal_is_sound_and_each_call_has_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GOALS": 3, "PARTS": 4, "OF_SESSION": 20, "REPEATS": 1}.items():
        monkeypatch.setattr(work_bench, name, value)
    path = tmp_path / "policy_decisions.db"
    ids = work_bench.build(path, 90)
    assert verify(path).ok
    with Reader(path) as reader:
        assert len(work_queries.nodes(reader, limit=1_000)) == 90 + 3 * 5
        assert len(work_queries.nodes(reader, status="superseded", limit=1_000)) > 5
    figures = work_bench.measure(path, ids)
    assert len(figures) == 9
    assert all(0 < median <= slowest and processor > 0 for median, slowest, processor in figures.values())
