"""Roles: what a caller may do.

Owns the role that each operation needs, the roles that the settings give to each caller, the packs that it
may name, and whose statements count. Invariant: an operation that is not in the table needs `control`, a
caller that no entry matches has no role and may name no pack, and what no role lets count is a claim. User
and group names are resolved only when the settings are read, because a look-up may ask another machine; after
that nothing here blocks. Main thread.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Collection, Sequence
from typing import get_args

from thor_policy.config import ANY_PACK, OWN
from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.requests import Caller, Claimed, Role

EVERY_ROLE: frozenset[Role] = frozenset(get_args(Role))
#: The role that each operation of the protocol needs; None: any of them.
ROLE_OF: dict[str, Role | None] = {
    "status": None,
    "metrics": None,
    "evaluate": "ask",
    "search": "ask",
    "decision_report": "record",
    "consultation": "record",
    "outcome": "record",
    "supplement": "record",
    "node": "record",
    "edge": "record",
    "review": "review",
    "assignment": "review",
    "trace_state": "review",
    "approval": "approve",
    "request_approval": "ask",
    "approvals": None,
    "similar": "review",
    "approve": "approve",
    "deny": "approve",
    "cancel": "ask",
    "push": "push",
    "maintenance": "control",
    "control": "control",
}
#: Roles that suffice for one task of an operation.
ROLE_OF_TASK: dict[tuple[str, str], Role] = {("maintenance", "shipped"): "ship"}
#: What counts in figures as true: what a test expects, how a decision turned out, what completes its trace,
#: what others decided.
COUNTED = frozenset({"annotations", "outcome", "supplement", "decision_report"})
#: Roles whose holders may name any resident pack.
ANY_PACK_ROLES: frozenset[Role] = frozenset({"review", "control"})


class _Grants:
    """What the entries `WHO=THIS+THAT` of a setting give to each caller.

    The members of a group are those in its own list now. A member that joins later needs a restart.
    Raises ConfigError for an unknown user or group.
    """

    def __init__(self, setting: str, entries: Sequence[str]) -> None:
        self._local: frozenset[str] = frozenset()
        self._of_key: dict[str, frozenset[str]] = {}
        self._of_uid: dict[int, frozenset[str]] = {}
        self._of_gid: dict[int, frozenset[str]] = {}
        for entry in entries:
            who, _, names = entry.partition("=")
            given = frozenset(names.split("+"))
            kind, _, name = who.partition(":")
            try:
                if kind == "local":
                    self._local |= given
                elif kind == "key":
                    self._of_key[name] = self._of_key.get(name, frozenset()) | given
                elif kind in ("uid", "user"):
                    self._add_user(int(name) if kind == "uid" else pwd.getpwnam(name).pw_uid, given)
                elif kind == "gid":
                    self._of_gid[int(name)] = self._of_gid.get(int(name), frozenset()) | given
                else:
                    self._add_group(name, given)
            except KeyError:
                raise ConfigError(
                    f"{setting} holds {entry!r}, but this machine has no {kind} {name}; create the {kind}, "
                    "or remove the entry"
                ) from None

    def of(self, caller: Caller) -> frozenset[str]:
        """What a caller has, by its key, or by the uid and gid that the kernel reports."""
        if caller.key is not None:
            return self._of_key.get(caller.key, frozenset())
        if caller.uid is None or caller.gid is None:
            return frozenset()
        return (
            self._local
            | self._of_uid.get(caller.uid, frozenset())
            | self._of_gid.get(caller.gid, frozenset())
        )

    def _add_user(self, uid: int, given: frozenset[str]) -> None:
        self._of_uid[uid] = self._of_uid.get(uid, frozenset()) | given

    def _add_group(self, name: str, given: frozenset[str]) -> None:
        group = grp.getgrnam(name)
        self._of_gid[group.gr_gid] = self._of_gid.get(group.gr_gid, frozenset()) | given
        for member in group.gr_mem:
            try:
                self._add_user(pwd.getpwnam(member).pw_uid, given)
            except KeyError:  # a group may list deleted users
                continue


class Roles:
    """The setting `roles`. Raises ConfigError for an unknown user or group."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._grants = _Grants("roles", entries)

    def of(self, caller: Caller) -> frozenset[Role]:
        """The roles of a caller on the ipc socket, by the uid and gid that the kernel reports."""
        if caller.uid is None or caller.gid is None:
            return frozenset()
        if caller.uid in (0, os.geteuid()):
            return EVERY_ROLE
        return EVERY_ROLE & self._grants.of(caller)


class PacksFor:
    """The setting `packs_for`: the packs that callers may name. Raises ConfigError as `Roles` does."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._grants = _Grants("packs_for", entries)

    def of(self, caller: Caller, roles: Collection[Role]) -> frozenset[str] | None:
        """The packs besides the active one that a caller may name, by name; None: any resident pack."""
        names = self._grants.of(caller)
        return None if ANY_PACK in names or not ANY_PACK_ROLES.isdisjoint(roles) else names


def authorise(op: str, caller: Caller, roles: Collection[Role], *, task: str | None = None) -> None:
    """Raise RequestError `unauthorized`, naming the role, if `roles` lack the role that `op` needs.

    Before its `task` is known, an operation is let through for each role that suffices for one of its tasks;
    whoever decoded the task must call this again.
    """
    needed = ROLE_OF.get(op, "control")
    if needed in roles or (needed is None and roles):
        return
    if any(of == op and task in (None, name) and role in roles for (of, name), role in ROLE_OF_TASK.items()):
        return
    holder = f"the key {caller.key!r}" if caller.key is not None else f"uid {caller.uid}"
    if caller.on_behalf_of is not None:
        raise RequestError(
            "unauthorized",
            f"op: {op} needs the role {needed or 'of any kind'}, which {caller.on_behalf_of} and {holder}, "
            "which relays its request, do not both have; see `thorpolicy tokens new` and the setting `roles`",
        )
    role = f"the role {needed}" if needed is not None else f"one of the roles {', '.join(get_args(Role))}"
    cure = "see `thorpolicy keys new`" if caller.key is not None else "see the setting `roles`"
    raise RequestError("unauthorized", f"op: {op} needs {role}, which {holder} does not have; {cure}")


def relayed(roles: Collection[Role], wanted: Collection[Role]) -> frozenset[Role]:
    """The roles of a request that a caller with `roles` sends for somebody with the roles `wanted`.

    Raises RequestError `unauthorized` where the caller may not relay.
    """
    if "relay" not in roles:
        raise RequestError(
            "unauthorized",
            "as: needs the role relay, which this caller does not have; see the setting `roles`",
        )
    return (frozenset(roles) & frozenset(wanted)) - {"relay"}


def claimed(statement: str, roles: Collection[Role], count_from: Collection[str]) -> Claimed:
    """Whether a statement of a caller with these roles is only a claim, by the setting `count_from`.

    A `statement` is `annotations` or the op of a record; one that is not in `COUNTED` is never a claim.
    """
    if statement not in COUNTED or not {*roles}.isdisjoint(count_from):
        return "no"
    if statement == "annotations" and "test" in roles:
        return "no"
    return "unless_own" if statement in ("outcome", "supplement") and OWN in count_from else "yes"
