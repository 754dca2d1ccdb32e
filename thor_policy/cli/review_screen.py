"""The full screen of `review`: one decision, one key for each verdict.

Owns the modes and keys of a review. Invariant: the effect of a key is recorded before the next key is read.
If the session refuses a step, the message line says why and nothing changes. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples

from thor_policy.cli.full_screen import HELP, JUDGE, Bind, FullScreen, as_lines
from thor_policy.cli.page_text import Line
from thor_policy.core import records
from thor_policy.core.escape import visible
from thor_policy.review.session import Item, Session

_KEYS = (
    ("a", "accept"),
    ("d", "wrong outcome"),
    ("r", "wrong reason"),
    ("b", "both"),
    ("s", "skip"),
    ("u", "undo"),
    ("?", ""),
    ("q", "quit"),
)
_HELP_TEXT = """\
Keys

  a        accept: the outcome is right and so is the reasoning
  d        the outcome is wrong: choose the right one by its number
  r        the reasoning is wrong: type what it should have been, Enter
  b        both are wrong: choose an outcome, then type
  s        skip: other reviewers may judge it
  u        undo the last step, and the one before it if pressed again
  p, Left  back to the previous decision; a new verdict replaces yours
  g        assign this decision to another reviewer
  /        search: the next decision with a text; Enter alone: the one after it
  z        show long values in full, or short again
  Space    scroll down a long page; Backspace: up
  t        figures: progress, agreement, reviewers
  Esc      cancel the current input
  q        quit; every verdict is recorded already

Any key returns to the decision."""

#: The mode that shows the report.
_FIGURES = "figures"
_PROMPTS = {
    "reasoning": "The right reasoning:",
    "correction": "The right outcome:",
    "give": "Assign to:",
    "search": "Search:",
}


class Screen(FullScreen):
    """A session on a terminal; `run` returns when the reviewer quits.

    `page` returns the lines of a decision (item, width, in full or not), `labels` the outcomes to choose
    from, `figures` the lines of the report.
    """

    def __init__(
        self,
        session: Session,
        title: str,
        *,
        page: Callable[[Item, int, bool], list[Line]],
        labels: Callable[[Item], Sequence[str]],
        figures: Callable[[], list[str]],
    ) -> None:
        self._session, self._title = session, title
        self._page, self._labels, self._figures = page, labels, figures
        self._verdict: records.Judgement = "accept"
        self._decision: str | None = None
        self._report: list[str] = []
        self._search_text = ""
        super().__init__(
            keys=_KEYS,
            help_text=_HELP_TEXT,
            prompts=_PROMPTS,
            readings=(HELP, _FIGURES),
            scroll_key="Space",
        )

    def run(self) -> None:
        """Show the first decision and handle keys until the reviewer quits."""
        self._attempt(lambda: self._session.open())
        try:
            self._app.run()
        finally:
            self._session.close()

    # ------------------------------------------------------------ the parts of the screen

    def _bar_texts(self) -> tuple[str, str]:
        session = self._session
        of = len(session.picks)
        place = min(session.place + 1, of)
        done = round(10 * min(session.place, of) / of) if of else 10
        left = f" {self._title}  {place} of {of}  {'■' * done}{'□' * (10 - done)}"
        right = (
            f"{session.count('judged')} judged  {session.count('skipped')} skipped  {session.reviewer[:16]} "
        )
        return left, right

    def _second_line(self) -> StyleAndTextTuples:
        if self._session.item is None:
            return [("", "")]
        pick = self._session.item.pick
        order = "first" if self._session.place == 0 else "next"
        return [("", visible(f" {order} because: {pick.why}"))]

    def _page_lines(self) -> list[Line]:
        if self._mode == _FIGURES:
            return as_lines(self._report)
        width, _ = self._size()
        if self._session.item is not None:
            return self._page(self._session.item, width, self._full)
        return [[], [("name", f" {line}")] if (line := self._ending()) else []]

    def _ending(self) -> str:
        session = self._session
        if session.place < len(session.picks):
            return "No decision is shown; Enter shows the next one."
        taken = f"; {session.passed_over} taken by other reviewers" if session.passed_over else ""
        return (
            f"End of the queue: {session.count('judged')} judged, {session.count('skipped')} skipped{taken}."
        )

    def _message_line(self) -> StyleAndTextTuples:
        if self._mode == "outcome":
            line: StyleAndTextTuples = [("", "── "), ("class:name", "The right outcome:")]
            for number, label in self._choices():
                line += [("class:key", f"  {number}"), ("", f" {visible(label)}")]
            return [*line, ("class:key", "  Esc"), ("", " cancel ")]
        return super()._message_line()

    def _choices(self) -> list[tuple[int, str]]:
        """The outcomes except the served one, each with its number counted from the loosest.

        Empty if there are more than nine: then the reviewer types the outcome.
        """
        item = self._session.item
        labels = self._labels(item) if item is not None else ()
        if item is None or len(labels) > 9:
            return []
        return [(n, label) for n, label in enumerate(labels, 1) if label != item.decision["decision"]]

    # ------------------------------------------------------------ steps

    def _judge(self, verdict: records.Judgement, decision: str | None = None, reasoning: str = "") -> None:
        self._enter(JUDGE)

        def step() -> str:
            about = self._about()
            self._session.judge(verdict, decision=decision, reasoning=reasoning.strip())
            return f"recorded: {verdict.replace('_', ' ')}{f', {decision}' if decision else ''} ({about})"

        self._attempt(step)

    def _begin_verdict(self, verdict: records.Judgement) -> None:
        """Begin a verdict: record an acceptance at once, or ask for the correction."""
        if self._session.item is None:
            return
        self._verdict, self._decision = verdict, None
        if verdict == "accept":
            self._judge("accept")
        elif verdict == "correct_reasoning":
            self._enter("reasoning")
        else:
            self._enter("outcome" if self._choices() else "correction")

    def _choose(self, number: int) -> None:
        label = dict(self._choices()).get(number)
        if label is not None:
            self._correct(label)

    def _correct(self, decision: str) -> None:
        self._decision = decision
        if self._verdict == "correct_both":
            self._enter("reasoning")
        else:
            self._judge(self._verdict, decision)

    def _accept_input(self) -> bool:
        text, mode = self._input.text, self._mode
        if mode == "reasoning":
            self._judge(self._verdict, self._decision, text)
        elif mode == "correction" and text.strip():
            self._correct(text.strip())
        elif mode == "give" and text.strip():
            self._enter(JUDGE)
            self._attempt(lambda: self._delegate(text.strip()))
        elif mode == "search" and (text or self._search_text):
            self._search_text = text or self._search_text
            self._enter(JUDGE)
            self._attempt(self._search)
        return False

    def _if_shown(self, action: Callable[[], object]) -> None:
        if self._session.item is not None:
            action()

    def _delegate(self, to: str) -> str:
        about = self._about()
        self._session.delegate(to)
        return f"assigned to {to} ({about})"

    def _skip(self) -> str:
        about = self._about()
        self._session.skip()
        return f"skipped ({about})"

    def _about(self) -> str:
        """The last eight characters of the id of the decision that is shown, as on the page."""
        item = self._session.item
        return item.decision_id[-8:] if item is not None else ""

    def _search(self) -> str | None:
        match = self._session.find(self._search_text)
        return None if match else f"no decision of this queue contains {self._search_text!r}"

    def _undo(self) -> str:
        last = self._session.undo()
        if last is None:
            return "nothing to undo"
        about = self._session.picks[last.place].decision_id[-8:]
        return f"undone: {(last.verdict or last.step).replace('_', ' ')} ({about})"

    def _show_figures(self) -> None:
        if self._attempt(lambda: setattr(self, "_report", self._figures())):
            self._enter(_FIGURES)

    # ------------------------------------------------------------ keys

    def _bind(self, on: Bind) -> None:
        choosing = Condition(lambda: self._mode == "outcome")
        verdicts: dict[str, records.Judgement] = {
            "a": "accept",
            "d": "correct_decision",
            "r": "correct_reasoning",
            "b": "correct_both",
        }
        for key, verdict in verdicts.items():
            on(key)(lambda verdict=verdict: self._begin_verdict(verdict))  # type: ignore[misc]
        on("s")(lambda: self._if_shown(lambda: self._attempt(self._skip)))
        on("u")(lambda: self._attempt(self._undo))
        on("p", "left")(lambda: self._attempt(self._session.back))
        on("enter")(lambda: None if self._session.item else self._attempt(lambda: self._session.open()))
        on("g")(lambda: self._if_shown(lambda: self._enter("give")))
        on("/")(lambda: self._enter("search"))
        on("t")(self._show_figures)
        on("space")(lambda: self._scroll_by(1))
        on("backspace")(lambda: self._scroll_by(-1))
        for number in range(1, 10):
            on(str(number), when=choosing)(lambda number=number: self._choose(number))  # type: ignore[misc]
