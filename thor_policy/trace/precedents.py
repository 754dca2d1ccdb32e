"""Precedents: past decisions that are similar to a question, by vectors, words and fields together.

Owns the search. Invariant: overturned, superseded and questioned decisions, those in quarantine, claims and
those of tests are no precedents; a filter holds for every result; what could not be compared is named in the
answer. One thread uses a `Recall`, on a reader of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from typing import Any

from msgspec import structs

from thor_policy.core.errors import JournalError, RequestError
from thor_policy.core.precedents import Precedent
from thor_policy.core.recall import Embedder, Filters, Ranked, Similar, SimilarQuery, Weights
from thor_policy.core.requests import Evaluation
from thor_policy.core.situations import situation_in, situation_of
from thor_policy.journal import precedent_queries, vectors
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.trace_queries import Connection
from thor_policy.policy.prompt_text import show
from thor_policy.trace import precedent_index
from thor_policy.trace.precedent_index import PrecedentIndex
from thor_policy.trace.precedent_ranking import Candidate, ranked, statistics

#: Candidates by similarity that are ranked, by words and by fields; and by similarity for a decision that
#: waits.
BY_SIMILARITY, BY_WORDS, BY_FIELDS, BY_SIMILARITY_ALONE = 100, 40, 100, 50
#: Words of a question that are looked up, and decisions of each, the newest.
MOST_WORDS, MOST_OF_WORD = 12, 100
#: Numbers of decisions that are no precedents, read when too many of the nearest are none.
MOST_NOT_COUNTED = 100_000
#: Changes of vectors in one page.
PAGE = 2_000
#: Most characters of the text of a result.
MOST_SHOWN_CHARS = 1_200
#: Most characters of the situation of a precedent beside a question.
MOST_LINE_CHARS = 160
_WORD = re.compile(r"\w{3,64}")


class Recall:
    """Searches the journal behind `reader`; `most` vectors are kept in memory.

    Without `embedder`, or without faiss, words and fields are compared alone; `problem` says why. `tests`:
    decisions of tests are precedents too.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        embedder: Embedder | None = None,
        problem: str | None = None,
        weights: Weights = Weights(),  # noqa: B008  it is frozen
        most: int = 1_000_000,
        tests: bool = False,
    ) -> None:
        self._reader, self._embedder = reader, embedder
        self._weights, self._tests = weights, tests
        #: Why vectors are not compared; None while they are.
        self.problem = problem or (
            precedent_index.missing() if embedder is not None else "no embedder is open"
        )
        self.index: PrecedentIndex | None = None
        if self.problem is None:
            self.index = PrecedentIndex(most)

    def step(self) -> bool:
        """Take in a page of vectors that were stored since; False if there was none. Raises JournalError."""
        if self.index is None:
            return False
        with self._reader.snapshot() as connection:
            page = vectors.changes(connection, after=self.index.change, limit=PAGE)
        self.index.add(page)
        return bool(page)

    def refresh(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Take in all vectors; `progress` gets how many there are so far. Raises JournalError."""
        while self.step():
            progress(0 if self.index is None else len(self.index))

    def search(self, query: SimilarQuery, *, now: float) -> Similar:
        """The precedents of a query. `now` is Unix time in seconds. Raises RequestError, JournalError."""
        started_ns = time.monotonic_ns()
        text, action, own = self._sought(query)
        self.step()
        with self._reader.snapshot() as connection:
            missing = self._missing(connection)
            candidates, by = self._candidates(connection, query, text, action, own)
            best = ranked(candidates, self._weights, query.k, now=now)
            best = self._with_texts(
                connection, best, {each.row["id"]: each.row["seq"] for each in candidates}
            )
        return Similar(
            precedents=tuple(best),
            statistics=statistics(best),
            by=by,
            note=missing,
            weights=structs.asdict(self._weights),
            vectors=0 if self.index is None else len(self.index),
            took_ms=round((time.monotonic_ns() - started_ns) / 1e6, 3),
        )

    def _missing(self, connection: Connection) -> str | None:
        """What could not be compared; None: all was."""
        if self.index is None:
            return f"similarity was not compared: {self.problem}"
        if vectors.newest(connection) > self.index.change:
            return f"the index is being made; {len(self.index)} vectors were compared"
        return None

    def precedents(
        self, evaluation: Evaluation, k: int, least_similarity: float, filters: Filters, *, now: float
    ) -> tuple[Precedent, ...]:
        """The precedents that go beside a question, best first, each with its line. Raises JournalError.

        Only decisions whose vectors were compared: words and fields alone may mean something else.
        """
        if self.index is None:
            return ()
        query = SimilarQuery(question=evaluation, k=k, least_similarity=least_similarity, filters=filters)
        text = situation_of(evaluation)
        self.step()
        with self._reader.snapshot() as connection:
            candidates, _ = self._candidates(connection, query, text, None, None, similarity_alone=True)
        return tuple(self._precedent(each) for each in ranked(candidates, self._weights, k, now=now))

    def _precedent(self, each: Ranked) -> Precedent:
        row, event = self._reader.recorded(each.id)
        judged = {True: ", confirmed by a person", False: ", corrected by a person", None: ""}[each.confirmed]
        situation = show(situation_in(event["private"], row), MOST_LINE_CHARS)
        return Precedent(
            id=each.id,
            outcome=each.outcome,
            how=each.how,
            similarity=each.similarity,
            line=f"similar case: {each.outcome}{judged}: {situation}",
        )

    # ------------------------------------------------------------ what is sought

    def _sought(self, query: SimilarQuery) -> tuple[str, str | None, Record | None]:
        """The text that is compared, the action if there is one, and the decision that the query names."""
        given = [part for part in (query.id, query.question, query.text) if part is not None]
        if len(given) != 1:
            raise RequestError("bad_request", "record: give one of id, question and text")
        if query.question is not None:
            return situation_of(query.question), query.question.action.name, None
        if query.text is not None:
            return query.text, None, None
        try:
            row, event = self._reader.recorded(self._reader.resolve(query.id or ""))
        except JournalError as error:
            raise RequestError("not_found", f"record.id: {error}") from None
        return situation_in(event["private"], row), row["action"], row

    # ------------------------------------------------------------ candidates

    def _candidates(
        self,
        connection: Connection,
        query: SimilarQuery,
        text: str,
        action: str | None,
        own: Record | None,
        *,
        similarity_alone: bool = False,
    ) -> tuple[list[Candidate], tuple[str, ...]]:
        """All that may be a precedent, each with what led to it; and what was compared.

        `similarity_alone`: neither words nor fields lead to any, which takes half of the time.
        """
        without = [] if own is None else [int(own["seq"])]
        vector = self._vector(connection, text, own)
        rows: dict[int, Record] = {}
        near: dict[int, float] = {}
        by = []
        if vector is not None:
            by.append("similarity")
            wanted = max(BY_SIMILARITY_ALONE if similarity_alone else BY_SIMILARITY, query.k)
            near = dict(self._nearest(connection, vector, query.filters, wanted, without, rows))
        if similarity_alone:
            least = query.least_similarity
            return [Candidate(rows[seq], cosine, None) for seq, cosine in near.items() if cosine >= least], (
                "similarity",
            )
        shares = self._with_words(connection, text, query.filters, without, rows)
        if shares:
            by.append("words")
        if vector is not None and (further := [seq for seq in shares if seq not in near]):
            near |= self._cosines(connection, vector, further)
        sought = set(near) | set(shares)
        if vector is not None and query.least_similarity > 0:
            sought = {seq for seq in sought if near.get(seq, -1.0) >= query.least_similarity}
        elif len(sought) < query.k:
            by.append("fields")
            sought |= set(self._by_fields(connection, query.filters, action, without, rows))
        return [Candidate(rows[seq], near.get(seq), shares.get(seq)) for seq in sorted(sought)], tuple(by)

    def _vector(self, connection: Connection, text: str, own: Record | None) -> Any:
        """The vector of what is sought: the stored one of a decision, else a new one; None: there is none."""
        if self.index is None or self._embedder is None or not text:
            return None
        if own is not None and (stored := vectors.of_decision(connection, own["decision_id"])):
            return self.index.decode(stored)
        return self._embedder.embed(text)

    def _nearest(
        self,
        connection: Connection,
        vector: Any,
        filters: Filters,
        wanted: int,
        without: Sequence[int],
        rows: dict[int, Record],
    ) -> Iterable[tuple[int, float]]:
        """The most similar decisions that count, at most `wanted`: more are read until enough of them do."""
        assert self.index is not None  # noqa: S101
        limit, left_out = wanted, list(without)
        while True:
            near = self.index.nearest(vector, filters, limit, without=left_out)
            counted = self._counted(connection, [seq for seq, _ in near], filters, rows)
            good = [(seq, cosine) for seq, cosine in near if seq in counted]
            if len(good) >= min(wanted, len(near)) // 2 or len(near) < limit or limit >= len(self.index):
                return good[:wanted]
            numbers = precedent_queries.not_counted(connection, MOST_NOT_COUNTED, tests=self._tests)
            if numbers is not None and len(left_out) == len(without):
                left_out += numbers
            else:
                limit *= 8

    def _with_words(
        self,
        connection: Connection,
        text: str,
        filters: Filters,
        without: Sequence[int],
        rows: dict[int, Record],
    ) -> dict[int, float]:
        """The share of the text's words that a summary has, by decision; a rare word counts more."""
        words = list(dict.fromkeys(word.lower() for word in _WORD.findall(text)))[:MOST_WORDS]
        with_word = precedent_queries.with_words(connection, words, MOST_OF_WORD)
        weight = {word: 1.0 / (1.0 + len(seqs)) for word, seqs in with_word.items() if seqs}
        total = sum(weight.values()) or 1.0
        shares: dict[int, float] = {}
        for word, seqs in with_word.items():
            part = weight.get(word, 0.0) / total
            for seq in seqs:
                shares[seq] = shares.get(seq, 0.0) + part
        best = [seq for seq in nlargest(4 * BY_WORDS, shares, key=shares.__getitem__) if seq not in without]
        counted = self._counted(connection, best, filters, rows)
        return {seq: shares[seq] for seq in [seq for seq in best if seq in counted][:BY_WORDS]}

    def _by_fields(
        self,
        connection: Connection,
        filters: Filters,
        action: str | None,
        without: Sequence[int],
        rows: dict[int, Record],
    ) -> list[int]:
        numbers = precedent_queries.by_fields(connection, filters, action, BY_FIELDS)
        counted = self._counted(connection, numbers, filters, rows)
        return [seq for seq in numbers if seq in counted and seq not in without]

    def _counted(
        self, connection: Connection, seqs: Sequence[int], filters: Filters, rows: dict[int, Record]
    ) -> set[int]:
        """Which of these decisions are precedents and hold the filters; their rows are added to `rows`."""
        new = [seq for seq in seqs if seq not in rows]
        rows |= precedent_queries.of_seqs(connection, new, tests=self._tests)
        return {
            seq
            for seq in seqs
            if seq in rows and rows[seq]["counts"] and precedent_queries.holds(rows[seq], filters)
        }

    def _cosines(self, connection: Connection, vector: Any, seqs: Sequence[int]) -> dict[int, float]:
        """The cosines of decisions that words led to, as far as they have vectors."""
        assert self.index is not None  # noqa: S101
        stored = precedent_queries.vectors_of(connection, seqs)
        return self.index.cosines(vector, stored)

    def _with_texts(
        self, connection: Connection, best: Sequence[Ranked], seqs: dict[str, int]
    ) -> list[Ranked]:
        texts = precedent_queries.summaries_of(connection, [seqs[each.id] for each in best])
        return [structs.replace(each, text=texts.get(seqs[each.id], "")[:MOST_SHOWN_CHARS]) for each in best]
