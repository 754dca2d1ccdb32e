"""shell(text): the commands of a shell line, with what they read, write, run and send.

Owns the parser (tree-sitter-bash), the bounds of a text, and the cache of results. Invariant: total,
deterministic and bounded. What is not fully understood gives `opaque` = the reason; the members then still
hold what was read, for rules that deny. Any thread.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Mapping
from typing import Any

import tree_sitter
import tree_sitter_bash

from thor_policy.core.requests import Json
from thor_policy.policy.structure.known_programs import BUILTIN
from thor_policy.policy.structure.programs import Faulty, Programs
from thor_policy.policy.structure.shell_commands import (
    MAX_NESTED,
    NOTHING,
    Around,
    Dirs,
    Feed,
    Line,
)
from thor_policy.policy.structure.shell_walk import Places, Walk
from thor_policy.policy.text_cache import TextCache

#: Characters of a text that is read; a longer one is opaque.
MAX_CHARS = 16_384
#: Signs of the shell in a text: the parser takes quadratic time for a text of wrong ones.
MAX_SIGNS = 1024
#: Levels of the parser's tree.
_MAX_LEVELS = 60

#: Bytes that are not ASCII, as letters. To a shell they are letters too. The scanner of the grammar asks the
#: tables of C's ctype.h, which end at 255, and a character far beyond them ended the process.
_LETTERS = bytes(range(0x80)) + b"x" * 0x80
_LANGUAGE = tree_sitter.Language(tree_sitter_bash.language())
_local = threading.local()
_BUILT_IN = Programs(BUILTIN)
#: Compiled tables, each with the table itself, so that its id is not another's.
_compiled: dict[int, tuple[Any, Programs]] = {}


def shell(text: str, table: Mapping[str, Json] | None = None) -> dict[str, Json]:
    """The structure of a command line; kinds by a table of programs. Raises Faulty for a faulty table."""
    programs = _BUILT_IN if table is None else programs_of(table)
    return _read_short(text, programs) if len(text) <= 2048 else _read(text, programs)


def programs_of(table: Any) -> Programs:
    """The compiled table. Raises Faulty."""
    known = _compiled.get(id(table))
    if known is None or known[0] is not table:
        if not isinstance(table, dict):
            raise Faulty("the table of programs is no map")
        if len(_compiled) >= 16:
            _compiled.clear()
        known = _compiled[id(table)] = table, Programs(table, _BUILT_IN)
    return known[1]


def _read(text: str, programs: Programs) -> dict[str, Json]:
    line = Line(programs, _parse)
    if len(text) > MAX_CHARS:
        line.hide(f"the text is longer than {MAX_CHARS} characters")
    elif sum(map(text.count, "()[]{}<>|&;`$!")) > MAX_SIGNS:
        line.hide(f"the text has more than {MAX_SIGNS} signs of the shell")
    else:
        if unseen := _unseen(text):
            line.hide(f"the text holds {unseen}")
        _parse(line, text, (".",), NOTHING, Around())
    return line.result()


_read_short = TextCache(_read, 8 * 2**20)


def _unseen(text: str) -> str:
    """Which character of a text nobody sees; "" if there is none."""
    for char in text if not (text.isascii() and text.isprintable()) else "":
        code = ord(char)
        hidden = (
            (unicodedata.category(char)[0] in "CZ" and char not in " \n\t")
            or char in "\u034f\u115f\u1160\u3164\uffa0\ufffd\u2800"
            or 0xFE00 <= code <= 0xFE0F
            or 0xE0000 <= code <= 0xE0FFF
            or 0x17B4 <= code <= 0x17B5
            or 0x180B <= code <= 0x180F
        )
        if hidden:
            return f"U+{code:04X}, which is no plain character"
    return ""


def _parse(line: Line, text: str, dirs: Dirs, feed: Feed, around: Around) -> Places:
    """Read a command line that runs in `dirs`."""
    if line.nested >= MAX_NESTED:
        line.hide(f"command lines nest deeper than {MAX_NESTED} levels")
        return dirs, dirs
    source = text.encode("utf-8", "replace")
    if not hasattr(_local, "parser"):
        _local.parser = tree_sitter.Parser(_LANGUAGE)
    root = _local.parser.parse(source.translate(_LETTERS)).root_node
    if root.has_error:
        line.hide("it cannot be parsed")
    walk = Walk(line, source.decode("latin-1"), around)
    levels = walk.levels_of(root, _MAX_LEVELS - line.levels)
    if line.levels + levels > _MAX_LEVELS:
        line.hide(f"it nests deeper than {_MAX_LEVELS} levels")
        return dirs, dirs
    line.nested, line.levels = line.nested + 1, line.levels + levels
    after = walk.statement(root, dirs, feed)
    line.nested, line.levels = line.nested - 1, line.levels - levels
    return after
