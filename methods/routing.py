"""Noisy top-k routing with load balancing (Shazeer et al. 2017; Conv-LoRA, appendix A).

All statistics are taken per image and averaged by the caller, which equals AutoGluon's release at its
micro-batch of one image and makes the loss independent of how images are batched. They are computed for all layers at
once: a model's layers decide on a few numbers each, and every operation costs more than its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Decision(NamedTuple):
    """How a layer chooses ``top_k`` of E experts for each of S maps of B images.

    Attributes:
        clean: logits without noise, (B, S, E).
        deviation: standard deviation of the noise, like ``clean``; None outside training.
        noise: standard normal draws, like ``clean``; None outside training.
        top_k: experts a map, 1 <= top_k <= E.
        scale: factor of the layer's balance loss.
    """

    clean: Tensor
    deviation: Tensor | None
    noise: Tensor | None
    top_k: int
    scale: float = 1.0

    @property
    def logits(self) -> Tensor:
        """With noise, (B, S, E)."""
        return self.clean if self.deviation is None else self.clean + self.noise * self.deviation


def choose(decision: Decision) -> tuple[Tensor, Tensor | None]:
    """The chosen experts' indices and their softmax weights, (B, S, k) each.

    The weights are None for a single expert: the softmax of one logit is 1 and has no gradient. Of equal logits the
    first is chosen, on every device.
    """
    logits = decision.logits
    if decision.top_k == 1:
        return logits.argmax(-1, keepdim=True), None
    chosen = _order(logits)[1][..., : decision.top_k]
    return chosen, _weights(logits, chosen)


def _order(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits from the largest to the smallest and whose they are."""
    # A stable sort settles ties (all gates zero) the same way on every device, as argmax does; topk does not.
    return logits.detach().sort(dim=-1, descending=True, stable=True)


def _weights(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.gather(-1, chosen).softmax(dim=-1)


def statistics(decisions: Sequence[Decision]) -> tuple[Tensor | None, Tensor]:
    """The layers' balance losses added up (B,), None outside training, and their experts' counts (B, layers, E)."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for layer, made in enumerate(decisions):
        alike.setdefault((made.clean.shape, made.deviation is None, made.top_k, made.scale), []).append(layer)
    counts: dict[int, Tensor] = {}
    losses = []
    for layers in alike.values():
        first = decisions[layers[0]]
        parts = zip(*(decisions[layer][:3] for layer in layers), strict=True)
        together = first._replace(**{
            name: None if part[0] is None else torch.stack(part)
            for name, part in zip(Decision._fields[:3], parts, strict=True)
        })  # fmt: skip
        loss, count = _balance_and_counts(together)
        counts |= dict(zip(layers, count.unbind(0), strict=True))
        losses += [] if loss is None else [first.scale * loss.sum(0)]
    balance = torch.stack(losses).sum(0) if losses else None
    return balance, torch.stack([counts[layer] for layer in sorted(counts)], dim=1)


def _balance_and_counts(decision: Decision) -> tuple[Tensor | None, Tensor]:
    """The squared variation of importance and load, (..., B), and how often each expert was chosen, (..., B, E)."""
    logits, top_k = decision.logits, decision.top_k
    values, order = _order(logits)
    chosen = order[..., :top_k]
    nothing = torch.zeros_like(values)
    counts = nothing.scatter(-1, chosen, 1.0).sum(-2)
    if decision.deviation is None:
        return None, counts
    importance = counts if top_k == 1 else nothing.scatter(-1, chosen, _weights(logits, chosen)).sum(-2)
    load = counts if top_k == logits.shape[-1] else _Load.apply(*decision[:3], values, order, top_k)
    return squared_variation(torch.stack([importance, load])).sum(0), counts


def squared_variation(x: Tensor) -> Tensor:
    """Squared coefficient of variation over the last axis, variance with n - 1."""
    return x.var(-1) / (x.mean(-1) ** 2 + 1e-10)


class _Load(torch.autograd.Function):
    """How likely each expert is to be chosen were its own noise drawn anew, summed over an image's maps, (..., E).

    It is chosen if its logit exceeds a threshold: the largest logit that was not chosen, for those that were, and the
    smallest that was, for the others. The threshold is a logit too, and hands its gradient on. Written out, since
    automatic differentiation needs three times as many operations.
    """

    @staticmethod
    def forward(
        ctx: Any, clean: Tensor, deviation: Tensor, noise: Tensor, values: Tensor, order: Tensor, top_k: int
    ) -> Tensor:
        """A decision's parts, its sorted logits ``values`` and whose they are, ``order``."""
        last_in, first_out = values[..., top_k - 1, None], values[..., top_k, None]
        inside = clean + noise * deviation > first_out
        z = (clean - torch.where(inside, first_out, last_in)) / deviation
        ctx.save_for_backward(z, deviation, noise, inside, order[..., top_k - 1 : top_k + 1])
        return torch.special.ndtr(z).sum(-2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, deviation, noise, inside, thresholds = ctx.saved_tensors
        density = torch.exp(-0.5 * z * z) * (gradient[..., None, :] / math.sqrt(2 * math.pi)) / deviation
        of_inside = (density * inside).sum(-1, keepdim=True)
        of_outside = density.sum(-1, keepdim=True) - of_inside
        of_threshold = torch.zeros_like(density).scatter(-1, thresholds, torch.cat([of_outside, of_inside], -1))
        return density - of_threshold, -z * density - noise * of_threshold, None, None, None, None
