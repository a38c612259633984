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

Both directions are written out in :class:`_OneEach`, since small maps cost less arithmetic than operations.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

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


class _OneEach(torch.autograd.Function):
    """One expert for each map, all in one precision.

    Maps are (n, H, r, W), so that kernels are put together from whole runs of columns. The tables are ordered as what
    they are multiplied with: T over rows (E, H, P, 3, H) by expert, position, phase, tap and source, over columns
    (E, 3, W, P, W) by expert, tap, source, phase and position, and the weights of pairs of phases (E, P * P).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, chosen: Tensor, tables: tuple[Tensor, ...], gelu: bool
    ) -> Tensor:
        over_height, over_width, pair_weights = tables
        (count, height, rank, width), (experts, pairs) = x.shape, pair_weights.shape
        phases = math.isqrt(pairs)
        taps, columns = weight.view(experts, -1, 3), over_width.flatten(2)  # (out, in, tap of a row) by tap of a column
        # Kernels are made for each map or for each expert, whichever are fewer.
        each = count < experts
        if each:
            taps, columns = taps.index_select(0, chosen), columns.index_select(0, chosen)
        kernels = torch.bmm(taps, columns).view(-1, rank, rank, 3, width, phases, width)
        kernels = kernels.permute(0, 3, 2, 4, 5, 1, 6).reshape(-1, 3 * rank * width, phases * rank * width)
        if not each:
            kernels = kernels.index_select(0, chosen)
        rows = over_height.index_select(0, chosen).view(count, -1, height)
        read = torch.bmm(rows, x.view(count, height, -1)).view(count, height * phases, -1)
        offset = bias.index_select(0, chosen).view(count, 1, 1, rank, 1).expand(-1, 1, phases, -1, width)
        y = torch.baddbmm(offset.reshape(count, 1, -1), read, kernels)
        shares = pair_weights.index_select(0, chosen).view(count, 1, pairs, 1)
        ctx.save_for_backward(chosen, taps, columns, kernels, rows, read, y, shares)
        ctx.shape, ctx.experts, ctx.each, ctx.gelu = x.shape, experts, each, gelu
        activated = F.gelu(y) if gelu else y
        return (activated.view(count, height, pairs, -1) * shares).sum(2).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        chosen, taps, columns, kernels, rows, read, y, shares = ctx.saved_tensors
        (count, height, rank, width), experts = ctx.shape, ctx.experts
        of_y = (gradient.reshape(count, height, 1, -1) * shares).view_as(y)
        if ctx.gelu:
            of_y = torch.ops.aten.gelu_backward(of_y, y)
        of_read = torch.bmm(of_y, kernels.mT).view(count, -1, rank * width)
        of_x = torch.bmm(rows.mT, of_read).view(ctx.shape)
        # Sums over an expert's maps as products: their order is always the same, unlike that of index_add on a GPU.
        members = (chosen == torch.arange(experts, device=chosen.device)[:, None]).to(y.dtype)
        of_bias = members @ of_y.view(count, -1, rank, width).sum((1, 3))
        of_kernels = torch.bmm(read.mT, of_y)
        if not ctx.each:
            of_kernels = members @ of_kernels.view(count, -1)
        of_kernels = of_kernels.view(len(taps), 3, rank, width, -1, rank, width).permute(0, 5, 2, 1, 3, 4, 6)
        of_taps = torch.bmm(of_kernels.reshape(len(taps), 3 * rank * rank, -1), columns.mT)
        if ctx.each:
            of_taps = members @ of_taps.view(count, -1)
        return of_x, of_taps.view(experts, rank, rank, 3, 3), of_bias, None, None, None


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
        for name, table in zip(("over_height", "over_width", "pair_weights"), self._made(grid), strict=False):
            self.register_buffer(name, table.float(), persistent=False)

    def expert(self, index: int, maps: Tensor) -> Tensor:
        return self._one_each(maps, torch.full((len(maps),), index, device=maps.device))

    def summed(self, maps: Tensor) -> Tensor:
        count = len(self.scales)
        chosen = torch.arange(count, device=maps.device).repeat(len(maps))
        return self._one_each(maps.repeat_interleave(count, 0), chosen).unflatten(0, (-1, count)).sum(1)

    def routed(self, maps: Tensor, chosen: Tensor, weights: Tensor | None = None) -> Tensor:
        places = chosen.shape[1]
        if places == 1 and weights is None:
            return self._one_each(maps, chosen[:, 0])
        each = self._one_each(maps.repeat_interleave(places, 0), chosen.flatten()).unflatten(0, (-1, places))
        return (each if weights is None else weights[:, :, None, None, None].to(each.dtype) * each).sum(1)

    def _one_each(self, maps: Tensor, chosen: Tensor) -> Tensor:
        """Expert ``chosen`` (n,) for each of the maps (n, r, H, W)."""
        if torch.is_autocast_enabled(maps.device.type):
            with torch.autocast(maps.device.type, enabled=False):
                return self._one_each(maps, chosen)
        x = maps.transpose(1, 2).contiguous()
        made = _OneEach.apply(x, self.weight.to(x.dtype), self.bias.to(x.dtype), chosen, self._tables(x), self.gelu)
        return made.transpose(1, 2)

    def _tables(self, x: Tensor) -> tuple[Tensor, ...]:
        """What :class:`_OneEach` needs for maps like ``x``, in their precision."""
        grid = (x.shape[1], x.shape[3])
        if grid == self.grid and x.dtype != torch.float64:
            return tuple(table.to(x.dtype) for table in (self.over_height, self.over_width, self.pair_weights))
        return tuple(table.to(x) for table in self._made(grid))

    def _made(self, grid: tuple[int, int] | None) -> tuple[Tensor, ...]:
        """The tables for maps of a size, float64; none without one."""
        if grid is None:
            return ()
        (over_height, weights), (over_width, _) = (tables(self.scales, size) for size in grid)
        pairs = (weights[:, :, None] * weights[:, None]).reshape(len(weights), -1)
        made = over_height.transpose(0, 2, 1, 3, 4), over_width.transpose(0, 3, 4, 1, 2), pairs
        return tuple(torch.tensor(np.ascontiguousarray(table)) for table in made)
