"""How the pixels of a mask file become class indices.

Published masks are grey with noise, red on black, palette indices or a colour a class; copies differ
again. A dataset states its encoding once, for all of its files: guessing it file by file would turn one
blank or noisy mask into another task. An encoding has two steps, from a picture to levels 0..255 and from
levels to classes, so that one histogram of levels tells all about a file's classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image

from datasets.base import IGNORE

THRESHOLD = 127
"""Grey values above it are foreground: copies of 0/255 masks hold noise near both ends."""

UNKNOWN = -1
"""Stands for a level that an encoding gives no class."""

Histogram = Sequence[tuple[int, int]]
"""Levels and how many pixels have them, without the levels that do not occur."""


class UnknownColour(ValueError):
    """A mask holds values or colours that its dataset's encoding does not name."""


def _converted(picture: Image.Image, mode: str) -> np.ndarray:
    """The picture in a mode of 8 bits, refused with UnknownColour where Pillow would cut deeper values at 255."""
    if picture.mode.startswith(("I", "F")) and np.asarray(picture).max(initial=0) > 255:
        raise UnknownColour(f"its values reach {np.asarray(picture).max()}: convert it to 8 bits a channel")
    return np.asarray(picture.convert(mode))


def grey(picture: Image.Image) -> np.ndarray:
    """Grey levels; a palette's colours count, its indices do not, and transparency is dropped."""
    return _converted(picture, "L")


def brightest_channel(picture: Image.Image) -> np.ndarray:
    """The largest of red, green and blue."""
    return _converted(picture, "RGB").max(axis=-1)


def channel_mean(picture: Image.Image) -> np.ndarray:
    """The mean of red, green and blue (Trans10K: red is 85, white is 255).

    Raises:
        UnknownColour: a mean that is no whole number.
    """
    rgb = _converted(picture, "RGB")
    means, rest = np.divmod(rgb.sum(axis=-1, dtype=np.uint16), 3)
    if rest.any():
        colour = tuple(rgb[rest > 0][0].tolist())
        raise UnknownColour(f"{np.count_nonzero(rest)} pixels have colours of no class, the first is {colour}")
    return means.astype(np.uint8)


def index(picture: Image.Image) -> np.ndarray:
    """The stored values of a palette or grey picture, whatever the palette shows.

    Raises:
        UnknownColour: a picture of colours, which has no indices.
    """
    if picture.mode not in ("P", "L", "1"):
        raise UnknownColour(f"its mode is {picture.mode}, where class indices need a palette or grey picture")
    return np.asarray(picture).astype(np.uint8)


@dataclass(frozen=True)
class Palette:
    """Indices of a palette or grey picture, or of a coloured copy by its exact colours.

    Pillow's own conversion to a palette would choose the colours anew. Programs that make files smaller store a
    coloured copy with a palette in an order of their own: where all colours in use are those of classes, they
    count and not the indices.
    """

    colours: tuple[tuple[int, int, int], ...]

    @property
    def __name__(self) -> str:
        return f"indices or colours {self.colours}"

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """Raises UnknownColour for a colour that is not in the list, and for a palette that may mean either."""
        if picture.mode == "P":
            return self._of_palette(picture)
        if picture.mode in ("L", "1"):
            return index(picture)
        rgb = _converted(picture, "RGB")
        found = self._classes_of(rgb)
        odd = rgb[found == UNKNOWN]
        if len(odd):
            raise UnknownColour(f"{len(odd)} pixels have colours of no class, the first is {tuple(odd[0].tolist())}")
        return found.astype(np.uint8)

    def _of_palette(self, picture: Image.Image) -> np.ndarray:
        stored = index(picture)
        palette = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        classes = np.full(256, UNKNOWN)
        classes[: len(palette)] = self._classes_of(palette)
        used = np.unique(stored)
        moved = used[(classes[used] != UNKNOWN) & (classes[used] != used)]
        # A grey ramp hits the colours of grey classes by chance; its other entries, in use or not, tell.
        coloured = np.ptp(palette[used[used < len(palette)]], axis=-1).any()
        if not moved.size or (not coloured and UNKNOWN in classes[: len(palette)]):
            return stored
        if UNKNOWN in classes[used] or len(np.unique(classes[used])) < len(used):
            raise UnknownColour(
                f"its palette has the colour of class {classes[moved[0]]} at {moved[0]}, but others are of no class "
                "or there twice: store the class indices in a grey picture"
            )
        return classes[stored].astype(np.uint8)

    def _classes_of(self, rgb: np.ndarray) -> np.ndarray:
        """The place of each colour in the list, :data:`UNKNOWN` where it is not there."""
        red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
        code = red << 16 | green << 8 | blue
        known = np.array([r << 16 | g << 8 | b for r, g, b in self.colours])
        order = np.argsort(known)
        found = order[np.searchsorted(known, code, sorter=order).clip(max=len(known) - 1)]
        return np.where(known[found] == code, found, UNKNOWN)


@dataclass(frozen=True)
class Encoding:
    """What a dataset's mask files hold. Made by the functions below.

    Attributes:
        levels: from a picture to levels (H, W) in uint8; a function of a module, so that it can travel to
            worker processes.
        classes: the class of each of the 256 levels, :data:`UNKNOWN` where there is none.
        rule: the rule in words, for messages.
        binary: the classes are background and foreground by a threshold, so that a copy of 0 and 1 means
            0 and 255.
    """

    levels: Callable[[Image.Image], np.ndarray]
    classes: tuple[int, ...] = field(repr=False)
    rule: str
    binary: bool = False

    @cached_property
    def _table(self) -> np.ndarray:
        return np.array(self.classes, dtype=np.int16)

    @property
    def key(self) -> str:
        """Names what was read from a file: histograms of the same key can be used again."""
        return self.levels.__name__

    def decode(self, picture: Image.Image) -> np.ndarray:
        """Class indices (H, W) in uint8.

        Raises:
            UnknownColour: values without a class.
        """
        found = self._table[self.levels(picture)]
        if found.min(initial=0) == UNKNOWN:
            self.check(histogram(self.levels(picture)))
        return found.astype(np.uint8)

    def check(self, levels: Histogram) -> None:
        """Raises UnknownColour if some of these levels have no class."""
        odd = [(level, pixels) for level, pixels in levels if self.classes[level] == UNKNOWN]
        if odd:
            values = ", ".join(str(level) for level, _ in odd[:8]) + (", ..." if len(odd) > 8 else "")
            pixels = sum(pixels for _, pixels in odd)
            raise UnknownColour(f"{pixels} pixels have a value of no class: {values} ({self.rule})")

    def count(self, levels: Histogram) -> dict[int, int]:
        """Pixels of each class, :data:`IGNORE` among them, of a file with these levels."""
        counts: dict[int, int] = {}
        for level, pixels in levels:
            label = self.classes[level]
            counts[label] = counts.get(label, 0) + pixels
        return counts

    def erases(self, levels: Histogram) -> bool:
        """Whether the rule finds background only in a binary mask that does hold other values.

        So does a blank mask with the noise of JPEG, such as 0, 1 and 2: it cannot be told from foreground that was
        stored as 1, and has to be stored as zeros.
        """
        return self.binary and set(self.count(levels)) <= {0} and any(level for level, _ in levels)

    def fitted(self, levels: Iterable[int]) -> Encoding:
        """The encoding for a copy whose masks together hold these levels: 0 and 1 in place of 0 and 255 are read so."""
        if self.binary and set(levels) == {0, 1}:
            return replace(self, classes=_threshold(0), rule="foreground is above 0, as this copy holds 0 and 1 only")
        return self


def histogram(levels: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The levels that occur and their pixels."""
    counts = np.bincount(levels.ravel(), minlength=256)
    return tuple((int(level), int(counts[level])) for level in np.flatnonzero(counts))


def _threshold(above: int) -> tuple[int, ...]:
    return tuple(int(level > above) for level in range(256))


def threshold(above: int = THRESHOLD) -> Encoding:
    """Binary masks: grey levels greater than ``above`` are foreground."""
    return Encoding(grey, _threshold(above), f"foreground is above {above}", binary=True)


def marked() -> Encoding:
    """Binary masks: any pixel that is not black is foreground, such as the dark red (128, 0, 0) of VOC's palette."""
    return Encoding(brightest_channel, _threshold(0), "foreground is every colour but black", binary=True)


def indexed(
    classes: int, *, ignore: Sequence[int] = (IGNORE,), colours: Sequence[tuple[int, int, int]] | None = None
) -> Encoding:
    """Class indices 0..classes-1 in palette or grey files, :data:`IGNORE` for the values in ``ignore``.

    Args:
        colours: of the classes in their order, to read coloured copies too.
    """
    values = {label: label for label in range(classes)} | dict.fromkeys(ignore, IGNORE)
    levels = Palette(tuple(colours)) if colours else index
    ignored = f", ignored is {' and '.join(map(str, sorted(ignore)))}" if ignore else ""
    return Encoding(levels, _table_of(values), f"classes are 0 to {classes - 1}{ignored}")


def valued(values: Mapping[int, int], *, levels: Callable[[Image.Image], np.ndarray] = grey) -> Encoding:
    """Some levels stand for a class or for :data:`IGNORE`, and no other occurs: ``{0: 0, 128: 1, 255: 2}``."""
    meanings = {label: "ignored" if label == IGNORE else f"class {label}" for label in values.values()}
    named = ", ".join(f"{level} is {meanings[label]}" for level, label in values.items())
    return Encoding(levels, _table_of(values), named)


def _table_of(values: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(values.get(level, UNKNOWN) for level in range(256))
