"""SAM's attention over a grid of tokens; :mod:`methods.sam.attention_variants` holds the ways to compute it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.sam.attention_variants import choose


class Attention(nn.Module):
    """Multi-head self-attention over a grid of tokens, with decomposed relative positions.

    Parameters carry segment_anything's names. Slots: ``qkv`` may be replaced by any layer from C to 3C
    channels; one that needs the grid to be 2-D says how it treats loose tokens in ``forward_tokens``.

    Attributes:
        variant: how attention is computed, "auto" or a key of ``attention_variants.VARIANTS``.

    Args:
        width: channels C.
        heads: attention heads.
        grid: (height, width) of the token map this layer sees: a window, or the whole image.
        windowed: the map is a window.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], *, windowed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.windowed = windowed
        self.variant = "auto"
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
        height, width, channels = x.shape[-3:]
        qkv = self.qkv(x).reshape(-1, height * width, 3, self.heads, channels // self.heads)
        attend = choose(self.variant, x.device.type, windowed=self.windowed)
        loose = None if extra is None else self._keys_and_values(extra)
        return self.proj(attend(qkv, self.rel_pos_h, self.rel_pos_w, loose).reshape(x.shape))

    def _keys_and_values(self, tokens: Tensor) -> Tensor:
        """Keys and values of loose tokens (n, C): (2, heads, n, C / heads)."""
        project = getattr(self.qkv, "forward_tokens", self.qkv)
        return project(tokens).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)[1:]
