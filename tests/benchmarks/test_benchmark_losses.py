"""What losses cost: set prediction beside the same formulas on all pixels with a mask of floats for every segment, and
the structure loss beside its window means as published.

An ordinary test run goes once through all of them with small maps; memory is compared there too, since it does not
depend on the machine. docs/speed-losses.md has the numbers of set prediction.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bench.losses import set_prediction
from bench.losses.binary import structure
from bench.losses.matching import assign
from bench.losses.set_prediction import SetPrediction
from methods.base import Output
from methods.randomness import image_keys

BATCH, QUERIES, CLASSES, SEGMENTS = 4, 10, 12, 10


class Step(NamedTuple):
    """A batch at the measured scale: 12 classes, of which each image shows 10, and 10 queries."""

    output: Output
    target: Tensor
    keys: Tensor
    points: int


@pytest.fixture(scope="module")
def step(measuring: bool) -> Step:
    size, points = (1024, 12_544) if measuring else (128, 196)
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, cells: int) -> Tensor:
        coarse = torch.randn(BATCH, channels, cells, cells, generator=generator)
        return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)

    target = smooth(SEGMENTS, 8).argmax(1).to(torch.uint8)
    masks = 3 * smooth(QUERIES, size // 4) + 2 * F.one_hot(target.long(), QUERIES).movedim(3, 1)
    classes = torch.randn(BATCH, QUERIES, CLASSES + 1, generator=generator)
    target[:, : size // 32] = 255
    output = Output(masks.requires_grad_(), classes.requires_grad_())
    return Step(output, target, image_keys(0, 0, range(BATCH)), points)


def dense(output: Output, target: Tensor, match_weights: tuple[float, ...] = (1, 5, 5)) -> Tensor:
    """Set prediction on all pixels, (B,)."""
    logits, log_chances = output.masks.flatten(2), output.classes.log_softmax(-1)
    pixels = target.flatten(1).unsqueeze(1)
    masks = (pixels == torch.arange(CLASSES, dtype=torch.uint8)[:, None]).float()
    counted = (pixels != 255).float()
    areas, total = masks.sum(2), counted.sum(2)
    with torch.no_grad():
        weighted = logits * counted
        entropy = ((F.softplus(logits) * counted).sum(2, keepdim=True) - weighted @ masks.mT) / total[:, :, None]
        chances = logits.sigmoid() * counted
        sizes = chances.sum(2, keepdim=True) + areas[:, None]
        dice = 1 - (2 * chances @ masks.mT + 1) / (sizes + 1)
        terms = (-log_chances[..., :-1].exp(), entropy, dice)
        cost = sum(weight * term for weight, term in zip(match_weights, terms, strict=True))
        labels = torch.from_numpy(assign(cost.numpy(), (areas > 0).numpy()))
    image, query = (labels < CLASSES).nonzero(as_tuple=True)
    logits, masks, counted = logits[image, query], masks[image, labels[image, query]], counted[image, 0]
    entropy = F.binary_cross_entropy_with_logits(logits, masks, counted, reduction="none").sum(1) / counted.sum(1)
    chances = logits.sigmoid() * counted
    dice = 1 - (2 * (chances * masks).sum(1) + 1) / ((chances + masks).sum(1) + 1)
    on_masks = torch.zeros(BATCH).index_add(0, image, entropy + dice) / (areas > 0).sum(1)
    weights = torch.where(labels < CLASSES, 1.0, 0.1)
    on_classes = -(weights * log_chances.gather(2, labels[..., None])[..., 0]).sum(1) / weights.sum(1)
    return on_classes + on_masks


def trained(loss: Callable[[], Tensor], step: Step) -> Tensor:
    """One value an image, its gradients taken."""
    step.output.masks.grad = step.output.classes.grad = None
    losses = loss()
    losses.mean().backward()
    return losses.detach()


def on_points(step: Step) -> Callable[[], Tensor]:
    loss = SetPrediction(points=step.points)
    return lambda: loss(step.output, step.target, step.keys)


def on_all_pixels(step: Step) -> Callable[[], Tensor]:
    return lambda: dense(step.output, step.target)


def peak_bytes(loss: Callable[[], Tensor], step: Step, folder: Path) -> int:
    """The most that tensors took beyond the model's output, by torch's own record of its allocations."""
    step.output.masks.grad = step.output.classes.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        trained(loss, step)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize(("form", "make"), [("all pixels", on_all_pixels), ("points", on_points)])
def test_set_prediction(compare, benchmark, form, make, step, tmp_path):
    call, group = partial(trained, make(step), step), "set prediction of 4 images, forward and backward"
    losses = compare(call, group=group, candidate=form, reference="all pixels", rounds=3)
    assert losses.isfinite().all() and step.output.masks.grad.any()
    benchmark.extra_info["peak_bytes"] = peak_bytes(make(step), step, tmp_path)


def test_memory(step, tmp_path):
    """The gradient of the masks is the least there can be."""
    points, pixels = (peak_bytes(make(step), step, tmp_path) for make in (on_points, on_all_pixels))
    assert step.output.masks.nbytes < points < 1.5 * step.output.masks.nbytes < pixels / 3


def test_both_are_the_same_loss(step, monkeypatch):
    """Where no points are sought near the outlines, what is left between them is chance and interpolation."""
    monkeypatch.setattr(set_prediction, "IMPORTANCE", 0.0)
    loss = SetPrediction()
    torch.testing.assert_close(loss(step.output, step.target, step.keys), on_all_pixels(step)(), rtol=0.02, atol=0)


def published(logits: Tensor, target: Tensor) -> Tensor:
    """PraNet's structure loss with the plain BCE of its release; its window means are a pooling."""
    weight = 1 + 5 * (F.avg_pool2d(target, 31, stride=1, padding=15) - target).abs()
    chance = logits.sigmoid()
    shared, total = ((w * weight).sum((1, 2, 3)) for w in (chance * target, chance + target))
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    return entropy + 1 - (shared + 1) / (total - shared + 1)


@pytest.mark.parametrize(("form", "loss"), [("pooling", published), ("ours", structure)])
def test_structure_loss(compare, measuring, form, loss):
    size = 512 if measuring else 64
    target = F.interpolate(torch.randn(1, 1, 8, 8), (size, size), mode="bilinear").gt(0).float()
    logits = (target + torch.randn(target.shape)).requires_grad_()

    def step() -> Tensor:
        logits.grad = None
        losses = loss(logits, target)
        losses.mean().backward()
        return losses.detach()

    group = "structure loss of an image of 512 x 512, forward and backward"
    losses = compare(step, group=group, candidate=form, reference="pooling")
    torch.testing.assert_close(losses, published(logits, target).detach(), rtol=1e-5, atol=0)
    assert logits.grad.any()
