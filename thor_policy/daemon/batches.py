"""A batch of questions that is answered as one.

Owns the AuthZEN evaluation semantics. Invariant: `done` is called exactly once, with one answer for each
item that was evaluated, in order. No socket, no clock. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.daemon.inflight import Answer
from thor_policy.protocol.messages import EvaluateBatchRequest, EvaluateRequest
from thor_policy.protocol.replies import error_item


class Batch:
    """Questions that are answered together, in order, and perhaps not all (AuthZEN semantics).

    `submit` admits one question or raises RequestError; `refused` gets each error, and returns the one to
    answer with; `done` gets the answers.
    """

    def __init__(
        self,
        message: EvaluateBatchRequest,
        *,
        submit: Callable[[EvaluateRequest, Answer], None],
        refused: Callable[[RequestError], RequestError],
        done: Callable[[Sequence[dict[str, Json]]], None],
    ) -> None:
        self._message = message
        self._submit = submit
        self._refused = refused
        self._done = done
        self._answers: dict[int, dict[str, Json]] = {}

    def start(self) -> None:
        """Submit all items, or the first where the next depends on its answer."""
        count = len(self._message.items) if self._message.semantic == "execute_all" else 1
        for number in range(count):
            self._ask(number)

    def _ask(self, number: int) -> None:
        item = self._message.items[number]
        if isinstance(item, RequestError):
            self._take(number, item)
            return
        try:
            self._submit(item, partial(self._take, number))
        except RequestError as error:
            self._take(number, error)

    def _take(self, number: int, answer: dict[str, Json] | RequestError) -> None:
        item = error_item(self._refused(answer)) if isinstance(answer, RequestError) else answer
        self._answers[number] = item
        semantic, last = self._message.semantic, len(self._message.items) - 1
        if semantic == "execute_all":
            if len(self._answers) <= last:
                return
        elif number < last and item["decision"] == (semantic == "deny_on_first_deny"):
            self._ask(number + 1)
            return
        self._done([self._answers[index] for index in sorted(self._answers)])
