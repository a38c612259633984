"""Count-based metrics against loops, torchmetrics and their own algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.functional import classification

from bench.metrics import overlap

RNG = np.random.default_rng(20240131)
SHAPE = (9, 13)


def _one(row: int, column: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[row, column] = 1
    return mask


NOISE = RNG.random(SHAPE, dtype=np.float32)
MASK = (RNG.random(SHAPE) < 0.3).astype(np.uint8)
EMPTY, FULL = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
CASES = {
    "noise": (NOISE, MASK),
    "near": (0.2 * NOISE + 0.7 * MASK, MASK),
    "binary": (np.roll(MASK, 1, axis=1).astype(np.float32), MASK),
    "perfect": (MASK.astype(np.float32), MASK),
    "constant": (np.full(SHAPE, 0.495, np.float32), MASK),
    "all zero": (EMPTY.astype(np.float32), MASK),
    "empty mask": (NOISE, EMPTY),
    "empty, solved": (EMPTY.astype(np.float32), EMPTY),
    "full mask": (NOISE, FULL),
    "full, solved": (FULL.astype(np.float32), FULL),
    "one pixel": (NOISE, _one(4, 5)),
    "corner pixel": (NOISE, _one(8, 12)),
}
each_case = pytest.mark.parametrize("case", CASES)
each_kind = pytest.mark.parametrize("quantised", [False, True], ids=["paper", "literature"])


def _inputs(case: str, quantised: bool) -> tuple[np.ndarray, np.ndarray]:
    prediction, mask = CASES[case]
    return (np.round(prediction * 255).astype(np.uint8) if quantised else prediction.astype(np.float32)), mask


def _loop_counts(prediction: np.ndarray, mask: np.ndarray, level: float) -> dict[str, int]:
    counts = dict.fromkeys(("tp", "fp", "fn", "tn"), 0)
    for value, truth in zip(prediction.ravel().tolist(), mask.ravel().tolist(), strict=True):
        predicted = (value if prediction.dtype == np.uint8 else value * 255) > level
        counts[("t" if predicted == bool(truth) else "f") + ("p" if predicted else "n")] += 1
    return counts


@each_kind
@each_case
def test_counts_equal_a_loop_over_pixels(case: str, quantised: bool) -> None:
    prediction, mask = _inputs(case, quantised)
    row = overlap.scores(prediction, mask)
    assert {key: row[key] for key in ("tp", "fp", "fn", "tn")} == _loop_counts(prediction, mask, 127.5)
    assert {key: row[f"ber_{key}"] for key in ("tp", "fp", "fn", "tn")} == _loop_counts(prediction, mask, 125)


@each_kind
@each_case
def test_ratios_equal_torchmetrics(case: str, quantised: bool) -> None:
    prediction, mask = _inputs(case, quantised)
    row = overlap.scores(prediction, mask)
    grey = prediction.astype(np.float64) * (1 if quantised else 255)
    truth = torch.from_numpy(mask.astype(np.int64))
    predicted = torch.from_numpy((grey > 127.5).astype(np.int64))
    shadow = torch.from_numpy((grey > 125).astype(np.int64))
    macro = classification.multiclass_accuracy(
        shadow[None], truth[None], num_classes=2, average="macro", multidim_average="samplewise"
    )
    assert row["ber_image"] == pytest.approx(1 - macro.item(), abs=1e-6)
    assert row["accuracy"] == pytest.approx(classification.binary_accuracy(predicted, truth).item(), abs=1e-6)
    if case == "empty, solved":
        assert classification.binary_jaccard_index(predicted, truth).item() == 0
        assert row["iou"] == row["dice"] == row["t_jaccard"] == 1
    else:
        assert row["iou"] == pytest.approx(classification.binary_jaccard_index(predicted, truth).item(), abs=1e-6)
        assert row["dice"] == pytest.approx(classification.binary_f1_score(predicted, truth).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "half", "shadow"),
    [
        (np.float32(0.5), 0, 1),
        (np.nextafter(np.float32(0.5), np.float32(1)), 1, 1),
        (np.float32(125 / 255), 0, 0),
        (np.float32(126 / 255), 0, 1),
        (np.uint8(125), 0, 0),
        (np.uint8(126), 0, 1),
        (np.uint8(127), 0, 1),
        (np.uint8(128), 1, 1),
    ],
)
def test_thresholds_are_strict(value: np.generic, half: int, shadow: int) -> None:
    row = overlap.scores(np.full((2, 2), value), np.ones((2, 2), np.uint8))
    assert (row["tp"], row["ber_tp"]) == (4 * half, 4 * shadow)


def test_all_grey_levels_fall_on_the_same_side_in_both_protocols() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = np.ones((16, 16), np.uint8)
    assert overlap.scores((grey / 255).astype(np.float32), mask) == overlap.scores(grey, mask)


@pytest.mark.parametrize(("true_pixels", "expected"), [(65, 0.65), (64, 0.0), (100, 1.0)])
def test_t_jaccard_keeps_065_and_drops_what_is_below(true_pixels: int, expected: float) -> None:
    assert overlap.t_jaccard(overlap.Counts(true_pixels, 0, 100 - true_pixels, 50)) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (overlap.Counts(0, 0, 0, 10), 0.0),  # empty, solved
        (overlap.Counts(10, 0, 0, 0), 0.0),  # full, solved
        (overlap.Counts(0, 1, 0, 9), 0.55),  # a class that is only predicted has recall 0
        (overlap.Counts(9, 0, 1, 0), 0.55),
        (overlap.Counts(0, 0, 5, 5), 0.5),
        (overlap.Counts(3, 2, 1, 4), 1 - (3 / 4 + 4 / 6) / 2),
    ],
)
def test_ber_of_absent_classes(counts: overlap.Counts, expected: float) -> None:
    assert overlap.ber(counts) == pytest.approx(expected)


images = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)),
    )
)


@settings(deadline=None)
@given(images)
def test_bounds_and_algebra(image: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, mask = image
    row = overlap.scores(prediction, mask)
    assert all(0 <= row[key] <= 1 for key in overlap.PER_IMAGE)
    assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == mask.size
    assert row["iou"] <= row["dice"]
    assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
    assert row["t_jaccard"] == (row["iou"] if row["iou"] >= 0.65 else 0)
    swapped = overlap.count(1 - (prediction > 0.5).astype(np.float32), 1 - mask, overlap.HALF)
    assert swapped == (row["tn"], row["fn"], row["fp"], row["tp"])


@settings(deadline=None)
@given(images)
def test_perfect_prediction_is_optimal(image: tuple[np.ndarray, np.ndarray]) -> None:
    mask = image[1]
    row = overlap.scores(mask * np.uint8(255), mask)
    assert [row[key] for key in ("iou", "dice", "accuracy", "t_jaccard", "ber_image")] == [1, 1, 1, 1, 0]
    assert all(overlap.score(key, mask.astype(np.float32), mask) == row[key] for key in overlap.PER_IMAGE)
