"""path(text, base): where a path leads, and whether its file holds secrets or steers something.

Owns the reading of paths as text. Invariant: `inside` is true only for a plain text that leads below a base
which bounds something; whatever hides, escapes, encodes or matches is opaque, and an opaque path is never
inside. A symbolic link or a mount inside the base may still lead elsewhere: no text shows that, so whoever
opens the file must resolve it. Nothing here touches a file. Pure; any thread.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Sequence
from typing import Any
from urllib.parse import unquote

from thor_policy.policy.structure import path_lists as lists
from thor_policy.policy.structure import plain_text
from thor_policy.policy.words import plain_words

#: A longer text is opaque: PATH_MAX of Linux.
MAX_CHARS = 4096
_CACHED_CHARS = 1024

#: Folders of a base that bounds nothing: another process, a device, the system's settings.
_NO_BASE = {"proc", "sys", "dev", "etc", "boot", "bin", "sbin", "lib", "lib64"}

_FILE_URL = re.compile(r"file://(?:localhost)?(/[^?#]*)", re.I)
_HOME = re.compile(r"\$(?:HOME|\{HOME\})(?=/|$)")
#: ASCII that a path may have without meaning something else to a shell, a URL or Windows.
_UNUSUAL = re.compile(r"[\x00-\x7f](?<![\w .,+=@#()~/\[\]-])")
_REASONS = {
    "\\": "has a backslash",
    "%": "has a percent sign, which may encode another path",
    "$": "has a variable",
    ":": "has a colon: a drive, a stream or a host",
    "*": "has a pattern",
    "?": "has a pattern",
    "{": "has a pattern",
    "}": "has a pattern",
}
#: What another reading of an opaque text takes for a slash, and what it drops.
_BEGINS_A_NAME = re.compile(r"[\\:|;&<>]+")
_VANISHES = re.compile(r"[\"'`$*?{}\[\]\x00-\x1f]+")
#: A name of a route, `[id].tsx`: as a pattern it would match files of one letter in the same folder.
_ROUTE = re.compile(r"\[{1,2}(?:\.{3})?[A-Za-z][A-Za-z0-9_-]*\]{1,2}(?:\.[a-z]+)*")
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
_SECRET_FOLDER = re.compile(r" (?:\w*(?:{})\w*|creds|private keys?) ".format("|".join(lists.SECRET_PARTS)))
_NO_SECRET_ROW = re.compile(
    " (?:{})(?= )".format("|".join(map(re.escape, (*lists.NOT_SECRET, *lists.NOT_SECRET_ROWS))))
)


def path(text: str, base: str) -> dict[str, Any]:
    """Where a path leads, as these members:

    - `opaque`: why the text is not plain; "" if it is
    - `path` (absolute, or from `~`; relative if the base is no good; "" if opaque), `name` (its last part)
    - `base_ok`: the base is an absolute folder at least two levels deep, without ..
    - `inside` (below the base), `is_base` (the base itself)
    - `secret`: "store" (holds secrets), "name" (its name speaks of them) or ""
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
        "secret": "", "steers": "",
    } | known  # fmt: skip


#: The members of a result.
MEMBERS = frozenset(_result())


@functools.lru_cache(maxsize=1024)
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
        parts = _parts(_unmasked(text))
        return _result(
            opaque=opaque,
            base_ok=bool(root),
            secret=_secret(parts, parts, opaque=True),
            steers=_steers(parts),
        )
    if plain[0] not in "/~" and root:
        plain = f"/{'/'.join(root)}/{plain}"
    parts = _parts(plain)
    is_absolute = plain[0] == "/"
    below = is_absolute and bool(root) and parts[: len(root)] == list(root)
    lowered = [part.lower() for part in parts]
    own = lowered[len(root) :] if below else lowered
    return _result(
        path="/" * is_absolute + "/".join(parts),
        name=parts[-1] if parts else "",
        inside=below and bool(own),
        is_base=below and not own,
        base_ok=bool(root),
        secret=_secret(lowered, own),
        steers=_steers(own) or ("system" if is_absolute and lowered[:1] == ["etc"] else ""),
    )


@functools.lru_cache(maxsize=64)
def _base(text: str) -> Sequence[str]:
    """The parts of a base; none if it bounds nothing."""
    if not text.startswith("/") or _fault(text) or ".." in text.split("/"):
        return ()
    parts = _parts(text)
    return parts if len(parts) > 1 and parts[0].lower() not in _NO_BASE else ()


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
        if ("[" in part or "]" in part) and not _ROUTE.fullmatch(part):
            return "has a pattern"
    return ""


def _unmasked(text: str) -> str:
    """What an opaque text may stand for, in lower case."""
    text = _BEGINS_A_NAME.sub("/", plain_text.fold(unquote(unquote(text))))
    return "/".join(part.strip(" @").rstrip(" .") for part in _VANISHES.sub("", text).split("/"))


# ---------------------------------------------------------------- lists


def _secret(parts: list[str], own: list[str], *, opaque: bool = False) -> str:
    """Whether a path in lower case holds secrets; `own`: its parts below the base."""
    if not parts:
        return ""
    name = parts[-1]
    if _matches(parts, lists.SECRET_FOLDERS):
        return "" if name.endswith(".pub") and not opaque else "store"
    if parts[0] == "proc" and name in ("environ", "mem", "auxv"):
        return "store"
    names = _without_copies(name)
    if any(_is_store(form) or _ends_with(parts[:-1], form, lists.SECRET_NAMES) for form in names):
        return "store"
    is_about = names[-1].rpartition(".")[2] in lists.ABOUT_ENDINGS or name.endswith(lists.EXAMPLE_ENDINGS)
    if own and _SECRET_ROW.search(_words(own[-1])):
        return "name" if is_about else "store"
    weak = name in lists.ABOUT_NAMES
    for part in own[:-1]:
        words = _words(part)
        if _SECRET_FOLDER.search(words) and not is_about:
            return "store"
        weak = weak or _is_store(part) or bool(_SECRET_ROW.search(words))
    return "name" if weak else ""


def _is_store(name: str) -> bool:
    if name.endswith(lists.EXAMPLE_ENDINGS) or (name.endswith(".env") and name[:-4] in lists.EXAMPLE_STEMS):
        return False
    if name.startswith(lists.SECRET_BEGINNINGS):
        return not name.endswith(".pub")
    return (
        name in lists.SECRET_NAMES
        or name.endswith(lists.SECRET_ENDINGS)
        or (name.startswith(".") and name.endswith("_history"))
    )


def _without_copies(name: str) -> list[str]:
    """The name, and the names of what it may be a copy of; the last one has no ending of a copy left."""
    forms = [name]
    for _ in range(4):
        shorter = _COPY.sub("", forms[-1])
        shorter = next(
            (shorter.removesuffix(end) for end in lists.BACKUP_ENDINGS if shorter.endswith(end)), shorter
        )
        if not shorter or shorter == forms[-1]:
            break
        forms.append(shorter)
    return (
        forms if len(forms) == 1 else [*forms, forms[-1].removeprefix(".")]
    )  # .id_rsa.swp is vim's of id_rsa


def _words(name: str) -> str:
    return _NO_SECRET_ROW.sub("", plain_words(name))


def _steers(parts: list[str]) -> str:
    """What a path in any case steers, of the parts below the base."""
    parts = [part.lower() for part in parts]
    if not parts:
        return ""
    if folder := _matches(parts, lists.STEERS_FOLDERS):
        return lists.STEERS_FOLDERS[folder]
    name = parts[-1]
    if tail := _ends_with(parts[:-1], name, lists.STEERS_NAMES):
        return lists.STEERS_NAMES[tail]
    for beginning, kind in lists.STEERS_BEGINNINGS.items():
        if name.startswith(beginning):
            return kind
    return next((kind for ending, kind in lists.STEERS_ENDINGS.items() if name.endswith(ending)), "")


def _matches(parts: list[str], folders: Container[str]) -> str:
    """The first folder of a list that the path goes through; its key may have up to three parts."""
    for at in range(len(parts)):
        for size in (1, 2, 3):
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
