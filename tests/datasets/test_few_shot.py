"""Few-shot sets: so many images a class, the same ones for the same seed, each set within the larger ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets import Split, evidence, few_shot, manifest
from datasets.encoding import indexed
from datasets.files import FileDataset, FileSplit
from datasets.layout import Layout
from datasets.parts import Folders

LABELS = st.lists(st.frozensets(st.integers(1, 3)), min_size=1, max_size=40)


class Labelled(Split):
    """A split whose image ``i`` holds the classes ``held[i]``, beside background and ignored pixels."""

    def __init__(self, held: list[set[int]], identifiers: list[str] | None = None) -> None:
        self.identifiers = tuple(identifiers or (f"image-{index}" for index in range(len(held))))
        self.held = held
        self.masks_read = 0

    def image(self, index: int) -> np.ndarray:
        raise AssertionError("no image is needed to choose")

    def mask(self, index: int) -> np.ndarray:
        self.masks_read += 1
        return np.array([[0, 255, *self.held[index]]], dtype=np.uint8)


def random_split(seed: int, classes: int, images: int = 400) -> Labelled:
    rng = np.random.default_rng(seed)
    return Labelled([set(rng.integers(0, classes, 3).tolist()) - {0} for _ in range(images)])


def by_hand(held: list[set[int]], shots: int, seed: int, classes: int) -> list[int] | None:
    """The definition, word by word; None where a class runs out of images."""
    digests = [hashlib.sha256(f"{seed} image-{index}".encode()).hexdigest() for index in range(len(held))]
    taken: list[int] = []
    for _ in range(shots):
        for label in range(1, classes):
            fitting = [index for index in range(len(held)) if label in held[index] and index not in taken]
            if not fitting:
                return None
            taken.append(min(fitting, key=lambda index: digests[index]))
    return sorted(taken)


@given(LABELS, st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_it_is_what_the_definition_says(held: list[set[int]], shots: int, seed: int, classes: int) -> None:
    split, expected = Labelled(held), by_hand(held, shots, seed, classes)
    if expected is None:
        with pytest.raises(ValueError, match=rf"{shots} shots asked for, but after \d+ none of the {len(held)} images"):
            few_shot(split, shots, seed, classes)
    else:
        chosen = few_shot(split, shots, seed, classes).identifiers
        assert chosen == tuple(f"image-{index}" for index in expected)
    assert split.masks_read <= len(held), "no mask is read twice"


@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(2, 5))
def test_sets_are_nested_and_full(seed: int, content: int, classes: int) -> None:
    split = random_split(content, classes)
    smaller: set[str] = set()
    for shots in (1, 2, 4, 8, 16):
        chosen = few_shot(split, shots, seed, classes)
        assert len(set(chosen.identifiers)) == len(chosen) == shots * (classes - 1)
        assert smaller <= set(chosen.identifiers)
        held = [split.held[split.identifiers.index(identifier)] for identifier in chosen.identifiers]
        assert all(sum(label in labels for labels in held) >= shots for label in range(1, classes))
        smaller = set(chosen.identifiers)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8, 16]), st.randoms(use_true_random=False))
def test_order_of_the_split_does_not_matter(seed: int, shots: int, shuffler) -> None:
    split = random_split(0, 4, images=120)
    order = list(range(len(split)))
    shuffler.shuffle(order)
    shuffled = Labelled([split.held[index] for index in order], [split.identifiers[index] for index in order])
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
    with pytest.raises(ValueError, match="after 1 none of the 2 images is left for class 1; ask for at most 1"):
        few_shot(split, 2, 0, 3)
    with pytest.raises(ValueError, match="after 0 none of the 2 images is left for class 3; leave shots out"):
        few_shot(split, 1, 0, 4)


@pytest.mark.parametrize("shots", [0, -1])
def test_shots_are_positive(shots: int) -> None:
    with pytest.raises(ValueError, match=f"shots = {shots}"):
        few_shot(Labelled([{1}]), shots, 0, 1)


class ThreeClasses(FileDataset):
    """Masks of class indices, 255 for nothing."""

    name = "three_classes"
    title = "Three classes"
    classes = ("background", "one", "two")
    split_seed = 1
    metrics = ("iou",)
    encoding = indexed(3)
    steps = "from nowhere"
    layouts = (
        Layout(
            "folders",
            {split: (Folders((f"{split}/images",), (f"{split}/masks",)),) for split in ("train", "validation", "test")},
        ),
    )


@pytest.fixture
def three_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Split]:
    """Nine files a split; mask ``n`` holds the background, ignored pixels, and the classes n % 3 and (n // 3) % 3."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    for split in ("train", "validation", "test"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number in range(9):
            mask = np.zeros((12, 10), dtype=np.uint8)
            mask[0], mask[1], mask[2, :3] = number % 3, number // 3 % 3, 255
            Image.fromarray(np.full((12, 10, 3), 9 * number, dtype=np.uint8)).save(
                tmp_path / split / "images" / f"{number}.png"
            )
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{number}.png")
    return ThreeClasses().open(tmp_path)


def test_files_are_not_decoded_again_to_choose(three_classes, monkeypatch) -> None:
    train = three_classes["train"]
    assert [train.labels(index) for index in range(9)] == [Split.labels(train, index) for index in range(9)]
    assert train.labels(5) == {0, 1, 2} and train.labels(0) == {0}
    assert train.subset([5, 0]).labels(0) == {0, 1, 2}

    def no_decoding(self, index: int) -> np.ndarray:
        raise AssertionError("the inspection has counted the classes")

    monkeypatch.setattr(FileSplit, "mask", no_decoding)
    assert len(few_shot(train, 2, seed=0, num_classes=3)) == 4


def test_what_a_set_holds_is_in_manifest_and_evidence(three_classes) -> None:
    whole = evidence(three_classes)
    seen = set()
    for seed in range(5):
        splits = three_classes | {"train": few_shot(three_classes["train"], 1, seed, 3)}
        made = evidence(splits)
        assert made["images"] == {"train": 2, "validation": 9, "test": 9}
        assert {name for name in made["data"] if made["data"][name] != whole["data"][name]} == {"train"}
        lines = [" ".join(sample) for sample in manifest(splits)["train"]]
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == made["data"]["train"]
        assert [line.split(" ")[0] for line in lines] == list(splits["train"].identifiers)
        seen.add(made["data"]["train"])
    assert len(seen) > 1
