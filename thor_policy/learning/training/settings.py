"""How an adapter is trained, and how far a training is.

Owns these frozen types and nothing else. Invariant: they say all that a result depends on but for the
cases. Pure.
"""

from __future__ import annotations

from msgspec import Struct


class Settings(Struct, frozen=True, kw_only=True):
    """How an adapter is trained; all of it goes into its card.

    `rest_weight` is what a token's loss counts in the rest of an answer, against the label's loss, both as
    means over a batch. The learning rate falls over all steps of `epochs`; `stop_after` ends training at a
    step before that (0: it does not). Every `check_every` steps the held-out cases are read; the best weights
    are kept, and after `patience` checks without better ones training ends. `started_from` is the sha256 of
    the adapter whose weights were the first ones; empty: random ones.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    learning_rate: float = 5e-4
    warm_up_share: float = 0.05
    batch_size: int = 8
    epochs: float = 1.0
    stop_after: int = 0
    rest_weight: float = 0.15
    seed: int = 1
    check_every: int = 250
    patience: int = 4
    started_from: str = ""


class Point(Struct, frozen=True, kw_only=True):
    """One point of the curve: mean losses (nats) since the last one, and how held-out cases are judged."""

    step: int
    steps: int
    seconds: float
    label_loss: float
    rest_loss: float
    held_out_loss: float
    held_out_accuracy: float

    @property
    def merit(self) -> tuple[float, float]:
        """What weights are chosen by: how often right, then how sure, which a temperature can mend."""
        return self.held_out_accuracy, -self.held_out_loss
