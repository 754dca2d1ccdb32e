"""The full screen of `approvals queue`: one open task, one key for each verdict.

Owns the queue of a session, and the modes and keys of the screen. Invariant: a verdict is recorded, or its
refusal is shown, before the next key is read; a refusal changes nothing, and a comment stays until its
verdict is recorded. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prompt_toolkit.formatted_text import StyleAndTextTuples

from thor_policy.cli import approval_page
from thor_policy.cli.approval_page import Item
from thor_policy.cli.full_screen import JUDGE, Bind, FullScreen
from thor_policy.cli.page_text import Line
from thor_policy.client.blocking import Client
from thor_policy.core import records
from thor_policy.core.approvals import OPEN_STATES
from thor_policy.core.escape import visible

#: The order of urgencies; within each, the oldest request comes first.
_ORDER = ("emergency", "urgent", "normal")
#: Most tasks of a queue: those of one reply.
_MOST = 200
_KEYS = (
    ("a", "approve"),
    ("d", "deny"),
    ("c", "comment"),
    ("n", "next"),
    ("p", "previous"),
    ("r", "reload"),
    ("?", ""),
    ("q", "quit"),
)
_HELP_TEXT = """\
Keys

  a             approve this task, with the comment if there is one
  d             deny this task, with the comment if there is one: it ends
  c             type a comment; it is sent with your verdict
  n, Space      the next task, without a verdict
  p, Left       the previous task
  r             read the open tasks again
  z             show long values in full, or short again
  Down          scroll down a long page; Up: up
  Esc           cancel the current input
  q             quit; every verdict is recorded already

Emergencies come first, then urgent requests, then the oldest.
Any key returns to the task."""
_COMMENT = "comment"


class Queue:
    """The open tasks that a client may see, and the place in them; `task` is the one at that place."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._judged: set[str] = set()
        self.tasks: list[Item] = []
        self.place = 0
        self.task: Item | None = None

    @property
    def judged(self) -> int:
        """Tasks that got a verdict in this session."""
        return len(self._judged)

    def reload(self) -> str | None:
        """Read the open tasks again, and stay at the task that is shown if it is still open."""
        shown = None if self.task is None else self.task["id"]
        tasks = self._client.approvals(records.ApprovalQuery(limit=_MOST))
        self.tasks = sorted(tasks, key=lambda task: (_ORDER.index(task["urgency"]), task["requested_at"]))
        ids = [task["id"] for task in self.tasks]
        if shown in ids:
            self._show(ids.index(shown))
        elif not self._show_open(0):
            self._show(len(ids))
        return f"{len(ids)} open" if ids else None

    def step(self, by: int) -> None:
        """Go to the next or the previous task; after the last one comes the end of the queue."""
        self._show(max(0, min(self.place + by, len(self.tasks))))

    def judge(self, verdict: Literal["approve", "deny"], comment: str | None) -> str:
        """Send a verdict on the task that is shown; returns what became of it.

        Raises RequestError and Unreachable; then nothing has changed.
        """
        task = self.task
        if task is None:
            return "no task is shown"
        kind = records.Approve if verdict == "approve" else records.Deny
        changed = self._client.change_approval(kind(task=task["id"], comment=comment))
        self._judged.add(task["id"])
        self.tasks[self.place] = self.task = changed
        return approval_page.result(changed)

    def advance(self) -> None:
        """Go to the next open task without a verdict of this session, or to the end of the queue."""
        if not self._show_open(self.place + 1):
            self._show(len(self.tasks))

    def _show_open(self, start: int) -> bool:
        """Show the first open task without a verdict of this session: from a place on, or else before it."""
        count = len(self.tasks)
        for place in (*range(start, count), *range(min(start, count))):
            task = self.tasks[place]
            if task["id"] not in self._judged and task["status"] in OPEN_STATES:
                self._show(place)
                return True
        return False

    def _show(self, place: int) -> None:
        """Go to a place, and read its task as it is now, with the question."""
        task = None
        if place < len(self.tasks):
            (task,) = self._client.approvals(records.ApprovalQuery(id=self.tasks[place]["id"]))
            self.tasks[place] = task
        self.place, self.task = place, task


class Screen(FullScreen):
    """A queue on a terminal; `run` returns when its user quits. `now` is the Unix time in seconds."""

    def __init__(self, queue: Queue, now: Callable[[], float]) -> None:
        self._queue, self._now = queue, now
        #: Comments that were typed and not sent, by the id of the task.
        self._comments: dict[str, str] = {}
        super().__init__(keys=_KEYS, help_text=_HELP_TEXT, prompts={_COMMENT: "Comment:"}, scroll_key="Down")

    def run(self) -> None:
        """Show the first open task and handle keys until the user quits."""
        self._attempt(lambda: self._queue.reload())
        self._app.run()

    # ------------------------------------------------------------ the parts of the screen

    def _bar_texts(self) -> tuple[str, str]:
        queue = self._queue
        of = len(queue.tasks)
        return f" approvals  {min(queue.place + 1, of)} of {of}", f"{queue.judged} judged "

    def _second_line(self) -> StyleAndTextTuples:
        task = self._queue.task
        comment = "" if task is None else self._comments.get(task["id"], "")
        return [("", visible(f" comment, sent with your verdict: {comment}") if comment else "")]

    def _page_lines(self) -> list[Line]:
        task = self._queue.task
        if task is None:
            return [[], [("name", f" {self._ending()}")]]
        width, _ = self._size()
        return approval_page.page(task, now=self._now(), width=width, full=self._full)

    def _ending(self) -> str:
        if not self._queue.tasks:
            return "No task is open. r looks again."
        return f"End of the queue: {self._queue.judged} judged. r looks for open tasks again."

    # ------------------------------------------------------------ steps

    def _judge(self, verdict: Literal["approve", "deny"]) -> None:
        task = self._queue.task
        if task is None:
            return

        def step() -> str:
            done = self._queue.judge(verdict, self._comments.get(task["id"]))
            self._comments.pop(task["id"], None)
            self._queue.advance()
            return done

        self._attempt(step)

    def _type_comment(self) -> None:
        if self._queue.task is not None:
            self._enter(_COMMENT, self._comments.get(self._queue.task["id"], ""))

    def _accept_input(self) -> bool:
        task, text = self._queue.task, self._input.text.strip()
        self._enter(JUDGE)
        if task is not None:
            self._comments[task["id"]] = text
        return False

    # ------------------------------------------------------------ keys

    def _bind(self, on: Bind) -> None:
        on("a")(lambda: self._judge("approve"))
        on("d")(lambda: self._judge("deny"))
        on("c")(self._type_comment)
        on("n", "space")(lambda: self._attempt(lambda: self._queue.step(1)))
        on("p", "left")(lambda: self._attempt(lambda: self._queue.step(-1)))
        on("r")(lambda: self._attempt(self._queue.reload))
