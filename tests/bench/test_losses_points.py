"""Points and matching against loops, one-hot maps and every assignment there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bench.losses.matching import assign, label_counts, match_cost
from bench.losses.points import most_uncertain, sample, sample_labels
from datasets import IGNORE

CLASSES = 5
CORNERS = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5], [0.01, 0.99]])


def labels_and_points(height: int = 9, width: int = 13, points: int = 40) -> tuple[Tensor, Tensor]:
    """Three images of noise, one pixel in four ignored in the second, all but one in the third."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, CLASSES, (3, height, width), generator=generator, dtype=torch.uint8)
    target[1][torch.rand(height, width, generator=generator) < 0.25] = IGNORE
    target[2] = IGNORE
    target[2, 4, 7] = 3
    drawn = torch.rand(3, points, 2, generator=generator)
    return target, torch.cat([drawn, CORNERS.expand(3, -1, -1)], dim=1)


def bilinear(values: np.ndarray, x: float, y: float) -> float:
    """The value at a point, by looking at all pixels: the weight of each falls to 0 at a pixel's distance."""
    height, width = values.shape
    column, row = (min(max(p * n - 0.5, 0), n - 1) for p, n in ((x, width), (y, height)))
    return sum(
        float(values[i, j]) * max(0, 1 - abs(i - row)) * max(0, 1 - abs(j - column))
        for i in range(height)
        for j in range(width)
    )


def test_values_at_points_are_bilinear() -> None:
    points = labels_and_points(points=10)[1]
    maps = torch.randn(3, 2, 7, 10, generator=torch.Generator().manual_seed(2))
    expected = torch.tensor(
        [
            [[bilinear(channel.numpy(), x, y) for x, y in places.tolist()] for channel in channels]
            for channels, places in zip(maps, points, strict=True)
        ]
    )
    torch.testing.assert_close(sample(maps, points), expected, rtol=1e-4, atol=1e-5)


def test_labels_at_points_are_one_hot_maps_without_the_maps() -> None:
    target, points = labels_and_points()
    one_hot = torch.stack([target == label for label in range(CLASSES)], dim=1).float()
    grid = 2 * points[:, None] - 1
    expected = F.grid_sample(one_hot, grid, padding_mode="border", align_corners=False)[:, :, 0]
    torch.testing.assert_close(sample_labels(target, points, CLASSES), expected, rtol=0, atol=2e-6)
    more = sample_labels(target, points, CLASSES + 3)
    assert torch.equal(more[:, :CLASSES], sample_labels(target, points, CLASSES)) and not more[:, CLASSES:].any()


def test_a_map_of_one_pixel() -> None:
    inside = sample_labels(torch.tensor([[[2]]], dtype=torch.uint8), CORNERS[None], 3)
    torch.testing.assert_close(inside[0], torch.tensor([0.0, 0.0, 1.0])[:, None].expand(-1, len(CORNERS)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_labels_share_out_what_counts(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES + 1, (2, height, width), generator=generator, dtype=torch.uint8)
    target[target == CLASSES] = IGNORE
    points = torch.rand(2, 9, 2, generator=generator)
    inside, counts = sample_labels(target, points, CLASSES), (target != IGNORE)[:, None].float()
    torch.testing.assert_close(inside.sum(1, keepdim=True), sample(counts, points), rtol=0, atol=2e-6)
    assert inside.min() >= 0


def test_the_uncertain_points_are_those_nearest_to_zero() -> None:
    logits = torch.tensor([[[4.0, -0.5, 0.1, -7, 0.0, 2], [-1, 9, -3, 2, 0.5, 8]]])
    every = torch.ones(1, 6)
    assert [set(row) for row in most_uncertain(logits, every, 3)[0].tolist()] == [{4, 2, 1}, {4, 0, 3}]
    weights = torch.tensor([[1, 1, 0.01, 1, 0, 1]])
    assert [set(row) for row in most_uncertain(logits, weights, 3)[0].tolist()] == [{2, 1, 5}, {0, 3, 2}]
    assert most_uncertain(logits, weights, 6)[0, 0].sort().values.tolist() == list(range(6))
    logits[0, 1, 1] = torch.nan
    assert most_uncertain(logits, every, 1)[0, 1].tolist() == [1]


def test_a_cost_is_what_loops_over_points_say() -> None:
    generator = torch.Generator().manual_seed(3)
    target, points = labels_and_points(points=20)
    inside = sample_labels(target, points, CLASSES)
    logits = 3 * torch.randn(3, 4, inside.shape[2], generator=generator)
    classes = torch.randn(3, 4, CLASSES + 1, generator=generator)
    cost = match_cost(logits, classes, inside, (0.7, 2.0, 3.0))
    assert cost.dtype == torch.float32 and cost.shape == (3, 4, CLASSES)
    for image, query, label in itertools.product(range(3), range(4), range(CLASSES)):
        entropy = weight = overlap = sizes = 0.0
        for point, x in enumerate(logits[image, query].tolist()):
            v = inside[image, :, point].sum().item()
            t = inside[image, label, point].item() / v if v > 0 else 0.0
            p = 1 / (1 + math.exp(-x))
            entropy -= v * (t * math.log(p) + (1 - t) * math.log(1 - p))
            weight, overlap, sizes = weight + v, overlap + v * p * t, sizes + v * (p + t)
        dice = 1 - (2 * overlap + 1) / (sizes + 1)
        exponents = classes[image, query].exp()
        chance = (exponents[label] / exponents.sum()).item()
        expected = -0.7 * chance + 2 * entropy / weight + 3 * dice
        assert cost[image, query, label].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_costs_are_fit_for_scipy_whatever_the_logits() -> None:
    logits = torch.zeros(1, 3, 6)
    logits[0, 0], logits[0, 1], logits[0, 2] = torch.nan, torch.inf, 1e30
    cost = match_cost(logits, torch.full((1, 3, 3), torch.nan), torch.full((1, 2, 6), 0.5), (1, 5, 5))
    assert cost.isfinite().all() and cost.abs().max() <= 1e10
    assert (assign(cost.numpy(), np.array([[True, True]])) < 2).sum() == 2


@pytest.mark.parametrize("queries", [1, 3, 7, 10])
@pytest.mark.parametrize("labels", [2, 5, 12])
def test_equal_queries_cost_the_same_bit_for_bit_in_batches_of_all_sizes(queries: int, labels: int) -> None:
    """As at the first step, when all queries are copies of one token."""
    generator = torch.Generator().manual_seed(4)
    inside = torch.rand(4, labels, 501, generator=generator)
    logits = torch.randn(4, 1, 501, generator=generator).expand(-1, queries, -1)
    classes = torch.randn(4, 1, labels + 1, generator=generator).expand(-1, queries, -1)
    together = match_cost(logits, classes, inside, (1, 5, 5))
    assert torch.equal(together, together[:, :1].expand_as(together))
    alone = [match_cost(logits[i : i + 1], classes[i : i + 1], inside[i : i + 1], (1, 5, 5)) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_no_other_assignment_is_cheaper(seed: int, queries: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(3, queries, num_classes)).astype(np.float32)
    present = rng.random((3, num_classes)) < 0.7
    matched = assign(cost, present)
    assert matched.shape == (3, queries) and matched.dtype == np.int64
    for image in range(3):
        labels, pairs = np.flatnonzero(present[image]), int(min(queries, present[image].sum()))
        taken = [(query, label) for query, label in enumerate(matched[image]) if label < num_classes]
        assert len({label for _, label in taken}) == len(taken) == pairs
        assert {label for _, label in taken} <= set(labels)
        paid = sum(cost[image, query, label] for query, label in taken)
        every = (
            sum(cost[image, query, label] for query, label in zip(chosen, order, strict=True))
            for chosen in itertools.combinations(range(queries), pairs)
            for order in itertools.permutations(labels, pairs)
        )
        assert paid == pytest.approx(min(every), abs=1e-5)


def test_counts_of_labels() -> None:
    target = labels_and_points()[0]
    counts = label_counts(target)
    assert torch.equal(counts, torch.stack([torch.bincount(image.flatten(), minlength=256) for image in target]))
    many = torch.full((200, 2, 2), IGNORE, dtype=torch.uint8)
    many[199, 0, 1] = 254
    counts = label_counts(many)
    assert counts[:, IGNORE].tolist() == [4] * 199 + [3] and counts[199, 254] == 1
