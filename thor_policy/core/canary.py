"""Canaries: a candidate decides for a share of the callers, until it is promoted, stopped or rolled back.

Owns who belongs to that share, and the terms on which a canary ends by itself.
Invariant: whose question the candidate decides follows from the salt of the canary, its share and who asks,
and from nothing else; a larger share keeps everybody whom a smaller one had. Pure; any thread.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from thor_policy.core.decisions import Adapter, PackInfo
from thor_policy.core.requests import Caller, Member

#: Bytes of a salt.
SALT_BYTES = 16
#: How a canary ended; `failed`: its candidate could not be loaded again after a start of the daemon.
Cause: TypeAlias = Literal["promoted", "stopped", "rolled_back", "failed"]
#: What can end a canary by itself.
Condition: TypeAlias = Literal["looser", "loosened", "success", "fallback", "latency"]

_Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class Terms(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a canary is rolled back: each figure has an interval, and all of it must be beyond its limit.

    `least` is the fewest decisions, or results in each arm, that are judged. `looser` is the share of
    decisions in which the candidate's rules ask for less than the active pack's. `loosened` is the share of
    looser answers among those that differ from what the active pack's model says. `success_drop` is how much
    lower its success rate may be than that of the control, and `fallback_rise` how much higher its share of
    decisions without an answer. `latency_ratio` is how many times as long its decisions may take; 0: latency
    ends nothing.
    """

    least: Annotated[int, Meta(ge=10, le=1_000_000)] = 50
    looser: _Share = 0.0
    loosened: _Share = 0.5
    success_drop: _Share = 0.0
    fallback_rise: _Share = 0.0
    latency_ratio: Annotated[float, Meta(ge=0, le=1_000)] = 2.0


class Canary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A canary as it was started.

    `path` is the directory of the candidate pack; `model_place` and `adapter_place` are what its model and
    adapter were called, if they are not those of the active pack. `weights` and `against_weights` are the
    digests of the weights that the candidate and the active pack are judged by (`ModelInfo.identity`).
    `salt` is in hexadecimal digits.
    """

    id: str
    salt: str
    share: Annotated[float, Meta(gt=0, le=1)]
    pack: PackInfo
    path: str
    weights: str
    against: PackInfo
    against_weights: str
    adapter: Adapter | None = None
    adapter_place: str | None = None
    model: str | None = None
    model_place: str | None = None
    terms: Terms = Terms()

    def member(self, caller: Caller) -> Member:
        """The arm of a caller. One that nobody vouches for is never on trial."""
        asker = asker_of(caller)
        on_trial = asker is not None and position(self.salt, asker) < self.share
        return Member(id=self.id, arm="canary" if on_trial else "control")


class Breach(Struct, frozen=True, kw_only=True):
    """The figures for which a canary is rolled back: all of `low` to `high` is beyond `threshold`.

    `value` is a share (`looser`, `loosened`), a difference of shares between canary and control (`success`,
    `fallback`), or how many times as long decisions took (`latency`). `level` is the confidence of the
    interval, `sample` and `control_sample` what it rests on.
    """

    condition: Condition
    value: float
    low: float
    high: float
    level: float
    sample: int
    control_sample: int
    threshold: float


def asker_of(caller: Caller) -> str | None:
    """Whose question it is: whom a relay asks for, otherwise the caller itself.

    Several relays may send what one person asks, and one relay what many ask: the arm is that of the person.
    """
    return caller.on_behalf_of or caller.sender


def position(salt: str, asker: str) -> float:
    """Where an asker stands between 0 and 1, by a keyed hash."""
    digest = hashlib.blake2b(asker.encode(), digest_size=6, key=bytes.fromhex(salt)).digest()
    return int.from_bytes(digest) / 2**48
