"""Lines of a stream, and the messages in them.

Any bytes give lines within the limit, and a message or a fault.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from thor_policy.mcp import messages
from thor_policy.mcp.lines import TOO_LONG, LineCutter
from thor_policy.mcp.tools import MAX_TOOLS, Listing


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_lines_do_not_depend_on_how_the_stream_is_cut(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    cutter = LineCutter(20)
    lines = [line for a, b in pairwise(places) for line in cutter.lines(data[a:b])]
    whole = list(LineCutter(20).lines(data))
    assert lines == whole
    expected = [part if len(part) <= 20 else TOO_LONG for part in data.split(b"\n")[:-1]]
    assert whole == [line for line in expected if line is TOO_LONG or line.strip()]  # type: ignore[union-attr]


@given(st.binary(max_size=300))
def test_any_bytes_of_a_client_are_a_message_or_a_fault(line: bytes) -> None:
    message, forwarded = messages.from_client(line)
    assert isinstance(message, messages.Fault) == (forwarded == b"")
    messages.from_server(line)


def test_what_is_forwarded_is_what_was_read() -> None:
    line = b' {"jsonrpc" : "2.0", "id":"\\u0061", "method":"ping","params":{"b":1.50,"a":"\\u2028"}} '
    message, forwarded = messages.from_client(line)
    assert message == messages.Request(id="a", method="ping", params={"b": 1.5, "a": "\u2028"})
    assert forwarded.count(b"\n") == 1
    assert messages.from_client(forwarded) == (message, forwarded)


def test_integers_of_any_size_come_from_a_server() -> None:
    line = b'{"jsonrpc":"2.0","id":1,"result":{"n":99999999999999999999}}'
    message = messages.from_server(line)
    assert isinstance(message, messages.Response)
    assert messages.from_client(line)[1] == b""


def test_a_listing_learns_the_first_form_of_a_tool_and_marks_others() -> None:
    listing = Listing()
    assert listing.learn({"tools": [{"name": "a", "inputSchema": {"x": 1, "y": 2}}]}) == []
    before = listing.sha256
    assert listing.learn({"tools": [{"inputSchema": {"y": 2, "x": 1}, "name": "a"}]}) == []  # the same tool
    assert listing.changed("a") is None
    (note,) = listing.learn({"tools": [{"name": "a", "inputSchema": {}}]})
    assert "'a' has changed" in note
    assert listing.changed("a") is not None
    assert listing.sha256 == before
    assert listing.learn({"tools": "none"}) == ["the answer to tools/list has no list of tools"]
    assert len(listing.learn({"tools": [{}, {"name": 7}, None, {"name": ""}]})) == 4


def test_a_listing_is_bounded() -> None:
    listing = Listing()
    notes = listing.learn({"tools": [{"name": f"t{number}"} for number in range(MAX_TOOLS + 2)]})
    assert len(notes) == 2
    assert listing.get(f"t{MAX_TOOLS}") is None


def test_a_tool_with_a_schema_beyond_64_bits_cannot_be_called() -> None:
    listing = Listing()
    message = messages.from_server(
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","n":99999999999999999999}]}}'
    )
    assert isinstance(message, messages.Response)
    listing.learn(message.result)
    tool = listing.get("a")
    assert tool is not None
    assert tool.fault
