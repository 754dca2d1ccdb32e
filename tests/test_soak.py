"""Long runs, by their own command: ./scripts/test -m soak tests/test_soak.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import small_packs

from thor_policy import packs
from thor_policy.bench.determinism import determinism
from thor_policy.catalog import ModelFile
from thor_policy.config import Config
from thor_policy.core import Action, Entity, Evaluation

pytestmark = [pytest.mark.soak, pytest.mark.model]

REQUESTS = 10_000
#: Short ones, so that ten thousand take minutes; what is compared does not depend on their length.
SHORT = [
    Evaluation(
        subject=Entity(type="user", id=f"u{thing}"),
        action=Action(name=verb),
        resource=Entity(type="doc", id="d"),
    )
    for verb in ("read", "deploy", "delete", "rotate")
    for thing in range(10)
]


def test_ten_thousand_requests_give_the_same_bits(
    model_file: ModelFile, short_dir: Path, tmp_path: Path
) -> None:
    """In random order, with explanations running, another pack resident, and after a restart."""
    pack, other = (
        small_packs.write(tmp_path / name, system=f"{name}.", version=version)
        for name, version in (("one", "1"), ("other", "2"))
    )
    config = Config(state_dir=short_dir, pack=str(pack), model=str(model_file.path), context_tokens=512)
    report = determinism(config, SHORT, requests=REQUESTS, other=packs.load(other), advance=lambda: None)
    print(report.facts)
    assert report.facts["explanations"] > 100
    differing = {name: found for name, found in report.facts.items() if "differ" in name}
    assert differing == dict.fromkeys(differing, 0)
