"""Signed JSON documents: Ed25519 over canonical JSON (RFC 8785), which any language can make again.

Owns canonical JSON, and the form of a signed document: an object with the members `form`, `key` and
`signature`. Invariant: the signature is over the canonical bytes of every other member that the file has, so
an added, removed or changed member is refused. Numbers may be written in another way, and members in another
order. Pure; any thread.

`form` names what the document is and its version, such as `thor-policy receipt 1`: a signature over one form
is never valid for another. Signed lines (security/signatures.py) begin with no brace, so none is a document.
"""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from thor_policy.core import strict_json
from thor_policy.core.requests import Json
from thor_policy.security import signatures
from thor_policy.security.signatures import Key, PublicKeys

#: The member that the signature does not cover: itself.
SIGNATURE = "signature"


def canonical(value: Json) -> bytes:
    """The value as canonical JSON. Raises JsonError for what RFC 8785 cannot write.

    That is an integer beyond 2^53 - 1, a number that is not finite, and text with a lone surrogate.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise strict_json.JsonError(f"cannot be written as canonical JSON: {error}") from error


def digest(value: Json) -> str:
    """The sha256 of the value's canonical JSON, in hex. Raises JsonError."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sign(form: str, members: dict[str, Json], key: Key) -> dict[str, Json]:
    """The signed document with these members. Raises JsonError."""
    document = {"form": form, **members, "key": key.key}
    return document | {SIGNATURE: key.signature(canonical(document))}


def problem(form: str, document: dict[str, Any], trusted: PublicKeys) -> str | None:
    """None if a trusted key signed exactly this document, of this form; otherwise the problem."""
    signature, key = document.get(SIGNATURE), document.get("key")
    if document.get("form") != form:
        return f"its form is not {form!r}"
    if not isinstance(signature, str) or not isinstance(key, str) or not _is_signature(signature):
        return "it has no signature of 128 lower-case hex digits, or no key"
    try:
        content = canonical({name: value for name, value in document.items() if name != SIGNATURE})
    except strict_json.JsonError as error:
        return f"it {error}"
    return signatures.problem(key, signature, content, trusted)


def _is_signature(text: str) -> bool:
    return len(text) == 128 and not set(text) - set("0123456789abcdef")
