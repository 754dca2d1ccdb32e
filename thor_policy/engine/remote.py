"""The remote engine: a model on a llama-server or vLLM, reached over HTTP.

Owns the pack prefixes as token ids, and the waiting explanations. Invariant: the text of a request reaches
the model as content only, and all numbers of a decision come from the same model of the same server. If that
cannot be verified there is no answer, and so the strictest outcome. Results are not bit-exact, because other
requests share the server's batches; `model.exact` is False. Engine thread.

A failed request is never repeated. A decision takes one request for its tokens and one for each branch of the
labels. Explanations are written one after the other, one model request per step, so a decision waits for one
request at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from thor_policy.core.decisions import Adapter, ModelInfo, Scored
from thor_policy.core.engine import (
    DeviceMemory,
    LoadedPrefix,
    PromptPrefix,
    Step,
    Steps,
    WrittenExplanation,
    all_steps,
)
from thor_policy.core.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.engine import chat
from thor_policy.engine.backends import Server, connect
from thor_policy.engine.explanations import ExplanationWriter, Trie, closed_set, path_name
from thor_policy.engine.http import Link

log = logging.getLogger(__name__)

#: How often the golden question is scored before a prefix is used.
GOLDEN_SCORES = 3
#: Tokens reserved after a question for its explanation.
ANSWER_TOKENS = 192
#: Tokens of free text requested at a time: bounds how long a decision can wait for an explanation.
CHUNK_TOKENS = 16
#: Time limits of one step of an explanation, and of a start, in seconds.
STEP_S, START_S = 10, 300
#: How many texts are cached with their tokens.
_CACHED = 4096
#: Represents the token that ended the line or the turn.
_END: Final = -1


@dataclass
class _Resident:
    """A pack's prefix as tokens; `tail` are the tokens between a question and its label."""

    tokens: list[int]
    tail: list[int]
    digest: str
    trie: Trie
    labels: tuple[str, ...]
    question_head: str


@dataclass
class _Run:
    """A waiting explanation that continues `prompt`; `begun` after its first step."""

    ticket: int
    writer: ExplanationWriter
    prompt: list[int]
    deadline_ns: int
    started_ns: int
    begun: bool = False


class RemoteEngine:
    """A model on the server at `url`.

    `key` is the server's bearer key, `model` the name of a model on it, and `template` a name in
    `chat.TEMPLATES` (empty: the template that the server reports). Raises EngineError if the server cannot be
    reached, or does not separate content from markup.
    """

    def __init__(
        self, url: str, *, key: str = "", model: str = "", template: str = "", question_tokens: int = 512
    ) -> None:
        self._link = Link(url, key=key)
        self._question_tokens = question_tokens
        self._packs: dict[str, _Resident] = {}
        self._waiting: deque[_Run] = deque()
        self._idle_run: _Run | None = None
        self._special: frozenset[int] = frozenset()
        self._tokens_by_text: dict[str, list[int]] = {}
        self._text_by_token: dict[int, str] = {}
        self._step_deadline_ns = 0
        self._failing = False
        deadline_ns = _from_now(START_S)
        try:
            self._server: Server = connect(self._link, model, deadline_ns)
            self._model = self._server.identify(deadline_ns)
            self._template = chat.TEMPLATES.get(template) or self._server.template
            if not self._template:
                raise EngineError(
                    f"{url} does not report its model's chat template; set engine_template to one of "
                    f"{', '.join(chat.TEMPLATES)}"
                )
        except BaseException:
            self._link.close()
            raise
        self._verified_connection = self._link.connection

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def explaining(self) -> int:
        return len(self._waiting)

    def file_state(self) -> str | None:
        """None: the model's file is on the server."""
        return None

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Empty: the model's memory is on the server."""
        return ()

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._link.close()

    # ------------------------------------------------------------ prefixes

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        """Always raises EngineError: a remote model cannot load an adapter from here."""
        raise EngineError(
            f"{self._link.url} cannot load the adapter {adapter.name} from here: leave the setting adapter "
            "empty, and start the server with the adapter (llama-server --lora, vLLM --lora-modules)"
        )

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        """All steps of `loading` at once."""
        return all_steps(self.loading(prefix, adapter))

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        """Turn a pack's prefix into tokens and score the golden question; its label must not change."""
        if adapter is not None:
            raise EngineError(f"{self._link.url} cannot use the adapter {adapter.name} from here")
        if resident := self._packs.get(prefix.pack_sha256):
            return LoadedPrefix(prefix_tokens=len(resident.tokens), restored=True, golden_scores=0)
        limit_s = STEP_S if self._packs else START_S  # once it serves, decisions wait for each step
        resident = self._tokenise_prefix(prefix, _from_now(limit_s))
        golden = []
        for _ in range(GOLDEN_SCORES):
            yield
            golden.append(self._probabilities(resident, resident.tail, _from_now(limit_s))[0])
        answers = {max(scores, key=scores.__getitem__).strip() for scores in golden}
        if len(answers) > 1:
            raise EngineError(
                f"the golden question got the labels {' and '.join(sorted(answers))} in "
                f"{len(golden)} runs, so {self._link.url} cannot decide reliably; use another server"
            )
        spread = max(abs(scores[label] - golden[0][label]) for scores in golden for label in prefix.labels)
        log.info("golden question: the same label %d times, probabilities within %.1e", len(golden), spread)
        self._packs[prefix.pack_sha256] = resident
        return LoadedPrefix(prefix_tokens=len(resident.tokens), restored=False, golden_scores=len(golden))

    def unload(self, key: str) -> None:
        """Discard a prefix's tokens."""
        del self._packs[key]

    def needs(self, key: str) -> bool:
        """Always False: every explanation has a copy of the prefix's tokens."""
        return False

    def _tokenise_prefix(self, prefix: PromptPrefix, deadline_ns: int) -> _Resident:
        """The tokens of a prefix. Raises EngineError if it does not fit, or content could become markup."""
        server = self._server
        bos = self._bos(deadline_ns)
        marks = chat.around(self._template or "", prefix, bos=server.bos_text if bos >= 0 else "")
        text = "".join(marks)
        self._special |= frozenset(server.markup(text, deadline_ns)) - set(server.content(text, deadline_ns))
        if not self._special:
            raise EngineError(
                f"{self._link.url} gives the template's markup and the same text as content equal tokens, so "
                "the content of a request could end its turn; use a llama-server, or a model in process"
            )

        def tokenise(text: str, special: bool) -> list[int]:
            return server.markup(text, deadline_ns) if special else self._content(text, deadline_ns)

        tokens, tail = chat.prompt(marks, prefix, tokenise, bos=bos)
        room = server.context_tokens - len(tokens) - ANSWER_TOKENS
        if room < len(tail) + 64:
            raise EngineError(
                f"the pack's prefix has {len(tokens)} tokens, which leaves too few of the "
                f"{server.context_tokens} of {self._link.url} for a question: start the server with more "
                "(--ctx-size for each slot of llama-server, --max-model-len of vLLM) or shorten the pack"
            )
        trie = Trie.of({label: self._content(label, deadline_ns) for label in prefix.labels})
        if label := trie.first_prefix():
            raise EngineError(
                f"another label begins with the label {label!r}, so the model cannot tell them apart: rename "
                "one of them"
            )
        return _Resident(
            tokens=tokens,
            tail=tail,
            digest=hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest(),
            trie=trie,
            labels=prefix.labels,
            question_head=prefix.question_head,
        )

    def _bos(self, deadline_ns: int) -> int:
        """The token that the model requires at the start of every prompt, or -1."""
        plain = self._server.markup("a", deadline_ns, opening=False)
        opened = self._server.markup("a", deadline_ns, opening=True)
        return opened[0] if opened[1 : 1 + len(plain)] == plain else -1

    def _content(self, text: str, deadline_ns: int) -> list[int]:
        tokens = self._server.content(text, deadline_ns)
        if not self._special.isdisjoint(tokens):
            raise EngineError(f"{self._link.url} turned the content of a request into a special token")
        return tokens

    # ------------------------------------------------------------ decisions

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        """Score the labels: one request for the question's tokens, and one for each branch of the labels."""
        started_ns = time.monotonic_ns()
        if started_ns >= deadline_ns:
            raise DeadlineExceeded("the deadline passed before the question was read")
        pack = self._packs.get(key)
        if pack is None:
            raise EngineError(f"the pack {key} is not loaded")
        try:
            suffix = self._content(question.removeprefix(pack.question_head), deadline_ns) + pack.tail
            room = min(self._question_tokens, self._server.context_tokens - len(pack.tokens) - ANSWER_TOKENS)
            if len(suffix) > room:
                raise RequestError(
                    "too_large", f"request: the situation has {len(suffix)} tokens; the limit is {room}"
                )
            probabilities, edge_log_probabilities = self._probabilities(pack, suffix, deadline_ns)
            self._verify_model(deadline_ns)
        except EngineError as error:
            if not self._failing:
                log.warning("the model server does not answer: %s", error)
            self._failing = True
            raise
        if self._failing:
            log.info("%s answers again", self._link.url)
        self._failing = False
        return Scored(
            label=max(pack.labels, key=probabilities.__getitem__).strip(),
            probabilities={label.strip(): probabilities[label] for label in pack.labels},
            logits=edge_log_probabilities,
            suffix_tokens=tuple(suffix),
            prefix_tokens=len(pack.tokens),
            prefix_digest=pack.digest,
            score_ms=(time.monotonic_ns() - started_ns) / 1e6,
        )

    def _probabilities(
        self, pack: _Resident, suffix: Sequence[int], deadline_ns: int
    ) -> tuple[dict[str, float], tuple[float, ...]]:
        """Probability of every label, and log-probability of each edge of their trie, in trie order.

        The log-probabilities replace logits: they differ from logits by a constant at each branch.
        """
        by_branch = {
            path_name(path): self._server.log_probabilities(
                [*pack.tokens, *suffix, *path], list(node.children), deadline_ns
            )
            for path, node in pack.trie.branches()
        }
        return closed_set(pack.trie, by_branch), tuple(edge for edges in by_branch.values() for edge in edges)

    def _verify_model(self, deadline_ns: int) -> None:
        """After a new connection, check that the server still has the same model: it may have restarted."""
        if self._link.connection is self._verified_connection:
            return
        current = self._server.identify(deadline_ns)
        if current.sha256 != self._model.sha256:
            raise EngineError(
                f"{self._link.url} has another model or build than at the start ({current.name}, "
                f"{current.build}): restart the daemon"
            )
        self._verified_connection = self._link.connection

    # ------------------------------------------------------------ explanations

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Add an explanation at the end of the queue; sends no request yet."""
        self._waiting.append(self._run_of(ticket, key, scored, steps, deadline_ns))

    def enrich(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Begin a text of idle time; sends no request yet."""
        self._idle_run = self._run_of(ticket, key, scored, steps, deadline_ns)

    def enrich_step(self) -> WrittenExplanation | None:
        """Advance the text of idle time by one choice or one piece of text."""
        run = self._idle_run
        if run is None:
            return None
        fits = False
        if time.monotonic_ns() < run.deadline_ns:
            self._step_deadline_ns = min(run.deadline_ns, _from_now(STEP_S))
            with contextlib.suppress(DeadlineExceeded):
                fits = self._advance(run)
        if fits and not run.writer.done:
            return None
        self._idle_run = None
        return self._written(run, truncated=not run.writer.done)

    def _run_of(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> _Run:
        writer = ExplanationWriter(
            steps, tokenise=self._cached_tokens, text_of=self._text_of, ends=_END.__eq__
        )
        prompt = [*self._packs[key].tokens, *scored.suffix_tokens]
        return _Run(ticket, writer, prompt, deadline_ns, time.monotonic_ns())

    def step(self) -> list[WrittenExplanation]:
        """Advance the first explanation of the queue by one choice or one piece of text."""
        now = time.monotonic_ns()
        ended = [self._finish(run, truncated=True) for run in list(self._waiting) if now >= run.deadline_ns]
        if not self._waiting:
            return ended
        run = self._waiting[0]
        self._step_deadline_ns = min(run.deadline_ns, _from_now(STEP_S))
        try:
            fits = self._advance(run)
        except DeadlineExceeded:
            fits = False
        if run.writer.done or not fits:
            ended.append(self._finish(run, truncated=not run.writer.done))
        return ended

    def give_up(self) -> None:
        """Discard every explanation, and the text of idle time."""
        self._idle_run = None
        self._waiting.clear()

    def _advance(self, run: _Run) -> bool:
        """Send one request to the model; False if prompt and answer have grown too long for its context."""
        writer = run.writer
        if not run.begun:
            writer.begin()
            run.begun = True
        if writer.done:
            return True
        prompt = [*run.prompt, *writer.tokens]
        if len(prompt) + CHUNK_TOKENS > self._server.context_tokens:
            return False
        allowed = writer.allowed()
        if allowed is not None:
            choices = list(allowed)
            weights = self._server.log_probabilities(prompt, choices, self._step_deadline_ns)
            writer.take(choices[weights.index(max(weights))])
            return True
        tokens, line_ended = self._server.generate(prompt, CHUNK_TOKENS, self._step_deadline_ns)
        if not tokens and not line_ended:
            raise EngineError(f"{self._link.url} generated no text for an explanation")
        values = len(writer.values)
        for token in [*tokens, _END] if line_ended else tokens:
            if len(writer.values) == values:  # this free text has not ended yet
                writer.take(token)
        return True

    def _finish(self, run: _Run, *, truncated: bool) -> WrittenExplanation:
        self._waiting.remove(run)
        return self._written(run, truncated=truncated)

    def _written(self, run: _Run, *, truncated: bool) -> WrittenExplanation:
        self._step_deadline_ns = _from_now(STEP_S)
        return WrittenExplanation(
            ticket=run.ticket,
            values=run.writer.values,
            text=run.writer.text,
            truncated=truncated,
            generated_tokens=run.writer.generated_tokens,
            explain_ms=(time.monotonic_ns() - run.started_ns) / 1e6,
        )

    def _cached_tokens(self, text: str) -> list[int]:
        """Tokens of a text of the pack, cached because the same texts recur."""
        if text not in self._tokens_by_text:
            if len(self._tokens_by_text) >= _CACHED:
                self._tokens_by_text.clear()
            self._tokens_by_text[text] = self._content(text, self._step_deadline_ns)
        return self._tokens_by_text[text]

    def _text_of(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        if len(tokens) > 1:
            return self._server.text_of(tokens, self._step_deadline_ns)
        (token,) = tokens
        if token not in self._text_by_token:
            if len(self._text_by_token) >= _CACHED:
                self._text_by_token.clear()
            self._text_by_token[token] = (
                "" if token in self._special else self._server.text_of(tokens, self._step_deadline_ns)
            )
        return self._text_by_token[token]


def _from_now(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)
