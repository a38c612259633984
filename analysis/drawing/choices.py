"""Which experts were chosen: counts by layer and scale, how many decisions a layer makes for an image, and entropy.

A router inside attention windows decides for each of them, padding included; one in a global layer, or one that sees
whole images, decides once per image. Which it is follows from the counts: they add up to the images times the decisions
for each times the experts a decision takes. Where an image is a single window there is no difference between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.drawing.records import EXPERTS, PER_IMAGE, experts_of, folder_of, history_of, result_of
from analysis.source import Cell

PER_WINDOW, ONCE = "per window", "per image"
COLUMNS = ["seed", "layer", "decides", "scale", "count"]


def has_router(folder: Path, cell: Cell) -> bool:
    """Whether a cell chose experts, or must have by its parameters where its large files are not here to tell."""
    if (folder_of(folder, cell) / EXPERTS).is_file():
        return True
    chooses = (
        _parameter(cell, "top_k") is not None and _parameter(cell, "routing") != "sum" and len(scales_of(cell)) > 1
    )
    return chooses and not (folder_of(folder, cell) / PER_IMAGE).is_file()


def scales_of(cell: Cell) -> tuple[int, ...]:
    """The scale of each expert: as given, else from 1 upwards."""
    return tuple(_parameter(cell, "scales") or range(1, (_parameter(cell, "num_experts") or 0) + 1))


def tested(folder: Path, cell: Cell) -> dict[str, pd.DataFrame]:
    """Test set -> :data:`COLUMNS`, from the counts that were taken while it was predicted.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they fit neither the images nor the cell's scales.
    """
    found = {}
    for test_set, own in experts_of(folder, cell).groupby("test_set", sort=False):
        table = own.pivot(index="layer", columns="expert", values="count").to_numpy()
        found[test_set] = _frame(cell, table, cell.images[test_set])
    return found


def validated(folder: Path, cell: Cell) -> pd.DataFrame:
    """:data:`COLUMNS` with ``epoch`` and ``step``: the choices on the validation split after each epoch.

    Raises:
        FileNotFoundError: there is no history.
        ValueError: it has no counts, as those of earlier versions, or counts that do not fit.
    """
    images = result_of(folder, cell)["training"]["validation_images"]
    frames = [
        _frame(cell, np.asarray(line["experts"]), images).assign(epoch=line["epoch"], step=line["step"])
        for line in history_of(folder, cell)
        if "experts" in line
    ]
    if not frames:
        raise ValueError("no epoch says which experts were chosen; it is of an older version")
    return pd.concat(frames, ignore_index=True)


def entropy(counts: Sequence[float]) -> float:
    """Of choosing like this, in bits: 0 if always the same, log2 of their number if all alike; NaN without a choice."""
    values = np.asarray(counts, dtype=float)
    if not values.sum():
        return math.nan
    shares = values[values > 0] / values.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def shares(counts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The counts with their ``share`` among those that agree in the columns ``by``."""
    return counts.assign(share=counts["count"] / counts.groupby(list(by))["count"].transform("sum"))


def entropies(counts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """``entropy`` of the choices that agree in the columns ``by``, and ``relative`` to its highest value."""
    highest = math.log2(counts["scale"].nunique())
    found = counts.groupby(list(by), sort=False)["count"].agg(entropy).rename("entropy").reset_index()
    return found.assign(relative=found["entropy"] / highest)


def _frame(cell: Cell, table: np.ndarray, images: int) -> pd.DataFrame:
    """Counts (layers, experts) of so many images as :data:`COLUMNS`."""
    scales, top_k = scales_of(cell), _parameter(cell, "top_k") or 1
    if table.ndim != 2 or table.shape[1] != len(scales):
        raise ValueError(f"counts of shape {table.shape} for {len(scales)} experts a layer")
    if len(set(scales)) < len(scales):
        raise ValueError(f"experts of scales {scales}: two of one scale are not told apart here")
    each, rest = np.divmod(table.sum(1), images * top_k)
    if rest.any() or not each.all():
        layer = int(np.flatnonzero(rest + (each == 0))[0])
        raise ValueError(
            f"layer {layer} made {table[layer].sum()} choices, not {top_k} or a multiple for {images} images"
        )
    lines: list[dict[str, Any]] = [
        {"seed": cell.seed, "layer": layer, "decides": ONCE if each[layer] == 1 else PER_WINDOW, "scale": s, "count": n}
        for layer, row in enumerate(table.tolist())
        for s, n in zip(scales, row, strict=True)
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def _parameter(cell: Cell, name: str) -> Any:
    """A resolved parameter, of whichever part of a composed method has it."""
    return next((value for key, value in cell.resolved_parameters.items() if key.rpartition(".")[2] == name), None)
