"""Runs of scenarios made up for tests: items answered, in error, or many at once."""

from __future__ import annotations

from typing import Any

from thor_policy.assessment.runs import Item, Judge, Run, Tokens, how_wrong
from thor_policy.core import PackInfo

LABELS = ("allow", "mfa", "deny")
JUDGE = Judge(
    pack=PackInfo(name="small", version="1.0.0", sha256="ab" * 32),
    labels=LABELS,
    model="tiny-q4",
    model_sha256="cd" * 32,
)


def answered(id: str, outcome: str | None = "deny", *, wanted: str = "deny", **changes: Any) -> Item:
    """An item that the model answered; `wanted` may name several outcomes, with a `|` between."""
    accepted = tuple(wanted.split("|"))
    fields: dict[str, Any] = {
        "suite": "trial",
        "pack": "small",
        "title": f"About {id}",
        "difficulty": "easy",
        "status": "passed" if outcome in accepted else "failed",
        "accepted": accepted,
        "outcome": outcome,
        "label": outcome,
        "floor": "allow",
        "tier": "model",
        "wrong": how_wrong(outcome, accepted, LABELS),
        "probabilities": {label: 0.8 if label == outcome else 0.1 for label in LABELS},
        "structure": 1.0,
        "total_ms": 100.0,
        "score_ms": 80.0,
        "tokens": Tokens(prefix=1000, question=70, explanation=10),
    }
    return Item(id=id, **fields | changes)


def run_of(*items: Item, repeats: int = 1, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "at": "2026-05-13T10:00:00Z",
        "version": "0.1.0",
        "where": "in process",
        "machine": "a desk",
        "selection": "full",
        "judges": (JUDGE,),
    }
    return Run(repeats=repeats, results=items, **fields | changes)


def error(id: str, **changes: Any) -> Item:
    return answered(id, None, status="error", tier=None, floor=None, probabilities={}, tokens=None, **changes)


def skipped(id: str, **changes: Any) -> Item:
    unasked = {"tier": None, "floor": None, "label": None, "probabilities": {}, "tokens": None}
    return answered(id, None, status="skipped", **unasked | changes)


def many(right: int, wrong: int) -> list[Item]:
    """So many scenarios decided right and, after them, wrong (too strict)."""
    outcomes = ["mfa"] * right + ["deny"] * wrong
    return [answered(f"Q{n}", outcome, wanted="mfa") for n, outcome in enumerate(outcomes)]
