"""Requests that one caller sends for others: whose each is, before anything else happens to it.

Owns the member `as` of a request and the callers that each relay has spoken for. Invariant: a relayed request
has no role that its relay lacks, and takes the share of whom it is for, not of the relay; only a caller with
the role `relay` can send one. The thread of the connections.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import Lane
from thor_policy.daemon.peers import Received
from thor_policy.protocol.requests import behalf_in
from thor_policy.security.roles import relayed

#: Callers that one relay may speak for, until the daemon ends: each has a share, and accounts of it.
MAX_CALLERS = 4_096


class Relays:
    """What callers with the role `relay` send; a frame has `max_bytes` at most. Counts in `counters`."""

    def __init__(self, max_bytes: int, counters: Counter[str]) -> None:
        self._max_bytes = max_bytes
        self._counters = counters
        self._callers: dict[str, set[str]] = {}

    def attribute(self, received: Received) -> Received:
        """The message, of the caller that it is for; with a fault where it does not say so properly."""
        sender = received.sender
        if "relay" not in sender.identity.roles or received.fault is not None:
            return received
        try:
            behalf = behalf_in(received.frame, self._max_bytes)
            if behalf is None:
                return received
            roles = relayed(sender.identity.roles, behalf.roles)
        except RequestError as error:
            return replace(received, fault=error)
        caller = replace(sender.caller, on_behalf_of=behalf.name)
        identity = replace(sender.identity, caller=caller, roles=roles)
        lane = Lane(caller.who or "", sender.lane.connection)
        return replace(
            received,
            sender=replace(sender, identity=identity, lane=lane),
            fault=self._note(sender.caller.who or "", behalf.name),
        )

    def _note(self, relay: str, name: str) -> RequestError | None:
        """Note that a relay speaks for another; or why it may not, which is held against that other."""
        callers = self._callers.setdefault(relay, set())
        if name not in callers and len(callers) >= MAX_CALLERS:
            message = f"as.name: {relay} has sent requests of {MAX_CALLERS} others; restart the daemon"
            return RequestError("busy", message)
        callers.add(name)
        self._counters["requests_relayed"] += 1
        return None
