"""Binary losses against loops over pixels, the released formula on one image, and their promise about micro-batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.losses import BINARY
from bench.losses.binary import boundary_weight

each_loss = pytest.mark.parametrize("name", BINARY)


def _batch(size: int = 4, height: int = 38, width: int = 35) -> tuple[Tensor, Tensor]:
    """Logits and blocky masks of different size, the last of them without foreground."""
    generator = torch.Generator().manual_seed(11)
    logits = 3 * torch.randn(size, 1, height, width, generator=generator)
    target = torch.zeros(size, 1, height, width)
    for index in range(size - 1):
        target[index, :, 3 : 9 + 9 * index, 30 - 10 * index : 33] = 1
    return logits, target


def _loops(name: str, logits: np.ndarray, target: np.ndarray) -> float:
    """The loss of one image (H, W) in Python floats, every sum a loop over pixels."""
    height, width = target.shape
    foreground = target.sum()
    background = target.size - foreground
    bce = weighted_bce = balanced = weights = intersection = total = 0.0
    for row in range(height):
        for column in range(width):
            x, m = float(logits[row, column]), float(target[row, column])
            p = 1 / (1 + math.exp(-x))
            window = target[max(row - 15, 0) : row + 16, max(column - 15, 0) : column + 16]
            w = 1 + 5 * abs(window.sum() / 961 - m)
            entropy = -m * math.log(p) - (1 - m) * math.log(1 - p)
            bce += entropy / target.size
            weighted_bce += w * entropy
            weights += w
            intersection += w * p * m
            total += w * (p + m)
            balanced += (background * m + foreground * (1 - m)) * entropy / target.size**2
    iou = 1 - (intersection + 1) / (total - intersection + 1)
    return {"structure": bce + iou, "structure_weighted": weighted_bce / weights + iou, "balanced_bce": balanced}[name]


@each_loss
def test_equals_loops_over_pixels(name: str) -> None:
    logits, target = _batch()
    expected = [_loops(name, *pair) for pair in zip(logits[:, 0].double().numpy(), target[:, 0].numpy(), strict=True)]
    losses = BINARY[name](logits, target)
    assert losses.shape == (4,) and losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(expected, rel=2e-5, abs=1e-8)


def test_structure_is_the_released_loss_of_a_micro_batch_of_one() -> None:
    logits, target = _batch()
    for x, m in zip(logits.split(1), target.split(1), strict=True):
        weight = 1 + 5 * (F.avg_pool2d(m, kernel_size=31, stride=1, padding=15) - m).abs()
        bce = F.binary_cross_entropy_with_logits(x, m)
        bce = (weight * bce).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
        p = torch.sigmoid(x)
        intersection, union = (p * m * weight).sum(dim=(2, 3)), ((p + m) * weight).sum(dim=(2, 3))
        released = (bce + 1 - (intersection + 1) / (union - intersection + 1)).mean()
        assert BINARY["structure"](x, m).item() == pytest.approx(released.item(), rel=1e-6)


@each_loss
def test_a_batch_equals_accumulated_micro_batches_of_one(name: str) -> None:
    logits, target = _batch()
    together = logits.clone().requires_grad_()
    losses = BINARY[name](together, target)
    losses.mean().backward()
    alone = logits.clone().requires_grad_()
    for index in range(4):
        loss = BINARY[name](alone[index : index + 1], target[index : index + 1])
        assert loss.item() == pytest.approx(losses[index].item(), rel=1e-6)
        (loss.mean() / 4).backward()
    assert together.grad.abs().sum() > 0
    torch.testing.assert_close(together.grad, alone.grad, rtol=1e-5, atol=1e-9)


@each_loss
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    logits, target = _batch(size=2, height=6, width=5)
    logits.requires_grad_()
    BINARY[name](logits, target).sum().backward()
    step = 0.03
    for place in [(0, 0, 3, 4), (0, 0, 0, 0), (1, 0, 2, 2)]:
        shift = torch.zeros_like(logits)
        shift[place] = step
        with torch.no_grad():
            slope = (BINARY[name](logits + shift, target) - BINARY[name](logits - shift, target)).sum() / (2 * step)
        assert logits.grad[place].item() == pytest.approx(slope.item(), rel=0.01, abs=2e-5)


@each_loss
@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["no foreground", "all foreground"])
@pytest.mark.parametrize("confidence", [0.0, 50.0, -50.0, 1e4, -1e4])
def test_one_class_and_extreme_logits_are_finite(name: str, fill: float, confidence: float) -> None:
    logits = torch.full((1, 1, 8, 8), confidence, requires_grad=True)
    loss = BINARY[name](logits, torch.full((1, 1, 8, 8), fill))
    loss.sum().backward()
    assert loss.item() >= 0 and math.isfinite(loss.item()) and logits.grad.isfinite().all()
    if name == "balanced_bce":
        assert loss.item() < 1e-6


@each_loss
def test_a_better_prediction_loses_less(name: str) -> None:
    target = _batch()[1][:3]
    good, unsure, bad = (BINARY[name](scale * (2 * target - 1), target) for scale in (8.0, 0.0, -8.0))
    assert (good < unsure).all() and (unsure < bad).all() and (good < 0.01).all()


@each_loss
def test_float32_under_bf16_autocast(name: str) -> None:
    logits, target = _batch()
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = BINARY[name](half, target)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, BINARY[name](half.detach().float(), target))
    losses.mean().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 1, 3, 5), (1, 1, 31, 31), (1, 1, 64, 100), (2, 1, 128, 128)])
def test_boundary_weight_is_exact_on_masks(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    soft = torch.rand(shape, generator=generator)
    target = (soft > 0.6).float()
    pooled = F.avg_pool2d(target, kernel_size=31, stride=1, padding=15)
    assert torch.equal(boundary_weight(target), 1 + 5 * (pooled - target).abs())
    pooled = F.avg_pool2d(soft.double(), kernel_size=31, stride=1, padding=15)
    torch.testing.assert_close(boundary_weight(soft).double(), 1 + 5 * (pooled - soft).abs(), rtol=0, atol=2e-6)


@each_loss
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    logits, target = _batch()
    with pytest.raises(ValueError, match=r"\(4, 38, 35\).*\(B, 1, H, W\)"):
        BINARY[name](logits[:, 0], target)
    with pytest.raises(ValueError, match=r"\(4, 3, 38, 35\)"):
        BINARY[name](logits.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1))
