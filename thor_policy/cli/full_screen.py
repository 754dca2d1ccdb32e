"""What the full screens share: bar, page, message line, input, keys.

Owns prompt_toolkit, with the screens that are made from this one. Invariant: the effect of a key is there
before the next key is read. If a step is refused, the message line says why and nothing changes. Main thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition, Filter
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import TextArea

from thor_policy.cli.page_text import Line
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.escape import visible

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
#: Lines around the page: two above, two below.
_FRAME = 4
#: The mode in which keys act on what is shown, and that in which the help is shown.
JUDGE, HELP = "judge", "help"


class Bind(Protocol):
    """Binds keys to an action, for the mode `judge` unless there is another condition."""

    def __call__(self, *names: str, when: Filter | None = None) -> Callable[[Callable[[], object]], None]: ...


class FullScreen(ABC):
    """A page on a terminal, with keys; `run` returns when its user quits.

    `keys` are shown at the bottom, `help_text` at `?`. `prompts` are the questions of the modes in which text
    is typed, `readings` the modes that show a text until a key is pressed. `scroll_key` is the name of the
    key that scrolls.
    """

    def __init__(
        self,
        *,
        keys: Sequence[tuple[str, str]],
        help_text: str,
        prompts: Mapping[str, str],
        readings: Sequence[str] = (HELP,),
        scroll_key: str,
    ) -> None:
        self._key_names, self._help, self._prompts = keys, help_text, prompts
        self._readings, self._scroll_key = readings, scroll_key
        self._mode = JUDGE
        self._message: tuple[str, str] = ("", "")
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

    # ------------------------------------------------------------ what each screen has of its own

    @abstractmethod
    def _bar_texts(self) -> tuple[str, str]:
        """The left and the right part of the first line."""

    @abstractmethod
    def _second_line(self) -> StyleAndTextTuples:
        """What the second line says."""

    @abstractmethod
    def _page_lines(self) -> list[Line]:
        """What is shown in the mode `judge`."""

    @abstractmethod
    def _accept_input(self) -> bool:
        """Take the text that was typed; True keeps it in the input."""

    @abstractmethod
    def _bind(self, on: Bind) -> None:
        """Bind the keys of this screen."""

    # ------------------------------------------------------------ the parts of the screen

    def _windows(self) -> HSplit:
        typing = Condition(lambda: self._mode in self._prompts)

        def window(
            text: Callable[[], StyleAndTextTuples], height: int | None = None, style: str = ""
        ) -> Window:
            return Window(FormattedTextControl(text), height=height, style=style, wrap_lines=False)

        return HSplit(
            [
                window(self._bar, 1, "class:bar"),
                window(lambda: self._second_line(), 1),
                self._pane,
                Window(FormattedTextControl(lambda: self._message_line()), height=1, char="─"),
                ConditionalContainer(self._input, filter=typing),
                ConditionalContainer(window(self._keys, 1), filter=~typing),
            ]
        )

    def _size(self) -> tuple[int, int]:
        size = self._app.output.get_size()
        return size.columns, max(1, size.rows - _FRAME)

    def _bar(self) -> StyleAndTextTuples:
        (left, right), (width, _) = self._bar_texts(), self._size()
        return [("", visible(left + " " * max(2, width - len(left) - len(right)) + right))]

    def _lines(self) -> list[Line]:
        if self._mode == HELP:
            return as_lines(self._help.splitlines())
        return self._page_lines()

    def _body(self) -> StyleAndTextTuples:
        lines, (_, height) = self._lines(), self._size()
        self._scroll = max(0, min(self._scroll, len(lines) - height))
        shown = lines[self._scroll : self._scroll + height]
        if len(lines) > self._scroll + height:
            more = len(lines) - self._scroll - height + 1
            shown[-1] = [("class:key", f" ... {more} more lines: {self._scroll_key}")]
        out: StyleAndTextTuples = []
        for line in shown:
            out += [(f"class:{style}" if style else "", text) for style, text in line]
            out.append(("", "\n"))
        return out[:-1]

    def _message_line(self) -> StyleAndTextTuples:
        """The line under the page: a message, or the question that the user must answer."""
        if self._mode in self._prompts:
            prompt = self._prompts[self._mode]
            return [("", "── "), ("class:name", prompt), ("", " (Enter: done, Esc: cancel) ")]
        style, text = self._message
        return [("", "── "), (style, f"{text} ")] if text else []

    def _keys(self) -> StyleAndTextTuples:
        line: StyleAndTextTuples = []
        for key, meaning in self._key_names:
            line += [("class:key", f" {key}"), ("", f" {meaning} " if meaning else " ")]
        return line

    # ------------------------------------------------------------ steps

    def _attempt(self, step: Callable[[], object]) -> bool:
        """Do a step and show the text that it returns; False if the step was refused."""
        self._scroll, self._full = 0, False
        try:
            result = step()
        except ThorPolicyError as error:
            self._message = ("class:error", visible(str(error)))
            return False
        self._message = ("", visible(result) if isinstance(result, str) else "")
        return True

    def _enter(self, mode: str, text: str = "") -> None:
        """Begin a mode; in one that has a prompt, with this text in the input."""
        self._mode, self._scroll = mode, 0
        self._message = ("", "")
        if mode in self._prompts:
            self._input.text = text
            self._input.buffer.cursor_position = len(text)
            self._app.layout.focus(self._input)
        else:
            self._app.layout.focus(self._pane)

    # ------------------------------------------------------------ keys

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()
        judging = Condition(lambda: self._mode == JUDGE)
        reading = Condition(lambda: self._mode in self._readings)
        begun = Condition(lambda: self._mode != JUDGE)

        def on(*names: str, when: Filter | None = None) -> Callable[[Callable[[], object]], None]:
            def bind(action: Callable[[], object]) -> None:
                def handler(_: KeyPressEvent) -> None:
                    action()

                for name in names:
                    keys.add(name, filter=judging if when is None else when)(handler)

            return bind

        self._bind(on)
        on("z")(lambda: setattr(self, "_full", not self._full))
        on("?")(lambda: self._enter(HELP))
        on("pagedown", "down")(lambda: self._scroll_by(1))
        on("pageup", "up")(lambda: self._scroll_by(-1))
        on("q")(self._app_exit)
        keys.add("c-c")(lambda _: self._app_exit())
        on("escape", "c-g", when=begun)(lambda: self._enter(JUDGE))
        on("<any>", when=reading)(lambda: self._enter(JUDGE))
        return keys

    def _scroll_by(self, halves: int) -> None:
        """Scroll by half pages."""
        self._scroll += halves * (self._size()[1] // 2)

    def _app_exit(self) -> None:
        self._app.exit()


def as_lines(texts: Sequence[str]) -> list[Line]:
    """Plain texts as lines of a page."""
    return [[("", f" {text}")] for text in texts]
