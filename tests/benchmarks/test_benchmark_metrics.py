"""How long an image's scores take, beside the packages that define them: pysodmetrics and torchmetrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import py_sod_metrics
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional import classification

from bench.metrics import overlap, saliency
from bench.metrics.classes import IGNORED, confusion_matrix

Call = Callable[[], object]
CLASSES = 12


@pytest.fixture(scope="module")
def side(measuring: bool) -> int:
    return 512 if measuring else 64


@pytest.fixture(scope="module")
def image(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A blurred and noisy disc in 8 bits, and the mask (H, W) of 0 and 1 that it answers."""
    rows, columns = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    mask = (rows**2 + (columns - 0.2) ** 2 < 0.3).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 0.05, mask.shape)
    grey = np.clip(gaussian_filter(mask.astype(float), side / 32) + noise, 0, 1)
    return np.round(255 * grey).astype(np.uint8), mask


MEASURES = {
    "S-measure": ("s_measure", py_sod_metrics.Smeasure, lambda found: found["sm"]),
    "E-measure": ("e_measure_mean", py_sod_metrics.Emeasure, lambda found: found["em"]["curve"].mean()),
    "weighted F-measure": ("weighted_f_measure_b1", py_sod_metrics.WeightedFmeasure, lambda found: found["wfm"]),
    "MAE": ("mae", py_sod_metrics.MAE, lambda found: found["mae"]),
}


def by_pysodmetrics(name: str, grey: np.ndarray, mask: np.ndarray) -> float:
    """One image's value, as the package's users compute it."""
    _, make, read = MEASURES[name]
    measure = make()
    measure.step(grey, 255 * mask)
    return read(measure.get_results())


@pytest.mark.parametrize("form", ["pysodmetrics", "ours"])
@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_of_grey_maps(compare, image, name: str, form: str) -> None:
    grey, mask = image
    forms: dict[str, Call] = {
        "pysodmetrics": lambda: by_pysodmetrics(name, grey, mask),
        "ours": lambda: saliency.score(MEASURES[name][0], grey, mask),
    }
    found = compare(forms[form], group=f"{name} of 512 x 512", candidate=form, reference="pysodmetrics")
    assert found == pytest.approx(by_pysodmetrics(name, grey, mask), abs=1e-9)
    assert 0 < found < 1


@pytest.mark.parametrize("form", ["pysodmetrics", "ours"])
def test_all_measures_of_grey_maps(compare, image, form: str) -> None:
    grey, mask = image
    forms: dict[str, Call] = {
        "pysodmetrics": lambda: [by_pysodmetrics(name, grey, mask) for name in MEASURES],
        "ours": lambda: saliency.scores(grey, mask)[0],
    }
    group = "S, E, weighted F and MAE of 512 x 512"
    found = compare(forms[form], group=group, candidate=form, reference="pysodmetrics")
    values = [found[key] for key, *_ in MEASURES.values()] if form == "ours" else found
    assert values == pytest.approx([by_pysodmetrics(name, grey, mask) for name in MEASURES], abs=1e-9)


@pytest.mark.parametrize("form", ["torchmetrics", "ours"])
@pytest.mark.parametrize("key", ["iou", "dice"])
def test_overlap(compare, image, key: str, form: str) -> None:
    grey, mask = image
    chances = grey.astype(np.float32) / np.float32(255)
    theirs = {"iou": classification.binary_jaccard_index, "dice": classification.binary_f1_score}[key]
    forms: dict[str, Call] = {
        "torchmetrics": lambda: theirs(torch.from_numpy(chances), torch.from_numpy(mask)).item(),
        "ours": lambda: overlap.score(key, chances, mask),
    }
    found = compare(forms[form], group=f"{key} of 512 x 512", candidate=form, reference="torchmetrics")
    assert found == pytest.approx(forms["torchmetrics"](), abs=1e-6)
    assert 0.5 < found < 1


@pytest.mark.parametrize("form", ["torchmetrics", "ours"])
def test_confusion_matrix(compare, side: int, form: str) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, CLASSES, (8, 8), dtype=np.uint8), np.ones((side // 8, side // 8), np.uint8))
    prediction = np.where(rng.random(mask.shape) < 0.9, mask, np.uint8(0))
    mask[0] = IGNORED
    options = {"num_classes": CLASSES, "ignore_index": IGNORED}

    def theirs() -> np.ndarray:
        pair = torch.from_numpy(prediction).long(), torch.from_numpy(mask).long()
        return classification.multiclass_confusion_matrix(*pair, **options).numpy()

    forms: dict[str, Call] = {"torchmetrics": theirs, "ours": lambda: confusion_matrix(prediction, mask, CLASSES)}
    group = f"confusion matrix of 512 x 512, {CLASSES} classes"
    found = compare(forms[form], group=group, candidate=form, reference="torchmetrics")
    assert np.array_equal(found, theirs())
    assert found.sum() == mask.size - side
