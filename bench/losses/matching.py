"""Which mask query answers for which segment of an image: the cheapest one-to-one assignment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def match_cost(logits: Tensor, classes: Tensor, inside: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """(B, N, K) float32: what each query would lose as the answer to each label, at points that all pairs share.

    The class term is minus the probability of the label; cross-entropy and Dice are those of the loss. A cost that is
    not a number becomes 0: the loss will not be one either, and the trainer says where that came from.

    A model's queries start as copies of one token. Sums in float64 that are rounded to float32 keep the costs of equal
    queries equal whatever order a matrix product adds in, so that ties are broken alike in every batch.

    Args:
        logits: masks at P points, (B, N, P).
        classes: class logits (B, N, K + 1).
        inside: the labels' masks there, (B, K, P), as :func:`bench.losses.points.sample_labels` gives them.
        weights: of the class term, cross-entropy and Dice.
    """
    logits, inside = logits.double(), inside.double()
    probability, counted = logits.sigmoid(), inside.sum(1).unsqueeze(-1)
    total = counted.sum(1, keepdim=True).clamp(min=1e-6)
    cross_entropy = (F.softplus(logits) @ counted - logits @ inside.mT) / total
    sizes = probability @ counted + inside.sum(-1).unsqueeze(1)
    dice = 1 - (2 * probability @ inside.mT + 1) / (sizes + 1)
    on_class, on_mask, on_dice = weights
    cost = on_mask * cross_entropy + on_dice * dice - on_class * classes.softmax(-1)[..., :-1]
    return cost.clamp(-1e10, 1e10).nan_to_num(nan=0.0).float()


def assign(cost: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The label of each query, (B, N) int64; K for queries without one.

    Where an image has more labels than queries, those that fit worst get none.

    Args:
        cost: (B, N, K).
        present: (B, K) bool, the labels an image has.
    """
    from scipy.optimize import linear_sum_assignment

    batch, queries, num_classes = cost.shape
    matched = np.full((batch, queries), num_classes, dtype=np.int64)
    for image in range(batch):
        labels = np.flatnonzero(present[image])
        chosen, columns = linear_sum_assignment(cost[image][:, labels])
        matched[image, chosen] = labels[columns]
    return matched


def label_counts(target: Tensor) -> Tensor:
    """(B, 256): the pixels of each label in an image, from (B, H, W) uint8, by one count for the whole batch."""
    batch = target.shape[0]
    rows = torch.arange(0, 256 * batch, 256, device=target.device, dtype=torch.int32)
    return torch.bincount((target.flatten(1) + rows[:, None]).flatten(), minlength=256 * batch).view(batch, 256)
