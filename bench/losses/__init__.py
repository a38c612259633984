"""What a model is trained to lower: one value an image, whatever the model and the number of classes.

Statistics are taken within an image, so that the mean over a batch of B equals B accumulated micro-batches of one:
the micro-batch size changes speed and memory only.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bench.losses.binary import balanced_bce, structure, structure_weighted
from bench.losses.set_prediction import SetPrediction
from bench.regime import Regime
from methods.base import Output

Loss = Callable[[Output, Tensor, Tensor], Tensor]
"""(output, target, keys) -> (B,): target as ``Model.targets`` gives it, keys (B,) int64 from which draws derive."""

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "structure": structure,
    "structure_weighted": structure_weighted,
    "balanced_bce": balanced_bce,
}


def task_loss(regime: Regime) -> Loss:
    """The loss that a regime names."""
    if regime.loss == "set_prediction":
        return SetPrediction(points=regime.points, loss_weights=regime.loss_weights, match_weights=regime.match_weights)
    binary = BINARY[regime.loss]
    return lambda output, target, keys: binary(output.masks, target)
