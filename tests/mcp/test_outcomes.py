"""Outcomes of calls through the proxy: what is recorded, and that nothing ever waits for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build import WAIT_S
from thor_policy.client.blocking import Client
from thor_policy.core.errors import Unreachable
from thor_policy.hook.calls import MAX_OUTPUT_CHARS
from thor_policy.mcp import messages
from thor_policy.mcp.outcomes import MAX_WAITING, Ended, Recorder, ended


def response(**members: Any) -> messages.Response:
    return messages.Response(id=1, **{"result": None, "is_error": False} | members)


def texts(*parts: Any, **more: Any) -> messages.Response:
    return response(result={"content": [{"type": "text", "text": part} for part in parts]} | more)


@pytest.mark.parametrize(
    ("answer", "status", "note"),
    [
        (texts("done"), "SUCCESS", 'the tool printed "done"'),
        (texts("one", "two"), "SUCCESS", 'the tool printed "one two"'),
        (texts(), "SUCCESS", "the tool printed nothing"),
        (texts("it broke", isError=True), "FAILURE", 'the tool printed "it broke"'),
        (texts("a\ud800\x00\u202eb"), "SUCCESS", 'the tool printed "a\ufffd\ufffd\ufffdb"'),
        (texts("odd", isError="true"), "SUCCESS", 'the tool printed "odd"'),
        (response(is_error=True, error_text="no file"), "FAILURE", 'the tool printed "no file"'),
        (response(is_error=True), "FAILURE", "the tool printed nothing"),
        (response(result={"task": {"taskId": "t"}}), "PENDING", "the server answered with no result yet"),
        (
            response(result={"resultType": "input_required"}),
            "PENDING",
            "the server answered with no result yet",
        ),
        (texts("no task", task=None), "SUCCESS", 'the tool printed "no task"'),
        (response(result={"resultType": "complete", "content": []}), "SUCCESS", "the tool printed nothing"),
        (response(result=[1]), "SUCCESS", "the tool printed nothing"),
        (response(result={"content": "x"}), "SUCCESS", "the tool printed nothing"),
        (response(result={"content": [7, {"text": 7}, {"text": "x"}]}), "SUCCESS", 'the tool printed "x"'),
    ],
)
def test_a_response_says_how_the_call_ended(answer: messages.Response, status: str, note: str) -> None:
    end = ended(answer)
    assert (end.status, end.note("text")) == (status, note)


def test_the_text_can_be_left_out() -> None:
    assert ended(texts("secret")).note("status") == "the tool answered"
    assert (
        Ended("PENDING", why="the client cancelled the call").note("status")
        == "the client cancelled the call"
    )


@given(st.lists(st.text(), max_size=100))
def test_a_note_is_one_bounded_line_that_moves_no_cursor(parts: list[str]) -> None:
    note = ended(texts(*parts)).note("text")
    assert len(note) <= MAX_OUTPUT_CHARS + len('the tool printed ""')
    assert note.isprintable()


def test_megabytes_of_text_are_not_copied() -> None:
    assert len(ended(texts(*["x" * 1_000_000] * 1_000)).text) == MAX_OUTPUT_CHARS + 1


# ---------------------------------------------------------------- the queue


def unreachable() -> Client:
    raise Unreachable("no daemon listens")


def test_what_no_daemon_records_is_lost_and_counted() -> None:
    recorder = Recorder(unreachable)
    recorder.offer(("d1", "d2"), Ended("SUCCESS"))
    recorder.close(WAIT_S)
    assert (recorder.recorded, recorder.lost) == (0, 2)


def test_a_daemon_that_hangs_holds_up_nothing_and_the_queue_is_bounded() -> None:
    hanging, going = threading.Event(), threading.Event()

    def hang() -> Client:
        going.set()
        hanging.wait(WAIT_S)
        raise Unreachable("too late")

    recorder = Recorder(hang)
    recorder.offer(("first",), Ended("SUCCESS"))
    assert going.wait(WAIT_S)
    for number in range(MAX_WAITING + 10):
        recorder.offer((str(number),), Ended("SUCCESS"))
    assert recorder.lost == 10
    recorder.close(0.0)
    assert recorder.lost == MAX_WAITING + 11, "all of them, and the one under way"
    hanging.set()


def test_an_end_that_comes_too_soon_counts_what_it_leaves_behind() -> None:
    hanging, going = threading.Event(), threading.Event()

    def hang() -> Client:
        going.set()
        hanging.wait(WAIT_S)
        raise Unreachable("too late")

    recorder = Recorder(hang)
    recorder.offer(("first", "second", "third"), Ended("SUCCESS"))
    assert going.wait(WAIT_S)
    recorder.close(0.01)
    assert recorder.lost == 3
    hanging.set()


def test_nothing_is_recorded_on_demand() -> None:
    recorder = Recorder(unreachable, "none")
    recorder.offer(("d1",), Ended("SUCCESS"))
    recorder.close(WAIT_S)
    assert (recorder.recorded, recorder.lost) == (0, 0)
