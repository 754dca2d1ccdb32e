"""`bench`: measure thor-policy on this machine, beside the bare decode and beside its alternatives.

Owns how figures are printed: a line for each as soon as it is measured, then the report. Invariant: with
--json, standard output holds the report alone, and the lines go to standard error. Main thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from thor_policy.bench import figures
from thor_policy.cli import render
from thor_policy.cli.new_file import checkpoint_key, new_file
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import ModelInfo, PackInfo
from thor_policy.core.errors import ConfigError, SuiteError
from thor_policy.core.escape import in_json
from thor_policy.core.requests import Evaluation
from thor_policy.daemon import loading
from thor_policy.policy import pack_files
from thor_policy.suites import suite_files

report_dir = click.option(
    "--report-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write bench-NAME.json and bench-NAME.svg to DIR.",
)


@click.group()
def bench() -> None:
    """Measure on this machine: medians, and ratios within one run with paired 95 % intervals."""


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--rounds", default=5, show_default=True, help="How often each question is asked.")
@report_dir
@as_json
def engine(config: Config, rounds: int, report_dir: Path | None, as_json: bool) -> None:
    """Compare scoring a question with one bare decode of its tokens."""
    from thor_policy.bench import runs

    evaluations = _evaluations()
    with _measuring(len(evaluations) * rounds, "scoring", as_json) as (advance, announce):
        report = runs.engine(config, evaluations, rounds=rounds, advance=advance, announce=announce)
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--requests", default=100, show_default=True, help="Questions to the real model.")
@report_dir
@as_json
def daemon(config: Config, requests: int, report_dir: Path | None, as_json: bool) -> None:
    """Measure a daemon with one client, and with 256 requests in flight over a stub engine."""
    from thor_policy.bench import runs

    with _measuring(requests, "asking", as_json) as (advance, announce):
        report = runs.daemon(config, _evaluations(), requests=requests, advance=advance, announce=announce)
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="How often each side is started."
)
@report_dir
@as_json
def start(config: Config, rounds: int, report_dir: Path | None, as_json: bool) -> None:
    """Compare a warm start and the memory of a daemon with a process of the same model and streams."""
    from thor_policy.bench.start import start as benchmark

    with _measuring(2 * rounds, "starting", as_json) as (advance, announce):
        report = benchmark(config, _evaluations(), rounds=rounds, advance=advance, announce=announce)
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir", "checkpoint_key")
@click.option(
    "--certify",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a certificate of the run, signed with the checkpoint key. The file must not exist.",
)
@click.option(
    "--requests", type=click.IntRange(2), default=200, show_default=True, help="How many questions to repeat."
)
@report_dir
@as_json
@click.pass_context
def determinism(
    ctx: click.Context,
    config: Config,
    certify: Path | None,
    requests: int,
    report_dir: Path | None,
    as_json: bool,
) -> None:
    """Repeat questions in random order, with explanations and another pack in between, and after a restart.

    Each answer is compared with the first answer to the same question. Exit status 1 if a label differs.
    A certificate is checked by `verify-receipt`; it says `holds` if no bit of any answer differed.
    """
    from thor_policy.bench import certificate
    from thor_policy.bench import determinism as benchmark

    key = None if certify is None else checkpoint_key(config)
    if certify is not None and os.path.lexists(certify):
        raise ConfigError(f"--certify: {certify} exists; give the name of a new file")
    answered: dict[PackInfo, ModelInfo] = {}

    evaluations, names = _evaluations(), pack_files.available(data_path("prompts"))
    other = next(name for name in names if name != loading.load_pack(config).info.name)
    with _measuring(benchmark.DIFFERENT + requests, "repeating", as_json) as (advance, announce):
        report = benchmark.determinism(
            config,
            evaluations,
            requests=requests,
            other=pack_files.load(pack_files.find(other, data_path("prompts"))),
            advance=advance,
            announce=announce,
            judged=answered.__setitem__,
        )
    _show(report, as_json, report_dir)
    if certify is not None and key is not None:
        ((pack, model),) = answered.items()
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        made = certificate.make(report, pack, model, key=key, made_at=made_at)
        with new_file(certify) as to:
            to.write(in_json(json.dumps(made, ensure_ascii=False, indent=1)) + "\n")
    ctx.exit(1 if report.facts["labels_differing"] else 0)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option(
    "--questions",
    type=click.IntRange(4),
    default=12,
    show_default=True,
    help="How many of the shipped questions to ask.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="How often each side is asked each question.",
)
@click.option(
    "--clients",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Clients that ask for explained decisions at once.",
)
@click.option(
    "--llama-server",
    "server",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The program llama-server; ./scripts/build-llama-server builds it and prints its path.",
)
@report_dir
@as_json
def peers(
    config: Config,
    questions: int,
    rounds: int,
    clients: int,
    server: Path,
    report_dir: Path | None,
    as_json: bool,
) -> None:
    """Compare with llama-server and llama-cpp-python on the same model, prompt and questions.

    The defaults take a few minutes on two cores. More questions, rounds and clients narrow the intervals.
    """
    from thor_policy.bench.peers import peers as benchmark

    with _measuring(None, "asking each side", as_json) as (advance, announce):
        report = benchmark(
            config,
            _evaluations(),
            questions=questions,
            rounds=rounds,
            clients=clients,
            server=server,
            advance=advance,
            announce=announce,
        )
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--rows", default=100_000, show_default=True, help="Decisions to write.")
@click.option(
    "--blocks",
    default=20,
    show_default=True,
    help="Blocks of decisions by the model, with and without the journal; 0 skips them.",
)
@report_dir
@as_json
def journal(config: Config, rows: int, blocks: int, report_dir: Path | None, as_json: bool) -> None:
    """Measure writing, looking up and verifying, and what the journal costs a decision of the model."""
    from thor_policy.bench import journal as benchmark

    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    with _measuring(None, "writing and reading", as_json) as (advance, announce):
        report = benchmark.journal(
            config, _evaluations(), rows=rows, blocks=blocks, advance=advance, announce=announce
        )
    _show(report, as_json, report_dir)


@bench.command()
@click.option(
    "--against",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of other versions of the packs, such as `prompts` of another checkout.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="How often each question is timed."
)
@report_dir
@as_json
def rules(against: Path | None, rounds: int, report_dir: Path | None, as_json: bool) -> None:
    """Time the rules of the shipped packs on the questions of their suites, without a model."""
    from thor_policy.bench import rules as benchmark

    contests = []
    for path in suite_files.available(data_path("scenarios")):
        suite = suite_files.load(path)
        other = against / suite.pack if against and (against / suite.pack).is_dir() else None
        contests.append(
            benchmark.Contest(
                pack=pack_files.load(pack_files.find(suite.pack, data_path("prompts"))),
                questions=tuple(scenario.evaluation() for scenario in suite.scenarios),
                against=pack_files.load(other) if other else None,
            )
        )
    total = rounds * sum(len(contest.questions) for contest in contests)
    with _measuring(total, "timing", as_json) as (advance, announce):
        report = benchmark.rules(contests, rounds=rounds, advance=advance, announce=announce)
    _show(report, as_json, report_dir)


def _evaluations() -> list[Evaluation]:
    """The questions of the shipped scenarios."""
    suites = [suite_files.load(path) for path in suite_files.available(data_path("scenarios"))]
    evaluations = [scenario.evaluation() for suite in suites for scenario in suite.scenarios]
    if not evaluations:
        raise SuiteError(f"there are no scenarios to take questions from in {data_path('scenarios')}")
    return evaluations


@contextmanager
def _measuring(
    total: int | None, activity: str, as_json: bool
) -> Iterator[tuple[figures.Advance, figures.Announce]]:
    """A progress bar for `total` units of work, and a printed line for each figure."""
    with render.measuring(total, activity, stderr=as_json) as (advance, print_line):
        yield advance, lambda figure: print_line(_line_of(figure))


def _line_of(figure: figures.Figure) -> str:
    """A figure as one line of text."""
    match figure:
        case figures.Series():
            return f"{figure.name}: {figure.median_ms:.2f} ms, median of {len(figure.ms)}"
        case figures.Ratio():
            promised = f", promised {figure.bound}" if figure.bound else ""
            interval = f"{figure.low:.2f} to {figure.high:.2f}"
            return (
                f"{figure.of} / {figure.against}: {figure.ratio:.2f} ({interval}), "
                f"{figure.extra_ms:+.2f} ms{promised}"
            )
        case figures.Rate():
            return f"{figure.name}: {figure.per_s:,.1f} per second, of {figure.count:,}"
        case figures.Fact():
            return f"{figure.name}: {figure.value:,.4g}"


def _show(report: figures.Report, as_json: bool, report_dir: Path | None) -> None:
    plain = msgspec.to_builtins(report) | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    if report_dir is not None:
        report_dir.mkdir(parents=True, exist_ok=True)
        (report_dir / f"bench-{report.name}.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"
        )
        (report_dir / f"bench-{report.name}.svg").write_text(render.bars_svg(report.name, _medians(report)))
    if as_json:
        render.as_json(plain)
        return
    render.line("")
    render.line(f"{report.machine}; {', '.join(f'{k} {v}' for k, v in report.versions.items())}")
    render.line(f"{report.questions} questions, {report.rounds} rounds")
    render.table(("what", "median ms", "runs"), [(s.name, s.median_ms, len(s.ms)) for s in report.series])
    if report.ratios:
        rows = [
            (f"{r.of} / {r.against}", r.ratio, f"{r.low:.2f} to {r.high:.2f}", r.extra_ms, r.bound)
            for r in report.ratios
        ]
        render.table(("ratio of medians", "", "95 %", "more, ms", "promised"), rows)
    if report.rates:
        render.table(("rate", "per second", "of"), [(r.name, r.per_s, r.count) for r in report.rates])
    render.pairs(report.facts)


def _medians(report: figures.Report) -> dict[str, float]:
    return {series.name: series.median_ms for series in report.series}
