"""Set prediction against one image at a time, one point at a time and every assignment there is, in float64."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bench.losses import set_prediction
from bench.losses.set_prediction import SetPrediction
from methods.base import Output
from methods.randomness import image_keys, uniform

POINTS = 16
SIZE = 12
CLASSES = 5


def targets(ignored: bool = True, num_classes: int = CLASSES) -> Tensor:
    """Four images of blocks: of two to all labels, the last one of a single label."""
    generator = torch.Generator().manual_seed(8)
    target = torch.randint(0, num_classes, (4, 4, 3), generator=generator, dtype=torch.uint8)
    target[1].clamp_(max=1)
    target[3] = 2
    target = target.repeat_interleave(SIZE // 4, dim=1).repeat_interleave(SIZE // 3, dim=2)
    if ignored:
        target[0, 3:7] = 255
        target[1][torch.rand(SIZE, SIZE, generator=generator) < 0.5] = 255
    return target


def outputs(queries: int = 4, num_classes: int = CLASSES, size: int = SIZE, batch: int = 4) -> Output:
    generator = torch.Generator().manual_seed(9)
    masks = 2 * torch.randn(batch, queries, size, size, generator=generator)
    classes = torch.randn(batch, queries, num_classes + 1, generator=generator)
    return Output(masks.requires_grad_(), classes.requires_grad_())


def keys_of(batch: int, step: int = 0) -> Tensor:
    return image_keys(0, step, range(batch))


@pytest.fixture
def fixed_points(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], Tensor]:
    """Points that depend on the key and their number alone, with what was drawn by (key, number)."""
    drawn: dict[tuple[int, int], Tensor] = {}

    def draw(keys: Tensor, shape: tuple[int, int], salt: int) -> Tensor:
        for key in keys.tolist():
            generator = torch.Generator().manual_seed(abs(key) % 2**31 + shape[0])
            drawn.setdefault((key, shape[0]), torch.rand(shape, generator=generator))
        return torch.stack([drawn[key, shape[0]] for key in keys.tolist()])

    monkeypatch.setattr(set_prediction, "uniform", draw)
    return drawn


def read(values: Tensor, point: list[float]) -> Tensor:
    """A map (H, W) at one point: the sum over the four pixels around it."""
    x, y = (min(max(position * SIZE - 0.5, 0), SIZE - 1) for position in point)
    column, row = min(int(x), SIZE - 2), min(int(y), SIZE - 2)
    x, y = x - column, y - row
    upper, lower = values[row], values[row + 1]
    above = (1 - x) * upper[column] + x * upper[column + 1]
    return (1 - y) * above + y * ((1 - x) * lower[column] + x * lower[column + 1])


def pair_terms(mask: Tensor, target: Tensor, label: int, points: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice of one mask and one segment, point by point."""
    entropy = weight = overlap = sizes = torch.zeros((), dtype=torch.float64)
    counts, segment = (target != 255).double(), (target == label).double()
    for point in points:
        v = read(counts, point)
        if v < 1e-9:
            continue
        t, p = read(segment, point) / v, read(mask, point).sigmoid()
        entropy = entropy - v * (t * p.log() + (1 - t) * (1 - p).log())
        weight, overlap, sizes = weight + v, overlap + v * t * p, sizes + v * (t + p)
    return entropy / weight.clamp(min=1e-9), 1 - (2 * overlap + 1) / (sizes + 1)


def cheapest(cost: dict[tuple[int, int], float], queries: int, labels: list[int]) -> list[tuple[int, int]]:
    pairs = min(queries, len(labels))
    every = [
        list(zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(queries), pairs)
        for order in itertools.permutations(labels, pairs)
    ]
    return min(every, key=lambda assignment: sum(cost[pair] for pair in assignment))


def reference(masks, classes, target, to_match, to_compare, loss_weights=(1, 1, 1), match_weights=(1, 5, 5)) -> Tensor:
    """The loss of one image, in float64: masks (N, S, S), classes (N, K + 1), target (S, S), points (P, 2)."""
    labels = sorted(set(target.flatten().tolist()) - {255})
    queries, nothing = classes.shape[0], classes.shape[1] - 1
    if not labels:
        return 0 * masks.sum()
    chances = classes.softmax(-1)
    cost = {}
    for query, label in itertools.product(range(queries), labels):
        terms = (-chances[query, label], *pair_terms(masks[query].detach(), target, label, to_match.tolist()))
        cost[query, label] = sum(w * term.item() for w, term in zip(match_weights, terms, strict=True))
    pairs = dict(cheapest(cost, queries, labels))
    weights = [1.0 if query in pairs else 0.1 for query in range(queries)]
    class_loss = sum(-w * chances[q, pairs.get(q, nothing)].log() for q, w in enumerate(weights)) / sum(weights)
    entropy_sum = dice_sum = 0.0
    candidates, others = to_compare[: 3 * POINTS].tolist(), to_compare[3 * POINTS :].tolist()
    usable = [point for point in candidates if read((target != 255).double(), point) > 1e-9]
    for query, label in pairs.items():
        nearest = sorted(usable, key=lambda point: abs(read(masks[query].detach(), point).item()))
        entropy, dice = pair_terms(masks[query], target, label, nearest[: POINTS * 3 // 4] + others)
        entropy_sum, dice_sum = entropy_sum + entropy, dice_sum + dice
    on_class, on_mask, on_dice = loss_weights
    return on_class * class_loss + (on_mask * entropy_sum + on_dice * dice_sum) / len(labels)


@pytest.mark.parametrize("ignored", [False, True], ids=["all pixels", "ignored pixels"])
@pytest.mark.parametrize(
    ("queries", "weights"),
    [
        (1, {}),
        (3, {}),
        (5, {}),
        (6, {"loss_weights": (10.0, 5.0, 2.0), "match_weights": (2.0, 0.5, 3.0)}),
        (4, {"loss_weights": (0.0, 0.0, 1.0), "match_weights": (0.0, 1.0, 0.0)}),
    ],
    ids=["one query", "too few queries", "as many queries", "weights", "zero weights"],
)
def test_values_and_gradients_are_the_references(fixed_points, queries, weights, ignored) -> None:
    output, target, keys = outputs(queries), targets(ignored), keys_of(4)
    losses = SetPrediction(points=POINTS, **weights)(output, target, keys)
    losses.sum().backward()
    assert losses.shape == (4,) and losses.dtype == torch.float32
    assert len(fixed_points) == 8
    slow = Output(*(value.detach().double().requires_grad_() for value in (output.masks, output.classes)))
    for image, key in enumerate(keys.tolist()):
        points = (fixed_points[key, POINTS], fixed_points[key, 13 * POINTS // 4])
        expected = reference(slow.masks[image], slow.classes[image], target[image], *points, **weights)
        assert losses[image].item() == pytest.approx(expected.item(), rel=2e-5)
        expected.backward()
    for ours, theirs in ((output.masks.grad, slow.masks.grad), (output.classes.grad, slow.classes.grad)):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("equal", [False, True], ids=["random queries", "queries that are copies"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_batch_equals_accumulated_micro_batches(size: int, equal: bool) -> None:
    target, keys, loss = targets(), keys_of(4), SetPrediction(points=200)
    output = outputs(queries=5)
    if equal:
        output = Output(
            *(v.detach()[:, :1].expand_as(v).clone().requires_grad_() for v in (output.masks, output.classes))
        )
    together = loss(output, target, keys)
    together.sum().backward()
    alone = Output(*(value.detach().clone().requires_grad_() for value in (output.masks, output.classes)))
    for start in range(0, 4, size):
        part = slice(start, start + size)
        losses = loss(Output(alone.masks[part], alone.classes[part]), target[part], keys[part])
        torch.testing.assert_close(losses, together[part], rtol=1e-6, atol=0)
        losses.sum().backward()
    assert output.masks.grad.abs().sum() > 0
    torch.testing.assert_close(alone.masks.grad, output.masks.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(alone.classes.grad, output.classes.grad, rtol=1e-5, atol=1e-8)


def test_points_are_functions_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    output, target, loss = outputs(), targets(), SetPrediction(points=POINTS)
    first = loss(output, target, keys_of(4))
    torch.manual_seed(99)
    assert torch.equal(loss(output, target, keys_of(4)), first)
    other = loss(output, target, keys_of(4, step=1))
    assert (other != first).all()
    mixed = torch.stack([keys_of(4)[0], *keys_of(4, step=1)[1:]])
    assert torch.equal(loss(output, target, mixed), torch.cat([first[:1], other[1:]]))
    salts = []
    monkeypatch.setattr(set_prediction, "uniform", lambda *draw: salts.append(draw[2]) or uniform(*draw))
    loss(output, target, keys_of(4))
    assert len(set(salts)) == len(salts) == 2


@given(st.permutations(range(4)), st.integers(0, 2**31))
def test_the_order_of_queries_does_not_matter(order: list[int], step: int) -> None:
    output, target, keys, loss = outputs(), targets(), keys_of(4, step), SetPrediction(points=POINTS)
    shuffled = Output(output.masks[:, order], output.classes[:, order])
    torch.testing.assert_close(loss(shuffled, target, keys), loss(output, target, keys), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("void", [[1], [0, 1, 2, 3]], ids=["one image", "all images"])
def test_an_image_in_which_nothing_counts_has_no_loss(void: list[int]) -> None:
    output, target, keys, loss = outputs(), targets(), keys_of(4), SetPrediction(points=POINTS)
    before = loss(output, target, keys)
    target[void] = 255
    losses = loss(output, target, keys)
    losses.mean().backward()
    others = [image for image in range(4) if image not in void]
    assert losses[void].tolist() == [0.0] * len(void)
    assert torch.equal(losses[others], before[others])
    for gradient in (output.masks.grad, output.classes.grad):
        assert gradient.isfinite().all() and not gradient[void].any()
        assert gradient[others].flatten(1).any(1).all()


def test_a_segment_that_no_point_meets_teaches_its_class_only() -> None:
    target = torch.full((1, 64, 64), 255, dtype=torch.uint8)
    target[0, 40, 21] = 3
    output = outputs(queries=2, size=64, batch=1)
    loss = SetPrediction(points=4)(output, target, keys_of(1))
    loss.sum().backward()
    matched = -output.classes[0].log_softmax(-1)
    by_query = [(matched[q, 3] + 0.1 * matched[1 - q, CLASSES]) / 1.1 for q in range(2)]
    likely = int(output.classes.softmax(-1)[0, :, 3].argmax())
    assert loss.item() == pytest.approx(by_query[likely].item(), rel=1e-5)
    assert not output.masks.grad.any() and output.classes.grad.isfinite().all()


def test_logits_of_ignored_pixels_have_no_influence() -> None:
    target, keys, loss = targets(ignored=False), keys_of(4), SetPrediction(points=POINTS)
    target[:, 4:] = 255
    output = outputs()
    changed = output.masks.detach().clone()
    changed[:, :, 5:] = 0.0  # as uncertain as can be
    changed.requires_grad_()
    losses = loss(Output(changed, output.classes), target, keys)
    assert torch.equal(losses, loss(output, target, keys))
    losses.sum().backward()
    assert changed.grad[:, :, :4].any() and not changed.grad[:, :, 5:].any()


def test_a_perfect_prediction_loses_next_to_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, 4, (2, 2, 2), generator=generator, dtype=torch.uint8)
    target = target.repeat_interleave(128, dim=1).repeat_interleave(128, dim=2)
    right = 20.0 * F.one_hot(torch.tensor([1, 3, 0, 2, 4, 4]), 5).expand(2, -1, -1)
    masks = torch.stack([12.0 * (target == label) - 6 for label in (1, 3, 0, 2, 9, 9)], dim=1)
    present = torch.stack([(target == label).flatten(1).any(1) for label in (1, 3, 0, 2)], dim=1)
    right = torch.cat([torch.where(present[..., None], right[:, :4], right[:, 4:5]), right[:, 4:]], dim=1)
    loss, keys = SetPrediction(), keys_of(2)
    perfect = loss(Output(masks, right), target, keys)
    assert (perfect < 0.1).all()  # masks change within a pixel, in which no logit is right everywhere
    wrong_masks = loss(Output(masks.roll(100, dims=2), right), target, keys)
    wrong_classes = loss(Output(masks, right.roll(1, dims=1)), target, keys)
    assert (wrong_masks > 1).all() and (wrong_classes > 1).all()
    whole = torch.full((1, 16, 16), 3, dtype=torch.uint8)
    output = Output(torch.full((1, 2, 16, 16), 15.0), torch.tensor([[[0, 0, 0, 20.0, 0], [0, 0, 0, 0, 20]]]))
    assert loss(output, whole, keys[:1]).item() < 1e-4


def test_uniform_points_tend_to_the_value_of_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over keys against the integral over the image, on a grid of 8 x 8 places a pixel."""
    monkeypatch.setattr(set_prediction, "IMPORTANCE", 0.0)
    target = targets()[:1]
    labels = sorted(set(target.flatten().tolist()) - {255})
    generator = torch.Generator().manual_seed(6)
    masks = torch.stack([2.0 * (target == label) - 1 for label in labels], dim=1)
    masks = masks + torch.randn(masks.shape, generator=generator)
    classes = 9 * F.one_hot(torch.tensor([labels]), CLASSES + 1).float()
    copies, output = 256, Output(masks, classes)
    many = Output(masks.expand(copies, -1, -1, -1), classes.expand(copies, -1, -1))
    losses = SetPrediction(points=500)(many, target.expand(copies, -1, -1), keys_of(copies))

    axis = (torch.arange(8 * SIZE) + 0.5) / (8 * SIZE)
    grid = 2 * torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None] - 1

    def fine(maps: Tensor) -> Tensor:
        return F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False)[0]

    logits, v = fine(output.masks), fine((target != 255)[None])
    t = fine(torch.stack([target == label for label in labels], dim=1)) / v.clamp(min=1e-9)
    p, pixels = logits.sigmoid(), (1, 2)
    entropy = (v * F.binary_cross_entropy_with_logits(logits, t, reduction="none")).sum(pixels) / v.sum()
    dice = 1 - 2 * (v * p * t).sum(pixels) / (v * (p + t)).sum(pixels)
    on_classes = F.cross_entropy(classes[0], torch.tensor(labels))
    expected = (on_classes + entropy.mean() + dice.mean()).item()
    error = losses.std().item() / math.sqrt(copies)
    assert error < 0.005
    assert abs(losses.mean().item() - expected) < 4 * error + 0.005  # Dice is a ratio, its "+ 1" counts among 500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_for_halves_and_under_autocast(dtype: torch.dtype) -> None:
    target, keys, loss = targets(), keys_of(4), SetPrediction(points=POINTS)
    half = Output(*(value.detach().to(dtype).requires_grad_() for value in (outputs().masks, outputs().classes)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss(half, target, keys)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert torch.equal(losses, loss(Output(half.masks.float(), half.classes.float()), target, keys))
    for value in (half.masks, half.classes):
        assert value.grad.dtype == dtype and value.grad.isfinite().all() and value.grad.any()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_are_finite(size: float) -> None:
    output = outputs()
    output = Output((size * output.masks).detach().requires_grad_(), (size * output.classes).detach().requires_grad_())
    losses = SetPrediction(points=POINTS)(output, targets(), keys_of(4))
    losses.sum().backward()
    assert losses.isfinite().all() and output.masks.grad.isfinite().all() and output.classes.grad.isfinite().all()


@pytest.mark.parametrize("what", ["masks", "classes"])
def test_nan_reaches_the_loss_of_its_image_alone(what: str) -> None:
    output = outputs()
    with torch.no_grad():
        getattr(output, what)[2] = torch.nan
    losses = SetPrediction(points=POINTS)(output, targets(), keys_of(4))
    assert losses.isnan().tolist() == [False, False, True, False]


def test_too_many_segments_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    target, keys = targets(), keys_of(4)
    most = max(len(set(image.flatten().tolist()) - {255}) for image in target)
    with caplog.at_level(logging.WARNING):
        SetPrediction(points=POINTS)(outputs(queries=most), target, keys)
        assert not caplog.records
        loss = SetPrediction(points=POINTS)
        for _ in range(3):
            assert loss(outputs(queries=most - 1), target, keys).isfinite().all()
    (record,) = caplog.records
    assert f"{most} segments" in record.message and f"{most - 1} mask queries" in record.message
    assert f"mask_tokens = {most}" in record.message


def test_what_does_not_fit_is_refused() -> None:
    output, target, keys, loss = outputs(), targets(), keys_of(4), SetPrediction(points=POINTS)
    with pytest.raises(ValueError, match="no class logits.*num_classes > 1"):
        loss(Output(output.masks), target, keys)
    with pytest.raises(ValueError, match=r"\(4, 4, 12, 12\).*\(3, 4, 6\)"):
        loss(Output(output.masks, output.classes[:3]), target, keys)
    with pytest.raises(ValueError, match=r"\(4, 4, 12, 12\).*\(4, 12, 11\).*\(B, H, W\)"):
        loss(output, target[..., :11], keys)
    with pytest.raises(ValueError, match=r"\(4, 1, 12, 12\)"):
        loss(output, target[:, None], keys)
    with pytest.raises(ValueError, match=r"keys \(3,\)"):
        loss(output, target, keys[:3])
    with pytest.raises(ValueError, match="torch.int64; it must be torch.uint8"):
        loss(output, target.long(), keys)
    target[2, 5, 5] = CLASSES
    with pytest.raises(ValueError, match="image 2 of the batch has label 5, but the output is for 5 classes"):
        loss(output, target, keys)
