"""Decisions: the level of a confidence."""

from __future__ import annotations

import pytest

from thor_policy.core.decisions import level_of


@pytest.mark.parametrize(
    ("confidence", "level"),
    [
        (0.0, "low"),
        (0.699, "low"),
        (0.7, "medium"),
        (0.899, "medium"),
        (0.9, "high"),
        (1.0, "high"),
        (None, None),
    ],
)
def test_a_calibrated_confidence_has_a_level_by_its_bands(
    confidence: float | None, level: str | None
) -> None:
    assert level_of(confidence, calibrated=True) == level
    assert level_of(confidence, calibrated=False) is None
