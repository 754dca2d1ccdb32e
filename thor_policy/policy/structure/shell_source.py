"""The text of a shell line with its tree: which words its nodes become, and what expansions give.

Owns the agreement of the parser and `shell_words`. Invariant: where the two disagree, or a text lies between
nodes, the line is opaque. One `Source` a text; no state is shared.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import tree_sitter

from thor_policy.policy.structure.shell_commands import NOTHING, SECRET_NAME, Command, Dirs, Feed, Line
from thor_policy.policy.structure.shell_words import UNKNOWN, Misread, Value, Word, raw, words_of

Node: TypeAlias = tree_sitter.Node
_EXPANSION = re.compile(
    r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:\}|:?[-?=][^{}`$'\"\\]*\}|%%?/\}))"
)
_ARITHMETIC = re.compile(r"[\d\s+*/%()<>=!&|?:^~\[\]$-]*")
SUBSTITUTION = re.compile(r"[$<>]\(|`[^`]*`")
_JOINED = re.compile(r"(?:\\\n)+")
_GAP = re.compile(r"(?:[ \t\n]|\\\n)*")
#: Variables of the environment that hold no secret.
_PLAIN = frozenset((
    "HOME", "PWD", "IFS", "USER", "LOGNAME", "PATH", "SHELL", "LANG", "TERM", "HOSTNAME", "HOSTTYPE",
    "OSTYPE", "UID", "EUID", "PPID", "RANDOM", "SECONDS", "LINENO", "BASH", "BASH_VERSION", "COLUMNS",
    "LINES", "TMPDIR", "OLDPWD", "CI", "NODE_ENV", "VIRTUAL_ENV", "REPLY", "MAPFILE", "PIPESTATUS",
    "OPTARG", "OPTIND",
))  # fmt: skip
#: Nodes that end at a line break.
_ONE_LINE = frozenset((
    "command", "redirected_statement", "file_redirect", "herestring_redirect", "declaration_command",
    "unset_command", "variable_assignment", "variable_assignments", "concatenation",
))  # fmt: skip
#: Nodes whose text is looked up by where it begins.
_NESTED = frozenset(("command_substitution", "process_substitution", "arithmetic_expansion", "expansion"))


class Source(ABC):
    """A text, as characters that are its bytes, and the nodes of its tree."""

    def __init__(self, line: Line, source: str) -> None:
        self.line = line
        self.source = source
        self.nodes: dict[int, Node] = {}
        self.dirs: Dirs = (".",)

    @abstractmethod
    def inside(self, node: Node, dirs: Dirs, feed: Feed = NOTHING) -> None:
        """Read the commands of a substitution."""

    def levels_of(self, root: Node, most: int) -> int:
        """The levels of the tree, at most one more than `most`.

        Notes nodes by where they begin; a text that no node covers makes the line opaque.
        """
        stack, levels = [(root, 1)], 0
        while stack:
            node, level = stack.pop()
            levels = max(levels, level)
            if level > most:
                return level
            kind = node.type
            if kind in _NESTED:
                self.nodes.setdefault(node.start_byte, node)
            children = node.children
            if not children:
                continue
            covers = kind not in ("string", "heredoc_body", "expansion", "translated_string")
            end = node.start_byte
            for child in children:
                start = child.start_byte
                if start > end and covers and (fault := self._fault_of_gap(kind, end, start)):
                    self.line.hide(fault)
                if child.type == "comment" and start and self.source[start - 1] not in " \t\n;&|()":
                    self.line.hide("a comment begins inside of a word")
                end = child.end_byte
                if child.child_count or child.type in _NESTED:
                    stack.append((child, level + 1))
        return levels

    def _fault_of_gap(self, kind: str, begin: int, end: int) -> str:
        """What is wrong with the text between two nodes of a node of this kind; "" if bash reads it alike."""
        if not _GAP.fullmatch(self.source, begin, end):
            return "the parser skips a part of it"
        gap = self.source[begin:end]
        if _JOINED.fullmatch(gap) and self.source[begin - 1 : begin] not in ";&|(":
            return "a word goes on in the next line"
        # The parser takes a line break, a backslash and a line break for a blank; bash ends the command.
        is_one_line = "\n" not in gap.replace("\\\n", "")
        if not is_one_line and (kind in _ONE_LINE or "\\" in gap):
            return "a command goes on behind a line break"
        return ""

    def text_of(self, node: Node) -> str:
        return self.source[node.start_byte : node.end_byte]

    def words(self, run: Sequence[Node], dirs: Dirs) -> list[Word]:
        """The words that nodes become, each run of nodes without a gap being one."""
        words: list[Word] = []
        for part in runs_of(run):
            words += self.read(part[0].start_byte, part[-1].end_byte, dirs)
        return words

    def read(self, begin: int, end: int, dirs: Dirs) -> list[Word]:
        self.dirs = dirs
        try:
            return words_of(self.source, begin, end, self._expand)
        except Misread as error:
            self.line.hide(str(error))
            return [Word(UNKNOWN)]

    def _expand(self, at: int) -> Value:
        """The value of the expansion at an offset."""
        line, char = self.line, self.source[at]
        variable = _EXPANSION.match(self.source, at)
        if variable:
            name = variable[1] or variable[2]
            texts = line.values.get(name)
            if (
                texts is not None
                and "" in texts
                and variable[0][-1:] == "}"
                and variable[0] != f"${{{name}}}"
            ):
                texts = ()  # its default counts
            if texts is None and name not in line.foreign and name not in _PLAIN:
                line.hide(f"what {name} holds is not known")
                if SECRET_NAME.search(name):
                    line.add(Command("$", "", [name], "secrets", [], [], False, False, [], []))
            if texts is None and name in ("HOME", "PWD", "IFS"):
                texts = ({"HOME": "~", "PWD": ".", "IFS": " "}[name],)
            return Value(
                tuple(map(raw, texts or ())), variable.end(), line.foreign.get(name, ()) if not texts else ()
            )
        node = self.nodes.get(at)
        if node is None:
            special = re.compile(r"\$[\d@*#?$!_-]").match(self.source, at)
            if special is None:
                raise Misread("an expansion is not understood")
            return Value((), special.end())
        if node.type == "arithmetic_expansion":
            self.arithmetic(node.start_byte, node.end_byte)
            return Value((), node.end_byte)
        start, dirs = len(line.commands), self.dirs
        if node.type == "expansion":
            if re.match(r"\$\{[!#]?\w*[@\[]|\$\{!|.*[@]\w\}$|.*:?=", self.text_of(node)):
                line.hide("an expansion is not understood")
            if self.substitutions(node, dirs) != len(SUBSTITUTION.findall(self.text_of(node))):
                line.hide("an expansion is not understood")
            inputs = line.programs_since(start)
        elif char in "<>":
            self.inside(node, dirs, NOTHING if char == "<" else Feed(inputs=("?",), is_given=True))
            inputs = line.programs_since(start)
            self.dirs = dirs
            return Value(("/dev/fd/63",), node.end_byte, inputs or ("?",))
        else:
            self.inside(node, dirs)
            inputs = line.programs_since(start) or ("?",)
            if inputs == ("nproc",):
                self.dirs = dirs
                return Value(("2",), node.end_byte)
            if line.output is not None and len(line.commands) == start + 1:
                self.dirs = dirs
                return Value((raw(line.output.rstrip("\n")),), node.end_byte, inputs)
        self.dirs = dirs
        return Value((), node.end_byte, inputs)

    def substitutions(self, node: Node, dirs: Dirs) -> int:
        """Read the commands of all substitutions inside of a node; how many there are."""
        stack, count = [node], 0
        while stack:
            part = stack.pop()
            if part.type in ("command_substitution", "process_substitution"):
                self.inside(part, dirs)
                count += 1
            else:
                stack += reversed(part.children)
        return count

    def arithmetic(self, begin: int, end: int) -> None:
        if not _ARITHMETIC.fullmatch(self.source, begin, end):
            self.line.hide("arithmetic may run what a variable holds")


def runs_of(nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes in runs without a gap: each run is one word, or one redirection."""
    runs: list[list[Node]] = []
    for node in nodes:
        alone = node.type.endswith("_redirect") or node.type in (";", "&", "comment")
        if (
            runs
            and not alone
            and runs[-1][-1].end_byte == node.start_byte
            and not runs[-1][0].type.endswith("_redirect")
        ):
            runs[-1].append(node)
        else:
            runs.append([node])
    return runs
