"""`packs new`, `show`, `lint`, `try`, `render`, `diff`: what an author of packs needs, without a daemon.

Owns the commands; `policy` reads, checks and applies packs, `suites.pack_diff` compares two.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from thor_policy import catalog
from thor_policy.cli import completion, render, suite_tables
from thor_policy.cli.options import as_json, configured, read_question, shipped_pack
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Floor
from thor_policy.core.errors import PackError, RequestError
from thor_policy.core.escape import paragraph, visible
from thor_policy.core.requests import RISKS, Evaluation, Json
from thor_policy.core.sources import Consulted
from thor_policy.daemon.loading import find_adapter
from thor_policy.policy import new_pack, pack_files
from thor_policy.policy.lint import lint as lint_files
from thor_policy.policy.pack import Limits, Pack
from thor_policy.policy.rules import RuleTrace
from thor_policy.protocol.requests import evaluation_from, question_fields
from thor_policy.suites import baselines, pack_diff, runner
from thor_policy.suites.baselines import RecordedEffect

#: How often `--watch` looks for changed files.
_WATCH_EVERY_S = 0.3

#: Longest part of a line that lint shows.
_CARET_CHARS = 74

question_argument = click.argument(
    "question", metavar="JSON|FILE|-", help="The question as JSON, or a file; - reads standard input."
)


@click.command()
@click.argument("name", metavar="NAME", help="Name of the pack: lower case letters, digits and hyphens.")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The new directory; default: NAME in the working directory.",
)
@click.option("--with-model", is_flag=True, help="With a prompt: a model decides where no rule does.")
def new(name: str, directory: Path | None, with_model: bool) -> None:
    """Write a new pack that lints, decides and has a suite, to be edited.

    The pack has rules alone unless --with-model is given.
    """
    folder = directory or Path(name)
    for file in new_pack.write(folder, name, with_model=with_model):
        render.line(f"wrote {folder / file}")
    shown = folder if directory else f"./{folder}"
    render.line(f"next: thorpolicy packs lint {shown}; thorpolicy test --pack {shown}")


@click.command()
@configured("state_dir")
@shipped_pack
@as_json
def show(config: Config, pack: str, as_json: bool) -> None:
    """Show the outcomes, facts, rules with their conditions, and clauses of a pack.

    It also says what each model adds and costs, by the baselines that `test --bless` wrote to the state
    directory.
    """
    loaded = load(pack)
    effects = (
        [] if loaded.rules_only else baselines.recorded_effects(config.state_dir / "baselines", loaded.info)
    )
    if as_json:
        render.as_json(
            {
                "pack": msgspec.to_builtins(loaded.info),
                "manifest": msgspec.to_builtins(loaded.manifest),
                "clauses": loaded.clauses,
                "rules": msgspec.to_builtins(loaded.book.rules),
                "examples": msgspec.to_builtins(loaded.examples),
                "data": loaded.data,
                "model_effects": msgspec.to_builtins(effects),
            }
        )
        return
    manifest = loaded.manifest
    render.line(f"{loaded.info.name} {loaded.info.version}: {manifest.description}")
    render.line(f"sha256 {loaded.info.sha256}")
    render.line(f"outcomes, loosest first: {', '.join(loaded.labels)}")
    if loaded.by_rule_alone:
        unless = "" if loaded.rules_only else ", unless an expression fails"
        render.line(f"every answer is by rule{unless}: no model is asked")
    if not loaded.rules_only:
        render.line(f"a stricter label of the model counts {_when(manifest.limits)}")
    if manifest.default is not None:
        render.line(f"where no rule decides: {manifest.default}")
    if manifest.requires is not None:
        needed = ", ".join(f"{path} ({kind})" for path, kind in manifest.requires.members.items())
        render.line(f"required of a request: {needed}")
    for path, vocabulary in manifest.vocabulary.items():
        render.line("")
        unknown = vocabulary.unknown or loaded.strictest
        render.pairs(vocabulary.kinds, title=f"vocabulary of {path}: a name and its kind; unknown: {unknown}")
    for title, texts in (("facts", manifest.facts), ("risk", {"": manifest.risk or ""})):
        if any(texts.values()):
            render.line("")
            render.pairs({name: _one_line(text) for name, text in texts.items()}, title=title)
    for rule in loaded.book.rules:
        clause = f", clause {rule.clause}" if rule.clause else ""
        title = f"{rule.id}: {rule.outcome}{' (final)' if rule.final else ''}{clause}"
        render.line("")
        render.pairs({"when": _one_line(rule.when), "because": rule.because}, title=title)
    if loaded.clauses:
        render.line("")
        render.table(("clause", "text"), list(loaded.clauses.items()))
    if effects:
        render.line("")
        suite_tables.show_effects((_title(recorded), recorded.effect) for recorded in effects)


def _when(limits: Limits) -> str:
    doubts = {risk: limits.tightens_at(risk) for risk in RISKS}
    shares = ", ".join(f"{risk} {share:g}" for risk, share in doubts.items() if share)
    return f"from these doubts on: {shares}" if shares else "always"


def _title(recorded: RecordedEffect) -> str:
    files = "" if recorded.current else " with other files of the pack"
    return f"what {recorded.model} added in the run of {recorded.at[:10]}{files}"


@click.command()
@shipped_pack
@as_json
@click.pass_context
def lint(ctx: click.Context, pack: str, as_json: bool) -> None:
    """Check a pack and list all its problems. Exit status 1 if one of them is an error."""
    folder = pack_files.find(pack, data_path("prompts"))
    findings = lint_files(folder)
    if as_json:
        render.as_json(msgspec.to_builtins(findings))
    else:
        for finding in findings:
            render.line(f"{finding.level}: {finding}")
            _show_place(folder / finding.file, finding.line, finding.column)
        if not findings:
            render.line("no problems found")
    ctx.exit(1 if any(finding.level == "error" for finding in findings) else 0)


def _show_place(file: Path, line: int | None, column: int | None) -> None:
    """Print a line of a file with a caret under a column, both cut to the width of a screen."""
    if line is None or column is None or not file.is_file():
        return
    text = file.read_text(encoding="utf-8", errors="replace").splitlines()[line - 1 : line]
    if text:
        start = max(0, column - _CARET_CHARS // 2)
        render.line(f"    {text[0][start : start + _CARET_CHARS]}")
        render.line(f"    {' ' * (column - 1 - start)}^")


@click.command(name="try")
@shipped_pack
@question_argument
@click.option(
    "--watch", is_flag=True, help="Answer again whenever a file of the pack or the question changes."
)
@as_json
def try_pack(pack: str, question: str, watch: bool, as_json: bool) -> None:
    """Apply a pack's rules to one question: facts, rules and why, the floor, the lines of the prompt.

    No daemon and no model are needed. The question is an AuthZEN evaluation or a flat situation.
    """
    folder = pack_files.find(pack, data_path("prompts"))
    if watch and question == "-":
        raise click.UsageError("--watch cannot read the question from standard input: give a file")
    if not watch:
        _try(folder, question, as_json)
        return
    for _ in _changes(folder, question):
        click.clear()
        try:
            _try(folder, question, as_json)
        except (PackError, RequestError, click.UsageError) as error:
            message = error.format_message() if isinstance(error, click.UsageError) else str(error)
            render.lines(paragraph(message))
        render.line("", stderr=True)
        render.line("watching for changes; end with Ctrl-C", stderr=True)


def _consulted(pack: Pack, evaluation: Evaluation) -> tuple[Consulted, ...]:
    """What the sources of the pack say now."""
    if not pack.manifest.sources:
        return ()
    from thor_policy.sources.kinds import Reach, consult  # few packs have sources

    return consult(pack.manifest.sources, evaluation, folder=pack.path, reach=Reach())


def _try(folder: Path, question: str, as_json: bool) -> None:
    pack, evaluation = pack_files.load(folder), _evaluation(read_question(question))
    entries = _consulted(pack, evaluation)
    floor, traces = pack.book.trace(evaluation, time.time(), entries)
    answer = _answer(pack, floor)
    prompt = "" if pack.rules_only or floor.final else pack.question(evaluation, floor.facts)
    if as_json:
        shown = {"floor": floor, "answer": answer, "rules": traces, "prompt": prompt}
        render.as_json(msgspec.to_builtins(shown))
        return
    render.line(f"{pack.info.name} {pack.info.version}")
    render.line("")
    if floor.facts:
        facts = [name for name in pack.manifest.facts if name in floor.facts]
        render.pairs({name: _shown(floor.facts[name]) for name in facts}, title="facts")
        render.line("")
    failed = {name: message for name, message in floor.errors.items() if name.startswith("fact:")}
    if failed:
        render.pairs(
            {name.removeprefix("fact:"): text for name, text in failed.items()}, title="failed facts"
        )
        render.line("")
    for trace in traces:
        _show_rule(trace)
    render.line("")
    shown = {"answer": answer, "because": floor.because, "risk": floor.risk}
    if floor.time_used is not None:
        shown["time"] = render.time_used(floor.time_used)
    render.pairs(shown)
    if prompt:
        render.line("")
        render.pairs({"": prompt}, title="what the model reads")


def _show_rule(trace: RuleTrace) -> None:
    mark = {"fired": "fired ", "not": "      ", "failed": "FAILED"}[trace.state]
    rule = trace.rule
    render.line(f"{mark}  {rule.id}: {rule.outcome}{' (final)' if rule.final else ''}")
    if trace.error:
        render.line(f"          {trace.error}")
    if trace.state == "fired" or len(trace.parts) == 1:
        render.line(f"          when {_one_line(rule.when)}")
        return
    for part in trace.parts:
        if part.value is not True:
            render.line(f"          {_shown(part.value) if part.error is None else 'failed'}: {part.text}")


def _answer(pack: Pack, floor: Floor) -> str:
    if floor.missing:
        return f"{floor.outcome}, fields_missing: {', '.join(floor.missing)}"
    if floor.errors:
        failed = f"rule_error in {', '.join(floor.errors)}"
        return f"{floor.outcome}, {failed}" if floor.final else f"at least {floor.outcome} ({failed})"
    if floor.final:
        return f"{floor.outcome}, by rule"
    return f"{floor.outcome}, or what is stricter: the model decides"


def _changes(folder: Path, question: str) -> Iterator[None]:
    """One item at first, and one whenever a file of the pack or of the question has changed."""
    watched = [folder / name for name in pack_files.FILES]
    if not question.lstrip().startswith("{"):
        watched.append(Path(question))
    before: list[int] | None = None
    while True:
        now = [path.stat().st_mtime_ns if path.exists() else 0 for path in watched]
        if now != before:
            before = now
            yield
        time.sleep(_WATCH_EVERY_S)


@click.command()
@click.argument("before", metavar="NAME|DIR", help="The pack in use now.", shell_complete=completion.packs)
@click.argument("after", metavar="NAME|DIR", help="The changed pack.", shell_complete=completion.packs)
@click.option(
    "--suite",
    "suites",
    metavar="NAME|FILE",
    multiple=True,
    help="Suite whose answers are compared; repeatable. [default: those of both packs]",
)
@as_json
def diff(before: str, after: str, suites: tuple[str, ...], as_json: bool) -> None:
    """Show what differs between two packs, and which answers by rule to their suites change.

    No model is asked: `whatif` and `compare` show what it changes.
    """
    old, new = load(before), load(after)
    scenarios = [
        scenario
        for suite in runner.find(suites, new.path)
        if suites or suite.pack in (old.info.name, new.info.name)
        for scenario in suite.scenarios
    ]
    changed = list(pack_diff.changes(old, new))
    answers = list(pack_diff.changed_answers(old, new, scenarios))
    if as_json:
        shown = {"changes": changed, "scenarios": len(scenarios), "answers": answers}
        render.as_json(msgspec.to_builtins(shown))
        return
    for change in changed:
        state = "removed" if change.after is None else "added" if change.before is None else "changed"
        render.line(f"{state} {change.kind} {change.name}")
        for sign, text in (("-", change.before), ("+", change.after)):
            if text is not None:
                render.line(f"  {sign} {text}")
    if not changed:
        render.line("the packs have the same parts")
    render.line("")
    render.line(f"{len(answers)} of {len(scenarios)} answers by rule change")
    if answers:
        columns = ("scenario", "now", "before", "after", "title")
        rows = [[getattr(answer, column) for column in columns] for answer in answers]
        render.table(columns, rows, clipped=(2, 3, 4))


@click.command(name="render")
@configured("model", "models_dir", "adapter")
@shipped_pack
@question_argument
@as_json
def render_prompt(config: Config, pack: str, question: str, as_json: bool) -> None:
    """Print the exact prompt of one request, in the rendering of the adapter in the settings."""
    from thor_policy.engine.native import Vocabulary

    loaded = load(pack)
    evaluation = _evaluation(read_question(question))
    floor = loaded.book.apply(evaluation, time.time(), sources=_consulted(loaded, evaluation))
    model = catalog.resolve(config.model, config.models_dir)
    adapter = find_adapter(config.adapter, 1.0, config, model.name)
    brief = adapter is not None and adapter.adapter.rendering == "brief"
    prefix = loaded.brief_prefix if brief else loaded.prefix
    text = loaded.brief_question(evaluation, floor) if brief else loaded.question(evaluation, floor.facts)
    vocabulary = Vocabulary(model.path, vocab_only=True)
    prefix_tokens, suffix_tokens = vocabulary.question(prefix, text)
    shown = {
        "prefix": vocabulary.text_of(prefix_tokens, special=True),
        "suffix": vocabulary.text_of(suffix_tokens, special=True),
        "prefix_tokens": prefix_tokens,
        "suffix_tokens": suffix_tokens,
    }
    if as_json:
        render.as_json(shown)
        return
    sys.stdout.write(visible(f"{shown['prefix']}{shown['suffix']}\n", lines=True))
    render.line(
        f"prefix {len(prefix_tokens)} tokens, suffix {len(suffix_tokens)} tokens; "
        f"rules: {_answer(loaded, floor)}",
        stderr=True,
    )


def load(name_or_dir: str) -> Pack:
    """The pack of that name or in that directory. Raises PackError."""
    return pack_files.load(pack_files.find(name_or_dir, data_path("prompts")))


def _evaluation(fields: Json) -> Evaluation:
    return evaluation_from(question_fields(fields))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(value: Json) -> str:
    return msgspec.json.encode(value).decode()
