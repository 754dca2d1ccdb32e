"""Results of functions of texts, kept in bounded memory.

Owns the cache that every function of a request's texts shares, and the estimate of what a value weighs.
Invariant: what a cache holds weighs at most its `most_bytes`, whatever the texts are. A result is shared, so
nobody may change it. Any thread.

A cache has two generations. A result that is used again moves to the young one; when that is full, it
becomes the old one, and the old one is dropped. So a look-up costs one access to a dict, and nothing is
sorted.
"""

from __future__ import annotations

import marshal
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: What one cache may hold, in bytes.
_MOST_BYTES = 4 * 2**20
#: A value that weighs more than this share of a cache is not kept.
_LARGEST_SHARE = 8
#: Bytes of an entry in a dict, and of the tuple that is its key.
_ENTRY_BYTES = 256
#: Bytes of a text without its characters, and most bytes of a character with its UTF-8.
_TEXT_BYTES, _CHAR_BYTES = 80, 4 + 4
#: Most bytes of memory for a byte of a marshalled value: an empty dict in a list has 2, and takes 72. To
#: marshal is much faster than to visit each part.
_BYTES_PER_MARSHALLED = 36


class TextCache(Generic[P, R]):
    """A pure function of texts that keeps its results. Call it with positional arguments only."""

    #: All caches of the process.
    every: list[TextCache[Any, Any]] = []

    def __init__(self, function: Callable[P, R], most_bytes: int = _MOST_BYTES) -> None:
        self.function, self.most_bytes = function, most_bytes
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._young: dict[Hashable, R] = {}
        self._old: dict[Hashable, R] = {}
        self._young_bytes = self._old_bytes = 0
        self._lock = threading.Lock()
        TextCache.every.append(self)

    def __call__(self, *key: P.args, **none: P.kwargs) -> R:
        value: Any = self._young.get(key, self)
        if value is self:
            value = self._old.get(key, self)
            if value is self:
                value = self.function(*key, **none)
            self._keep(key, value)
        result: R = value
        return result

    @property
    def bytes(self) -> int:
        """What it holds, by the estimate of `weight`."""
        return self._young_bytes + self._old_bytes

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def clear(self) -> None:
        """Forget every result."""
        with self._lock:
            self._young, self._old, self._young_bytes, self._old_bytes = {}, {}, 0, 0

    def _keep(self, key: tuple[Hashable, ...], value: R) -> None:
        bytes_ = _ENTRY_BYTES + weight(value)
        for part in key:
            bytes_ += weight(part)
        if bytes_ * _LARGEST_SHARE > self.most_bytes:
            return
        with self._lock:
            if key in self._young:
                return
            if self._young_bytes + bytes_ > self.most_bytes // 2:
                self._old, self._old_bytes = self._young, self._young_bytes
                self._young, self._young_bytes = {}, 0
            self._young[key] = value
            self._young_bytes += bytes_


def kept(most_bytes: int = _MOST_BYTES) -> Callable[[Callable[P, R]], TextCache[P, R]]:
    """A decorator that makes a `TextCache` of a function."""
    return lambda function: TextCache(function, most_bytes)


def weight(value: Any) -> int:
    """The bytes that a value may take: a text, or lists, tuples and dicts of texts, numbers and booleans."""
    if type(value) is str:  # Python keeps the UTF-8 of a text that the runtime of rules was given
        return _TEXT_BYTES + (len(value) if value.isascii() else _CHAR_BYTES * len(value))
    if type(value) in (dict, list, tuple):
        return _BYTES_PER_MARSHALLED * len(marshal.dumps(value))
    return sys.getsizeof(value)
