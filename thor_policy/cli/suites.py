"""`test` and `compare`: run scenario suites on the live daemon if one is up, otherwise in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from thor_policy.cli import render, suite_tables
from thor_policy.cli.options import as_json, configured, finite, is_given
from thor_policy.config import Config
from thor_policy.suites.check import Selection, check, compare_sides
from thor_policy.suites.report_files import JUnitFile, write_html
from thor_policy.suites.run_files import Item

#: The option of the JUnit file.
JUNIT = "--junit"
#: Key in the context's `meta` of the `JUnitFile` of the command.
_REPORT = "thor_policy.junit"

F = TypeVar("F", bound=Callable[..., Any])


def _selection_options(command: F) -> F:
    """Options that select scenarios, and how often they are asked."""
    for option in (
        click.option(
            "--repeat",
            type=click.IntRange(1, 1000),
            default=1,
            show_default=True,
            help="Times each scenario is asked; its worst answer counts.",
        ),
        click.option(
            "--filter",
            "filters",
            multiple=True,
            metavar="PATTERN",
            help="Only scenarios whose id, tag or difficulty matches (`*`, `?`), quick or not; repeatable.",
        ),
        click.option(
            "--suite",
            "more_suites",
            multiple=True,
            metavar="NAME|FILE",
            help="Only this suite; repeatable. Default: the suites that ship with this version.",
        ),
        click.option(
            "--full", is_flag=True, help="Every scenario, not only the three quick ones of each suite."
        ),
        click.option(
            "--allow-leak", is_flag=True, help="Run even if an example of the pack gives a scenario away."
        ),
    ):
        command = option(command)
    return command


def _file(option: str, name: str, help: str) -> Callable[[F], F]:
    return click.option(option, name, metavar="FILE", type=click.Path(path_type=Path), help=help)


class _Reported(click.Command):
    """A command whose JUnit file holds an error from the first moment until the command writes it.

    So it agrees with the exit status, whatever ends the command: a wrong option, an interrupt, a signal.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        report = JUnitFile(_path_in(args))
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            report.fail(error.format_message())
            raise
        context.meta[_REPORT] = report
        return context

    def invoke(self, ctx: click.Context) -> Any:
        report: JUnitFile = ctx.meta[_REPORT]
        report.begin()
        if report.failed is not None:
            _warn(report.failed.reasons)
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except BaseException as error:
            report.fail(str(error) or f"the run was ended by {type(error).__name__}")
            raise


def _path_in(arguments: Sequence[str]) -> Path | None:
    """The JUnit file that the arguments name, also if they cannot be understood otherwise."""
    path = None
    for argument, following in pairwise([*arguments, ""]):
        if argument == JUNIT:
            path = following
        elif argument.startswith(f"{JUNIT}="):
            path = argument.removeprefix(f"{JUNIT}=")
    return Path(path) if path else None


@click.command(cls=_Reported)
@configured()
@click.argument("suites", metavar="[SUITE]...", nargs=-1, help="Suites by name or file, as with --suite.")
@_selection_options
@click.option(
    "--coverage-threshold",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    callback=finite,
    help="Fail if a smaller share of a pack's clauses is cited, or of its rules fires.",
)
@click.option(
    "--gate", "gated", is_flag=True, help="Compare the run with its baselines, which decide the exit status."
)
@click.option("--bless", is_flag=True, help="Make this run the baseline of its suites; needs --full.")
@click.option(
    "--baselines",
    "baselines_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of baselines; default: `baselines` in the state directory.",
)
@click.option(
    "--against",
    metavar="URL",
    help="Ask only the daemon at this address, about its active pack unless --pack or --candidate is given.",
)
@click.option(
    "--candidate",
    metavar="NAME",
    help="Ask the daemon about this resident pack: name, name@version or digest.",
)
@click.option(
    "--no-record",
    is_flag=True,
    help="Answer in this process and record nothing; a daemon is only asked which pack it has.",
)
@_file(JUNIT, "junit_file", "Also write a JUnit file, even if the run fails.")
@_file("--html", "html_file", "Also write an HTML page about the run.")
@as_json
@click.pass_context
def test(
    ctx: click.Context,
    config: Config,
    suites: tuple[str, ...],
    more_suites: tuple[str, ...],
    full: bool,
    filters: tuple[str, ...],
    repeat: int,
    allow_leak: bool,
    coverage_threshold: float | None,
    gated: bool,
    bless: bool,
    baselines_dir: Path | None,
    against: str | None,
    candidate: str | None,
    no_record: bool,
    junit_file: Path | None,
    html_file: Path | None,
    as_json: bool,
) -> None:
    """Run scenario suites, each against its pack, and record each decision.

    While a daemon is up, or with --pack, only suites of one pack are run. Exit status 0: every scenario
    passed (with --gate: the gate passed); 1: otherwise; 2: could not run, or could not write a file.
    """
    selection = Selection(
        suites=suites + more_suites, filters=filters, full=full, repeat=repeat, allow_leak=allow_leak
    )
    if bless and (gated or not selection.whole):
        raise click.UsageError("--bless needs --full, and neither --filter nor --gate")

    names_daemon = against is not None or is_given(ctx, "endpoint")
    conclusion = check(
        config,
        selection,
        against=against,
        any_pack=names_daemon and not is_given(ctx, "pack"),
        one_pack=is_given(ctx, "pack") and not selection.suites,
        candidate=candidate,
        record=not no_record,
        gated=gated,
        bless=bless,
        baselines_dir=baselines_dir,
        coverage_threshold=coverage_threshold,
        progress=_progress,
        announce=_announce,
    )
    report: JUnitFile = ctx.meta[_REPORT]
    if report.failed is not None:
        conclusion = conclusion.adding(report.failed)
    conclusion = write_html(conclusion, html_file)
    if as_json:
        render.as_json(conclusion.plain())
    else:
        suite_tables.show_conclusion(conclusion, with_coverage=full or coverage_threshold is not None)
    _warn(reason for point in conclusion.points if point.status > 1 for reason in point.reasons)
    sys.stdout.flush()  # what fails after the JUnit file is written could not be in it
    failed = report.conclude(conclusion)
    if failed is not None and failed not in conclusion.points:
        _warn(failed.reasons)
        conclusion = conclusion.adding(failed)
    ctx.exit(conclusion.status)


def _warn(reasons: Iterable[str]) -> None:
    for reason in reasons:
        render.line(f"thorpolicy: {reason}", stderr=True)


@click.command()
@configured()
@click.argument("before", help="Run or settings in use now.")
@click.argument("after", help="Run or settings that might replace them.")
@_selection_options
@as_json
def compare(
    config: Config,
    before: str,
    after: str,
    more_suites: tuple[str, ...],
    full: bool,
    filters: tuple[str, ...],
    repeat: int,
    allow_leak: bool,
    as_json: bool,
) -> None:
    """Compare two runs, scenario by scenario, and recommend a side if one is better.

    Each side is a file that `test --json` printed, or changed settings (model=NAME, pack=DIR, kv_type=q8_0;
    separate several with commas), or `-` for the current settings. Settings are tried in this process, one
    side after the other. Against a file, they are asked the scenarios of that file.
    """
    selection = Selection(
        suites=more_suites, filters=filters, full=full, repeat=repeat, allow_leak=allow_leak
    )
    comparison = compare_sides(config, before, after, selection, progress=_progress, announce=_announce)
    if as_json:
        render.as_json(msgspec.to_builtins(comparison))
    else:
        suite_tables.show_comparison(comparison)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[Item], None]]:
    with render.asking(count) as advance:
        yield lambda item: advance(item.id, item.status, item.outcome, item.verdict, item.total_ms)


def _announce(message: str) -> None:
    render.line(message, stderr=True)
