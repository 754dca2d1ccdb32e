"""Coverage of reasons: which of the elements that a scenario expects stand in the reason of an answer.

Owns how a reason is cut and compared. Invariant: without an embedder nothing is measured, for a phrase
that is not found word for word may be there in other words; each element is told with the part of the
reason that comes nearest to it. Pure; main thread.

An element is looked for word for word first, whatever the capitals and signs between the words. Otherwise
the whole sentences of the reason and the phrases inside them are embedded, and the nearest counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from thor_policy.suites.scenarios import Embedder

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[;\n]+")
#: Where a sentence is cut into phrases: at signs, and at words that join clauses.
_JOINT = re.compile(
    r"[,:()]|\s[-–—]\s|\b(?:and|but|so|because|although|though|since|while|which|until)\b", re.I
)
_WORD = re.compile(r"\w+")


class Element(Struct, frozen=True, kw_only=True):
    """An element of a good reason, and the part of the given one that comes nearest.

    `similarity` is 1 where it stands there word for word; `match` is empty where there is no reason.
    """

    text: str
    covered: bool
    similarity: float
    match: str


def measure(
    elements: Sequence[str], reason: str | None, embedder: Embedder, similarity: float
) -> tuple[Element, ...]:
    """Each element beside what comes nearest to it; covered from `similarity` on."""
    parts = chunks(reason or "")
    words = _words(reason or "")
    rest = [element for element in elements if f" {_words(element)} " not in f" {words} "]
    nearest = dict(zip(rest, embedder.similarities(rest, parts), strict=True)) if rest and parts else {}
    found = []
    for element in elements:
        if element not in rest:
            found.append(Element(text=element, covered=True, similarity=1.0, match=element))
        elif element not in nearest:
            found.append(Element(text=element, covered=False, similarity=0.0, match=""))
        else:
            best, part = max(zip(nearest[element], parts, strict=True))
            covered = best >= similarity
            found.append(Element(text=element, covered=covered, similarity=best, match=part))
    return tuple(found)


def share(elements: Sequence[Element]) -> float:
    """How many of the elements are covered, 0 to 1."""
    return sum(element.covered for element in elements) / len(elements)


def chunks(reason: str) -> list[str]:
    """The sentences of a reason, and the phrases inside them; each once."""
    sentences = [sentence for raw in _SENTENCE_END.split(reason) if (sentence := raw.strip())]
    phrases = [
        phrase for sentence in sentences for raw in _JOINT.split(sentence) if (phrase := raw.strip(" .!?"))
    ]
    return list(dict.fromkeys(part for part in (*sentences, *phrases) if _WORD.search(part)))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
