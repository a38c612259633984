"""Skeletons cut into paths, the directions along them, and what each road pixel takes from them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import skeletonize

from methods.systems.orientation import BACKGROUND, TOLERANCE, directions, orientation, orientations, paths

Point = tuple[int, int]


def road(start: Point, end: Point, *, width: float, side: int = 64) -> np.ndarray:
    """All pixels within half of ``width`` of the line from ``start`` to ``end``, both (row, column)."""
    pixels = np.moveaxis(np.indices((side, side)), 0, -1).astype(float)
    along = np.subtract(end, start)
    share = ((pixels - start) @ along / (along @ along)).clip(0, 1)
    return np.linalg.norm(pixels - start - share[..., None] * along, axis=-1) <= width / 2


def neighbours(skeleton: np.ndarray, point: Point) -> list[Point]:
    return [
        (row, column)
        for row in range(max(point[0] - 1, 0), min(point[0] + 2, len(skeleton)))
        for column in range(max(point[1] - 1, 0), min(point[1] + 2, skeleton.shape[1]))
        if skeleton[row, column] and (row, column) != point
    ]


@given(arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_paths_cover_every_pixel_between_crossings_once_and_in_order(skeleton: np.ndarray) -> None:
    between = {p for p in map(tuple, np.argwhere(skeleton).tolist()) if len(neighbours(skeleton, p)) == 2}
    covered: list[Point] = []
    for path in paths(skeleton):
        points = list(map(tuple, path.tolist()))
        assert len(points) >= 3
        for one, other in pairwise(points):
            assert other in neighbours(skeleton, one)
        for before, point, after in zip(points, points[1:], points[2:], strict=False):
            assert sorted({before, after}) == neighbours(skeleton, point)
        loop = points[0] in between
        assert loop == (points[-1] in between) and (not loop or points[0] == points[-1])
        covered += points[:-1] if loop else points[1:-1]
    assert sorted(covered) == sorted(between)


def distance(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """To the nearest point of the piece from ``start`` to ``end``."""
    along = end - start
    share = np.clip((point - start) @ along / (along @ along), 0, 1) if along.any() else 0
    return float(np.linalg.norm(point - start - share * along))


def corners(path: np.ndarray, first: int, last: int) -> list[int]:
    """By recursion: where Ramer, Douglas and Peucker cut the path between two of its points, ``last`` included."""
    far = [distance(path[index], path[first], path[last]) for index in range(first + 1, last)]
    if not far or max(far) <= TOLERANCE:
        return [last]
    cut = first + 1 + far.index(max(far))
    return corners(path, first, cut) + corners(path, cut, last)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_directions_are_those_of_straightened_paths_towards_the_first_pixel(seed: int, loop: bool) -> None:
    rng = np.random.default_rng(seed)
    found = [40 + rng.normal(size=(length, 2)).cumsum(0) for length in (3, 20, 200)]
    if loop:
        found = [np.concatenate([path, path[:1]]) for path in found]
    wanted = []
    for path in found:
        path = path if np.linalg.norm(path[0]) >= np.linalg.norm(path[-1]) else path[::-1]
        before = 0
        for corner in corners(path, 0, len(path) - 1):
            angle = math.degrees(math.atan2(*(path[corner] - path[before])))
            points = path[before + (before > 0) : corner + 1]
            wanted += [
                (*point, math.floor(angle % 360 / 10)) for point in points if (path[corner] != path[before]).any()
            ]
            before = corner
    (rows, columns), bins = directions(found)
    assert list(zip(rows, columns, bins.tolist(), strict=True)) == wanted
    assert len(set(bins.tolist())) > 4


@pytest.mark.parametrize("degrees", range(3, 360, 17))
@pytest.mark.parametrize("width", [1.5, 3, 7])
def test_a_straight_road_has_one_direction_and_no_second_one(degrees: int, width: float) -> None:
    away = 26 * np.array([math.sin(math.radians(degrees)), math.cos(math.radians(degrees))])
    one, other = 32 + away, 32 - away
    found = orientation(mask := road(one, other, width=width))
    assert ((found == BACKGROUND) == ~mask).all()
    towards = one - other if np.linalg.norm(one) < np.linalg.norm(other) else other - one
    wanted = math.degrees(math.atan2(*towards))
    error = (found[mask] * 10.0 + 5 - wanted + 180) % 360 - 180
    assert (np.abs(error) <= 15).mean() > 0.8, "near its ends the skeleton of a wide road may turn to a corner"


def crossing_roads() -> np.ndarray:
    mask = road((5, 3), (60, 50), width=5) | road((40, 2), (10, 62), width=3) | road((2, 40), (61, 44), width=7)
    ring = np.abs(np.linalg.norm(np.moveaxis(np.indices(mask.shape), 0, -1) - (48, 14), axis=-1) - 9) < 1.5
    return mask | ring


def test_a_road_pixel_takes_the_direction_of_the_nearest_point_of_a_line() -> None:
    mask = crossing_roads()
    (rows, columns), _ = directions(paths(skeletonize(mask)))
    lines, found = np.unique(np.stack([rows, columns], 1), axis=0), orientation(mask)
    assert ((found == BACKGROUND) == ~mask).all()
    for pixel in np.argwhere(mask):
        distances = np.linalg.norm(lines - pixel, axis=1)
        near = lines[distances <= 1.05 * distances.min()]  # OpenCV's distances are good to some per cent
        assert found[tuple(pixel)] in found[tuple(near.T)]


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (24, 24)])
def test_masks_without_any_line_are_background(fill: bool, shape: Point) -> None:
    found = orientation(np.full(shape, fill))
    assert found.shape == shape and found.dtype == np.uint8
    if not fill or shape in [(1, 1), (2, 2)]:
        assert (found == BACKGROUND).all()


def test_a_speck_takes_no_direction_from_another_road() -> None:
    mask = road((10, 5), (10, 60), width=3)
    speck = road((30, 30), (30, 31), width=1)
    found = orientation(mask | speck)
    assert (found[speck] == BACKGROUND).all() and (found[mask] != BACKGROUND).all()


def test_a_batch_is_its_images() -> None:
    masks = np.stack([crossing_roads(), np.zeros((64, 64), bool), crossing_roads().T])
    found = orientations(torch.from_numpy(masks).float())
    assert found.dtype == torch.uint8
    for bins, mask in zip(found, masks, strict=True):
        np.testing.assert_array_equal(bins.numpy(), orientation(mask))
