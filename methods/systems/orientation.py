"""In which direction a road runs at each of its pixels: the second task of Batra et al. (CVPR 2019, section 3.1).

As in their code directions come from the mask's skeleton. It is cut at crossings and ends into paths; each runs from
the end that is farther from the image's first pixel to the nearer one, their rule for which of a line's two directions
counts; each is straightened (Ramer-Douglas-Peucker, 4 pixels); and a point of it has the direction of its piece. Each
road pixel takes the direction of the nearest point: that is ours (their code gives it to all within 10 pixels of a
piece, at whatever resolution, the later piece where two claim a pixel), for here the mask says how wide a road is.
Everything is a function of the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

BIN_DEGREES = 10
BACKGROUND = 360 // BIN_DEGREES
TOLERANCE = 4
"""How far, in pixels, a path may lie from its straight pieces."""

_AROUND = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column)


def orientations(masks: Tensor) -> Tensor:
    """Of masks (B, H, W): for each pixel the number of its bin, (B, H, W) uint8, on their device.

    Bin i has the directions from 10 i up to 10 (i + 1) degrees, clockwise from the one along the rows; what is no road
    has :data:`BACKGROUND`. Computed on one core of a CPU: 10 to 21 ms for a Massachusetts tile at 512 pixels a side,
    31 to 58 ms at 1024.
    """
    import numpy as np

    bins = np.stack([orientation(mask) for mask in (masks > 0).cpu().numpy()])
    return torch.from_numpy(bins).to(masks.device)


def orientation(mask: np.ndarray) -> np.ndarray:
    """Of one boolean mask (H, W): the bins, uint8; roads whose skeleton is a point count as background."""
    import cv2
    import numpy as np
    from skimage.morphology import skeletonize

    found = paths(skeletonize(mask))
    lines = np.full(mask.shape, BACKGROUND, dtype=np.uint8)
    if found:
        (rows, columns), bins = directions(found)
        lines[rows, columns] = bins
    on_line = lines != BACKGROUND
    if not on_line.any():
        return lines
    _, nearest = cv2.distanceTransformWithLabels(
        (~on_line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    bin_of = np.full(nearest.max() + 1, BACKGROUND, dtype=np.uint8)
    bin_of[nearest[on_line]] = lines[on_line]
    count, roads = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    has_line = np.zeros(count, dtype=bool)
    has_line[roads[on_line]] = True
    return np.where(mask & has_line[roads], bin_of[nearest], np.uint8(BACKGROUND))


def paths(skeleton: np.ndarray) -> list[np.ndarray]:
    """What lies between any two crossings or ends of a skeleton (H, W), these included, in order; and its loops.

    A crossing or an end is a pixel that has not exactly two neighbours among the eight around it. Each path is given
    once, as (points, 2) rows and columns; the first and the last point of a loop are the same.
    """
    import numpy as np

    points = np.argwhere(skeleton)
    number = np.full(np.add(skeleton.shape, 2), -1)  # a border of one, so that all pixels have eight around them
    number[1:-1, 1:-1][skeleton] = np.arange(len(points))
    around = np.stack([number[points[:, 0] + 1 + row, points[:, 1] + 1 + column] for row, column in _AROUND], axis=1)
    near = [[other for other in others if other >= 0] for others in around.tolist()]
    nodes = [point for point, others in enumerate(near) if len(others) != 2]
    left = dict.fromkeys(point for point, others in enumerate(near) if len(others) == 2)  # a set that keeps its order

    def walk(start: int, here: int) -> np.ndarray:
        path = [start]
        while here in left:
            del left[here]
            path.append(here)
            one, other = near[here]
            here = other if one == path[-2] else one
        return points[[*path, here]]

    found = [walk(node, neighbour) for node in nodes for neighbour in near[node] if neighbour in left]
    while left:
        start = next(iter(left))
        del left[start]
        found.append(walk(start, near[start][0]))
    return found


def directions(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of all points of some paths: rows and columns (2, n), and bins (n,); a corner has that of the piece before it.

    Pieces that end where they began have no direction, and neither have their points.
    """
    import numpy as np

    points, bins = zip(*map(_along, found), strict=True)
    return np.concatenate(points).T, np.concatenate(bins)


def _along(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np
    from skimage.measure import approximate_polygon

    if (path[0] ** 2).sum() < (path[-1] ** 2).sum():
        path = path[::-1]
    place = {point: index for index, point in enumerate(map(tuple, path.tolist()))}
    inner = map(tuple, approximate_polygon(path, TOLERANCE)[1:-1].tolist())
    corners = np.array([0, *(place[point] for point in inner), len(path) - 1])  # a loop ends on its first point
    lengths = np.diff(corners)
    lengths[0] += 1  # the first point belongs to the first piece
    chord = np.diff(path[corners], axis=0)
    degrees = np.degrees(np.arctan2(chord[:, 0], chord[:, 1])) % 360
    runs = np.repeat(chord.any(axis=1), lengths)
    return path[runs], np.repeat((degrees // BIN_DEGREES).astype(np.uint8), lengths)[runs]
