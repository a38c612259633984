"""Whether what a matrix combines belongs together: what is for binary masks, and what is for several classes."""

from __future__ import annotations

from collections.abc import Iterable

from bench.spec import Cell

SEVERAL = "set_prediction"
"""The loss of several classes; all others are for binary masks."""


class Misfit(ValueError):
    """A cell whose parts do not belong together; the message names them and what is allowed."""


def fits(cell: Cell) -> bool:
    """Whether the cell's method can be built for the classes of its dataset."""
    return cell.dataset().num_classes == 1 or cell.method().several_classes


def check(cells: Iterable[Cell]) -> None:
    """Refuse the first cell whose method, loss or validation metric is not for the classes of its dataset.

    Raises:
        Misfit: there is one.
    """
    for cell in cells:
        reason = _misfit(cell)
        if reason:
            name, classes = cell.spec["dataset"]["name"], cell.dataset().num_classes
            has = f"{classes} classes" if classes > 1 else "binary masks"
            raise Misfit(
                f"dataset {name!r} has {has}, and {reason}. Some of the cells alone: --only dataset=NAME or method=NAME"
            )


def _misfit(cell: Cell) -> str:
    from bench.metrics import validation_of

    regime, classes = cell.regime(), cell.dataset().num_classes
    if not fits(cell):
        return f"method {cell.method().name!r} is for binary masks only"
    if (classes > 1) != (regime.loss == SEVERAL):
        return f"the loss {regime.loss!r} is not for them" + (f"; allowed: {SEVERAL}" if classes > 1 else "")
    try:
        validation_of(regime.validation_metric, classes)
    except ValueError as error:
        return f"the validation metric is not for them: {error}"
    return ""
