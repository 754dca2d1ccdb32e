"""`tune`: choose how sure the model must be, from reviewed decisions."""

from __future__ import annotations

import time
from pathlib import Path

import click
from msgspec import to_builtins

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, finite
from thor_policy.cli.suite_tables import ece
from thor_policy.config import Config
from thor_policy.learning.tuning import Evidence
from thor_policy.policy.bands import CONFIDENCE, Choice, Promise
from thor_policy.policy.pack import Pack


@click.command()
@configured("state_dir", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.option(
    "--asks-per-day",
    required=True,
    type=click.FloatRange(0, 1e9),
    callback=finite,
    help="Most decisions a day that may ask a person.",
)
@click.option(
    "--false-allows",
    required=True,
    type=click.FloatRange(0, 100, min_open=True),
    callback=finite,
    help="Most false allows, in percent of the questions that the model answers.",
)
@click.option(
    "--reviewers-miss",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 99),
    callback=finite,
    help="False allows that reviewers accept, in percent, as blind second reviews show it.",
)
@click.option(
    "--days",
    "since_days",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1, 3_650),
    callback=finite,
    help="How far back decisions count.",
)
@click.option(
    "--to",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the next version of the pack, with the band, to a new directory in DIR.",
)
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the curve as an HTML page, even if no band keeps both promises.",
)
@as_json
def tune(
    config: Config,
    asks_per_day: float,
    false_allows: float,
    reviewers_miss: float,
    since_days: float,
    folder: Path | None,
    html_file: Path | None,
    as_json: bool,
) -> None:
    """Choose the band of confidence that asks at most so often and allows at most so much wrongly.

    An allow of the model below the band becomes the outcome that asks (`limits.abstain`). Both promises hold
    with a confidence of 95 %, if the future is like the random sample of reviews. Exit status 2 where it
    cannot support them. The next version of the pack decides only behind `packs promote`.
    """
    from thor_policy.daemon import loading
    from thor_policy.learning import tuning

    pack = loading.load_pack(config)
    promise = Promise(
        asks_per_day=asks_per_day,
        false_allows=false_allows / 100,
        days=1.0,
        reviewers_miss=reviewers_miss / 100,
    )
    evidence = tuning.gather(config, pack, since_days=since_days, now=time.time(), display=render)
    if html_file is not None:
        _write_page(html_file, pack, evidence, promise)
    choice = tuning.choose(evidence, promise)
    written = tuning.write(pack, choice.below, folder) if folder is not None else None
    if as_json:
        render.as_json(
            {
                "pack": to_builtins(pack.info),
                "below": choice.below,
                "outcome": tuning.asks_outcome(pack),
                "confidence": CONFIDENCE,
                "days": evidence.days,
                "drawn": evidence.drawn,
                "reviewed": choice.reviewed,
                "served": choice.served,
                "calibration": to_builtins(evidence.calibrations),
                "sureness": to_builtins(evidence.sureness),
                "point": to_builtins(choice.point),
                "curve": to_builtins(choice.curve),
                "written": None if written is None else str(written.path),
            }
        )
        return
    _show(choice, evidence)
    if written is None:
        render.line("nothing written; --to DIR writes the next version of the pack")
    else:
        render.line(f"written as {written.info.name} {written.info.version}")
        render.line(f"next: thorpolicy packs promote {written.path}")


def _write_page(path: Path, pack: Pack, evidence: Evidence, promise: Promise) -> None:
    from thor_policy.learning import tuning, tuning_page  # jinja2 is needed only here

    text = tuning_page.page(pack.info, tuning.asks_outcome(pack), evidence, promise)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _show(choice: Choice, evidence: Evidence) -> None:
    point = choice.point
    render.pairs(
        {
            "band": f"an allow with a confidence below {choice.below:.2f} asks, at every risk",
            "reviewed": f"{choice.reviewed} of {evidence.drawn} questions of the random sample",
            "false allows": f"{point.false_allows:.2%}, at most {point.false_allows_at_most:.2%}",
            "asks a day": f"{point.asks_per_day:.1f}, at most {point.asks_per_day_at_most:.1f}",
            "from": f"{choice.served} decisions in {evidence.days:.1f} days",
        }
        | {f"ECE of {each.name}": ece(each) for each in evidence.sureness}
    )
    shown = [at for at in choice.curve if at.below == choice.below or round(at.below * 100) % 10 == 0]
    most = max(at.false_allows_at_most for at in shown)
    render.table(
        ("below", "false allows", "at most", "asks a day", "at most", "", "keeps"),
        [
            (
                f"{at.below:.2f}",
                f"{at.false_allows:.2%}",
                f"{at.false_allows_at_most:.2%}",
                f"{at.asks_per_day:.1f}",
                f"{at.asks_per_day_at_most:.1f}",
                "#" * round(12 * at.false_allows_at_most / most),
                "chosen" if at.below == choice.below else "yes" if at.keeps else "no",
            )
            for at in shown
        ],
    )
