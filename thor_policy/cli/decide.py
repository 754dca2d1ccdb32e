"""`decide`: a person records a decision of their own."""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Iterable
from typing import get_args

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, read_question
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import POLICY_APPLICATION, ConfidenceLevel
from thor_policy.core.escape import visible
from thor_policy.core.requests import RISKS, Json, Risk, Urgency
from thor_policy.core.traces import cure_of

#: `NAME`, `NAME:ROLE`, `NAME@CHANNEL` or `NAME:ROLE@CHANNEL`.
_CONSENT = re.compile(r"([^:@]+)(?::([^@]+))?(?:@(.+))?")


@click.command()
@configured("state_dir", "endpoint", "key", "pack")
@click.argument("entity", required=False, help="What the decision is about: quote:Q-7, invoice:4711.")
@click.option("--outcome", help="What you decided: approve, reject, 12 % for two years.")
@click.option("--because", help="Why.")
@click.option(
    "--consent",
    "consents",
    multiple=True,
    metavar="NAME[:ROLE][@CHANNEL]",
    help="Who consented outside this system, as which role, by which channel; may be repeated.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="SYSTEM=VALUE",
    help="Data that you consulted, and the system it is from; may be repeated.",
)
@click.option(
    "--type",
    "type_",
    default=POLICY_APPLICATION,
    show_default=True,
    help="Type of the decision, as in the pack.",
)
@click.option("--exception", is_flag=True, help="It is an exception from the policy.")
@click.option("--judgment-call", is_flag=True, help="It is a judgment call.")
@click.option(
    "--urgency",
    type=click.Choice(get_args(Urgency)),
    default="normal",
    show_default=True,
    help="How soon it was needed.",
)
@click.option("--confidence-level", type=click.Choice(get_args(ConfidenceLevel)), help="How sure you are.")
@click.option("--risk", type=click.Choice(RISKS), help="The risk that you see.")
@click.option("--made-at", metavar="TIME", help="When you decided (RFC 3339), if it was not now.")
@click.option("--context", metavar="JSON|FILE|-", help="What else belongs to the decision, as a JSON object.")
@as_json
def decide(
    config: Config,
    entity: str | None,
    outcome: str | None,
    because: str | None,
    consents: tuple[str, ...],
    data: tuple[str, ...],
    type_: str,
    exception: bool,
    judgment_call: bool,
    urgency: Urgency,
    confidence_level: ConfidenceLevel | None,
    risk: Risk | None,
    made_at: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """Record a decision that you made, under the pack that governs it.

    Who you are comes from the kernel, the pack from the daemon, and data about the entity from the sources
    of the pack. In a terminal the command asks for the rest: outcome, reason, consents.
    """
    from thor_policy.daemon.person_decision import known_of, record_decision

    known = known_of(config, entity)
    pack = known.pack
    if known.types is not None and type_ not in known.types:
        raise click.UsageError(f"--type {type_!r}: {pack.name} has the types {', '.join(known.types)}")
    asks = sys.stdin.isatty() and not as_json
    if asks:
        policy = f"{pack.name} {pack.version} ({pack.sha256[:12]})"
        render.pairs({"you": _you(), "about": entity, "policy": policy} | _data_shown(known.consulted))
    for name, problem in known.failures.items():
        click.echo(f"the source {name} gives no answer: {visible(problem)}", err=True)
    choices = "" if known.outcomes is None else f" ({', '.join(known.outcomes)}, or your own words)"
    outcome = outcome or _answer(asks, f"outcome{choices}", "--outcome")
    because = because or _answer(asks, "because", "--because")
    if asks and not consents:
        consents = _ask_consents()
    report = records.DecisionReport(
        made_by="human",
        outcome=outcome,
        reasoning=because,
        entity=entity,
        type=type_,
        is_exception=exception,
        judgment_call=judgment_call or None,
        urgency=urgency,
        confidence_level=confidence_level,
        risk=risk,
        timestamp_decision=made_at,
        context={} if context is None else _object(read_question(context)),
    )
    recorded = record_decision(
        config,
        report,
        consents=[_consent(text) for text in consents],
        consulted=[*known.consulted, *(_data(text) for text in data)],
    )
    if as_json:
        named = {"name": pack.name, "version": pack.version, "sha256": pack.sha256}
        render.as_json(
            {
                "id": recorded.id,
                "pack": named,
                "approvals": recorded.approvals,
                "consultations": recorded.consultations,
                "lacks": recorded.lacks,
            }
        )
        return
    render.line(f"recorded as {recorded.id}")
    for name in recorded.lacks or ():
        render.line(f"  in quarantine: lacks {name}; a record of the kind {cure_of(name)} adds it")


def _data_shown(consulted: Iterable[records.Consultation]) -> dict[str, Json]:
    """What sources say, by system; null where one does not know the entity."""
    return {data.system: data.value for data in consulted}


def _you() -> str:
    uid = os.getuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _answer(asks: bool, what: str, option: str) -> str:
    if not asks:
        raise click.UsageError(f"{option} is needed where no terminal can be asked")
    return str(click.prompt(what)).strip()


def _ask_consents() -> tuple[str, ...]:
    texts: list[str] = []
    while text := str(
        click.prompt("consent of NAME[:ROLE][@CHANNEL], empty for no more", default="", show_default=False)
    ).strip():
        texts.append(text)
    return tuple(texts)


def _consent(text: str) -> records.Approval:
    match = _CONSENT.fullmatch(text.strip())
    if match is None:
        raise click.UsageError(f"--consent {text!r}: give NAME, NAME:ROLE, NAME@CHANNEL or NAME:ROLE@CHANNEL")
    name, role, channel = (part and part.strip() for part in match.groups())
    return records.Approval(decision_id="-", approver=name, role=role or None, channel=channel or None)


def _data(text: str) -> records.Consultation:
    system, equals, value = text.partition("=")
    if not equals or not system.strip():
        raise click.UsageError(f"--data {text!r}: give SYSTEM=VALUE, such as crm=gold")
    return records.Consultation(decision_id="-", system=system.strip(), value=value)


def _object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise click.UsageError("--context: must be a JSON object")
    return value
