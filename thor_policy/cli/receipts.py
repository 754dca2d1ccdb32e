"""`receipt` and `verify-receipt`: a decision as a signed document, and its check by a third party.

Owns the two commands. Invariant: `verify-receipt` reads the receipt, public keys, checkpoints and the journal
that it is given, and nothing else of this machine; it asks no daemon. Main thread.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import click

from thor_policy.cli import render
from thor_policy.cli.new_file import new_file
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.core.escape import in_json
from thor_policy.core.requests import Json
from thor_policy.journal import receipts
from thor_policy.journal.checkpoints import Checkpoint, key_path, read_file, trusted_keys
from thor_policy.journal.reader import Reader
from thor_policy.journal.receipts import Checked, Receipt
from thor_policy.journal.verification.verify import verify
from thor_policy.security import files
from thor_policy.security.signatures import Key, PublicKeys

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@configured("state_dir", "checkpoint_dir", "checkpoint_key")
@click.argument(
    "decision_id", help="The id, as `log` or a reply shows it, or at least its last 8 characters."
)
@click.option(
    "--links",
    type=click.IntRange(0, receipts.MOST_LINKS),
    default=receipts.LINKS,
    show_default=True,
    help="Most events between decision and checkpoint that the receipt has; 0: none.",
)
@click.option(
    "--with-question",
    "disclose",
    is_flag=True,
    help="Also the question, facts and texts, so that its digest can be checked.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write (mode 0600); it must not exist. Default: standard output.",
)
def receipt(config: Config, decision_id: str, links: int, disclose: bool, output: Path | None) -> None:
    """Make a signed receipt of one decision, which a third party can check without this device.

    The key is that of the checkpoints. The receipt is JSON.

    \b
    It has the events up to the next checkpoint: outcomes, callers and names of
    actions of other decisions, no texts. Run `log checkpoint` before: then they
    are few. A later `log erase` does not change a receipt.
    """
    path = key_path(config.checkpoint_key, os.environ)
    try:
        key = Key.load_existing(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the checkpoint key {path} {files.reason(error)}") from error
    with Reader(config.journal_path) as reader:
        made = receipts.make(
            reader,
            reader.resolve(decision_id),
            key=key,
            checkpoint_dir=config.checkpoint_dir,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            links=links,
            disclose=disclose,
        )
    with new_file(output) as to:
        to.write(in_json(json.dumps(made, ensure_ascii=False, indent=1)) + "\n")
    if why := made["chain"]["no_links"]:
        render.line(f"the receipt alone does not show that the chain has the decision: {why}", stderr=True)


@click.command()
@configured("pack", "model", "models_dir", "adapter", "adapter_scale")
@click.argument("file", type=_FILE, help="The receipt.")
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    required=True,
    type=_FILE,
    help="Public key of the device (PEM), from a place that you trust; may be repeated.",
)
@click.option(
    "--checkpoint",
    "held",
    multiple=True,
    type=_FILE,
    help="A checkpoint that was kept apart from the device; may be repeated.",
)
@click.option(
    "--journal",
    type=_FILE,
    help="Also check the whole journal (policy_decisions.db), and the decision in it.",
)
@click.option("--replay", is_flag=True, help="Also decide again, by pack and model; needs --journal.")
@as_json
@click.pass_context
def verify_receipt(
    ctx: click.Context,
    config: Config,
    file: Path,
    keys: tuple[Path, ...],
    held: tuple[Path, ...],
    journal: Path | None,
    replay: bool,
    as_json: bool,
) -> None:
    """Check a receipt offline: signature, place in the chain, checkpoint.

    \b
    Exit status: 0 the decision is in the signed chain, as the receipt says;
    1 it is not, or that is not shown; 2 the file is no receipt, or the
    decision cannot be replayed here.
    """
    if replay and journal is None:
        raise click.UsageError("--replay needs --journal: the receipt alone has no request to decide again")
    trusted = trusted_keys(keys)
    known = [read_file(path) for path in held]
    try:
        content = files.read(file, max_bytes=receipts.MOST_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} {files.reason(error)}") from error
    checked = receipts.check(content, trusted, known)
    shown = _facts(checked)
    status = int(not checked.in_chain)
    if journal is not None and checked.problem is None:
        in_journal, problem = _check_journal(journal, checked.receipt, trusted, known)
        shown |= in_journal
        status = int(problem is not None)
        shown["problem"] = problem
    if replay and journal is not None and status == 0:
        verdict, replayed = _replay(config, journal, checked.receipt)
        shown |= replayed
        status = {"identical": 0, "refused": 2}.get(verdict, 1)
    not_shown = checked.in_chain is None and journal is None
    shown["receipt"] = "wrong" if shown["problem"] else "not shown" if not_shown else "ok"
    if as_json:
        render.as_json(shown)
    else:
        render.pairs({name.replace("_", " "): value for name, value in shown.items() if value is not None})
    ctx.exit(status)


def _facts(checked: Checked) -> dict[str, Json]:
    """What a receipt says and what its check gave; a name has at most 12 characters, so a digest fits."""
    receipt, decision = checked.receipt, checked.receipt.decision
    model, floor, pack = decision.get("model") or {}, decision.get("floor") or {}, decision.get("pack") or {}
    adapter = model.get("adapter") or {}
    checkpoint, question = receipt.checkpoint, receipt.question
    digest = question.sha256 or question.lack
    if question.lack == "erased":
        digest = f"erased by event {question.erased_by}"
    return {
        "decision": receipt.decision_id,
        "decided_at": receipt.decided_at,
        "outcome": decision.get("outcome"),
        "decided_by": decision.get("tier"),
        "floor": floor.get("outcome"),
        "rules": ", ".join(floor.get("rules", ())) or None,
        "pack": f"{pack.get('name')} {pack.get('version')}",
        "pack_sha256": pack.get("sha256"),
        "model": model.get("name"),
        "model_sha256": model.get("sha256"),
        "adapter": adapter.get("name"),
        "adapter_file": adapter.get("sha256"),
        "probability": decision.get("probabilities"),
        "approval": (receipt.approval or {}).get("task"),
        "question": digest,
        "shown": "yes, and its digest is on the chain" if checked.question else "no",
        "event": f"{receipt.chain.seq} of the chain {receipt.chain.name[:16]}",
        "checkpoint": f"event {checkpoint.seq} of {checkpoint.at}" if checkpoint else "none",
        "key": receipt.key,
        "in_chain": "yes" if checked.in_chain else "no" if checked.problem else "not shown",
        "not_shown": checked.not_shown,
        "problem": checked.problem,
    }


def _check_journal(
    path: Path, receipt: Receipt, trusted: PublicKeys, held: list[Checkpoint]
) -> tuple[dict[str, Json], str | None]:
    """What the journal says of the decision, and the problem."""
    with Reader(path) as reader:
        problem, erased_by = receipts.stored_problem(reader, receipt)
    shown: dict[str, Json] = {"in_journal": "no" if problem else "yes"}
    if erased_by is not None:
        shown["erased_since"] = f"by event {erased_by}: question and texts are gone, the decision is not"
    if problem is not None:
        return shown, problem
    signed = [*held, *([] if receipt.checkpoint is None else [receipt.checkpoint])]
    anchors = [(checkpoint.seq, checkpoint.head) for checkpoint in signed]
    with render.counting("events checked") as count:
        verdict = verify(
            path,
            public_keys=trusted,
            anchors=[(receipt.chain.seq, receipt.chain.hash), *anchors],
            progress=count,
        )
    shown["journal"] = f"{verdict.events:,} events, {'ok' if verdict.ok else 'wrong'}"
    if verdict.ok and not signed and verdict.checkpoint_seq < receipt.chain.seq:
        return shown, "no signed checkpoint covers the decision: run `thorpolicy log checkpoint`"
    at = "" if verdict.bad_seq is None else f"event {verdict.bad_seq}: "
    return shown, None if verdict.ok else f"the journal is wrong: {at}{verdict.problem or verdict.incomplete}"


def _replay(config: Config, journal: Path, receipt: Receipt) -> tuple[str, dict[str, Json]]:
    """The verdict of deciding again, and its lines."""
    from thor_policy.learning.replay import replay_recorded

    (replayed,) = replay_recorded(config, decision_ids=[receipt.decision_id], journal=journal).decisions
    return replayed.verdict, {
        "replay": replayed.verdict,
        "replay_step": replayed.step,
        "replay_note": replayed.reason,
    }
