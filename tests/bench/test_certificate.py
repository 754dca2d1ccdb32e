"""The certificate of a determinism run: every member is signed, and its verdict follows from its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.build import MODEL, PACK
from thor_policy.bench import certificate
from thor_policy.bench.figures import Report
from thor_policy.cli.main import cli
from thor_policy.core.errors import JournalError
from thor_policy.security import signed_json
from thor_policy.security.signatures import Key

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = Key(PRIVATE)
TRUSTED = {KEY.key: PRIVATE.public_key()}
SAME = {"requests": 2.0, "labels_differing": 0.0, "logits_differing": 0.0, "probabilities_differing": 0.0}


def made(**facts: float) -> dict[str, Any]:
    report = Report(
        name="determinism", machine="a machine", versions={}, questions=4, rounds=1, facts=SAME | facts
    )
    return certificate.make(report, PACK, MODEL, key=KEY, made_at="2026-07-01T12:00:00+00:00")


def check(document: dict[str, Any]) -> tuple[certificate.Certificate, str | None]:
    return certificate.check(msgspec.json.encode(document), TRUSTED)


def test_a_certificate_names_pack_model_build_and_figures() -> None:
    stated, problem = check(made())
    assert (problem, stated.holds, stated.pack, stated.facts) == (None, True, PACK, SAME)
    assert (stated.model.sha256, stated.model.build) == (MODEL.sha256, MODEL.build)


def test_one_differing_bit_is_certified_as_such() -> None:
    stated, problem = check(made(logits_differing=1.0))
    assert (problem, stated.holds) == (None, False)


@pytest.mark.parametrize("name", sorted(made()))
def test_a_changed_or_missing_member_is_refused(name: str) -> None:
    for change in ({name: "x"}, {name: None}):
        document = made() | change
        try:
            assert check(document)[1] is not None
        except JournalError:
            continue
    with pytest.raises(JournalError):
        check({other: value for other, value in made().items() if other != name})


def test_changed_figures_are_refused_also_if_they_are_signed_again() -> None:
    document = made()
    document["facts"]["labels_differing"] = 3.0
    assert "signature" in str(check(document)[1])
    members = {key: value for key, value in document.items() if key not in ("form", "key", "signature")}
    assert "contradict" in str(check(signed_json.sign(certificate.FORM, members, KEY))[1])


def test_verify_receipt_checks_a_certificate(tmp_path: Path) -> None:
    KEY.put_public(tmp_path / "key.pub")
    path = tmp_path / "certificate.json"
    arguments = ["verify-receipt", str(path), "--public-key", str(tmp_path / "key.pub")]
    path.write_text(json.dumps(made()))
    shown = CliRunner().invoke(cli, arguments, env={"COLUMNS": "80"})
    assert (shown.exit_code, "no bit of an answer differed" in shown.output) == (0, True)
    path.write_text(json.dumps(made() | {"machine": "another"}))
    assert CliRunner().invoke(cli, arguments).exit_code == 1
