"""The walk of a shell line's tree: statements in the order in which they run.

Owns where a statement may run, what it reads, and which variables are known. Invariant: a node that is not
understood makes the line opaque, and its children are walked all the same. One `Walk` a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from thor_policy.policy.structure.shell_commands import (
    MAX_COMMANDS,
    MAX_DIRS,
    NOTHING,
    Around,
    Command,
    Dirs,
    Feed,
    Line,
)
from thor_policy.policy.structure.shell_source import SUBSTITUTION, Node, Source, runs_of
from thor_policy.policy.structure.shell_words import UNKNOWN, Word, raw

#: Variables whose change gives other words another meaning.
_STEERING = frozenset((
    "HOME", "IFS", "PWD", "OLDPWD", "CDPATH", "SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT", "GLOBIGNORE",
))  # fmt: skip
_WORDS = frozenset((
    "word", "string", "raw_string", "ansi_c_string", "translated_string", "concatenation", "number",
    "simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion",
    "brace_expression", "extglob_pattern", "regex",
))  # fmt: skip
#: Nodes that hold statements in turn.
_SEQUENCES = frozenset(("program", "compound_statement", "do_group", "else_clause", "ERROR"))

#: Where the next statement may run if one succeeds, and if it fails.
Places: TypeAlias = tuple[Dirs, Dirs]


def _union(*places: Dirs) -> Dirs:
    return tuple(dict.fromkeys(place for some in places for place in some))


class Walk(Source):
    """The walk of one tree. `extra` are words that the parser gave to a redirection behind the command."""

    def __init__(self, line: Line, source: str, around: Around) -> None:
        super().__init__(line, source)
        self.around = around
        #: How many branches, loops and shells of their own a statement is inside of.
        self.conditional = 0

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
                self.arithmetic(node.start_byte, node.end_byte)
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
                chosen=self.line.chosen,
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
        body = "".join(map(self.text_of, nodes))
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
        name, children = self.text_of(variable), node.children
        start = len(self.line.commands)
        words = self.words(
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
        self.substitutions(node.children[1], dirs)
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
            self.line.functions.add(self.text_of(name))
        if body is not None:
            self._inside(body, dirs, feed)
        if name is not None and self.text_of(name) in self.line.programs_since(start):
            self.line.add(
                Command(self.text_of(name), "", [], "fatal", [], [], False, False, [], [])
            )  # it multiplies
        return dirs, dirs

    def _test_command(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        words: list[Word] = [Word(node.children[0].type)]
        stack = list(reversed(node.children[1:-1]))
        while stack:
            part = stack.pop()
            if part.type in _WORDS:
                words += self.words([part], dirs) if part.type != "regex" else []
            elif part.type == "test_operator" or not part.child_count:
                words.append(Word(self.text_of(part)))
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
        for run in runs_of(children):
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
                words += self.words(run, dirs)
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
        for run in runs_of(node.children):
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
            self.substitutions(node, dirs)
            return UNKNOWN, None
        value = node.child_by_field_name("value")
        if value is not None and value.type == "array":
            for part in runs_of(value.children[1:-1]):
                self.words(part, dirs)
            return self.text_of(name), None
        words = self.read(sign.end_byte, run[-1].end_byte, dirs)
        is_plain = sign.type == "=" and "{" not in self.source[sign.end_byte : sign.end_byte + 1]
        return self.text_of(name), words if is_plain else None

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
            words = self.words(node.children[1:], dirs)
            known = len(words) == 1 and words[0].is_known and not words[0].inputs
            inputs = tuple(program for word in words for program in word.inputs)
            return replace(
                feed, inputs=(*feed.inputs, *inputs), text=words[0].text if known else None, is_given=True
            ), []
        if node.type == "heredoc_redirect":
            return self._heredoc(node, dirs, feed)
        sign = next((child.type for child in node.children if child.type[0] in "<>&"), "")
        runs = runs_of(
            [child for child in node.children if child.type != "file_descriptor" and child.type != sign]
        )
        words = [word for run in runs for word in self.words(run, dirs)]
        first = self.words(runs[0], dirs)[:1] if runs else []
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
                words += self.words([child], dirs)
        if start is None or start.type != "heredoc_start":
            self.line.hide("a here-document is not understood")
            return feed, words
        delimiter = re.sub(r"[\\'\"]", "", self.text_of(start))
        text = self.text_of(body) if body is not None else ""
        strips = any(child.type == "<<-" for child in node.children)
        lines = [line.lstrip("\t") if strips else line for line in text.split("\n")]
        if (
            end is None
            or self.text_of(end).strip("\t") != delimiter
            or delimiter in lines
            or "$" in delimiter
        ):
            self.line.hide("where a here-document ends is not certain")
        if re.search(r"[\\'\"]", self.text_of(start)):
            return replace(
                feed, text=raw(text).encode("latin-1", "replace").decode("utf-8", "replace"), is_given=True
            ), words
        before = len(self.line.commands)
        count = self.substitutions(body, dirs) if body is not None else 0
        if count != len(SUBSTITUTION.findall(text)):
            self.line.hide("a here-document is not understood")
        inputs = self.line.programs_since(before)
        known = not re.search(r"[$`\\]", text)
        return replace(
            feed, inputs=(*feed.inputs, *inputs), text=text if known else None, is_given=True
        ), words

    def inside(self, node: Node, dirs: Dirs, feed: Feed = NOTHING) -> None:
        self.line.output = None
        self.conditional += 1
        self._sequence(node.children, dirs, feed)
        self.conditional -= 1

    def _file_redirect(self, node: Node, dirs: Dirs, feed: Feed, extra: Sequence[Word]) -> Places:
        self._redirected(node, dirs, feed)  # $(< file)
        return dirs, dirs


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
