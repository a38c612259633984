"""A test set's scores: rows, aggregation, refusals, and what importing costs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import py_sod_metrics
import pytest
from scipy.ndimage import gaussian_filter

from bench.metrics import (
    PROTOCOLS,
    ClassScores,
    Scores,
    metrics_of,
    score_image,
    scores_of,
    validation_of,
)

ROOT = Path(__file__).resolve().parents[2]
BINARY = [
    "s_measure", "e_measure_mean", "e_measure_max", "e_measure_adaptive", "weighted_f_measure_b1",
    "weighted_f_measure_b03", "mae", "ber_image", "ber_pooled", "iou", "dice", "accuracy", "t_jaccard",
]  # fmt: skip
SEVERAL = ["accuracy", "accuracy_foreground", "miou_all", "miou_foreground", "iou", "label_mae", "mber"]
PER_IMAGE = [key for key, metric in metrics_of(1).items() if metric.aggregate == "mean"]
COUNTS = [prefix + name for prefix in ("", "ber_") for name in ("tp", "fp", "fn", "tn")]


def _images(protocol: str, number: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Objects of very different size, so that a mean over images is not a pooled value."""
    rng = np.random.default_rng(3)
    images = []
    for index in range(number):
        mask = np.zeros((24, 30), np.uint8)
        mask[4 : 6 + 4 * index, 5 : 8 + 5 * index] = 1
        prediction = (0.8 * gaussian_filter(mask.astype(float), 2) + 0.2 * rng.random(mask.shape)).astype(np.float32)
        images.append((prediction if protocol == "paper" else (prediction * 255).astype(np.uint8), mask))
    return images


def _scored(protocol: str) -> Scores:
    scores = Scores(protocol)
    for index, image in enumerate(_images(protocol)):
        scores.add(f"image{index}", *image)
    return scores


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows(protocol: str) -> None:
    scores = Scores(protocol)
    for index, (prediction, mask) in enumerate(_images(protocol)):
        row = scores.add(f"image{index}", prediction, mask)
        assert row is scores.rows[-1]
        assert set(row) == {"image", "protocol", *PER_IMAGE, *COUNTS}
        assert (row["image"], row["protocol"]) == (f"image{index}", protocol)
        assert {**score_image(prediction, mask, protocol)[0], "image": f"image{index}"} == row
        assert all(type(row[key]) is float for key in PER_IMAGE) and all(type(row[key]) is int for key in COUNTS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mean_averages_images(protocol: str) -> None:
    scores = _scored(protocol)
    means = scores.mean()
    assert list(means) == BINARY
    for key in PER_IMAGE:
        assert means[key] == pytest.approx(np.mean([row[key] for row in scores.rows]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pooled_ber_counts_the_pixels_of_the_whole_set(protocol: str) -> None:
    scores = _scored(protocol)
    images = _images(protocol)
    grey = np.concatenate([prediction.ravel() for prediction, _ in images]) * (255.0 if protocol == "paper" else 1.0)
    truth = np.concatenate([mask.ravel() for _, mask in images]) == 1
    positive_error = np.mean(grey[truth] <= 125)
    negative_error = np.mean(grey[~truth] > 125)
    means = scores.mean()
    assert means["ber_pooled"] == pytest.approx((positive_error + negative_error) / 2)
    assert abs(means["ber_pooled"] - means["ber_image"]) > 0.01


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_maximum_e_measure_is_that_of_the_averaged_curve(protocol: str) -> None:
    means = _scored(protocol).mean()
    reference = py_sod_metrics.Emeasure()
    best_of_each = []
    for prediction, mask in _images(protocol):
        grey = prediction.astype(np.float64) * 255 if protocol == "paper" else prediction
        reference.step(grey, mask * np.uint8(255))
        best_of_each.append(score_image(prediction, mask, protocol)[1].max())
    curve = reference.get_results()["em"]["curve"]
    assert means["e_measure_max"] == pytest.approx(curve.max(), abs=1e-12)
    assert means["e_measure_mean"] == pytest.approx(curve.mean(), abs=1e-12)
    assert means["e_measure_mean"] < means["e_measure_max"] < np.mean(best_of_each)


def test_one_image_is_its_own_mean() -> None:
    (image,) = _images("paper", 1)
    scores = Scores("paper")
    row = scores.add("a", *image)
    means = scores.mean()
    assert {key: means[key] for key in PER_IMAGE} == {key: row[key] for key in PER_IMAGE}
    assert means["ber_pooled"] == row["ber_image"]
    assert means["e_measure_max"] == score_image(*image, "paper")[1].max()


def test_metrics_by_number_of_classes() -> None:
    assert list(metrics_of(1)) == BINARY and list(metrics_of(2)) == list(metrics_of(12)) == SEVERAL
    binary, several = metrics_of(1), metrics_of(3)
    assert all(metric.key == key for metrics in (binary, several) for key, metric in metrics.items())
    for key in binary.keys() & several.keys():
        assert (binary[key].label, binary[key].better) == (several[key].label, several[key].better)
    aggregates = {key: metric.aggregate for key, metric in metrics_of(3).items()}
    assert (aggregates["iou"], aggregates["accuracy"], aggregates["label_mae"]) == ("classes", "set", "mean")
    metrics_of(1).clear()
    assert list(metrics_of(1)) == BINARY


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_by_number_of_classes(protocol: str) -> None:
    binary, several = scores_of(protocol, 1), scores_of(protocol, 12)
    assert type(binary) is Scores and type(several) is ClassScores
    assert (binary.protocol, several.protocol, several.num_classes) == (protocol, protocol, 12)


@pytest.mark.parametrize("key", PER_IMAGE)
def test_validation_is_the_mean_under_the_paper_protocol(key: str) -> None:
    validation = validation_of(key, 1)
    for image in _images("paper"):
        validation.add(*image)
    values = [score_image(*image, "paper")[0][key] for image in _images("paper")]
    assert validation.value() == sum(values) / len(values)


@pytest.mark.parametrize("key", [key for key in SEVERAL if key != "iou"])
def test_validation_of_several_classes_is_the_sets_value(key: str) -> None:
    rng, validation, scores = np.random.default_rng(5), validation_of(key, 4), ClassScores("paper", 4)
    for size in (3, 9, 20):
        mask, prediction = rng.integers(0, 3, (2, size, 7)).astype(np.uint8)
        mask[:2] = 255
        validation.add(prediction, mask)
        scores.add(str(size), prediction, mask)
    assert validation.value() == scores.mean()[key] > 0


@pytest.mark.parametrize(
    ("key", "num_classes", "message"),
    [
        ("ber_pooled", 1, "'ber_pooled' needs the whole test set; per image there are: .*ber_image.*t_jaccard"),
        ("e_measure_max", 1, "e_measure_max.*ber_image"),
        ("diec", 1, "'diec'.*'dice'"),
        ("miou_all", 1, "'miou_all'.*Known: .*iou"),
        ("iou", 3, "'iou' is a value for each class.*: accuracy, accuracy_foreground, miou_all, .*label_mae, mber$"),
        ("dice", 3, "'dice'.*Known: accuracy, .*miou_all, miou_foreground.$"),
        ("miou_al", 3, "'miou_all'"),
        ("accuracy", 256, "2 to 255"),
    ],
)
def test_validation_refuses_what_is_no_number_or_no_such_metric(key: str, num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validation_of(key, num_classes)


def test_validation_of_nothing_is_no_improvement() -> None:
    values = [validation_of("iou", 1).value(), validation_of("miou_all", 3).value()]
    ignored = validation_of("miou_all", 3)
    ignored.add(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    for value in [*values, ignored.value()]:
        assert math.isnan(value)
        assert not any(metrics_of(3)["miou_all"].improves(value, best) for best in (None, 0.1))


def test_unknown_names() -> None:
    for call in (lambda: Scores("papers"), lambda: scores_of("papers", 3)):
        with pytest.raises(ValueError, match="'paper'"):
            call()
    with pytest.raises(ValueError, match="literature"):
        score_image(*_images("paper")[0], "litterature")


GOOD = np.full((3, 4), 0.25, np.float32)
GOOD[0, 0] = 0.75
MASK = np.eye(3, 4, dtype=np.uint8)


@pytest.mark.parametrize(
    ("protocol", "prediction", "mask", "message"),
    [
        ("paper", GOOD.astype(np.float64), MASK, "float64.*float32"),
        ("paper", (GOOD * 255).astype(np.uint8), MASK, "uint8.*float32"),
        ("literature", GOOD, MASK, "float32.*uint8"),
        ("paper", GOOD * 4, MASK, "3.0.*sigmoid"),
        ("paper", GOOD - 1, MASK, "-0.75.*sigmoid"),
        ("paper", np.where(GOOD > 0.5, np.float32("nan"), GOOD), MASK, "NaN"),
        ("paper", np.where(GOOD > 0.5, np.float32("inf"), GOOD), MASK, "inf.*sigmoid"),
        ("paper", GOOD, MASK * np.uint8(255), "255"),
        ("paper", GOOD, MASK.astype(bool), "bool.*uint8"),
        ("paper", GOOD, MASK.T, r"\(3, 4\).*\(4, 3\)"),
        ("paper", GOOD[None], MASK[None], r"\(1, 3, 4\)"),
        ("paper", GOOD[:1, :1], MASK[:1, :1], "two pixels"),
    ],
)
def test_bad_input_is_named(protocol: str, prediction: np.ndarray, mask: np.ndarray, message: str) -> None:
    scores = Scores(protocol)
    with pytest.raises(ValueError, match=f"image x7: .*{message}"):
        scores.add("x7", prediction, mask)
    assert scores.rows == []
    if protocol == "paper":
        with pytest.raises(ValueError, match=message):
            validation_of("iou", 1).add(prediction, mask)


def test_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="add"):
        Scores("paper").mean()


@pytest.mark.parametrize(
    ("key", "new", "best", "expected"),
    [
        ("iou", 0.5, None, True),
        ("iou", 0.5, 0.4, True),
        ("iou", 0.5, 0.5, False),
        ("iou", 0.4, 0.5, False),
        ("mae", 0.4, 0.5, True),
        ("mae", 0.5, 0.4, False),
        ("ber_image", 0.2, 0.3, True),
        ("miou_all", 0.5, 0.4, True),
        ("label_mae", 0.5, 0.4, False),
        ("iou", float("nan"), None, False),
        ("iou", float("nan"), 0.1, False),
        ("mae", float("nan"), 0.1, False),
    ],
)
def test_improves(key: str, new: float, best: float | None, expected: bool) -> None:
    metric = (metrics_of(1) | metrics_of(3))[key]
    assert metric.improves(new, best) is expected


def test_errors_are_lower_is_better() -> None:
    lower = {key for key, metric in (metrics_of(1) | metrics_of(3)).items() if metric.better == "lower"}
    assert lower == {"mae", "ber_image", "ber_pooled", "label_mae", "mber"}


def test_importing_and_cheap_metrics_load_no_scoring_library() -> None:
    program = (
        "import sys, numpy as np, bench.losses, bench.metrics as metrics\n"
        "metrics.validation_of('iou', 1).add(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8))\n"
        "metrics.validation_of('mber', 2).add(*np.zeros((2, 3, 3), np.uint8))\n"
        "heavy = {'py_sod_metrics', 'cv2', 'pandas', 'scipy', 'skimage'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr
