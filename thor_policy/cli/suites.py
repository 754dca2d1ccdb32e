"""`test`: scenario suites, against the live daemon if one is up, otherwise in process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from thor_policy import packs, suite
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.client import GRACE_MS, Client
from thor_policy.config import Config, data_path
from thor_policy.core import Json
from thor_policy.errors import SuiteError


@click.command()
@configured()
@click.argument(
    "files",
    nargs=-1,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Suite files; those that ship with this version if none is given.",
)
@click.option("--full", is_flag=True, help="Every scenario of every suite, not the three quick ones.")
@as_json
@click.pass_context
def test(ctx: click.Context, config: Config, files: tuple[Path, ...], full: bool, as_json: bool) -> None:
    """Run scenario suites and record each decision.

    Exit status 0: all passed; 1: some failed; 2: could not run.
    """
    suites = [suite.load(path) for path in files or suite.available(data_path("scenarios"))]
    with ExitStack() as stack:
        client, where, pack = stack.enter_context(_daemon(config))
        suites = [one for one in suites if one.pack == pack.manifest.name]
        chosen = [s for one in suites for s in one.scenarios if full or s.quick]
        if not chosen:
            raise SuiteError(f"no scenario to run for the pack {pack.manifest.name}")
        results: list[suite.Result] = []
        with render.progress(len(chosen), f"asking {where}") as advance:
            for one in suites:
                ask = _asking(client, config.max_deadline_ms)
                for result in suite.run(one, ask, labels=pack.labels, quick=not full):
                    results.append(result)
                    advance()
    summary = suite.summarise(results)
    if as_json:
        render.as_json({"summary": _plain(summary), "results": [_plain(r) for r in results]})
    else:
        _show(results, summary, where)
    ctx.exit(0 if summary.ok else 1)


@contextmanager
def _daemon(config: Config) -> Iterator[tuple[Client, str, packs.Pack]]:
    """A client of the daemon that is up, or of one in this process; and the pack that it serves."""
    with ExitStack() as stack:
        client = stack.enter_context(Client(config.endpoint, timeout_ms=config.max_deadline_ms))
        where = "the daemon"
        pack = packs.load(packs.find(config.pack, data_path("prompts")))
        if client.alive():
            served = client.status()["pack"]
            if served["sha256"] != pack.info.sha256:
                raise SuiteError(
                    f"the daemon serves {served['name']} {served['sha256'][:12]}, but --pack is "
                    f"{pack.info.name} {pack.info.sha256[:12]}; restart it, or stop it to test in process"
                )
        else:
            from thor_policy import app

            where = "in process"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="thor-policy-"))
            render.line(f"no daemon is up: loading {config.model} ...", stderr=True)
            private = replace(config, endpoint=f"ipc://{folder}/policy.sock")
            stack.enter_context(app.serving(private))
            client = stack.enter_context(Client(private.endpoint, timeout_ms=config.max_deadline_ms))
        yield client, where, pack


def _asking(client: Client, deadline_ms: int) -> suite.Ask:
    """Asks with all the time there is: a slow machine is no wrong answer."""

    def ask(fields: dict[str, Json]) -> dict[str, Json]:
        return client.call(
            "evaluate", fields | {"deadline_ms": deadline_ms}, timeout_ms=deadline_ms + GRACE_MS
        )

    return ask


def _show(results: list[suite.Result], summary: suite.Summary, where: str) -> None:
    rows = [
        (
            result.scenario.id,
            result.status,
            result.outcome,
            result.tier,
            result.decision_id,
        )
        for result in results
    ]
    render.table(("id", "result", "outcome", "by", "decision id"), rows, gap=1)
    for result in results:
        if result.misses:
            render.line(f"{result.scenario.id} {result.scenario.title}: {'; '.join(result.misses)}")
            if result.label:
                render.line(f"    the model said {result.label}, the rules {result.floor}")
    render.line("")
    render.table(
        ("difficulty", "passed", "of"), [(name, *counts) for name, counts in summary.by_difficulty.items()]
    )
    asked = summary.scenarios - summary.skipped
    render.pairs(
        {
            "asked": f"{asked} scenarios, {where}",
            "passed": _share(summary.passed, asked),
            "decision accuracy": _share(summary.decisions_right, asked),
            "rules alone": _share(summary.floors_right, asked),
            "model alone": _share(summary.labels_right, summary.model_asked),
            "output structure": f"{summary.mean_structure:.2f}",
            "reasoning coverage": "not measured (no embedder yet)",
            "errors": summary.errors,
            "skipped": summary.skipped,
        }
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def _plain(value: suite.Result | suite.Summary) -> Json:
    import msgspec

    return msgspec.to_builtins(value)
