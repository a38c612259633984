"""SAM's attention with decomposed relative positions, without a materialised score matrix.

The score of a query and a key is q.k * scale + q.Rh[h_q, h_k] + q.Rw[w_q, w_k] (Li et al. 2022, MViTv2).
It is one dot product of the longer vectors [q * scale, q.Rh, q.Rw] and [k, onehot(h_k), onehot(w_k)], so
``scaled_dot_product_attention`` needs no bias and may take its memory-saving kernels. Keys without a
place on the grid have zeros in place of the one-hot parts: their score carries no position term.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relative_table(size: int, table: Tensor) -> Tensor:
    """(size, size, C): for each pair of coordinates its row of ``table`` (2 * size - 1, C)."""
    coordinates = torch.arange(size, device=table.device)
    return table[coordinates[:, None] - coordinates[None, :] + size - 1]


def one_hot_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, height + width): each token's row and column, one-hot."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention over a grid of tokens.

    Parameters carry segment_anything's names. Slots: ``qkv`` may be replaced by any layer from C to 3C
    channels; one that needs the grid to be 2-D says how it treats loose tokens in ``forward_tokens``.

    Args:
        width: channels C.
        heads: attention heads.
        grid: (height, width) of the token map this layer sees: a window, or the whole image.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.grid = grid
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width // heads))

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Attend within each token map.

        Args:
            x: (..., H, W, C); every leading index is a map of its own.
            extra: (n, C) tokens that all maps may attend to and that ask nothing themselves.
        """
        *lead, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(-1, height * width, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)

        grid = query.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_table(height, self.rel_pos_h).to(query.dtype))
        by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_table(width, self.rel_pos_w).to(query.dtype))
        query = torch.cat([query * self.scale, by_row.flatten(2, 3), by_column.flatten(2, 3)], dim=-1)
        place = one_hot_grid(height, width, like=key)
        key = torch.cat([key, place.expand(*key.shape[:2], -1, -1)], dim=-1)

        if extra is not None:
            extra_key, extra_value = self._keys_and_values(extra, maps=key.shape[0])
            key = torch.cat([key, F.pad(extra_key, (0, place.shape[1]))], dim=2)
            value = torch.cat([value, extra_value], dim=2)

        # The flash kernels want one head dimension for all three; the padding's products are cut off again.
        value = F.pad(value, (0, query.shape[-1] - value.shape[-1]))
        out = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., : channels // self.heads]
        return self.proj(out.transpose(1, 2).reshape(*lead, height, width, channels))

    def _keys_and_values(self, tokens: Tensor, maps: int) -> tuple[Tensor, Tensor]:
        """Keys and values of loose tokens (n, C), each (maps, heads, n, C / heads)."""
        project = getattr(self.qkv, "forward_tokens", self.qkv)
        _, key, value = project(tokens).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3).unbind(0)
        return key.expand(maps, -1, -1, -1), value.expand(maps, -1, -1, -1)
