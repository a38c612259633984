"""Order, flips and subsets are functions of their keys; memory and workers change the speed of reading alone."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import datasets
import methods
from bench.data import Batch, SquashedSplit, batches, fixed_subset, open_splits, shuffled
from bench.spec import make_cell
from datasets import Sample, Split

SIZE = 16


class Noise(Split):
    """Images of several native sizes, other ones at every index; remembers how often each was read."""

    def __init__(self, count: int, delay: float = 0.0) -> None:
        self.identifiers = tuple(f"n{number}" for number in range(count))
        self.reads: list[int] = []
        self._delay = delay

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        # The first images of a batch come last, so that readers overtake each other.
        time.sleep(self._delay * (3 - index % 4))
        generator = np.random.default_rng(index)
        height, width = 20 + index, 30
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Sample(image, generator.integers(0, 2, (height, width), dtype=np.uint8), self.identifiers[index])

    def image(self, index: int) -> np.ndarray:
        return self[index].image

    def mask(self, index: int) -> np.ndarray:
        return self[index].mask


def read(
    count: int = 10, *, budget: int = 1 << 20, order: list[int] | None = None, delay: float = 0.0, **options
) -> list[Batch]:
    data = SquashedSplit(Noise(count, delay), SIZE, budget=budget)
    return list(batches(data, list(range(count)) if order is None else order, 4, **options))


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        a.indices == b.indices and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) for a, b in pairs
    )


def test_batches_hold_what_a_plain_loop_reads():
    order = [3, 0, 9, 4, 4, 1]
    found, split = read(order=order), Noise(10)
    assert [batch.indices for batch in found] == [[3, 0, 9, 4], [4, 1]]
    assert {batch.images.dtype for batch in found} == {batch.masks.dtype for batch in found} == {torch.uint8}
    images, masks = torch.cat([batch.images for batch in found]), torch.cat([batch.masks for batch in found])
    assert images.shape == (6, 3, SIZE, SIZE)
    assert masks.shape == (6, SIZE, SIZE)
    for position, index in enumerate(order):
        sample = split[index]
        image = Image.fromarray(sample.image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        mask = Image.fromarray(sample.mask).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        assert np.array_equal(images[position].permute(1, 2, 0), np.array(image))
        assert np.array_equal(masks[position], np.array(mask))


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_number_of_workers_changes_nothing(workers):
    assert same(read(flips=(0, 1), workers=workers, delay=0.002), read(flips=(0, 1), workers=1))


def test_memory_changes_nothing_but_how_often_images_are_decoded():
    room_for = 4 * SIZE * SIZE
    results, reads = [], {}
    for budget in (0, 3 * room_for, 1 << 20):
        split = Noise(10)
        data = SquashedSplit(split, SIZE, budget=budget)
        results.append(
            [
                *batches(data, range(10), 4, flips=(0, 1), workers=1),
                *batches(data, range(10), 4, flips=(0, 2), workers=1),
            ]
        )
        reads[budget] = len(split.reads)
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    assert list(reads.values()) == [20, 17, 10]


def test_a_flip_mirrors_image_and_mask_together_and_leaves_what_is_kept():
    data = SquashedSplit(Noise(12), SIZE)
    plain = next(batches(data, range(12), 12))
    flipped = next(batches(data, range(12), 12, flips=(0, 1)))
    mirrored = []
    for index in range(12):
        image, mask = plain.images[index], plain.masks[index]
        if torch.equal(flipped.images[index], image):
            assert torch.equal(flipped.masks[index], mask)
        else:
            assert torch.equal(flipped.images[index], image.flip(-1))
            assert torch.equal(flipped.masks[index], mask.flip(-1))
            mirrored.append(index)
    assert 0 < len(mirrored) < 12
    assert same([plain], list(batches(data, range(12), 12)))


def flips(seed: int, epoch: int, order: list[int]) -> dict[int, bool]:
    """Which images are mirrored, told from their pixels."""
    plain = {i: image for batch in read(order=order) for i, image in zip(batch.indices, batch.images, strict=True)}
    found = read(order=order, flips=(seed, epoch))
    return {
        i: not torch.equal(image, plain[i])
        for batch in found
        for i, image in zip(batch.indices, batch.images, strict=True)
    }


def test_flips_are_a_function_of_seed_epoch_and_index():
    order = list(range(10))
    first = flips(0, 1, order)
    torch.manual_seed(5)
    np.random.seed(5)
    assert flips(0, 1, order) == first
    assert flips(0, 1, order[::-1]) == first, "the place in the order does not count"
    assert flips(0, 1, [2, 7]) == {2: first[2], 7: first[7]}
    assert flips(1, 1, order) != first
    assert flips(0, 2, order) != first


@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_of_its_own(count, seed, epoch):
    order = shuffled(count, seed, epoch)
    assert sorted(order) == list(range(count))
    assert order == shuffled(count, seed, epoch)
    if count > 20:
        assert order != shuffled(count, seed, epoch + 1)
        assert order != shuffled(count, seed + 1, epoch)


def test_an_epochs_order_stays_what_it_was():
    """Whoever trains again next year gets the same batches."""
    assert shuffled(8, 0, 1) == [1, 3, 7, 6, 0, 4, 2, 5]


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 9))
def test_a_fixed_subset_lies_in_every_larger_one(count, small, large, seed):
    split = Noise(count)
    small, large = sorted((small, large))
    a, b = fixed_subset(split, small, seed), fixed_subset(split, large, seed)
    assert a.identifiers == fixed_subset(split, small, seed).identifiers
    assert len(b) == (large if 0 < large < count else count)
    if small:
        assert set(a.identifiers) <= set(b.identifiers)
    assert list(b.identifiers) == [name for name in split.identifiers if name in b.identifiers], "in their old order"


def test_a_fixed_subset_is_drawn_from_the_whole_set():
    chosen = fixed_subset(Noise(100), 10, 7).identifiers
    assert chosen != Noise(100).identifiers[:10]
    assert chosen != fixed_subset(Noise(100), 10, 8).identifiers


def test_shots_cut_down_the_training_images_alone():
    dataset = datasets.load("shapes", train_images=12, validation_images=4, test_images=4, size=64)
    sets = []
    for seed in (0, 0, 1):
        cell = make_cell(
            method=methods.create("lora"),
            dataset=dataset,
            seed=seed,
            backbone="tiny",
            checkpoint="none",
            image_size=64,
            precision="fp32",
            shots=3,
        )
        splits = open_splits(cell, None)
        assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 4, "test": 4}
        sets.append(splits["train"].identifiers)
    assert sets[0] == sets[1] != sets[2]


def test_an_error_while_reading_reaches_the_training_and_leaves_no_thread():
    class Broken(Noise):
        def __getitem__(self, index: int) -> Sample:
            if index == 5:
                raise OSError("n5.png is truncated")
            return super().__getitem__(index)

    before = threading.active_count()
    with pytest.raises(OSError, match=r"n5\.png"):
        list(batches(SquashedSplit(Broken(10), SIZE), range(10), 4))
    reader = batches(SquashedSplit(Noise(30), SIZE), range(30), 4)
    next(reader)
    reader.close()
    assert threading.active_count() == before
