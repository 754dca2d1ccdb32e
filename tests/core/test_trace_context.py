"""W3C Trace Context: what is a traceparent, and which tag of a decision names its trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.trace_context import TAG, Parent, parent_in, parse
from thor_policy.hook.main import is_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"
WRONG = [
    *("", "nonsense", GOOD.upper(), f"{GOOD}-more", f"{GOOD}\n", f" {GOOD}", GOOD[:-1]),
    *(f"01{GOOD[2:]}", f"ff{GOOD[2:]}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
]


def test_a_traceparent_names_trace_span_and_flags() -> None:
    assert parse(GOOD) == Parent(int(TRACE, 16), int(SPAN, 16), 1)


@pytest.mark.parametrize("text", [*WRONG, None, 7, ["x"]])
def test_anything_else_is_none(text: object) -> None:
    assert parse(text) is None


@given(
    st.text() | st.sampled_from([GOOD, *WRONG]) | st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
)
def test_the_hook_takes_what_the_daemon_takes(text: str) -> None:
    assert is_traceparent(text) == (parse(text) is not None)


def test_the_last_tag_counts() -> None:
    other = f"00-{TRACE}-{'1' * 16}-00"
    assert parent_in(("a", f"{TAG}{other}", f"{TAG}{GOOD}", "b")) == parse(GOOD)
    assert parent_in(("a",)) is parent_in((f"{TAG}x",)) is None
