"""Hostile variants of texts, for fuzzing functions that must give a value for any text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

#: What is put into a text: signs that split, quote or encode, unseen and imitating characters, numbers.
_PIECES = [
    *"/\\.:@?#%&=+~$|;<>*[]{}()'\"`!^,- \t\n\r\0\x7f",
    *"\u200b\u202e\u00ad\ufeff\u0301\u0323\u0430\u03bf\uff0e\u2024\u3002\u2215\u2044ıßé日\ufdfa\ud800😀\U000e0041",
    "..", "//", "/../", "%2e", "%2f", "%00", "%25", "${HOME}", "~1", "0x7f", "0177", "169.254.169.254",
    "[::1]", "xn--", "localhost", ".env", ".git", "file://", "http:", "id_rsa", "a" * 300,
]  # fmt: skip


def variants(seeds: Sequence[str], count: int, seed: int = 7) -> Iterator[str]:
    """`count` texts, made from the seeds by inserting, dropping, doubling, swapping and encoding parts."""
    choose = random.Random(seed)
    for _ in range(count):
        text = choose.choice(seeds)
        for _ in range(choose.randint(1, 5)):
            at, to = sorted(choose.choices(range(len(text) + 1), k=2))
            piece = choose.choice(_PIECES)
            text = choose.choice(
                [
                    text[:at] + piece + text[at:],
                    text[:at] + text[to:],
                    text[:at] + text[at:to] * choose.choice([2, 2, 50]) + text[to:],
                    text[:at] + choose.choice(seeds)[at:],
                    text[:at] + "".join(f"%{ord(c) & 0xFF:02x}" for c in text[at:to]) + text[to:],
                    text[:at] + text[at:to].swapcase() + text[to:],
                    text[:at] + piece * choose.choice([1, 3, 2000]) + text[to:],
                ]
            )[:20_000]
        yield text
