"""`serve`, `ask`, `status`: running a daemon and talking to one."""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
import time
from pathlib import Path

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import READ, as_json, configured
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.telemetry import logs
from thor_policy.telemetry.watchdog import Supervisor

log = logging.getLogger(__name__)


@click.command()
@configured()
def serve(config: Config) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second signal forces it.

    SIGHUP reads packs and settings anew.
    """
    from thor_policy.daemon import service

    logs.set_up(config.log_format, config.log_level, stream=sys.stderr, pretty=render.LogHandler())
    faulthandler.enable()  # a watchdog ends a hung daemon with SIGABRT: then each thread says where it hangs
    supervisor, judge = Supervisor(stall_s=config.stall_s), config.engine_url or config.model
    supervisor.loading(f"loading {judge} and {config.pack}")
    log.info("loading %s and %s ...", judge, config.pack)

    def ready() -> None:
        supervisor.ready(f"{judge} judges by {config.pack} at {config.endpoint}", time.monotonic_ns())
        log.info("ready at %s, journal %s", config.endpoint, config.journal_path)

    reread = click.get_current_context().meta[READ]
    with service.open_service(config, supervisor=supervisor, reread=reread) as server:
        server.run(ready=ready, turn=supervisor.turn)
        log.info("stopping: the last replies are out, the journal is closing")


@click.command()
@configured("endpoint", "key", "state_dir")
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
    with Client(config.endpoint, key=config.key_file) as client:
        reply = client.evaluate(_read_question(question), explain=explain, deadline_ms=deadline_ms, pack=pack)
    if as_json:
        render.as_json(reply)
    else:
        _show_reply(reply)


@click.command()
@configured("endpoint", "key", "state_dir")
@as_json
def status(config: Config, as_json: bool) -> None:
    """What a running daemon says of itself."""
    with Client(config.endpoint, key=config.key_file, timeout_ms=5_000) as client:
        answer = client.status()
    if as_json:
        render.as_json(msgspec.to_builtins(answer))
        return
    pack, model, drift = answer.pack, answer.model, answer.drift
    bits = "" if model.exact else ", not bit-exact"
    adapter = model.adapter and f"{model.adapter.name} x {model.adapter.scale} {model.adapter.sha256[:12]}"
    counts = drift.counters
    golden = (
        f"{counts['drifted']} changes in {counts['answered']} golden answers, {counts['failed']} without one"
    )
    own = ("version", "pid", "state", "trouble", "uptime_s", "endpoint", "tcp_endpoint", "events_endpoint")
    render.pairs(
        {name: getattr(answer, name) for name in own}
        | {
            "pack": f"{pack.name} {pack.version} {pack.sha256[:12]}",
            "model": f"{model.name} {model.quantisation} on {model.device} {model.sha256[:12]}{bits}",
            "model file": model.file,
            "adapter": adapter,
            "in_flight": answer.in_flight,
            "max_in_flight": answer.max_in_flight,
            "settings": msgspec.to_builtins(answer.settings),
            "drift": golden if drift.every_s else "not looked for",
        },
        title="daemon",
    )
    render.residents([msgspec.to_builtins(resident) for resident in answer.packs])
    for title in ("engine", "cache", "journal", "maintenance", "pack_manager"):
        render.pairs(msgspec.to_builtins(getattr(answer, title)), title=title)
    if answer.counters:
        render.pairs(answer.counters, title="counters")


@click.command()
@configured("endpoint", "key", "state_dir")
@click.option("--prometheus", is_flag=True, help="Print the text that Prometheus reads.")
@as_json
def metrics(config: Config, prometheus: bool, as_json: bool) -> None:
    """What a running daemon measures: times, outcomes, confidence, and everything it counts.

    Without --json or --prometheus, what is zero is left out.
    """
    from thor_policy.telemetry.metrics import exposition, lines

    with Client(config.endpoint, key=config.key_file, timeout_ms=5_000) as client:
        told = client.metrics()
    if as_json:
        render.as_json(told)
    elif prometheus:
        sys.stdout.write(exposition(told))
    else:
        shown = [
            (f"{one.name.removeprefix('thorpolicy_')} {one.labels}", one)
            for one in lines(told)
            if not one.name.endswith("_info")  # `status` says it better
        ]
        render.table(
            ("seconds, or a share", "count", "mean", "half within", "99 % within"),
            [(name, one.value, one.mean, one.half, one.most) for name, one in shown if one.mean is not None],
        )
        render.pairs({name: one.value for name, one in shown if one.mean is None and one.value})


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
