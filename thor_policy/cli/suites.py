"""`test`: scenario suites, against the live daemon if one is up, otherwise in process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from thor_policy import packs, suite
from thor_policy.cli import checks, render
from thor_policy.cli.options import as_json, configured
from thor_policy.client import GRACE_MS, Client
from thor_policy.config import Config, data_path
from thor_policy.core import Json
from thor_policy.errors import SuiteError
from thor_policy.suite import coverage
from thor_policy.suite.coverage import Coverage


@click.command()
@configured()
@click.argument(
    "files",
    nargs=-1,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Suite files; those that ship with this version if none is given.",
)
@click.option("--full", is_flag=True, help="Every scenario of every suite, not the three quick ones.")
@click.option("--allow-leak", is_flag=True, help="Run although an example of the pack gives a scenario away.")
@click.option(
    "--coverage-threshold",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    help="Fail if fewer of a pack's clauses are cited, or of its rules fire.",
)
@as_json
@click.pass_context
def test(
    ctx: click.Context,
    config: Config,
    files: tuple[Path, ...],
    full: bool,
    allow_leak: bool,
    coverage_threshold: float | None,
    as_json: bool,
) -> None:
    """Run scenario suites, each against its pack, and record each decision.

    While a daemon is up, only suites of the pack it serves are run. Exit status 0: all passed; 1: some
    failed; 2: could not run.
    """
    suites = [suite.load(path) for path in files or suite.available(data_path("scenarios"))]
    own = packs.load(packs.find(config.pack, data_path("prompts"))).manifest.name
    if not (full or files) or _is_up(config):
        suites = [one for one in suites if one.pack == own]
    results: dict[str, list[suite.Result]] = {}
    embedder, embedder_told = checks.embedder(config)
    leaks: list[checks.LeakCheck] = []
    covered: list[Coverage] = []
    for name in dict.fromkeys(one.pack for one in suites):
        chosen = [one for one in suites if one.pack == name]
        count = sum(full or scenario.quick for one in chosen for scenario in one.scenarios)
        if count:
            # The pack of the settings may be a directory of its own, so its name alone would find another.
            setting = config if name == own else replace(config, pack=name)
            pack = packs.load(packs.find(setting.pack, data_path("prompts")))
            leaks.append(checks.refuse_leaks(chosen, pack, embedder, allow=allow_leak))
            results[name], where = _run(setting, chosen, full=full, count=count, embedder=embedder)
            covered.append(coverage.cover(pack, results[name], time.time()))
    if not results:
        raise SuiteError(f"no scenario to run for the pack {own}")
    everything = [result for of_pack in results.values() for result in of_pack]
    summary = suite.summarise(everything)
    if as_json:
        rows = [_plain(r) | {"pack": name} for name, of_pack in results.items() for r in of_pack]
        stamps = {"leaks": _plain(leaks), "coverage": _plain(covered)}
        render.as_json({"summary": _plain(summary), "results": rows} | stamps)
    else:
        for name, of_pack in results.items():
            if len(results) > 1:
                render.line(f"\n{name}")
            _show_results(of_pack)
        render.line("")
        if len(results) > 1:
            _show_packs(results)
        _show_summary(summary, where, checks.show_reasons(summary, embedder_told))
        render.pairs({"leaks": checks.show_leaks(leaks)})
        if full or coverage_threshold is not None:
            checks.show_coverage(covered, coverage_threshold)
    uncovered = any(checks.too_low(one, coverage_threshold) for one in covered)
    ctx.exit(0 if summary.ok and not uncovered else 1)


def _is_up(config: Config) -> bool:
    with Client(config.endpoint) as client:
        return client.alive()


def _run(
    config: Config,
    suites: Sequence[suite.Suite],
    *,
    full: bool,
    count: int,
    embedder: suite.Embedder | None,
) -> tuple[list[suite.Result], str]:
    """What came of the suites of one pack, and where they were asked."""
    with ExitStack() as stack:
        client, where, pack = stack.enter_context(_daemon(config))
        advance = stack.enter_context(render.progress(count, f"asking {where}"))
        ask = _asking(client, config.max_deadline_ms)
        results = []
        for one in suites:
            for result in suite.run(one, ask, labels=pack.labels, quick=not full, embedder=embedder):
                results.append(result)
                advance()
        return results, where


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
            told = f"no daemon is up: loading {config.model} with {pack.manifest.name} ..."
            render.line(told, stderr=True)
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


def _show_results(results: list[suite.Result]) -> None:
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


def _show_packs(results: dict[str, list[suite.Result]]) -> None:
    rows = []
    for name, of_pack in results.items():
        found = suite.summarise(of_pack)
        asked = found.scenarios - found.skipped
        rows.append((name, asked, found.passed, found.decisions_right, found.floors_right))
    render.table(("pack", "asked", "passed", "decided right", "rules alone"), rows)
    render.line("")


def _show_summary(summary: suite.Summary, where: str, reasons: str) -> None:
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
            "reasoning coverage": reasons,
            "errors": summary.errors,
            "skipped": summary.skipped,
        }
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def _plain(value: suite.Result | suite.Summary | Sequence[checks.LeakCheck | Coverage]) -> Json:
    import msgspec

    return msgspec.to_builtins(value)
