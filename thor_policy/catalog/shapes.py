"""What a model needs besides its weights: the size of its attention cache, from the metadata of its file.

Owns the reading of a GGUF's shape. Invariant: no weight and no vocabulary is kept; a file that is not what it
should be gives None. (`gguf.GGUFReader` builds the whole vocabulary first, which takes seconds.) Any thread.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

#: Bytes of the fixed-size value types of GGUF, by number; 8 is a text, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _TEXT, _ARRAY = 4, 8, 9
#: Longest key, most keys and most entries of an array that are read: above them a file is damaged.
_MAX_KEY, _MAX_KEYS, _MAX_ENTRIES = 65_536, 10_000, 4_000_000
#: Bytes of a number in the attention cache, by setting `kv_type`. q8_0: blocks of 32 with a 16-bit scale.
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}


class Shape(Struct, frozen=True, kw_only=True):
    """Layers, heads of keys and values, and numbers in each of their vectors."""

    layers: int
    kv_heads: int
    key_length: int
    value_length: int

    def cache_bytes(self, kv_type: str, tokens: int) -> int:
        """Bytes of the attention cache of so many tokens, all streams together."""
        numbers = self.layers * self.kv_heads * (self.key_length + self.value_length)
        return int(numbers * _BYTES[kv_type] * tokens)


def shape_of(path: Path) -> Shape | None:
    """The shape of the model in a GGUF file; None where layers differ, or nothing is said."""
    try:
        with path.open("rb") as file:
            numbers = _numbers(file)
    except (OSError, ValueError, OverflowError, struct.error):
        return None
    layers, heads = numbers.get("block_count"), numbers.get("attention.head_count")
    kv_heads, width = numbers.get("attention.head_count_kv", heads), numbers.get("embedding_length")
    if not (layers and heads and kv_heads and width):
        return None
    head = width // heads
    return Shape(
        layers=layers,
        kv_heads=kv_heads,
        key_length=numbers.get("attention.key_length", head),
        value_length=numbers.get("attention.value_length", head),
    )


def _numbers(file: BinaryIO) -> dict[str, int]:
    """The 32-bit numbers of the metadata, by key without the architecture's name."""
    if file.read(4) != b"GGUF":
        raise ValueError("not a GGUF file")
    _version, _tensors, keys = struct.unpack("<IQQ", file.read(20))
    numbers: dict[str, int] = {}
    for _ in range(min(keys, _MAX_KEYS)):
        key = file.read(_length(file, _MAX_KEY)).decode("utf-8", errors="replace")
        (kind,) = struct.unpack("<I", file.read(4))
        if kind == _UINT32:
            (numbers[key.partition(".")[2]],) = struct.unpack("<I", file.read(4))
        else:
            _skip(file, kind)
    return numbers


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _TEXT:
        file.seek(_length(file), 1)
    elif kind == _ARRAY:
        (inner,) = struct.unpack("<I", file.read(4))
        count = _length(file, _MAX_ENTRIES)
        if inner == _TEXT:
            for _ in range(count):
                file.seek(_length(file), 1)
        else:
            file.seek(count * _size(inner), 1)
    else:
        file.seek(_size(kind), 1)


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"unknown type {kind}")
    return _SIZES[kind]


def _length(file: BinaryIO, most: int = 1 << 40) -> int:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > most:
        raise ValueError(f"a length of {length}")
    return int(length)
