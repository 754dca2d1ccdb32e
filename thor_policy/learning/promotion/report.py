"""What the gate looks at, and what it found.

Owns the nouns of promotion and the form in which a report goes on the chain. Invariant: a report passes by
its checks alone, and each check by having no reason against it. Pure; any thread.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.requests import Json
from thor_policy.suites.intervals import Rate

Name: TypeAlias = Literal[
    "signature", "outcomes", "lint", "leaks", "suites", "held out", "counterfactual", "invariance"
]

#: Most bytes that a report takes in a request, and so most characters that it has.
MAX_BYTES = 32_768
#: Reasons of one check that a report on the chain names, as many as there is room for; others are counted.
TOLD = (20, 5, 1)
#: Characters of a reason that it has there.
REASON_CHARS = 300


class Terms(Struct, frozen=True, kw_only=True):
    """What the gate looks at. `since` (RFC 3339) bounds the counterfactual, of which the newest `past` count;
    of reviewed decisions the newest `reviewed`. `accepted` are past decisions that may be loosened.
    """

    since: str
    past: int = 500
    reviewed: int = 200
    variants: int = 50
    seed: int = 0
    accepted: tuple[str, ...] = ()


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at: what was found, what is allowed, and every reason against the pack."""

    name: Name
    figure: str
    limit: str
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons


class Merit(Struct, frozen=True, kw_only=True):
    """How good a pack is: reviewed decisions that it agrees with, scenarios that it passes, and what became
    of what it decided when it was in force.
    """

    pack: PackInfo
    held_out: Rate
    suites: Rate
    served: Rate


class Report(Struct, frozen=True, kw_only=True):
    """What the gate found of `pack`, held against the pack `against` at the time `at` (RFC 3339)."""

    at: str
    version: str
    pack: PackInfo
    against: PackInfo
    model: str
    model_sha256: str
    terms: Terms
    checks: tuple[Check, ...]
    merit: Merit | None = None
    merit_of_active: Merit | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def plain(self) -> dict[str, Json]:
        """The report as JSON values, with the verdicts."""
        told: dict[str, Json] = msgspec.to_builtins(self)
        for plain, check in zip(told["checks"], self.checks, strict=True):
            plain["passed"] = check.passed
        return {"passed": self.passed} | told

    def recorded(self) -> str:
        """The report as it goes on the chain: JSON, of each check the first reasons, others counted."""
        for most in TOLD:
            told = self.plain()
            for check in told["checks"]:
                reasons = [reason[:REASON_CHARS] for reason in check["reasons"]]
                more = [f"and {len(reasons) - most} more"] if len(reasons) > most else []
                check["reasons"] = reasons[:most] + more
            text = msgspec.json.encode(told).decode()
            if len(msgspec.json.encode(text)) <= MAX_BYTES:
                break
        return text


class Promotion(Struct, frozen=True, kw_only=True):
    """What came of it: the reports in the order of the candidates, and the pack that was `chosen`, and why.

    `recorded` says whether the chain tells of it, `activated` whether a daemon decides by it now; `advice` is
    what is left to be done by hand.
    """

    reports: tuple[Report, ...]
    chosen: PackInfo | None
    why: str
    recorded: bool = False
    activated: bool = False
    advice: str | None = None
