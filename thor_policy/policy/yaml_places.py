"""Where each character of a text in YAML stands in its file.

Owns how a scalar of each style becomes its value: folding, escapes, indentation. Invariant: the offsets are
those of the value that libyaml read, or of the scalar's first character if the two differ. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

#: An anchor or a tag before the scalar itself.
_PROPERTIES = re.compile(r"(?:[&!]\S*(?:\s|#.*)*)*")
#: Hexadecimal digits of an escape in double quotes; the other escapes have one character.
_ESCAPE_DIGITS = {"x": 2, "u": 4, "U": 8}

#: A character of a value, and the offset in the file of what made it.
_Origin = tuple[str, int]


def offsets(text: str, node: yaml.ScalarNode) -> list[int]:
    """Offset in `text` of each character of the node's value, and of the end of the value."""
    start, end = node.start_mark.index, node.end_mark.index
    if properties := _PROPERTIES.match(text, start, end):
        start = properties.end()
    value: str = node.value
    if node.style in ("|", ">"):
        candidates: Iterator[list[_Origin]] = _block(text, start, end)
    elif node.style in ("'", '"'):
        start, end = start + 1, end - 1
        candidates = iter([list(_flow(text, start, end, node.style))])
    else:
        candidates = iter([list(_flow(text, start, end, ""))])
    for origins in candidates:
        if len(origins) == len(value) and all(a in (b, "") for (a, _), b in zip(origins, value, strict=True)):
            return [offset for _, offset in origins] + [
                origins[-1][1] + 1 if node.style in ("|", ">") and origins else end
            ]
    return [start] * (len(value) + 1)


def _flow(text: str, start: int, end: int, quote: str) -> Iterator[_Origin]:
    """The characters of a plain or quoted scalar between `start` and `end`; an escaped one is shown as ""."""
    at = start
    while at < end:
        char = text[at]
        if char in " \t\n":
            stop = at
            while stop < end and text[stop] in " \t\n":
                stop += 1
            breaks = [offset for offset in range(at, stop) if text[offset] == "\n"]
            if not breaks:
                yield from ((text[offset], offset) for offset in range(at, stop))
            elif len(breaks) == 1:
                yield " ", breaks[0]
            else:
                yield from (("\n", offset) for offset in breaks[1:])
            at = stop
        elif quote == "'" and char == "'":
            yield char, at
            at += 2
        elif quote == '"' and char == "\\" and text[at + 1] == "\n":
            at += 2
            while at < end and text[at] in " \t\n":
                if text[at] == "\n":
                    yield "\n", at
                at += 1
        elif quote == '"' and char == "\\":
            yield "", at
            at += 2 + _ESCAPE_DIGITS.get(text[at + 1], 0)
        else:
            yield char, at
            at += 1


def _block(text: str, start: int, end: int) -> Iterator[list[_Origin]]:
    """The characters of a block scalar, for each indentation that it may have."""
    header, _, content = text[start:end].partition("\n")
    lines: list[tuple[int, str]] = []
    at = start + len(header) + 1
    for line in content.splitlines(keepends=True):
        lines.append((at, line))
        at += len(line)
    widest = max((len(line) - len(line.lstrip(" ")) for _, line in lines), default=0)
    for indent in range(1, max(widest, 1) + 1):
        yield list(_unindented(header.partition("#")[0], lines, indent))


def _unindented(header: str, lines: list[tuple[int, str]], indent: int) -> Iterator[_Origin]:
    folded = header.startswith(">")
    last: int | None = None  # offset of the line break before this line, if it counts
    empty: list[int] = []  # those of the empty lines since then
    was_blank = False
    for start, ended in lines:
        line = ended.removesuffix("\n")
        spaces = len(line) - len(line.lstrip(" "))
        if spaces == len(line) and spaces <= indent:
            if ended.endswith("\n"):
                empty.append(start + len(line))
            continue
        if spaces < indent:
            break  # it has another indentation
        is_blank = line[indent] in " \t"
        if last is not None:
            if folded and not was_blank and not is_blank:
                if not empty:
                    yield " ", last
            else:
                yield "\n", last
        yield from (("\n", offset) for offset in empty)
        yield from ((char, start + indent + number) for number, char in enumerate(line[indent:]))
        last, empty, was_blank = start + len(line) if ended.endswith("\n") else None, [], is_blank
    if "-" not in header and last is not None:
        yield "\n", last
    if "+" in header:
        yield from (("\n", offset) for offset in empty)
