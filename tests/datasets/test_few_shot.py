"""Few-shot sets: so many images a class, the same ones for the same seed, each set within the larger ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets import Split, few_shot


class Labelled(Split):
    """A split whose image ``i`` holds the classes ``labels[i]``, beside background and ignored pixels."""

    def __init__(self, labels: list[set[int]], identifiers: list[str] | None = None) -> None:
        self.identifiers = tuple(identifiers or (f"image-{index}" for index in range(len(labels))))
        self.labels = labels
        self.masks_read = 0

    def image(self, index: int) -> np.ndarray:
        raise AssertionError("no image is needed to choose")

    def mask(self, index: int) -> np.ndarray:
        self.masks_read += 1
        return np.array([[0, 255, *self.labels[index]]], dtype=np.uint8)


def random_split(seed: int, classes: int, images: int = 400) -> Labelled:
    rng = np.random.default_rng(seed)
    return Labelled([set(rng.integers(0, classes, 3).tolist()) - {0} for _ in range(images)])


@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(2, 5))
def test_sets_are_nested_and_full(seed: int, content: int, classes: int) -> None:
    split = random_split(content, classes)
    smaller: set[str] = set()
    for shots in (1, 2, 4, 8, 16):
        chosen = few_shot(split, shots, seed, classes)
        assert len(set(chosen.identifiers)) == len(chosen) == shots * (classes - 1)
        assert smaller <= set(chosen.identifiers)
        held = [split.labels[split.identifiers.index(identifier)] for identifier in chosen.identifiers]
        assert all(sum(label in labels for labels in held) >= shots for label in range(1, classes))
        smaller = set(chosen.identifiers)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8, 16]), st.randoms(use_true_random=False))
def test_order_of_the_split_does_not_matter(seed: int, shots: int, shuffler) -> None:
    split = random_split(0, 4, images=120)
    order = list(range(len(split)))
    shuffler.shuffle(order)
    shuffled = Labelled([split.labels[index] for index in order], [split.identifiers[index] for index in order])
    assert set(few_shot(split, shots, seed, 4).identifiers) == set(few_shot(shuffled, shots, seed, 4).identifiers)


def test_binary_sets_hold_foreground() -> None:
    split = Labelled([{1} if index % 3 == 0 else set() for index in range(60)])
    chosen = few_shot(split, 16, seed=3, num_classes=1)
    indices = [split.identifiers.index(identifier) for identifier in chosen.identifiers]
    assert len(indices) == 16 and all(index % 3 == 0 for index in indices)
    assert indices == sorted(indices)


def test_seeds_differ() -> None:
    split = random_split(0, 2)
    sets = {few_shot(split, 4, seed, 1).identifiers for seed in range(10)}
    assert len(sets) == 10


def test_choice_is_fixed_for_ever() -> None:
    chosen = few_shot(Labelled([{1}] * 50), 3, seed=7, num_classes=1)
    assert chosen.identifiers == ("image-3", "image-11", "image-46")


def test_masks_are_read_only_until_the_set_is_full() -> None:
    split = Labelled([{1}] * 500)
    few_shot(split, 4, seed=0, num_classes=1)
    assert split.masks_read == 4


def test_an_image_counts_for_one_class() -> None:
    split = Labelled([{1, 2}, {1, 2}])
    assert len(few_shot(split, 1, 0, 3)) == 2
    with pytest.raises(ValueError, match="only 1 images are left for class 1"):
        few_shot(split, 2, 0, 3)


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_are_positive(shots: int) -> None:
    with pytest.raises(ValueError, match=f"shots = {shots}"):
        few_shot(Labelled([{1}]), shots, 0, 1)
