"""Token tries, and the writing of an explanation: which tokens may come next, and which must.

Owns `Trie` (a closed list of token sequences), the distribution over its names, and `ExplanationWriter` (one
explanation in progress). Invariant: whatever the logits, the written text follows the steps: fixed text
verbatim, enums from their list, free text on one line. Pure: no model, no clock. Engine thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from thor_policy.core.engine import Fixed, FreeText, OneOf, SomeOf, Step
from thor_policy.core.errors import EngineError


class Trie:
    """A closed list of token sequences. `value` is the name of the sequence that ends here, or None."""

    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[int, Trie] = {}
        self.value: str | None = None

    @classmethod
    def of(cls, sequences: Mapping[str, Sequence[int]]) -> Trie:
        """Trie of named token sequences. Raises EngineError if one is empty or two are equal."""
        root = cls()
        for name, tokens in sequences.items():
            node = root
            for token in tokens:
                node = node.children.setdefault(token, cls())
            if node.value is not None or node is root:
                raise EngineError(
                    f"in the model's tokens {name!r} is empty or equals {node.value!r}: rename one of them"
                )
            node.value = name
        return root

    def branches(self, path: tuple[int, ...] = ()) -> Iterable[tuple[tuple[int, ...], Trie]]:
        """Each node with more than one child, with the path to it, depth first."""
        if len(self.children) > 1:
            yield path, self
        for token, child in self.children.items():
            yield from child.branches((*path, token))

    def first_prefix(self) -> str | None:
        """The name of the first sequence with which another sequence begins, or None."""
        if self.value is not None and self.children:
            return self.value
        return next(filter(None, (child.first_prefix() for child in self.children.values())), None)


def path_name(path: Sequence[int]) -> str:
    """A path in a trie as text, for keys in JSON."""
    return " ".join(map(str, path))


def closed_set(labels: Trie, logits: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Probability of every label: the product, along its path, of a softmax over each branch's children.

    This is the distribution of sampling under a grammar that admits exactly the labels.
    """
    probabilities: dict[str, float] = {}

    def descend(node: Trie, path: tuple[int, ...], mass: float) -> None:
        if node.value is not None:
            probabilities[node.value] = mass
        if len(node.children) == 1:
            ((token, child),) = node.children.items()
            descend(child, (*path, token), mass)
        elif node.children:
            raw = logits[path_name(path)]
            weights = [math.exp(logit - max(raw)) for logit in raw]
            for weight, (token, child) in zip(weights, node.children.items(), strict=True):
                descend(child, (*path, token), mass * weight / sum(weights))

    descend(labels, (), 1.0)
    return probabilities


class ExplanationWriter:
    """One explanation in progress.

    `tokenise` turns text into token ids, `text_of` token ids into text; `ends` says whether a token ends the
    model's turn. The caller feeds the tokens that `begin` and `take` return to the model, and then passes one
    of the `allowed` tokens to `take`.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        tokenise: Callable[[str], list[int]],
        text_of: Callable[[Sequence[int]], str],
        ends: Callable[[int], bool],
    ) -> None:
        self._steps = list(steps)
        self._tokenise, self._text_of, self._ends = tokenise, text_of, ends
        self._at = -1
        self._node = Trie()
        self._free: list[int] = []
        self._pending: list[int] = []
        self._options: dict[str, list[int]] = {}
        self.tokens: list[int] = []
        self.values: dict[str, tuple[str, ...]] = {}
        self.generated_tokens = 0
        self.done = False

    @property
    def text(self) -> str:
        """Everything written so far."""
        return self._text_of(self.tokens).strip()

    def begin(self) -> list[int]:
        """Tokens to feed before the first choice."""
        self._next_step()
        return self._take_forced()

    def allowed(self) -> Collection[int] | None:
        """Token ids that may come next; None: any token (free text)."""
        step = self._steps[self._at]
        if isinstance(step, FreeText):
            return None
        tokens = list(self._node.children)
        if self._node.value is not None and isinstance(step, OneOf | SomeOf):
            tokens.extend(self._closings(step))
        return tokens

    def take(self, token: int) -> list[int]:
        """Accept the model's choice; returns the tokens to feed next, empty when `done`."""
        self.generated_tokens += 1
        self._accept(token)
        return self._take_forced()

    def _take_forced(self) -> list[int]:
        """Accept tokens while only one is allowed; returns all tokens that must be fed next."""
        while not self.done:
            allowed = self.allowed()
            if allowed is None or len(allowed) > 1:
                break
            (token,) = allowed
            self._accept(token)
        pending, self._pending = self._pending, []
        return pending

    def _accept(self, token: int) -> None:
        step = self._steps[self._at]
        if isinstance(step, FreeText):
            self._accept_free(step, token)
        elif child := self._node.children.get(token):
            self._write([token])
            self._node = child
        elif isinstance(step, OneOf | SomeOf):
            self._accept_closing(step, token)

    def _accept_free(self, step: FreeText, token: int) -> None:
        text = "" if self._ends(token) else self._text_of([token])
        line, line_end, _ = text.partition("\n")
        if text and not line_end:
            self._free.append(token)
            self._write([token])
        if not text or line_end or len(self._free) >= step.max_tokens:
            written = self._text_of(self._free) + (line if line_end else "")
            self.values[step.name] = (" ".join(written.split()),)
            self._next_step()

    def _accept_closing(self, step: OneOf | SomeOf, token: int) -> None:
        chosen = self._node.value or ""
        self.values[step.name] = (*self.values.get(step.name, ()), chosen.strip())
        del self._options[chosen]
        if isinstance(step, SomeOf) and token == self._separator(step):
            self._write(self._tokenise(step.separator))
            self._node = Trie.of(self._options)
        else:
            self._next_step()

    def _closings(self, step: OneOf | SomeOf) -> list[int]:
        """Tokens that may follow a complete option: those of the next fixed text, or of a separator."""
        closings = [self._first_token_after()]
        written = len(self.values.get(step.name, ())) + 1
        if isinstance(step, SomeOf) and len(self._options) > 1 and written < step.most:
            closings.append(self._separator(step))
        return closings

    def _separator(self, step: SomeOf) -> int:
        return self._tokenise(step.separator)[0]

    def _first_token_after(self) -> int:
        """First token of the fixed text that follows an enum step."""
        following = self._steps[self._at + 1] if self._at + 1 < len(self._steps) else None
        if not isinstance(following, Fixed):
            raise EngineError("an enum step must be followed by fixed text")
        return self._tokenise(following.text)[0]

    def _next_step(self) -> None:
        while True:
            self._at += 1
            if self._at == len(self._steps):
                self.done = True
                return
            step = self._steps[self._at]
            if not isinstance(step, Fixed):
                break
            self._write(self._tokenise(step.text))
        if isinstance(step, OneOf | SomeOf):
            self._options = {option: self._tokenise(option) for option in step.options}
            self._node = Trie.of(self._options)
        else:
            self._free = []

    def _write(self, tokens: list[int]) -> None:
        self.tokens.extend(tokens)
        self._pending.extend(tokens)
