"""No accepted frame keeps the engine thread longer than its budget: V3, frames that did, and a search.

Times are processor times of this thread, held against a reference that is measured in the same process.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from tests.slow_frames import AT, LIGATURE, MARKS, SLOW, frame, pack_named, question, questions_of, repeated
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.policy import functions, words
from thor_policy.policy.budget import Budget, RulesStopped
from thor_policy.policy.pack import Pack
from thor_policy.policy.structure import shell, sql, url
from thor_policy.protocol.messages import EvaluateBatchRequest
from thor_policy.protocol.requests import decode_request

pack_of = functools.cache(pack_named)

#: What a request's rules may take here, in milliseconds: less than by default, so that the search is fast.
BUDGET_MS = 40
#: How far a request may overrun its budget, in `reference_ms`: by one call of a function on one text.
OVERRUN = 25


def cpu_ms(work: Callable[[], object], times: int = 1) -> float:
    """The least processor time of a piece of work, which remembers nothing of an earlier time."""
    least = float("inf")
    for _ in range(times):
        functions.forget()
        started_ns = time.thread_time_ns()
        work()
        least = min(least, (time.thread_time_ns() - started_ns) / 1e6)
    return least


@functools.cache
def reference_ms() -> float:
    """The time of one expensive call on one text of the usual limit."""
    text = repeated("ls /a;", 2_000)
    return max(5.0, cpu_ms(lambda: shell.shell(text), 3))


# ---------------------------------------------------------------- V3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a" + "\u0301" * 31_000, "too_large"),
        ("a" + MARKS * 1_500, "bad_request"),
        (LIGATURE * 4_000, "too_large"),
        ("a" * 4_097, "too_large"),
    ],
    ids=["31,000 marks", "3,000 marks", "4,000 ligatures", "4,097 letters"],
)
def test_v3_a_text_that_rules_would_read_for_seconds_is_refused_at_the_door(text: str, code: str) -> None:
    with pytest.raises(RequestError) as error:
        decode_request(frame(question(subject={"role": text})), max_bytes=65_536, max_deadline_ms=1_000)
    assert error.value.code == code
    assert error.value.message.startswith("request.subject.properties.role: has ")


@pytest.mark.parametrize("name", SLOW)
def test_v3_a_frame_that_kept_rules_busy_is_refused_or_ends_within_its_budget(name: str) -> None:
    pack, content = SLOW[name]
    try:
        questions = questions_of(content)[:3]
    except RequestError:
        return
    for item in questions:
        assert spent_ms(pack_of(pack), item.evaluation) <= BUDGET_MS + OVERRUN * reference_ms()


def spent_ms(pack: Pack, evaluation: Evaluation) -> float:
    """The processor time of the rules of one request, within the budget of these tests."""

    def apply() -> None:
        with suppress(RulesStopped):
            pack.book.apply(evaluation, AT, Budget(BUDGET_MS))

    return cpu_ms(apply)


# ---------------------------------------------------------------- a search

PIECES = [
    LIGATURE, "a" + MARKS * 15, "\uff9e\u0323", "\u0390", "\ufb03", "\u0435", "\u200b", "日", "aB-", ":",
    "%2", "%25", "$(", "a;", "a|b ", "sudo ", "bash -c '", "{a,", "<<a ", "${a:-", "((", "../", "a/",
    "http://a.b/", "a@b.c,", "join b ", "select ", "not ", "(", "'", "1", "delete ", "turn off ",
    "\\u0064", "QUFB", "[::", "=", "\n",
]  # fmt: skip
#: Members that rules of the shipped packs read.
PLACES = [
    "subject.properties.role", "subject.properties.account", "subject.properties.status",
    "subject.properties.principal", "subject.properties.tools", "action.properties.command",
    "action.properties.path", "action.properties.url", "action.properties.sql", "action.properties.to",
    "action.properties.body", "resource.properties.environment", "context.details", "context.team_context",
    "context.recent_history", "context.workspace", "context.arguments", "context.retrieved", "context.task",
    "context.timestamp",
]  # fmt: skip
TEXTS = st.builds(
    lambda pieces, chars: repeated("".join(pieces), chars),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=3),
    st.sampled_from([3, 40, 227, 1_000, 2_000, 4_096]),
)
VALUES = TEXTS | st.builds(
    lambda text, count: [f"{at}{text}"[:4_096] for at in range(count)],
    TEXTS,
    st.sampled_from([2, 15, 100, 400, 900]),
)
NAMES = st.sampled_from(["run", "bash.run", "file.write", "web.fetch", "db.query", "email.send", "delete"])


@st.composite
def frames(draw: st.DrawFn) -> tuple[str, bytes]:
    """A frame within the limits of bytes, most of them within those of texts, and a pack that reads it."""
    request = question(
        action=draw(NAMES | st.text(st.sampled_from("ab" + LIGATURE), min_size=1, max_size=256))
    )
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=6, unique=True)):
        *steps, last = place.split(".")
        parent: dict[str, Json] = request
        for step in steps:
            parent = parent[step]
        parent[last] = draw(VALUES)
        if len(frame(request)) > 65_000:
            del parent[last]
    packs = ["agent-tools", "team-governance", "device-operations", "discount-approval"]
    return draw(st.sampled_from(packs)), frame(request)


def _accepted_frame_ends_within_its_budget(pack_and_frame: tuple[str, bytes]) -> None:
    pack, content = pack_and_frame
    try:
        [item] = questions_of(content)
    except RequestError:
        return
    spent = spent_ms(pack_of(pack), item.evaluation)
    target(spent, label=f"milliseconds of {pack}")
    assert spent <= BUDGET_MS + OVERRUN * reference_ms()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(pack_and_frame=frames())
def test_no_accepted_frame_keeps_the_thread_longer_than_its_budget(pack_and_frame: tuple[str, bytes]) -> None:
    _accepted_frame_ends_within_its_budget(pack_and_frame)


@pytest.mark.soak
@settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(pack_and_frame=frames())
def test_no_accepted_frame_of_thousands_keeps_the_thread_longer_than_its_budget(
    pack_and_frame: tuple[str, bytes],
) -> None:
    _accepted_frame_ends_within_its_budget(pack_and_frame)


def test_each_item_of_a_batch_has_a_budget_of_its_own() -> None:
    content = frame(question(), evaluations=[{"context": {"details": f"{at}"}} for at in range(64)])
    message = decode_request(content, max_bytes=65_536, max_deadline_ms=1_000)
    assert isinstance(message, EvaluateBatchRequest)
    assert len(message.items) == 64
    too_many = json.loads(content) | {"evaluations": [{}] * 65}
    with pytest.raises(RequestError, match="the limit is 64"):
        decode_request(json.dumps(too_many).encode(), max_bytes=65_536, max_deadline_ms=1_000)


# ---------------------------------------------------------------- growth

GROWING: dict[str, tuple[Callable[[str], object], Callable[[int], str], int]] = {
    "shell of colons": (shell.shell, lambda chars: "curl " + ":" * chars, 16_000),
    "shell of numbers and colons": (shell.shell, lambda chars: "curl " + repeated("1:", chars), 16_000),
    "shell of opening brackets and colons": (
        shell.shell, lambda chars: "curl " + repeated("[a" + ":" * 99, chars), 16_000,
    ),
    "shell of words": (shell.shell, lambda chars: "ls " + repeated("a ", chars), 16_000),
    "url of percent signs": (url.url, lambda chars: repeated("%2", chars), 2_000),
    "url of encoded percent signs": (url.url, lambda chars: repeated("%25", chars), 2_000),
    "sql of minus signs": (sql.sql, lambda chars: "select " + repeated("- ", chars), 1_100),
    "words of capitals": (
        lambda text: words.plain_words(text), lambda chars: repeated("aB", chars), 16_000,
    ),
    "words of marks": (
        lambda text: words.plain_words(text), lambda chars: repeated("a" + MARKS, chars), 16_000,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_eight_times_the_text_takes_no_more_than_three_times_eight_times_the_time(name: str) -> None:
    function, text_of, most = GROWING[name]
    sql.load()
    short, long = text_of(most // 8), text_of(most)
    function(short)
    least = 0.02  # of a call that does nothing
    assert cpu_ms(lambda: function(long), 5) <= 3 * 8 * max(cpu_ms(lambda: function(short), 5), least)
