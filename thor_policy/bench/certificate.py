"""The certificate of a determinism run: what was run, on what, with which figures, signed.

Owns the form of a certificate and its check. Invariant: the members are those of the report of the run, the
pack and the model file that it measured; a run with differing answers gets a certificate that says so. Main
thread.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from thor_policy import __version__
from thor_policy.bench.figures import Report
from thor_policy.core import strict_json
from thor_policy.core.decisions import ModelInfo, PackInfo
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.security import signed_json
from thor_policy.security.signatures import Digest, Key, KeyId, PublicKeys, Signature

#: A new form of certificate gets a new number.
FORM = "thor-policy determinism 1"
#: Most bytes of a file that is read.
MOST_BYTES = 1 << 20


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model that answered: its file, the build and the device that ran it."""

    name: str
    sha256: Digest
    quantisation: str
    build: str
    device: str
    adapter: str | None


class Certificate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signed certificate. `facts` are the figures of the run; `holds` if no answer differed in any bit."""

    form: Literal["thor-policy determinism 1"]
    made_at: str
    version: str
    machine: str
    pack: PackInfo
    model: Measured
    questions: Annotated[int, Meta(ge=1)]
    facts: dict[str, float]
    holds: bool
    key: KeyId
    signature: Signature


def make(report: Report, pack: PackInfo, model: ModelInfo, *, key: Key, made_at: str) -> dict[str, Json]:
    """The signed certificate of a run. `made_at` is RFC 3339."""
    measured = Measured(
        name=model.name,
        sha256=model.sha256,
        quantisation=model.quantisation,
        build=model.build,
        device=model.device,
        adapter=model.adapter.sha256 if model.adapter else None,
    )
    members = {
        "made_at": made_at,
        "version": __version__,
        "machine": report.machine,
        "pack": pack,
        "model": measured,
        "questions": report.questions,
        "facts": report.facts,
        "holds": _holds(report.facts),
    }
    return signed_json.sign(FORM, msgspec.json.decode(msgspec.json.encode(members)), key)


def check(content: bytes, trusted: PublicKeys) -> tuple[Certificate, str | None]:
    """A certificate and its problem; None: a trusted key signed exactly it. Raises JournalError."""
    try:
        document: Any = strict_json.decode(content)
        certificate = msgspec.convert(document, Certificate)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise JournalError(f"this is no certificate of determinism: {error}") from error
    problem = signed_json.problem(FORM, document, trusted)
    if problem is None and certificate.holds != _holds(certificate.facts):
        problem = "its figures contradict what it certifies"
    return certificate, problem


def is_certificate(content: bytes) -> bool:
    """True if the text says that it is a certificate; whether it is one says `check`."""
    return FORM.encode() in content[:4_096]


def _holds(facts: dict[str, float]) -> bool:
    names = ("labels_differing", "logits_differing", "probabilities_differing")
    return all(facts.get(name) == 0 for name in names)
