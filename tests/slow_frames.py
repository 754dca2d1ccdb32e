"""Frames within the limit of bytes that kept the rules of shipped packs busy, before texts were bounded.

The tests of bounds send them; `python -m tests.slow_frames` times each, by the pack's rules alone.
"""

from __future__ import annotations

import json
import time
from typing import Any

from thor_policy.config import data_path
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.policy import functions, pack_files
from thor_policy.policy.pack import Pack
from thor_policy.protocol.messages import EvaluateBatchRequest, EvaluateRequest
from thor_policy.protocol.requests import decode_request

#: The largest frame of a daemon with default settings.
MAX_BYTES = 65_536
#: One letter that normalisation makes 18, four of them with blanks between.
LIGATURE = "\ufdfa"
#: Two marks that normalisation has to exchange.
MARKS = "\u0301\u0323"
#: When the questions are received: Unix seconds.
AT = 1_782_907_200.0


def repeated(piece: str, chars: int) -> str:
    """A text of so many characters."""
    return (piece * (chars // len(piece) + 1))[:chars]


def frame(request: Json, **members: Json) -> bytes:
    """A frame in UTF-8, without escapes and blanks: the most text in the fewest bytes."""
    whole = {"v": 1, "id": "slow", "request": request} | members
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def question(**parts: Any) -> dict[str, Json]:
    """A question with other properties, context or resource."""
    return {
        "subject": {"type": "user", "id": "ivo", "properties": parts.get("subject", {})},
        "action": {"name": parts.get("action", "run"), "properties": parts.get("arguments", {})},
        "resource": {"type": parts.get("type", "doc"), "id": parts.get("id", "guide"), "properties": {}},
        "context": parts.get("context", {}),
    }


def _tool(name: str, **arguments: Json) -> dict[str, Json]:
    """A call of a tool by an agent, in a workspace."""
    context = {"workspace": "/home/ivo/project", "origin": "principal", "task": "Do it."}
    return question(action=name, arguments=arguments, context=context, type="host", id="local")


#: Each frame by what it holds, with the pack whose rules read it.
SLOW: dict[str, tuple[str, bytes]] = {
    "a role of ligatures": (
        "team-governance", frame(question(subject={"role": LIGATURE * 21_600})),
    ),
    "a role of combining marks": (
        "team-governance", frame(question(subject={"role": "a" + MARKS * 15_500})),
    ),
    "roles of ligatures": (
        "team-governance", frame(question(subject={"role": [f"{at}" + LIGATURE * 205 for at in range(100)]})),
    ),
    "ids, account and status of ligatures": (
        "team-governance",
        frame(question(
            id=LIGATURE * 256,
            action=LIGATURE * 256,
            type=LIGATURE * 256,
            subject=dict.fromkeys(("account", "status", "role"), LIGATURE * 5200),
            context=dict.fromkeys(("details", "team_context", "recent_history"), LIGATURE * 1200),
        )),
    ),
    "a list of details of ligatures": (
        "team-governance",
        frame(question(
            subject={"role": "engineer", "account": "active"},
            context={"details": [f"{at}" + LIGATURE * 140 for at in range(150)]},
        )),
    ),
    "details of ligatures on a trade": (
        "trade-risk", frame(question(action="buy", context={"details": LIGATURE * 21_600})),
    ),
    "details of ligatures on an invoice": (
        "invoice-exception", frame(question(context={"details": LIGATURE * 21_600})),
    ),
    "a command of colons": ("agent-tools", frame(_tool("bash.run", command="curl " + ":" * 16_300))),
    "paths of ligatures": (
        "agent-tools",
        frame(_tool("file.write", path=[f"{at}/" + LIGATURE * 64 for at in range(300)])),
    ),
    "addresses with percent signs": (
        "agent-tools",
        frame(_tool("web.fetch", url=[f"http://{at}" + repeated("%2", 3_900) for at in range(15)])),
    ),
    "statements of many joins": (
        "agent-tools",
        frame(_tool("db.query", sql=[
            f"select {at} from a " + repeated("join b ", 1_800) for at in range(30)
        ])),
    ),
    "a batch whose defaults are long": (
        "team-governance",
        frame(
            question(subject={"role": LIGATURE * 20_000}),
            evaluations=[{"context": {"details": f"{at}"}} for at in range(64)],
        ),
    ),
    "a batch whose defaults are roles of ligatures": (
        "team-governance",
        frame(
            question(subject={"role": [f"{at}" + LIGATURE * 195 for at in range(100)]}),
            evaluations=[{"context": {"details": f"{at}"}} for at in range(64)],
        ),
    ),
    "a batch whose defaults are names of ligatures": (
        "team-governance",
        frame(
            question(
                action=LIGATURE * 256,
                type=LIGATURE * 256,
                subject={"role": LIGATURE * 4_000, "account": LIGATURE * 4_000, "status": LIGATURE * 4_000},
                context=dict.fromkeys(("team_context", "recent_history"), LIGATURE * 2200),
            ),
            evaluations=[{"context": {"details": f"{at}"}} for at in range(64)],
        ),
    ),
}  # fmt: skip


def questions_of(content: bytes) -> list[EvaluateRequest]:
    """The questions of a frame that is accepted. Raises RequestError for a refused frame or item."""
    message = decode_request(content, max_bytes=MAX_BYTES, max_deadline_ms=1_000)
    if isinstance(message, EvaluateRequest):
        return [message]
    assert isinstance(message, EvaluateBatchRequest)
    for item in message.items:
        if isinstance(item, RequestError):
            raise item
    return [item for item in message.items if isinstance(item, EvaluateRequest)]


def pack_named(name: str) -> Pack:
    """A shipped pack."""
    return pack_files.load(data_path("prompts") / name)


def _main() -> None:
    for name, (pack, content) in SLOW.items():
        book = pack_named(pack).book
        try:
            questions = questions_of(content)
        except RequestError as error:
            print(f"{name}: {len(content)} bytes, refused: {error.message}")
            continue
        functions.forget()
        started_ns = time.thread_time_ns()
        outcomes = {book.apply(item.evaluation, AT).outcome for item in questions}
        took_ms = (time.thread_time_ns() - started_ns) / 1e6
        print(f"{name}: {len(content)} bytes, {took_ms:.0f} ms, {', '.join(sorted(outcomes))}")


if __name__ == "__main__":
    _main()
