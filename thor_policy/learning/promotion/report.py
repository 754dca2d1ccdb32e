"""Terms, checks and reports of the gate.

Owns the types of promotion, and the form of a report in the journal. Invariant: a report passes if all its
checks pass, and a check passes if it has no reason against the pack. Pure; any thread.
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

#: Largest report in a request, in bytes; so also its largest number of characters.
MAX_BYTES = 32_768
#: Most reasons of a check in a recorded report. The first number with which the report is no larger than
#: `MAX_BYTES` is used; further reasons are counted.
REASONS = (20, 5, 1)
#: Longest reason in a recorded report, in characters.
REASON_CHARS = 300


class Terms(Struct, frozen=True, kw_only=True):
    """What the gate evaluates.

    Of past decisions since `since` (RFC 3339) the newest `past`; of reviewed decisions the newest `reviewed`;
    `variants` variants of scenarios, drawn by `seed`. `accepted` are ids of past decisions that may be
    loosened.
    """

    since: str
    past: int = 500
    reviewed: int = 200
    variants: int = 50
    seed: int = 0
    accepted: tuple[str, ...] = ()


class Check(Struct, frozen=True, kw_only=True):
    """One check: its figure, what is allowed, and every reason against the pack."""

    name: Name
    figure: str
    limit: str
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.reasons


class Merit(Struct, frozen=True, kw_only=True):
    """How good a pack is.

    `held_out`: reviewed decisions that it agrees with; `suites`: scenarios that it passes; `served`: its live
    decisions that were right.
    """

    pack: PackInfo
    held_out: Rate
    suites: Rate
    served: Rate


class Report(Struct, frozen=True, kw_only=True):
    """The checks of `pack`, compared with the pack `against` at the time `at` (RFC 3339)."""

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
        """The report as JSON values, with `passed` for the whole and for each check."""
        fields: dict[str, Json] = msgspec.to_builtins(self)
        for check_fields, check in zip(fields["checks"], self.checks, strict=True):
            check_fields["passed"] = check.passed
        return {"passed": self.passed} | fields

    def recorded(self) -> str:
        """The report as JSON for the journal: the first reasons of each check, the number of the others."""
        for most in REASONS:
            fields = self.plain()
            for check in fields["checks"]:
                reasons = [reason[:REASON_CHARS] for reason in check["reasons"]]
                more = [f"and {len(reasons) - most} more"] if len(reasons) > most else []
                check["reasons"] = reasons[:most] + more
            text = msgspec.json.encode(fields).decode()
            if len(msgspec.json.encode(text)) <= MAX_BYTES:
                break
        return text


class Promotion(Struct, frozen=True, kw_only=True):
    """The result: the reports in the order of the candidates, the pack that was `chosen`, and why.

    `recorded`: the journal holds it. `activated`: the daemon decides by the chosen pack now. `advice` is what
    is left to do by hand.
    """

    reports: tuple[Report, ...]
    chosen: PackInfo | None
    why: str
    recorded: bool = False
    activated: bool = False
    advice: str | None = None
