"""The commands of `log` that check and maintain the journal: from verify and erase to rebuild."""

from __future__ import annotations

from pathlib import Path

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.journal.checkpoints import trusted_keys
from thor_policy.journal.maintenance.rebuild import rebuild as rebuild_aside
from thor_policy.journal.maintenance.rebuild import rebuild_in_place
from thor_policy.journal.reader import Reader, instant
from thor_policy.journal.verification.verify import verify as verify_journal
from thor_policy.journal.writer import Journal

#: An option of the commands that take something away.
_unshipped = click.option(
    "--unshipped", is_flag=True, help="Also what a sink of `thorpolicy ship` has not acknowledged yet."
)


@click.command()
@configured("state_dir", "checkpoint_dir")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="SEQ:HASH",
    help="Number and hash of an event, as noted from an earlier run; may be repeated.",
)
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust only this key (PEM), not the keys in the checkpoint directory; may be repeated.",
)
@as_json
@click.pass_context
def verify(
    ctx: click.Context, config: Config, anchors: tuple[str, ...], keys: tuple[Path, ...], as_json: bool
) -> None:
    """Check the hash chain, every table, and the signed checkpoints.

    Exit status 1 if it finds a problem.
    """
    with render.counting("events checked") as count:
        verdict = verify_journal(
            config.journal_path,
            checkpoint_dir=config.checkpoint_dir,
            public_keys=trusted_keys(keys) if keys else None,
            anchors=[_anchor(anchor) for anchor in anchors],
            progress=count,
        )
    if as_json:
        render.as_json({name: getattr(verdict, name) for name in (*verdict.__struct_fields__, "ok")})
    else:
        whole = {True: "ok", False: "wrong", None: "unknown: no checkpoint or anchor"}
        archived = f", {verdict.archived:,} archived" if verdict.archived else ""
        shown = {
            "events": f"{verdict.events:,}{archived}",
            "chain": "ok" if verdict.chain_ok else "wrong",
            "tables": "ok" if verdict.projections_ok else "wrong" if verdict.chain_ok else "not checked",
            "problem": verdict.problem,
            "complete": whole[verdict.complete],
            "incomplete": verdict.incomplete,
            "signed": f"up to event {verdict.checkpoint_seq:,}" if verdict.checkpoint_seq else None,
            "erased parts": verdict.erased,
            "gap events": verdict.gaps,
            "head": f"{verdict.events}:{verdict.head}",
        }
        render.pairs({name: value for name, value in shown.items() if value is not None})
    ctx.exit(0 if verdict.ok else 1)


@click.command()
@configured("state_dir", "endpoint", "key")
@click.argument("actor", help="`user:alice`, `agent:trader`, or the id of a user alone.")
@click.confirmation_option(
    prompt="Erase this actor from the journal and its archives? This cannot be undone."
)
@_unshipped
@as_json
@click.pass_context
def erase(ctx: click.Context, config: Config, actor: str, unshipped: bool, as_json: bool) -> None:
    """Erase an actor. The chain stays whole and records what was erased.

    Exit status 1 if the name is still somewhere: then the command lists where.
    """
    done = _maintain(
        config, records.Maintenance(task="erase", actor=actor, unshipped=unshipped), "events checked"
    )
    if as_json:
        render.as_json(done)
    else:
        shown = {
            "own parts erased": done["own"],
            "mentions erased": done["mentions"],
            "of both archived": done["archived"],
            "name still in": ", ".join(done["left"]) or "nothing",
        }
        inside_words = {"inside words": ", ".join(done["parts"])} if done["parts"] else {}
        render.pairs(shown | inside_words)
    ctx.exit(1 if done["left"] else 0)


@click.command()
@configured("state_dir", "endpoint", "key")
@click.confirmation_option(
    prompt="Replace the key? Requests sent again under an idempotency key are then decided again."
)
@as_json
def rekey(config: Config, as_json: bool) -> None:
    """Replace the key of the digests on the chain: those so far can then be matched with nothing.

    Idempotency keys sent before are forgotten.
    """
    done = _maintain(config, records.Maintenance(task="rekey"), "")
    if as_json:
        render.as_json(done)
    else:
        render.line(f"replaced {done['rekeyed']}; earlier idempotency keys are forgotten")


@click.command()
@configured("state_dir", "endpoint", "key")
@click.option("--before", required=True, help="Archive events older than this RFC 3339 time.")
@_unshipped
@as_json
def archive(config: Config, before: str, unshipped: bool, as_json: bool) -> None:
    """Move old events into compressed files. Tables, queries and `verify` still include them.

    Events that a sink of `thorpolicy ship` has not acknowledged stay.
    """
    task = records.Maintenance(task="archive", before=instant(before, "before"), unshipped=unshipped)
    done = _maintain(config, task, "events archived")
    if as_json:
        render.as_json(done)
    else:
        shown = {"events archived": done["archived"], "files": ", ".join(done["segments"]) or "none"}
        waits = {"others wait for": done["waits_for"]} if done["waits_for"] else {}
        render.pairs(shown | waits)


@click.command()
@configured("state_dir", "endpoint", "key")
@as_json
def checkpoint(config: Config, as_json: bool) -> None:
    """Sign the chain as it is now."""
    done = _maintain(config, records.Maintenance(task="checkpoint"), "")
    if as_json:
        render.as_json(done)
    else:
        render.line(f"signed up to event {done['checkpoint']}; the checkpoint is in {config.checkpoint_dir}")


@click.command()
@configured("state_dir")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a new journal to this directory, instead of rebuilding the tables in place.",
)
@click.option(
    "--at", metavar="SEQ|TIME", help="Stop after this event, or before this RFC 3339 time; needs --to."
)
@as_json
def rebuild(config: Config, target: Path | None, at: str | None, as_json: bool) -> None:
    """Rebuild every table from the events, in place or as a new journal.

    Read the journal in DIR with --state-dir DIR.
    """
    if at is not None and target is None:
        raise click.UsageError("--at needs --to: an earlier state can only be a new journal")
    with render.counting("events done") as count:
        if target is None:
            Reader(config.journal_path).close()  # raises if there is no journal
            with Journal(config.journal_path) as journal:
                events = rebuild_in_place(journal, progress=count)
        else:
            until = int(at) if at is not None and at.isdecimal() else at
            path = target / config.journal_path.name
            events = rebuild_aside(config.journal_path, path, at=until, progress=count)
    if as_json:
        render.as_json({"events": events})
    else:
        render.line(f"rebuilt from {events:,} events" + (f", in {target}" if target else ""))


def _maintain(config: Config, maintenance: records.Maintenance, counted: str) -> dict[str, Json]:
    from thor_policy.daemon import journal_access

    with render.counting(counted) as count:
        return journal_access.maintain(config, maintenance, progress=count)


def _anchor(text: str) -> tuple[int, str]:
    seq, _, link = text.partition(":")
    if not seq.isdecimal() or len(link) != 64:
        raise click.UsageError(
            f"--anchor {text!r}: give SEQ:HASH, as `log verify` prints it in the line `head`"
        )
    return int(seq), link
