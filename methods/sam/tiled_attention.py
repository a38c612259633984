"""Attention for the CPU: a few maps and heads at a time, so that their scores never leave the processor's cache.

Forward and backward pass are written out: scores are computed again in the backward pass, as in flash attention (Dao et
al. 2022), gradients go straight into the layout of the projection's output, and position terms are products with the
tables as they are stored. The row of a table for query h and key k is h - k + H - 1; with the table turned round,
terms of all distances lie side by side, and those of one query are a window that moves by one: a strided view.

An operator of its own, so that compilers and checkpoints see one operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NUMBERS = 1 << 18
"""Scores at a time, about: 1 MB, half of a core's own cache. Measured from 2^14 to 2^20."""


class _Tile(NamedTuple):
    """Some heads of some maps in contiguous float32 (float64 if the tokens are), pairs of map and head first."""

    at: tuple[slice, slice]
    maps: int
    query: Tensor
    key: Tensor
    value: Tensor
    scores: Tensor
    weights: Tensor
    distances: Tensor
    rows: Tensor
    columns: Tensor


def _table(rel_h: Tensor, rel_w: Tensor, like: torch.dtype) -> Tensor:
    """Both tables turned round, one below the other: (2 * H - 1 + 2 * W - 1, C)."""
    return torch.cat([rel_h.flip(0), rel_w.flip(0)]).to(like)


def _tiles(qkv: Tensor, table: Tensor, height: int, width: int, extra: Tensor | None) -> Iterator[_Tile]:
    """All tiles with their attention weights. Buffers are used again for the next."""
    maps, tokens, _, heads, channels = qkv.shape
    keys, distances = tokens + (0 if extra is None else extra.shape[2]), len(table)
    heads_at_once = min(heads, max(1, NUMBERS // (tokens * keys)))
    maps_at_once = min(maps, max(1, NUMBERS // (tokens * keys * heads_at_once)))
    most = maps_at_once * heads_at_once * tokens
    score_buffer, weight_buffer = (table.new_empty(most * keys) for _ in range(2))
    term_buffer = table.new_empty(most * distances)
    for first in range(0, maps, maps_at_once):
        for head in range(0, heads, heads_at_once):
            at = slice(first, first + maps_at_once), slice(head, head + heads_at_once)
            own = qkv[at[0], :, :, at[1]].permute(2, 0, 3, 1, 4).to(table.dtype).contiguous()
            count = own.shape[1]
            query, key, value = own.flatten(1, 2).unbind(0)
            if extra is not None:
                loose = extra[:, at[1]].to(table.dtype).repeat(1, count, 1, 1)
                key, value = torch.cat([key, loose[0]], dim=1), torch.cat([value, loose[1]], dim=1)
            pairs = len(query)
            scores, weights = (
                b[: pairs * tokens * keys].view(pairs, tokens, keys) for b in (score_buffer, weight_buffer)
            )
            terms = term_buffer[: pairs * tokens * distances].view(pairs, tokens, distances)
            rows, columns = _windows(terms, height, width)
            torch.mm(query.view(-1, channels), table.T, out=terms.view(-1, distances))
            torch.add(rows.unsqueeze(-1), columns.unsqueeze(-2), out=_on_grid(scores, height, width))
            scores[..., tokens:].zero_()
            scores.baddbmm_(query, key.transpose(1, 2), alpha=channels**-0.5)
            torch.softmax(scores, -1, out=weights)
            yield _Tile(at, count, query, key, value, scores, weights, terms, rows, columns)


def _windows(terms: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Views of the terms by distance: for each query those of every row, and those of every column, of keys."""
    pairs, tokens, distances = terms.shape
    start, by_pair = terms.storage_offset(), tokens * distances
    strides = (by_pair, width * distances - 1, distances, 1), (by_pair, width * distances, distances - 1, 1)
    rows = terms.as_strided((pairs, height, width, height), strides[0], start + height - 1)
    columns = terms.as_strided((pairs, height, width, width), strides[1], start + 2 * height + width - 2)
    return rows, columns


def _on_grid(scores: Tensor, height: int, width: int) -> Tensor:
    """The scores of keys on the grid, (pairs, H, W, H, W)."""
    return scores[..., : height * width].view(-1, height, width, height, width)


def _sides(rel_h: Tensor, rel_w: Tensor) -> tuple[int, int]:
    return (len(rel_h) + 1) // 2, (len(rel_w) + 1) // 2


@torch.library.custom_op("sam_peft_bench::tiled_attention", mutates_args=())
def tiled(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    """See :mod:`methods.sam.attention_variants`."""
    maps, tokens, _, heads, channels = qkv.shape
    out = qkv.new_empty(maps, tokens, heads, channels)
    table = _table(rel_h, rel_w, torch.promote_types(qkv.dtype, torch.float32))
    with torch.autocast(qkv.device.type, enabled=False):
        for tile in _tiles(qkv, table, *_sides(rel_h, rel_w), extra):
            answer = torch.bmm(tile.weights, tile.value).view(tile.maps, -1, tokens, channels)
            out[tile.at[0], :, tile.at[1]] = answer.transpose(1, 2).to(out.dtype)
    return out.flatten(2)


@torch.library.custom_op("sam_peft_bench::tiled_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None, with_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``qkv``, of the table of :func:`_table` (empty unless wanted) and of ``extra`` (empty if none)."""
    with torch.autocast(qkv.device.type, enabled=False):
        return _gradients(gradient, qkv, rel_h, rel_w, extra, with_table)


def _gradients(
    gradient: Tensor, qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None, with_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    maps, tokens, _, heads, channels = qkv.shape
    sides, scale = _sides(rel_h, rel_w), channels**-0.5
    table = _table(rel_h, rel_w, torch.promote_types(qkv.dtype, torch.float32))
    d_qkv, gradient = torch.empty_like(qkv), gradient.view(maps, tokens, heads, channels)
    d_table = torch.zeros_like(table) if with_table else table.new_empty(0)
    d_extra = qkv.new_empty(0) if extra is None else torch.zeros_like(extra, memory_format=torch.contiguous_format)
    for tile in _tiles(qkv, table, *sides, extra):
        own = gradient[tile.at[0], :, tile.at[1]].transpose(1, 2).to(table.dtype).reshape(-1, tokens, channels)
        d_value = torch.bmm(tile.weights.transpose(1, 2), own)
        torch.bmm(own, tile.value.transpose(1, 2), out=tile.scores)
        d_scores = torch._softmax_backward_data(tile.scores, tile.weights, -1, table.dtype, grad_input=tile.scores)
        tile.distances.zero_()
        torch.sum(_on_grid(d_scores, *sides), -1, out=tile.rows)
        torch.sum(_on_grid(d_scores, *sides), -2, out=tile.columns)
        distances = tile.distances.view(-1, len(table))
        d_query = torch.mm(distances, table).view_as(tile.query).baddbmm_(d_scores, tile.key, alpha=scale)
        d_key = torch.bmm(d_scores.transpose(1, 2), tile.query).mul_(scale)
        if with_table:
            d_table.addmm_(distances.T, tile.query.view(-1, channels))
        for part, d_part in enumerate((d_query, d_key, d_value)):
            split = d_part.view(tile.maps, -1, d_part.shape[1], channels)
            d_qkv[tile.at[0], :, part, tile.at[1]] = split[:, :, :tokens].transpose(1, 2).to(d_qkv.dtype)
            if part and extra is not None:
                d_extra[part - 1, tile.at[1]] += split[:, :, tokens:].sum(0).to(d_extra.dtype)
    return d_qkv, d_table, d_extra


@tiled.register_fake
def _(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[3] * qkv.shape[4])


@_backward.register_fake
def _(
    gradient: Tensor, qkv: Tensor, rel_h: Tensor, rel_w: Tensor, extra: Tensor | None, with_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.promote_types(qkv.dtype, torch.float32)
    rows = len(rel_h) + len(rel_w)
    d_table = qkv.new_empty((rows, qkv.shape[-1]) if with_table else (0,), dtype=kind)
    return torch.empty_like(qkv), d_table, qkv.new_empty(0) if extra is None else extra.new_empty(extra.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    qkv, rel_h, rel_w, extra = ctx.saved_tensors
    with_table = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    d_qkv, d_table, d_extra = torch.ops.sam_peft_bench.tiled_attention_backward(
        gradient.contiguous(), qkv, rel_h, rel_w, extra, with_table
    )
    d_h, d_w = (None, None) if not with_table else (d.flip(0) for d in d_table.split([len(rel_h), len(rel_w)]))
    return d_qkv, *(d if d is None else d.to(rel_h.dtype) for d in (d_h, d_w)), None if extra is None else d_extra


tiled.register_autograd(_differentiate, setup_context=_setup)
TILED = torch.ops.sam_peft_bench.tiled_attention.default
"""The operator as checkpoints and counters see it."""


def _products(qkv: Sequence[int], rel_h: Sequence[int], rel_w: Sequence[int], extra: Sequence[int] | None) -> list[int]:
    """Operations of a product of all queries with all keys, and of one with the tables."""
    maps, tokens, _, heads, channels = qkv
    keys = tokens + (extra[2] if extra is not None else 0)
    return [2 * maps * heads * tokens * number * channels for number in (keys, rel_h[0] + rel_w[0])]


@register_flop_formula(torch.ops.sam_peft_bench.tiled_attention)
def _flop(qkv: Any, rel_h: Any, rel_w: Any, extra: Any, *_: Any, **__: Any) -> int:
    scores, terms = _products(qkv, rel_h, rel_w, extra)
    return 2 * scores + terms


@register_flop_formula(torch.ops.sam_peft_bench.tiled_attention_backward)
def _backward_flop(
    gradient: Any, qkv: Any, rel_h: Any, rel_w: Any, extra: Any, with_table: bool, *_: Any, **__: Any
) -> int:
    scores, terms = _products(qkv, rel_h, rel_w, extra)
    return 5 * scores + (2 + with_table) * terms
