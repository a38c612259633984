"""The prompt stage, as SAM was trained (Kirillov et al. 2023, appendix A): clicks and boxes, and clicks on errors.

A first click is ambiguous: tokens 1-3 answer, only the best one's mask is trained, and all learn how good they are.
A box, and every further click with the mask so far, is answered by token 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.pretraining.batch import STRIDE, Batch

ROUNDS = 3
"""Answers to each prompt: the first, and one after each click on the error."""

FOCAL, DICE = 20.0, 1.0


def decode(decoder: nn.Module, features: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor) -> tuple:
    """All four masks' logits (N, 4, 4h, 4w) and predicted IoUs (N, 4) of N prompts.

    segment_anything's own ``predict_masks`` takes one image; here each prompt brings its image's features.

    Args:
        decoder: segment_anything's complete mask decoder.
        features: (N, C, h, w).
        positions: (1, C, h, w), their positional encoding.
        sparse: (N, tokens, C), embedded clicks and boxes.
        dense: (N, C, h, w), embedded masks.
    """
    count = len(features)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
    tokens = torch.cat([tokens, sparse.to(tokens.dtype)], dim=1)
    hidden, source = decoder.transformer(features + dense, positions.expand(count, -1, -1, -1), tokens)
    upscaled = decoder.output_upscaling(source.transpose(1, 2).unflatten(2, features.shape[2:]))
    weights = [mlp(hidden[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    masks = torch.einsum("nmc,nchw->nmhw", torch.stack(weights, dim=1), upscaled)
    return masks.float(), decoder.iou_prediction_head(hidden[:, 0]).float()


def embed_prompts(encoder: nn.Module, clicks: Tensor, labels: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
    """(N, t + 1, C): t clicks and segment_anything's padding, or the box and the t - 1 clicks after it.

    Args:
        encoder: segment_anything's prompt encoder.
        clicks: (N, t, 2), in pixels.
        labels: (N, t), 1 inside, 0 outside.
        boxes: (N, 4).
        boxed: (N,) bool: the box stands in place of the first click.
    """
    with torch.autocast(clicks.device.type, enabled=False):  # 8 bits are too few for the phase of a position
        clicked, _ = encoder(points=(clicks, labels), boxes=None, masks=None)
        corners, _ = encoder(points=(clicks[:, 1:], labels[:, 1:]), boxes=boxes, masks=None)
    return torch.where(boxed[:, None, None], corners, clicked)


def mask_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """20 focal + dice of each answer, (N, M).

    Focal as of Lin et al. (alpha 0.25, gamma 2), for targets between 0 and 1 with |p - target| in place of 1 - p_t.

    Args:
        logits: (N, M, s, s).
        masks: (N, s, s), in 0..1.
    """
    target = masks[:, None].expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (0.25 * target + 0.75 * (1 - target)) * (probability - target) ** 2 * entropy
    overlap = (probability * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    return FOCAL * focal.mean((2, 3)) + DICE * dice


def measured_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """(N, M): the IoU of each answer, both sides binarised at a half."""
    answer, target = logits > 0, (masks > 0.5)[:, None]
    return (answer & target).sum((2, 3)) / (answer | target).sum((2, 3)).clamp(min=1)


def error_clicks(logits: Tensor, masks: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A click (N, 2) on a cell where answer and target differ, and its label (N,): 1 where the object was missed.

    Where nothing differs the click falls anywhere inside the object.

    Args:
        logits: (N, s, s), the answer so far.
        masks: (N, s, s).
        noise: (N, s, s), uniform in 0..1: chooses among the cells.
    """
    target = masks > 0.5
    wrong = (logits > 0) != target
    wrong = torch.where(wrong.any((1, 2), keepdim=True), wrong, masks == masks.amax((1, 2), keepdim=True))
    chosen = torch.where(wrong, noise, -1.0).flatten(1).argmax(1)
    side = masks.shape[2]
    cells = torch.stack([chosen % side, chosen // side], dim=1)
    label = target.flatten(1).gather(1, chosen[:, None])[:, 0]
    return (cells + 0.5) * STRIDE - 0.5, label.float()


def prompt_losses(
    prompt_encoder: nn.Module, decoder: nn.Module, features: Tensor, batch: Batch, noise: Tensor
) -> dict[str, Tensor]:
    """The losses of a batch, means over prompts and rounds, and the IoU of the first and the last answer.

    Args:
        prompt_encoder, decoder: segment_anything's parts, for the images' size.
        features: (B, C, h, w).
        batch: its prompts and masks.
        noise: (ROUNDS - 1, N, s, s), uniform: chooses the clicks on errors.
    """
    features = features.repeat_interleave(len(batch.masks) // len(features), dim=0)
    with torch.autocast(features.device.type, enabled=False):
        positions = prompt_encoder.get_dense_pe()
    everyone, tokens = (torch.arange(count, device=features.device) for count in (len(features), 4))
    clicks, labels = batch.clicks[:, None], torch.ones_like(batch.clicks[:, :1])
    dense = prompt_encoder.no_mask_embed.weight[..., None, None]
    mask_loss, iou_loss, reached = [], [], []
    for turn in range(ROUNDS):
        sparse = embed_prompts(prompt_encoder, clicks, labels, batch.boxes, batch.boxed)
        logits, promised = decode(decoder, features, positions, sparse, dense)
        losses, actual = mask_losses(logits, batch.masks), measured_iou(logits.detach(), batch.masks)
        asked = _answering(batch.boxed, first=turn == 0)
        eligible = asked & (batch.barred[:, None] != tokens)
        best = losses.detach().masked_fill(~eligible, torch.inf).argmin(1)
        mask_loss.append(losses[everyone, best].mean())
        iou_loss.append(((promised - actual) ** 2)[asked].mean())
        reached.append(actual[everyone, best].mean())
        if turn + 1 < ROUNDS:
            shown = logits[everyone, best].detach()
            click, label = error_clicks(shown, batch.masks, noise[turn])
            clicks, labels = torch.cat([clicks, click[:, None]], 1), torch.cat([labels, label[:, None]], 1)
            dense = prompt_encoder.mask_downscaling(shown[:, None].clamp(-32, 32))
    return {
        "mask": torch.stack(mask_loss).mean(),
        "iou": torch.stack(iou_loss).mean(),
        "first_iou": reached[0],
        "last_iou": reached[-1],
    }


def _answering(boxed: Tensor, *, first: bool) -> Tensor:
    """(N, 4): which tokens answer; the first three to a single click, the one for all else otherwise."""
    several = ~boxed if first else torch.zeros_like(boxed)
    return torch.stack([~several, several, several, several], dim=1)
