"""Linear classifiers of one feature, one for each learning rate of a grid, trained side by side.

They share the batch norm in front, which has no trained parameter and sees the same features, and nothing else; so
one pass over the features trains the whole grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.optim import Lars
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM, TRUST_COEFFICIENT = 0.9, 0.001
INITIAL_DEVIATION = 0.01


class Heads(nn.Module):
    """Batch norm without affine parameters, then a linear layer for each of ``count`` heads, all starting equal.

    Args:
        width: of the features.
        classes: of the answer.
        count: heads.
        seed: draws the weights, as MAE does: normal, deviation 0.01; biases are zero.
    """

    def __init__(self, width: int, classes: int, count: int, *, seed: int) -> None:
        super().__init__()
        self.count = count
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False)
        start = torch.empty(classes, width)
        nn.init.trunc_normal_(start, std=INITIAL_DEVIATION, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.ParameterList(start.clone() for _ in range(count))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(count))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> logits (B, heads, classes)."""
        logits = F.linear(self.norm(features), torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return logits.unflatten(1, (self.count, -1))


class Optimiser:
    """LARS for :class:`Heads` as MAE's linear probe uses it, each head with a learning rate of its own.

    Momentum 0.9, trust coefficient 0.001, no weight decay; biases are not scaled. The rate rises linearly over the
    first ninth of the training (MAE: 10 of 90 epochs) and falls to zero in half a cosine.

    Args:
        heads: on their device.
        rates: the highest rate of each head.
    """

    def __init__(self, heads: Heads, rates: Sequence[float]) -> None:
        pairs = zip(heads.weights, heads.biases, rates, strict=True)
        groups = [
            {"params": [parameter], "peak": rate, "always_adapt": scaled}
            for weight, bias, rate in pairs
            for parameter, scaled in ((weight, True), (bias, False))
        ]
        self.lars = Lars(groups, lr=0.0, momentum=MOMENTUM, trust_coeff=TRUST_COEFFICIENT)

    def step(self, losses: Tensor, progress: float) -> None:
        """One step.

        Args:
            losses: (heads,); the gradient of their sum is each head's own.
            progress: how much of the training lies behind, from 0 to below 1.
        """
        self.lars.zero_grad()
        losses.sum().backward()
        for group in self.lars.param_groups:
            group["lr"] = group["peak"] * schedule(progress)
        self.lars.step()


def schedule(progress: float, warm_up: float = 1 / 9) -> float:
    """The share of its highest value that a rate has at this share of the training."""
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each head (heads,), from logits (B, heads, classes)."""
    return torch.stack([F.cross_entropy(of_head, labels) for of_head in logits.unbind(1)])


@dataclass(frozen=True)
class Scores:
    """How well heads do on some images, each a list over heads; ``top5`` is None with fewer than six classes."""

    top1: list[float]
    top5: list[float] | None
    loss: list[float]


@torch.no_grad()
def evaluate(heads: Heads, features: Tensor, labels: Tensor, batch: int = 1024) -> Scores:
    """Scores on features (N, width), with the running statistics of the batch norm."""
    device = heads.norm.running_mean.device
    was_training = heads.training
    heads.eval()
    sums = torch.zeros(3, heads.count, dtype=torch.float64, device=device)
    for start in range(0, len(labels), batch):
        wanted = labels[start : start + batch].to(device)
        logits = heads(features[start : start + batch].to(device))
        best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == wanted[:, None, None]
        sums[0] += best[..., 0].sum(0)
        sums[1] += best.any(-1).sum(0)
        sums[2] += losses_of(logits, wanted).double() * len(wanted)
    heads.train(was_training)
    top1, top5, loss = (sums / len(labels)).tolist()
    return Scores(top1, top5 if heads.weights[0].shape[0] > 5 else None, loss)


def best_head(scores: Scores) -> int:
    """The head of highest top-1, of those the one of lowest loss; one whose loss is not finite is never chosen.

    Raises:
        FloatingPointError: no head has a finite loss.
    """
    finite = [head for head, loss in enumerate(scores.loss) if math.isfinite(loss)]
    if not finite:
        raise FloatingPointError("no learning rate gave a finite loss; lower rates: --lr 0.001,0.01")
    return max(finite, key=lambda head: (scores.top1[head], -scores.loss[head]))
