"""Mail addresses: `email(text)` and `emails(value)`.

Owns what counts as one mail address. Invariant: an address that is understood is the only one that any mail
program can read in its text; everything that RFC 5322 also allows (comments, quoted local parts, groups,
routes, address literals), and every separator or line break, is opaque. Pure; any thread.

Names are compared in lower case: `address`, `local` and `domain` are in it. A domain is in ASCII (IDNA); one
whose other letters look like ASCII, mix scripts, or are read in two ways, is opaque.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import TypedDict

import ada_url

from thor_policy.core.requests import Json
from thor_policy.policy.structure import names, plain_text
from thor_policy.policy.structure.address import DEVIATIONS, MAX_HOST_CHARS
from thor_policy.policy.text_cache import kept

#: Longest address with its name, in characters, and most entries of a field.
MAX_CHARS, MAX_ENTRIES = 400, 200
_MAX_LOCAL, _MAX_DEPTH = 64, 4
#: Before the @: words and dots. Left out of what RFC 5322 allows: % and ! (routes), = (rewritten addresses),
#: / and | (files and programs), quotes of shells, and - at the beginning (options of sendmail).
_LOCAL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_+~&'-]|\.(?=[A-Za-z0-9_]))*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: `Amy Bell <amy@firm.example>`: a name without what could be read as another address.
_NAMED = re.compile(r'(?P<name>[^"<>@,;:()\[\]\\]*|"[^"<>@,;:()\[\]\\]*") ?<(?P<address>[^<> \t]*)>')


class Mail(TypedDict):
    """One address. `opaque` is why it was not understood, "" if it was. If it was not, the rest is empty.

    `address` is `local@domain`, `name` what stood before `<..>`.
    """

    opaque: str
    address: str
    local: str
    domain: str
    name: str


def email(text: str) -> Mail:
    """The one mail address that a text is. The result is shared: do not change it."""
    if len(text) > MAX_CHARS:
        return _nothing(f"the address has more than {MAX_CHARS} characters")
    return _email(text)


def emails(value: Json) -> list[Mail]:
    """The addresses of a field: a text, also with commas or semicolons, or a list of such; null is nobody.

    What is neither gives an opaque entry, as does everything from the entry MAX_ENTRIES on.
    """
    entries: list[Mail] = []
    for entry in _entries(value, 0):
        if len(entries) == MAX_ENTRIES:
            return [*entries, _nothing(f"there are more than {MAX_ENTRIES} addresses")]
        entries.append(email(entry) if isinstance(entry, str) else entry)
    return entries


def _entries(value: Json, depth: int) -> Iterator[str | Mail]:
    if value is None:
        return
    if type(value) is str:
        for part in re.split("[,;]", value, maxsplit=MAX_ENTRIES + 1):
            if part.strip(" "):
                yield part
    elif type(value) is list and depth < _MAX_DEPTH:
        for item in value:
            yield from _entries(item, depth + 1)
    else:
        yield _nothing("the entry is no text")


def _nothing(reason: str) -> Mail:
    return {"opaque": reason, "address": "", "local": "", "domain": "", "name": ""}


@kept()
def _email(text: str) -> Mail:
    name, address = "", text.strip(" ")
    if not address.isprintable():
        return _nothing("the address has a line break or a character that nobody sees")
    if "<" in address:
        named = _NAMED.fullmatch(address)
        if named is None:
            return _nothing("the address is not of the form NAME <LOCAL@DOMAIN>")
        name, address = named["name"].strip('" '), named["address"]
    local, at, written = address.partition("@")
    if not at or "@" in written:
        return _nothing("the address has no @, or several")
    if len(local) > _MAX_LOCAL or not _LOCAL.fullmatch(local):
        return _nothing("the part before the @ is not made of plain letters, digits, dots and _ + ~ & ' -")
    domain = _domain(written)
    if domain is None:
        return _nothing("the domain is not plainly one: it needs two labels of letters, digits and -")
    local = local.lower()
    return {"opaque": "", "address": f"{local}@{domain}", "local": local, "domain": domain, "name": name}


def _domain(written: str) -> str | None:
    """A domain in lower case and ASCII; None for what is not plainly one."""
    if len(written) > MAX_HOST_CHARS or unicodedata.normalize("NFKC", written) != written:
        return None
    domain = written.lower()
    if not domain.isascii():
        domain = ada_url.idna.encode(written).decode()
    labels = domain.split(".")
    is_plain = (
        len(labels) == written.count(".") + 1 >= 2
        and len(domain) <= MAX_HOST_CHARS
        and all(map(_LABEL.fullmatch, labels))
    )
    if not is_plain or labels[-1].isdigit():
        return None
    return domain if all(map(_is_plain_label, labels)) else None


def _is_plain_label(label: str) -> bool:
    """True for a label of ASCII, or one of a single script that nobody takes for ASCII."""
    if not label.startswith("xn--"):
        return label[2:4] != "--"
    shown = ada_url.idna.decode(label)
    if shown == label or shown.isascii() or ada_url.idna.encode(shown).decode() != label:
        return False
    if plain_text.fault(shown) or not DEVIATIONS.isdisjoint(shown) or len(names.scripts_of(shown)) > 1:
        return False
    return not any(not letter.isascii() and names.imitates_latin(letter) for letter in shown)
