"""Searches: which subjects, resources or actions the rules would allow, without a model.

Owns the thread that tries them, and the tokens of their pages. Invariant: what is listed would be allowed
finally by the rules of now; a page is answered only when the event that records it is committed; a token is
good only for the caller and the search that it was made for. Searches wait for each other, and no decision
waits for one. Own thread; `submit` on the main thread.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from msgspec import Struct

from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.requests import Caller, Evaluation, Json
from thor_policy.core.results import JobDone
from thor_policy.core.searches import Search
from thor_policy.core.sources import Consulted
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.policy.entities import Named, named_by
from thor_policy.policy.pack import Pack
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.source import Source, SourceError, entries_of, failure_of

log = logging.getLogger(__name__)

#: Most results of a page, and how long one page may take, in seconds: then it ends with a token.
MAX_RESULTS, PAGE_S = 10_000, 4.0
#: Searches that may wait.
MAX_WAITING = 64


class OpenedSource(NamedTuple):
    """A source of a pack, and how to open it; `open` raises ConfigError."""

    name: str
    spec: SourceSpec
    open: Callable[[], Source]


class _Place(Struct, frozen=True, array_like=True):
    """What a token says: the last candidate that was tried, and the limit of the first request."""

    after: str
    limit: int | None


@dataclass(frozen=True)
class Job:
    """A search of `caller` over `pack`, with the sources that it has; `at` is Unix time, of its receipt."""

    search: Search
    pack: Pack
    sources: Sequence[OpenedSource]
    caller: Caller
    ticket: int
    search_id: str
    at: float
    received_ns: int


class _Page(NamedTuple):
    """The results of one page; `after` is the last candidate that was tried if there are more, else None."""

    results: list[str]
    after: str | None
    tried: int


class Searching:
    """Answers searches; `digest` is the journal's keyed digest, `record` hands over the event of each.

    `on_done` gets each answer, on the thread of searches.
    """

    def __init__(
        self,
        on_done: Callable[[int, JobDone], None],
        *,
        digest: Callable[[bytes], str],
        record: Callable[[Event], None],
    ) -> None:
        self._on_done = on_done
        self._digest = digest
        self._record = record
        self._named: tuple[str, Named] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._waiting = 0
        #: Searches that were answered and that were refused or failed; candidates that were tried.
        self.counters = Counter(done=0, failed=0, tried=0)

    def submit(self, job: Job) -> None:
        """Queue a search; returns at once. Raises RequestError `busy`."""
        if self._waiting >= MAX_WAITING:
            raise RequestError("busy", f"{MAX_WAITING} searches wait already", retry_after_ms=1_000)
        self._waiting += 1
        self._thread.submit(self._do, job)

    def stop(self) -> None:
        """Drop what waits; the search that runs ends."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _do(self, job: Job) -> None:
        try:
            self._on_done(job.ticket, self._answer(job))
            self.counters["done"] += 1
        except RequestError as error:
            self.counters["failed"] += 1
            self._on_done(job.ticket, JobDone(error))
        except Exception:
            self.counters["failed"] += 1
            log.exception("a search failed with an unexpected error")
            message = "the search failed; the daemon's log says why"
            self._on_done(job.ticket, JobDone(RequestError("internal", message)))
        finally:
            self._waiting -= 1

    # ------------------------------------------------------------ pages

    def _answer(self, job: Job) -> JobDone:
        """One page, and what records it. Raises RequestError."""
        search, precedents = job.search, job.pack.manifest.precedents
        if precedents is not None and precedents.rules:
            raise RequestError(  # without them a rule may allow what it would not with them
                "bad_request",
                f"pack: the rules of {job.pack.info.name} read precedents, and a search looks none up; ask "
                "each question by itself",
            )
        content = msgspec.json.encode(
            ["search", job.caller.who, search.target, search.evaluation, job.pack.info.name],
            order="deterministic",
        )
        place = self._place(search.token, content) if search.token else _Place("", search.limit)
        if search.token and search.limit is not None and search.limit != place.limit:
            raise _wrong_token()
        page = self._page(job, place)
        self.counters["tried"] += page.tried
        token = "" if page.after is None else self._token(_Place(page.after, place.limit), content)
        event = events.search_event(
            job.search_id,
            search,
            caller=job.caller,
            pack=job.pack.info,
            at=job.at,
            question=self._digest(content),
            tried=page.tried,
            listed=len(page.results),
            more=page.after is not None,
            ticket=job.ticket,
        )
        answer: dict[str, Json] = {
            "search_id": job.search_id,
            "results": [_entity(search, name) for name in page.results],
            "page": {"next_token": token, "count": len(page.results)},
        }
        return JobDone(answer, record=lambda: self._record(event))

    def _place(self, token: str, content: bytes) -> _Place:
        """What a token says. Raises RequestError if it was not made for this search and caller."""
        payload, _, mac = token.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(payload, content).encode()):
            raise _wrong_token()
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(payload), type=_Place)
        except (binascii.Error, msgspec.MsgspecError, ValueError):
            raise _wrong_token() from None

    def _token(self, place: _Place, content: bytes) -> str:
        payload = base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()
        return f"{payload}.{self._mac(payload, content)}"

    def _mac(self, payload: str, content: bytes) -> str:
        return self._digest(payload.encode() + b"." + content)

    # ------------------------------------------------------------ trying

    def _page(self, job: Job, place: _Place) -> _Page:
        """Try candidates behind a place until the page is full, or its time is over."""
        search = job.search
        ends_ns = job.received_ns + int(PAGE_S * 1e9)
        candidates = self._candidates(job, ends_ns)
        most = MAX_RESULTS if place.limit is None else min(place.limit, MAX_RESULTS)
        results: list[str] = []
        after, tried = place.after, 0
        fixed = [source for source in job.sources if source.spec.of != search.target]
        known = [entry for source in fixed for entry in _consulted(source, search.evaluation, ends_ns)]
        varying = [source for source in job.sources if source.spec.of == search.target]
        for name in candidates[bisect_right(candidates, place.after) if place.after else 0 :]:
            if time.monotonic_ns() >= ends_ns:
                return _Page(results, after, tried)
            evaluation = search.candidate(name)
            own = [entry for source in varying for entry in _consulted(source, evaluation, ends_ns)]
            floor = job.pack.book.apply(evaluation, job.at, sources=[*known, *own])
            tried += 1
            if floor.final and floor.outcome == job.pack.loosest:
                if len(results) == most:
                    return _Page(results, after, tried)
                results.append(name)
            after = name
        return _Page(results, None, tried)

    def _candidates(self, job: Job, ends_ns: int) -> list[str]:
        """The names that are tried, sorted; none where the pack and its sources know an entity not at all."""
        named, search = self._names_of(job.pack), job.search
        evaluation = search.evaluation
        for of, entity in (("subject", evaluation.subject), ("resource", evaluation.resource)):
            if not named.knows_type(of, entity.type):
                return []
            known = self._directory(job, named, of, entity.type, ends_ns)
            if search.target == of:
                candidates = known | named.listed(of, entity.type)
            elif known and entity.id not in known:
                return []
        return sorted(named.actions if search.target == "action" else candidates)

    def _directory(self, job: Job, named: Named, of: str, type: str, ends_ns: int) -> frozenset[str]:
        """The ids of a type that tables and sources list; empty if none of them does."""
        ids = set(named.tables.get(type, ()))
        for source in job.sources:
            spec = source.spec
            if spec.of == of and (not spec.types or type in spec.types):
                try:
                    ids.update(source.open().listing(type, ends_ns))
                except (SourceError, ConfigError) as error:
                    log.info("the source %s lists nothing: %s", source.name, error)
        return frozenset(ids)

    def _names_of(self, pack: Pack) -> Named:
        if self._named is None or self._named[0] != pack.info.sha256:
            self._named = pack.info.sha256, named_by(pack)
        return self._named[1]


def _consulted(source: OpenedSource, evaluation: Evaluation, ends_ns: int) -> tuple[Consulted, ...]:
    """What a source says of its part of a question; nothing if it does not describe it."""
    if not source.spec.describes(evaluation):
        return ()
    entity = evaluation.subject if source.spec.of == "subject" else evaluation.resource
    deadline_ns = min(ends_ns, time.monotonic_ns() + source.spec.timeout_ms * 1_000_000)
    try:
        answer = source.open().look_up(entity.type, entity.id, deadline_ns)
    except (SourceError, ConfigError) as error:
        return (failure_of(source.name, source.spec, str(error), 0.0),)
    return entries_of(source.name, source.spec, answer, 0.0)


def _entity(search: Search, name: str) -> dict[str, Json]:
    if search.target == "action":
        return {"name": name}
    entity = search.evaluation.subject if search.target == "subject" else search.evaluation.resource
    return {"type": entity.type, "id": name}


def _wrong_token() -> RequestError:
    return RequestError(
        "bad_request",
        "page.token: was not made for this search; send the request as before, with the newest next_token",
    )
