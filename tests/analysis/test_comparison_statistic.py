"""Metrics from sums over images against ``bench.metrics``, which scores image after image with exact integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.comparison.statistic import statistic, truth
from bench.metrics import PROTOCOLS
from bench.metrics.classes import ClassScores, score_classes
from bench.metrics.overlap import Counts, ber

CLASSES = ("background", "cup", "door", "window")
SEVERAL = ("accuracy", "accuracy_foreground", "miou_all", "miou_foreground", "label_mae", "mber", "iou:cup")


@st.composite
def label_maps(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and masks of a few pixels; classes that occur nowhere and images without a pixel that counts."""
    labels = st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=4, max_size=4)
    images = draw(st.lists(st.tuples(labels, labels), min_size=1, max_size=5))
    return [
        (np.array(prediction, np.uint8).reshape(2, 2) % 4, np.array(mask, np.uint8).reshape(2, 2))
        for prediction, mask in images
    ]


def scored(images: Sequence[tuple[np.ndarray, np.ndarray]], protocol: str) -> ClassScores:
    scores = ClassScores(protocol, len(CLASSES))
    for number, (prediction, mask) in enumerate(images):
        scores.enter(str(number), score_classes(prediction, mask, protocol, len(CLASSES)))
    return scores


def expected(scores: ClassScores, metric: str) -> float:
    value: Any = scores.mean()[metric.partition(":")[0]]
    value = value[CLASSES.index("cup")] if isinstance(value, list) else value
    return np.nan if value is None else value


@settings(deadline=None, max_examples=60)
@given(label_maps(), st.sampled_from(PROTOCOLS), st.data())
def test_several_classes_as_the_benchmark_scores_them(
    images: list[tuple[np.ndarray, np.ndarray]], protocol: str, data: st.DataObject
) -> None:
    frame = pd.DataFrame(scored(images, protocol).rows)
    drawn = data.draw(st.lists(st.sampled_from(range(len(images))), min_size=len(images), max_size=len(images)))
    weights = np.bincount(drawn, minlength=len(images)).astype(float)
    for metric in SEVERAL:
        found = statistic(metric, frame, protocol=protocol, classes=CLASSES)
        assert found.score() == pytest.approx(expected(scored(images, protocol), metric), abs=1e-12, nan_ok=True)
        again = expected(scored([images[number] for number in drawn], protocol), metric)
        assert found.resampled(weights[None]) == pytest.approx([again], abs=1e-12, nan_ok=True)


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 4).filter(any), min_size=1, max_size=5))
def test_pooled_balanced_error_as_the_benchmark_scores_it(counts: list[tuple[int, int, int, int]]) -> None:
    frame = pd.DataFrame(counts, columns=["ber_tp", "ber_fp", "ber_fn", "ber_tn"])
    found = statistic("ber_pooled", frame, protocol="paper", classes=())
    assert found.score() == pytest.approx(ber(Counts(*frame.sum())), abs=1e-12)
    assert found.per_image() == pytest.approx([ber(Counts(*image)) for image in counts], abs=1e-12)


def test_mean_leaves_out_images_without_a_value() -> None:
    frame = pd.DataFrame({"iou": [0.2, np.nan, 0.6]})
    found = statistic("iou", frame, protocol="paper", classes=())
    assert found.is_mean and found.score() == pytest.approx(0.4)
    assert np.array_equal(found.per_image(), [0.2, np.nan, 0.6], equal_nan=True)
    assert found.resampled(np.array([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0]]))[1] == pytest.approx(1.4 / 3)
    assert np.isnan(found.resampled(np.array([[0.0, 3.0, 0.0]]))).all()


def test_an_image_alone_is_scored_over_the_classes_that_it_holds() -> None:
    matrix = np.zeros((4, 4), int)
    matrix[1, 1], matrix[2, 1], matrix[2, 2] = 2, 1, 1  # IoU of class 1: 2 of 3 pixels, of class 2: 1 of 2
    frame = pd.DataFrame({"confusion": [matrix.ravel()]})
    found = statistic("miou_all", frame, protocol="paper", classes=CLASSES)
    assert found.per_image() == pytest.approx([(2 / 3 + 1 / 2) / 2])
    assert found.score() == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert np.isnan(statistic("iou:window", frame, protocol="paper", classes=CLASSES).per_image()).all()


def test_sizes_of_classes_do_not_depend_on_the_prediction() -> None:
    binary = pd.DataFrame({"tp": [3, 0], "fp": [1, 0], "fn": [2, 5], "tn": [4, 5]})
    assert truth(binary).tolist() == [[5, 5], [5, 5]]
    several = pd.DataFrame({"confusion": [np.array([1, 2, 3, 4]), np.array([0, 3, 7, 0])]})
    assert truth(several).tolist() == [[3, 7], [3, 7]]


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        statistic("dice", pd.DataFrame({"iou": [0.5]}), protocol="paper", classes=())
    with pytest.raises(KeyError):
        statistic("ber_pooled", pd.DataFrame({"iou": [0.5]}), protocol="paper", classes=())
