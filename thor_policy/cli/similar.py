"""`similar`: past decisions that are similar to a decision, a question or a text, and what they share."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click
from msgspec import to_builtins

from thor_policy.cli import render
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.options import as_json, configured, read_question
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.recall import MOST_PRECEDENTS, Filters, Ranked, Similar, SimilarQuery
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.protocol.requests import evaluation_from, question_fields

#: An id as the journal makes it, or its end.
_ID = re.compile(rf"[0-9a-f-]{{{ENDING_CHARS},64}}")
#: Columns of the components, in the order of the weights.
_SHORT = {"judgment_call": "judgment"}


@click.command()
@configured("state_dir", "endpoint", "key", "models_dir")
@click.argument(
    "what",
    metavar="ID|QUESTION",
    help="The id of a decision, or at least its last 8 characters; a question as JSON, a file, or `-` for "
    "standard input; or any other text.",
)
@click.option(
    "-k",
    default=5,
    show_default=True,
    type=click.IntRange(1, MOST_PRECEDENTS),
    help="How many are listed.",
)
@click.option("--pack", metavar="NAME[@VERSION]", help="Only decisions under this pack.")
@click.option("--type", "type_", metavar="TYPE", help="Only decisions of this type.")
@click.option("--actor", metavar="ACTOR", help="Only of this actor: user:alice, or the id of a user.")
@click.option("--entity", metavar="ENTITY", help="Only about this resource or symbol: env:production.")
@click.option("--since", metavar="TIME", help="Only recorded from this RFC 3339 time on.")
@click.option("--until", metavar="TIME", help="Only recorded before this RFC 3339 time.")
@click.option(
    "--least",
    default=0.0,
    type=click.FloatRange(0, 1),
    help="Leave out what is less similar than this, 0 to 1.",
)
@click.option("--why", is_flag=True, help="Also show the components of each score, and the weights.")
@as_json
def similar(
    config: Config,
    what: str,
    k: int,
    pack: str | None,
    type_: str | None,
    actor: str | None,
    entity: str | None,
    since: str | None,
    until: str | None,
    least: float,
    why: bool,
    as_json: bool,
) -> None:
    """List past decisions that are similar to a decision, a question or a text, and what they share.

    Overturned, superseded and questioned decisions, and traces in quarantine, are never listed. A running
    daemon is asked, which needs the role `review`; without one the journal is read.
    """
    filters = Filters(pack=pack, type=type_, actor=actor, entity=entity, since=since, until=until)
    query = _query(what, k, least, filters)
    with Client(config.endpoint, key=config.key_file) as client:
        answer = client.similar(query) if client.alive() else _read(config, query)
    if as_json:
        render.as_json(to_builtins(answer))
    else:
        _show(answer, why=why)


def _query(what: str, k: int, least: float, filters: Filters) -> SimilarQuery:
    query = SimilarQuery(k=k, least_similarity=least, filters=filters)
    fields = {name: getattr(query, name) for name in ("k", "least_similarity", "filters")}
    if what == "-" or what.lstrip().startswith("{") or _is_file(what):
        return SimilarQuery(question=evaluation_from(question_fields(read_question(what))), **fields)
    return SimilarQuery(id=what, **fields) if _ID.fullmatch(what) else SimilarQuery(text=what, **fields)


def _is_file(what: str) -> bool:
    try:
        return Path(what).is_file()
    except (OSError, ValueError):  # no file can have this name
        return False


def _read(config: Config, query: SimilarQuery) -> Similar:
    """Search the journal itself: the index is made for this one search."""
    from thor_policy.daemon.loading import weights_of  # takes 0.1 s to import
    from thor_policy.engine.embedder import QUICK_FILE, MiniLM, missing
    from thor_policy.trace.precedents import Recall

    problem = missing(config.models_dir, QUICK_FILE)
    embedder = None if problem else MiniLM(config.models_dir, QUICK_FILE)
    with open_current(config) as reader, render.counting("vectors") as progress:
        recall = Recall(
            reader,
            embedder=embedder,
            problem=problem,
            weights=weights_of(config),
            most=config.similar_most,
        )
        recall.refresh(progress)
        return recall.search(query, now=time.time())


def _show(answer: Similar, *, why: bool) -> None:
    render.line(answer.statistics["line"])
    if answer.note is not None:
        render.line(answer.note, stderr=True)
    if not answer.precedents:
        return
    render.table(
        ("score", "similar", "outcome", "people", "result", "made", "by", "id"),
        [
            (
                f"{each.score:.2f}",
                "-" if each.similarity is None else f"{each.similarity:.2f}",
                each.outcome,
                _people(each),
                each.result or "-",
                each.at[:10],
                each.actor or "(erased)",
                each.id[-ENDING_CHARS:],
            )
            for each in answer.precedents
        ],
        clipped=(2, 6),
    )
    if why:
        render.table(
            ("score", *(_SHORT.get(name, name) for name in answer.weights), "id"),
            [
                ("weight", *(f"{weight:g}" for weight in answer.weights.values()), ""),
                *(
                    (
                        f"{each.score:.2f}",
                        *(f"{each.components[name]:.2f}" for name in answer.weights),
                        each.id[-ENDING_CHARS:],
                    )
                    for each in answer.precedents
                ),
            ],
        )
    for title, name in (("by agent", "by_agent"), ("went well", "patterns")):
        groups = answer.statistics[name]
        if groups:
            render.table(
                (title, "decisions", "well", "badly", "average value"),
                [
                    (
                        group["name"],
                        group["decisions"],
                        group["successes"],
                        group["failures"],
                        "-" if group["average_value"] is None else f"{group['average_value']:.4g}",
                    )
                    for group in groups
                ],
                clipped=(0,),
            )


def _people(each: Ranked) -> str:
    return "-" if each.confirmed is None else "confirmed" if each.confirmed else "corrected"
