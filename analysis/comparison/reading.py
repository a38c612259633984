"""Reads ``per_image.parquet`` of the cells of a place, aligned by the names of the images.

A file is used only if it gives the score that ``result.json`` has and if its images and their masks are those of the
other cells; else its cell is refused, with the reason, and the others go on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.places import Place
from analysis.comparison.statistic import Statistic, statistic, truth
from analysis.results import read_json
from analysis.source import Cell

FILE = "per_image.parquet"
TOLERANCE = 1e-9
_Key = tuple[tuple[str, ...], bytes]
"""The names of a cell's images, and the sizes of their classes."""


@dataclass(frozen=True)
class PerImage:
    """What the cells of a place say of each image.

    Attributes:
        images: names, sorted; the same for all cells.
        runs: row -> seed -> statistic, of the cells that are used.
        refused: cell -> why it is not, and ``remedies`` what makes its file again.
    """

    images: tuple[str, ...]
    runs: dict[str, dict[int, Statistic]]
    refused: dict[str, str]
    remedies: dict[str, str]

    def seeds(self, row: str) -> tuple[int, ...]:
        return tuple(self.runs[row])

    def values(self, row: str) -> np.ndarray:
        """(seeds, images): the metric of each image as a fraction, NaN where it is undefined.

        Of a pooled metric it is that of the image alone, over the classes in its mask or prediction.
        """
        return np.stack([run.per_image() for run in self.runs[row].values()])


def read_per_image(folder: Path, place: Place) -> PerImage:
    """The files of a place's cells.

    Args:
        folder: the results folder.
    """
    refused: dict[str, str] = {}
    frames: dict[str, pd.DataFrame] = {}
    keys: dict[str, _Key] = {}
    for cell in place.cells:
        try:
            frame = _read(folder, cell, place)
            keys[cell.id] = tuple(frame["image"]), truth(frame).tobytes()
            frames[cell.id] = frame
        except FileNotFoundError:
            refused[cell.id] = f"{FILE} is missing"
        except (OSError, ValueError, KeyError) as error:
            refused[cell.id] = f"{FILE} cannot be read ({error})"
    images = _common_images(keys, refused)
    runs: dict[str, dict[int, Statistic]] = {}
    for row, cells in place.runs.items():
        for seed, cell in cells.items():
            if cell.id in refused:
                continue
            try:
                run = _checked(folder, cell, place, frames.pop(cell.id))
            except ValueError as error:
                refused[cell.id] = str(error)
            else:
                runs.setdefault(row, {})[seed] = run
    remedies = {cell.id: _remedy(folder, cell) for cell in place.cells if cell.id in refused}
    return PerImage(images, runs, refused, remedies)


def _read(folder: Path, cell: Cell, place: Place) -> pd.DataFrame:
    """The rows of the place's test set and protocol, by image."""
    column = place.column
    wanted = [("test_set", "==", column.test_set), ("protocol", "==", place.source.protocol)]
    frame = pd.read_parquet(folder / "cells" / cell.id / FILE, filters=wanted)
    if frame.empty:
        raise ValueError(f"no image of {column.test_set} under the protocol {place.source.protocol}")
    if not frame["image"].is_unique:
        raise ValueError(f"image {frame['image'][frame['image'].duplicated()].iloc[0]!r} is there twice")
    return frame.sort_values("image", ignore_index=True)


def _common_images(keys: dict[str, _Key], refused: dict[str, str]) -> tuple[str, ...]:
    """The images that most cells have; cells with others, or other masks, are added to ``refused``."""
    if not keys:
        return ()
    (usual, masks), most = Counter(keys.values()).most_common(1)[0]
    for cell, (images, _) in keys.items():
        differing = sorted(set(images) ^ set(usual))
        if differing:
            refused[cell] = (
                f"its {len(images)} images are not the {len(usual)} of the {most} cells that agree; "
                f"{differing[0]!r} is not in both"
            )
        elif keys[cell] != (usual, masks):
            refused[cell] = f"its masks are not those of the {most} cells that agree"
    return usual


def _checked(folder: Path, cell: Cell, place: Place, frame: pd.DataFrame) -> Statistic:
    """The cell's statistic, if it gives the score of ``result.json``.

    Raises:
        ValueError: the file lacks a column, or it does not belong to the result.
    """
    metric = place.column.metric
    classes = read_json(folder / "cells" / cell.id / "result.json").get("classes", ())
    try:
        found = statistic(metric, frame, protocol=place.source.protocol, classes=classes)
    except KeyError as error:
        raise ValueError(f"{FILE} has not what {metric} is computed from ({error})") from None
    said, computed = place.source.scores[place.column.test_set, metric][cell.id], found.score()
    if not abs(said - computed) <= TOLERANCE:
        raise ValueError(
            f"{FILE} gives {metric} {computed:.6f} and result.json says {said:.6f}: they are not of one run"
        )
    return found


def _remedy(folder: Path, cell: Cell) -> str:
    """The command that writes the cell's file again: by its adapter, or where that is gone by a new training."""
    how = "--evaluate" if (folder / "cells" / cell.id / "adapter.safetensors").is_file() else "--again"
    option = "" if folder == Path("results") else f" --results {folder}"
    return f"python -m bench.cell {cell.id} {how}{option}"
