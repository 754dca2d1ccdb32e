"""Strict JSON with the standard library: what two readers could read in two ways is refused.

Owns the decoding of events and of replies. Invariant: an object that is returned had each member only one
time, and holds finite numbers. Pure; any thread.
"""

from __future__ import annotations

import json
from typing import Any

from thor_policy.hook.calls import Fault, Object, printable


def decode(data: bytes, what: str) -> Object:
    """The object in `data`. Raises Fault, with `what` as its beginning."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_number, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise Fault(f"{what}: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise Fault(f"{what}: it is nested too deeply") from error
    except ValueError as error:
        raise Fault(f"{what}: it is not strict JSON: {printable(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise Fault(f"{what}: it is not an object")
    return value


def encode(value: Any) -> bytes:
    """JSON of ASCII characters, without blanks."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def key_of(value: Any) -> bytes:
    """JSON that is equal for equal values, whatever the order of members."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode("ascii")


def _members(pairs: list[tuple[str, Any]]) -> Object:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the member {double[:60]!r} is there twice")
    return members


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is out of range")
    return value
