"""Code that stands in a command: `python -c '..'`, `node -e '..'`, a here-document for ruby, a script of awk.

Owns what such code shows plainly: texts in quotes that are command lines, paths or addresses, and calls that
read the environment, remove folders, or run what was downloaded or decoded. Invariant: it only finds reasons
to deny; code of which it finds nothing is not known to be harmless. Bounded by the length of the code. Pure;
any thread.
"""

from __future__ import annotations

import re

from msgspec import Struct

#: Texts in quotes that are read, and their characters.
_MAX_TEXTS, _MAX_CHARS = 64, 1024
#: Code that is read, in characters.
_MAX_CODE = 8192
_TEXT = re.compile(r"'((?:\\.|[^'\\\n])*)'|\"((?:\\.|[^\"\\\n])*)\"|`((?:\\.|[^`\\])*)`", re.DOTALL)
_RUNS = re.compile(
    r"\b(?:system|popen|subprocess|exec(?:File|Sync|FileSync|l|le|lp|v|ve|vp|vpe)?|spawn\w*|shell_exec|passthru|proc_open|qx|run|call|sh)\b|`"
)
_EVALUATES = re.compile(
    r"\b(?:eval|exec|compile|Function|runInThisContext|class_eval|instance_eval|loadstring)\b"
)
_FOREIGN = re.compile(
    r"b64|base64|b32decode|unhexlify|fromhex|unpack|atob|rot13|marshal|decompress|urlopen|urlretrieve|urllib"
    r"|requests\.|httpx|aiohttp|fetch\(|https?\.get|open-uri|URI\.open|LWP|Net::HTTP|socket"
    r"|file_get_contents\(\s*.https?:"
)
_REMOVES = re.compile(
    r"\b(?:rmtree|rm_rf|rm_r|remove_tree|remove_dir|removedirs|rmSync|rmdirSync|rmdir|rm|remove_entry|unlink)\b"
)
_ENVIRONMENT = re.compile(
    r"\bos\.environb?\b|\bgetenv\b|\bprocess\.env\b|%ENV\b|\$ENV\b|\$_ENV\b|\bENVIRON\b|(?<![\w$.])ENV\b"
)
#: One member of the environment: its name.
_MEMBER = re.compile(r"\s*(?:\.get|\.fetch)?[.\[({]\s*['\"]?(?!to_h|inspect|items|copy|keys)(\w+)")


class InlineCode(Struct, frozen=True, kw_only=True):
    """What code shows: its texts in quotes, whether they may be run, members of the environment that it names
    ("" for all), whether it removes folders, and whether it runs what it got from elsewhere."""

    texts: tuple[str, ...]
    runs_texts: bool
    variables: tuple[str, ...]
    removes: bool
    runs_foreign: bool


def read(code: str) -> InlineCode:
    """What the code shows. Any text gives a value."""
    code = code[:_MAX_CODE]
    texts: list[str] = []
    for match in _TEXT.finditer(code):
        text = next((part for part in match.groups() if part is not None), "")
        if 0 < len(text) <= _MAX_CHARS and len(texts) < _MAX_TEXTS:
            texts.append(re.sub(r"\\(.)", r"\1", text))
    members = (_MEMBER.match(code, match.end()) for match in _ENVIRONMENT.finditer(code))
    return InlineCode(
        texts=tuple(dict.fromkeys(texts)),
        runs_texts=bool(_RUNS.search(code)),
        variables=tuple(dict.fromkeys(member[1] if member else "" for member in members)),
        removes=bool(_REMOVES.search(code)),
        runs_foreign=bool(_EVALUATES.search(code) and _FOREIGN.search(code)),
    )
