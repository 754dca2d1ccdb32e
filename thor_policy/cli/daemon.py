"""`serve`, `ask`, `status`, `metrics`: run a daemon and query it.

Owns what these commands print. A daemon's threads are made in `daemon.service`. The commands that query
import `render` and `Client` themselves, because `serve` needs neither.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import get_args

import click
import msgspec

from thor_policy.cli.log_lines import LogHandler
from thor_policy.cli.options import READ_SETTINGS, as_json, configured, read_question
from thor_policy.config import Config
from thor_policy.core.requests import Enrich, Json
from thor_policy.core.status import AlertsStatus, CanaryStatus, EnrichmentStatus, ShippingStatus
from thor_policy.telemetry import logs
from thor_policy.telemetry.watchdog import Supervisor

log = logging.getLogger(__name__)

#: When garbage is collected (`gc.set_threshold`): a request makes few cycles, and with Python's 700 new
#: objects each dozen of requests would stop all threads for a look at those in flight.
_COLLECT = (20_000, 20, 50)


@click.command()
@configured()
def serve(config: Config) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second signal forces the end.

    SIGHUP reloads packs and settings.
    """
    from thor_policy.daemon.model import loading_early

    logs.set_up(config.log_format, config.log_level, stream=sys.stderr, pretty=LogHandler())
    faulthandler.enable()  # the watchdog ends a hung daemon with SIGABRT; then print the stack of each thread
    supervisor = Supervisor(stall_s=config.stall_s)
    supervisor.loading(f"loading {config.pack}")
    log.info("loading the pack %s ...", config.pack)

    def ready() -> None:
        memory.give_back()  # what checking the rules needed, 8 MB
        gc.freeze()  # what is there now stays: looking at it stops all threads for 30 ms
        gc.set_threshold(*_COLLECT)
        gc.enable()
        supervisor.ready(f"{config.pack} decides at {config.endpoint}", time.monotonic_ns())
        log.info("ready at %s, journal %s", config.endpoint, config.journal_path)

    reload_settings = click.get_current_context().meta[READ_SETTINGS]
    with ExitStack() as stack:
        stack.callback(gc.enable)
        stack.callback(gc.unfreeze)
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.disable()  # until the daemon is ready: a start makes little garbage
        with _spinner("loading"):
            stack.enter_context(loading_early(config))
            from thor_policy.daemon import memory, service  # while llama.cpp loads the model

            service_context = service.open_service(config, supervisor=supervisor, reread=reload_settings)
            server = stack.enter_context(service_context)
        server.run(ready=ready, turn=service.turns(server, supervisor))
        log.info("stopping: the last replies are sent, the journal is closing")


def _spinner(activity: str) -> AbstractContextManager[None]:
    """A spinner on a terminal; elsewhere the lines of the log say as much."""
    if logs.structured() or not sys.stderr.isatty():
        return nullcontext()
    from thor_policy.cli import render

    return render.working(activity, with_lines=False)


@click.command()
@configured("endpoint", "key", "state_dir")
@click.argument(
    "question",
    metavar="JSON|FILE|-",
    default="-",
    help="The question as JSON, or a file; - reads standard input.",
)
@click.option(
    "--explain",
    type=click.Choice(["inline", "none"]),
    default="inline",
    help="inline: the reply includes the reasoning.",
)
@click.option("--deadline-ms", type=int, help="Deadline of the reply, in milliseconds.")
@click.option("--pack", metavar="NAME", help="Resident pack that decides; the active one by default.")
@click.option(
    "--enrich",
    type=click.Choice(get_args(Enrich)),
    default="auto",
    help="Whether the model writes about it on idle time; auto: as the settings say.",
)
@as_json
def ask(
    config: Config,
    question: str,
    explain: str,
    deadline_ms: int | None,
    pack: str | None,
    enrich: str,
    as_json: bool,
) -> None:
    """Ask a running daemon one question.

    The question is an AuthZEN evaluation or a flat situation, as JSON.
    """
    from thor_policy.cli import render
    from thor_policy.client.blocking import Client

    with Client(config.endpoint, key=config.key_file) as client:
        fields = read_question(question)
        with render.working("asking"):
            reply = client.evaluate(
                fields, explain=explain, deadline_ms=deadline_ms, pack=pack, enrich=enrich
            )
    if as_json:
        render.as_json(reply)
    else:
        _show_reply(reply)


@click.command()
@configured("endpoint", "key", "state_dir")
@as_json
def status(config: Config, as_json: bool) -> None:
    """Show the state of a running daemon: packs, model, threads, journal, counters."""
    from thor_policy.cli import render
    from thor_policy.client.blocking import Client

    with Client(config.endpoint, key=config.key_file, timeout_ms=5_000) as client:
        state = client.status()
    if as_json:
        render.as_json(msgspec.to_builtins(state))
        return
    pack, model, drift = state.pack, state.model, state.drift
    bits = "" if model.exact else ", not bit-exact"
    adapter = model.adapter and f"{model.adapter.name} x {model.adapter.scale} {model.adapter.sha256[:12]}"
    counts = drift.counters
    golden = (
        f"{counts['drifted']} changes in {counts['answered']} example answers, "
        f"{counts['failed']} got no answer"
    )
    own = ("version", "pid", "state", "trouble", "uptime_s", "endpoint", "tcp_endpoint", "events_endpoint")
    render.pairs(
        {name: getattr(state, name) for name in own}
        | {
            "pack": f"{pack.name} {pack.version} {pack.sha256[:12]}",
            "model": f"{model.name} {model.quantisation} on {model.device} {model.sha256[:12]}{bits}",
            "model file": model.file,
            "adapter": adapter,
            "in_flight": state.in_flight,
            "max_in_flight": state.max_in_flight,
            "settings": msgspec.to_builtins(state.settings),
            "drift": golden if drift.every_s else "not checked (drift_every_s is 0)",
            "enrichment": _enrichment(state.enrichment),
            "alerts": _alerts(state.alerts),
            "shipping": _shipping(state.shipping),
            "canary": _canary(state.canary),
        },
        title="daemon",
    )
    render.residents([msgspec.to_builtins(resident) for resident in state.packs])
    for resident in state.packs:
        if resident.failed_expressions:
            title = f"failed expressions of {resident.name}: how often"
            render.pairs(resident.failed_expressions, title=title)
    for title in ("rules", "engine", "cache", "journal", "maintenance", "pack_manager"):
        render.pairs(msgspec.to_builtins(getattr(state, title)), title=title)
    if state.approvals is not None and (state.approvals.pending or any(state.approvals.counters.values())):
        render.pairs(msgspec.to_builtins(state.approvals), title="approvals")
    if state.recall is not None and (state.recall.vectors or any(state.recall.counters.values())):
        render.pairs(msgspec.to_builtins(state.recall), title="precedents")
    if state.pushed is not None and state.pushed.counters["pushed"]:
        render.pairs(msgspec.to_builtins(state.pushed), title="pushed values")
    for source in state.sources:
        render.pairs(msgspec.to_builtins(source), title=f"source {source.name}")
    if state.counters:
        render.pairs(state.counters, title="counters")


@click.command()
@configured("endpoint", "key", "state_dir")
@click.option("--prometheus", is_flag=True, help="Print the text format of Prometheus.")
@as_json
def metrics(config: Config, prometheus: bool, as_json: bool) -> None:
    """Show what a running daemon measures: times, outcomes, confidence and every counter.

    Without --json or --prometheus, metrics that are zero are left out.
    """
    from thor_policy.cli import render
    from thor_policy.client.blocking import Client
    from thor_policy.telemetry.exposition import exposition
    from thor_policy.telemetry.metrics import lines

    with Client(config.endpoint, key=config.key_file, timeout_ms=5_000) as client:
        measured = client.metrics()
    if as_json:
        render.as_json(measured)
    elif prometheus:
        sys.stdout.write(exposition(measured))
    else:
        shown = [
            (f"{metric.name.removeprefix('thorpolicy_')} {metric.labels}", metric)
            for metric in lines(measured)
            if not metric.name.endswith("_info")  # `status` shows the same in fewer words
        ]
        render.table(
            ("seconds, or a share", "count", "mean", "half within", "99 % within"),
            [
                (name, metric.value, metric.mean, metric.half, metric.most)
                for name, metric in shown
                if metric.mean is not None
            ],
        )
        render.pairs({name: metric.value for name, metric in shown if metric.mean is None and metric.value})


def _enrichment(status: EnrichmentStatus | None) -> str:
    """What was enriched today, and what was lost since the start."""
    if status is None or status.mode == "never":
        return "never (setting enrichment)"
    lost = sum(status.counters.values()) - status.counters["enriched"]
    return (
        f"{status.today} of {status.per_day} today, {status.today_s:g} of {status.s_per_day:g} s; "
        f"{status.waiting} wait, {lost} were not enriched"
    )


def _shipping(sinks: Sequence[ShippingStatus]) -> str | None:
    """How far each sink of the shipper is behind, one a line; None where nobody ships."""
    return (
        "\n".join(
            f"{sink.sink}: {sink.behind:,} events behind, {sink.behind_s:g} s"
            + (f"; takes no more: {sink.alarm}" if sink.alarm else "")
            for sink in sinks
        )
        or None
    )


def _canary(newest: CanaryStatus | None) -> str | None:
    """The newest canary; `thorpolicy canary status` has its figures."""
    if newest is None:
        return None
    state = newest.state.replace("_", " ")
    why = f" ({newest.breach.condition})" if newest.breach else f": {newest.reason}" if newest.reason else ""
    decisions = f"{newest.canary.decisions:,} decisions beside {newest.control.decisions:,}"
    return f"{newest.pack.name} {newest.pack.version}, share {newest.share:g}, {state}{why}; {decisions}"


def _alerts(status: AlertsStatus | None) -> str | None:
    """Which alerts are raised, one a line; `thorpolicy alerts` has the names of agents."""
    if status is None:
        return None
    lines = []
    for alert in status.raised:
        of = " ".join(filter(None, (alert.of, alert.name)))
        figures = "" if alert.value is None else f": {alert.value:g} ({alert.low:g} to {alert.high:g})"
        lines.append(f"{alert.kind}{f' of {of}' if of else ''}{figures}, {alert.id[-8:]}")
    return "\n".join(lines) or "none"


def _lines(values: Mapping[str, str]) -> str | None:
    return "\n".join(f"{name}: {value}" for name, value in values.items()) or None


def _show_reply(reply: dict[str, Json]) -> None:
    from thor_policy.cli import render

    context = reply["context"]
    shares = ", ".join(f"{label} {share:.2f}" for label, share in context["probabilities"].items())
    timings = context["timings_ms"]
    render.pairs(
        {
            "outcome": context["outcome"],
            "decision": "allow" if reply["decision"] else "not allowed",
            "reason": context["reasoning"],
            "reason by": "the rules: the model's own did not hold"
            if context["reasoning_source"] == "replaced"
            else None,
            "class": context["classification"],
            "clauses": ", ".join(context["clauses"]) or None,
            "risk": context["risk"],
            "answered by": context["tier"]
            + (f" ({context['reason_code']})" if "reason_code" in context else ""),
            "rule errors": _lines(context.get("rule_errors", {})),
            "missing": ", ".join(context.get("fields_missing", ())) or None,
            "time used": render.time_used(context.get("time_used")),
            "floor": context["floor"],
            "confidence": context["confidence"],
            "probabilities": shares or None,
            "obligations": ", ".join(obligation["id"] for obligation in context["obligations"]) or None,
            "time": f"{timings['total']:.1f} ms, model {timings['score']:.1f}, "
            f"commit {timings['commit']:.1f}",
            "decision id": context["decision_id"],
        }
    )
