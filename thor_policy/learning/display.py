"""What a long task of this package needs to show how far it is.

Owns the protocol `Display` and the display that shows nothing. Invariant: a display prints; it decides
nothing. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from thor_policy.learning.training.settings import Point


class Display(Protocol):
    """Shows how far the work is. Each method opens a display for the length of a block.

    The module `cli.render` is one.
    """

    def working(self, label: str, /) -> AbstractContextManager[None]:
        """Show work that has no steps."""

    def counting(self, label: str, /) -> AbstractContextManager[Callable[[int], None]]:
        """Call what it yields with the number so far."""

    def progress(self, total: int | None, label: str, /) -> AbstractContextManager[Callable[[], None]]:
        """Call what it yields after each of `total` items."""

    def training(
        self,
    ) -> AbstractContextManager[tuple[Callable[[int, int, float], None], Callable[[Point], None]]]:
        """Call the first with step, steps, loss (nats); the second at each check of the held-out cases."""


class Silent:
    """A display that shows nothing."""

    def working(self, _label: str, /) -> AbstractContextManager[None]:
        return nullcontext()

    def counting(self, _label: str, /) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda _: None)

    def progress(self, _total: int | None, _label: str, /) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)

    def training(
        self,
    ) -> AbstractContextManager[tuple[Callable[[int, int, float], None], Callable[[Point], None]]]:
        return nullcontext((lambda *_: None, lambda _: None))


SILENT: Display = Silent()
