"""The request of a recorded decision, so that it can be decided again.

Owns the way back from an event to a `Request`. Invariant: evaluation, caller, time of receipt and the
values of sources and precedents come from the record, so rules and prompt are the same as then. An
incomplete request is refused with the reason. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from thor_policy.core.lifting import Use
from thor_policy.core.requests import NEVER_NS, Caller, Evaluation, Request
from thor_policy.journal.events import consulted_of, precedents_of
from thor_policy.journal.reader import Reader, Record

#: Why a request cannot be decided again. `decision_report`: somebody else decided it. `erased`: it was
#: erased, or a name in it. `missing`: its private part is gone, and nothing erased it. `masked`: a value was
#: not recorded.
Lack = Literal["decision_report", "erased", "missing", "masked"]


class Unasked(Exception):
    """The request cannot be decided again. `lack` and the message say why."""

    def __init__(self, lack: Lack, message: str) -> None:
        super().__init__(message)
        self.lack: Lack = lack


def use_of(event: Record) -> Use | None:
    """What an approval did for the decision of an event."""
    return msgspec.convert(event["body"].get("use"), Use | None)


def request_of(reader: Reader, event: Record) -> Request:
    """The request of a decision's event, without a deadline. Raises Unasked."""
    private = event["private"]
    if event["kind"] != "decision":
        raise Unasked(
            "decision_report", "it was reported from elsewhere: there are no rules and no request to repeat"
        )
    by_seq = reader.erasure(event["seq"])
    if by_seq is not None:
        raise Unasked("erased", f"erased by event {by_seq}: its request is gone")
    if private is None:
        raise Unasked("missing", "its private part is missing; run `thorpolicy log verify`")
    if masked := private.get("masked"):
        raise Unasked("masked", f"masked: {', '.join(masked)} was not recorded")
    return Request(
        ticket=0,
        evaluation=msgspec.convert(private["evaluation"], Evaluation),
        caller=msgspec.convert(event["body"]["caller"], Caller),
        received_at=datetime.fromisoformat(event["at"]).timestamp(),
        received_ns=0,
        deadline_ns=NEVER_NS,
        sources=consulted_of(event["body"], private),
        precedents=precedents_of(event["body"], private),
        precedents_note=event["body"].get("precedents_note"),
    )
