"""Generated shapes: the same everywhere, exact masks, and hard enough to be worth learning."""

from __future__ import annotations

import hashlib
import pickle
import time

import numpy as np
import pytest

from datasets import evidence, load
from datasets.painting import STYLES, Draws, paint
from datasets.shapes import Shapes

SHARES = {"large": (0.1, 0.6), "small": (0.002, 0.09), "thin": (0.01, 0.11), "texture": (0.06, 0.5)}
"""Between which foreground shares every image of a style lies."""


def iou(prediction: np.ndarray, mask: np.ndarray) -> float:
    return np.logical_and(prediction, mask).sum() / np.logical_or(prediction, mask).sum()


@pytest.fixture(scope="module")
def samples() -> dict[str, list]:
    """Twenty-four images of each style."""
    opened = {style: load("shapes", style=style, train_images=24).open()["train"] for style in STYLES}
    return {style: [split[index] for index in range(24)] for style, split in opened.items()}


def test_samples_are_fixed_for_ever() -> None:
    splits = load("shapes").open()
    content = hashlib.sha256()
    for name in ("train", "validation", "test"):
        for index in range(8):
            content.update(splits[name].image(index))
            content.update(splits[name].mask(index))
    assert content.hexdigest() == "36eed1c5f7866e7d4bb673fecfe5430f9b9c750568f31eff494e121d83ca5fdc"


def test_default_splits() -> None:
    splits = load("shapes").open()
    assert {name: len(split) for name, split in splits.items()} == {"train": 160, "validation": 32, "test": 64}
    sample = splits["test"][-1]
    assert sample.image.shape == (160, 160, 3) and sample.mask.shape == (160, 160)
    assert sample.image.dtype == sample.mask.dtype == np.uint8
    assert set(np.unique(sample.mask)) == {0, 1}
    assert splits["train"].identifiers[:4] == tuple(f"train-{index:05d}-{style}" for index, style in enumerate(STYLES))


def test_every_style_has_a_parameter_value() -> None:
    for style in STYLES:
        split = load("shapes", style=style, train_images=3).open()["train"]
        assert all(identifier.endswith(style) for identifier in split.identifiers)
    assert Shapes.model_fields["style"].annotation.__args__ == ("mixed", *STYLES)


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    small, large = (load("shapes", train_images=count).open()["train"] for count in (5, 9))
    assert large.identifiers[:5] == small.identifiers
    for index in range(5):
        np.testing.assert_array_equal(small.image(index), large.image(index))


def test_no_two_images_are_alike() -> None:
    splits = load("shapes", train_images=40, validation_images=40, test_images=40).open()
    digests = [hashlib.sha256(split.image(index)).hexdigest() for split in splits.values() for index in range(40)]
    assert len(set(digests)) == 120


@pytest.mark.parametrize("style", STYLES)
def test_foreground_share(style: str, samples: dict) -> None:
    low, high = SHARES[style]
    shares = [sample.mask.mean() for sample in samples[style]]
    assert low < min(shares) and max(shares) < high
    assert max(shares) > 1.5 * min(shares)


@pytest.mark.parametrize("style", ["large", "small", "thin"])
def test_object_is_warmer_than_its_surroundings(style: str, samples: dict) -> None:
    """Red over blue tells the object from what lies right beside it, which also shows that the mask fits the image."""
    for sample in samples[style]:
        image, mask = sample.image.astype(float), sample.mask.astype(bool)
        warmth = image[..., 0] - image[..., 2]
        assert warmth[mask].mean() > warmth[~mask].mean() + 10


@pytest.mark.parametrize("style", ["large", "small", "thin"])
def test_object_is_darker_as_well_as_brighter(style: str, samples: dict) -> None:
    differences = [s.image[s.mask > 0].mean() - s.image[s.mask == 0].mean() for s in samples[style]]
    assert min(differences) < -5 and max(differences) > 5


def test_mask_edges_lie_on_image_edges() -> None:
    """Shifted by some pixels either way, the outline of a large object no longer meets the steps in colour."""
    for sample in (load("shapes", style="large").open()["train"][index] for index in range(12)):
        warmth = sample.image[..., 0].astype(float) - sample.image[..., 2]

        def edge(shift: int) -> float:
            mask = np.roll(sample.mask, shift, axis=1)[:, 8:-8]
            step = mask[:, 1:].astype(int) - mask[:, :-1]
            return (np.diff(warmth[:, 8:-8], axis=1) * step).sum()

        assert edge(0) > 2 * max(edge(shift) for shift in (-3, -2, -1, 1, 2, 3))


def test_texture_differs_by_its_grain_alone(samples: dict) -> None:
    grain, means = [], []
    for sample in samples["texture"]:
        grey, mask = sample.image.mean(axis=2), sample.mask.astype(bool)
        rough = abs(np.diff(grey, axis=1))
        inside = mask[:, 1:] & mask[:, :-1]
        grain.append(rough[inside].mean() / rough[~inside].mean())
        means.append(grey[mask].mean() - grey[~mask].mean())
    assert min(grain) > 1.2
    assert abs(np.mean(means)) < 6 and min(means) < 0 < max(means)


@pytest.mark.parametrize("style", STYLES)
def test_trivial_masks_score_low(style: str, samples: dict) -> None:
    masks = np.array([sample.mask for sample in samples[style]])
    mean = masks.mean(axis=0)
    assert np.mean(masks) < 0.4  # the score of "all foreground"
    best = max(np.mean([iou(mean >= level * mean.max(), mask) for mask in masks]) for level in (0.3, 0.5, 0.7))
    assert best < 0.62


def test_brightness_alone_does_not_solve_it(samples: dict) -> None:
    for style in STYLES:
        scores = []
        for sample in samples[style]:
            grey = sample.image.mean(axis=2)
            levels = np.quantile(grey, [0.3, 0.5, 0.7, 0.9])
            scores.append([iou(grey > level, sample.mask) for level in levels])
        assert np.mean(scores, axis=0).max() < 0.4


def test_any_size_is_painted() -> None:
    for style in STYLES:
        for size in (64, 97, 512):
            image, mask = paint(style, size, Draws(1, 2, 3))
            assert image.shape == (size, size, 3) and mask.shape == (size, size) and 0 < mask.mean() < 0.7


def test_draws_are_uniform_and_within_bounds() -> None:
    draws = Draws(5)
    integers = [draws.integer(2, 5) for _ in range(4000)]
    assert set(integers) == {2, 3, 4, 5} and abs(np.mean(integers) - 3.5) < 0.1
    uniform = [draws.uniform(-1, 3) for _ in range(4000)]
    assert -1 <= min(uniform) < -0.9 and 2.9 < max(uniform) < 3 and abs(np.mean(uniform) - 1) < 0.1
    cosine, sine = np.array([draws.direction() for _ in range(4000)]).T
    np.testing.assert_allclose(cosine**2 + sine**2, 1)
    assert abs(cosine.mean()) < 0.05 and abs(sine.mean()) < 0.05
    noise = draws.noise(50, 7)
    assert -1 <= noise.min() < -0.5 and 0.5 < noise.max() < 1


def test_painting_is_quick() -> None:
    split = load("shapes").open()["train"]
    split[0]
    spent = []
    for index in range(40):
        started = time.process_time()
        split[index]
        spent.append(time.process_time() - started)
    assert np.median(spent) < 0.015  # 4 ms on the machine it was written on


def test_evidence_follows_what_is_painted() -> None:
    default = evidence(load("shapes").open())
    assert default == evidence(load("shapes").open())
    assert default["images"] == {"train": 160, "validation": 32, "test": 64}
    for change in ({"size": 128}, {"style": "thin"}, {"train_images": 100}):
        assert evidence(load("shapes", **change).open())["data"] != default["data"]


def test_a_split_travels_to_a_worker_process() -> None:
    split = load("shapes").open()["test"]
    copy = pickle.loads(pickle.dumps(split.subset([5, 2])))
    np.testing.assert_array_equal(copy.image(1), split.image(2))
