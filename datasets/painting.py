"""How one generated image and its mask are made.

Every style asks for another ability. The object has a colour shifted to warm ("large", "small", "thin")
or a finer grain than its ground ("texture"). It is as often darker as brighter than the ground, and
distractors of the same forms and brightnesses but of other colours lie around it, so that neither
brightness nor edges give it away.

The result is a function of the seed on every machine: randomness is taken from raw PCG64 words, which
numpy fixes for ever, and values are made with the four basic operations only, which are rounded alike
everywhere. Hence no trigonometry, no library's drawing, no sums whose order may vary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Point = tuple[float, float]

_WARM = np.array([1.0, -0.4, -0.6], dtype=np.float32)
_OTHER_HUES = np.array([[-0.7, -0.2, 0.9], [-0.6, 0.8, -0.2], [0.0, 0.0, 0.0]], dtype=np.float32)


class Draws:
    """The random numbers that ``key`` stands for."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return low + self._bits.random_raw() % (high - low + 1)

    def uniform(self, low: float, high: float) -> float:
        """From ``low`` to ``high``."""
        return low + (high - low) * ((self._bits.random_raw() >> 11) * 2.0**-53)

    def either(self, low: float, high: float) -> float:
        """From ``low`` to ``high``, of either sign."""
        return self.uniform(low, high) * (2 * self.integer(0, 1) - 1)

    def direction(self) -> Point:
        """A unit vector, by the rational form of cosine and sine."""
        t, sign = self.uniform(-1, 1), 2 * self.integer(0, 1) - 1
        return sign * (1 - t * t) / (1 + t * t), sign * 2 * t / (1 + t * t)

    def values(self, *shape: int) -> np.ndarray:
        """Independent values in [-1, 1)."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
        return (words.astype(np.float32).reshape(shape) - 32768) / 32768

    def noise(self, size: int, cells: int) -> np.ndarray:
        """Smooth noise (size, size) in [-1, 1): values on a grid of ``cells`` cells a side, interpolated."""
        grid = self.values(cells + 1, cells + 1)
        position = np.arange(size, dtype=np.float32) * cells / size
        cell = position.astype(np.intp)
        weight = position - cell
        weight = weight * weight * (3 - 2 * weight)

        def widen(rows: np.ndarray) -> np.ndarray:
            return rows[cell] + (rows[cell + 1] - rows[cell]) * weight[:, None]

        return widen(widen(grid).T)


class Scene:
    """A rough ground and, on it, opaque layers of one tint each, later ones above earlier ones."""

    def __init__(self, size: int, draws: Draws) -> None:
        self.size, self.draws = size, draws
        self.grain = np.zeros((size, size), dtype=np.float32)
        self.mask = np.zeros((size, size), dtype=bool)
        self._layer = np.zeros((size, size), dtype=np.uint8)
        self._tints = [np.zeros(3, dtype=np.float32)]

    def roughen(self, *strength_of_cells: tuple[float, int]) -> None:
        """Add noise of one strength (in grey values) for each number of cells."""
        for strength, cells in strength_of_cells:
            self.grain += strength * self.draws.noise(self.size, cells)

    def add_distractor(self, where: np.ndarray) -> None:
        """Tint ``where``, brighter or darker, with a hue that no object has, or none."""
        self._tint(where, _OTHER_HUES[self.draws.integer(0, len(_OTHER_HUES) - 1)])

    def add_object(self, where: np.ndarray) -> None:
        """Tint ``where``, brighter or darker, with the objects' hue, and add it to the mask."""
        self._tint(where, _WARM)
        self.mask |= where

    def _tint(self, where: np.ndarray, hue: np.ndarray) -> None:
        self._layer[where] = len(self._tints)
        self._tints.append(self.draws.either(8, 42) + hue * self.draws.uniform(20, 38))

    def render(self) -> np.ndarray:
        """The image (size, size, 3) in uint8, under uneven light, with a sensor's noise."""
        draws, size = self.draws, self.size
        pixels = np.array(self._tints)[self._layer]
        pixels += draws.uniform(95, 160) + 14 * draws.values(3)
        pixels += (self.grain + 22 * draws.noise(size, 3))[..., None]
        for channel in (0, 2):
            pixels[..., channel] += 9 * draws.noise(size, 5)
        pixels *= (1 + draws.uniform(0, 0.25) * draws.noise(size, 2))[..., None]
        pixels += draws.uniform(4, 12) * draws.values(size, size, 3)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def point(self, margin: float = 0.08) -> Point:
        """A place in pixels, at least ``margin`` (a share of the side) from the border."""
        return tuple(self.draws.uniform(margin, 1 - margin) * self.size for _ in range(2))

    def blob(self, radius: float, wobble: np.ndarray) -> np.ndarray:
        """A filled ellipse of about ``radius`` (a share of the side) with an outline that follows ``wobble``."""
        (x, y), (cosine, sine) = self.point(min(0.35, radius)), self.draws.direction()
        stretch = self.draws.uniform(0.75, 1.33)
        radius *= self.size
        reach = 1.33 * 1.25 * radius  # wobble is above -0.5, and 1.25 squared above 1.5
        rows, columns = (slice(max(0, int(at - reach)), int(at + reach) + 2) for at in (y, x))
        ruler = np.arange(self.size, dtype=np.float32)
        across, down = ruler[None, columns] - np.float32(x), ruler[rows, None] - np.float32(y)
        u = (across * cosine + down * sine) / (radius * stretch)
        v = (down * cosine - across * sine) / (radius / stretch)
        filled = np.zeros((self.size, self.size), dtype=bool)
        filled[rows, columns] = u * u + v * v + wobble[rows, columns] < 1
        return filled

    def curve(self, start: Point, middle: Point, end: Point, radius: float) -> np.ndarray:
        """A quadratic Bezier curve drawn with a round pen of ``radius`` (a share of the side)."""
        steps = 3 * self.size
        x, y = bezier(start, middle, end, np.arange(steps) / steps)
        radius *= self.size
        reach = np.arange(-int(radius), int(radius) + 1)
        pen = np.argwhere(reach[:, None] ** 2 + reach[None, :] ** 2 <= radius * radius) - int(radius)
        rows = (np.floor(y + 0.5).astype(np.intp)[:, None] + pen[:, 0]).ravel()
        columns = (np.floor(x + 0.5).astype(np.intp)[:, None] + pen[:, 1]).ravel()
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        drawn = np.zeros((self.size, self.size), dtype=bool)
        drawn[rows[inside], columns[inside]] = True
        return drawn

    def line(self, radius: float) -> np.ndarray:
        """A straight line between two places."""
        start, end = self.point(), self.point()
        return self.curve(start, start, end, radius)


def bezier(start: Point, middle: Point, end: Point, t: float | np.ndarray) -> tuple:
    """The points at ``t`` in [0, 1] of a quadratic Bezier curve, as x and y."""
    return tuple(
        (1 - t) * (1 - t) * a + 2 * t * (1 - t) * b + t * t * c for a, b, c in zip(start, middle, end, strict=True)
    )


def paint(style: str, size: int, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) in uint8 and its mask (size, size) of 0 and 1 in uint8, in one of :data:`STYLES`."""
    scene = Scene(size, draws)
    STYLES[style](scene, draws)
    return scene.render(), scene.mask.astype(np.uint8)


def _large(scene: Scene, draws: Draws) -> None:
    """One big region, lines and big regions of other hues behind it."""
    scene.roughen((16, 9), (10, 28))
    wobble = draws.noise(scene.size, 4) / 2
    for _ in range(draws.integer(2, 5)):
        scene.add_distractor(scene.line(0.01))
    for _ in range(draws.integer(2, 4)):
        scene.add_distractor(scene.blob(draws.uniform(0.1, 0.3), wobble))
    scene.add_object(scene.blob(draws.uniform(0.24, 0.38), wobble))


def _small(scene: Scene, draws: Draws) -> None:
    """Several spots among spots of other hues."""
    scene.roughen((16, 9), (10, 28))
    wobble = draws.noise(scene.size, 18) / 2
    for _ in range(draws.integer(1, 3)):
        scene.add_distractor(scene.line(0.01))
    for _ in range(draws.integer(6, 12)):
        scene.add_distractor(scene.blob(draws.uniform(0.03, 0.07), wobble))
    for _ in range(draws.integer(2, 6)):
        scene.add_object(scene.blob(draws.uniform(0.03, 0.07), wobble))


def _thin(scene: Scene, draws: Draws) -> None:
    """A bent stem with branches, straight lines and patches of other hues behind it."""
    scene.roughen((14, 9), (9, 28))
    wobble = draws.noise(scene.size, 8) / 2
    for _ in range(draws.integer(2, 5)):
        scene.add_distractor(scene.blob(draws.uniform(0.05, 0.16), wobble))
    for _ in range(draws.integer(3, 6)):
        scene.add_distractor(scene.line(0.011))
    side, radius = scene.size, draws.uniform(0.011, 0.017)
    stem = [(draws.uniform(0.1, 0.9) * side, y * side) for y in (0.05, 0.5, 0.95)]
    if draws.integer(0, 1):
        stem = [(y, x) for x, y in stem]
    drawn = scene.curve(*stem, radius)
    for _ in range(draws.integer(2, 4)):
        fork, tip = bezier(*stem, draws.uniform(0.1, 0.9)), scene.point()
        drawn |= scene.curve(fork, (tip[0], fork[1]), tip, radius * 0.7)
    scene.add_object(drawn)


def _texture(scene: Scene, draws: Draws) -> None:
    """A region of fine grain in a ground of coarse grain, of the same mean and spread in every channel."""
    strength = draws.uniform(32, 48)
    wobble = draws.noise(scene.size, 4) / 2
    scene.mask = scene.blob(draws.uniform(0.2, 0.34), wobble)
    coarse, fine = (strength * draws.noise(scene.size, draws.integer(*cells)) for cells in ((9, 13), (44, 56)))
    scene.grain = np.where(scene.mask, fine, coarse)
    for _ in range(draws.integer(2, 4)):
        scene.add_distractor(scene.blob(draws.uniform(0.1, 0.25), wobble))


STYLES: dict[str, Callable[[Scene, Draws], None]] = {
    "large": _large,
    "small": _small,
    "thin": _thin,
    "texture": _texture,
}
