"""Templates: values are bounded, escaped and made visible; files of others are those that are noted."""

from __future__ import annotations

import hashlib
import re

import pytest

from thor_policy.core.requests import Json
from thor_policy.web import templates


def test_the_vendored_file_is_the_one_that_is_noted() -> None:
    folder = templates.HERE / "static"
    digest = hashlib.sha256((folder / "htmx.min.js").read_bytes()).hexdigest()
    assert digest in (folder / "VENDORED.md").read_text(encoding="utf-8")


def test_no_template_turns_escaping_off() -> None:
    for path in (templates.HERE / "templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|Markup|\son[a-z]+=|style=|javascript:", text), path.name
        assert "<script>" not in text, path.name


def test_values_are_bounded_and_made_visible() -> None:
    row = {
        "timestamp": "2026-07-01T12:00:00Z", "decision": "<b>\u202e", "actor": "a" * 5_000,
        "action": "\x1b[2J", "decision_type": "t", "entity": '"><script>', "tier": "rule",
        "confidence": None, "risk_level": None, "decision_id": "x/y?z", "seq": 1,
    }  # fmt: skip
    text = templates.render("_row.html", row=row)
    assert "<script>" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "a" * 200 not in text
    assert "/decisions/x%2Fy%3Fz" in text


def test_every_template_compiles() -> None:
    for path in (templates.HERE / "templates").glob("*.html"):
        templates._TEMPLATES.get_template(path.name)


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({"a": {"b": 1, "c": {"d": True}}, "e": None}, [("a.b", "1"), ("a.c.d", "yes"), ("e", "–")]),
        ({"a": [1, "x"]}, [("a", '[1,"x"]')]),
        ("text", [("value", "text")]),
        (None, []),
    ],
)
def test_members_have_dotted_names(value: Json, rows: list[tuple[str, str]]) -> None:
    assert templates.members(value) == rows


def test_members_are_bounded_in_number_and_length() -> None:
    rows = templates.members({f"n{number}": "x" * 10_000 for number in range(1_000)})
    assert len(rows) == templates.MAX_MEMBERS + 1
    assert max(len(text) for _, text in rows) < templates.MAX_SHOWN + 50


def test_a_page_of_another_part_may_use_its_own_style_and_nothing_else() -> None:
    response = templates.with_own_style("<head><style>a {}</style></head><main></main>")
    policy = response.headers["content-security-policy"]
    assert re.search(r"style-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert "unsafe" not in policy
