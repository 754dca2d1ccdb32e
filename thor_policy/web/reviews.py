"""Pages of reviews: the queue of a reviewer, with the keys of `thorpolicy review`.

Owns the review of each browser session. Invariant: it is the same `review.session.Session` as in the
terminal, so a decision is shown only under a lease, and each verdict is recorded before the next is shown;
every record goes to the daemon as one of the visitor. A form says which decision it is about, so a page that
is out of date changes nothing. The event loop's thread; the steps of a review run on others, one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

from starlette.responses import Response

from thor_policy.core import records
from thor_policy.core.errors import RequestError, ThorPolicyError, Unreachable
from thor_policy.core.status import PackStatus
from thor_policy.gateway.problems import Problem
from thor_policy.journal.reader import Reader, claim_in
from thor_policy.policy.pack_files import PackFiles
from thor_policy.review import queue as review_queue
from thor_policy.review.agreement import Report
from thor_policy.review.queue import JournalQueue, QueueName
from thor_policy.review.session import Item, Session
from thor_policy.web.sessions import Session as BrowserSession
from thor_policy.web.visits import Visit, go_to

T = TypeVar("T")

QUEUES: tuple[QueueName, ...] = get_args(QueueName)
VERDICTS: tuple[records.Judgement, ...] = get_args(records.Judgement)
#: The queues that hold no decisions of tests, as in the terminal.
_WITHOUT_TESTS = ("unreviewed", "doubts")
#: Seconds that a record of a review may take.
_RECORD_S = 20


class Review:
    """One reviewer's session over one queue. `message` is what the last step did, for the next page."""

    def __init__(self, session: Session, queue: QueueName, reader: Reader) -> None:
        self.session = session
        self.queue = queue
        self.message = ""
        self._reader = reader
        self._turn = asyncio.Lock()

    async def do(self, step: Callable[[Session], T]) -> T:
        """The result of a step, on another thread; steps follow each other. Raises ThorPolicyError."""
        async with self._turn:
            return await asyncio.to_thread(step, self.session)

    async def close(self) -> None:
        """Release the decision that is shown, and the journal."""
        with suppress(ThorPolicyError):
            await self.do(lambda session: session.close())
        self._reader.close()


class Reviews:
    """The reviews of all browser sessions."""

    def __init__(self) -> None:
        self._of_session: dict[BrowserSession, Review] = {}

    async def page(self, visit: Visit) -> Response:
        """GET: the decision that is shown, or where to begin."""
        await visit.need("review")
        review = self._of_session.get(visit.session)
        if review is None:
            return visit.page("review_start.html", queues=QUEUES)
        item = review.session.item
        full = visit.query.get("full") == "yes"
        message, review.message = review.message, ""
        texts = {} if item is None else await _texts(visit, item)
        return visit.page(
            "review.html",
            review=review,
            session=review.session,
            item=item,
            claim=claim_in(item.event) if item is not None else None,
            choices=_choices(item, texts.get("labels", ())) if item is not None else [],
            clauses=texts.get("clauses", {}),
            full=full,
            message=message,
        )

    async def begin(self, visit: Visit) -> Response:
        """POST: open a queue."""
        form = await visit.form()
        await visit.need("review")
        queue = form.get("queue", "")
        if queue not in QUEUES:
            raise Problem(400, "bad_request", f"queue: must be one of {', '.join(QUEUES)}")
        await self._end(visit.session)
        loop = asyncio.get_running_loop()

        def record(record: records.Record) -> str:
            """Called on the thread of a step."""
            sent = asyncio.run_coroutine_threadsafe(visit.record(record), loop)
            try:
                recorded_id: str = sent.result(_RECORD_S)["recorded"]["id"]
            except TimeoutError as error:
                raise Unreachable("the daemon did not reply in time") from error
            return recorded_id

        def open_queue() -> Review:
            reader = visit.parts.open_reader(any_thread=True)
            try:
                picks = review_queue.picks(
                    reader, visit.reviewer, queue=queue, tests=False if queue in _WITHOUT_TESTS else None
                )
                session = Session(picks, JournalQueue(reader, record), visit.reviewer)
                session.open()
            except BaseException:
                reader.close()
                raise
            return Review(session, queue, reader)

        review = await asyncio.to_thread(open_queue)
        self._of_session[visit.session] = review
        if not visit.session.closing:
            visit.session.closing.append(lambda: self._end(visit.session))
        return go_to("/review")

    async def step(self, visit: Visit) -> Response:
        """POST: a verdict, skip, undo, back, another reviewer, a search, or the end."""
        form = await visit.form()
        review = self._of_session.get(visit.session)
        if review is None:
            return go_to("/review")
        name = form.get("step", "")
        if name == "quit":
            await self._end(visit.session)
            return go_to("/review")
        step = _STEPS.get(name)
        if step is None:
            raise Problem(400, "bad_request", f"step: must be one of {', '.join(_STEPS)}")
        try:
            review.message = await review.do(lambda session: step(session, form))
        except RequestError as error:
            if error.code == "unauthorized":
                raise
            review.message = f"not recorded: {error.message}"
        return go_to("/review")

    async def figures(self, visit: Visit) -> Response:
        """GET: agreement, accuracy and reviewers."""
        await visit.need("review")

        def read(reader: Reader) -> Report:
            return JournalQueue(reader, _refuse).report()

        return visit.page("review_figures.html", report=await visit.read(read))

    async def _end(self, session: BrowserSession) -> None:
        review = self._of_session.pop(session, None)
        if review is not None:
            await review.close()


def _refuse(_record: records.Record) -> str:
    raise RequestError("bad_request", "figures record nothing")


# ---------------------------------------------------------------- steps: each returns what it did, in words


def _judge(session: Session, form: dict[str, str]) -> str:
    verdict: Any = form.get("verdict", "")
    if verdict not in VERDICTS:
        raise RequestError("bad_request", f"verdict: must be one of {', '.join(VERDICTS)}")
    about = _shown(session, form)
    decision, reasoning = form.get("decision", "").strip() or None, form.get("reasoning", "").strip() or None
    if verdict in ("correct_decision", "correct_both") and decision is None:
        raise RequestError("bad_request", "decision: choose the right outcome")
    if verdict in ("correct_reasoning", "correct_both") and reasoning is None:
        raise RequestError("bad_request", "reasoning: type what it should have been")
    session.judge(verdict, decision=decision, reasoning=reasoning)
    return f"recorded: {verdict.replace('_', ' ')}{f', {decision}' if decision else ''} ({about})"


def _skip(session: Session, form: dict[str, str]) -> str:
    about = _shown(session, form)
    session.skip()
    return f"skipped ({about})"


def _give(session: Session, form: dict[str, str]) -> str:
    about, to = _shown(session, form), form.get("to", "").strip()
    if not to:
        raise RequestError("bad_request", "to: type the name of a reviewer")
    session.delegate(to)
    return f"assigned to {to} ({about})"


def _undo(session: Session, _form: dict[str, str]) -> str:
    last = session.undo()
    if last is None:
        return "nothing to undo"
    about = session.picks[last.place].decision_id[-8:]
    return f"undone: {(last.verdict or last.step).replace('_', ' ')} ({about})"


def _back(session: Session, _form: dict[str, str]) -> str:
    session.back()
    return "back"


def _search(session: Session, form: dict[str, str]) -> str:
    text = form.get("text", "").strip()
    if not text:
        raise RequestError("bad_request", "text: type what to look for")
    return "" if session.find(text) else f"no decision of this queue contains {text!r}"


def _next(session: Session, _form: dict[str, str]) -> str:
    if session.item is None:
        session.open()
    return ""


_STEPS: dict[str, Callable[[Session, dict[str, str]], str]] = {
    "judge": _judge,
    "skip": _skip,
    "undo": _undo,
    "back": _back,
    "give": _give,
    "search": _search,
    "next": _next,
}


def _shown(session: Session, form: dict[str, str]) -> str:
    """The end of the id of the decision that is shown. Raises RequestError if the form is about another."""
    item = session.item
    if item is None or item.decision_id != form.get("decision_id"):
        raise RequestError("conflict", "the page was out of date; this is the decision that is shown now")
    return item.decision_id[-8:]


# ---------------------------------------------------------------- what a page shows of a decision


def _choices(item: Item, labels: Sequence[str]) -> list[tuple[int, str]]:
    """The outcomes except the served one, numbered from the loosest; empty for more than nine."""
    names = item.labels or labels
    if len(names) > 9:
        return []
    return [(number, name) for number, name in enumerate(names, 1) if name != item.decision["decision"]]


async def _texts(visit: Visit, item: Item) -> dict[str, Any]:
    """Labels and clauses of the pack of a decision, if a resident pack is exactly this version."""
    version = item.decision["prompt_version"] or ""
    try:
        packs = (await visit.status()).packs
    except Problem:
        return {}
    pack = next((pack for pack in packs if version.endswith(f"+{pack.sha256[:12]}")), None)
    return {} if pack is None else await asyncio.to_thread(_read_texts, pack)


def _read_texts(pack: PackStatus) -> dict[str, Any]:
    files = PackFiles(Path(pack.path))
    if files.sha256 != pack.sha256 or "pack.yaml" not in files.values:
        return {}
    return {
        "labels": [outcome.label for outcome in files.values["pack.yaml"].outcomes],
        "clauses": files.values.get("clauses.yaml") or {},
    }
