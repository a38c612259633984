"""The loss of several classes: N masks, each with a class, against an image's segments (Mask2Former).

A segment is what has one label, the background included. Each segment is matched with the query that fits it best;
matched queries learn its class and its mask, the others "no object". The form is that of the released code (Hugging
Face's ``Mask2FormerLoss`` in AutoGluon), whose micro-batch of one image makes its statistics
an image's own. What differs:

* Pixels of label 255 count for nothing; the release makes a mask of them that has no class.
* Within half a pixel of the border maps keep their outermost values; there the release fades them into zeros.
* The masks of an image share their random points. Each still sees uniform draws, only draws of different masks are no
  longer independent. All masks are then read on one grid, and a segment's points do not depend on which query it is
  matched with.

What the points save and what they leave: docs/speed-losses.md.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.losses.matching import assign, label_counts, match_cost
from bench.losses.points import most_uncertain, sample, sample_labels
from datasets import IGNORE
from methods.base import Output
from methods.randomness import uniform

NO_OBJECT = 0.1  # weight of an unmatched query's cross-entropy
OVERSAMPLING = 3.0  # candidates among which uncertain points are sought, as a multiple of the points
IMPORTANCE = 0.75  # share of the points that are uncertain ones; the others are uniform

# Layers, which draw for the same keys, have salts that count from 0.
_SALT_MATCH, _SALT_LOSS = 1 << 32, (1 << 32) + 1

log = logging.getLogger(__name__)


class SetPrediction:
    """Class cross-entropy, mask cross-entropy and Dice of matched queries.

    Args:
        points: at how many points a mask is compared, and a pair's cost is taken.
        loss_weights: of the three terms, in this order.
        match_weights: of the same three in the cost that decides which query answers for which segment.
    """

    def __init__(
        self,
        *,
        points: int = 12_544,
        loss_weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        match_weights: tuple[float, float, float] = (1.0, 5.0, 5.0),
    ) -> None:
        self.points, self.loss_weights, self.match_weights = points, loss_weights, match_weights
        self._warned = False

    def __call__(self, output: Output, target: Tensor, keys: Tensor) -> Tensor:
        """One value an image, (B,) float32, computed in float32 whatever the output's type and autocast.

        An image in which no pixel counts has loss 0 and gradient 0.

        Args:
            output: ``masks`` (B, N, H, W) and ``classes`` (B, N, K + 1).
            target: class indices (B, H, W) uint8, 255 where nothing counts.
            keys: (B,) int64, from which the points derive.

        Raises:
            ValueError: shapes that do not belong together, no class logits, a target that is not uint8, or a label
                from K to 254.
        """
        _check(output, target, keys)
        with torch.autocast(target.device.type, enabled=False):
            masks, classes = output.masks.float(), output.classes.float()
            # A GPU is waited for when counts and costs come to the CPU; until then it is given all the work there is.
            with torch.no_grad():
                points, inside, chosen = self._choose(masks, target, keys, num_classes=classes.shape[2] - 1)
                cost = self._cost(masks, classes, target, keys)
                counts = label_counts(target)
                labels = self._assign(cost, counts)
            class_loss = _class_loss(classes, labels)
            cross_entropy, dice = _mask_losses(masks, labels, points, inside, chosen)
            segments = (counts[:, :IGNORE] > 0).sum(1)
            on_class, on_mask, on_dice = self.loss_weights
            loss = on_class * class_loss + (on_mask * cross_entropy + on_dice * dice) / segments.clamp(min=1)
            return loss.where(segments > 0, 0.0)

    def _choose(self, masks: Tensor, target: Tensor, keys: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points (B, C, 2), the labels there (B, K, C), and at which of the points each mask is read, (B, N, P)."""
        candidates, important = int(OVERSAMPLING * self.points), int(IMPORTANCE * self.points)
        points = uniform(keys, (candidates + self.points - important, 2), _SALT_LOSS)
        inside = sample_labels(target, points, num_classes)
        logits = sample(masks, points[:, :candidates])
        uncertain = most_uncertain(logits, inside[..., :candidates].sum(1), important)
        others = torch.arange(candidates, points.shape[1], device=masks.device).expand(*masks.shape[:2], -1)
        return points, inside, torch.cat([uncertain, others], dim=-1)

    def _cost(self, masks: Tensor, classes: Tensor, target: Tensor, keys: Tensor) -> Tensor:
        """What each query would lose as the answer to each label, (B, N, K)."""
        points = uniform(keys, (self.points, 2), _SALT_MATCH)
        inside = sample_labels(target, points, num_classes=classes.shape[2] - 1)
        return match_cost(sample(masks, points), classes, inside, self.match_weights)

    def _assign(self, cost: Tensor, counts: Tensor) -> Tensor:
        """The label that each query answers for, (B, N) int64; K where it is none."""
        present = _present(counts.cpu().numpy(), num_classes=cost.shape[2])
        self._warn_if_too_many(int(present.sum(1).max()), *cost.shape[1:])
        labels = torch.from_numpy(assign(cost.cpu().numpy(), present))
        return labels.to(cost.device, non_blocking=True)

    def _warn_if_too_many(self, segments: int, queries: int, num_classes: int) -> None:
        if segments > queries and not self._warned:
            self._warned = True
            log.warning(
                "an image has %d segments, more than the model's %d mask queries: those that fit worst are not "
                "learned from; with mask_tokens = %d in the regime all always fit",
                segments,
                queries,
                num_classes,
            )


def _mask_losses(
    masks: Tensor, labels: Tensor, points: Tensor, inside: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice, each (B,), summed over an image's matched masks.

    Sums over points are weighted by how much of a point counts: with the value t of a mask and the weight v of a point,
    ``inside`` is v * t. A mask none of whose points counts adds 0 to both.
    """
    num_classes = inside.shape[1]
    image, matched = torch.arange(len(labels), device=labels.device)[:, None], labels < num_classes
    weights = inside.sum(1)[image[..., None], chosen]
    inside = inside[image, labels.clamp(max=num_classes - 1)].gather(2, chosen)
    places = points[image[..., None], chosen].flatten(0, 1)
    # All queries are read, matched or not: a copy of the matched masks would take longer than reading the others.
    logits = sample(masks.flatten(0, 1).unsqueeze(1), places).view_as(inside)
    probability = logits.sigmoid()
    cross_entropy = (weights * F.softplus(logits) - inside * logits).sum(-1) / weights.sum(-1).clamp(min=1e-6)
    sizes = (weights * probability + inside).sum(-1)
    dice = 1 - (2 * (inside * probability).sum(-1) + 1) / (sizes + 1)
    return cross_entropy.where(matched, 0.0).sum(1), dice.where(matched, 0.0).sum(1)


def _class_loss(classes: Tensor, labels: Tensor) -> Tensor:
    """(B,): cross-entropy of all queries of an image, a weighted mean in which those without a segment weigh less."""
    entropy = F.cross_entropy(classes.mT, labels, reduction="none")
    weights = torch.where(labels < classes.shape[2] - 1, 1.0, NO_OBJECT)
    return (weights * entropy).sum(1) / weights.sum(1)


def _present(counts: np.ndarray, num_classes: int) -> np.ndarray:
    """Which labels an image has, (B, K), from pixels of each, (B, 256)."""
    unknown = np.argwhere(counts[:, num_classes:IGNORE])
    if len(unknown):
        image, label = unknown[0]
        raise ValueError(
            f"image {image} of the batch has label {num_classes + label}, but the output is for {num_classes} "
            f"classes: labels are 0 to {num_classes - 1}, and {IGNORE} where nothing counts"
        )
    return counts[:, :num_classes] > 0


def _check(output: Output, target: Tensor, keys: Tensor) -> None:
    if output.classes is None:
        raise ValueError(
            "the output has no class logits: set prediction needs a model for several classes "
            '(Context.num_classes > 1); for binary masks choose another loss, such as loss = "structure"'
        )
    masks, classes, images = output.masks.shape, output.classes.shape, target.shape
    fits = len(masks) == 4 and len(classes) == 3 and classes[:2] == masks[:2] and images == (masks[0], *masks[2:])
    if not fits or keys.shape != images[:1]:
        raise ValueError(
            f"masks are {tuple(masks)}, classes {tuple(classes)}, target {tuple(images)}, keys {tuple(keys.shape)}; "
            "they must be (B, N, H, W), (B, N, K + 1), (B, H, W), (B,)"
        )
    if target.dtype != torch.uint8:
        raise ValueError(f"target is {target.dtype}; it must be torch.uint8: class indices, {IGNORE} where ignored")
