"""Requests to agent-tools of kinds that once passed: the rules, without the model, give the right outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.pack import Pack

FILE = Path(__file__).parents[2] / "data" / "structure" / "kinds.yaml"
KINDS = yaml_text.parse(FILE.read_text(encoding="utf-8"), dict[str, list[dict[str, str]]], FILE)
CASES = [(kind, case) for kind, cases in KINDS.items() for case in cases]
#: 2026-03-04T10:00:00Z.
WEDNESDAY = 1_772_618_400.0


@pytest.fixture(scope="module")
def pack() -> Pack:
    return pack_files.load(data_path("prompts") / "agent-tools")


@pytest.mark.parametrize(
    ("kind", "case"), CASES, ids=[f"{kind} {case.get('command', case['target'])!a}" for kind, case in CASES]
)
def test_the_rules_give_the_right_outcome(kind: str, case: dict[str, str], pack: Pack) -> None:
    command = case.get("command")
    resource_type = "host" if command else "url" if kind == "K21" else "file"
    request: dict[str, Any] = {
        "subject": {
            "type": "agent",
            "id": "coder-2",
            "properties": {"principal": "ben@firm.example", "tools": [case["tool"]]},
        },
        "action": {"name": case["tool"], "properties": {"command": command} if command else {}},
        "resource": {"type": resource_type, "id": "sandbox" if command else case["target"]},
        "context": {
            "task": "Fix the rounding bug in the cart and run its tests.",
            "origin": "principal",
            "workspace": case.get("workspace", "/projects/shop"),
        },
    }
    floor = pack.book.apply(msgspec.convert(request, Evaluation), WEDNESDAY)
    match case["right"]:
        case "deny":
            assert floor.outcome == "deny"
        case "review":
            assert floor.outcome != "allow"
        case _:
            assert (floor.outcome, floor.final) == ("allow", True)
