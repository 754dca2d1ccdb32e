"""The engine elsewhere: a model behind HTTP, on a llama-server or vLLM.

Owns the pack prefixes as token ids, and the explanations that wait. Invariant: what a request says reaches
the model as content only, and a decision is made of the numbers of one and the same server; where that
cannot be told, there is no answer, and so the strictest outcome. It promises no bits: other requests share
the server's batches, and its `model` says so (`exact` is False). All calls come from one thread.

Nothing is sent twice. A decision takes one request for its tokens and one for each branch of the labels;
an explanation is written alone and in turn, one request to the model a step, so a decision waits for one.
"""

from __future__ import annotations

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
from thor_policy.engine.backends import Server, meet
from thor_policy.engine.explanations import ExplanationWriter, Trie, closed_set, path_name
from thor_policy.engine.http import Link

log = logging.getLogger(__name__)

#: How often the golden question is scored before anything else.
GOLDEN_SCORES = 3
#: Room kept behind a question for its explanation, in tokens.
ANSWER_TOKENS = 192
#: Tokens of free text asked for at once: bounds how long a decision can wait for an explanation.
CHUNK_TOKENS = 16
#: Longest that one step of an explanation may take, and a start, in seconds.
STEP_S, START_S = 10, 300
#: Texts whose tokens are remembered.
_REMEMBERED = 4096
#: Stands for whatever token ended the line or the turn.
_END: Final = -1


@dataclass
class _Resident:
    """A pack whose prompt is known as tokens."""

    tokens: list[int]
    tail: list[int]
    digest: str
    labels: Trie
    names: tuple[str, ...]
    head: str


@dataclass
class _Run:
    """An explanation that waits for its turn; `begun` when its first words are written."""

    ticket: int
    writing: ExplanationWriter
    before: list[int]
    deadline_ns: int
    started_ns: int
    begun: bool = False


class RemoteEngine:
    """A model behind `url`. `key` is its bearer key, `model` one of its models, `template` a name of
    `chat.TEMPLATES` (empty: what the server says).

    Raises EngineError if the server is not there, or is none that can be trusted to keep content apart.
    """

    def __init__(
        self, url: str, *, key: str = "", model: str = "", template: str = "", question_tokens: int = 512
    ) -> None:
        self._link = Link(url, key=key)
        self._question_tokens = question_tokens
        self._packs: dict[str, _Resident] = {}
        self._waiting: deque[_Run] = deque()
        self._special: frozenset[int] = frozenset()
        self._texts: dict[str, list[int]] = {}
        self._words: dict[int, str] = {}
        self._step_deadline_ns = 0
        self._failing = False
        deadline_ns = _from_now(START_S)
        try:
            self._server: Server = meet(self._link, model, deadline_ns)
            self._model = self._server.identify(deadline_ns)
            self._template = chat.TEMPLATES.get(template) or self._server.template
            if not self._template:
                raise EngineError(
                    f"{url} does not tell its model's chat template; set engine_template to one of "
                    f"{', '.join(chat.TEMPLATES)}"
                )
        except BaseException:
            self._link.close()
            raise
        self._known = self._link.connection

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def explaining(self) -> int:
        return len(self._waiting)

    def file_state(self) -> str | None:
        """The file lies elsewhere."""
        return None

    def memory(self) -> tuple[DeviceMemory, ...]:
        """So does the memory."""
        return ()

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._link.close()

    # ------------------------------------------------------------ prefixes

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        """Refuse: the weights lie elsewhere."""
        raise EngineError(
            f"{self._link.url} takes no adapter from here, so {adapter.name} cannot be used: leave the "
            "setting adapter empty, and start the server with it (llama-server --lora, vLLM --lora-modules)"
        )

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        """All steps of `loading` at once."""
        return all_steps(self.loading(prefix, adapter))

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        """Turn a pack's prefix into tokens and score the golden question; its label must not change."""
        if adapter is not None:
            raise EngineError(f"{self._link.url} takes no adapter from here, so {adapter.name} is not there")
        if resident := self._packs.get(prefix.pack_sha256):
            return LoadedPrefix(prefix_tokens=len(resident.tokens), restored=True, golden_scores=0)
        limit_s = STEP_S if self._packs else START_S  # once it serves, decisions wait for each step
        resident = self._reside(prefix, _from_now(limit_s))
        golden = []
        for _ in range(GOLDEN_SCORES):
            yield
            golden.append(self._probabilities(resident, resident.tail, _from_now(limit_s))[0])
        labels = {max(one, key=one.__getitem__).strip() for one in golden}
        if len(labels) > 1:
            raise EngineError(
                f"the golden question was answered with {' and '.join(sorted(labels))} in turn; "
                f"{self._link.url} is not fit to decide"
            )
        apart = max(abs(one[name] - golden[0][name]) for one in golden for name in prefix.labels)
        log.info("golden question: the same label %d times, probabilities within %.1e", len(golden), apart)
        self._packs[prefix.pack_sha256] = resident
        return LoadedPrefix(prefix_tokens=len(resident.tokens), restored=False, golden_scores=len(golden))

    def unload(self, key: str) -> None:
        """Forget a prefix's tokens."""
        del self._packs[key]

    def needs(self, key: str) -> bool:
        """Every explanation has its tokens already."""
        return False

    def _reside(self, prefix: PromptPrefix, deadline_ns: int) -> _Resident:
        server = self._server
        bos = self._bos(deadline_ns)
        marks = chat.around(self._template or "", prefix, bos=server.bos_text if bos >= 0 else "")
        text = "".join(marks)
        self._special |= frozenset(server.markup(text, deadline_ns)) - set(server.content(text, deadline_ns))
        if not self._special:
            raise EngineError(
                f"{self._link.url} makes the same tokens of the template's markup and of text that looks "
                "like it, so what a request says could end its turn; judge with a llama-server, or in process"
            )

        def tokenise(text: str, special: bool) -> list[int]:
            return server.markup(text, deadline_ns) if special else self._content(text, deadline_ns)

        tokens, tail = chat.prompt(marks, prefix, tokenise, bos=bos)
        room = server.context_tokens - len(tokens) - ANSWER_TOKENS
        if room < len(tail) + 64:
            raise EngineError(
                f"the pack's prefix has {len(tokens)} tokens; {self._link.url} holds {server.context_tokens} "
                "and must leave room for a question: start it with more (--ctx-size for each slot of "
                "llama-server, --max-model-len of vLLM) or shorten the pack"
            )
        labels = Trie.of({label: self._content(label, deadline_ns) for label in prefix.labels})
        if opening := labels.opening():
            raise EngineError(f"the label {opening!r} opens another label; the model cannot tell them apart")
        return _Resident(
            tokens=tokens,
            tail=tail,
            digest=hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest(),
            labels=labels,
            names=prefix.labels,
            head=prefix.question_head,
        )

    def _bos(self, deadline_ns: int) -> int:
        """The token that the model wants at the start of every prompt; -1 if it wants none."""
        bare, opened = (self._server.markup("a", deadline_ns, opening=told) for told in (False, True))
        return opened[0] if opened[1 : 1 + len(bare)] == bare else -1

    def _content(self, text: str, deadline_ns: int) -> list[int]:
        tokens = self._server.content(text, deadline_ns)
        if not self._special.isdisjoint(tokens):
            raise EngineError(f"{self._link.url} made a special token of what a request says")
        return tokens

    # ------------------------------------------------------------ decisions

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        """Tokens of the question, then the choices at each branch of the labels."""
        started_ns = time.monotonic_ns()
        if started_ns >= deadline_ns:
            raise DeadlineExceeded("the deadline passed before the question was read")
        pack = self._packs.get(key)
        if pack is None:
            raise EngineError(f"the pack {key} is not loaded")
        try:
            suffix = self._content(question.removeprefix(pack.head), deadline_ns) + pack.tail
            room = min(self._question_tokens, self._server.context_tokens - len(pack.tokens) - ANSWER_TOKENS)
            if len(suffix) > room:
                raise RequestError(
                    "too_large", f"request: the situation has {len(suffix)} tokens; the limit is {room}"
                )
            probabilities, weights = self._probabilities(pack, suffix, deadline_ns)
            self._see_who_answers(deadline_ns)
        except EngineError as error:
            if not self._failing:
                log.warning("no answer from the model: %s", error)
            self._failing = True
            raise
        if self._failing:
            log.info("%s answers again", self._link.url)
        self._failing = False
        return Scored(
            label=max(pack.names, key=probabilities.__getitem__).strip(),
            probabilities={name.strip(): probabilities[name] for name in pack.names},
            logits=weights,
            suffix_tokens=tuple(suffix),
            prefix_tokens=len(pack.tokens),
            prefix_digest=pack.digest,
            score_ms=(time.monotonic_ns() - started_ns) / 1e6,
        )

    def _probabilities(
        self, pack: _Resident, suffix: Sequence[int], deadline_ns: int
    ) -> tuple[dict[str, float], tuple[float, ...]]:
        """Of every label, and the log-probability of each edge of their trie, in trie order.

        The latter stand for logits: they differ from them by a constant at each branch.
        """
        weights = {
            path_name(path): self._server.weigh(
                [*pack.tokens, *suffix, *path], list(node.children), deadline_ns
            )
            for path, node in pack.labels.branches()
        }
        return closed_set(pack.labels, weights), tuple(one for edges in weights.values() for one in edges)

    def _see_who_answers(self, deadline_ns: int) -> None:
        """After a new connection, that it is still the same model: a server may have been started anew."""
        if self._link.connection is self._known:
            return
        now = self._server.identify(deadline_ns)
        if now.sha256 != self._model.sha256:
            raise EngineError(
                f"{self._link.url} is another model or build than at the start ({now.name}, {now.build}): "
                "start the daemon anew"
            )
        self._known = self._link.connection

    # ------------------------------------------------------------ explanations

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Put an explanation last in the row; nothing is asked yet."""
        writing = ExplanationWriter(steps, tokenise=self._known_text, text_of=self._text_of, ends=_END.__eq__)
        before = [*self._packs[key].tokens, *scored.suffix_tokens]
        self._waiting.append(_Run(ticket, writing, before, deadline_ns, time.monotonic_ns()))

    def step(self) -> list[WrittenExplanation]:
        """One more choice or piece of text of the explanation that is first in the row."""
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
        if run.writing.done or not fits:
            ended.append(self._finish(run, truncated=not run.writing.done))
        return ended

    def give_up(self) -> None:
        """Forget every explanation."""
        self._waiting.clear()

    def _advance(self, run: _Run) -> bool:
        """Ask the model once; False if prompt and answer have grown too long."""
        writing = run.writing
        if not run.begun:
            writing.begin()
            run.begun = True
        if writing.done:
            return True
        prompt = [*run.before, *writing.tokens]
        if len(prompt) + CHUNK_TOKENS > self._server.context_tokens:
            return False
        allowed = writing.allowed()
        if allowed is not None:
            choices = list(allowed)
            weights = self._server.weigh(prompt, choices, self._step_deadline_ns)
            writing.take(choices[weights.index(max(weights))])
            return True
        tokens, line_ended = self._server.write(prompt, CHUNK_TOKENS, self._step_deadline_ns)
        if not tokens and not line_ended:
            raise EngineError(f"{self._link.url} wrote nothing where it was asked to write")
        values = len(writing.values)
        for token in [*tokens, _END] if line_ended else tokens:
            if len(writing.values) == values:  # still within this text
                writing.take(token)
        return True

    def _finish(self, run: _Run, *, truncated: bool) -> WrittenExplanation:
        self._waiting.remove(run)
        self._step_deadline_ns = _from_now(STEP_S)
        return WrittenExplanation(
            ticket=run.ticket,
            values=run.writing.values,
            text=run.writing.text,
            truncated=truncated,
            generated_tokens=run.writing.generated_tokens,
            explain_ms=(time.monotonic_ns() - run.started_ns) / 1e6,
        )

    def _known_text(self, text: str) -> list[int]:
        """Tokens of a text of the pack; the same texts come again and again."""
        if text not in self._texts:
            if len(self._texts) >= _REMEMBERED:
                self._texts.clear()
            self._texts[text] = self._content(text, self._step_deadline_ns)
        return self._texts[text]

    def _text_of(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        if len(tokens) > 1:
            return self._server.text_of(tokens, self._step_deadline_ns)
        (token,) = tokens
        if token not in self._words:
            if len(self._words) >= _REMEMBERED:
                self._words.clear()
            self._words[token] = (
                "" if token in self._special else self._server.text_of(tokens, self._step_deadline_ns)
            )
        return self._words[token]


def _from_now(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)
