"""`test` and `compare`: scenario suites, against the live daemon if one is up, otherwise in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from thor_policy import config as settings
from thor_policy.cli import render, suite_tables
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.errors import ThorPolicyError
from thor_policy.suites import baselines, comparison, figures, run_files, runner
from thor_policy.suites.junit import could_not_run, junit
from thor_policy.suites.scenarios import Suite

F = TypeVar("F", bound=Callable[..., Any])


def _selecting(command: F) -> F:
    """Options that say which scenarios are asked, and how often."""
    for option in (
        click.option(
            "--repeat",
            type=click.IntRange(1, 1000),
            default=1,
            show_default=True,
            help="How often each is asked; it counts by its worst answer.",
        ),
        click.option(
            "--filter",
            "filters",
            multiple=True,
            metavar="PATTERN",
            help="Only scenarios with such an id, tag or difficulty, quick or not (`*`, `?`); repeatable.",
        ),
        click.option(
            "--suite",
            "also",
            multiple=True,
            metavar="NAME|FILE",
            help="Only this suite; repeatable. Without any: those that ship with this version.",
        ),
        click.option("--full", is_flag=True, help="Every scenario, not the three quick ones of a suite."),
        click.option(
            "--allow-leak", is_flag=True, help="Run although an example of the pack gives a scenario away."
        ),
    ):
        command = option(command)
    return command


def _file(name: str, help: str) -> Callable[[F], F]:
    return click.option(name, metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help=help)


@click.command()
@configured()
@click.argument("named", metavar="[SUITE]...", nargs=-1, help="Suites by name or file, as with --suite.")
@_selecting
@click.option(
    "--coverage-threshold",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    help="Fail if fewer of a pack's clauses are cited, or of its rules fire.",
)
@click.option("--gate", "gated", is_flag=True, help="Hold the run against its baselines; they decide.")
@click.option("--bless", is_flag=True, help="Make this run the baseline of its suites; needs --full.")
@click.option(
    "--baselines",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where baselines lie; default: `baselines` in the state directory.",
)
@click.option("--against", metavar="URL", help="Ask the daemon there, and nobody else.")
@_file("--junit", "Also write a JUnit file, whatever comes of the run.")
@_file("--html", "Also write one page for people.")
@as_json
@click.pass_context
def test(
    ctx: click.Context,
    config: Config,
    named: tuple[str, ...],
    also: tuple[str, ...],
    full: bool,
    filters: tuple[str, ...],
    repeat: int,
    allow_leak: bool,
    coverage_threshold: float | None,
    gated: bool,
    bless: bool,
    folder: Path | None,
    against: str | None,
    junit: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Run scenario suites, each against its pack, and record each decision.

    While a daemon is up, only suites of the pack it serves are run. Exit status 0: all passed (with --gate:
    nothing got worse); 1: some did not; 2: could not run.
    """
    whole = full and not filters
    if bless and (gated or not whole):
        raise click.UsageError("--bless needs --full, and neither --filter nor --gate")
    with _reports(junit, html) as report:
        config = replace(config, endpoint=against) if against else config
        whom: runner.Whom = "daemon" if against else "either"
        chosen = _chosen(config, named + also, full=full, filters=filters, own=bool(against))
        run = _ask(
            config, chosen, full=full, filters=filters, repeat=repeat, whom=whom, allow_leak=allow_leak
        )
        found = figures.figures(run)
        if not as_json:
            suite_tables.show_run(run, found)
        folder = folder or config.state_dir / "baselines"
        blessed = baselines.bless(folder, run) if bless else []
        gate = baselines.gate(folder, run, whole=whole) if gated or bless else None
        report(run, found, gate)
    if as_json:
        beside = {"summary": found} | ({"gate": gate} if gate else {})
        render.as_json(run_files.plain(run, **beside))
    else:
        if full or coverage_threshold is not None:
            suite_tables.show_coverage(run.coverage, coverage_threshold)
        for path in blessed:
            render.line(f"blessed: {path}")
        if gate is not None:
            suite_tables.show_gate(gate)
    reached = all(one.reaches(coverage_threshold) for one in run.coverage)
    ctx.exit(0 if reached and (gate.ok if gate is not None else found.ok) else 1)


@click.command()
@configured()
@click.argument("before", help="What is there now.")
@click.argument("after", help="What might take its place.")
@_selecting
@as_json
def compare(
    config: Config,
    before: str,
    after: str,
    also: tuple[str, ...],
    full: bool,
    filters: tuple[str, ...],
    repeat: int,
    allow_leak: bool,
    as_json: bool,
) -> None:
    """Hold two runs against each other, scenario by scenario, and say which to take, if any.

    Each side is a file that `test --json` printed, or settings: model=NAME, pack=DIR, kv_type=q8_0,
    several with a comma between, or `-` for those in force. Settings are tried in this process, one side
    after the other; against a file, with the scenarios of that file.
    """
    sides = [_side(config, text) for text in (before, after)]
    saved = [side for side in sides if isinstance(side, run_files.Run)]
    keys = {item.key for run in saved for item in run.results} if saved else None
    for number, side in enumerate(sides):
        if isinstance(side, Config):
            chosen = _chosen(side, also, full=full, filters=filters, keys=keys, own=True)
            sides[number] = _ask(
                side, chosen, full=full, filters=filters, repeat=repeat, whom="process", allow_leak=allow_leak
            )
    old, new = (side for side in sides if isinstance(side, run_files.Run))
    found = comparison.compare(old, new, names=_names(before, after))
    if as_json:
        render.as_json(msgspec.to_builtins(found))
    else:
        suite_tables.show_comparison(found)


def _side(config: Config, text: str) -> run_files.Run | Config:
    """A saved run, or the settings with the changes that a text names."""
    if text == "-":
        return config
    return settings.with_changes(config, text) if "=" in text else run_files.load(Path(text))


def _names(before: str, after: str) -> tuple[str, str]:
    names = ["as configured" if text == "-" else _name(text) for text in (before, after)]
    return (names[0], names[1]) if names[0] != names[1] else (before, after)


def _name(side: str) -> str:
    """A file, or settings, without the folders of the paths in it."""
    if "=" not in side:
        return Path(side).stem
    return ",".join("=".join(Path(one).name for one in part.split("=")) for part in side.split(","))


def _chosen(
    config: Config,
    named: Sequence[str],
    *,
    full: bool,
    filters: Sequence[str],
    keys: set[run_files.Key] | None = None,
    own: bool,
) -> list[Suite]:
    """What is asked; `own`: only of the pack of the settings."""
    suites = runner.find(named)
    if own or not (full or named or filters) or runner.is_up(config):
        pack = runner.own_pack(config)
        suites = [one for one in suites if one.pack == pack]
    return runner.choose(suites, full=full, filters=filters, keys=keys)


def _ask(
    config: Config,
    chosen: Sequence[Suite],
    *,
    full: bool,
    filters: Sequence[str],
    repeat: int,
    whom: runner.Whom,
    allow_leak: bool,
) -> run_files.Run:
    selection = f"filter {', '.join(filters)}" if filters else "full" if full else "quick"
    count = repeat * sum(len(one.scenarios) for one in chosen)
    with render.asking(count) as advance:
        return runner.ask(
            config,
            chosen,
            selection=selection,
            repeat=repeat,
            whom=whom,
            allow_leak=allow_leak,
            advance=lambda item: advance(item.id, item.status),
            announce=lambda told: render.line(told, stderr=True),
        )


@contextmanager
def _reports(
    junit_file: Path | None, html_file: Path | None
) -> Iterator[Callable[[run_files.Run, figures.Figures, baselines.Gate | None], None]]:
    """Writes the files that were asked for; a run that cannot be is a JUnit file too."""
    for file in (junit_file, html_file):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)

    def write(run: run_files.Run, found: figures.Figures, gate: baselines.Gate | None) -> None:
        if junit_file is not None:
            junit_file.write_bytes(junit(run, gate))
        if html_file is not None:
            from thor_policy.suites.html_report import page

            html_file.write_text(page(run, found, gate), encoding="utf-8")

    try:
        yield write
    except ThorPolicyError as error:
        if junit_file is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            junit_file.write_bytes(could_not_run(str(error), now))
        raise
