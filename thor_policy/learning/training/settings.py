"""The settings of a training, and the points of its curve.

Owns these frozen types and nothing else. Invariant: a result depends on the settings and the cases alone.
Pure.
"""

from __future__ import annotations

from msgspec import Struct


class Settings(Struct, frozen=True, kw_only=True):
    """How an adapter is trained; its card holds all of them.

    `rest_weight` is the weight of the loss on the rest of an answer, relative to the loss on the label; both
    are means over a batch. The learning rate falls over all steps of `epochs`. `stop_after` ends training at
    an earlier step (0: it does not). Every `check_every` steps the held-out cases are evaluated; the best
    weights are kept, and training ends after `patience` checks without better ones. `started_from` is the
    sha256 of the adapter that gave the initial weights; empty if they were random.
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
    """One point of the curve: mean losses (nats) since the last point, and the figures on held-out cases."""

    step: int
    steps: int
    seconds: float
    label_loss: float
    rest_loss: float
    held_out_loss: float
    held_out_accuracy: float

    @property
    def merit(self) -> tuple[float, float]:
        """Weights are chosen by accuracy, then by loss: a temperature can correct the latter."""
        return self.held_out_accuracy, -self.held_out_loss
