"""`bench`: measure ours beside the bare floor and the peers, in one run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from thor_policy.bench import figures
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config, data_path
from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Evaluation
from thor_policy.daemon import loading
from thor_policy.policy import pack_files
from thor_policy.suites import suite_files

report_dir = click.option(
    "--report-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write report and plot there.",
)


@click.group()
def bench() -> None:
    """Measure on this machine; ratios within one run, medians, paired 95 % intervals."""


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--rounds", default=5, show_default=True, help="How often each question is asked.")
@report_dir
@as_json
def engine(config: Config, rounds: int, report_dir: Path | None, as_json: bool) -> None:
    """Scoring a question against one bare decode of its tokens."""
    from thor_policy.bench import runs

    asked = _evaluations()
    with render.progress(len(asked) * rounds, "scoring") as advance:
        report = runs.engine(config, asked, rounds=rounds, advance=advance)
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--requests", default=100, show_default=True, help="Questions to the real model.")
@report_dir
@as_json
def daemon(config: Config, requests: int, report_dir: Path | None, as_json: bool) -> None:
    """A daemon with one client, and with many requests in flight over a stub engine."""
    from thor_policy.bench import runs

    with render.progress(requests, "asking") as advance:
        report = runs.daemon(config, _evaluations(), requests=requests, advance=advance)
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option(
    "--requests", type=click.IntRange(2), default=200, show_default=True, help="Questions asked again."
)
@report_dir
@as_json
@click.pass_context
def determinism(
    ctx: click.Context, config: Config, requests: int, report_dir: Path | None, as_json: bool
) -> None:
    """The same questions in random order, explanations and another pack between them, and after a restart.

    Each answer is held against the first one to that question. Status 1 if a label differs.
    """
    from thor_policy.bench import determinism as measure

    asked, names = _evaluations(), pack_files.available(data_path("prompts"))
    other = next(name for name in names if name != loading.load_pack(config).info.name)
    with render.progress(measure.DIFFERENT + requests, "asking again") as advance:
        report = measure.determinism(
            config,
            asked,
            requests=requests,
            other=pack_files.load(pack_files.find(other, data_path("prompts"))),
            advance=advance,
        )
    _show(report, as_json, report_dir)
    ctx.exit(1 if report.facts["labels_differing"] else 0)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--rounds", default=2, show_default=True, help="How often each question is asked.")
@click.option(
    "--llama-server",
    "server",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The program; scripts/build-llama-server makes it.",
)
@report_dir
@as_json
def peers(config: Config, rounds: int, server: Path, report_dir: Path | None, as_json: bool) -> None:
    """Ours, llama-server and llama-cpp-python on the same model, prompt and questions."""
    from thor_policy.bench.peers import peers as measure

    with render.progress(None, "asking everybody") as advance:
        report = measure(config, _evaluations(), rounds=rounds, server=server, advance=advance)
    _show(report, as_json, report_dir)


@bench.command()
@configured("model", "models_dir", "pack", "state_dir")
@click.option("--rows", default=100_000, show_default=True, help="Decisions to write.")
@click.option(
    "--blocks",
    default=20,
    show_default=True,
    help="Blocks of decisions by the model, with the journal and without; 0: none.",
)
@report_dir
@as_json
def journal(config: Config, rows: int, blocks: int, report_dir: Path | None, as_json: bool) -> None:
    """Writing, looking up, verifying; and what the journal costs the model."""
    from thor_policy.bench import journal as measure

    config.state_dir.mkdir(parents=True, exist_ok=True)
    with render.progress(None, "writing and reading") as advance:
        report = measure.journal(config, _evaluations(), rows=rows, blocks=blocks, advance=advance)
    _show(report, as_json, report_dir)


def _evaluations() -> list[Evaluation]:
    """The questions of the shipped scenarios."""
    suites = [suite_files.load(path) for path in suite_files.available(data_path("scenarios"))]
    found = [scenario.evaluation() for one in suites for scenario in one.scenarios]
    if not found:
        raise SuiteError("there are no scenarios to take questions from")
    return found


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
