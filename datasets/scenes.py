"""Endless generated scenes with every object's mask, for pre-training without data.

A scene is a background from flat to cluttered and, on it, objects of many outlines, some of them with parts on
top, drawn one over the other under uneven light and through a camera that blurs and makes noise. Nothing is meant
by them: any object may have any colour, form and texture, so a model learns what holds together, not what it is.

Scenes share no code with the downstream task of the demonstration (:mod:`datasets.painting`) but its random
numbers, and none of its rules of what is an object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from datasets.painting import Draws

SMALLEST, LARGEST = 0.01, 0.6
"""Shares of the image: of an object that is seen on less or more of it there is no mask."""

Outline = np.ndarray  # (n, 2) points x, y around the origin


class Scene(NamedTuple):
    """One generated image and its objects.

    Attributes:
        image: (S, S, 3) uint8.
        instances: (S, S) uint8, 0 on the background, else the number of what is seen at the pixel.
        wholes: for each number, 0 included, that of the object it is a part of; its own for whatever is no part.
    """

    image: np.ndarray
    instances: np.ndarray
    wholes: np.ndarray

    def objects(self) -> np.ndarray:
        """The numbers of all objects and parts in sight."""
        seen = np.unique(self.instances)
        return np.setdiff1d(np.concatenate([seen, self.wholes[seen]]), [0])

    def mask(self, number: int) -> np.ndarray:
        """(S, S) bool: a part, or an object with its parts."""
        return (self.instances == number) | (self.wholes[self.instances] == number)


def paint_scene(size: int, *key: int) -> Scene:
    """The scene that ``key`` stands for, ``size`` pixels wide and high.

    The same key at another size is another scene.
    """
    draws = Draws(size, *key)
    painter = _Painter(size, draws)
    painter.background()
    for _ in range(1 + int(9 * draws.uniform(0, 1) ** 1.7)):  # few more often than many
        painter.add_object()
    return painter.finish()


class _Painter:
    """A scene in the making: linear colours in 0..1, and who is seen where."""

    def __init__(self, size: int, draws: Draws) -> None:
        self.size, self.draws = size, draws
        self.pixels = np.empty((size, size, 3), dtype=np.float32)
        self.instances = np.zeros((size, size), dtype=np.uint8)
        self.wholes = [0]
        self.palette = draws.uniform(0.15, 0.85) + draws.uniform(0, 0.4) * draws.values(3)
        self.spread, self.colourful = draws.uniform(0.12, 0.6), draws.uniform(0.05, 0.5)
        self.softness = 0.0 if draws.integer(0, 2) else draws.uniform(0, 0.02) * size
        ruler = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        self.across, self.down = ruler[None, :], ruler[:, None]

    def background(self) -> None:
        """A surface, some areas and lines of other surfaces, and small things: none of it has a mask."""
        draws = self.draws
        self.pixels[:] = self.surface()
        for _ in range(max(0, draws.integer(-2, 3))):
            edge = self.across * draws.uniform(-1, 1) + self.down * draws.uniform(-1, 1)
            edge = edge + draws.uniform(-0.3, 0.3) + 0.15 * draws.uniform(0, 1) * draws.noise(self.size, 5)
            self._blend(np.clip(0.5 + edge * self.size / draws.uniform(1, 30), 0, 1), self.surface())
        if draws.integer(0, 2) == 0:
            largest = draws.uniform(0.0005, 0.0025)
            specks = [
                self._points(_ellipse(draws), draws.uniform(0.1, 1) * largest) for _ in range(draws.integer(2, 30))
            ]
            self._blend(self._cover(*specks), self.colour())
        self.hairs()

    def hairs(self) -> None:
        """Thin lines, over whatever is there already, in one scene of four."""
        draws = self.draws
        if draws.integer(0, 3):
            return
        colour = self.colour()
        for _ in range(draws.integer(1, 10)):
            self._blend(self._stroke(draws.uniform(0.004, 0.014)) * draws.uniform(0.5, 1), colour)

    def add_object(self) -> None:
        """One object, with its shadow and its parts, above all that is there."""
        draws = self.draws
        area = SMALLEST * 1.5 * (LARGEST * 0.8 / (SMALLEST * 1.5)) ** draws.uniform(0, 1) ** 0.8
        if draws.integer(0, 9) == 0:
            alpha = self._stroke(draws.uniform(0.03, 0.09))
        else:
            points = self._points(self._outline(), area)
            alpha = self._cover(points, hole=draws.integer(0, 7) == 0)
        number = self._number(0)
        if draws.integer(0, 3) == 0:
            self._shadow(alpha)
        self._show(alpha, number, opacity=1.0 if draws.integer(0, 4) else draws.uniform(0.6, 1))
        for _ in range(max(0, draws.integer(-4, 2))):
            inside = np.argwhere(alpha > 0.5)
            if len(inside):
                row, column = inside[draws.integer(0, len(inside) - 1)]
                share = area * draws.uniform(0.1, 0.45)
                part = self._cover(self._points(self._outline(), share, (column, row))) * (alpha > 0.5)
                self._show(part, self._number(number), opacity=1.0)

    def finish(self) -> Scene:
        """Light, lens and sensor; what is too small to be seen becomes background."""
        draws, size = self.draws, self.size
        if draws.integer(0, 1):
            self.hairs()
        pixels = self.pixels * (1 + draws.uniform(0, 0.45) * draws.noise(size, draws.integer(1, 3)))[..., None]
        if draws.integer(0, 4) == 0:
            distance = np.sqrt(self.across**2 + self.down**2) - draws.uniform(0.4, 0.65)
            pixels *= (1 - draws.uniform(0.3, 1) * np.clip(distance / draws.uniform(0.02, 0.3), 0, 1))[..., None]
        pixels *= 1 + 0.12 * draws.values(3)
        blur = draws.uniform(0, 0.009) * size
        if blur > 0.3:
            pixels = gaussian_filter(pixels, (blur, blur, 0), mode="nearest", truncate=3)
        noise = draws.uniform(0, 0.09) * draws.uniform(0, 1)
        pixels = np.clip(pixels, 0, 1) ** draws.uniform(0.7, 1.4) + noise * draws.values(size, size, 3)
        image = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
        return Scene(image, *_without_specks(self.instances, np.array(self.wholes)))

    def colour(self) -> np.ndarray:
        """(3,): near the scene's palette, brighter or darker, more or less coloured."""
        brightness = self.spread * self.draws.uniform(-1, 1)
        return np.clip(self.palette + brightness + self.colourful * self.draws.values(3), 0.02, 1)

    def surface(self) -> np.ndarray:
        """(S, S, 3): a colour with a gradient, smooth noise, fine grain or a pattern."""
        draws, size = self.draws, self.size
        shade = np.zeros((size, size), dtype=np.float32)
        if draws.integer(0, 1):
            shade += draws.uniform(-0.4, 0.4) * self.across + draws.uniform(-0.4, 0.4) * self.down
        if draws.integer(0, 2):
            shade += draws.uniform(0, 0.18) * draws.noise(size, draws.integer(2, 12))
        if draws.integer(0, 2) == 0:
            shade += draws.uniform(0, 0.2) * draws.noise(size, draws.integer(16, 48))
        kind = draws.integer(0, 9)
        if kind < 2:
            shade += draws.uniform(0.03, 0.25) * self._stripes() * (self._stripes() if kind else 1)
        elif kind == 2:
            shade += draws.uniform(-0.3, 0.3) * (draws.noise(size, draws.integer(8, 24)) > draws.uniform(0.1, 0.5))
        surface = self.colour() + shade[..., None]
        if draws.integer(0, 3) == 0:
            surface = surface + draws.noise(size, draws.integer(1, 8))[..., None] * (
                0.3 * self.colourful * draws.values(3)
            )
        return surface

    def _stripes(self) -> np.ndarray:
        """(S, S) waves in [-1, 1] in one direction, smooth or sharp."""
        draws = self.draws
        (x, y), frequency = draws.direction(), draws.uniform(4, 20)
        waves = np.sin(2 * math.pi * frequency * (self.across * x + self.down * y) + draws.uniform(0, 7))
        return np.clip(waves * draws.uniform(1, 6), -1, 1)

    def _place(self) -> tuple[float, float]:
        return self.draws.uniform(0, 1) * self.size, self.draws.uniform(0, 1) * self.size

    def _outline(self) -> Outline:
        return OUTLINES[list(OUTLINES)[self.draws.integer(0, len(OUTLINES) - 1)]](self.draws)

    def _points(self, outline: Outline, share: float, place: tuple[float, float] | None = None) -> Outline:
        """An outline in pixels, turned and stretched, enclosing ``share`` of an image, somewhere or at ``place``."""
        draws = self.draws
        x, y = outline.T
        stretch, (cosine, sine) = math.exp(draws.uniform(-0.5, 0.5)), draws.direction()
        turned = np.stack([x * stretch * cosine - y / stretch * sine, x * stretch * sine + y / stretch * cosine], 1)
        scale = self.size * math.sqrt(share / abs(_area(turned)))
        return turned * scale + (place or self._place())

    def _cover(self, *polygons: Outline, hole: bool = False) -> np.ndarray:
        """(S, S) coverage in 0..1 of filled polygons, or of one with a smaller copy cut out."""
        canvas = Image.new("L", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(canvas)
        for points in polygons:
            pen.polygon(_vertices(points), fill=255)
        if hole:
            inner = points.mean(0) + self.draws.uniform(0.3, 0.7) * (points - points.mean(0))
            pen.polygon(_vertices(inner), fill=0)
        return self._antialiased(canvas)

    def _stroke(self, width: float) -> np.ndarray:
        """(S, S) coverage of a bent line, ``width`` as a share of the side."""
        draws, t = self.draws, np.linspace(0, 1, 24)[:, None]
        ends = np.array([self._place() for _ in range(4)])
        points = (
            (1 - t) ** 3 * ends[0] + 3 * t * (1 - t) ** 2 * ends[1] + 3 * t * t * (1 - t) * ends[2] + t**3 * ends[3]
        )
        canvas = Image.new("L", (2 * self.size, 2 * self.size))
        thick = max(1, round(2 * width * self.size * draws.uniform(0.8, 1.2)))
        ImageDraw.Draw(canvas).line(_vertices(points), 255, thick, joint="curve")
        return self._antialiased(canvas)

    def _antialiased(self, canvas: Image.Image) -> np.ndarray:
        alpha = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
        return gaussian_filter(alpha, self.softness, truncate=2.5) if self.softness > 0.3 else alpha

    def _shadow(self, alpha: np.ndarray) -> None:
        draws = self.draws
        shift = [draws.integer(-6, 6) * self.size // 128 for _ in range(2)]
        moved = np.roll(gaussian_filter(alpha, draws.uniform(0.005, 0.03) * self.size, truncate=2), shift, (0, 1))
        self.pixels *= 1 - draws.uniform(0.2, 0.7) * moved[..., None]

    def _number(self, whole: int) -> int:
        """A new number, of a part of ``whole`` or, for 0, of an object of its own."""
        self.wholes.append(whole or len(self.wholes))
        return len(self.wholes) - 1

    def _show(self, alpha: np.ndarray, number: int, *, opacity: float) -> None:
        self._blend(alpha * opacity, self.surface())
        self.instances[alpha > 0.5] = number

    def _blend(self, alpha: np.ndarray, surface: np.ndarray) -> None:
        """Lay ``surface``, (3,) or (S, S, 3), over the pixels, where ``alpha`` is above 0."""
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        if len(rows):
            window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            below = self.pixels[window]
            below += alpha[window][..., None] * ((surface[window] if surface.ndim == 3 else surface) - below)


def _vertices(points: Outline) -> list[tuple[float, float]]:
    """What Pillow draws on a canvas of twice the size."""
    return [(x, y) for x, y in (2 * points).tolist()]


def _area(points: Outline) -> float:
    """The signed area of a polygon."""
    x, y = points.T
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _without_specks(instances: np.ndarray, wholes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instances whose whole covers a share outside the limits become background; too small parts join their whole."""
    count = len(wholes)
    smallest, largest = SMALLEST * instances.size, LARGEST * instances.size
    seen = np.bincount(instances.ravel(), minlength=count)
    total = np.bincount(wholes, weights=seen, minlength=count)
    numbers = np.arange(count)
    kept = np.where(seen >= smallest, numbers, wholes)
    kept[(total[wholes] < smallest) | (total[wholes] > largest)] = 0
    return kept.astype(np.uint8)[instances], wholes


def _ellipse(draws: Draws) -> Outline:
    """A circle: every outline is stretched and turned when it is placed."""
    return _polar(np.ones(48))


def _blob(draws: Draws) -> Outline:
    """A circle with waves of a few low frequencies."""
    angle, radius = _angles(72), np.ones(72)
    for frequency in range(2, 2 + draws.integer(2, 6)):
        radius = radius + draws.uniform(0, 0.5) / frequency * np.sin(frequency * angle + draws.uniform(0, 7))
    return _polar(np.maximum(radius, 0.15))


def _polygon(draws: Draws) -> Outline:
    """Three to eight corners, at uneven angles and distances."""
    corners = draws.integer(3, 8)
    angle = _angles(corners) + 0.6 * math.pi / corners * draws.values(corners)
    radius = 1 + 0.4 * draws.values(corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _star(draws: Draws) -> Outline:
    """Three to nine rays, sharp or round."""
    rays, depth = draws.integer(3, 9), draws.uniform(0.15, 0.5)
    if draws.integer(0, 1):
        return _polar(np.where(np.arange(2 * rays) % 2, 1 - depth, 1.0))
    return _polar(1 - depth / 2 + depth / 2 * np.cos(rays * _angles(96)))


def _bar(draws: Draws) -> Outline:
    """A rectangle up to six times as long as wide, its corners rounded or not."""
    half, power = draws.uniform(1, 6) ** 0.5, draws.uniform(0.08, 1)
    angle = _angles(64) + 0.01
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([half * np.sign(cosine) * abs(cosine) ** power, np.sign(sine) * abs(sine) ** power / half], 1)


def _crescent(draws: Draws) -> Outline:
    """A disc with a bite, or a sector of a ring."""
    angle = np.linspace(0, draws.uniform(0.8, 1.7) * math.pi, 40)
    bent = np.stack([np.cos(angle), np.sin(angle)], 1)
    width = draws.uniform(0.25, 0.7) * (np.sin(np.linspace(0, math.pi, 40))[:, None] if draws.integer(0, 1) else 1)
    points = np.concatenate([bent, (bent * (1 - width))[::-1]])
    return points - points.mean(0)


def _cross(draws: Draws) -> Outline:
    """Two crossing bars."""
    a = draws.uniform(0.2, 0.5)
    right_and_top = np.array([(1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a)])
    return np.concatenate([right_and_top, -right_and_top])


def _angles(count: int) -> np.ndarray:
    return np.arange(count) * (2 * math.pi / count)


def _polar(radius: np.ndarray) -> Outline:
    angle = _angles(len(radius))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


OUTLINES: dict[str, Callable[[Draws], Outline]] = {
    "ellipse": _ellipse,
    "blob": _blob,
    "polygon": _polygon,
    "star": _star,
    "bar": _bar,
    "crescent": _crescent,
    "cross": _cross,
}
