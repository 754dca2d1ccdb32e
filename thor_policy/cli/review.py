"""`review`: people judge decisions, on a full screen or line by line, and see the figures."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import click
import msgspec

from thor_policy.cli import page_text, render, review_page
from thor_policy.cli.options import as_json, configured, decision_filters, finite, with_tests
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.escape import visible
from thor_policy.daemon import journal_access, loading
from thor_policy.review import queue as review_queue
from thor_policy.review import ranking
from thor_policy.review.agreement import Report
from thor_policy.review.queue import JournalQueue, PackTexts
from thor_policy.review.session import Item, Session

PLAIN_HELP = """\
a                   accept
d OUTCOME           the outcome is wrong; this is right
r TEXT              the reasoning is wrong; this is right
b OUTCOME TEXT      both are wrong
s                   skip
u                   undo the last step
p                   back to the previous decision
g NAME              give this decision to another reviewer
/TEXT               the next decision that contains the text
z                   show long values in full, or short again
t                   figures
q                   quit"""


@click.command()
@configured("state_dir", "endpoint", "pack")
@click.option(
    "--queue",
    type=click.Choice(get_args(review_queue.QueueName)),
    default="unreviewed",
    show_default=True,
    help="Which decisions: unreviewed, put under review, unreviewed where the model doubts the floor, found "
    "wrong, all, with differing verdicts, or assigned to you.",
)
@click.option(
    "--reviewer", metavar="NAME", help="Your name as a reviewer; default: your user name on this machine."
)
@click.option(
    "--order",
    "by",
    type=click.Choice(get_args(review_queue.Order)),
    default="priority",
    show_default=True,
    help="Order of unreviewed decisions.",
)
@click.option(
    "--random-share",
    type=click.FloatRange(0, 1),
    callback=finite,
    default=ranking.RANDOM_SHARE,
    show_default=True,
    help="Share of decisions in the random sample, whatever their priority.",
)
@click.option(
    "--second-share",
    type=click.FloatRange(0, 1),
    callback=finite,
    default=ranking.SECOND_SHARE,
    show_default=True,
    help="Share of decisions that other reviewers judge again, blind to earlier verdicts.",
)
@click.option(
    "--verdicts",
    type=click.IntRange(1, 10),
    default=2,
    show_default=True,
    help="Number of verdicts for each decision of the second share.",
)
@decision_filters
@with_tests
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), help="At most this many decisions of the queue."
)
@click.option("--assign", "assignee", metavar="NAME", help="Assign the queue to this reviewer, then exit.")
@click.option("--plain", is_flag=True, help="Work line by line, for scripts and screen readers.")
@click.option(
    "--stats", is_flag=True, help="Print figures only: agreement, accuracy, reviewers; --since applies."
)
@as_json
@click.pass_context
def review(
    ctx: click.Context,
    /,
    config: Config,
    queue: review_queue.QueueName,
    reviewer: str | None,
    by: review_queue.Order,
    random_share: float,
    second_share: float,
    verdicts: int,
    limit: int | None,
    assignee: str | None,
    plain: bool,
    stats: bool,
    tests: bool,
    as_json: bool,
    type_: str | None,
    **filters: Any,
) -> None:
    """Review decisions: one key for each verdict, recorded at once.

    Decisions of tests are in the queues `unreviewed` and `doubts` only with --tests.

    \b
    --json prints the queue, or with --stats the figures.
    With --plain, exit status 1 if a line was not understood or was refused.
    """
    name = reviewer or _user()
    with journal_access.open_reader(config) as reader:
        reviews = JournalQueue(reader, partial(journal_access.submit_record, config))
        if stats:
            with render.working("reading the reviews"):
                report = reviews.report(filters["since"])
            _show_report(report, as_json=as_json)
            return
        with render.working("reading the queue"):
            picks = review_queue.picks(
                reader,
                name,
                queue=queue,
                by=by,
                random_share=random_share,
                second_share=second_share,
                verdicts=verdicts,
                type=type_,
                tests=None if tests or queue not in ("unreviewed", "doubts") else False,
                **filters,
            )[:limit]
        if as_json:
            render.as_json(msgspec.to_builtins(picks))
        elif assignee is not None:
            reviews.assign(picks, to=assignee, by=name)
            render.line(f"assigned to {visible(assignee)}: {len(picks)} decisions")
        elif not picks:
            render.line("there is nothing to review")
        else:
            session, view = Session(picks, reviews, name), _View(_pack_texts(config), reviews)
            if plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
                ctx.exit(0 if _LineSession(session, view).run(sys.stdin) else 1)
            from thor_policy.cli.review_screen import Screen  # takes 0.1 s to import

            Screen(session, queue, page=view.page, labels=view.labels, figures=view.figures).run()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # users without a name occur in containers
        raise click.UsageError(
            "--reviewer: your user has no name on this machine; give one with --reviewer NAME"
        ) from error


def _pack_texts(config: Config) -> PackTexts:
    try:
        return PackTexts(loading.load_pack(config))
    except ThorPolicyError:  # decisions of a pack that cannot be loaded are shown without its texts
        return PackTexts(None)


def _show_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        render.as_json(msgspec.to_builtins(report))
    else:
        for line in review_page.figures(report):
            click.echo(line)


class _View:
    """A decision, and the figures of all reviews, as lines of text."""

    def __init__(self, texts: PackTexts, reviews: JournalQueue) -> None:
        self._texts, self._reviews = texts, reviews
        self.labels = texts.labels

    def page(self, item: Item, width: int, full: bool) -> list[page_text.Line]:
        return review_page.page(item, width=width, clauses=self._texts.clauses(item), full=full)

    def plain(self, item: Item, full: bool) -> list[str]:
        lines = review_page.page(item, clauses=self._texts.clauses(item), full=full, plain=True)
        return [line for line in page_text.as_text(lines) if line]

    def figures(self) -> list[str]:
        return review_page.figures(self._reviews.report())


class _LineSession:
    """A session that reads commands line by line."""

    def __init__(self, session: Session, view: _View) -> None:
        self._session, self._view = session, view
        self._full = False
        self._all_accepted = True

    def run(self, lines: Iterator[str]) -> bool:
        """Execute lines until `q` or the end; False if any of them was unknown or was refused."""
        session = self._session
        try:
            session.open()
            self._show()
            for line in lines:
                command = line.strip()
                if command == "q":
                    break
                if command:
                    self._execute(command[:1], command[1:].strip())
        finally:
            session.close()
        counts = f"{session.count('judged')} judged, {session.count('skipped')} skipped"
        render.line(f"{counts}, {session.passed_over} taken by other reviewers")
        return self._all_accepted

    def _show(self) -> None:
        item, session = self._session.item, self._session
        if item is None:
            render.line("end of the queue")
            return
        position = "first" if session.place == 0 else "next"
        render.line(
            f"{session.place + 1} of {len(session.picks)}, {position} because: {visible(item.pick.why)}"
        )
        for line in self._view.plain(item, self._full):
            click.echo(line)

    def _execute(self, key: str, rest: str) -> None:
        steps: dict[str, Callable[[str], str | None]] = {
            "a": lambda _: self._judge("accept"),
            "d": lambda outcome: self._judge("correct_decision", outcome),
            "r": lambda text: self._judge("correct_reasoning", "", text),
            "b": lambda rest: self._judge("correct_both", *_outcome_and_text(rest)),
            "s": lambda _: self._skip(),
            "u": lambda _: self._undo(),
            "p": lambda _: "back" if self._session.back() else None,
            "g": self._delegate,
            "/": self._search,
            "z": lambda _: self._toggle_full(),
        }
        if key in ("t", "?"):
            for line in self._view.figures() if key == "t" else PLAIN_HELP.splitlines():
                click.echo(line)
            return
        try:
            if key not in steps:
                raise click.UsageError(f"{key!r} is no command; ? lists them")
            render.line(steps[key](rest) or "done")
        except (ThorPolicyError, click.UsageError) as error:
            self._all_accepted = False
            render.line(visible(str(error)), stderr=True)
            if self._session.item is not None:
                return
            self._session.open()
        self._show()

    def _judge(self, verdict: records.Judgement, decision: str = "", reasoning: str = "") -> str:
        if verdict in ("correct_decision", "correct_both"):
            item = self._session.item
            labels = self._view.labels(item) if item is not None else ()
            if not decision or (labels and decision not in labels):
                known = f"one of {', '.join(map(visible, labels))}" if labels else "an outcome"
                raise click.UsageError(f"say which outcome is right: {known}")
        return f"recorded as {self._session.judge(verdict, decision=decision, reasoning=reasoning)}"

    def _skip(self) -> str:
        self._session.skip()
        return "skipped"

    def _undo(self) -> str:
        last = self._session.undo()
        return f"undone: {last.verdict or last.step}" if last else "nothing to undo"

    def _delegate(self, to: str) -> str:
        if not to:
            raise click.UsageError("name the reviewer: g NAME")
        self._session.delegate(to)
        return f"assigned to {visible(to)}"

    def _search(self, text: str) -> str:
        if text and self._session.find(text):
            return "found"
        return f"no decision of this queue contains {visible(text)!r}"

    def _toggle_full(self) -> str:
        self._full = not self._full
        return "long values in full" if self._full else "long values cut short"


def _outcome_and_text(rest: str) -> tuple[str, str]:
    outcome, _, text = rest.partition(" ")
    return outcome, text.strip()
