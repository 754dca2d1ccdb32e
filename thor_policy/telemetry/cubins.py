"""Which GPUs a compiled library has code for: the architectures of its cubins and of its PTX.

Owns the reading of the CUDA code in an ELF file. (`cuobjdump --list-elf` lists the same; a device often lacks
it.) Invariant: a file is never loaded, headers alone are read, and each loop is bounded by the file's size.
Any thread.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from msgspec import Struct

_SECTION = b".nv_fatbin\0"
#: The first word of each container of GPU code in the section.
_MAGIC = struct.pack("<I", 0xBA55ED50)
#: Magic, version, size of this header, size of what follows.
_CONTAINER = struct.Struct("<IHHQ")
#: Kind, version, size of this header, size of the code, compressed size, options, minor, major, architecture.
_ENTRY = struct.Struct("<HHIQIIHHI")
_PTX, _CUBIN = 1, 2
#: Containers begin at multiples of this.
_STEP = 8


class Architectures(Struct, frozen=True):
    """Numbers such as 110 for sm_110. `cubins` run as they are; a driver compiles `ptx` for newer GPUs."""

    cubins: frozenset[int]
    ptx: frozenset[int]


def architectures(path: Path) -> Architectures | None:
    """The architectures that a library has code for; None if it has no CUDA code, or is unreadable."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            section = _section(data)
            return None if section is None else _scan(data, *section)
    except (OSError, ValueError, OverflowError, struct.error):  # ValueError: an empty file
        return None


def _section(data: mmap.mmap) -> tuple[int, int] | None:
    """Begin and end of the section with GPU code."""
    if data[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return None
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    if not names_at < count:
        return None
    names = sections[names_at][4]
    for name, _type, _flags, _address, offset, length in sections:
        if data[names + name : names + name + len(_SECTION)] == _SECTION:
            return offset, min(offset + length, len(data))
    return None


def _scan(data: mmap.mmap, at: int, end: int) -> Architectures:
    codes: dict[int, set[int]] = {_PTX: set(), _CUBIN: set()}
    begin = at
    while (at := data.find(_MAGIC, at, end)) >= 0 and at + _CONTAINER.size <= end:
        if (at - begin) % _STEP:
            at += 1
            continue
        _magic, _version, header, size = _CONTAINER.unpack_from(data, at)
        entry, stop = at + header, min(at + header + size, end)
        while entry + _ENTRY.size <= stop:
            kind, _version, header, length, *_, architecture = _ENTRY.unpack_from(data, entry)
            if kind in codes:
                codes[kind].add(architecture)
            entry += max(header + length, _STEP)
        at = max(stop, at + _STEP)
        at += (begin - at) % _STEP
    return Architectures(frozenset(codes[_CUBIN]), frozenset(codes[_PTX]))
