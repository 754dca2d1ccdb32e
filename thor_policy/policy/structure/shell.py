"""shell(text): the commands of a shell line, with what they read, write, run and send.

Owns the walk of tree-sitter-bash's tree. Invariant: total, deterministic and bounded. What is not fully
understood gives `opaque` = the reason; the members then still hold what was read, for rules that deny. The
parser and `shell_words` must agree on each word, and no character may lie between nodes; otherwise the line is
opaque. Results are cached by text. Any thread.
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tree_sitter
import tree_sitter_bash
from msgspec.structs import replace

from thor_policy.core.requests import Json
from thor_policy.policy.structure.known_programs import BUILTIN
from thor_policy.policy.structure.programs import Faulty, Programs
from thor_policy.policy.structure.shell_commands import (
    MAX_COMMANDS,
    MAX_DIRS,
    MAX_NESTED,
    NOTHING,
    Around,
    Command,
    Dirs,
    Feed,
    Line,
)
from thor_policy.policy.structure.shell_words import UNKNOWN, Misread, Value, Word, raw, words_of

#: Characters of a text that is read; a longer one is opaque.
MAX_CHARS = 16_384
#: Signs of the shell in a text: the parser takes quadratic time for a text of wrong ones.
MAX_SIGNS = 1024
#: Levels of the parser's tree.
_MAX_LEVELS = 60
#: Members of the result; those of its `commands` are the fields of `Command`.
MEMBERS = frozenset(
    "opaque commands paths reads writes urls kinds unknown runs_input wipes variables".split()
)
_EXPANSION = re.compile(
    r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:\}|:?[-?=][^{}`$'\"\\]*\}))"
)
_ARITHMETIC = re.compile(r"[\d\s+*/%()<>=!&|?:^~\[\]$-]*")
_SUBSTITUTION = re.compile(r"[$<>]\(|`[^`]*`")
_JOINED = re.compile(r"(?:\\\n)+")
_GAP = re.compile(r"(?:[ \t\n]|\\\n)*")
#: Variables whose change gives other words another meaning.
_STEERING = frozenset("HOME IFS PWD OLDPWD CDPATH SHELLOPTS BASHOPTS POSIXLY_CORRECT GLOBIGNORE".split())
#: Variables of the environment that hold no secret.
_PLAIN = frozenset(
    "HOME PWD IFS USER LOGNAME PATH SHELL LANG TERM HOSTNAME HOSTTYPE OSTYPE UID EUID PPID RANDOM SECONDS LINENO BASH "
    "BASH_VERSION COLUMNS LINES TMPDIR OLDPWD CI NODE_ENV VIRTUAL_ENV REPLY MAPFILE PIPESTATUS OPTARG OPTIND".split()
)
_SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|COOKIE|SESSION|PRIVATE|_PAT$|DSN|DATABASE_URL", re.IGNORECASE
)
_WORDS = frozenset(
    "word string raw_string ansi_c_string translated_string concatenation number simple_expansion expansion "
    "command_substitution process_substitution arithmetic_expansion brace_expression extglob_pattern regex".split()
)
#: Nodes whose text is looked up by where it begins.
_NESTED = frozenset("command_substitution process_substitution arithmetic_expansion expansion".split())
#: Nodes that hold statements in turn.
_SEQUENCES = frozenset("program compound_statement do_group else_clause ERROR".split())

_LANGUAGE = tree_sitter.Language(tree_sitter_bash.language())
_local = threading.local()
_BUILT_IN = Programs(BUILTIN)
#: Compiled tables, each with the table itself, so that its id is not another's.
_compiled: dict[int, tuple[Any, Programs]] = {}

Node: TypeAlias = tree_sitter.Node
Places: TypeAlias = tuple[Dirs, Dirs]


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


_read_short = functools.lru_cache(maxsize=256)(_read)


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
    root = _local.parser.parse(source).root_node
    if root.has_error:
        line.hide("it cannot be parsed")
    walk = _Walk(line, source.decode("latin-1"), around)
    levels = walk.levels_of(root, _MAX_LEVELS - line.levels)
    if line.levels + levels > _MAX_LEVELS:
        line.hide(f"it nests deeper than {_MAX_LEVELS} levels")
        return dirs, dirs
    line.nested, line.levels = line.nested + 1, line.levels + levels
    after = walk.statement(root, dirs, feed)
    line.nested, line.levels = line.nested - 1, line.levels - levels
    return after


def _union(*places: Dirs) -> Dirs:
    return tuple(dict.fromkeys(place for some in places for place in some))


class _Walk:
    """The walk of one tree. `extra` are words that the parser gave to a redirection behind the command."""

    def __init__(self, line: Line, source: str, around: Around) -> None:
        self.line = line
        self.source = source
        self.around = around
        self.nodes: dict[int, Node] = {}
        self.conditional = 0
        self.dirs: Dirs = (".",)

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
                if covers and start > end and not _GAP.fullmatch(self.source, end, start):
                    self.line.hide("the parser skips a part of it")
                if (
                    start > end
                    and self.source[end - 1 : end] not in ";&|("
                    and _JOINED.fullmatch(self.source, end, start)
                ):
                    self.line.hide("a word goes on in the next line")
                if child.type == "comment" and start and self.source[start - 1] not in " \t\n;&|()":
                    self.line.hide("a comment begins inside of a word")
                end = child.end_byte
                if child.child_count or child.type in _NESTED:
                    stack.append((child, level + 1))
        return levels

    # ------------------------------------------------------------ statements

    def statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word] = ()) -> Places:
        """Read a statement; where the next one may run if it succeeds, or fails."""
        if len(self.line.commands) >= MAX_COMMANDS:
            self.line.hide(f"it has more than {MAX_COMMANDS} commands")
            return dirs, dirs
        if len(dirs) > MAX_DIRS:
            self.line.hide(f"a command may run in more than {MAX_DIRS} directories")
            dirs = dirs[:MAX_DIRS]
        kind = node.type
        method = getattr(self, f"_{kind}", None)
        if method is not None:
            return method(node, dirs, feed, extra)  # type: ignore[no-any-return]
        if extra:
            self.line.hide("words follow a redirection of no command")
        if kind in _SEQUENCES:
            if node.child_count and node.children[0].type == "((":
                self._arithmetic(node.start_byte, node.end_byte)
                return dirs, dirs
            return self._sequence(node.children, dirs, feed)
        if kind == "comment":
            return dirs, dirs
        self.line.hide(f"{kind.replace('_', ' ')} is not understood")
        return self._sequence(node.children, dirs, feed)

    def _sequence(self, nodes: Sequence[Node], dirs: Dirs, feed: Feed) -> Places:
        succeeded = failed = dirs
        for node in nodes:
            if node.is_named and node.type != "comment":
                succeeded, failed = self.statement(node, _union(succeeded, failed), feed)
        return succeeded, failed

    def _inside(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word] = ()) -> Places:
        """A statement that may not run, or runs in a shell of its own: its assignments are not relied on."""
        self.conditional += 1
        after = self.statement(node, dirs, feed, extra)
        self.conditional -= 1
        return after

    def _list(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        left, right = node.named_children[0], node.named_children[-1]
        succeeded, failed = self.statement(left, dirs, feed)
        if any(child.type == "&&" for child in node.children):
            after, also = self._inside(right, succeeded, feed, extra)
            return after, _union(failed, also)
        after, also = self._inside(right, failed, feed, extra)
        return _union(succeeded, after), also

    def _pipeline(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        start = len(self.line.commands)
        stages = [child for child in node.named_children if child.type != "comment"]
        for stage in stages:
            self._inside(stage, dirs, feed, extra if stage is stages[-1] else ())
            feed = Feed(
                inputs=tuple(dict.fromkeys((*feed.inputs, *self.line.programs_since(start)))) or ("?",),
                text=self.line.output,
                is_given=True,
                lists=self.line.listing,
            )
        self.line.output = None
        return dirs, dirs

    def _negated_command(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        succeeded, failed = self.statement(node.named_children[-1], dirs, feed, extra)
        return failed, succeeded

    def _subshell(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        if extra:
            self.line.hide("words follow a subshell")
        self.conditional += 1
        self._sequence(node.children, dirs, feed)
        self.conditional -= 1
        return dirs, dirs

    def _if_statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        return self._branches(node.children, dirs, feed)

    def _branches(self, nodes: Sequence[Node], dirs: Dirs, feed: Feed) -> Places:
        """`if` with its branches: what stands before `then` is a condition."""
        self.conditional += 1
        then = next((at for at, child in enumerate(nodes) if child.type == "then"), 0)
        succeeded, failed = self._sequence(nodes[:then], dirs, feed)
        ends: list[Dirs] = []
        body = [child for child in nodes[then:] if child.type not in ("elif_clause", "else_clause")]
        ends += self._sequence(body, succeeded, feed)
        for clause in nodes[then:]:
            if clause.type == "elif_clause":
                ends += self._branches(clause.children, failed, feed)
            elif clause.type == "else_clause":
                ends += self._sequence(clause.children, failed, feed)
        self.conditional -= 1
        return _union(failed, *ends), _union(failed, *ends)

    def _loop(
        self, nodes: Sequence[Node], dirs: Dirs, feed: Feed, values: Mapping[str, tuple[str, ...]]
    ) -> Places:
        """Statements that run again and again: what they assign is not known in them, but for `values`."""
        body = "".join(map(self._text, nodes))
        for name in (*self.line.values, *values):
            if re.search(rf"(?<![$\w{{]){name}\b", body):
                self.line.values[name] = values = ()  # type: ignore[assignment]
        self.line.values |= dict(values)
        self.conditional += 1
        after = _union(*self._sequence(nodes, dirs, feed))
        self.conditional -= 1
        if set(after) - set(dirs):
            self.line.hide("the running directory changes in a loop")
        return _union(dirs, after), dirs

    def _while_statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        return self._loop(node.children, dirs, feed, {})

    def _for_statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        variable = node.child_by_field_name("variable")
        if node.children[0].type != "for" or variable is None:
            self.line.hide("select is not understood")
            return self._sequence(node.children, dirs, feed)
        name, children = self._text(variable), node.children
        start = len(self.line.commands)
        words = self._words(
            [child for at, child in enumerate(children) if node.field_name_for_child(at) == "value"], dirs
        )
        self.line.foreign[name] = self.line.programs_since(start)
        self.line.note_variable(name)
        known = 0 < len(words) <= 32 and all(word.is_known and not word.inputs for word in words)
        texts = tuple(dict.fromkeys(word.text for word in words)) if known else ()
        body = [child for child in children if child.type in ("do_group", "compound_statement")]
        after = self._loop(body, dirs, feed, {name: texts})
        self.line.values[name] = ()
        return after

    def _c_style_for_statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        self.line.hide("a loop over numbers is not understood")
        body = [child for child in node.children if child.type in ("do_group", "compound_statement")]
        return self._loop(body, dirs, feed, {})

    def _case_statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        self._substitutions(node.children[1], dirs)
        self.conditional += 1
        ends = [dirs]
        for item in node.named_children:
            if item.type == "case_item":
                bracket = next((at for at, child in enumerate(item.children) if child.type == ")"), 0)
                ends += self._sequence(item.children[bracket:], _union(*ends), feed)
        self.conditional -= 1
        return _union(*ends), _union(*ends)

    def _function_definition(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        self.line.hide("it defines a function")
        name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        start = len(self.line.commands)
        if name is not None:
            self.line.functions.add(self._text(name))
        if body is not None:
            self._inside(body, dirs, feed)
        if name is not None and self._text(name) in self.line.programs_since(start):
            self.line.add(
                Command(self._text(name), "", [], "fatal", [], [], False, False, [], [])
            )  # it multiplies
        return dirs, dirs

    def _test_command(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        words: list[Word] = [Word(node.children[0].type)]
        stack = list(reversed(node.children[1:-1]))
        while stack:
            part = stack.pop()
            if part.type in _WORDS:
                words += self._words([part], dirs) if part.type != "regex" else []
            elif part.type == "test_operator" or not part.child_count:
                words.append(Word(self._text(part)))
            else:
                stack += reversed(part.children)
        texts = [word.text for word in words]
        is_number = any(re.fullmatch(r"-(eq|ne|lt|gt|le|ge)", text) for text in texts)
        if "-v" in texts or "-R" in texts or (is_number and not all(word.is_known for word in words)):
            self.line.hide("a test may evaluate what a variable holds")
        for word in words[1:]:
            if word.is_known and re.search(r"^[~.]|/", word.text):
                self.line.add_path(word.text, dirs)
        self.line.run(
            [words[0], *(Word(word.text.replace(UNKNOWN, "?"), word.inputs) for word in words[1:])],
            dirs,
            feed,
            self.around,
        )
        return dirs, dirs

    # ------------------------------------------------------------ commands

    def _command(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        return self._simple(node.children, dirs, feed, extra)

    _declaration_command = _unset_command = _command

    def _simple(self, children: Sequence[Node], dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        """A command: assignments, words and redirections in any order."""
        line = self.line
        words: list[Word] = []
        names: list[str] = []
        values: list[Word] = []
        start = len(line.commands)
        for run in _runs(children):
            head = run[0]
            if head.type.endswith("_redirect"):
                feed, others = self._redirected(head, dirs, feed)
                words += others
            elif head.type == "variable_assignment":
                name, value = self._assignment(run, dirs)
                for word in value or ():
                    line.note_value(word.text, dirs)
                if words:  # export A=b
                    self._assign(name, value)
                    line.variables[name] = None
                    words.append(Word(name))
                else:
                    names.append(name)
                    values += value or ()
            elif head.type != "comment":
                words += self._words(run, dirs)
        words += extra
        for name in names:
            line.variables[name] = None
        if not words:
            line.hide("a command has no program")
            return dirs, dirs
        around = replace(self.around, variables=(*self.around.variables, *names))
        before = tuple(dict.fromkeys(program for word in values for program in word.inputs))
        if before or start < len(line.commands):
            feed = replace(feed, inputs=feed.inputs)
        return line.run(words, dirs, feed, around)

    def _variable_assignment(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        name, value = self._assignment([node], dirs)
        for word in value or ():
            self.line.note_value(word.text, dirs)
        self._assign(name, value)
        self.line.note_variable(name)
        return dirs, dirs

    def _variable_assignments(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        for run in _runs(node.children):
            name, value = self._assignment(run, dirs)
            self._assign(name, value)
            self.line.note_variable(name)
        return dirs, dirs

    def _assignment(self, run: Sequence[Node], dirs: Dirs) -> tuple[str, list[Word] | None]:
        """The name and the value of an assignment; None for a value that is not followed (an array, `+=`)."""
        node = run[0]
        name = node.child_by_field_name("name")
        sign = next((child for child in node.children if child.type in ("=", "+=")), None)
        if name is None or sign is None or name.type != "variable_name":
            self.line.hide("an assignment is not understood")
            self._substitutions(node, dirs)
            return UNKNOWN, None
        value = node.child_by_field_name("value")
        if value is not None and value.type == "array":
            for part in _runs(value.children[1:-1]):
                self._words(part, dirs)
            return self._text(name), None
        words = self._read(sign.end_byte, run[-1].end_byte, dirs)
        is_plain = sign.type == "=" and "{" not in self.source[sign.end_byte : sign.end_byte + 1]
        return self._text(name), words if is_plain else None

    def _assign(self, name: str, words: list[Word] | None) -> None:
        inputs = tuple(program for word in words or () for program in word.inputs)
        known = (
            words is not None and len(words) <= 1 and all(word.is_known and not word.inputs for word in words)
        )
        texts = (words[0].text if words else "",) if known and words is not None else ()
        self.line.values[name] = texts if not self.conditional else ()
        if inputs:
            self.line.foreign[name] = inputs
        if name in _STEERING:
            self.line.hide(f"it changes {name}")

    # ------------------------------------------------------------ redirections

    def _redirected_statement(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        body = node.child_by_field_name("body")
        start = len(self.line.commands)
        words, later = list(extra), []  # type: tuple[list[Word], list[Node]]
        for child in node.children:
            if child.type.endswith("_redirect"):
                feed, others = self._redirected(child, dirs, feed)
                words += others
                later += _behind(child)
            elif child.type == "ERROR":
                self._sequence(child.children, dirs, feed)
        if body is None:
            return dirs, dirs
        succeeded, failed = self.statement(body, dirs, feed, words)
        if any(command.kind == "fetches" for command in self.line.commands[start:]) and self.line.written:
            self.line.downloads = True
        piped = Feed(inputs=self.line.programs_since(start) or ("?",), text=self.line.output, is_given=True)
        for statement in later:  # behind a here-document
            after, also = self._inside(statement, _union(succeeded, failed), piped)
            succeeded, failed = _union(succeeded, after), _union(failed, also)
        return succeeded, failed

    def _redirected(self, node: Node, dirs: Dirs, feed: Feed) -> tuple[Feed, list[Word]]:
        """What a command reads after a redirection, and the words behind it, which are the command's."""
        if node.type == "herestring_redirect":
            words = self._words(node.children[1:], dirs)
            known = len(words) == 1 and words[0].is_known and not words[0].inputs
            inputs = tuple(program for word in words for program in word.inputs)
            return replace(
                feed, inputs=(*feed.inputs, *inputs), text=words[0].text if known else None, is_given=True
            ), []
        if node.type == "heredoc_redirect":
            return self._heredoc(node, dirs, feed)
        sign = next((child.type for child in node.children if child.type[0] in "<>&"), "")
        runs = _runs(
            [child for child in node.children if child.type != "file_descriptor" and child.type != sign]
        )
        words = [word for run in runs for word in self._words(run, dirs)]
        first = self._words(runs[0], dirs)[:1] if runs else []
        others = words[len(first) :]
        if not first:
            return feed, others
        if sign in (">&", "<&", ">&-", "<&-") and re.fullmatch(r"\d+-?|-", first[0].text):
            return feed, others
        if sign in ("<", "<&"):
            if first[0].inputs:
                return replace(feed, inputs=(*feed.inputs, *first[0].inputs), is_given=True), others
            self.line.read_from(first[0], dirs)
            files = () if first[0].text.startswith("/dev/fd/") or not first[0].is_known else (first[0].text,)
            return replace(feed, files=files, is_given=True), others
        self.line.redirected(first[0], dirs)
        return feed, others

    def _heredoc(self, node: Node, dirs: Dirs, feed: Feed) -> tuple[Feed, list[Word]]:
        start = node.named_children[0] if node.named_children else None
        body = next((child for child in node.children if child.type == "heredoc_body"), None)
        end = next((child for child in node.children if child.type == "heredoc_end"), None)
        words: list[Word] = []
        for at, child in enumerate(node.children):
            if child.type == "file_redirect":
                feed, others = self._redirected(child, dirs, feed)
                words += others
            elif node.field_name_for_child(at) == "argument":
                words += self._words([child], dirs)
        if start is None or start.type != "heredoc_start":
            self.line.hide("a here-document is not understood")
            return feed, words
        delimiter = re.sub(r"[\\'\"]", "", self._text(start))
        text = self._text(body) if body is not None else ""
        strips = any(child.type == "<<-" for child in node.children)
        lines = [line.lstrip("\t") if strips else line for line in text.split("\n")]
        if end is None or self._text(end).strip("\t") != delimiter or delimiter in lines or "$" in delimiter:
            self.line.hide("where a here-document ends is not certain")
        if re.search(r"[\\'\"]", self._text(start)):
            return replace(
                feed, text=raw(text).encode("latin-1", "replace").decode("utf-8", "replace"), is_given=True
            ), words
        before = len(self.line.commands)
        count = self._substitutions(body, dirs) if body is not None else 0
        if count != len(_SUBSTITUTION.findall(text)):
            self.line.hide("a here-document is not understood")
        inputs = self.line.programs_since(before)
        known = not re.search(r"[$`\\]", text)
        return replace(
            feed, inputs=(*feed.inputs, *inputs), text=text if known else None, is_given=True
        ), words

    # ------------------------------------------------------------ words

    def _text(self, node: Node) -> str:
        return self.source[node.start_byte : node.end_byte]

    def _words(self, run: Sequence[Node], dirs: Dirs) -> list[Word]:
        """The words that nodes become, each run of nodes without a gap being one."""
        words: list[Word] = []
        for part in _runs(run):
            words += self._read(part[0].start_byte, part[-1].end_byte, dirs)
        return words

    def _read(self, begin: int, end: int, dirs: Dirs) -> list[Word]:
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
            if texts is None and name not in line.foreign and name not in _PLAIN:
                line.hide(f"what {name} holds is not known")
                if _SECRET_NAME.search(name):
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
            self._arithmetic(node.start_byte, node.end_byte)
            return Value((), node.end_byte)
        start, dirs = len(line.commands), self.dirs
        if node.type == "expansion":
            if re.match(r"\$\{[!#]?\w*[@\[]|\$\{!|.*[@]\w\}$|.*:?=", self._text(node)):
                line.hide("an expansion is not understood")
            if self._substitutions(node, dirs) != len(_SUBSTITUTION.findall(self._text(node))):
                line.hide("an expansion is not understood")
            inputs = line.programs_since(start)
        elif char in "<>":
            self._subshell_of(node, dirs, NOTHING if char == "<" else Feed(inputs=("?",), is_given=True))
            inputs = line.programs_since(start)
            self.dirs = dirs
            return Value(("/dev/fd/63",), node.end_byte, inputs or ("?",))
        else:
            self._subshell_of(node, dirs)
            inputs = line.programs_since(start) or ("?",)
            if inputs == ("nproc",):
                self.dirs = dirs
                return Value(("2",), node.end_byte)
            if line.output is not None and len(line.commands) == start + 1:
                self.dirs = dirs
                return Value((raw(line.output.rstrip("\n")),), node.end_byte, inputs)
        self.dirs = dirs
        return Value((), node.end_byte, inputs)

    def _subshell_of(self, node: Node, dirs: Dirs, feed: Feed = NOTHING) -> None:
        self.line.output = None
        self.conditional += 1
        self._sequence(node.children, dirs, feed)
        self.conditional -= 1

    def _file_redirect(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        self._redirected(node, dirs, feed)  # $(< file)
        return dirs, dirs

    def _substitutions(self, node: Node, dirs: Dirs) -> int:
        """Read the commands of all substitutions inside of a node; how many there are."""
        stack, count = [node], 0
        while stack:
            part = stack.pop()
            if part.type in ("command_substitution", "process_substitution"):
                self._subshell_of(part, dirs)
                count += 1
            else:
                stack += reversed(part.children)
        return count

    def _arithmetic(self, begin: int, end: int) -> None:
        if not _ARITHMETIC.fullmatch(self.source, begin, end):
            self.line.hide("arithmetic may run what a variable holds")


def _runs(nodes: Sequence[Node]) -> list[list[Node]]:
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


def _behind(node: Node) -> list[Node]:
    """The statements that the parser gave to a here-document: those behind it on its first line."""
    taken = ("heredoc_start", "heredoc_body", "heredoc_end", "file_redirect")
    return [
        child
        for at, child in enumerate(node.children)
        if node.type == "heredoc_redirect"
        and child.is_named
        and child.type not in taken
        and node.field_name_for_child(at) != "argument"
    ]
