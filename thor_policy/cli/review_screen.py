"""The full screen of `review`: one decision, one key for each verdict.

Owns prompt_toolkit. Invariant: the effect of a key is recorded before the next key is read. If the session
refuses a step, the message line says why and nothing changes. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import TextArea

from thor_policy.cli.review_page import Line
from thor_policy.core import records
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.escape import visible
from thor_policy.review.session import Item, Session

#: Only the terminal's own colours, which fit light and dark themes; NO_COLOR is honoured.
_STYLE = Style.from_dict(
    {
        "bar": "reverse",
        "name": "bold",
        "allow": "bold ansigreen",
        "deny": "bold ansired",
        "between": "bold ansimagenta",
        "reasoning": "",
        "quiet": "",
        "error": "bold ansired",
        "key": "bold",
    }
)
#: Lines around the decision: two above, two below.
_FRAME = 4
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
HELP = """\
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

Mode = Literal["judge", "outcome", "reasoning", "correction", "give", "search", "help", "figures"]
_PROMPTS: dict[Mode, str] = {
    "reasoning": "The right reasoning:",
    "correction": "The right outcome:",
    "give": "Assign to:",
    "search": "Search:",
}


class Screen:
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
        self._mode: Mode = "judge"
        self._message: tuple[str, str] = ("", "")
        self._verdict: records.Judgement = "accept"
        self._decision: str | None = None
        self._report: list[str] = []
        self._search_text = ""
        self._scroll = 0
        self._full = False
        body = FormattedTextControl(self._body, focusable=True, show_cursor=False)
        self._pane = Window(body, wrap_lines=False)
        self._input = TextArea(height=1, multiline=False, accept_handler=lambda _: self._accept_input())
        self._app: Application[None] = Application(
            layout=Layout(self._windows()),
            key_bindings=self._bindings(),
            style=_STYLE,
            full_screen=True,
        )

    def run(self) -> None:
        """Show the first decision and handle keys until the reviewer quits."""
        self._attempt(lambda: self._session.open())
        try:
            self._app.run()
        finally:
            self._session.close()

    # ------------------------------------------------------------ the parts of the screen

    def _windows(self) -> HSplit:
        typing = Condition(lambda: self._mode in _PROMPTS)

        def window(
            text: Callable[[], StyleAndTextTuples], height: int | None = None, style: str = ""
        ) -> Window:
            return Window(FormattedTextControl(text), height=height, style=style, wrap_lines=False)

        return HSplit(
            [
                window(self._bar, 1, "class:bar"),
                window(self._why, 1),
                self._pane,
                Window(FormattedTextControl(self._message_line), height=1, char="─"),
                ConditionalContainer(self._input, filter=typing),
                ConditionalContainer(window(self._keys, 1), filter=~typing),
            ]
        )

    def _size(self) -> tuple[int, int]:
        size = self._app.output.get_size()
        return size.columns, max(1, size.rows - _FRAME)

    def _bar(self) -> StyleAndTextTuples:
        session, (width, _) = self._session, self._size()
        of = len(session.picks)
        place = min(session.place + 1, of)
        done = round(10 * min(session.place, of) / of) if of else 10
        left = f" {self._title}  {place} of {of}  {'■' * done}{'□' * (10 - done)}"
        right = (
            f"{session.count('judged')} judged  {session.count('skipped')} skipped  {session.reviewer[:16]} "
        )
        return [("", visible(left + " " * max(2, width - len(left) - len(right)) + right))]

    def _why(self) -> StyleAndTextTuples:
        if self._session.item is None:
            return [("", "")]
        pick = self._session.item.pick
        order = "first" if self._session.place == 0 else "next"
        return [("", visible(f" {order} because: {pick.why}"))]

    def _lines(self) -> list[Line]:
        if self._mode == "help":
            return [[("", f" {line}")] for line in HELP.splitlines()]
        if self._mode == "figures":
            return [[("", f" {line}")] for line in self._report]
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

    def _body(self) -> StyleAndTextTuples:
        lines, (_, height) = self._lines(), self._size()
        self._scroll = max(0, min(self._scroll, len(lines) - height))
        shown = lines[self._scroll : self._scroll + height]
        if len(lines) > self._scroll + height:
            shown[-1] = [("class:key", f" ... {len(lines) - self._scroll - height + 1} more lines: Space")]
        out: StyleAndTextTuples = []
        for line in shown:
            out += [(f"class:{style}" if style else "", text) for style, text in line]
            out.append(("", "\n"))
        return out[:-1]

    def _message_line(self) -> StyleAndTextTuples:
        """The line under the decision: a message, or the question that the reviewer must answer."""
        if self._mode in _PROMPTS:
            return [("", "── "), ("class:name", _PROMPTS[self._mode]), ("", " (Enter: done, Esc: cancel) ")]
        if self._mode == "outcome":
            line: StyleAndTextTuples = [("", "── "), ("class:name", "The right outcome:")]
            for number, label in self._choices():
                line += [("class:key", f"  {number}"), ("", f" {visible(label)}")]
            return [*line, ("class:key", "  Esc"), ("", " cancel ")]
        style, text = self._message
        return [("", "── "), (style, f"{text} ")] if text else []

    def _keys(self) -> StyleAndTextTuples:
        line: StyleAndTextTuples = []
        for key, meaning in _KEYS:
            line += [("class:key", f" {key}"), ("", f" {meaning} " if meaning else " ")]
        return line

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

    def _attempt(self, step: Callable[[], object]) -> bool:
        """Do a step of the session and show the text that it returns; False if the step was refused."""
        self._scroll, self._full = 0, False
        try:
            result = step()
        except ThorPolicyError as error:
            self._message = ("class:error", visible(str(error)))
            return False
        self._message = ("", visible(result) if isinstance(result, str) else "")
        return True

    def _judge(self, verdict: records.Judgement, decision: str | None = None, reasoning: str = "") -> None:
        self._enter("judge")

        def step() -> str:
            about = self._about()
            self._session.judge(verdict, decision=decision, reasoning=reasoning.strip())
            return f"recorded: {verdict.replace('_', ' ')}{f', {decision}' if decision else ''} ({about})"

        self._attempt(step)

    def _enter(self, mode: Mode) -> None:
        self._mode, self._scroll = mode, 0
        self._message = ("", "")
        if mode in _PROMPTS:
            self._input.text = ""
            self._app.layout.focus(self._input)
        else:
            self._app.layout.focus(self._pane)

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
            self._enter("judge")
            self._attempt(lambda: self._delegate(text.strip()))
        elif mode == "search" and (text or self._search_text):
            self._search_text = text or self._search_text
            self._enter("judge")
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
            self._enter("figures")

    # ------------------------------------------------------------ keys

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        judging = Condition(lambda: self._mode == "judge")
        choosing = Condition(lambda: self._mode == "outcome")
        reading = Condition(lambda: self._mode in ("help", "figures"))
        begun = Condition(lambda: self._mode != "judge")

        def on(*names: str, when: Condition = judging) -> Callable[[Callable[[], object]], None]:
            def bind(action: Callable[[], object]) -> None:
                def handler(_: KeyPressEvent) -> None:
                    action()

                for name in names:
                    keys.add(name, filter=when)(handler)

            return bind

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
        on("z")(lambda: setattr(self, "_full", not self._full))
        on("t")(self._show_figures)
        on("?")(lambda: self._enter("help"))
        on("space", "pagedown", "down")(lambda: setattr(self, "_scroll", self._scroll + self._size()[1] // 2))
        on("backspace", "pageup", "up")(lambda: setattr(self, "_scroll", self._scroll - self._size()[1] // 2))
        on("q")(self._app_exit)
        keys.add("c-c")(lambda _: self._app_exit())
        on("escape", "c-g", when=begun)(lambda: self._enter("judge"))
        on("<any>", when=reading)(lambda: self._enter("judge"))
        for number in range(1, 10):
            on(str(number), when=choosing)(lambda number=number: self._choose(number))  # type: ignore[misc]
        return keys

    def _app_exit(self) -> None:
        self._app.exit()
