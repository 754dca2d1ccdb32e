"""The commands of one shell line: what each reads, writes, runs, and what the line has done before it.

Owns what a line accumulates, and the meaning of a command's words. Invariant: whatever is not understood
calls `hide`, so that the line is opaque; nothing that was read is taken back. One `Line` a text; no state is
shared.

The running directory is a set: after `cd a; b`, b runs in `a` or, if that failed, where the line began.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.requests import Json
from thor_policy.policy.structure import inline_code
from thor_policy.policy.structure.address import MAX_HOST_CHARS, of_host
from thor_policy.policy.structure.command_words import Reading, is_outward, is_own, name_of, read
from thor_policy.policy.structure.known_programs import OPAQUE, RESERVED, SHELLS
from thor_policy.policy.structure.path import path as where_to
from thor_policy.policy.structure.programs import KINDS, Programs, Spec
from thor_policy.policy.structure.shell_words import UNKNOWN, Word, hides_names, joined

#: Commands of a text, substitutions included.
MAX_COMMANDS = 64
#: Command lines inside of command lines, and wrappers around one command.
MAX_NESTED = 4
#: Texts in code that are read as command lines, and their characters.
_MAX_INLINE_LINES, _MAX_INLINE = 16, 512
#: Words of a command.
MAX_WORDS = 512
#: Running directories that a command may have.
MAX_DIRS = 8
#: Files that are the command's own streams.
_STREAMS = re.compile(r"/dev/(null|stdin|stdout|stderr|tty|zero|full|u?random|fd/.*)")
_STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_DEVICE = re.compile(r"/dev/(?!shm/|pts/|tcp/|udp/)[^/].*|/proc/sys.*|/sys/.*")
_NETWORK = re.compile(r"/dev/(tcp|udp)/.*")
#: Names that stand for others: patterns, what find and xargs put in, all packages of Go.
_PATTERN = re.compile(r"[*?\[]|\{\}|(?<![^/])\.\.\.(?![^/])")
#: All files of a format that secrets are kept in, beside much else: not known to be harmless, and no secret.
_ALL = re.compile(r"(?:[^*?\[{]*/)?\*+")
_MANY = re.compile(r"(.*/)?\*+\.(json|txt|conf|db|sqlite3?)")
#: Files that say what a build or a test runs, beside the code itself.
_BUILD_FILES = re.compile(
    r"(?:.*/)?(?:(gnu)?makefile|.*\.mk|justfile|taskfile\.ya?ml|rakefile|gemfile|package\.json|pyproject\.toml"
    r"|setup\.(?:py|cfg)|conftest\.py|tox\.ini|noxfile\.py|pytest\.ini|build\.(?:rs|gradle|gradle\.kts|xml|sbt)"
    r"|cargo\.toml|cmakelists\.txt|.*\.cmake|pom\.xml|meson\.build|.*\.config\.[cm]?[jt]s|composer\.json)",
    re.IGNORECASE,
)
_ENVIRON = re.compile(r"/proc/[^/]+/environ")
#: Where a host in a word may begin or end: in brackets, where a colon is part of an address, and elsewhere.
_AROUND_ADDRESS, _AROUND_HOST = re.compile(r"[\s/,=@\]]"), re.compile(r"[\s/,=@\]:]")
#: Folders whose loss ruins a system; `*` and `{}` stand for all that they hold.
_WIPED = re.compile(
    r"(/|\.\.(/\.\.)*|~[\w-]*(/\.\.)*|/(bin|boot|dev|etc|home|lib|lib64|opt|proc|root|sbin|srv|sys|usr|var|Users|System|Library|Applications|mnt|media)"
    r"|/(bin|boot|etc|home|lib|lib64|sbin|usr|Users|System|Library|mnt|media)/[^/]+)(/?\{\}|/?\ufffd|/?(?:[*?.]|\[[^\]]*\])+)?|/[^/]*[*?\[][^/]*(/\*)*"
)
SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|COOKIE|SESSION|PRIVATE|_PAT$|DSN|DATABASE_URL", re.IGNORECASE
)
_FETCHERS = frozenset(("curl", "wget", "aria2c", "fetch", "http", "https"))
_ASSIGNING = frozenset((
    "read", "mapfile", "readarray", "getopts", "printf", "let", "unset", "local", "typeset", "declare",
    "export", "readonly",
))  # fmt: skip

#: Where a command may run, as paths from where the line starts.
Dirs: TypeAlias = tuple[str, ...]


class Feed(Struct, frozen=True, kw_only=True):
    """What a command reads: from programs, from files, or a text (None: not one that is known)."""

    inputs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    text: str | None = None
    is_given: bool = False
    #: Folders below which all the names lie that are read; None if it may be any text. `chosen`: not all of
    #: the names there, but those that match something.
    lists: Dirs | None = None
    chosen: bool = False


NOTHING = Feed()


class Command(Struct):
    """One command, as rules see it."""

    program: str
    path: str
    words: list[str]
    kind: str
    unknown: list[str]
    inputs: list[str]
    runs_input: bool
    wipes: bool
    via: list[str]
    variables: list[str]


class Around(Struct, frozen=True):
    """What stands around a command: wrappers, their kinds and unknown words, assignments."""

    via: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


class Line:
    """The reading of one text, and of the texts inside of it. `parse` reads a text that is run in `dirs`."""

    def __init__(
        self, programs: Programs, parse: Callable[[Line, str, Dirs, Feed, Around], tuple[Dirs, Dirs]]
    ) -> None:
        self.programs = programs
        self._parse = parse
        self.commands: list[Command] = []
        self.opaque = ""
        self.paths: dict[str, None] = {}
        self.reads: dict[str, None] = {}
        self.writes: dict[str, None] = {}
        self.urls: dict[str, None] = {}
        self.variables: dict[str, None] = {}
        #: Texts that a variable can have; none: not known. Only those of plain assignments and loops.
        self.values: dict[str, tuple[str, ...]] = {}
        #: Variables that hold what programs printed, with these programs.
        self.foreign: dict[str, tuple[str, ...]] = {}
        self.functions: set[str] = set()
        #: Files that this line writes with content of its own or of another host; "*" for any.
        self.written: set[str] = set()
        self.downloads = False
        #: Whether a redirection leads to another host.
        self.to_network = False
        #: Folders of the names that the last command prints, and its text if that is known.
        self.listing: Dirs | None = None
        self.chosen = False
        self.output: str | None = None
        #: Texts inside of texts that are being read, and the levels of their trees.
        self.nested = self.levels = 0
        #: Texts in code that are still read as command lines.
        self.lines_left = _MAX_INLINE_LINES
        #: Where the line was before each `pushd`.
        self.pushed: list[Dirs] = []

    def hide(self, reason: str) -> None:
        """The line is opaque; the first reason is kept."""
        self.opaque = self.opaque or reason

    def result(self) -> dict[str, Json]:
        """The members, as `functions.MEMBERS` names them."""
        commands = self.commands
        return {
            "opaque": self.opaque,
            "commands": [
                {name: getattr(command, name) for name in Command.__struct_fields__} for command in commands
            ],
            "paths": list(self.paths),
            "reads": list(self.reads),
            "writes": list(self.writes),
            "urls": list(self.urls),
            "kinds": sorted({command.kind or "unknown" for command in commands}),
            "unknown": [word for command in commands for word in command.unknown],
            "runs_input": any(command.runs_input for command in commands),
            "wipes": any(command.wipes for command in commands),
            "variables": list(self.variables),
        }

    def programs_since(self, start: int) -> tuple[str, ...]:
        """The programs of the commands from an index on; "?" for one that is not known."""
        return tuple(dict.fromkeys(command.program or "?" for command in self.commands[start:]))

    # ------------------------------------------------------------ what a line does beside commands

    def add_path(self, path: str, dirs: Dirs, *, written: bool = False, content: bool = False) -> list[str]:
        """Note a file; where it may lie. `content`: the line writes what the file holds."""
        if _STREAMS.fullmatch(path):
            return []
        places = list(dict.fromkeys(joined(folder, path) for folder in dirs))
        for place in places:
            named = _named_by(place, written=written)
            self.paths[named] = None
            (self.writes if written else self.reads)[named] = None
            if content:
                self.written.add(place)
        return places

    def note_variable(self, name: str) -> None:
        """Note a variable that the line changes. Lower-case ones are its own, but for those of proxies."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith("proxy"):
            self.variables[name] = None

    def note_value(self, text: str, dirs: Dirs) -> None:
        """Note the paths that a variable gets."""
        for part in text.split(":"):
            if part.startswith(("/", "~", "..")) or "/" in part:
                self.add_path(part, dirs)

    def redirected(self, word: Word, dirs: Dirs) -> None:
        """Note a file that a redirection writes; a device or a host is a command of its own."""
        if not word.is_known:
            self.hide("a redirection cannot be known")
        for place in self.add_path(word.text, dirs, written=True, content=True):
            kind = "fatal" if _DEVICE.fullmatch(place) else "sends" if _NETWORK.fullmatch(place) else ""
            self.to_network = self.to_network or kind == "sends"
            if kind:
                self.add(Command(">", "", [place], kind, [], [], False, False, [], []))

    def read_from(self, word: Word, dirs: Dirs) -> None:
        """Note a file that a redirection reads; the variables of a process are secrets."""
        if not word.is_known:
            self.hide("a redirection cannot be known")
        for place in self.add_path(word.text, dirs):
            self.to_network = self.to_network or bool(_NETWORK.fullmatch(place))
            if _ENVIRON.fullmatch(place):
                self.add(Command("<", "", [place], "secrets", [], [], False, False, [], []))

    def add(self, command: Command) -> None:
        """Note a command; without a table of kinds its kind is not known."""
        if len(self.commands) >= MAX_COMMANDS:
            self.hide(f"it has more than {MAX_COMMANDS} commands")
            return
        if not self.programs.has_kinds:
            command.kind = ""
        self.commands.append(command)

    def is_written(self, places: Sequence[str]) -> bool:
        """True if this line wrote what one of the files holds."""
        return "*" in self.written or any(
            place == written or place.startswith(f"{written}/")
            for place in places
            for written in self.written
        )

    # ------------------------------------------------------------ one command

    def run(self, words: Sequence[Word], dirs: Dirs, feed: Feed, around: Around) -> tuple[Dirs, Dirs]:
        """Read a command; where the next one may run if it succeeds, or fails."""
        self.listing = self.output = None
        self.chosen = False
        if len(around.via) > MAX_NESTED or len(self.commands) >= MAX_COMMANDS:
            self.hide(f"it has more than {MAX_COMMANDS} commands, or {MAX_NESTED} wrappers around one")
            return dirs, dirs
        if len(words) > MAX_WORDS:
            self.hide(f"a command has more than {MAX_WORDS} words")
            words = words[:MAX_WORDS]
        program = words[0]
        inputs = tuple(dict.fromkeys((*feed.inputs, *(name for word in words for name in word.inputs))))
        name = name_of(program.text)
        if (
            not program.is_known
            or program.splits
            or not name.isascii()
            or re.search(r"[*?\[\]]..", program.text)
            or (name in _STDIN and feed.inputs)
        ):
            self.hide("a program's name cannot be known")
            self.add(
                self._command("", words, "", around, inputs, runs_input=bool(feed.inputs or program.inputs))
            )
            return dirs, dirs
        if program.text in RESERVED:
            self.hide("a word of the shell's syntax stands where a program is read")
        if name in OPAQUE and not (name in ("source", ".") and _enters_virtualenv(words)):
            self.hide(f"{name} changes what other words mean")
        spec = None if name in self.functions else self.programs.spec_of(name)
        reading = read(spec, words[1:])
        if reading.opaque:
            self.hide(reading.opaque)
        if name in _ASSIGNING:
            self._assigned_by(name, words[1:], inputs)
        own = is_own(program.text)
        if own:
            reading.raise_kind("builds" if spec else None)
            reading.kind = reading.kind if spec else "builds"
            reading.unknown += [] if spec else [word.text for word in words[1:] if is_outward(word.text)]
        places = self._places(reading, dirs)
        call = _Call(name, spec, reading, feed, places, inputs, around, words)
        if own:
            call.scripts = self.add_path(program.text, dirs)
        return self._run(call, dirs)

    def _places(self, reading: Reading, dirs: Dirs) -> Dirs:
        """Where a command runs after `-C`: there, and where it was."""
        for folder in reading.dirs:
            self.add_path(folder, dirs)
            dirs = tuple(dict.fromkeys((*dirs, *(joined(place, folder) for place in dirs))))[:MAX_DIRS]
        return dirs

    def _run(self, call: _Call, dirs: Dirs) -> tuple[Dirs, Dirs]:
        reading, around = call.reading, call.around
        start = len(self.commands)
        if call.name == "find" or not (reading.commands or reading.shell):
            self._simple(call)
        else:
            self.paths_of(call)
        inner = replace(
            around,
            via=(*around.via, call.name),
            kinds=(*around.kinds, *(() if call.is_neutral else (reading.kind,))),
            unknown=(*around.unknown, *(() if call.name == "find" else reading.unknown)),
            variables=(*around.variables, *reading.assigned),
        )
        for word in reading.commands:
            self._wrapped(call, word, inner)
        after = dirs, dirs
        if reading.shell is not None:
            after = self._text(call, reading.shell, inner)
        if len(self.commands) == start:
            self._simple(call)
        for name in reading.assigned:
            self.variables[name] = None
        if call.name in ("cd", "pushd", "popd"):
            return self._moved(call, dirs), dirs
        return after if call.name == "eval" else (dirs, dirs)

    def _wrapped(self, call: _Call, words: list[Word], inner: Around) -> None:
        """The command inside of a wrapper."""
        feed, words = call.feed, list(words)
        if not words:
            return
        roots = [path for path, role in call.reading.paths if role != "names"] or ["."]
        if call.name in ("find", "gfind"):
            files = "{}" if call.is_chosen else "*"
            words = [
                Word(word.text.replace("{}", f"{roots[0]}/{files}"), *word[1:]) if word.text == "{}" else word
                for word in words
            ]
            words = [
                Word(UNKNOWN, ("find",)) if "{}" in word.text and not word.text.endswith("/{}") else word
                for word in words
            ]
        elif call.name in ("xargs", "gxargs"):
            words = self._with_input(call, words)
            feed = NOTHING
        self.run(words, call.dirs, feed, inner)

    def _with_input(self, call: _Call, words: list[Word]) -> list[Word]:
        """The words of a command that xargs runs, with those that it reads."""
        feed, token = call.feed, call.reading.replaced
        if feed.text is not None:
            read_words = [Word(text) for text in feed.text.split()]
        elif feed.lists is not None:
            files = "{}" if feed.chosen else "*"
            read_words = [Word(f"{folder}/{files}") for folder in feed.lists]
        else:
            read_words = [Word(UNKNOWN, feed.inputs or ("xargs",), splits=True)]
        if not token:
            return [*words, *read_words]
        exact = [item for word in words for item in (read_words if word.text == token else [word])]
        return [
            Word(word.text.replace(token, UNKNOWN), feed.inputs or ("xargs",)) if token in word.text else word
            for word in exact
        ]

    def _text(self, call: _Call, text: Word, inner: Around) -> tuple[Dirs, Dirs]:
        """A command line that a command gets as a word."""
        if not text.is_known or text.inputs or text.splits:
            call.runs_input = True
            self._simple(call)
            return call.dirs, call.dirs
        return self._parse(self, text.text, call.dirs, call.feed, inner)

    def paths_of(self, call: _Call) -> list[str]:
        """Note the paths and addresses of a command; where its files may lie."""
        places: list[str] = []
        for path, role in call.reading.paths:
            added = self.add_path(path, ("",) if role == "names" else call.dirs, written=role == "out")
            call.outs += added if role == "out" else []
            places += added
            if hides_names(path) or _MANY.fullmatch(path) or (call.shows and _ALL.fullmatch(path)):
                call.reading.unknown.append(path)
        for url in call.reading.urls:
            self.urls[url] = None
        if KINDS.index(call.reading.kind) >= KINDS.index("fetches"):
            self._addresses_in(call.words)
        return places

    def _addresses_in(self, words: Sequence[Word]) -> None:
        """Note addresses of instance metadata in the words of a command that may reach other hosts."""
        for word in words:
            for host in _hosts_in(word.text):
                if 7 <= len(host) <= MAX_HOST_CHARS and of_host(host.lower())[0] == "metadata":
                    self.urls[f"http://{host}/"] = None

    def _simple(self, call: _Call) -> None:
        """A command that runs no other by its words."""
        reading = call.reading
        places = self.paths_of(call)
        self._input_of(call)
        if call.scripts and self.is_written(call.scripts):
            call.runs_input = True
        if any(map(_ENVIRON.fullmatch, places)):
            reading.raise_kind("secrets")
        if any(map(_DEVICE.fullmatch, call.outs)):
            reading.raise_kind("fatal")
        if any(map(_NETWORK.fullmatch, places)):
            reading.raise_kind("sends")
        wiping = reading.spec.wipes if reading.spec and call.spec else frozenset()
        wipes = ("always" in wiping or bool(wiping & reading.used)) and any(map(_WIPED.fullmatch, places))
        if call.name == "rm" or ("-delete" in reading.used and not call.is_chosen):
            reading.unknown += [place for place in places or call.dirs if place in (".", "*")]
        if reading.spec and reading.spec.unpacks and (call.feed.inputs or call.feed.text is not None):
            reading.unknown.append("what it reads names the files that it writes")
        if reading.kind == "fetches" and any(word.inputs or not word.is_known for word in call.words):
            self.hide("what a request sends cannot be known")
        if reading.kind == "builds" and call.feed.inputs and any(word.text in _STDIN for word in call.words):
            reading.unknown.append("-")  # a tool of the project that reads what another program prints
        self._kept(call, places)
        if self.downloads and reading.kind in ("builds", "installs"):
            reading.unknown.append("runs after a download")
        if reading.kind in ("builds", "installs") and any(map(_BUILD_FILES.fullmatch, self.written)):
            reading.unknown.append("runs what this line says that it runs")
        self.add(
            self._command(
                call.name,
                call.words,
                reading.kind,
                call.around,
                call.inputs,
                call.runs_input,
                wipes or call.wipes,
                reading,
            )
        )
        self._printed(call, places)

    def _input_of(self, call: _Call) -> None:
        """Whether an interpreter runs what it reads."""
        reading, feed = call.reading, call.feed
        for code in reading.scripts:
            self._inline(call, code.text)
        if self.to_network and call.name in SHELLS:
            call.runs_input = True
        if reading.code is not None:
            code = reading.code
            self._inline(call, code.text)
            is_read = code.text == "-" and bool(feed.inputs)
            call.runs_input = call.runs_input or is_read or not code.is_known or bool(code.inputs)
            return
        script = reading.script
        if script is not None and script.text in _STDIN:
            reading.reads_stdin = True
        elif script is not None and not (reading.reads_stdin and feed.inputs):
            if script.inputs:
                call.runs_input = True
            elif re.search(r"\{\}|\*", script.text):
                reading.unknown.append(script.text)
            elif not script.is_known:
                self.hide("a script cannot be known")
            call.scripts += self.add_path(script.text, call.dirs) if script.is_known else []
            return
        runs = (
            reading.spec is not None
            and reading.spec.runs_input
            and not reading.module
            and call.spec is not None
        )
        if not (runs or reading.reads_stdin) or call.runs_input or reading.commands:
            return
        if "--version" in reading.used:
            return
        if feed.inputs:
            call.runs_input = True
        elif feed.files:
            for path in feed.files:
                call.scripts += self.add_path(path, call.dirs)
        elif feed.text is not None and call.name in SHELLS:
            self._parse(
                self, feed.text, call.dirs, NOTHING, replace(call.around, via=(*call.around.via, call.name))
            )
        elif feed.is_given and feed.text is None:
            call.runs_input = True
        elif feed.is_given or not reading.used & {"-V", "-v", "-h", "--help"}:
            reading.raise_kind("runs")
            self._inline(call, feed.text or "")

    def _inline(self, call: _Call, text: str) -> None:
        """What code in a command shows plainly."""
        code = inline_code.read(text)
        if code.runs_foreign:
            call.runs_input = True
        if any(not name or SECRET_NAME.search(name) for name in code.variables):
            call.reading.raise_kind("secrets")
        for text in code.texts:
            if "://" in text:
                self.urls[text] = None
            elif code.removes and _WIPED.fullmatch(joined(".", text)):
                call.wipes = True
            elif where_to(text, "/a/b")["secret"] in ("store",):
                self.add_path(text, call.dirs)
        if code.runs_texts and len(call.around.via) < MAX_NESTED:
            for line in (" ".join(code.texts), *code.texts)[: self.lines_left]:
                self.lines_left -= 1
                self._worst_of(line[:_MAX_INLINE], call.dirs)

    def _worst_of(self, text: str, dirs: Dirs) -> None:
        """Note the commands of a text that are denied if it is a command line."""
        inner = Line(self.programs, self._parse)
        inner.nested, inner.lines_left = self.nested + 1, self.lines_left // 2
        self._parse(inner, text, dirs, NOTHING, Around())
        for command in inner.commands:
            if command.runs_input or command.wipes or command.kind in ("secrets", "root", "fatal"):
                self.add(command)

    def _kept(self, call: _Call, places: list[str]) -> None:
        """Note what files hold after the command."""
        reading, feed = call.reading, call.feed
        fetches = reading.kind == "fetches" or call.name in _FETCHERS
        spec = reading.spec
        if spec and (("always" in spec.saves and not call.outs) or spec.saves & reading.used):
            addresses = [part for url in reading.urls for part in (url, url.partition("?")[0])]
            for url in addresses or ["*"]:
                name = url.partition("#")[0].rstrip("/").rpartition("/")[2].removesuffix(".git")
                call.outs += (
                    self.add_path(name or "index.html", call.dirs, written=True) if name != "*" else ["*"]
                )
        foreign = any(name in _FETCHERS for name in feed.inputs)
        from_written = self.is_written(places)
        if fetches or foreign or from_written or feed.is_given:
            self.written.update(call.outs)
            if reading.kind == "edits" and not call.outs and (foreign or from_written):
                self.written.add("*")  # an archive's files
        if (fetches and call.outs) or (foreign and reading.kind == "edits"):
            self.downloads = True

    def _printed(self, call: _Call, places: list[str]) -> None:
        """What the command prints, where the next one of a pipe may rely on it."""
        spec, words = call.reading.spec, call.words[1:]
        known = all(word.is_known and not word.splits for word in words)
        if call.name == "echo" and known:
            self.output = " ".join(word.text for word in words if word.text not in ("-n", "-e", "-E"))
        elif call.name == "printf" and known and len(words) == 1 and "%" not in words[0].text:
            self.output = words[0].text
        elif call.name == "pwd" and not words and len(call.dirs) == 1:
            self.output = "."
        if spec is None or call.spec is None:
            return
        if "always" in spec.lists or spec.lists & call.reading.used:
            self.listing = tuple(_named_by(place, written=False) for place in places) or call.dirs
            self.chosen = call.is_chosen or any(
                _PATTERN.search(place) and not _ALL.fullmatch(place) for place in places
            )
        elif spec.filters and not places:
            self.listing = call.feed.lists
            self.chosen = call.feed.chosen or not spec.shows

    def _moved(self, call: _Call, dirs: Dirs) -> Dirs:
        """Where the next command runs after `cd`."""
        targets = [
            word
            for word in call.words[1:]
            if not re.fullmatch(r"-[LPe@n]*|--", word.text) or word.text == "-"
        ]
        if call.name == "popd" and self.pushed and not targets:
            return self.pushed.pop()
        if (
            call.name == "popd"
            or (call.name == "pushd" and not targets)
            or any(
                not word.is_known or re.fullmatch(r"[-+]\d*", word.text) or re.search(r"[*?\[]", word.text)
                for word in targets
            )
        ):
            self.hide("the running directory cannot be known")
            return (UNKNOWN,)
        if call.name == "pushd":
            self.pushed.append(dirs)
        target = targets[0].text if targets else "~"
        self.add_path(target or ".", dirs)
        return tuple(dict.fromkeys(joined(folder, target) for folder in dirs))

    def _assigned_by(self, name: str, words: Sequence[Word], inputs: tuple[str, ...]) -> None:
        """Builtins change variables that they name."""
        for word in words:
            variable = re.match(r"[A-Za-z_]\w*", word.text)
            if (variable and name != "printf") or (variable and any(word.text == "-v" for word in words)):
                self.values[variable[0]] = ()
                self.note_variable(variable[0])
                if name in ("read", "mapfile", "readarray"):
                    self.foreign[variable[0]] = inputs or (name,)
        if name in ("read", "mapfile", "readarray"):
            self.foreign |= dict.fromkeys(("REPLY", "MAPFILE"), inputs or (name,))

    def _command(
        self,
        program: str,
        words: Sequence[Word],
        kind: str,
        around: Around,
        inputs: tuple[str, ...],
        runs_input: bool,
        wipes: bool = False,
        reading: Reading | None = None,
    ) -> Command:
        return Command(
            program=program,
            path=words[0].text if "/" in words[0].text else "",
            words=[word.text for word in words[1:]],
            kind=max((kind, *around.kinds), key=KINDS.index),
            unknown=[*around.unknown, *(reading.unknown if reading else ())],
            inputs=list(inputs),
            runs_input=runs_input,
            wipes=wipes,
            via=list(around.via),
            variables=list(around.variables),
        )


def _enters_virtualenv(words: Sequence[Word]) -> bool:
    """True for `source .venv/bin/activate`, which runs a file of the workspace as a script does."""
    return len(words) == 2 and re.fullmatch(r"(\./)?\.?v?env/bin/activate", words[1].text) is not None


def _named_by(place: str, *, written: bool) -> str:
    """The path; for a pattern its folder, unless it may stand for secrets or for files that steer tools.

    `*` alone stands for what the folder holds; the files that steer tools lie where the line starts.
    """
    pattern = _PATTERN.search(place)
    if pattern is None:
        return place
    if _ALL.fullmatch(place) and (not written or "/" in place):
        return place.rpartition("/")[0] or ("/" if place.startswith("/") else ".")
    meant = where_to(place, "/a/b")
    if (meant["secret"] or meant["steers"]) and not _MANY.fullmatch(place):
        return place
    folder = place[: place.rfind("/", 0, pattern.start() + 1) + 1]
    return folder.rstrip("/") or ("/" if folder else ".")


class _Call:
    """A command while it is read."""

    def __init__(
        self,
        name: str,
        spec: Spec | None,
        reading: Reading,
        feed: Feed,
        dirs: Dirs,
        inputs: tuple[str, ...],
        around: Around,
        words: Sequence[Word],
    ) -> None:
        self.name, self.spec, self.reading, self.feed, self.dirs = name, spec, reading, feed, dirs
        self.inputs, self.around, self.words = inputs, around, words
        self.scripts: list[str] = []
        self.outs: list[str] = []
        self.runs_input = self.wipes = False
        #: Whether it prints what its files hold.
        self.shows = reading.spec is not None and reading.spec.shows and spec is not None
        #: Whether it takes files by their names, not all that are there.
        self.is_chosen = (
            any(role == "names" and not _ALL.fullmatch(path) for path, role in reading.paths)
            or "-empty" in reading.used
        )
        #: A shell, or find, adds no kind to the commands that it runs.
        self.is_neutral = name in SHELLS or name in ("eval", "find", "gfind")


def _hosts_in(text: str) -> Iterator[str]:
    """The parts of a word that may be hosts: `[fd00::1]:80` holds fd00::1 and 80. Takes linear time."""
    for piece in text.split("["):
        addresses, _, rest = piece.rpartition("]")
        yield from _AROUND_ADDRESS.split(addresses)
        yield from _AROUND_HOST.split(rest)
