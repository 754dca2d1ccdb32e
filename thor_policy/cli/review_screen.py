"""The full screen of `review`: one decision, one key a verdict.

Owns prompt_toolkit. Invariant: a key does one thing and its effect is kept before the next is read; what
the session refuses is told on the message line and changes nothing. The main thread.
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

from thor_policy.cli.escape import visible
from thor_policy.cli.review_page import Line
from thor_policy.core import records
from thor_policy.core.errors import ThorPolicyError
from thor_policy.review.session import Item, Session

#: Only the terminal's own colours, so that light and dark both work; NO_COLOR is honoured.
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
  s        skip: somebody else may have it
  u        undo the last step, and the one before it if pressed again
  p, Left  back to the decision before this one; a new verdict replaces yours
  g        give this decision to another reviewer
  /        search: the next decision that holds a text; Enter alone: the next again
  z        show long values whole; again: short
  Space    further down a long page; Backspace: up
  t        figures: progress, agreement, each reviewer
  Esc      give up what was begun
  q        quit; what was judged is kept already

Any key goes back."""

Mode = Literal["judge", "outcome", "reasoning", "correction", "give", "search", "help", "figures"]
_PROMPTS: dict[Mode, str] = {
    "reasoning": "The right reasoning:",
    "correction": "The right outcome:",
    "give": "Give it to:",
    "search": "Search:",
}


class Screen:
    """A session on a terminal; `run` returns when the reviewer quits.

    `page` gives the lines of a decision (item, width, whether in full), `labels` the outcomes to choose from,
    `figures` the lines of the report.
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
        self._told: list[str] = []
        self._searched = ""
        self._scroll = 0
        self._full = False
        body = FormattedTextControl(self._body, focusable=True, show_cursor=False)
        self._pane = Window(body, wrap_lines=False)
        self._input = TextArea(height=1, multiline=False, accept_handler=lambda _: self._typed())
        self._app: Application[None] = Application(
            layout=Layout(self._rooms()),
            key_bindings=self._bindings(),
            style=_STYLE,
            full_screen=True,
        )

    def run(self) -> None:
        """Show the first decision and serve keys until the reviewer quits."""
        self._attempt(lambda: self._session.open())
        try:
            self._app.run()
        finally:
            self._session.close()

    # ------------------------------------------------------------ what is seen

    def _rooms(self) -> HSplit:
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
                Window(FormattedTextControl(self._said), height=1, char="─"),
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
            return [[("", f" {line}")] for line in self._told]
        width, _ = self._size()
        if self._session.item is not None:
            return self._page(self._session.item, width, self._full)
        return [[], [("name", f" {line}")] if (line := self._ending()) else []]

    def _ending(self) -> str:
        session = self._session
        if session.place < len(session.picks):
            return "Nothing is shown now; Enter goes on."
        over = f"; {session.passed_over} were somebody else's by then" if session.passed_over else ""
        return f"That is all: {session.count('judged')} judged, {session.count('skipped')} skipped{over}."

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

    def _said(self) -> StyleAndTextTuples:
        """The message, or what is asked for, on the line under the decision."""
        if self._mode in _PROMPTS:
            return [("", "── "), ("class:name", _PROMPTS[self._mode]), ("", " (Enter: done, Esc: give up) ")]
        if self._mode == "outcome":
            told: StyleAndTextTuples = [("", "── "), ("class:name", "The right outcome:")]
            for number, label in self._choices():
                told += [("class:key", f"  {number}"), ("", f" {visible(label)}")]
            return [*told, ("class:key", "  Esc"), ("", " give up ")]
        style, text = self._message
        return [("", "── "), (style, f"{text} ")] if text else []

    def _keys(self) -> StyleAndTextTuples:
        told: StyleAndTextTuples = []
        for key, means in _KEYS:
            told += [("class:key", f" {key}"), ("", f" {means} " if means else " ")]
        return told

    def _choices(self) -> list[tuple[int, str]]:
        """The outcomes but the one that was served, each with its number from the loosest.

        None where there are more than there are digits: then the right one is typed.
        """
        item = self._session.item
        labels = self._labels(item) if item is not None else ()
        if item is None or len(labels) > 9:
            return []
        return [(n, label) for n, label in enumerate(labels, 1) if label != item.decision["decision"]]

    # ------------------------------------------------------------ what is done

    def _attempt(self, step: Callable[[], object]) -> bool:
        """Do a step of the session and tell what it returns, if that is text; False if it was refused."""
        self._scroll, self._full = 0, False
        try:
            told = step()
        except ThorPolicyError as error:
            self._message = ("class:error", visible(str(error)))
            return False
        self._message = ("", visible(told) if isinstance(told, str) else "")
        return True

    def _judge(self, verdict: records.Judgement, decision: str | None = None, reasoning: str = "") -> None:
        self._enter("judge")

        def step() -> str:
            about = self._about()
            self._session.judge(verdict, decision=decision, reasoning=reasoning.strip())
            return f"kept: {verdict.replace('_', ' ')}{f', {decision}' if decision else ''} ({about})"

        self._attempt(step)

    def _enter(self, mode: Mode) -> None:
        self._mode, self._scroll = mode, 0
        self._message = ("", "")
        if mode in _PROMPTS:
            self._input.text = ""
            self._app.layout.focus(self._input)
        else:
            self._app.layout.focus(self._pane)

    def _begin(self, verdict: records.Judgement) -> None:
        """What a verdict needs before it is one."""
        if self._session.item is None:
            return
        self._verdict, self._decision = verdict, None
        if verdict == "accept":
            self._judge("accept")
        elif verdict == "correct_reasoning":
            self._enter("reasoning")
        else:
            self._enter("outcome" if self._choices() else "correction")

    def _chosen(self, number: int) -> None:
        label = dict(self._choices()).get(number)
        if label is not None:
            self._corrected(label)

    def _corrected(self, decision: str) -> None:
        self._decision = decision
        if self._verdict == "correct_both":
            self._enter("reasoning")
        else:
            self._judge(self._verdict, decision)

    def _typed(self) -> bool:
        text, mode = self._input.text, self._mode
        if mode == "reasoning":
            self._judge(self._verdict, self._decision, text)
        elif mode == "correction" and text.strip():
            self._corrected(text.strip())
        elif mode == "give" and text.strip():
            self._enter("judge")
            self._attempt(lambda: self._give(text.strip()))
        elif mode == "search" and (text or self._searched):
            self._searched = text or self._searched
            self._enter("judge")
            self._attempt(self._search)
        return False

    def _if_shown(self, action: Callable[[], object]) -> None:
        if self._session.item is not None:
            action()

    def _give(self, to: str) -> str:
        about = self._about()
        self._session.delegate(to)
        return f"given to {to} ({about})"

    def _skip(self) -> str:
        about = self._about()
        self._session.skip()
        return f"skipped ({about})"

    def _about(self) -> str:
        """The end of the id of the decision that is shown, as `log` and the page have it."""
        item = self._session.item
        return item.decision_id[-8:] if item is not None else ""

    def _search(self) -> str | None:
        found = self._session.find(self._searched)
        return None if found else f"no decision of this queue holds {self._searched!r}"

    def _undo(self) -> str:
        last = self._session.undo()
        if last is None:
            return "nothing to undo"
        about = self._session.picks[last.place].decision_id[-8:]
        return f"taken back: {(last.verdict or last.step).replace('_', ' ')} ({about})"

    def _show_figures(self) -> None:
        if self._attempt(lambda: setattr(self, "_told", self._figures())):
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
            on(key)(lambda verdict=verdict: self._begin(verdict))  # type: ignore[misc]
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
            on(str(number), when=choosing)(lambda number=number: self._chosen(number))  # type: ignore[misc]
        return keys

    def _app_exit(self) -> None:
        self._app.exit()
