"""Ways to compute attention with SAM's decomposed relative positions: equal numbers, other speed and memory.

The score of a query and a key is q.k * scale + q.Rh[h_q, h_k] + q.Rw[w_q, w_k] (Li et al. 2022, MViTv2). Keys without a
place on the grid get no position term. A variant is a function of

* ``qkv`` (maps, H * W, 3, heads, C), the projected tokens of each map, row by row;
* ``rel_h`` (2 * H - 1, C) and ``rel_w`` (2 * W - 1, C), a row for each distance of query and key;
* ``extra``, keys and values (2, heads, n, C) that all maps attend to, or None;

that returns (maps, H * W, heads * C). :func:`choose` finds it by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.sam.tiled_attention import tiled

Variant = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def relative_table(size: int, table: Tensor) -> Tensor:
    """(size, size, C): for each pair of coordinates its row of ``table`` (2 * size - 1, C)."""
    coordinates = torch.arange(size, device=table.device)
    return table[coordinates[:, None] - coordinates[None, :] + size - 1]


def one_hot_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, height + width): each token's row and column, one-hot."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], dim=1)


def _parts(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Parts:
    """Query, key and value, (maps, heads, tokens, C), and the query's terms for each row and each column of keys."""
    height, width = (len(rel_h) + 1) // 2, (len(rel_w) + 1) // 2
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    grid = query.unflatten(2, (height, width))
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_table(height, rel_h).to(query.dtype)).flatten(2, 3)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_table(width, rel_w).to(query.dtype)).flatten(2, 3)
    if extra is not None:
        loose_key, loose_value = extra.to(key.dtype).unsqueeze(1).expand(-1, len(key), -1, -1, -1)
        key, value = torch.cat([key, loose_key], dim=2), torch.cat([value, loose_value], dim=2)
    return query, key, value, by_row, by_column


def _fold(query: Tensor, key: Tensor, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
    """Longer queries and keys whose dot product is the whole score.

    [q * scale, q.Rh, q.Rw] . [k, onehot(h_k), onehot(w_k)], with zeros in place of the one-hot parts off the grid.
    """
    place = one_hot_grid(by_row.shape[-1], by_column.shape[-1], like=key)
    place = F.pad(place, (0, 0, 0, key.shape[2] - len(place)))
    folded = torch.cat([query * query.shape[-1] ** -0.5, by_row, by_column], dim=-1)
    return folded, torch.cat([key, place.expand(*key.shape[:2], -1, -1)], dim=-1)


def _joined(out: Tensor) -> Tensor:
    """(maps, heads, tokens, C) -> (maps, tokens, heads * C)."""
    return out.transpose(1, 2).flatten(2)


def folded(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    """Positions within longer queries and keys; values padded, since flash kernels want one length for all three."""
    query, key, value, by_row, by_column = _parts(qkv, rel_h, rel_w, extra)
    query, key = _fold(query, key, by_row, by_column)
    padded = F.pad(value, (0, query.shape[-1] - value.shape[-1]))
    return _joined(F.scaled_dot_product_attention(query, key, padded, scale=1.0)[..., : value.shape[-1]])


def folded_unpadded(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    """As :func:`folded` with values as they are: fewer products, for kernels that allow it."""
    query, key, value, by_row, by_column = _parts(qkv, rel_h, rel_w, extra)
    return _joined(F.scaled_dot_product_attention(*_fold(query, key, by_row, by_column), value, scale=1.0))


def bias(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    """Position terms as a bias of the score matrix's size: memory grows with the square of the tokens."""
    query, key, value, by_row, by_column = _parts(qkv, rel_h, rel_w, extra)
    terms = (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(-2)
    terms = F.pad(terms, (0, key.shape[2] - terms.shape[-1]))
    return _joined(F.scaled_dot_product_attention(query, key, value, attn_mask=terms))


def explicit(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    """Product, softmax, product, the score matrix in memory."""
    query, key, value, by_row, by_column = _parts(qkv, rel_h, rel_w, extra)
    query, key = _fold(query, key, by_row, by_column)
    return _joined((query @ key.transpose(-1, -2)).softmax(-1) @ value)


@cache
def _flex_kernel() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(
    qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None, *, kernel: Callable[..., Tensor] | None = None
) -> Tensor:
    """A kernel generated for these scores, which reads the position terms where it needs them.

    Args:
        kernel: ``flex_attention`` in place of the compiled one.

    Raises:
        ValueError: the tokens are on no GPU, for which alone such kernels have a backward pass.
    """
    if kernel is None and qkv.device.type != "cuda":
        raise ValueError(
            f'attention = "flex" needs a GPU, and this is {qkv.device.type}; "auto" chooses for any device'
        )
    query, key, value, by_row, by_column = _parts(qkv, rel_h, rel_w, extra)
    tokens, width = by_row.shape[2], by_column.shape[-1]

    def add_position(score: Tensor, at: Tensor, head: Tensor, asking: Tensor, asked: Tensor) -> Tensor:
        place = torch.where(asked < tokens, asked, 0)
        term = by_row[at, head, asking, place // width] + by_column[at, head, asking, place % width]
        return score + torch.where(asked < tokens, term, torch.zeros_like(term))

    attend = kernel or _flex_kernel()
    return _joined(attend(*(part.contiguous() for part in (query, key, value)), score_mod=add_position))


VARIANTS: dict[str, Variant] = {
    "folded": folded,
    "folded_unpadded": folded_unpadded,
    "bias": bias,
    "explicit": explicit,
    "tiled": tiled,
    "flex": flex,
}

# By type of device, for windows and for whole maps. CPU: measured, see docs/speed.md. CUDA: not measured yet; folded is
# the only one that gets the flash kernels, and the only uncompiled one beside explicit whose gradient needs no bias.
AUTO = {"cpu": ("tiled", "tiled"), "cuda": ("folded", "folded")}


def choose(name: str, device: str, *, windowed: bool) -> Variant:
    """The variant of a name; "auto" is the fastest that was measured.

    Args:
        name: a key of :data:`VARIANTS`, or "auto".
        device: type of the device, as "cuda".
        windowed: maps are windows, many and small.
    """
    if name != "auto":
        return VARIANTS[name]
    windows, whole = AUTO.get(device, ("folded", "folded"))
    return VARIANTS[windows if windowed else whole]
