"""path(text, base): where a path leads, and whether its file holds secrets or steers something.

Owns the reading of paths as text. Invariant: `inside` is true only for a plain text that leads below a base
which bounds something; whatever hides, escapes, encodes or matches is opaque, and an opaque path is never
inside. A symbolic link or a mount inside the base may still lead elsewhere: no text shows that, so whoever
opens the file must resolve it. Nothing here touches a file. Pure; any thread.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from thor_policy.policy.structure import path_lists as lists
from thor_policy.policy.structure import plain_text
from thor_policy.policy.text_cache import kept
from thor_policy.policy.words import plain_words

#: A longer text is opaque: PATH_MAX of Linux.
MAX_CHARS = 4096
_CACHED_CHARS = 1024

#: What `secret` may be, the worst last.
_SECRETS = ("", "topic", "name", "store")
#: Levels of a base.
_MIN_BASE = 2
#: Folders of a base that bounds nothing: another process, a device, the system's settings.
_NO_BASE = {
    "proc",
    "sys",
    "dev",
    "etc",
    "boot",
    "bin",
    "sbin",
    "lib",
    "lib64",
    "system",
    "library",
    "windows",
}
#: The same of two levels, with all below; and such that are none themselves, though a folder below may be.
_NO_BASE_OF_TWO = {
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib64",
    "usr/libexec",
    "usr/share",
    "var/log",
    "var/run",
}
_NO_BASE_ALONE = {"usr/local", "var/lib", "var/spool", "var/db"}

_FILE_URL = re.compile(r"file://(?:localhost)?(/[^?#]*)", re.I)
_HOME = re.compile(r"\$(?:HOME|\{HOME\})(?=/|$)")
#: ASCII that means something else to a shell, a URL or Windows. Signs of patterns are looked at later.
_UNUSUAL = re.compile(r"[\x00-\x7f](?<![\w .,+=@#()~/\[\]*?!^-])")
_REASONS = {
    "\\": "has a backslash",
    "%": "has a percent sign, which may encode another path",
    "$": "has a variable",
    ":": "has a colon: a drive, a stream or a host",
    "{": "has braces",
    "}": "has braces",
}
#: What another reading of an opaque text takes for a slash, and what it drops.
_BEGINS_A_NAME = re.compile(r"[\\:|;&<>]+")
_VANISHES = re.compile(r"[\"'`$*?{}\[\]\x00-\x1f]+")
#: A name of a route, `[id].tsx`: as a pattern it would match files of one letter in the same folder.
_ROUTE = re.compile(r"\[{1,2}(?:\.{3})?[A-Za-z][A-Za-z0-9_-]*\]{1,2}(?:\.[a-z]+)*")
_SIGN_OF_PATTERN = re.compile(r"[*?!^\[\]]")
#: A part with patterns of the shell: `*`, `?`, `[a-z]`, `[!a-z]`.
_PATTERN = re.compile(r"(?:[^*?!^\[\]]|\*{1,2}|\?|\[[!^]?[\w .,+=@#()~-]+\])+")
#: Short names of Windows: GIT~1 is .git.
_SHORT_NAME = re.compile(r"~[0-9]")
#: What a copy of a file adds to its name.
_COPY = re.compile(r"^(?:copy of |#)|(?:#|[ _-]?\(\d+\)|[ _-]copy| \d+)$")

_SECRET_ROW = re.compile(
    " (?:{}|\\w*(?:{})\\w*) ".format(
        "|".join(sorted(map(re.escape, lists.SECRET_WORDS), key=len, reverse=True)),
        "|".join(lists.SECRET_PARTS),
    )
)
_TOPIC = re.compile(" (?:{}) ".format("|".join(lists.TOPIC_WORDS)))
_SECRET_FOLDER = re.compile(r" (?:\w*(?:{})\w*|creds|private keys?) ".format("|".join(lists.SECRET_PARTS)))
_KEY = re.compile(" keys? ")
_NO_SECRET_ROW = re.compile(
    " (?:{})(?= )".format("|".join(map(re.escape, (*lists.NOT_SECRET, *lists.NOT_SECRET_ROWS))))
)

_DATA_ENDINGS = ("json", "yaml", "yml", "txt", "csv", "toml")
#: Names that a pattern may mean.
_STORES = (
    *(name for name in lists.SECRET_NAMES if name.rpartition(".")[2] not in lists.ABOUT_ENDINGS),
    *(
        f"{word}.{end}"
        for word in (*lists.SECRET_PARTS, "tokens", "creds", "api_key")
        for end in _DATA_ENDINGS
    ),
    *lists.SECRET_BEGINNINGS,
)
#: Names that a wide pattern may mean: `*.py` is rather all code than sitecustomize.py.
_STEERS_NO_CODE = tuple(name for name in lists.STEERS_NAMES if not name.endswith((".py", ".cjs")))
_MAX_PATTERN, _MAX_STARS = 64, 8
#: Where an entry of several folders may begin.
_FIRST_OF_SEVERAL = frozenset(
    key.split("/")[0] for key in (*lists.SECRET_FOLDERS, *lists.STEERS_FOLDERS) if "/" in key
)


def path(text: str, base: str) -> dict[str, Any]:
    """Where a path leads, as these members:

    - `opaque`: why the text is not plain; "" if it is
    - `path` (absolute, or from `~`; relative if the base is no good; "" if opaque), `name` (its last part)
    - `base_ok`: the base is an absolute folder at least two levels deep, without ..
    - `inside` (below the base), `is_base` (the base itself)
    - `pattern`: it has signs that a shell expands to names; it is inside if all of these are
    - `secret`: "store" (holds secrets); of documents and code, "name" (the name speaks of secrets), "topic"
      (and of what is done with them, as in password_reset.py); or ""
    - `steers`: "git", "agent", "pipeline", "editor", "shell", "packages", "system" or ""

    A relative text starts at the base. `secret` and `steers` of an opaque text are those of the name that it
    may stand for. Any text gives a value. The result is shared: do not change it.
    """
    if len(text) > MAX_CHARS:
        return _result(opaque=f"has more than {MAX_CHARS} characters")
    return _cached(text, base) if len(text) + len(base) <= _CACHED_CHARS else _read(text, base)


def _result(**known: Any) -> dict[str, Any]:
    return {
        "opaque": "", "path": "", "name": "", "base_ok": False, "inside": False, "is_base": False,
        "pattern": False, "secret": "", "steers": "",
    } | known  # fmt: skip


#: The members of a result.
MEMBERS = frozenset(_result())


@kept()
def _cached(text: str, base: str) -> dict[str, Any]:
    return _read(text, base)


def _read(text: str, base: str) -> dict[str, Any]:
    root = _base(base) if len(base) <= _CACHED_CHARS else ()
    plain, opaque = text, ""
    if text[:5].lower() == "file:":
        url = _FILE_URL.fullmatch(text)
        plain, opaque = (url[1], "") if url else (text, "is a URL of a file on a host, or with a query")
    plain = _HOME.sub("~", plain, count=1) if plain.startswith("$") else plain
    opaque = opaque or _fault(plain)
    if opaque:
        readings = [_parts(reading) for reading in _unmasked(text)]
        secret = max((_secret(parts, 0) for parts in readings), key=_SECRETS.index)
        steers = next(filter(None, map(_steers, readings)), "")
        return _result(opaque=opaque, base_ok=bool(root), secret=secret, steers=steers)
    if plain[0] not in "/~" and root:
        plain = f"/{'/'.join(root)}/{plain}"
    parts = _parts(plain)
    is_absolute = plain[0] == "/"
    below = is_absolute and bool(root) and parts[: len(root)] == list(root)
    own = parts[len(root) :] if below else parts
    return _result(
        path="/" * is_absolute + "/".join(parts),
        name=parts[-1] if parts else "",
        inside=below and bool(own),
        is_base=below and not own,
        base_ok=bool(root),
        pattern=any(map(_is_pattern, plain.split("/"))),
        secret=_secret(parts, len(root) if below else 0),
        steers=_steers(own) or ("system" if is_absolute and parts[:1] == ["etc"] else ""),
    )


@kept()
def _base(text: str) -> Sequence[str]:
    """The parts of a base; none if it bounds nothing."""
    if not text.startswith("/") or _fault(text) or ".." in text.split("/"):
        return ()
    parts = _parts(text)
    two = "/".join(parts[:2]).lower()
    if len(parts) < _MIN_BASE or parts[0].lower() in _NO_BASE or any(map(_is_pattern, parts)):
        return ()
    if two in _NO_BASE_OF_TWO or (two in _NO_BASE_ALONE and len(parts) == _MIN_BASE):
        return ()
    return parts


def _parts(text: str) -> list[str]:
    """The parts of a path, without empty ones and dots. A .. at the start of a path without root stays."""
    parts: list[str] = []
    for part in text.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts and parts[-1] != ".." and not (len(parts) == 1 and parts[0].startswith("~")):
            parts.pop()
        elif not text.startswith("/"):
            parts.append(part)
    return parts


def _fault(text: str) -> str:
    if not text:
        return "is empty"
    if fault := plain_text.fault(text):
        return fault
    if unusual := _UNUSUAL.search(text):
        return _REASONS.get(unusual[0], "has a sign that shells read")
    if text[0] in "-@":
        return "begins like an option or a reference to a file"
    if "~" in text and _SHORT_NAME.search(text):
        return "has a short name of Windows"
    for part in text.split("/"):
        if (part[-1:] in (" ", ".") and part not in (".", "..")) or part[:1] == " ":
            return "has a part that begins with a blank, or ends with a blank or dot"
        if _SIGN_OF_PATTERN.search(part) and not _ROUTE.fullmatch(part):
            if len(part) > _MAX_PATTERN or part.count("*") > _MAX_STARS or not _PATTERN.fullmatch(part):
                return "has a pattern that is not understood"
            if _meant(part, [".."]):
                return "has a pattern that may match the folder above"
    return ""


def _is_pattern(part: str) -> bool:
    return bool(_SIGN_OF_PATTERN.search(part)) and not _ROUTE.fullmatch(part)


def _meant(pattern: str, names: Iterable[str], *, hidden: bool = False) -> str:
    """The first name that a pattern matches; "" if there is none. For a shell, `*` matches no hidden name."""
    matches = re.compile(fnmatch.translate(pattern.replace("[^", "[!"))).fullmatch
    hidden = hidden or pattern.startswith(".")
    return next((name for name in names if (hidden or name[0] != ".") and matches(name)), "")


def _unmasked(text: str) -> list[str]:
    """What an opaque text may stand for. For some a backslash splits names, for others it vanishes."""
    text = plain_text.fold(unquote(unquote(text)))
    readings = [text, text.replace("\\", "")] if "\\" in text else [text]
    split = (_VANISHES.sub("", _BEGINS_A_NAME.sub("/", reading)).split("/") for reading in readings)
    return ["/".join(part.strip(" @").rstrip(" .") for part in parts) for parts in split]


# ---------------------------------------------------------------- lists


def _secret(parts: list[str], base_parts: int) -> str:
    """Whether a path holds secrets. Mere words count only behind the parts of its base."""
    if not parts:
        return ""
    folded = _folded(parts)
    name = folded[-1]
    if _matches(folded, lists.SECRET_FOLDERS):
        return "" if name.endswith(".pub") else "store"
    if folded[0] == "proc" and name in ("environ", "mem", "auxv"):
        return "store"
    names = _without_copies(name)
    if any(_is_store(form) or _ends_with(folded[:-1], form, lists.SECRET_NAMES) for form in names):
        return "store"
    own = parts[base_parts:]
    if not own:
        return ""
    is_about = names[-1].rpartition(".")[2] in lists.ABOUT_ENDINGS or name.endswith(lists.EXAMPLE_ENDINGS)
    words = _words(own[-1])
    if _SECRET_ROW.search(words):
        if not is_about:
            return "store"
        in_store = any(_SECRET_FOLDER.search(_words(part)) for part in own[:-1])
        return "topic" if _TOPIC.search(words) and not in_store else "name"
    is_weak = name in lists.ABOUT_NAMES or (not is_about and " key" in words and bool(_KEY.search(words)))
    for part, folded_part in zip(own[:-1], folded[base_parts:], strict=False):
        words = _words(part)
        if not is_about and _SECRET_FOLDER.search(words):
            return "store"
        is_weak = is_weak or _is_store(folded_part) or bool(_SECRET_ROW.search(words))
    return "name" if is_weak else (_secret_of_pattern(name) if _is_pattern(name) else "")


def _folded(parts: list[str]) -> list[str]:
    """The parts as lists have them: an accent hides no name."""
    return [part.lower() if part.isascii() else plain_text.fold(part) for part in parts]


def _secret_of_pattern(pattern: str) -> str:
    """Whether a pattern matches stores: "store" if it aims at them, "name" if it is as wide as `*.json`."""
    if not _meant(pattern, _STORES, hidden=True):
        return ""
    return "name" if _is_wide(pattern) else "store"


def _is_wide(pattern: str) -> bool:
    """Whether a pattern says at most what a name ends with: `*`, `*.py`."""
    stem = pattern.rpartition(".")[0] if pattern.rfind(".") > 0 else pattern
    return len(_SIGN_OF_PATTERN.sub("", stem)) < 2


def _is_store(name: str) -> bool:
    if name.endswith(lists.EXAMPLE_ENDINGS) or (name.endswith(".env") and name[:-4] in lists.EXAMPLE_STEMS):
        return False
    if name.startswith(lists.SECRET_BEGINNINGS):
        return not name.endswith(".pub")
    return (
        name in lists.SECRET_NAMES
        or name.endswith(lists.SECRET_ENDINGS)
        or (name.startswith(".env") and not name[4:5].isalpha())  # .env.prod, .env-old, .env2
        or (name.startswith(".") and name.endswith("_history"))
    )


def _without_copies(name: str) -> list[str]:
    """The name, and the names of what it may be a copy of; the last one has no ending of a copy left."""
    forms = [name]
    for _ in range(4):
        shorter = _COPY.sub("", forms[-1])
        if shorter.endswith(lists.BACKUP_ENDINGS):
            shorter = next(shorter.removesuffix(end) for end in lists.BACKUP_ENDINGS if shorter.endswith(end))
        if not shorter or shorter == forms[-1]:
            break
        forms.append(shorter)
    if len(forms) > 1:
        forms.append(forms[-1].removeprefix("."))  # vim's copy of id_rsa is .id_rsa.swp
    return forms


def _words(name: str) -> str:
    return _NO_SECRET_ROW.sub("", plain_words(name))


def _steers(parts: list[str]) -> str:
    """What the file at these parts, below the base, steers."""
    if not parts:
        return ""
    parts = _folded(parts)
    if folder := _matches(parts, lists.STEERS_FOLDERS):
        return lists.STEERS_FOLDERS[folder]
    name = parts[-1]
    if _is_pattern(name):
        names = _STEERS_NO_CODE if _is_wide(name) else lists.STEERS_NAMES
        if meant := _meant(name, names):
            return lists.STEERS_NAMES[meant]
    if tail := _ends_with(parts[:-1], name, lists.STEERS_NAMES):
        return lists.STEERS_NAMES[tail]
    for beginning, kind in lists.STEERS_BEGINNINGS.items():
        if name.startswith(beginning):
            return kind
    return next((kind for ending, kind in lists.STEERS_ENDINGS.items() if name.endswith(ending)), "")


def _matches(parts: list[str], folders: Collection[str]) -> str:
    """The first folder of a list that the path goes through; its key may have up to three parts."""
    for at, part in enumerate(parts):
        if part in folders:
            return part
        if part.startswith(".") and _is_pattern(part) and (meant := _meant(part, folders)):
            return meant
        if part in _FIRST_OF_SEVERAL:
            for size in (2, 3):
                key = "/".join(parts[at : at + size])
                if key in folders:
                    return key
    return ""


def _ends_with(before: list[str], name: str, names: Container[str]) -> str:
    """The entry of a list of names that the path ends with; an entry may have up to three parts."""
    for size in (0, 1, 2):
        key = "/".join([*before[len(before) - size :], name]) if size else name
        if key in names:
            return key
    return ""
