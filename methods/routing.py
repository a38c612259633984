"""Noisy top-k routing with load balancing (Shazeer et al. 2017; Conv-LoRA, appendix A).

All statistics are taken per image and averaged by the caller, which equals AutoGluon's release at its
micro-batch of one image and makes the loss independent of how images are batched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """Decisions for B images of S maps each.

    Attributes:
        chosen: indices of the k chosen experts, (B, S, k).
        weights: their softmax weights, (B, S, k); exactly 1 for k = 1.
        balance: coefficient-of-variation loss per image, (B,); None outside training.
        counts: how often each expert was chosen, (B, E).
    """

    chosen: Tensor
    weights: Tensor
    balance: Tensor | None
    counts: Tensor


def squared_variation(x: Tensor) -> Tensor:
    """Squared coefficient of variation over the last axis, variance with n - 1."""
    return x.var(-1) / (x.mean(-1) ** 2 + 1e-10)


def route(clean: Tensor, deviation: Tensor | None, noise: Tensor | None, top_k: int) -> Routing:
    """Choose ``top_k`` experts for every map.

    Args:
        clean: logits without noise, (B, S, E).
        deviation: standard deviation of the noise, like ``clean``; None outside training.
        noise: standard normal draws, like ``clean``; None outside training.
        top_k: experts a map, 1 <= top_k <= E.
    """
    experts = clean.shape[-1]
    logits = clean if deviation is None else clean + noise * deviation
    # A stable sort settles ties (all gates zero) the same way on every device; topk does not.
    values, indices = logits.sort(dim=-1, descending=True, stable=True)
    chosen, weights = indices[..., :top_k], values[..., :top_k].softmax(dim=-1)
    gates = torch.zeros_like(logits).scatter(-1, chosen, weights)
    counts = torch.zeros_like(logits).scatter(-1, chosen, 1.0).sum(-2).detach()
    if deviation is None:
        return Routing(chosen, weights, None, counts)
    if top_k < experts:
        last_in, first_out = values[..., top_k - 1, None], values[..., top_k, None]
        threshold = torch.where(logits > first_out, first_out, last_in)
        load = torch.special.ndtr((clean - threshold) / deviation).sum(-2)
    else:
        load = counts
    balance = squared_variation(gates.sum(-2)) + squared_variation(load)
    return Routing(chosen, weights, balance, counts)
