"""Hostile inputs for the functions that read structure, the same each time.

Owns how they are made: pieces of known texts put together anew, known texts with pieces cut out or put in,
and characters of all kinds.
"""

from __future__ import annotations

import gc
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: What text handling tends to get wrong.
_ODD = (
    *"'\"`[](){}<>;:,.@#$%^&*-+=/\\|!?~_ \t\n\r\0",
    *(
        "--",
        "/*",
        "*/",
        "/*!",
        "$$",
        "E'",
        "N'",
        'U&"',
        "::",
        "\r\n",
        "\x1b",
        "\x7f",
        "\xa0",
        "\xad",
        "é",
        "е",
        "ß",
    ),
    *(
        "\u0301",
        "\u200b",
        "\u2028",
        "\u202e",
        "\u3000",
        "\ufeff",
        "\uff10",
        "\uff20",
        "\U0001f600",
        "\ud800",
        "İ",
    ),
)


def hostile_texts(seed: int, count: int, known: Sequence[str]) -> Iterator[str]:
    """Texts that begin from known ones."""
    chance = random.Random(seed)
    pieces = [piece for text in known for piece in re.findall(r"\w+|\s+|[^\w\s]", text)] + list(_ODD)
    for _ in range(count):
        kind = chance.random()
        if kind < 0.3:
            yield chance.choice(("", " ")).join(chance.choices(pieces, k=chance.randint(0, 60)))
        elif kind < 0.9:
            text = chance.choice(known)
            for _ in range(chance.randint(1, 4)):
                at = chance.randint(0, len(text))
                rest = chance.choice((text[at:], text[at + chance.randint(1, 6) :], chance.choice(known)))
                text = text[:at] + chance.choice((chance.choice(pieces), "")) + rest
            yield text
        else:
            most = chance.choice((0x7F, 0x7FF, 0xFFFF, 0x10FFFF))
            yield "".join(chr(chance.randint(0, most)) for _ in range(chance.randint(0, 300)))


def run(
    function: Callable[[Any], object],
    texts: Iterator[Any],
    *,
    limit_s: float,
    settled_after: int = 20_000,
    max_growth_kib: int = 20_000,
) -> None:
    """Call a function with each text. Fails on an error, for a call over its limit, and if memory grows.

    `settled_after`: the number of texts from which on memory may grow by no more than `max_growth_kib`.
    """
    settled, longest = 0, 0.0
    for number, text in enumerate(texts):
        started = time.thread_time()
        function(text)
        taken = time.thread_time() - started
        assert taken < limit_s, ascii(text)
        longest = max(longest, taken)
        if number == settled_after:
            gc.collect()
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled
    print(f"longest {longest * 1000:.1f} ms, then {growth} KiB more")
    assert settled
    assert growth < max_growth_kib
