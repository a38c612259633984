"""Conv-LoRA's experts without resizing: the same numbers as :mod:`methods.conv_experts`, two matrix products a map.

An expert of scale s enlarges a map s times, convolves it 3x3 and shrinks it again. Bicubic shrinking reads only a
few samples of the enlarged map for each position: for odd s the one in the middle, for even s four along each axis
with the weights :data:`EVEN`. These are the *phases*. The convolution at such a sample touches three enlarged rows and
three columns, and each of these is a fixed combination of the map's own rows or columns, zero beyond the enlarged
border. With T[a, u] (size x size) the combinations for phase a and tap u:

    Y[a, b] = sum over u, v of W[:, :, u, v] (T[a, u] x T[b, v]^T) + bias
    E_s(x) = sum over a, b of w_a w_b GELU(Y[a, b])

T depends on sizes and scales alone. All experts get the same shapes (an odd scale has three phases of weight 0), so the
choice of an expert is an index into T and W: no loop over experts, no look at the device's data.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.conv_experts import ScaledConvolutions

SHARPNESS = -0.75  # of the bicubic kernel, torch's
EVEN = (-0.09375, 0.59375, 0.59375, -0.09375)
"""That kernel half-way between two samples."""


@cache
def tables(scales: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """T (E, P, size, 3, size) by expert, phase, position, tap and source, and the phases' weights (E, P), float64.

    P is 4, or 1 where all scales are odd.
    """
    phases = 1 if all(scale % 2 for scale in scales) else len(EVEN)
    rows, weights = zip(*(_of_one_scale(scale, size, phases) for scale in scales), strict=True)
    return np.stack(rows), np.stack(weights)


def _of_one_scale(scale: int, size: int, phases: int) -> tuple[np.ndarray, np.ndarray]:
    middle = scale * np.arange(size) + scale // 2
    if scale % 2:
        fine, weights = np.tile(middle, (phases, 1)), np.eye(phases)[0]
    else:
        fine = np.clip(middle + np.array([[-2], [-1], [0], [1]]), 0, scale * size - 1)
        weights = np.array(EVEN)
    # The convolution pads the enlarged map with zeros: a row of them on either side.
    padded = np.pad(enlargement(size, scale), ((1, 1), (0, 0)))
    return padded[np.stack([fine, fine + 1, fine + 2], axis=-1)], weights


def enlargement(size: int, scale: int) -> np.ndarray:
    """The matrix (scale * size, size) of bicubic enlargement along an axis, whose ends repeat beyond the border."""
    place = (np.arange(scale * size) + 0.5) / scale - 0.5
    before = np.floor(place).astype(int)
    matrix = np.zeros((scale * size, size))
    for step in (-1, 0, 1, 2):
        source = np.clip(before + step, 0, size - 1)
        np.add.at(matrix, (np.arange(scale * size), source), _kernel(np.abs(place - before - step)))
    return matrix


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at distances from 0 to 2."""
    a, d = SHARPNESS, distance
    return np.where(d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


class FusedConvolutions(ScaledConvolutions):
    """:class:`ScaledConvolutions` with its parameters and results, evaluated at the map's own resolution.

    Args:
        rank, scales, gelu: as there.
        grid: (height, width) of the maps it will see, whose tables are kept on the device. Other sizes work too and
            fetch theirs at every call.
    """

    def __init__(
        self, rank: int, scales: tuple[int, ...], *, gelu: bool = True, grid: tuple[int, int] | None = None
    ) -> None:
        super().__init__(rank, scales, gelu=gelu)
        self.grid = grid
        for axis, size in zip(("height", "width"), grid or (), strict=False):
            combinations, weights = tables(scales, size)
            self.register_buffer(f"over_{axis}", torch.tensor(combinations, dtype=torch.float32), persistent=False)
            self.register_buffer("phase_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def expert(self, index: int, maps: Tensor) -> Tensor:
        return self._one_each(maps, torch.full((len(maps),), index, device=maps.device))

    def summed(self, maps: Tensor) -> Tensor:
        count = len(self.scales)
        chosen = torch.arange(count, device=maps.device).repeat(len(maps))
        return self._one_each(maps.repeat_interleave(count, 0), chosen).unflatten(0, (-1, count)).sum(1)

    def routed(self, maps: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        places = chosen.shape[1]
        if places == 1:  # the weight of a single expert is 1, whatever its logit
            return self._one_each(maps, chosen[:, 0])
        each = self._one_each(maps.repeat_interleave(places, 0), chosen.flatten()).unflatten(0, (-1, places))
        return (weights[:, :, None, None, None].to(each.dtype) * each).sum(1)

    def _one_each(self, maps: Tensor, chosen: Tensor) -> Tensor:
        """Expert ``chosen`` (n,) for each of the maps (n, r, H, W)."""
        count, rank, height, width = maps.shape
        over_height, over_width, phase_weights = self._tables(maps)
        phases, experts = phase_weights.shape[1], len(self.scales)
        # Channels last, as a linear layer leaves them: then no step below copies but to multiply.
        x = maps.permute(0, 2, 3, 1).reshape(count, height, width * rank)
        rows = torch.bmm(over_height.view(experts, -1, height)[chosen], x).view(count, phases * height, -1)
        kernels = torch.einsum("eocuv,ebjvw->euwcbjo", self.weight, over_width)
        mixed = torch.bmm(rows, kernels.reshape(experts, 3 * width * rank, -1)[chosen])
        y = mixed.view(count, phases, height, phases, width, rank) + self.bias[chosen].view(count, 1, 1, 1, 1, rank)
        y = F.gelu(y) if self.gelu else y
        weight = phase_weights[chosen].to(y.dtype)
        y = torch.bmm(weight[:, None], y.view(count, phases, -1)).view(count, height, phases, width, rank)
        return torch.einsum("nibjo,nb->noij", y, weight)

    def _tables(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T over rows and over columns, and the phases' weights, in the precision of the maps."""
        if maps.shape[-2:] == self.grid and maps.dtype != torch.float64:
            return self.over_height, self.over_width, self.phase_weights
        (over_height, weights), (over_width, _) = (tables(self.scales, size) for size in maps.shape[-2:])
        return tuple(torch.tensor(table).to(maps) for table in (over_height, over_width, weights))
