"""`serve`, `ask`, `status`: running a daemon and talking to one."""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
import time
from pathlib import Path

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.client import Client
from thor_policy.config import Config
from thor_policy.core import Json
from thor_policy.notify import Supervisor


@click.command()
@configured()
def serve(config: Config) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second signal forces it."""
    from thor_policy import app

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # otherwise it tells of every request
    faulthandler.enable()  # a watchdog ends a hung daemon with SIGABRT: then each thread says where it hangs
    supervisor, judge = Supervisor(), config.engine_url or config.model
    supervisor.loading(f"loading {judge} and {config.pack}")
    render.line(f"loading {judge} and {config.pack} ...", stderr=True)

    def ready() -> None:
        supervisor.ready(f"{judge} judges by {config.pack} at {config.endpoint}", time.monotonic_ns())
        render.line(f"ready at {config.endpoint}, journal {config.journal_path}", stderr=True)

    with app.open_service(config, supervisor=supervisor) as server:
        server.run(ready=ready, turn=supervisor.turn)
        render.line("stopping: the last replies are out, the journal is closing", stderr=True)


@click.command()
@configured("endpoint", "state_dir")
@click.argument(
    "question", metavar="JSON|FILE|-", default="-", help="The question itself, or where it is; - is stdin."
)
@click.option(
    "--explain", type=click.Choice(["inline", "none"]), default="inline", help="Ask for the reasoning too."
)
@click.option("--deadline-ms", type=int, help="Milliseconds the daemon has to answer.")
@click.option("--pack", metavar="NAME", help="Which resident pack decides; if none is named, the active one.")
@as_json
def ask(
    config: Config, question: str, explain: str, deadline_ms: int | None, pack: str | None, as_json: bool
) -> None:
    """Ask a running daemon one question.

    JSON is an AuthZEN evaluation or a flat situation, given as an argument, in a file or on standard input.
    """
    with Client(config.endpoint) as client:
        reply = client.evaluate(_read_question(question), explain=explain, deadline_ms=deadline_ms, pack=pack)
    if as_json:
        render.as_json(reply)
    else:
        _show_reply(reply)


@click.command()
@configured("endpoint", "state_dir")
@as_json
def status(config: Config, as_json: bool) -> None:
    """What a running daemon says of itself."""
    with Client(config.endpoint, timeout_ms=5_000) as client:
        answer = client.status()
    if as_json:
        render.as_json(answer)
        return
    engine, journal, clerk, steward = (answer.pop(part) for part in ("engine", "journal", "clerk", "steward"))
    packs = answer.pop("packs")
    counters = answer.pop("counters")
    answer["pack"] = f"{answer['pack']['name']} {answer['pack']['version']} {answer['pack']['sha256'][:12]}"
    model = answer["model"]
    bits = "" if model["exact"] else ", not bit-exact"
    answer["model"] = (
        f"{model['name']} {model['quantisation']} on {model['device']} {model['sha256'][:12]}{bits}"
    )
    answer["model file"] = model["file"]
    adapter = model["adapter"]
    answer["adapter"] = adapter and f"{adapter['name']} x {adapter['scale']} {adapter['sha256'][:12]}"
    render.pairs(answer, title="daemon")
    render.residents(packs)
    render.pairs(engine, title="engine")
    render.pairs(journal, title="journal")
    render.pairs(clerk, title="clerk")
    render.pairs(steward, title="steward")
    if counters:
        render.pairs(counters, title="counters")


def _read_question(source: str) -> Json:
    text = source
    if source == "-":
        text = sys.stdin.read()
    elif not source.lstrip().startswith("{"):
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(
                f"{source!r} is neither JSON nor a file that can be read: {error}"
            ) from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"the question is not valid JSON: {error}") from error


def _show_reply(reply: dict[str, Json]) -> None:
    answer = reply["context"]
    shares = ", ".join(f"{label} {share:.2f}" for label, share in answer["probabilities"].items())
    timings = answer["timings_ms"]
    render.pairs(
        {
            "outcome": answer["outcome"],
            "decision": "allow" if reply["decision"] else "not allowed",
            "reason": answer["reasoning"],
            "class": answer["classification"],
            "clauses": ", ".join(answer["clauses"]) or None,
            "risk": answer["risk"],
            "answered by": answer["tier"]
            + (f" ({answer['reason_code']})" if "reason_code" in answer else ""),
            "floor": answer["floor"],
            "confidence": answer["confidence"],
            "probabilities": shares or None,
            "obligations": ", ".join(duty["id"] for duty in answer["obligations"]) or None,
            "time": f"{timings['total']:.1f} ms, of it model {timings['score']:.1f}, "
            f"commit {timings['commit']:.1f}",
            "decision id": answer["decision_id"],
        }
    )
