"""Pages of figures: suites and saved runs, packs, pulse, statistics, health.

Owns where saved runs are looked for. Invariant: a page opens only files whose names a listing of the folder
gave, regular ones, of bounded size. The event loop's thread; files and the journal are read on others.
"""

from __future__ import annotations

import asyncio
import stat
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from thor_policy.core.errors import JournalError, PackError, SuiteError
from thor_policy.core.status import PackStatus
from thor_policy.gateway.problems import Problem
from thor_policy.journal import statistics as statistics_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.policy.pack_files import PackFiles
from thor_policy.policy.rule_specs import Rule
from thor_policy.suites import run_files, suite_files
from thor_policy.suites.conclusions import conclude
from thor_policy.suites.html_report import page as report_page
from thor_policy.suites.run_files import Run
from thor_policy.trace.pulse import pulse as read_pulse
from thor_policy.web import drawing, templates
from thor_policy.web.visits import READERS, Visit

#: Folders of saved runs inside the results folder, most files of all, and bytes of one.
_FOLDERS, _MOST_FILES, _MAX_BYTES = (".", "baselines", "reports", "runs"), 200, 32 << 20
#: The newest decisions among which a page looks for those of a pack, and how many of them it reads.
_LOOKED_AT, _READ = 1_000, 200
#: Days of statistics that a page offers.
DAYS = (1, 7, 30, 365)


# ---------------------------------------------------------------- suites


async def suites(visit: Visit) -> Response:
    """The suites that ship with the package, and the runs that were saved."""
    await visit.need(*READERS)
    places = visit.parts.places
    shipped, runs = await asyncio.to_thread(lambda: (_suites(places.scenarios), _runs(places.results)))
    return visit.page("suites.html", suites=shipped, runs=runs, results=places.results)


async def report(visit: Visit) -> Response:
    """The report of a saved run, as `thorpolicy test --html` writes it."""
    await visit.need(*READERS)
    name = visit.query.get("run", "")
    path = await asyncio.to_thread(lambda: _files(visit.parts.places.results).get(name))
    if path is None:
        raise Problem(404, "not_found", "there is no such run in the results folder")
    try:
        content = await asyncio.to_thread(lambda: report_page(conclude(run_files.load(path))))
    except SuiteError as error:
        raise Problem(400, "bad_request", str(error)) from error
    return templates.with_own_style(content)


def _suites(folder: Path) -> list[dict[str, Any]]:
    return [_suite(path, path.stat().st_mtime_ns) for path in suite_files.available(folder)]


@lru_cache(maxsize=64)
def _suite(path: Path, _changed_ns: int) -> dict[str, Any]:
    """What is in a suite file, which is read again when it changes."""
    try:
        suite = suite_files.load(path)
    except (SuiteError, PackError) as error:
        return {"name": path.stem, "problem": str(error)}
    tags = Counter(tag for scenario in suite.scenarios for tag in scenario.tags)
    return {
        "name": suite.name,
        "pack": suite.pack,
        "description": suite.description,
        "scenarios": len(suite.scenarios),
        "tags": [name for name, _ in tags.most_common(6)],
        "problem": "",
    }


def _files(results: Path) -> dict[str, Path]:
    """The JSON files of the results folder, by their names inside it."""
    files: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted((results / folder).glob("*.json")):
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_BYTES and len(files) < _MOST_FILES:
                files[str(path.relative_to(results))] = path
    return files


def _runs(results: Path) -> list[dict[str, Any]]:
    """The files that are saved runs, the newest first."""
    runs: list[dict[str, Any]] = []
    for name, path in _files(results).items():
        try:
            run = run_files.load(path)
        except SuiteError:
            continue
        runs.append({"file": name, "at": run.at, **_figures(run)})
    return sorted(runs, key=lambda run: run["at"], reverse=True)


def _figures(run: Run) -> dict[str, Any]:
    worst = run_files.worst(run.results).values()
    counted = [item for item in worst if item.status != "skipped"]
    return {
        "suites": sorted({item.suite for item in worst}),
        "models": sorted({judge.model for judge in run.judges}),
        "passed": sum(item.status == "passed" for item in counted),
        "of": len(counted),
        "loose": sum(item.wrong == "loose" for item in counted),
        "strict": sum(item.wrong == "strict" for item in counted),
    }


# ---------------------------------------------------------------- packs


async def packs(visit: Visit) -> Response:
    """The resident packs."""
    await visit.need(*READERS)
    return visit.page("packs.html", packs=(await visit.status()).packs)


async def pack(visit: Visit) -> Response:
    """One resident pack: its rules with their conditions, and what they decided lately."""
    await visit.need(*READERS)
    wanted = visit.path["sha256"]
    resident = next((pack for pack in (await visit.status()).packs if pack.sha256 == wanted), None)
    if resident is None:
        raise Problem(404, "not_found", "there is no such pack in the daemon now; see the list of packs")
    files = await asyncio.to_thread(_pack_files, resident)
    lately = await visit.read(lambda reader: _lately(reader, resident))
    rules: tuple[Rule, ...] = () if files is None else files.values.get("rules.yaml") or ()
    return visit.page(
        "pack.html",
        pack=resident,
        manifest=None if files is None else files.values.get("pack.yaml"),
        rules=rules,
        clauses={} if files is None else files.values.get("clauses.yaml") or {},
        lately=lately,
    )


def _pack_files(resident: PackStatus) -> PackFiles | None:
    """The files of a resident pack; None if they are not those that the daemon loaded."""
    files = PackFiles(Path(resident.path))
    return files if files.sha256 == resident.sha256 else None


def _lately(reader: Reader, resident: PackStatus) -> dict[str, Any]:
    """Among the newest decisions of a pack: how often each rule matched, with the newest such decision."""
    ending = f"+{resident.sha256[:12]}"
    rows = [
        row
        for row in reader.decisions(limit=_LOOKED_AT)
        if row["floor"] is not None and (row["prompt_version"] or "").endswith(ending)
    ][:_READ]
    matches: dict[str, dict[str, Any]] = {}
    for row in rows:
        _, event = reader.recorded(row["decision_id"])
        for rule in (event["body"].get("floor") or {}).get("rules") or ():
            matches.setdefault(rule, {"count": 0, "newest": row})["count"] += 1
    return {
        "decisions": len(rows),
        "rules": matches,
        "outcomes": drawing.bars(dict(Counter(row["decision"] for row in rows).most_common())),
        "rows": rows[:10],
    }


# ---------------------------------------------------------------- pulse, statistics, health


async def pulse(visit: Visit) -> Response:
    """The state of the work."""
    now = time.time()
    return visit.page("pulse.html", pulse=await visit.read(lambda reader: read_pulse(reader, now=now)))


async def statistics(visit: Visit) -> Response:
    """Counts, accuracy and latency since some days ago, with plots."""
    try:
        days = int(visit.query.get("days") or "0")
    except ValueError:
        days = 0
    since = visit.query.get("since") or None
    if days in DAYS:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - days * 86_400))
    tests = visit.query.get("tests") == "yes"

    def read(reader: Reader) -> dict[str, Any]:
        window: dict[str, Any] = {"since": since, "tests": tests}
        return {
            "totals": statistics_of.statistics(reader, **window),
            "breakdowns": {
                by: statistics_of.breakdown(reader, by, **window)[:20] for by in statistics_of.DIMENSIONS
            },
            "latency": statistics_of.latency(reader, **window),
            "confidence": statistics_of.confidence(reader, **window),
            "hours": statistics_of.hourly(reader, **window),
            "quarantined": statistics_of.quarantined(reader, since=since),
        }

    try:
        figures = await visit.read(read)
    except JournalError as error:
        raise Problem(400, "bad_request", str(error)) from error
    totals: Record = figures["totals"]
    return visit.page(
        "statistics.html",
        figures=figures,
        totals=totals,
        plots={name: drawing.bars(totals[name]) for name in ("outcomes", "tiers", "risks")},
        columns=drawing.columns(figures["hours"]),
        points=drawing.reliability(figures["confidence"]),
        days=days,
        all_days=DAYS,
        tests=tests,
        since=since,
    )


async def health(visit: Visit) -> Response:
    """What the daemon says of itself; of an htmx request the figures alone."""
    status = await visit.status()
    part = any(name == b"hx-request" for name, _ in visit.scope["headers"])
    return visit.page(
        "_health.html" if part else "health.html",
        status=200,
        health=status,
        threads={
            "rules": status.rules,
            "engine": status.engine,
            "journal": status.journal,
            "maintenance": status.maintenance,
            "packs": status.pack_manager,
        },
        counters={
            name: {key: count for key, count in sorted(counts.items()) if count}
            for name, counts in status.all_counters().items()
        },
        own=dict(sorted(visit.parts.counters.items())),
        plain=msgspec.to_builtins,
    )
