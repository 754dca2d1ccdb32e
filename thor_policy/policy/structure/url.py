"""url(text): what a URL names, and whether every client agrees about it.

Owns the reading of URLs: by the WHATWG standard (ada_url), held against RFC 3986. Invariant: `opaque` is ""
only if both find the same host and nothing in the text is hidden; then `host` and `address` say where a
request goes, as far as that can be known without DNS. Of an opaque text, `address` is the worst that any
client may make of it. A redirect leads elsewhere, which no text shows. Pure; any thread.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import unquote

import ada_url
from msgspec import Struct

from thor_policy.policy.structure import address, plain_text
from thor_policy.policy.text_cache import kept

#: A longer text is opaque.
MAX_CHARS = 8192
#: A longer text is read anew each time.
_CACHED_CHARS = 2048
_MAX_SEGMENTS = 64
#: A host beyond ASCII is normalised, which takes quadratic time in the number of marks on a letter.
_MAX_AUTHORITY = 512

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
#: Schemes that ada_url reads as the web's; the host of another scheme is read as if it were one of http.
_SPECIAL = {*_DEFAULT_PORTS, "file"}
#: Schemes whose URLs have no host.
_HOSTLESS = {"about", "blob", "cid", "data", "javascript", "mailto", "sms", "tel", "urn", "vbscript"}

_RFC3986 = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?P<slashes>//(?P<authority>[^/?#]*))?(?P<rest>.*)", re.S
)
_AUTHORITY = re.compile(
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:%-]*@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:\[\]]*)(?::(?P<port>[0-9]*))?"
)
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
#: Leading zeros: the number is octal for C libraries, and decimal for others.
_LEADING_ZEROS = re.compile(r"(?:^|(?<=\.))0+(?=[0-9])")
#: Percent-encoding of what needs none: letters, digits, `-._~`; also of signs that split a path.
_NEEDLESS = re.compile(r"%(?:2[def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef]|25|[01][0-9a-f]|3b)", re.I)
_DOT_SEGMENT = re.compile(r"/\.\.?(?:/|$)")
#: The zone of an IPv6 address. In a text without a `]` behind each `%` it takes quadratic time.
_ZONE = re.compile(r"%[^\]]*(?=\])")
#: Where another client may see the host begin or end.
_BREAKS = re.compile(r"[/?#@\\{},;|<>\"'()]+")


class _Reading(Struct, frozen=True):
    """What the WHATWG standard makes of a text."""

    host: str = ""
    port: str = ""
    path: str = ""
    has_query: bool = False


def url(text: str) -> dict[str, Any]:
    """What a text names as a URL, as these members:

    - `opaque`: why the text is not understood; "" if it is
    - `scheme`, `host` (ASCII, lower case, no dot at the end), `userinfo` (it has a user name or password)
    - `port`: by the scheme if the text names none; 0 if there is none
    - `path` (decoded, dots resolved), `plain` (the path hides nothing), `segments` (of the path, lower case)
    - `query` (it has one), `idn` (the host has letters beyond ASCII)
    - `address`, `ip`: class of the host (`address.CLASSES`), and the address that it leads to

    Any text gives a value. The result is shared: do not change it.
    """
    if len(text) > MAX_CHARS:
        return _result(opaque=f"has more than {MAX_CHARS} characters")
    return _cached(text) if len(text) <= _CACHED_CHARS else _read(text)


def _result(**known: Any) -> dict[str, Any]:
    return {
        "opaque": "", "scheme": "", "host": "", "port": 0, "userinfo": False, "path": "", "plain": False,
        "segments": [], "query": False, "address": "", "ip": "", "idn": False,
    } | known  # fmt: skip


#: The members of a result.
MEMBERS = frozenset(_result())


@kept()
def _cached(text: str) -> dict[str, Any]:
    return _read(text)


def _read(text: str) -> dict[str, Any]:
    parts = _RFC3986.fullmatch(text)
    scheme = parts["scheme"].lower() if parts else ""
    shown = parts["authority"] or "" if parts else ""
    if parts and parts["slashes"] is None and scheme in _HOSTLESS:
        return _result(opaque=_fault_of_text(text), scheme=scheme)
    authority = _AUTHORITY.fullmatch(shown)
    reading = None
    if len(shown) <= _MAX_AUTHORITY:
        if scheme in _SPECIAL:
            reading = _whatwg(text)
        elif (
            shown
        ):  # WHATWG leaves the host of other schemes as it is; their clients read it as a browser would
            reading = _whatwg(f"http:{text[len(scheme) + 1 :]}")
    opaque = _fault_of_text(text) or _fault_of_parts(parts, authority, reading)
    reading = reading or _Reading()
    segments = [unquote(segment) for segment in reading.path.split("/") if segment]
    if len(segments) > _MAX_SEGMENTS:
        opaque, segments = opaque or f"has more than {_MAX_SEGMENTS} segments in its path", []
    kind, ip = address.of_host(reading.host)
    if opaque:
        kind, ip = address.worst([(kind, ip), *_candidates(text)])
    named_port = reading.port or (authority["port"] if authority and scheme not in _SPECIAL else "")
    return _result(
        opaque=opaque,
        scheme=scheme,
        host=reading.host,
        port=int(named_port) if named_port else _DEFAULT_PORTS.get(scheme, 0),
        userinfo="@" in shown,
        path=unquote(reading.path),
        plain=not opaque and parts is not None and _is_plain(parts["rest"], reading.path, segments),
        segments=[segment.lower() for segment in segments],
        query=reading.has_query,
        address=kind,
        ip=ip,
        idn=any(label.startswith("xn--") for label in reading.host.split(".")),
    )


def _whatwg(text: str) -> _Reading | None:
    try:
        parsed = ada_url.parse_url(text, ("hostname", "port", "pathname", "search"))
    except ValueError:
        return None
    return _Reading(
        host=parsed["hostname"].removesuffix("."),
        port=parsed["port"],
        path=parsed["pathname"],
        has_query=bool(parsed["search"]),
    )


# ---------------------------------------------------------------- what is not understood


def _fault_of_text(text: str) -> str:
    if not text:
        return "is empty"
    if any(character <= " " or character == "\x7f" for character in text):
        return "has a blank or a control character"
    if "\\" in text:
        return "has a backslash"
    return plain_text.fault(text)


def _fault_of_parts(
    parts: re.Match[str] | None, authority: re.Match[str] | None, reading: _Reading | None
) -> str:
    if parts is None:
        return "has no scheme"
    if parts["slashes"] is None:
        return "has no // after its scheme"
    if authority is None:
        return "has an authority with more than user, host and port"
    host = authority["host"]
    if parts["scheme"].lower() == "file":
        return "names a host for a file" if parts["authority"].lower() not in ("", "localhost") else ""
    if not host:
        return "has no host"
    if parts["rest"][:1] in ("?", "#") and "@" in parts["rest"]:
        return "has an @ right after its host"
    if reading is None:
        return "has a host or port that no client accepts"
    if host.startswith("["):
        return ""
    if len(reading.host) > address.MAX_HOST_CHARS:
        return f"has a host of more than {address.MAX_HOST_CHARS} characters"
    if host.isascii() and not _HOST_NAME.fullmatch(host):
        return "has a host with unusual characters"
    if address.is_ip(reading.host):
        is_usual = host.removesuffix(".") == reading.host
        return "" if is_usual else "has an address in an unusual form, which clients read differently"
    if "" in host.removesuffix(".").split("."):
        return "has a host with an empty label"
    if not host.isascii():
        return _fault_of_name(host, reading.host)
    if reading.host != host.lower().removesuffix("."):
        return "has a host that clients read differently"
    return _fault_of_name(host, reading.host) if "xn--" in reading.host else ""


def _fault_of_name(host: str, ascii_host: str) -> str:
    """What is wrong with a host name beyond ASCII, given as it is or in Punycode."""
    try:
        shown = ada_url.idna.decode(ascii_host)
        if ada_url.idna.encode(shown).decode() != ascii_host:
            return "has a host that clients read differently"
    except ValueError:
        return "has a host that is no name"
    if not host.isascii() and shown != unicodedata.normalize("NFC", host.lower()).removesuffix("."):
        return "has a host in letters that stand for others"
    if not address.DEVIATIONS.isdisjoint(shown):
        return "has a letter in its host that clients read differently"
    return next(filter(None, (plain_text.fault(label) for label in shown.split("."))), "")


def _candidates(text: str) -> list[tuple[str, str]]:
    """Class and address of every host that some client may see in a text that is not understood."""
    addresses, bracket, rest = plain_text.bare(unquote("".join(text.split())))[:_CACHED_CHARS].rpartition("]")
    cleaned = _ZONE.sub("", addresses + bracket) + rest
    pieces: set[str] = set()
    for start in (cleaned, cleaned.partition(":")[2]):
        pieces.update(_BREAKS.split(start.lstrip("/\\"))[:8])
    pieces |= {piece.partition(":")[0] for piece in pieces}  # without a port, which may be wrong
    if not cleaned.isascii():
        pieces |= {plain_text.fold(piece) for piece in pieces}
    pieces |= {_LEADING_ZEROS.sub("", piece) for piece in pieces}
    hosts = {_host(piece) for piece in pieces if 0 < len(piece) <= address.MAX_HOST_CHARS}
    classes = [(host, address.of_host(host)) for host in hosts]
    return [pair for host, pair in classes if "." in host or pair[0] != "private"]  # a mere word is no host


def _host(piece: str) -> str:
    try:
        return ada_url.parse_url(f"http://{piece}/", ("hostname",))["hostname"].removesuffix(".")
    except ValueError:
        return ""


def _is_plain(rest: str, raw: str, segments: list[str]) -> bool:
    """Whether the path, as the text has it in `rest`, is the one that every server sees."""
    rest = rest.partition("?")[0].partition("#")[0]
    return (
        not _DOT_SEGMENT.search(rest)
        and not _NEEDLESS.search(rest)
        and "//" not in raw
        and not any(sign in segment for segment in segments for sign in "/\\%;\ufffd")
        and not plain_text.fault(unquote(raw))
    )
