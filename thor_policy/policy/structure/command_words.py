"""What the words of a command mean: options, paths, code, a command of its own.

Owns the reading of words by an entry of the table of programs. Invariant: a word that the entry does not
explain is listed in `unknown`, and a word that may name a file is among the paths. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec import Struct

from thor_policy.policy.structure.programs import KINDS, Option, Spec
from thor_policy.policy.structure.shell_words import UNKNOWN, Word
from thor_policy.policy.words import plain_words

#: Parts of one word that may each be a path.
_MAX_PARTS = 64
_PLAIN_PATH = re.compile(r"[\w@%+,./~*?\[\]{}!-]+")
_NAME = re.compile(r"[\w./{}^~+-]*")
#: Tasks of a project that reach beyond it.
_OUTWARD = frozenset((
    "publish", "postpublish", "prepublish", "deploy", "release", "push", "upload", "ship", "rollback",
    "promote", "uninstall", "register",
))  # fmt: skip
#: What they do to data, and what runs code that comes with the command.
_DESTROYS = frozenset((
    "destroy", "drop", "flush", "fresh", "nuke", "purge", "reset", "teardown", "truncate", "wipe", "console",
    "dbshell", "runner", "shell", "tinker",
))  # fmt: skip
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PACKAGE = re.compile(r"(@[\w.-]+/)?[\w.-]+(\[[\w,.-]+\])?([@=<>~!^]=?[\w.*+!<>=~^,-]*)?")
#: A script of sed that neither runs commands nor touches other files.
_SED_ADDRESS = r"(?:\d+(?:~\d+)?|\$|/(?:\\.|[^/\\\n])*/I?|\\%(?:\\.|[^%\\\n])*%)"
_SED_COMMAND = (
    r"(?:s(?P<s>[/|#,@!%:])(?:\\.|(?!(?P=s))[^\\])*(?P=s)(?:\\.|(?!(?P=s))[^\\])*(?P=s)[gpiImM0-9]*"
    r"|y(?P<y>[/|#,])(?:\\.|(?!(?P=y))[^\\])*(?P=y)(?:\\.|(?!(?P=y))[^\\])*(?P=y)"
    r"|[aic]\\?[^\n]*|[pPdDqQ=nNgGhHxlz{}])"
)
_SED = re.compile(
    rf"\s*(?:{_SED_ADDRESS}(?:\s*,\s*(?:[+~]\d+|{_SED_ADDRESS}))?)?\s*!?\s*{_SED_COMMAND}\s*", re.DOTALL
)
_AWK = re.compile(r"system|getline|(?<!\|)\|(?!\|)|@|ENVIRON|PROCINFO|SYMTAB|ARGV")
_JQ_ENV = re.compile(r"(?<![.\w\"])env\b|\$ENV\b")
_JQ = re.compile(r"\benv\b|\$ENV|\binput_filename\b|\binclude\b|\bimport\b|\bdebug\b|get_search_list")
#: A mode that gives a file's rights to whoever runs it.
_SETS_ID = re.compile(r"[ugoa]*[+=][rwxXt]*s|[0-7]*[2-7][0-7]{3}")
#: The value of a compiler's option that names no file: not that of -fplugin=./x.so, -Wl,--plugin=x.
_FLAG = re.compile(r"(?!plugin)[\w-]+(?:=[\w.+-]+)?")
#: Paths that are the machine itself.
_MACHINE = re.compile(r"/+|/(?:bin|boot|dev|etc|home|lib|proc|root|run|sbin|sys|usr|var)/?|.*/[\w-]+\.sock")
_STANDARD = re.compile(r"(/usr(/local)?|/opt/homebrew)?/s?bin/[^/]+")


class Reading(Struct, kw_only=True):
    """What the words of one command mean. Paths come with their role: `path` (read), `out` (written),
    `names` (a pattern)."""

    kind: str = ""
    unknown: list[str] = []
    opaque: str = ""
    paths: list[tuple[str, str]] = []
    dirs: list[str] = []
    urls: list[str] = []
    assigned: list[str] = []
    commands: list[list[Word]] = []
    shell: Word | None = None
    code: Word | None = None
    scripts: list[Word] = []
    script: Word | None = None
    module: str = ""
    reads_stdin: bool = False
    replaced: str = ""
    spec: Spec | None = None
    used: set[str] = set()

    def raise_kind(self, kind: str | None) -> None:
        if kind is not None and KINDS.index(kind) > KINDS.index(self.kind):
            self.kind = kind


def name_of(program: str) -> str:
    """The base name of a program, without a quoted `.exe`."""
    return program.rstrip("/").rpartition("/")[2].removesuffix(".exe")


def is_own(program: str) -> bool:
    """True for a program that is named by a path and lies in no folder of the system."""
    return "/" in program and not _STANDARD.fullmatch(program)


#: Modules of Python that run what they read.
_READING_MODULES = ("code", "pdb", "asyncio", "IPython", "timeit", "trace", "cProfile", "profile")
#: The reading of a program without an entry: each word may name a file.
_NO_SPEC = Spec(args=(("path", False),))


def read(spec: Spec | None, words: Sequence[Word]) -> Reading:
    """What the words behind the program's name mean."""
    return _Reader(spec or _NO_SPEC, words, lenient=spec is None).reading


class _Reader:
    def __init__(self, spec: Spec, words: Sequence[Word], *, lenient: bool) -> None:
        self.scopes = [spec]
        self.words = list(words)
        if spec.bundles and words and words[0].text[:1].isalpha():
            self.words[0] = Word(f"-{words[0].text}", *words[0][1:])
        self.lenient = lenient
        self.reading = Reading(kind=spec.kind)
        self.positional: list[Word] = []
        self.first = ""
        self.raised: list[str] = []
        self.at = 0
        self._read()

    @property
    def spec(self) -> Spec:
        return self.scopes[-1]

    def _read(self) -> None:
        reading = self.reading
        ended = False
        while self.at < len(self.words):
            word = self.words[self.at]
            text = word.text
            self.at += 1
            inner = self._subcommand(text) if not self.positional else None
            if inner is not None:
                self.scopes.append(inner)
                reading.used.add(text)
            elif text in ("!", "(", ")") and "-exec" in self.spec.options:
                pass  # of an expression of find
            elif ended or not self._is_option(text):
                if (word.splits or (text.startswith(UNKNOWN) and not ended)) and not self._is_any():
                    reading.opaque = "an argument cannot be known"
                self.positional.append(word)
                if self._takes_rest(word):
                    break
            elif text == "--":
                ended = True
            elif self._is_any():
                self.positional.append(word)
            else:
                self._take_option(word)
                if reading.code is not None or reading.module:
                    self._rest()
                    break
        self._finish()

    def _subcommand(self, text: str) -> Spec | None:
        """The entry of a subcommand; one of a list counts too: `secret/db`, `pods,secrets`."""
        subcommands = self.spec.subcommands
        if text in subcommands or not subcommands:
            return subcommands.get(text)
        return next((subcommands[part] for part in re.split(r"[/,]", text) if part in subcommands), None)

    def _is_option(self, text: str) -> bool:
        if text[:1] == "+":
            return self._option(text[:2]) is not None
        return text[:1] == "-" and text != "-"

    def _is_any(self) -> bool:
        args = self.spec.args or ()
        return bool(args) and args[min(len(self.positional), len(args) - 1)][0] == "any"

    def _option(self, name: str) -> Option | None:
        return next((scope.options[name] for scope in reversed(self.scopes) if name in scope.options), None)

    def _take_option(self, word: Word) -> None:
        if word.splits:
            self.reading.opaque = "an option cannot be known"
        text = word.text
        name, equals, _ = text.partition("=")
        whole, named = self._option(text), self._option(name)
        if whole is not None:
            self._use(text, whole, self._next() if whole.value and not whole.attached else None)
        elif named is not None and equals and named.value:
            self._use(name, named, word.after(len(name) + 1))
        elif text[1:].isdigit() and self._option("-#"):
            pass
        elif text[:2] == "--" or not self._cluster(word):
            self._abbreviation(name)
            self._unlisted(word)

    def _next(self) -> Word | None:
        if self.at >= len(self.words):
            return None
        self.at += 1
        return self.words[self.at - 1]

    def _cluster(self, word: Word) -> bool:
        """Letters that are joined: all must be known."""
        sign, text = word.text[0], word.text
        taken: list[tuple[str, Option, int]] = []
        for at in range(1, len(text)):
            option = self._option(sign + text[at])
            if option is None:
                return False
            taken.append((sign + text[at], option, at + 1))
            if option.value:
                break
        for name, option, end in taken:
            value = (
                word.after(end + (text[end : end + 1] == "=")) if option.value and end < len(text) else None
            )
            self._use(name, option, value if value or option.attached or not option.value else self._next())
        return True

    def _abbreviation(self, name: str) -> None:
        """A long option that is cut short counts as what it begins, beside being unknown."""
        if len(name) > 3 and name.startswith("--"):
            for scope in self.scopes:
                for full, option in scope.options.items():
                    if full.startswith(name):
                        self.reading.used.add(full)
                        self._raise(option.kind)

    def _unlisted(self, word: Word) -> None:
        """An option that is not in the table: its value may be a path."""
        reading = self.reading
        if not word.is_known:
            reading.opaque = "an option cannot be known"
        if not self.lenient:
            reading.unknown.append(word.text)
        _, equals, value = word.text.partition("=")
        if equals and value:
            self.value("maybe" if not self.lenient else "path", word.after(len(word.text) - len(value)))
        elif re.match(r"[-+][A-Za-z](?=[/~.@])", word.text):
            self.value("maybe" if not self.lenient else "path", word.after(2))

    def _use(self, name: str, option: Option, value: Word | None) -> None:
        self.reading.used.add(name)
        self._raise(option.kind)
        if option.first:
            self.first = option.first
        if option.value and value is not None:
            if value.splits:
                self.reading.opaque = "the value of an option cannot be known"
            if name in ("-I", "-i", "--replace") and option.value == "text":
                self.reading.replaced = value.text
            self.value(option.value, value)

    def _raise(self, kind: str | None) -> None:
        if kind is not None:
            self.raised.append(kind)

    def _takes_rest(self, word: Word) -> bool:
        """True if the word ends the reading: it begins a command, a script's arguments or the like."""
        if self.spec.subcommands and self.spec.args is None:
            return False
        types = self.spec.args or ()
        name = self.first or (types[min(len(self.positional), len(types)) - 1][0] if types else "")
        reading = self.reading
        if name == "assign":
            variable = re.fullmatch(r"([A-Za-z_]\w*)=.*", word.text, re.DOTALL)
            if variable:
                reading.assigned.append(variable[1])
                self.positional.pop()
                return False
            name = "command"
        if name == "command":
            reading.commands.append(self.words[self.at - 1 :])
        elif name == "shell" and (self.first or len(self.words) == self.at):
            reading.shell = word
        elif name == "shell":
            rest = self.words[self.at - 1 :]
            inputs = tuple(name for part in rest for name in part.inputs)
            reading.shell = Word(" ".join(part.text for part in rest), inputs)
        elif name == "script":
            reading.script = word
        elif name == "stdin":
            reading.reads_stdin = True
            self.value("maybe", word)
        else:
            return False
        self.positional.clear()
        if name in ("script", "shell", "stdin"):
            self._rest()
        return True

    def _rest(self) -> None:
        """The words that the script or code gets; each may name a file."""
        if not self.reading.commands:
            for word in self.words[self.at :]:
                self.rest(word)

    def _finish(self) -> None:
        reading, spec = self.reading, self.spec
        reading.spec = spec
        reading.kind = spec.kind
        if not self.words and spec.alone is not None:
            reading.kind = spec.alone
        elif spec.bare is not None and not (self.positional or reading.commands or reading.shell):
            reading.kind = spec.bare
        if self.first == "stdin":
            reading.reads_stdin = True
        for word, name in zip(self.positional, self._types(), strict=True):
            if not (name == "text" and not word.is_known):
                self.value(name, word)
        if spec.rewrites & reading.used:
            reading.paths = [(path, "out") for path, _ in reading.paths]
        for kind in self.raised:
            reading.raise_kind(kind)

    def _types(self) -> list[str]:
        """The type of each word that is no option."""
        count, args = len(self.positional), self.spec.args
        if args is None:
            return ["path" if self.lenient else "none"] * count
        names: list[str] = []
        for at, (name, starred) in enumerate(args):
            behind = len(args) - at - 1
            names += [name] * (max(0, count - len(names) - behind) if starred else 1)
        if self.first:
            names[:1] = [self.first]
        return (names + [args[-1][0]] * count)[:count]

    # ------------------------------------------------------------ values

    def value(self, name: str, word: Word) -> None:
        """Take a word of a type."""
        handler = _VALUES.get(name)
        if handler is not None:
            handler(self, word)

    def none(self, word: Word) -> None:
        operand = self.spec.operands.get(word.text.partition("=")[0])
        if operand is not None and "=" in word.text:
            self._raise(operand.kind)
            self.value(operand.value, word.after(word.text.index("=") + 1))
            return
        self.reading.unknown.append(word.text)
        if not word.is_known:
            self.reading.opaque = "an argument cannot be known"
        self.maybe(word)

    def path(self, word: Word, role: str = "path") -> None:
        text = word.text
        if not word.is_known:
            self.reading.opaque = "a path cannot be known"
        if _SCHEME.match(text):
            self.url(word)
            if text[:5].lower() != "file:":
                self.reading.unknown.append(text)
        elif text[:1] == "+":
            self.reading.unknown.append(text)  # a command of less and vim
        elif text not in ("", "-"):
            self.reading.paths.append((text.partition("::")[0] or text, role))  # a test in a file

    def out(self, word: Word) -> None:
        self.path(word, "out")

    def names(self, word: Word) -> None:
        """A pattern of names of files, but for those that are left out: `-not -path '*/.git/*'`."""
        if [before.text for before in self.words[self.at - 3 : self.at - 2]] not in (["-not"], ["!"]):
            self.path(word, "names")

    def dir(self, word: Word) -> None:
        if not word.is_known:
            self.reading.opaque = "the running directory cannot be known"
        self.reading.dirs.append(word.text)

    def maybe(self, word: Word) -> None:
        """A word that is a path if it looks like one, and so may its parts: `of=x`, `@x`, `HEAD:x`."""
        reading, text = self.reading, word.text
        if not word.is_known:
            reading.opaque = reading.opaque or "an argument cannot be known"
        if _SCHEME.match(text):
            self.url(word)
            return
        parts = list(dict.fromkeys((text, *re.split(r"[=:@,;]", text))))
        if len(parts) > _MAX_PARTS:
            reading.opaque = f"a word has more than {_MAX_PARTS} parts"
        for part in parts[:_MAX_PARTS]:
            if (
                part[:1] not in ("-", "@")
                and _PLAIN_PATH.fullmatch(part)
                and ("/" in part or "." in part or part[0] == "~")
            ):
                self.path(Word(part, word.inputs))

    def rest(self, word: Word) -> None:
        """A word that the project's own code reads."""
        if is_outward(word.text):
            self.reading.unknown.append(word.text)
        self.maybe(word)

    def task(self, word: Word) -> None:
        """The name of a task of the project."""
        if is_outward(word.text) or not word.is_known or _SCHEME.match(word.text):
            self.reading.unknown.append(word.text)
        self.maybe(word)

    def url(self, word: Word) -> None:
        text = word.text
        if not word.is_known:
            self.reading.opaque = "an address cannot be known"
        scheme = _SCHEME.match(text)
        if scheme and scheme[1].lower() == "file":
            rest = text[scheme.end() :]
            self.reading.paths.append((rest[rest.find("/") :] if "/" in rest else "/" + rest, "path"))
            return
        self.reading.urls.append(text if scheme else f"http://{text}")
        is_plain = scheme is None or scheme[1].lower() in ("http", "https", "ftp", "ftps")
        if not is_plain or "::" in text:
            self.reading.unknown.append(text)

    def method(self, word: Word) -> None:
        if word.text.upper() not in ("GET", "HEAD", "OPTIONS"):
            self._raise("sends")

    def word(self, word: Word) -> None:
        """A plain name; an address is none."""
        if not _NAME.fullmatch(word.text):
            self.reading.unknown.append(word.text)
        self.maybe(word)

    def package(self, word: Word) -> None:
        if word.text.startswith(("./", "../", "/", "~")) or word.text in (".", ".."):
            self.path(Word(word.text.partition("[")[0], word.inputs, word.splits))
        elif not _PACKAGE.fullmatch(word.text):
            self.reading.unknown.append(word.text)

    def remote(self, word: Word) -> None:
        head, colon, _ = word.text.partition(":")
        if colon and "/" not in head:
            self._raise("sends")
        else:
            self.path(word)

    def module(self, word: Word) -> None:
        if not word.is_known:
            self.reading.opaque = "a module cannot be known"
        self.reading.module = word.text
        if word.text in self.spec.modules:
            self.reading.commands.append([word, *self.words[self.at :]])
        elif word.text in _READING_MODULES:
            self.reading.reads_stdin = True
        elif not self.lenient and self.spec.modules:
            self.reading.unknown.append(word.text)

    def shell(self, word: Word) -> None:
        self.reading.shell = word

    def code(self, word: Word) -> None:
        self.reading.code = word
        self._raise("runs")

    def script(self, word: Word) -> None:
        self.reading.script = word

    def exec_(self, word: Word) -> None:
        """`find -exec`: the words up to `;` or `+`."""
        start = self.at - 1
        ends = [at for at in range(start, len(self.words)) if self.words[at].text in (";", "+")]
        end = ends[0] if ends else len(self.words)
        self.reading.commands.append(self.words[start:end])
        self.words[start : end + 1] = []
        self.at = start

    def sed(self, word: Word) -> None:
        text, at = word.text, 0
        while at < len(text):
            match = _SED.match(text, at)
            if match is None:
                self.reading.unknown.append(text)
                for file in re.findall(r"[rRwW]\s+([^\s;}]+)", text)[:8]:
                    self.maybe(Word(file, word.inputs))
                return
            at = match.end()
            at += len(re.match(r"[;\s]*", text[at:])[0])  # type: ignore[index]

    def awk(self, word: Word) -> None:
        statements = re.split(r"[;}\n]", word.text)
        self.reading.scripts.append(word)
        if _AWK.search(word.text) or any(">" in part.partition("print")[2] for part in statements):
            self.reading.unknown.append(word.text)

    def jq(self, word: Word) -> None:
        if _JQ.search(word.text):
            self.reading.unknown.append(word.text)
        if _JQ_ENV.search(word.text):
            self._raise("secrets")

    def make(self, word: Word) -> None:
        """A target, or a variable, which can name the program that runs."""
        if re.fullmatch(r"(V|VERBOSE|DEBUG|CI)=\w*", word.text):
            return
        if not re.fullmatch(r"[\w./%-]+", word.text) or is_outward(word.text) or "install" in word.text:
            self.reading.unknown.append(word.text)
        self.maybe(word)

    def mode(self, word: Word) -> None:
        """Rights of a file."""
        if _SETS_ID.fullmatch(word.text) or "," in word.text:
            self.reading.unknown.append(word.text)

    def flag(self, word: Word) -> None:
        if not _FLAG.fullmatch(word.text):
            self.reading.unknown.append(word.text)

    def format(self, word: Word) -> None:
        """A text with signs for values, which may name a file to read or to write."""
        if word.text.startswith("@") or "%output" in word.text or not word.is_known:
            self.reading.unknown.append(word.text)

    def plugin(self, word: Word) -> None:
        if not word.text.startswith("no:"):
            self._raise("runs")
        if "/" in word.text:
            self.maybe(word)

    def mount(self, word: Word) -> None:
        """What a container gets of this machine: its root, its devices or its containers make it root."""
        for part in re.split("[,:=]", word.text):
            if _MACHINE.fullmatch(part):
                self._raise("root")
        self.maybe(word)


def is_outward(text: str) -> bool:
    """True if a name, in words, is of a task that reaches beyond the project or destroys data."""
    words = set(plain_words(text).split()) if text != "--release" else set()
    return not words.isdisjoint(_OUTWARD if text.startswith("-") else _OUTWARD | _DESTROYS)


_VALUES: dict[str, Callable[[_Reader, Word], None]] = {
    "none": _Reader.none,
    "word": _Reader.word,
    "path": _Reader.path,
    "out": _Reader.out,
    "names": _Reader.names,
    "dir": _Reader.dir,
    "maybe": _Reader.maybe,
    "rest": _Reader.rest,
    "task": _Reader.task,
    "url": _Reader.url,
    "method": _Reader.method,
    "package": _Reader.package,
    "remote": _Reader.remote,
    "module": _Reader.module,
    "shell": _Reader.shell,
    "code": _Reader.code,
    "script": _Reader.script,
    "exec": _Reader.exec_,
    "sed": _Reader.sed,
    "awk": _Reader.awk,
    "jq": _Reader.jq,
    "make": _Reader.make,
    "mode": _Reader.mode,
    "flag": _Reader.flag,
    "format": _Reader.format,
    "plugin": _Reader.plugin,
    "mount": _Reader.mount,
}
