"""Prediction maps in a folder, scored against masks in another: for models that were not trained here.

Maps and masks are paired by name. An image is compared at its mask's own size, or with both sides squashed to
a square as a cell of that size would see them. Files are read and scored in several processes; their number
changes no result.

Of binary masks a map is an 8-bit picture or, without any quantisation, a float ``.npy`` or TIFF of
probabilities. :mod:`bench.label_maps` reads those of several classes, with what is public here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from bench.metrics import Row, Scores, metrics_of, score_image
from datasets import squash_map, squash_mask
from datasets.encoding import THRESHOLD, grey, histogram
from datasets.pairing import Pair, list_files, pair_files

MAP_SUFFIXES = (".png", ".npy", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DARK = 30  # maps and masks of class indices hold none above it, but for one value in masks that does not count
_LISTED = 20
T = TypeVar("T")


class BadMaps(ValueError):
    """Some files cannot be scored; the message lists them with what to do."""


class _Scored(NamedTuple):
    """One image: what :func:`score_image` gave, an 8-bit map's largest value, and the values in the mask's file."""

    row: Row
    curve: np.ndarray
    brightest: int | None
    levels: frozenset[int]


@dataclass(frozen=True)
class MapScores:
    """The scores of a folder.

    Attributes:
        protocol: one of :data:`bench.metrics.PROTOCOLS`.
        size: side in pixels to which both sides were squashed; None for each mask's own size.
        pairs: the files that were compared.
        unpaired: names of the files without a partner, of ``predictions`` and of ``masks``.
        mean: the value of the set by metric.
        rows: one an image, as in ``per_image.parquet``; of binary masks with the maximum of the image's own
            E-measure curve.
        num_classes: 1 for binary masks.
        quantised: some map came in 8 bits although the protocol takes float probabilities.
        ignored: the values in masks of several classes that did not count.
    """

    protocol: str
    size: int | None
    pairs: tuple[Pair, ...]
    unpaired: dict[str, list[str]]
    mean: dict[str, Any]
    rows: list[Row]
    num_classes: int = 1
    quantised: bool = False
    ignored: tuple[int, ...] = ()

    def report(self) -> dict[str, Any]:
        """The scores as plain JSON values."""
        metrics = [key for key in metrics_of(self.num_classes) if key in self.rows[0]]
        return {
            "protocol": self.protocol,
            "size": self.size,
            "images": len(self.rows),
            "num_classes": self.num_classes,
            "quantised": self.quantised,
            "ignored": list(self.ignored),
            "unpaired": self.unpaired,
            "mean": self.mean,
            "per_image": [{"id": row["image"], **{key: row[key] for key in metrics}} for row in self.rows],
        }


def score_folders(
    predictions: Path, masks: Path, *, protocol: str = "paper", size: int | None = None, workers: int | None = None
) -> MapScores:
    """Score every map of a folder that has a binary mask of its name.

    Args:
        predictions: holds maps (:data:`MAP_SUFFIXES`).
        masks: holds binary masks (:data:`MASK_SUFFIXES`), foreground above 127.
        protocol: ``paper`` reads 8-bit maps as k / 255, ``literature`` rounds float maps to 8 bits.
        size: squash both sides to this many pixels, maps bilinearly and masks to the nearest pixel.
        workers: processes; None for one a core.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is not there.
        BadMaps: nothing to pair, or files that cannot be scored.
    """
    pairs, unpaired = pair_folders(predictions, masks, MAP_SUFFIXES, MASK_SUFFIXES)
    outcomes = score_pairs(pairs, partial(_score, protocol=protocol, size=size), workers)
    scores, brightest = Scores(protocol), [outcome.brightest for outcome in outcomes]
    if None not in brightest:
        _check_levels(max(brightest), frozenset().union(*(outcome.levels for outcome in outcomes)), predictions)
    for pair, outcome in zip(pairs, outcomes, strict=True):
        scores.enter(pair.identifier, outcome.row, outcome.curve)
    return MapScores(
        protocol=protocol,
        size=size,
        pairs=tuple(pairs),
        unpaired=unpaired,
        mean=scores.mean(),
        rows=[{**row, "e_measure_max": float(o.curve.max())} for row, o in zip(scores.rows, outcomes, strict=True)],
        quantised=protocol == "paper" and any(value is not None for value in brightest),
    )


def score_pairs(pairs: Sequence[Pair], score: Callable[[Pair], T], workers: int | None) -> list[T]:
    """What ``score`` gives for each pair, in several processes.

    Raises:
        BadMaps: it raised BadMaps for some of them.
    """
    from joblib import Parallel, cpu_count, delayed

    workers = min(workers or cpu_count(), len(pairs))
    outcomes = Parallel(n_jobs=workers)(delayed(_attempt)(score, pair) for pair in pairs)
    problems = [str(outcome) for outcome in outcomes if isinstance(outcome, BadMaps)]
    if problems:
        raise BadMaps(_listed(f"{len(problems)} of {len(pairs)} images cannot be scored:", problems))
    return outcomes


def _attempt(score: Callable[[Pair], T], pair: Pair) -> T | BadMaps:
    """The exception as a value, so that one bad file does not hide the others."""
    try:
        return score(pair)
    except BadMaps as problem:
        return problem


def read(path: Path, reader: Callable[[Path], T]) -> T:
    """What ``reader`` makes of a file.

    Raises:
        BadMaps: with the file's name, whatever the reader raised.
    """
    try:
        return reader(path)
    except Exception as error:  # a damaged file makes Pillow's parsers raise almost anything
        raise BadMaps(f"{path}: {error or repr(error)}") from error


def check_sizes(pair: Pair, prediction: np.ndarray, mask: np.ndarray) -> None:
    """Raises BadMaps where a map is not of its mask's size."""
    if prediction.shape != mask.shape:
        (height, width), (mask_height, mask_width) = prediction.shape, mask.shape
        raise BadMaps(
            f"{pair.image}: {width}x{height}, its mask {mask_width}x{mask_height}; save maps at the masks' size, "
            f"or compare both at one size: --size {max(height, width)}"
        )


def read_map(path: Path) -> np.ndarray:
    """A prediction (H, W): uint8 grey levels, or float32 probabilities in [0, 1] as they were saved.

    Raises:
        ValueError: another type, shape or range.
        Exception: what Pillow or NumPy raise for a damaged file is an open list.
    """
    if path.suffix.lower() == ".npy":
        values = np.load(path, allow_pickle=False)
    else:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):
                raise ValueError(f"integers of more than 8 bits (mode {picture.mode}); save 8-bit PNG or float .npy")
            if picture.mode == "P" and np.ptp(np.asarray(picture.convert("RGB")), axis=-1).any():
                raise ValueError("its palette shows colours and no grey; class indices are scored with --classes K")
            values = np.array(picture if picture.mode == "F" else picture.convert("L"))
    if values.dtype == np.uint8 and values.ndim == 2:
        return values
    if values.ndim != 2 or values.dtype.kind not in "fb":
        raise ValueError(f"{values.dtype} of shape {values.shape}; it must be (H, W), of uint8 or of floats in [0, 1]")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"spans {values.min()} to {values.max()}; floats must be probabilities: take the sigmoid")
    return values.astype(np.float32)


def read_mask(path: Path) -> tuple[np.ndarray, frozenset[int]]:
    """A binary mask (H, W) of uint8 0 and 1, and the values in its file, of a palette the indices.

    Raises:
        ValueError: it holds 0 and 1 in place of 0 and 255.
        Exception: as in :func:`read_map`.
    """
    with Image.open(path) as picture:
        levels = grey(picture)
        stored = np.asarray(picture) if picture.mode == "P" else levels
    if 0 < levels.max() <= THRESHOLD:
        raise ValueError(
            f"not 0 and 255: largest value {levels.max()}. Multiply masks of 0 and 1 by 255; "
            "class indices are scored with --classes K"
        )
    return (levels > THRESHOLD).astype(np.uint8), frozenset(level for level, _ in histogram(stored))


def pair_folders(
    predictions: Path, masks: Path, map_suffixes: Sequence[str], mask_suffixes: Sequence[str]
) -> tuple[list[Pair], dict[str, list[str]]]:
    """Maps with their masks, and the names of the files that have no partner.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is not there.
        BadMaps: there is nothing to pair, or a name stands for several files.
    """
    files = {}
    for what, folder, suffixes in (("predictions", predictions, map_suffixes), ("masks", masks, mask_suffixes)):
        files[what] = list_files(folder, suffixes)
        if not files[what]:
            raise BadMaps(f"no {what} in {folder}: it holds no file that ends in {', '.join(suffixes)}")
    pairs, problems = pair_files(files["predictions"], files["masks"])
    doubles = [f"{problem.path} {problem.detail}" for problem in problems if problem.detail]
    if doubles:
        raise BadMaps(_listed("several files of one name, of which one must go:", doubles))
    if not pairs:
        examples = " and ".join(paths[0].name for paths in files.values())
        raise BadMaps(f"no map in {predictions} has the name of a mask in {masks} ({examples}); rename one side")
    alone = {problem.path for problem in problems}
    return pairs, {what: [path.name for path in paths if path in alone] for what, paths in files.items()}


def _score(pair: Pair, *, protocol: str, size: int | None) -> _Scored:
    values, (mask, levels) = read(pair.image, read_map), read(pair.mask, read_mask)
    brightest = int(values.max()) if values.dtype == np.uint8 else None
    if size is not None:
        values, mask = squash_map(_probabilities(values), size), squash_mask(mask, size)
    check_sizes(pair, values, mask)
    values = _probabilities(values) if protocol == "paper" else _grey(values)
    try:
        return _Scored(*score_image(values, mask, protocol), brightest, levels)
    except ValueError as error:
        raise BadMaps(f"{pair.image}: {error}") from error


def _check_levels(brightest: int, levels: frozenset[int], predictions: Path) -> None:
    """Refuse sets whose values are no grey levels: class indices, and maps of 0 and 1.

    Neither dark maps nor masks of many values are wrong alone: a model may find nothing, and JPEG leaves noise. That
    noise lies below 255 too, where masks of indices have at most the one value that does not count.

    Args:
        brightest: the largest value in all 8-bit maps.
        levels: the values in all masks.
        predictions: the maps' folder.
    """
    ignored = [level for level in levels if level > DARK]
    if brightest <= DARK and len(levels) > 2 and len(ignored) <= 1:
        held = ", ".join(map(str, sorted(levels)))
        options = " ".join(["--classes K", *(f"--ignore {level}" for level in ignored)])
        raise BadMaps(
            f"no map in {predictions} holds more than {brightest}, and the masks hold {held}: class indices are scored "
            f"with {options}; binary masks have to hold 0 and 255 alone"
        )
    if brightest == 1:
        raise BadMaps(f"the maps in {predictions} hold 0 and 1 only, read as grey levels of 0 to 255: multiply by 255")


def _probabilities(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) / np.float32(255) if values.dtype == np.uint8 else values


def _grey(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else (values * np.float32(255)).round().astype(np.uint8)


def _listed(heading: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n  ".join([heading, *lines[:_LISTED], *more])
