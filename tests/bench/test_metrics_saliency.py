"""Grey-map metrics against pysodmetrics used as its users do, and against formulas written out here."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import py_sod_metrics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.ndimage import gaussian_filter

from bench.metrics import saliency

RNG = np.random.default_rng(7)
SHAPE = (37, 46)
EPS = np.spacing(1)


def _rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def _blurred(mask: np.ndarray, sigma: float = 3) -> np.ndarray:
    noise = RNG.normal(0, 0.05, mask.shape)
    return np.clip(gaussian_filter(mask.astype(np.float64), sigma) + noise, 0.02, 0.97).astype(np.float32)


BOX = _rectangle(8, 22, 10, 31)
TWO = BOX | _rectangle(28, 35, 38, 44)
NOISE = RNG.random(SHAPE, dtype=np.float32)
EMPTY, FULL = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
CASES = {
    "smooth": (_blurred(TWO), TWO),
    "narrow range": (0.4 + 0.2 * _blurred(BOX), BOX),
    "noise": (NOISE, (RNG.random(SHAPE) < 0.3).astype(np.uint8)),
    "binary": (np.roll(TWO, 3, axis=1).astype(np.float32), TWO),
    "perfect": (TWO.astype(np.float32), TWO),
    "constant": (np.full(SHAPE, 0.3, np.float32), BOX),
    "all zero": (EMPTY.astype(np.float32), BOX),
    "empty mask": (NOISE, EMPTY),
    "empty, solved": (EMPTY.astype(np.float32), EMPTY),
    "full mask": (NOISE, FULL),
    "full, solved": (FULL.astype(np.float32), FULL),
    "half": (NOISE, _rectangle(0, 37, 0, 20)),
    "one pixel": (NOISE, _rectangle(11, 12, 7, 8)),
    "top left pixel": (NOISE, _rectangle(0, 1, 0, 1)),
    "top right pixel": (NOISE, _rectangle(0, 1, 45, 46)),
    "bottom left pixel": (NOISE, _rectangle(36, 37, 0, 1)),
    "bottom right pixel": (NOISE, _rectangle(36, 37, 45, 46)),
    "last row": (_blurred(BOX), _rectangle(36, 37, 0, 46)),
}
LAST_LINE = ("top right pixel", "bottom left pixel", "bottom right pixel", "last row")
each_case = pytest.mark.parametrize("case", CASES)
each_kind = pytest.mark.parametrize("quantised", [False, True], ids=["paper", "literature"])


def _inputs(case: str, quantised: bool) -> tuple[np.ndarray, np.ndarray]:
    prediction, mask = CASES[case]
    return (np.round(prediction * 255).astype(np.uint8) if quantised else prediction.astype(np.float32)), mask


def _pysodmetrics(prediction: np.ndarray, mask: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """The package's documented use: grey levels of 0..255 (here also fractional ones), masks of 0 and 255."""
    grey = prediction if prediction.dtype == np.uint8 else prediction.astype(np.float64) * 255
    measures = {
        "s": py_sod_metrics.Smeasure(),
        "e": py_sod_metrics.Emeasure(),
        "b1": py_sod_metrics.WeightedFmeasure(),
        "b03": py_sod_metrics.WeightedFmeasure(beta=0.3),
        "mae": py_sod_metrics.MAE(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for measure in measures.values():
            measure.step(pred=grey, gt=mask * np.uint8(255))
    alignment = measures["e"].get_results()["em"]
    return {
        "s_measure": measures["s"].get_results()["sm"],
        "e_measure_mean": alignment["curve"].mean(),
        "e_measure_adaptive": alignment["adp"],
        "weighted_f_measure_b1": measures["b1"].get_results()["wfm"],
        "weighted_f_measure_b03": measures["b03"].get_results()["wfm"],
        "mae": measures["mae"].get_results()["mae"],
    }, alignment["curve"]


def _stretched(prediction: np.ndarray) -> np.ndarray:
    values = prediction.astype(np.float64) / (255 if prediction.dtype == np.uint8 else 1)
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else values


def _written_out_s(values: np.ndarray, mask: np.ndarray) -> float:
    """Structure measure from sums over lists of pixels; quadrants without a pixel are left out."""
    height, width = mask.shape
    if not mask.any():
        return 1 - values.sum() / values.size
    if mask.all():
        return values.sum() / values.size

    def likeness(pixels: np.ndarray) -> float:
        mean = pixels.sum() / len(pixels)
        spread = (((pixels - mean) ** 2).sum() / (len(pixels) - 1)) ** 0.5 if len(pixels) > 1 else 0.0
        return 2 * mean / (mean**2 + 1 + spread)

    share = mask.sum() / mask.size
    objects = share * likeness(values[mask == 1]) + (1 - share) * likeness(1 - values[mask == 0])
    rows, columns = np.nonzero(mask)
    below, right = round(rows.sum() / len(rows)) + 1, round(columns.sum() / len(columns)) + 1
    regions = 0.0
    for vertical in (slice(0, below), slice(below, height)):
        for horizontal in (slice(0, right), slice(right, width)):
            x, y = values[vertical, horizontal].ravel(), mask[vertical, horizontal].ravel().astype(float)
            if not x.size:
                continue
            mx, my, scale = x.mean(), y.mean(), max(x.size - 1, 1)
            above = 4 * mx * my * ((x - mx) * (y - my)).sum() / scale
            under = (mx**2 + my**2) * (((x - mx) ** 2).sum() + ((y - my) ** 2).sum()) / scale
            regions += x.size / mask.size * (above / under if above else float(under == 0))
    return max(0.0, (objects + regions) / 2)


def _written_out_e(binary: np.ndarray, mask: np.ndarray) -> float:
    """Enhanced alignment of one binary map, pixel by pixel."""
    scale = mask.size - 1
    if not mask.any():
        return (~binary).sum() / scale
    if mask.all():
        return binary.sum() / scale
    a, b = binary - binary.mean(), mask - mask.mean()
    alignment = 2 * a * b / (a**2 + b**2 + EPS)
    return ((1 + alignment) ** 2 / 4).sum() / scale


def _written_out_f(values: np.ndarray, box: tuple[int, int, int, int], mask: np.ndarray, squared: float) -> float:
    """Weighted F-measure of a rectangle, whose nearest pixel is found by clamping and is never tied."""
    top, bottom, left, right = box
    height, width = mask.shape
    error = np.abs(values - mask)
    spread, distance = np.empty(mask.shape), np.empty(mask.shape)
    for row in range(height):
        for column in range(width):
            near = min(max(row, top), bottom - 1), min(max(column, left), right - 1)
            spread[row, column] = error[near]
            distance[row, column] = np.hypot(row - near[0], column - near[1])
    smoothed, total = np.zeros(mask.shape), 0.0
    padded = np.pad(spread, 3)
    for down in range(-3, 4):
        for across in range(-3, 4):
            weight = np.exp(-(down**2 + across**2) / 50)
            total += weight
            smoothed += weight * padded[3 + down : 3 + down + height, 3 + across : 3 + across + width]
    inside = mask == 1
    error[inside] = np.minimum(error, smoothed / total)[inside]
    weighted = error * np.where(inside, 1, 2 - 0.5 ** (distance / 5))
    true_positives = inside.sum() - weighted[inside].sum()
    precision = true_positives / (true_positives + weighted[~inside].sum() + EPS)
    recall = 1 - weighted[inside].mean()
    return (1 + squared) * recall * precision / (recall + squared * precision + EPS)


@each_kind
@each_case
def test_equals_pysodmetrics(case: str, quantised: bool) -> None:
    prediction, mask = _inputs(case, quantised)
    row, curve = saliency.scores(prediction, mask)
    expected, falling = _pysodmetrics(prediction, mask)
    if case in LAST_LINE:
        assert np.isnan(expected.pop("s_measure")) and np.isfinite(row.pop("s_measure"))
    tolerance = 1e-15 if quantised else 1e-12
    assert row == pytest.approx(expected, rel=0, abs=tolerance)
    assert curve == pytest.approx(falling[::-1], rel=0, abs=tolerance)


@each_kind
@each_case
def test_s_measure_written_out(case: str, quantised: bool) -> None:
    prediction, mask = _inputs(case, quantised)
    assert saliency.scores(prediction, mask)[0]["s_measure"] == pytest.approx(
        _written_out_s(_stretched(prediction), mask), abs=1e-12
    )


@each_kind
@each_case
def test_e_measure_written_out(case: str, quantised: bool) -> None:
    prediction, mask = _inputs(case, quantised)
    row, curve = saliency.scores(prediction, mask)
    values = _stretched(prediction)
    grey = np.floor(255 * values)
    expected = [_written_out_e(grey >= threshold, mask) for threshold in range(256)]
    assert curve == pytest.approx(np.array(expected), abs=1e-12)
    assert row["e_measure_mean"] == pytest.approx(sum(expected) / 256)
    assert row["e_measure_adaptive"] == pytest.approx(_written_out_e(values >= min(2 * values.mean(), 1), mask))


@each_kind
@pytest.mark.parametrize("box", [(8, 22, 10, 31), (0, 37, 0, 20), (11, 12, 7, 8), (36, 37, 45, 46), (0, 37, 0, 46)])
def test_weighted_f_measure_written_out(box: tuple[int, int, int, int], quantised: bool) -> None:
    mask = _rectangle(*box)
    prediction = _blurred(mask, sigma=2)
    if quantised:
        prediction = np.round(prediction * 255).astype(np.uint8)
    row = saliency.scores(prediction, mask)[0]
    for key, squared in (("weighted_f_measure_b1", 1), ("weighted_f_measure_b03", 0.3)):
        assert row[key] == pytest.approx(_written_out_f(_stretched(prediction), box, mask, squared), abs=1e-12)


def test_rules_for_empty_and_full_masks() -> None:
    values = _stretched(NOISE)
    empty, full = saliency.scores(NOISE, EMPTY)[0], saliency.scores(NOISE, FULL)[0]
    assert empty["s_measure"] == pytest.approx(1 - values.mean()) and full["s_measure"] == pytest.approx(values.mean())
    assert empty["weighted_f_measure_b1"] == empty["weighted_f_measure_b03"] == 0
    assert saliency.scores(EMPTY.astype(np.float32), EMPTY)[0]["weighted_f_measure_b1"] == 0
    assert saliency.scores(np.full(SHAPE, 0.5, np.float32), EMPTY)[0]["mae"] == 0.5


def test_only_the_e_measure_quantises() -> None:
    prediction, mask = CASES["smooth"]
    prediction = np.where(prediction == prediction.max(), 1, np.where(prediction == prediction.min(), 0, prediction))
    coarse = (np.floor(prediction * 255) / 255 + 1e-4).clip(0, 1)
    coarse[prediction == 0] = 0
    fine, rough = (saliency.scores(values.astype(np.float32), mask)[0] for values in (prediction, coarse))
    assert rough["e_measure_mean"] == fine["e_measure_mean"]
    for key in ("s_measure", "weighted_f_measure_b1", "weighted_f_measure_b03", "mae"):
        assert abs(rough[key] - fine[key]) > 1e-5


def test_min_max_makes_the_scale_of_a_map_irrelevant() -> None:
    prediction, mask = CASES["binary"]
    row = saliency.scores(prediction, mask)[0]
    assert saliency.scores((0.25 + 0.5 * prediction).astype(np.float32), mask)[0] == row


def test_both_betas_share_one_distance_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    transform = saliency.distance_transform_edt
    monkeypatch.setattr(
        saliency, "distance_transform_edt", lambda *args, **kwargs: calls.append(1) or transform(*args, **kwargs)
    )
    saliency.scores(*CASES["smooth"])
    assert len(calls) == 1


@each_kind
def test_equals_pysodmetrics_on_real_masks(test_data: Path, quantised: bool) -> None:
    folder = test_data / "isic2017_512" / "ISIC-2017_Test_v2_Part1_GroundTruth"
    paths = sorted(folder.glob("*_segmentation.png"))[:4]
    assert len(paths) == 4
    for path in paths:
        picture = Image.open(path).convert("L").resize((120, 90), Image.Resampling.NEAREST)
        mask = (np.asarray(picture) > 127).astype(np.uint8)
        prediction = _blurred(mask)
        if quantised:
            prediction = np.round(prediction * 255).astype(np.uint8)
        row, curve = saliency.scores(prediction, mask)
        expected, falling = _pysodmetrics(prediction, mask)
        assert row == pytest.approx(expected, rel=0, abs=1e-12)
        assert curve == pytest.approx(falling[::-1], rel=0, abs=1e-12)


images = st.tuples(st.integers(1, 8), st.integers(2, 8)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)),
    )
)


@settings(deadline=None, max_examples=150)
@given(images, st.booleans())
def test_bounds(image: tuple[np.ndarray, np.ndarray], quantised: bool) -> None:
    prediction, mask = image
    if quantised:
        prediction = np.round(prediction * 255).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row, curve = saliency.scores(prediction, mask)
    alignment_roof = mask.size / (mask.size - 1) + 1e-12
    for key, value in row.items():
        assert -1e-12 <= value <= (alignment_roof if key.startswith("e_measure") else 1 + 1e-12)
    assert curve.shape == (256,) and (curve >= 0).all() and curve.max() <= alignment_roof


@settings(deadline=None)
@given(images)
def test_perfect_prediction_is_optimal(image: tuple[np.ndarray, np.ndarray]) -> None:
    mask = image[1]
    row, curve = saliency.scores(mask.astype(np.float32), mask)
    assert row["s_measure"] == pytest.approx(1) and row["mae"] == 0
    weighted = [row["weighted_f_measure_b1"], row["weighted_f_measure_b03"]]
    assert weighted == pytest.approx([1, 1] if mask.any() else [0, 0])
    assert curve[1:] == pytest.approx(np.full(255, mask.size / (mask.size - 1)))
