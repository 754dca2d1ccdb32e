"""What SQL a text holds: `sql(text)`.

Owns what a statement may contain and still only read. Invariant: any text gives a `Sql`, in bounded time, and
`reads_only` is true only if no database that can run the text changes anything by it. Pure; any thread.

Databases read a text in several ways: `\\'` goes on in MySQL and ends a string elsewhere, `/*! .. */` runs in
MySQL, comments nest in PostgreSQL, `#` is a comment or an operator, T-SQL needs no `;` between statements.
Clients have commands of their own (`\\!`, `.shell`, `GO`, `DELIMITER`). So there are three steps:

1. Tokens. `tokens_of` splits only what every database and client splits in the same way. All else is opaque.
   From then on the statements are the same everywhere, and a database that does not know one runs nothing.
2. Words. The first word says the kind of a statement. A statement only reads if none of its words may begin
   a change (in T-SQL also in its middle) or make one of it, and each function is one of `words.HARMLESS`.
3. Trees. sqlglot parses each statement as PostgreSQL, MySQL, SQLite and T-SQL: the first two and the last are
   the servers in use, SQLite is what devices have, and between them they cover the ways to quote. At least
   one must accept it, and all that accept it must see a statement that reads where the words say so.
   sqlglot alone is no judge: it takes `SELECT 1 FROM t SHUTDOWN` for an alias, which T-SQL runs.

What a text does not show is not seen: a view, a trigger, an operator or a column that is a function.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from thor_policy.policy.structure import sql_words as words
from thor_policy.policy.structure.sql_tokens import NOTHING, OPEN, Opaque, Token, is_array, tokens_of
from thor_policy.policy.text_cache import kept

if TYPE_CHECKING:
    from sqlglot import exp

#: Longest text that is read, in characters.
MAX_CHARS = 4000
#: Most statements and tokens of a text.
MAX_STATEMENTS, MAX_TOKENS = 20, 600
#: Steps of a parser, which takes 1 or 2 for each token: 30 joins without ON would take 2^30.
_STEPS, _STEPS_PER_TOKEN = 200, 5
#: Text of a string that sqlglot may see; any other is shown to it as 'x'.
_PLAIN_STRING = re.compile(r"'[\w ]*'", re.ASCII)
_DIALECTS = ("postgres", "mysql", "sqlite", "tsql")


class Sql(TypedDict):
    """What a text holds. `opaque` is why it was not understood; the rest is then empty. "" if it was.

    `kinds`, `tables` (lower case, qualified as written) and `functions` are sorted, without repetitions.
    """

    opaque: str
    statements: int
    kinds: list[str]
    tables: list[str]
    functions: list[str]
    reads_only: bool


# ---------------------------------------------------------------- statements


def sql(text: str) -> Sql:
    """What SQL a text holds. The result is shared: do not change it."""
    if len(text) > MAX_CHARS:
        return _nothing(f"the text has more than {MAX_CHARS} characters")
    return _sql(text)


def load() -> None:
    """Load the parsers, which takes 0.2 s. The first text does it otherwise."""
    _parsers()


@kept()
def _sql(text: str) -> Sql:
    try:
        statements = _statements(list(tokens_of(text)))
        kinds: set[str] = set()
        tables: set[str] = set()
        functions: set[str] = set()
        reads_only = True
        for number, tokens in enumerate(statements, 1):
            statement = _Statement(tokens, number)
            kinds |= statement.kinds
            tables |= statement.tables
            functions |= statement.functions
            reads_only = reads_only and statement.reads_only
    except Opaque as reason:
        return _nothing(f"the text {reason}")
    except RecursionError:
        return _nothing("the text nests too deeply")
    return {
        "opaque": "",
        "statements": len(statements),
        "kinds": sorted(kinds),
        "tables": sorted(tables),
        "functions": sorted(functions),
        "reads_only": reads_only,
    }


def _nothing(reason: str) -> Sql:
    return {
        "opaque": reason,
        "statements": 0,
        "kinds": [],
        "tables": [],
        "functions": [],
        "reads_only": False,
    }


def _statements(tokens: Sequence[Token]) -> list[list[Token]]:
    """The tokens of each statement. Raises Opaque if there is none, or if one holds others."""
    if len(tokens) > MAX_TOKENS:
        raise Opaque(f"has more than {MAX_TOKENS} words and signs")
    statements: list[list[Token]] = [[]]
    for token in tokens:
        if token == (("sign", ";")):
            statements.append([])
        else:
            statements[-1].append(token)
    statements = [statement for statement in statements if statement]
    if not statements:
        raise Opaque("has no statement")
    if len(statements) > MAX_STATEMENTS:
        raise Opaque(f"has more than {MAX_STATEMENTS} statements")
    for statement in statements:
        if statement[0].text in ("CREATE", "ALTER") and Token("word", "BEGIN") in statement:
            raise Opaque("has the body of a routine, which may hold several statements")
    return statements


class _Statement:
    """One statement: its kinds, tables and functions, and whether it only reads. Raises Opaque."""

    def __init__(self, tokens: Sequence[Token], number: int) -> None:
        self._tokens = tokens
        body = _without_explain(tokens)
        first = _first_word(body)
        self.functions = set(_functions(tokens))
        self.tables: set[str] = set()
        is_explained = len(body) < len(tokens)
        if (is_explained and first not in words.KINDS and first != "WITH") or first == "SHOW":
            # DESCRIBE customers, SHOW TABLES: no tree to look at
            if not all(token.kind != "sign" or token.text in (".", "=") for token in body):
                raise Opaque(f"has a statement, number {number}, that shows more than names")
            self.kinds = {"read"}
            trees_read = True
            self.tables = {_dotted(body[first == "TABLE" :])} - {""} if is_explained else set()
        elif first == "PRAGMA":
            trees_read = _is_reading_pragma(tokens)
            self.kinds = {"read" if trees_read else "set"}
            self.functions = set()
        else:
            self.kinds = _kinds(body)
            trees = _trees(body)
            if not trees and self.kinds & {"read", "other"}:
                raise Opaque(f"has a statement, number {number}, that no database is known to accept")
            trees_read = bool(trees) and all(map(_tree_reads, trees))
            self.tables = {name for tree in trees for name in _tables(tree)}
            if first in words.CALLS:
                self.functions |= {_dotted(body[1:])} - {""}
                self.tables = set()
            elif not trees_read and not self.tables:
                self.tables = set(_targets(body))
        self.reads_only = (
            trees_read
            and self.kinds == {"read"}
            and self.functions <= words.HARMLESS
            and not _changes(tokens)
            and not any(_is_secret(table) for table in self.tables)
        )


def _without_explain(tokens: Sequence[Token]) -> Sequence[Token]:
    """The statement or the name after EXPLAIN or DESCRIBE and its options; the tokens if there is none."""
    if tokens[0].text not in words.EXPLAIN or tokens[0].kind != "word":
        return tokens
    at = 1
    while at < len(tokens):
        if tokens[at].text in words.EXPLAIN_OPTIONS:
            at += 1
        elif tokens[at].text == "FORMAT":  # FORMAT = JSON
            at += 3
        elif tokens[at].text == "(" and _first_word(tokens[at:]) not in ("SELECT", "VALUES", "WITH"):
            at = _close(tokens, at) + 1
        else:
            break
    if at >= len(tokens):
        raise Opaque("explains nothing")
    return tokens[at:]


def _first_word(tokens: Sequence[Token]) -> str:
    first = next((token for token in tokens if token.text != "("), None)
    return first.text if first is not None and first.kind == "word" else ""


def _kinds(tokens: Sequence[Token]) -> set[str]:
    """The kinds of a statement by its first word, and by the words in it that change something."""
    first = _first_word(tokens)
    plain = [token.text if token.kind == "word" else "" for token in tokens]
    kinds = {"read" if first == "WITH" else words.KINDS.get(first, "other")}
    if first in ("GRANT", "REVOKE", "DENY"):
        return kinds
    for before, word in itertools.pairwise(["", *plain]):
        if word in words.ANYWHERE and before not in words.NO_KIND_AFTER:
            kinds.add(words.ANYWHERE[word])
    if first in ("SELECT", "WITH", "VALUES") and "INTO" in plain and not kinds & {"insert", "update"}:
        kinds.add("copy" if {"OUTFILE", "DUMPFILE"} & set(plain) else "create")
    return kinds


def _changes(tokens: Sequence[Token]) -> bool:
    """True if a word may begin a change, or turn the statement into one."""
    plain = [token.text if token.kind == "word" else "" for token in tokens]
    if plain[:2] == ["SHOW", "CREATE"]:  # it shows how a table was made
        plain = plain[2:]
    from_a_file = any(  # DuckDB reads the file that FROM '/etc/passwd' names
        word in ("FROM", "JOIN") and token.kind == "string"
        for word, token in zip(plain, tokens[1:], strict=False)
    )
    pairs = itertools.pairwise(plain)
    return from_a_file or not words.CHANGES.isdisjoint(plain) or not words.CHANGING_PAIRS.isdisjoint(pairs)


def _targets(tokens: Sequence[Token]) -> Iterator[str]:
    """Names that follow INTO, TABLE, FROM or UPDATE, for what sqlglot does not take apart."""
    for at, (before, token) in enumerate(itertools.pairwise(tokens), 1):
        is_target = before.kind == "word" and before.text in ("INTO", "TABLE", "FROM", "UPDATE")
        if is_target and _is_name(token) and token.text != "TABLE":
            yield _dotted(tokens[at:])


def _is_reading_pragma(tokens: Sequence[Token]) -> bool:
    names = [token.text for token in tokens[1:]]
    if not names or names[0] not in words.READING_PRAGMAS:
        return False
    return len(names) == 1 or (len(names) == 4 and names[1] == "(" and names[3] == ")")


def _is_secret(table: str) -> bool:
    parts = table.split(".")
    return parts[-1] in words.SECRET_TABLES or ".".join(parts[-2:]) in words.SECRET_TABLES


# ---------------------------------------------------------------- functions


def _plain(token: Token) -> str:
    """A word or a name in lower case, without quotes."""
    return (token.text if token.kind == "word" else token.text[1:-1]).lower()


def _is_name(token: Token) -> bool:
    return token.kind in ("word", "name")


def _dotted(tokens: Sequence[Token]) -> str:
    """The dotted name at the beginning of tokens."""
    parts = []
    for at in range(0, len(tokens), 2):
        if not _is_name(tokens[at]):
            break
        parts.append(_plain(tokens[at]))
        if at + 1 >= len(tokens) or tokens[at + 1].text != ".":
            break
    return ".".join(parts)


def _close(tokens: Sequence[Token], at: int) -> int:
    """Where the bracket closes that opens at `at`; the end of the tokens if it does not."""
    depth = 0
    for place in range(at, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place].text, 0) if tokens[place].kind == "sign" else 0
        if depth == 0:
            return place
    return len(tokens) - 1


def _functions(tokens: Sequence[Token]) -> Iterator[str]:
    """Names of functions that are called, lower case, qualified unless by pg_catalog."""
    columns: dict[str, set[str]] = {}
    #: Names of functions in FROM: themselves, or an alias.
    scalars: set[str] = set()
    for at, token in enumerate(tokens):
        if token.text in words.VALUES_AS_FUNCTIONS:
            scalars |= {_plain(token), *_alias(tokens, at + 1)}
        if not _is_name(token) and token.kind != "variable":
            continue
        if at + 1 >= len(tokens) or tokens[at + 1] != OPEN:
            continue
        begin = at
        while begin > 1 and tokens[begin - 1].text == "." and _is_name(tokens[begin - 2]):
            begin -= 2
        before = tokens[begin - 1].text if begin else ""
        close = _close(tokens, at + 1)
        if begin == at and _names_columns(tokens, at, close):
            inside = tokens[at + 2 : close]
            columns.setdefault(_plain(token), set()).update(_plain(part) for part in inside if _is_name(part))
        elif token.text not in words.NO_FUNCTIONS and before not in ("::", *words.TARGETS):
            name = _dotted(tokens[begin : at + 1]) or token.text.lstrip("@:").lower()
            yield name.removeprefix("pg_catalog.")
            scalars |= {name.rpartition(".")[2], *_alias(tokens, close + 1)}
    yield from _members(tokens, scalars, columns)


def _members(
    tokens: Sequence[Token], scalars: Collection[str], columns: Mapping[str, Collection[str]]
) -> Iterator[str]:
    """Functions that are written as columns: PostgreSQL calls f(x) for `(x).f`, `x[1].f`, and `$1.f`.

    It also does for `x.f` if x is the name of a function in FROM, and `f` none of its columns.
    """
    for at in range(2, len(tokens)):
        if tokens[at - 1].text != "." or not _is_name(tokens[at]):
            continue
        owner, member = tokens[at - 2], _plain(tokens[at])
        is_value = owner.text == ")" or owner.kind == "variable" or _is_subscript(tokens, at - 2)
        name = _plain(owner) if _is_name(owner) else ""
        is_column = member in words.COLUMNS or member in columns.get(name, ())
        is_dangerous = name not in words.SYSTEM_SCHEMAS and words.DANGEROUS.match(member)
        if is_value or is_dangerous or (name in scalars and not is_column):
            yield member


def _is_subscript(tokens: Sequence[Token], at: int) -> bool:
    """True for `[..]` behind a value: an index in PostgreSQL, no name."""
    before = tokens[at - 1] if at else NOTHING
    is_behind = _is_name(before) and before.text not in words.NO_FUNCTIONS
    return tokens[at].text[0] == "[" and (is_behind or before.text == ")" or is_array(tokens[at].text))


def _alias(tokens: Sequence[Token], at: int) -> Iterator[str]:
    """The name that a function in FROM gets by what follows it: `f(x) AS name`, `(f(x)) name`."""
    while at < len(tokens) and tokens[at].text in (")", "WITH", "ORDINALITY", "AS"):
        at += 1
    if at < len(tokens) and _is_name(tokens[at]):
        yield _plain(tokens[at])


def _names_columns(tokens: Sequence[Token], at: int, close: int) -> bool:
    """True if the name at a place, before a bracket, is no function but what the columns in it belong to.

    That is an alias, as in `AS t(a, b)`, `f(x) t(a, b)`, or an entry of WITH, as in `WITH t(a, b) AS (..)`.
    """
    before = tokens[at - 1].text if at else ""
    is_entry = tokens[0].text == "WITH" and close + 1 < len(tokens) and tokens[close + 1].text == "AS"
    is_alias = before in ("AS", ")") and not any(part.kind == "string" for part in tokens[at + 2 : close])
    return is_alias or (is_entry and before in ("WITH", "RECURSIVE", ","))


# ---------------------------------------------------------------- trees


class _TooManySteps(Exception):
    """A parser took more steps than its statement may cost."""


@functools.cache
def _parsers() -> dict[str, Any]:
    """A dialect and its parser, which counts its steps, for each of _DIALECTS."""
    from sqlglot.dialects.dialect import Dialect

    logging.getLogger("sqlglot").disabled = True  # its lines would hold what requests said

    def bounded(dialect: Dialect) -> Any:
        class Bounded(dialect.parser_class):  # type: ignore[misc, name-defined]
            steps_left = 0

            def _advance(self, times: int = 1) -> None:
                self.steps_left -= 1
                if self.steps_left < 0:
                    raise _TooManySteps
                super()._advance(times)

        return dialect, Bounded

    return {name: bounded(Dialect.get_or_raise(name)) for name in _DIALECTS}


def _trees(tokens: Sequence[Token]) -> list[exp.Expr]:
    """A statement as the dialects parse it that can. Raises Opaque if that takes too long."""
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    text = _text_of(tokens)
    trees = []
    for dialect, parser_class in _parsers().values():
        try:
            parser = parser_class(dialect=dialect)
            parser.steps_left = _STEPS + _STEPS_PER_TOKEN * len(tokens)
            (tree,) = parser.parse(dialect.tokenize(text), text)
        except SqlglotError:
            continue
        except _TooManySteps:
            raise Opaque("takes too long to parse") from None
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):  # faults of sqlglot, or no tree
            continue
        if tree is not None and not (isinstance(tree, exp.Select) and not tree.expressions):
            trees.append(tree)
    return trees


def _text_of(tokens: Sequence[Token]) -> str:
    """Tokens as text, without comments, and without what only databases see in a string."""
    parts = []
    for kind, text in tokens:
        parts.append("'x'" if kind == "string" and not _PLAIN_STRING.fullmatch(text) else text)
    return re.sub(r" ?(\.|::) ?", r"\1", " ".join(parts))


def _tree_reads(tree: exp.Expr) -> bool:
    """True if a tree is that of a statement which reads."""
    from sqlglot import exp

    if not isinstance(tree, exp.Query | exp.Values):
        return False
    refused = (exp.DML, exp.DDL, exp.Into, exp.Lock, exp.Command, exp.Drop, exp.Alter, exp.Set, exp.Merge)
    return not any(isinstance(node, refused) and not isinstance(node, exp.Query) for node in tree.walk())


def _tables(tree: exp.Expr) -> Iterator[str]:
    """The tables of a tree, qualified as written, without the names of WITH where they hide tables."""
    from sqlglot import exp

    for table in tree.find_all(exp.Table):
        if isinstance(table.this, exp.Identifier) and not _is_of_with(table):
            yield ".".join(part.name.lower() for part in table.parts)


def _is_of_with(table: exp.Table) -> bool:
    """True if a name refers to an entry of WITH around it, and so to no table."""
    if table.db:
        return False
    inside: list[exp.Expr] = [table]
    while (parent := inside[-1].parent) is not None:
        inside.append(parent)
        clause = parent.args.get("with_")
        if clause is None:
            continue
        for entry in clause.expressions:
            if any(
                entry is node for node in inside
            ):  # it is in this entry: those before it count, itself only if it may recur
                if clause.args.get("recursive") and entry.alias.lower() == table.name.lower():
                    return True
                break
            if entry.alias.lower() == table.name.lower():
                return True
    return False
