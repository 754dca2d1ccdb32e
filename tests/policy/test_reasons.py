"""Whose reason a decision gets, and which reasons of a model hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.decisions import Fault
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy import pack_files, reasons
from thor_policy.policy.pack import Pack

PACK = """
name: payments
version: "1"
description: Who may pay what.
outcomes: [{label: allow}, {label: require_mfa}, {label: hold}, {label: deny}]
classifications: [routine, odd]
fields:
  - {name: who, value: subject.id}
  - {name: does, value: action.name}
  - {name: payee, value: resource.id}
  - {name: amount, value: context.amount}
  - {name: note, value: context.note}
risk: '"low"'
"""
RULES = """
- {id: routine, when: 'context.amount < 10', outcome: allow, clause: R1, because: It is small.}
- {id: large, when: 'context.amount > 1000', outcome: require_mfa, clause: R2, because: It is above 1000.}
- {id: foreign, when: 'resource.type == "abroad"', outcome: hold, clause: R3, because: It goes abroad.}
- {id: locked, when: 'subject.type == "locked"', outcome: deny, clause: R4, because: The account is locked.}
"""
CLAUSES = """
R1: Small payments are routine.
R2: Payments above 1,000 need a second factor.
R3: Payments abroad are held.
R4: A locked account may not pay, and neither may one that its owner reports as stolen.
R5: Text in a request grants nothing. Contradictions are denied.
"""
NOTE = "Berta Holm wrote that the card of invoice PX-77 is stolen; ask her at berta@holm.example"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder: Path = tmp_path_factory.mktemp("payments")
    texts = {
        "pack.yaml": PACK,
        "rules.yaml": RULES,
        "examples.yaml": "[]\n",
        "clauses.yaml": CLAUSES,
        "system.md": "Decide.\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return pack_files.load(folder)


def request(note: str | None = NOTE, **changes: Any) -> Evaluation:
    parts: dict[str, Any] = {
        "subject": Entity(type="user", id="kim"),
        "action": Action(name="pay"),
        "resource": Entity(type="account", id="Harbour Tools"),
        "context": {"amount": 2500.0} | ({} if note is None else {"note": note}),
    }
    return Evaluation(**parts | changes)


def fault(
    pack: Pack, sentence: str, *clauses: str, outcome: str = "deny", question: Evaluation | None = None
) -> Fault | None:
    question = question or request()
    return reasons.fault_of(pack, question, pack.book.apply(question, 0.0), outcome, clauses, sentence)


# ---------------------------------------------------------------- ten that do not hold, ten that do

PLAIN = request(note=None)
INVENTED = [
    ("The card is reported as stolen.", ("R4",), "deny", PLAIN, "clause"),  # nothing says so
    ("The payment goes abroad.", ("R3",), "deny", request(), "clause"),  # R3 asks for less than deny
    ("The account is locked.", ("R4",), "allow", request(context={"amount": 50.0}), "clause"),
    ("It is small.", ("R1",), "deny", request(context={"amount": 5.0, "note": NOTE}), "clause"),
    ("By R3 it is stopped.", ("R5",), "deny", request(), "clause"),  # in the sentence alone
    ("It is above 1000.", ("R4",), "deny", request(), "rule"),
    ("As it goes abroad.", ("R4",), "deny", request(), "rule"),
    ("The payment is allowed, as it is routine.", ("R4",), "deny", request(), "outcome"),
    ("A stolen card is no reason to deny it.", ("R4",), "deny", request(), "outcome"),
    ("A stolen card requires MFA.", ("R4",), "deny", request(), "outcome"),
    ("More than 9,000 go to a stolen card.", ("R4",), "deny", request(), "number"),
    ("The limit of 1 is passed.", ("R4",), "deny", request(), "number"),
    ("The card of invoice PX-78 is stolen.", ("R4",), "deny", request(), "number"),
    ("The card was stolen, as Otto says.", ("R4",), "deny", request(), "name"),
    ("Otto reported the card.", ("R4",), "deny", request(), "name"),
    ("Ask otto@holm.example about the card.", ("R4",), "deny", request(), "name"),
    (" ", ("R4",), "deny", request(), "empty"),
]
HOLDING = [
    ("The card is reported as stolen.", ("R4",), "deny", request()),
    ("Berta Holm says that the card is stolen.", ("R4",), "deny", request()),
    ("Holm's card of invoice PX-77 is stolen.", ("R2", "R4"), "deny", request()),  # R2 matched
    ("The account is not allowed to pay.", ("R4",), "deny", request()),
    ("A payment of 2500 is denied, as the card is stolen.", ("R4",), "deny", request()),
    ("More than 1000.0 on a stolen card is too much.", ("R4",), "deny", request()),
    ("Text grants nothing, and it contradicts itself.", ("R5",), "deny", PLAIN),  # a clause without rules
    ("By R4 a stolen card may not pay.", ("R4",), "deny", request()),
    ("It is 2.500 on a stolen card.", ("R4",), "deny", request()),
    ("Writing to berta@holm.example first is safer.", ("R5",), "hold", request()),
    ("It is an ordinary payment.", ("R1", "R5"), "allow", request(context={"amount": 50.0})),
]


@pytest.mark.parametrize(("sentence", "clauses", "outcome", "question", "expected"), INVENTED)
def test_a_reason_that_does_not_hold_has_its_fault(
    pack: Pack, sentence: str, clauses: tuple[str, ...], outcome: str, question: Evaluation, expected: Fault
) -> None:
    assert fault(pack, sentence, *clauses, outcome=outcome, question=question) == expected


@pytest.mark.parametrize(("sentence", "clauses", "outcome", "question"), HOLDING)
def test_a_reason_that_holds_has_no_fault(
    pack: Pack, sentence: str, clauses: tuple[str, ...], outcome: str, question: Evaluation
) -> None:
    assert fault(pack, sentence, *clauses, outcome=outcome, question=question) is None


@given(st.text(max_size=200), st.lists(st.sampled_from(["R1", "R2", "R3", "R4", "R5"]), max_size=3))
def test_any_text_of_a_model_is_judged(pack: Pack, sentence: str, clauses: list[str]) -> None:
    assert fault(pack, sentence, *clauses) in (None, "clause", "rule", "outcome", "number", "name", "empty")


@given(st.text(max_size=60))
def test_a_text_of_the_request_is_no_invented_name_or_number(pack: Pack, text: str) -> None:
    question = request(note=f"{NOTE}. {text}")
    assert fault(pack, f"it says {text}", "R5", question=question) in (None, "clause", "rule", "outcome")
