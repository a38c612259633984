"""Metrics of several classes against loops over pixels, torchmetrics, TransLab's rules written out, and algebra."""

from __future__ import annotations

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.functional import classification

import datasets
from bench.metrics import PROTOCOLS, ClassScores, classes, metrics_of, score_classes
from bench.metrics.classes import balanced_errors, class_iou, confusion_matrix

IGNORED = 255
Image = tuple[np.ndarray, np.ndarray]
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def made(num_classes: int, *, seed: int = 0, number: int = 3, ignored: bool = True) -> list[Image]:
    """Images of different size: predictions that are right in two of three pixels, and masks."""
    rng, images = np.random.default_rng([seed, num_classes]), []
    for index in range(number):
        shape = (5 + 3 * index, 11 - 2 * index)
        mask = rng.integers(0, num_classes, shape).astype(np.uint8)
        prediction = np.where(rng.random(shape) < 0.67, mask, rng.integers(0, num_classes, shape)).astype(np.uint8)
        if ignored:
            mask[rng.random(shape) < 0.2] = IGNORED
        images.append((prediction, mask))
    return images


def scored(images: list[Image], protocol: str, num_classes: int) -> ClassScores:
    scores = ClassScores(protocol, num_classes)
    for index, image in enumerate(images):
        scores.add(f"image{index}", *image)
    return scores


def pixels(image: Image) -> list[tuple[int, int]]:
    """(prediction, truth) of the pixels that count."""
    prediction, mask = (array.ravel().tolist() for array in image)
    return [(p, t) for p, t in zip(prediction, mask, strict=True) if t != IGNORED]


def average(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def written_out(images: list[Image], num_classes: int, protocol: str) -> dict:
    """Every metric from lists of pixels, TransLab's in the order of its own loops; no matrix anywhere."""
    everything = [pixel for image in images for pixel in pixels(image)]
    if not everything:
        return {**dict.fromkeys(metrics_of(num_classes)), "iou": [None] * num_classes}
    foreground = [(p, t) for p, t in everything if t > 0]
    iou = []
    for label in range(num_classes):
        either = [(p, t) for p, t in everything if label in (p, t)]
        both = [(p, t) for p, t in either if p == t]
        iou.append(len(both) / len(either) if either else 0.0 if protocol == "paper" else None)
    errors, maes = {label: [] for label in range(1, num_classes)}, []
    for counted in filter(None, map(pixels, images)):
        maes.append(sum(abs(p - t) for p, t in counted) / len(counted))
        for label in range(1, num_classes):
            positives = [(p, t) for p, t in counted if t == label]
            negatives = [(p, t) for p, t in counted if t != label]
            if not positives:
                continue
            true_positives = sum(p == t for p, t in positives)
            true_negatives = sum(p == t for p, t in negatives)
            if negatives:
                errors[label].append(1 - 0.5 * (true_positives / len(positives) + true_negatives / len(negatives)))
            else:
                errors[label].append(1 - true_positives / len(positives))
    return {
        "accuracy": average([p == t for p, t in everything]),
        "accuracy_foreground": average([p == t for p, t in foreground]),
        "miou_all": average([value for value in iou if value is not None]),
        "miou_foreground": average([value for value in iou[1:] if value is not None]),
        "iou": iou,
        "label_mae": average(maes),
        "mber": average([average(of_class) for of_class in errors.values() if of_class]),
    }


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        pairs = zip(found[key], value, strict=True) if key == "iou" else [(found[key], value)]
        for ours, theirs in pairs:
            assert ours == (None if theirs is None else pytest.approx(theirs, rel=0, abs=1e-14)), key


@each_protocol
@pytest.mark.parametrize("num_classes", range(2, 21))
def test_equal_to_loops_over_pixels(num_classes: int, protocol: str) -> None:
    images = made(num_classes)
    assert_same(scored(images, protocol, num_classes).mean(), written_out(images, num_classes, protocol))


@each_protocol
@pytest.mark.parametrize("num_classes", [3, 12, 15, 16, 20, 255])
def test_equal_to_torchmetrics(num_classes: int, protocol: str) -> None:
    """A high class is absent, so that torchmetrics' two ways to average tell the protocols apart."""
    images = [
        tuple(np.where(a == num_classes - 1, 0, a).astype(np.uint8) for a in image) for image in made(num_classes)
    ]
    scores = scored(images, protocol, num_classes)
    flat = [torch.from_numpy(np.concatenate([image[side].ravel() for image in images]).astype(int)) for side in (0, 1)]
    options = {"num_classes": num_classes, "ignore_index": IGNORED}
    matrix = classification.multiclass_confusion_matrix(*flat, **options)
    assert scores.confusion.dtype == np.int64 and (scores.confusion == matrix.numpy()).all()
    means = scores.mean()
    jaccard = classification.multiclass_jaccard_index(*flat, **options, average="none").tolist()
    present = (matrix.sum(0) + matrix.sum(1) > 0).tolist()
    absent = 0.0 if protocol == "paper" else None
    assert means["iou"] == [
        pytest.approx(value, abs=1e-6) if here else absent for value, here in zip(jaccard, present, strict=True)
    ]
    without_absent = classification.multiclass_jaccard_index(*flat, **options, average="macro").item()
    assert means["miou_all"] == pytest.approx(
        without_absent if protocol == "literature" else sum(jaccard) / num_classes, abs=1e-6
    )
    accuracy = classification.multiclass_accuracy(*flat, **options, average="micro").item()
    assert means["accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("num_classes", [3, 12, 15, 16, 20, 255])
def test_rows(num_classes: int) -> None:
    """A matrix read row by row is truth by prediction, and tells nothing of ignored pixels."""
    scores, images = ClassScores("literature", num_classes), made(num_classes)
    for index, image in enumerate(images):
        counted = pixels(image)
        row = scores.add(f"image{index}", *image)
        assert row is scores.rows[-1]
        assert list(row) == ["image", "protocol", "accuracy", "label_mae", "confusion"]
        assert (row["image"], row["protocol"]) == (f"image{index}", "literature")
        expected = [0] * num_classes**2
        for prediction, truth in counted:
            expected[truth * num_classes + prediction] += 1
        assert row["confusion"] == expected and all(type(count) is int for count in row["confusion"])
        assert type(row["accuracy"]) is float and row["accuracy"] == average([p == t for p, t in counted])
        assert type(row["label_mae"]) is float and row["label_mae"] == average([abs(p - t) for p, t in counted])
        assert {"image": f"image{index}", **score_classes(*image, "literature", num_classes)} == row
    assert pyarrow.Table.from_pylist(scores.rows)["confusion"].to_pylist() == [row["confusion"] for row in scores.rows]


def test_worked_by_hand() -> None:
    """Class 1 has Np 4, TP 3; of the 5 other pixels 3 are exactly right, and one more is merely no class 1."""
    mask = np.array([[1, 1, 1, 1, 0, 0, 2, 2, 2]], np.uint8)
    prediction = np.array([[1, 1, 1, 0, 0, 1, 2, 2, 0]], np.uint8)
    means = scored([(prediction, mask)], "paper", 3).mean()
    assert means["accuracy"] == 6 / 9 and means["accuracy_foreground"] == 5 / 7
    assert means["iou"] == [1 / 4, 3 / 5, 2 / 3]
    assert means["label_mae"] == (1 + 1 + 2) / 9, "2 taken for 0 counts twice"
    error_of_1 = 1 - (3 / 4 + 3 / 5) / 2
    error_of_2 = 1 - (2 / 3 + 4 / 6) / 2
    assert means["mber"] == pytest.approx((error_of_1 + error_of_2) / 2, abs=1e-15)
    standard = 1 - (3 / 4 + 4 / 5) / 2
    assert error_of_1 > standard, "the usual balanced error rate would forgive 2 taken for 0"


def test_mber_averages_over_the_images_that_hold_a_class_and_then_over_classes() -> None:
    """Class 1 is in two images, class 2 in one, class 3 in none."""
    masks = [[1, 1, 0, 0], [1, 0, 0, 0], [2, 2, 0, 0]]
    predictions = [[1, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 3]]
    images = [(np.array([p], np.uint8), np.array([m], np.uint8)) for p, m in zip(predictions, masks, strict=True)]
    of_1, of_2 = (0.25 + 0.0) / 2, 1 - (1 / 2 + 1 / 2) / 2
    assert scored(images, "paper", 4).mean()["mber"] == (of_1 + of_2) / 2


@pytest.mark.parametrize(("prediction", "error"), [([1, 1, 1, 1], 0.0), ([1, 1, 1, 2], 0.25), ([0, 0, 0, 0], 1.0)])
def test_mber_of_a_mask_of_one_class_is_what_its_recall_lacks(prediction: list[int], error: float) -> None:
    mask = np.array([[1, 1, 1, 1]], np.uint8)
    means = scored([(np.array([prediction], np.uint8), mask)], "paper", 3).mean()
    assert means["mber"] == error
    ignored = np.concatenate([mask, np.full_like(mask, IGNORED)])
    below = np.concatenate([np.array([prediction]), [[0, 1, 2, 0]]]).astype(np.uint8)
    assert scored([(below, ignored)], "paper", 3).mean() == means


def test_absent_classes_are_zero_or_left_out() -> None:
    mask = np.array([[0, 0, 2, 2]], np.uint8)
    prediction = np.array([[0, 0, 2, 4]], np.uint8)
    paper, literature = (scored([(prediction, mask)], protocol, 6).mean() for protocol in PROTOCOLS)
    assert paper["iou"] == [1.0, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert literature["iou"] == [1.0, None, 0.5, None, 0.0, None], "predicted is not absent"
    assert (paper["miou_all"], paper["miou_foreground"]) == (1.5 / 6, 0.5 / 5)
    assert (literature["miou_all"], literature["miou_foreground"]) == (1.5 / 3, 0.5 / 2)
    others = [{key: value for key, value in means.items() if "iou" not in key} for means in (paper, literature)]
    assert others[0] == others[1]


def test_a_set_of_background_has_no_foreground_metrics() -> None:
    mask = np.zeros((2, 3), np.uint8)
    paper, literature = (scored([(mask, mask)], protocol, 3).mean() for protocol in PROTOCOLS)
    for means in (paper, literature):
        assert means["accuracy"] == 1.0 and means["accuracy_foreground"] is means["mber"] is None
    assert (paper["miou_foreground"], literature["miou_foreground"]) == (0.0, None)


@each_protocol
@pytest.mark.parametrize("shape", [(4, 5), (0, 5)])
def test_nothing_but_ignored_pixels(protocol: str, shape: tuple[int, int]) -> None:
    empty = np.ones(shape, np.uint8), np.full(shape, IGNORED, np.uint8)
    scores = scored([empty], protocol, 3)
    assert scores.rows[0] == {
        "image": "image0", "protocol": protocol, "accuracy": None, "label_mae": None, "confusion": [0] * 9,
    }  # fmt: skip
    assert scores.mean() == {**dict.fromkeys(metrics_of(3)), "iou": [None] * 3}
    with pytest.raises(ValueError, match="no pixel counts"):
        scores.best_constant()
    images = made(3)
    assert scored([images[0], empty, *images[1:]], protocol, 3).mean() == scored(images, protocol, 3).mean()


def test_the_ignored_value_is_the_datasets() -> None:
    assert classes.IGNORED == datasets.IGNORE == IGNORED


def test_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="add"):
        ClassScores("paper", 3).mean()


@each_protocol
@pytest.mark.parametrize("num_classes", [2, 3, 12, 20])
def test_the_best_constant_is_the_best_of_all_constants(num_classes: int, protocol: str) -> None:
    images = [(p, np.where(m == 1, num_classes - 1, m).astype(np.uint8)) for p, m in made(num_classes, seed=2)]
    constants = []
    for label in range(num_classes):
        constant = [(np.full_like(mask, label), mask) for _, mask in images]
        constants.append(scored(constant, protocol, num_classes).mean()["miou_all"])
        assert (
            scored(constant, protocol, num_classes).best_constant()
            == scored(images, protocol, num_classes).best_constant()
        )
    best = scored(images, protocol, num_classes).best_constant()
    assert best == (int(np.argmax(constants)), max(constants))


def test_counts_beyond_the_whole_numbers_of_a_float32() -> None:
    """2^24 + 1 is the first whole number that a float32 lacks."""
    mask = np.ones((4097, 4096), np.uint8)
    mask[0, :3] = 0
    prediction = np.ones_like(mask)
    scores = ClassScores("paper", 2)
    row = scores.add("large", prediction, mask)
    assert row["confusion"] == [0, 3, 0, 4097 * 4096 - 3]
    assert row["accuracy"] == (4097 * 4096 - 3) / (4097 * 4096)
    scores.enter("one more", {**row, "confusion": [0, 0, 0, 1]})
    assert scores.confusion[1, 1] == 4097 * 4096 - 2
    huge = ClassScores("paper", 2)
    for name in "ab":
        huge.enter(name, {"protocol": "paper", "accuracy": 0.5, "label_mae": 0.5, "confusion": [2**52, 0, 1, 2**52]})
    assert huge.confusion.tolist() == [[2**53, 0], [2, 2**53]]


def test_many_images_add_up() -> None:
    """The mean over images of a per-image metric is not the set's metric, and sizes decide which is which."""
    large, small = np.zeros((40, 50), np.uint8), np.ones((1, 2), np.uint8)
    means = scored([(large, large), (np.zeros_like(small), small)], "paper", 2).mean()
    assert means["accuracy"] == 2000 / 2002 and means["label_mae"] == 0.5


GOOD = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        (GOOD + 1, GOOD, "prediction holds 3; its classes are 0 to 2"),
        (np.where(GOOD == 0, 255, GOOD).astype(np.uint8), GOOD, "prediction holds 255; .* 0 to 2"),
        (GOOD, GOOD + 1, "mask holds 3; its classes are 0 to 2, and 255 does not count"),
        (GOOD, np.where(GOOD == 0, 254, GOOD + 253).astype(np.uint8), "mask holds 254"),
        (GOOD.astype(np.int64), GOOD, "prediction is int64; it must be uint8 .* 0 to 2"),
        (GOOD, GOOD.astype(np.float32), "mask is float32; it must be uint8"),
        (GOOD, GOOD > 0, "mask is bool"),
        (GOOD, GOOD.T, r"\(2, 3\) and mask \(3, 2\)"),
        (GOOD[None], GOOD[None], r"\(1, 2, 3\)"),
    ],
)
def test_bad_input_is_named(prediction: np.ndarray, mask: np.ndarray, message: str) -> None:
    scores = ClassScores("paper", 3)
    with pytest.raises(ValueError, match=f"image x7: .*{message}"):
        scores.add("x7", prediction, mask)
    assert scores.rows == [] and not scores.confusion.any()


def test_unknown_protocols_and_impossible_numbers_of_classes() -> None:
    for call in (lambda: ClassScores("papers", 3), lambda: score_classes(GOOD, GOOD, "papers", 3)):
        with pytest.raises(ValueError, match="'paper'"):
            call()
    for number in (-1, 0, 1, 256):
        with pytest.raises(ValueError, match=f"num_classes is {number};.* 2 to 255"):
            ClassScores("paper", number)


def test_views_count_as_their_pixels_and_inputs_stay() -> None:
    prediction, mask = made(12, number=1)[0]
    kept = prediction.copy(), mask.copy()
    expected = confusion_matrix(prediction, mask, 12)
    assert (confusion_matrix(prediction.T, mask.T, 12) == expected).all()
    assert (confusion_matrix(prediction[::-1], mask[::-1], 12) == expected).all()
    assert (prediction == kept[0]).all() and (mask == kept[1]).all()


@st.composite
def sets(draw: st.DrawFn) -> tuple[int, list[Image]]:
    """A number of classes and one to four small images with ignored pixels."""
    num_classes = draw(st.integers(2, 20))
    label = st.integers(0, num_classes - 1)
    images = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        prediction = draw(hnp.arrays(np.uint8, shape, elements=label))
        images.append((prediction, draw(hnp.arrays(np.uint8, shape, elements=label | st.just(IGNORED)))))
    return num_classes, images


@settings(deadline=None, max_examples=150)
@given(sets(), st.sampled_from(PROTOCOLS))
def test_any_set_equals_loops_over_pixels(drawn: tuple[int, list[Image]], protocol: str) -> None:
    num_classes, images = drawn
    assert_same(scored(images, protocol, num_classes).mean(), written_out(images, num_classes, protocol))


@settings(deadline=None)
@given(sets(), st.sampled_from(PROTOCOLS), st.randoms(use_true_random=False))
def test_order_and_ignored_pixels_change_nothing(drawn: tuple[int, list[Image]], protocol: str, random) -> None:
    num_classes, images = drawn
    means = scored(images, protocol, num_classes).mean()
    shuffled = random.sample(images, len(images))
    assert scored(shuffled, protocol, num_classes).mean() == means
    other = random.randrange(num_classes)
    painted = [(np.where(mask == IGNORED, other, prediction).astype(np.uint8), mask) for prediction, mask in images]
    assert scored(painted, protocol, num_classes).mean() == means


@settings(deadline=None)
@given(sets(), st.sampled_from(PROTOCOLS))
def test_bounds_and_relations(drawn: tuple[int, list[Image]], protocol: str) -> None:
    num_classes, images = drawn
    scores = scored(images, protocol, num_classes)
    means = scores.mean()
    assert all(value is None or 0 <= value <= 1 for value in means["iou"])
    for key in ("accuracy", "accuracy_foreground", "miou_all", "miou_foreground", "mber"):
        assert means[key] is None or 0 <= means[key] <= 1
    assert means["label_mae"] is None or 0 <= means["label_mae"] <= num_classes - 1
    if means["accuracy"] is None:
        return
    assert scores.confusion.sum() == sum(np.count_nonzero(mask != IGNORED) for _, mask in images)
    for row in scores.rows:
        if row["accuracy"] is not None:
            wrong = 1 - row["accuracy"]
            assert wrong - 1e-12 <= row["label_mae"] <= wrong * (num_classes - 1) + 1e-12
    paper, literature = (scored(images, name, num_classes).mean()["miou_all"] for name in PROTOCOLS)
    assert paper <= literature + 1e-12


@settings(deadline=None)
@given(sets(), st.sampled_from(PROTOCOLS))
def test_a_perfect_prediction_is_optimal(drawn: tuple[int, list[Image]], protocol: str) -> None:
    num_classes, images = drawn
    perfect = [(np.where(mask == IGNORED, 0, mask).astype(np.uint8), mask) for _, mask in images]
    means = scored(perfect, protocol, num_classes).mean()
    held = {label for image in perfect for _, label in pixels(image)}
    absent = 0.0 if protocol == "paper" and held else None
    assert means["iou"] == [1.0 if label in held else absent for label in range(num_classes)]
    assert means["accuracy"] == (1.0 if held else None) and means["label_mae"] == (0.0 if held else None)
    assert means["mber"] == means["label_mae"] if held - {0} else means["mber"] is None
    assert means["accuracy_foreground"] == (1.0 if held - {0} else None)
    if protocol == "literature":
        assert means["miou_all"] == means["accuracy"]


@settings(deadline=None)
@given(sets(), st.randoms(use_true_random=False))
def test_names_of_classes_matter_to_label_mae_alone(drawn: tuple[int, list[Image]], random) -> None:
    """Any other order of the foreground classes permutes the IoU and leaves what is no distance as it is."""
    num_classes, images = drawn
    order = [0, *random.sample(range(1, num_classes), num_classes - 1)]
    table = np.arange(256, dtype=np.uint8)
    table[:num_classes] = order
    renamed = [(table[prediction], table[mask]) for prediction, mask in images]
    before, after = (scored(some, "paper", num_classes).mean() for some in (images, renamed))
    assert [after["iou"][label] for label in order] == before["iou"]
    for key in ("accuracy", "accuracy_foreground", "miou_all", "miou_foreground", "mber"):
        assert after[key] == pytest.approx(before[key], abs=1e-14)


def test_parts_take_any_matrix() -> None:
    matrix = np.array([[4, 0, 0], [1, 0, 2], [0, 0, 0]])
    assert class_iou(matrix, None) == [4 / 5, 0.0, 0.0]
    assert balanced_errors(matrix) == [1 - (0 + 1) / 2, None]
    assert class_iou(np.zeros((2, 2), int), 0.0) == [None, None]
