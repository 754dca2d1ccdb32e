"""scripts/screenshots.py: its demo journal is whole, and every picture is made and small."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import screenshots

from tests import browser
from thor_policy.config import Config
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.policy.pack import Pack

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 1_500_000


def test_the_demo_journal_is_whole(config: Config, shipped_pack: Pack) -> None:
    screenshots.fill(config, shipped_pack)
    assert verify(config.journal_path).ok
    with Reader(config.journal_path) as reader:
        rows = reader.decisions(limit=1_000)
    assert len(rows) > 100
    assert [row["timestamp"] for row in rows] == sorted((row["timestamp"] for row in rows), reverse=True)
    assert {row["tier"] for row in rows} == {"rule", "model"}


def test_the_cases_of_the_demo_name_rules_of_the_pack(shipped_pack: Pack) -> None:
    named = {rule for _, _, _, rule, *_ in screenshots.CASES if rule is not None}
    assert named <= {rule.id for rule in shipped_pack.book.rules}
    decision = screenshots._decision(random.Random(1), shipped_pack.info, shipped_pack.labels, 1.0)
    assert decision.outcome in shipped_pack.labels


def test_the_docs_link_to_every_picture_and_all_are_small() -> None:
    page = (ROOT / "docs" / "how-to" / "look-at-decisions.md").read_text(encoding="utf-8")
    pictures = sorted((ROOT / "docs" / "_static" / "web").glob("*.webp"))
    assert len(pictures) >= 2 * 13
    assert [picture.name for picture in pictures if f"web/{picture.name}" not in page] == []
    assert sum(picture.stat().st_size for picture in pictures) < MAX_BYTES


@pytest.mark.soak
@pytest.mark.skipif(browser.PATH is None, reason="no Chromium on the path, nor named by CHROMIUM")
def test_every_picture_is_made(tmp_path: Path) -> None:
    assert screenshots.main(tmp_path, None) == 0
    names = {picture.name for picture in (ROOT / "docs" / "_static" / "web").glob("*.webp")}
    assert {picture.name for picture in tmp_path.glob("*.webp")} == names
