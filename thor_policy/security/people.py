"""People: whom the kernel's uid or a CURVE key stands for, when approvals are given.

Owns the setting `people`. Invariant: who approves is never read from a request, except from one of a caller
with the role `relay`, which says for whom it sends it; a caller without an entry is nobody. Several callers
of one name are one person. User names are resolved when the settings are read. Main thread.
"""

from __future__ import annotations

import pwd
from collections.abc import Sequence

from msgspec.structs import replace

from thor_policy.config import PERSON
from thor_policy.core.approvals import RECORDER, Person, folded
from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.requests import Caller


class People:
    """The entries `WHO=NAME;ROLE+ROLE;GROUP+GROUP`. Raises ConfigError for an unknown user."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._by_name: dict[str, Person] = {}
        self._name_of: dict[str, str] = {}
        for entry in entries:
            parsed = PERSON.fullmatch(entry)
            assert parsed is not None  # noqa: S101  a Config that exists is valid
            kind, who, name, roles, groups = parsed.groups()
            callers, aliases = _callers(entry, kind, who)
            key = folded(name)
            if not key:
                raise ConfigError(f"people holds {entry!r}, whose name nobody can see; write one")
            known = self._by_name.get(key, Person(name=name))
            self._by_name[key] = replace(
                known,
                roles=_joined(known.roles, roles),
                groups=_joined(known.groups, groups),
                aliases=tuple(dict.fromkeys((*known.aliases, *aliases))),
            )
            for caller in callers:
                if self._name_of.setdefault(caller, key) != key:
                    raise ConfigError(
                        f"people holds {entry!r}, but {caller} is somebody else; a caller is one person"
                    )

    def of(self, caller: Caller) -> Person | None:
        """The person that a caller is; None: nobody. A relayed request is of whom it was sent for."""
        name = self._name_of.get(caller.on_behalf_of or caller.sender or "")
        return None if name is None else self._by_name[name]

    def named(self, name: str) -> Person | None:
        """The person of a name, to whom a consent given elsewhere is put down."""
        return self._by_name.get(folded(name))

    def signers(self, caller: Caller, consent_of: str | None) -> tuple[Person | None, Person | None]:
        """Who gives a verdict, and who records it for somebody else: with `consent_of`, a person's name.

        Raises RequestError where the caller may not record consents, or nobody has that name.
        """
        person = self.of(caller)
        if consent_of is None or person is None:
            return person, None
        if RECORDER not in person.roles:
            raise RequestError(
                "unauthorized",
                f"record.consent: needs a person with the role {RECORDER}; {person.name} has not",
                reason_code="approval_insufficient",
            )
        approver = self.named(consent_of)
        if approver is None:
            raise RequestError(
                "not_found",
                "record.consent.approver: the setting people names nobody like that",
                reason_code="approval_insufficient",
            )
        return approver, person


def _callers(entry: str, kind: str, who: str) -> tuple[list[str], list[str]]:
    """The callers of an entry, as `Caller.who`, and what else they are called."""
    if kind in ("key", "token", "cert"):
        return [f"{kind}:{who}"], [f"{kind}:{who}", who]
    if kind == "uid":
        uid = int(who)
        try:
            return [f"uid:{uid}"], [f"uid:{uid}", str(uid), pwd.getpwuid(uid).pw_name]
        except KeyError:
            return [f"uid:{uid}"], [f"uid:{uid}", str(uid)]
    try:
        uid = pwd.getpwnam(who).pw_uid
    except KeyError:
        raise ConfigError(
            f"people holds {entry!r}, but this machine has no user {who}; create it, or remove the entry"
        ) from None
    return [f"uid:{uid}"], [f"uid:{uid}", str(uid), who]


def _joined(known: tuple[str, ...], names: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *(name for name in (names or "").split("+") if name))))
