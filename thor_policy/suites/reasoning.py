"""Coverage of reasons: which of the elements that a scenario expects are in the reason of an answer.

Owns how a reason is divided and compared. Invariant: without an embedder nothing is measured, because a
reason may state an element in other words. Each element is reported with the nearest part of the reason.
Pure; main thread.

An element is first searched word for word; capitals and punctuation do not count. If that fails, the
sentences of the reason and the phrases inside them are embedded, and the nearest one counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from thor_policy.suites.scenarios import Embedder

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[;\n]+")
#: Where a sentence is divided into phrases: at punctuation, and at words that join clauses.
_JOINT = re.compile(
    r"[,:()]|\s[-–—]\s|\b(?:and|but|so|because|although|though|since|while|which|until)\b", re.I
)
_WORD = re.compile(r"\w+")


class Element(Struct, frozen=True, kw_only=True):
    """An element of a good reason, with the nearest part (`match`) of the reason that was given.

    `similarity` is 1 if the reason holds the element word for word. `match` is empty if there is no reason.
    """

    text: str
    covered: bool
    similarity: float
    match: str


def measure(
    elements: Sequence[str], reason: str | None, embedder: Embedder, similarity: float
) -> tuple[Element, ...]:
    """Each element with the nearest part of the reason. It is covered from `similarity` on."""
    parts = chunks(reason or "")
    words = _words(reason or "")
    rest = [element for element in elements if f" {_words(element)} " not in f" {words} "]
    nearest = dict(zip(rest, embedder.similarities(rest, parts), strict=True)) if rest and parts else {}
    measured = []
    for element in elements:
        if element not in rest:
            measured.append(Element(text=element, covered=True, similarity=1.0, match=element))
        elif element not in nearest:
            measured.append(Element(text=element, covered=False, similarity=0.0, match=""))
        else:
            best, part = max(zip(nearest[element], parts, strict=True))
            covered = best >= similarity
            measured.append(Element(text=element, covered=covered, similarity=best, match=part))
    return tuple(measured)


def share(elements: Sequence[Element]) -> float:
    """The share of the elements that are covered, 0 to 1."""
    return sum(element.covered for element in elements) / len(elements)


def chunks(reason: str) -> list[str]:
    """The sentences of a reason and the phrases inside them, without duplicates."""
    sentences = [sentence for raw in _SENTENCE_END.split(reason) if (sentence := raw.strip())]
    phrases = [
        phrase for sentence in sentences for raw in _JOINT.split(sentence) if (phrase := raw.strip(" .!?"))
    ]
    return list(dict.fromkeys(part for part in (*sentences, *phrases) if _WORD.search(part)))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
