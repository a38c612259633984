"""Trans10K in both versions: folders, the ways their masks are stored, and masks that belong to neither."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from datasets import Dataset, DatasetBroken, DatasetMissing, load

SIZE = (24, 16)  # width, height
V1_COLOURS = [(0, 0, 0), (255, 0, 0), (255, 255, 255)]
V2_COLOURS = [
    (0, 0, 0), (120, 120, 70), (235, 255, 7), (6, 230, 230), (204, 255, 4), (120, 120, 120), (140, 140, 140),
    (255, 51, 7), (224, 5, 255), (204, 5, 255), (150, 5, 61), (4, 250, 7),
]  # fmt: skip
V1_FOLDERS = {
    "train": range(1, 5),
    "validation/easy": range(1, 3),
    "validation/hard": range(1, 4),
    "test/easy": range(1, 4),
    "test/hard": range(1, 3),
}
V2_FOLDERS = {"train": range(1, 5), "validation": range(5, 7), "test": range(7, 10)}


def labels(place: str, number: int, classes: int) -> np.ndarray:
    """Class indices (H, W), others for every file."""
    return np.random.default_rng([*place.encode(), number]).integers(0, classes, SIZE[::-1], dtype=np.uint8)


def indexed(mask: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def coloured(mask: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(colours, dtype=np.uint8)[mask])


def translucent(mask: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    picture = coloured(mask, colours)
    picture.putalpha(Image.fromarray(np.where(mask > 0, 128, 0).astype(np.uint8)))
    return picture


def plant(base: Path, folders: dict, classes: int, masks: str, draw) -> Path:
    """A miniature of a version in ``base``, its masks drawn by ``draw`` from class indices."""
    for place, numbers in folders.items():
        for folder in ("images", masks):
            (base / place / folder).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            Image.new("RGB", SIZE, (number, 90, 120)).save(base / place / "images" / f"{number}.jpg")
            draw(labels(place, number, classes)).save(base / place / masks / f"{number}_mask.png")
    return base


def plant_v1(base: Path, draw=lambda mask: coloured(mask, V1_COLOURS)) -> Path:
    return plant(base, V1_FOLDERS, 3, "masks", draw)


def plant_v2(base: Path, draw=lambda mask: indexed(mask, V2_COLOURS)) -> Path:
    return plant(base, V2_FOLDERS, 12, "masks_12", draw)


def assert_holds(splits: dict, expected: dict[str, list[tuple[str, str, int]]], classes: int) -> None:
    """Of every split the identifiers with the folder and number they stand for, and their masks."""
    assert {name: list(split.identifiers) for name, split in splits.items()} == {
        name: [identifier for identifier, _, _ in samples] for name, samples in expected.items()
    }
    for name, samples in expected.items():
        for index, (_, place, number) in enumerate(samples):
            sample = splits[name][index]
            np.testing.assert_array_equal(sample.mask, labels(place, number, classes))
            assert sample.mask.dtype == np.uint8
            assert abs(sample.image.mean(axis=(0, 1)) - (number, 90, 120)).max() < 4  # as JPEG leaves them


V1 = {
    "train": [(str(number), "train", number) for number in range(1, 5)],
    "validation": [
        *((f"easy-{number}", "validation/easy", number) for number in (1, 2)),
        *((f"hard-{number}", "validation/hard", number) for number in (1, 2, 3)),
    ],
    "easy": [(f"easy-{number}", "test/easy", number) for number in (1, 2, 3)],
    "hard": [(f"hard-{number}", "test/hard", number) for number in (1, 2)],
}
V2 = {split: [(str(number), split, number) for number in numbers] for split, numbers in V2_FOLDERS.items()}


@pytest.mark.parametrize("place", ["trans10k_v1", "Trans10K", "Trans10K/Trans10K", "trans10k_v1/Trans10K", "."])
def test_v1_is_found_and_keeps_levels_of_equal_numbers_apart(place: str, tmp_path: Path) -> None:
    plant_v1(tmp_path / "data" / place)
    assert_holds(load("trans10k_v1").open(tmp_path / "data"), V1, 3)


@pytest.mark.parametrize(
    "draw",
    [
        lambda mask: translucent(mask, V1_COLOURS),
        lambda mask: indexed(mask, V1_COLOURS),
        lambda mask: coloured(mask, [(0, 0, 0), (0, 255, 0), (255, 255, 255)]),
        lambda mask: Image.fromarray(np.array([0, 85, 255], dtype=np.uint8)[mask]),
    ],
    ids=["alpha", "palette", "another channel", "grey"],
)
def test_v1_masks_are_read_by_the_mean_of_their_channels(draw, tmp_path: Path) -> None:
    assert_holds(load("trans10k_v1").open(plant_v1(tmp_path, draw)), V1, 3)


def test_v1_palette_may_have_another_order(tmp_path: Path) -> None:
    def draw(mask: np.ndarray) -> Image.Image:
        return indexed(np.array([2, 0, 1], dtype=np.uint8)[mask], [(255, 0, 0), (255, 255, 255), (0, 0, 0)])

    assert_holds(load("trans10k_v1").open(plant_v1(tmp_path, draw)), V1, 3)


@pytest.mark.parametrize(
    "colours, values",
    [
        ([(0, 0, 0), (255, 255, 0), (255, 255, 255)], "a value of no class: 170"),
        ([(0, 0, 0), (1, 1, 1), (2, 2, 2)], "a value of no class: 1, 2"),
        ([(0, 0, 0), (255, 1, 0), (255, 255, 255)], "colours of no class, the first is (255, 1, 0)"),
        (V2_COLOURS[:3], "colours of no class, the first is (235, 255, 7)"),
    ],
    ids=["two channels", "indices", "almost red", "the other version"],
)
def test_v1_masks_of_other_colours_are_refused_by_file_and_value(colours, values: str, tmp_path: Path) -> None:
    plant_v1(tmp_path)
    coloured(labels("test/hard", 2, 3), colours).save(tmp_path / "test/hard/masks/2_mask.png")
    with pytest.raises(DatasetBroken) as raised:
        load("trans10k_v1").open(tmp_path)
    assert "test/hard/masks/2_mask.png: " in str(raised.value)
    assert f"have {values}" in str(raised.value)


@pytest.mark.parametrize(
    "place",
    [
        "trans10k_v2", "Trans10K_v2", "Trans10K-v2", "Trans10K_cls12", "trans10kcls12", "Trans10K",
        "trans10k_v2/Trans10K_cls12", ".",
    ],
)  # fmt: skip
def test_v2_is_found_under_its_names(place: str, tmp_path: Path) -> None:
    plant_v2(tmp_path / "data" / place)
    assert_holds(load("trans10k_v2").open(tmp_path / "data"), V2, 12)


@pytest.mark.parametrize(
    "draw",
    [
        lambda mask: indexed(mask, [(level, level, level) for level in range(0, 240, 20)]),
        lambda mask: Image.fromarray(mask),
        lambda mask: coloured(mask, V2_COLOURS),
        lambda mask: translucent(mask, V2_COLOURS),
    ],
    ids=["another palette", "grey", "colours", "alpha"],
)
def test_v2_masks_are_indices_or_the_palettes_exact_colours(draw, tmp_path: Path) -> None:
    assert_holds(load("trans10k_v2").open(plant_v2(tmp_path, draw)), V2, 12)


def test_v2_colours_would_not_survive_pillows_own_palette() -> None:
    picture = coloured(labels("train", 1, 12), V2_COLOURS)
    requantised = np.asarray(picture.convert("P"))
    assert (requantised != labels("train", 1, 12)).mean() > 0.5
    np.testing.assert_array_equal(load("trans10k_v2").encoding.decode(picture), labels("train", 1, 12))


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 11)))
def test_v2_colours_decode_as_a_table_says(mask: np.ndarray) -> None:
    table = {colour: label for label, colour in enumerate(V2_COLOURS)}
    picture = coloured(mask, V2_COLOURS)
    slow = [[table[picture.getpixel((x, y))] for x in range(picture.width)] for y in range(picture.height)]
    np.testing.assert_array_equal(load("trans10k_v2").encoding.decode(picture), slow)


@pytest.mark.parametrize(
    "picture, what",
    [
        (Image.new("RGB", SIZE, (120, 120, 71)), "384 pixels have colours of no class, the first is (120, 120, 71)"),
        (Image.new("RGB", SIZE, V1_COLOURS[1]), "384 pixels have colours of no class, the first is (255, 0, 0)"),
        (Image.new("L", SIZE, 12), "384 pixels have a value of no class: 12"),
        (Image.new("L", SIZE, 255), "384 pixels have a value of no class: 255"),
    ],
    ids=["a near colour", "the other version", "a thirteenth class", "no ignored value"],
)
def test_v2_masks_without_a_class_are_refused_by_file_and_value(picture, what: str, tmp_path: Path) -> None:
    plant_v2(tmp_path)
    picture.save(tmp_path / "test/masks_12/8_mask.png")
    with pytest.raises(DatasetBroken) as raised:
        load("trans10k_v2").open(tmp_path)
    assert f"test/masks_12/8_mask.png: {what}" in str(raised.value)
    assert str(raised.value).count("_mask.png") == 1


def test_both_versions_lie_in_one_folder(tmp_path: Path) -> None:
    base = tmp_path / "Trans10K"
    plant_v1(base)
    plant_v2(base)
    # Masks of v1 beside those of v2, as in copies of the second version.
    for place, numbers in V2_FOLDERS.items():
        (base / place / "masks").mkdir(exist_ok=True)
        for number in numbers:
            coloured(labels(place, number, 3), V1_COLOURS).save(base / place / "masks" / f"{number}_mask.png")
    assert_holds(load("trans10k_v1").open(tmp_path), V1, 3)
    assert_holds(load("trans10k_v2").open(tmp_path), V2, 12)


def test_masks_of_v1_do_not_stand_in_for_those_of_v2(tmp_path: Path) -> None:
    plant_v2(tmp_path)
    (tmp_path / "validation/masks_12").rename(tmp_path / "validation/masks")
    with pytest.raises(DatasetMissing, match=r"lacks validation/masks_12/\)(.|\n)*1YzAAMY8xfL9BMTIDU"):
        load("trans10k_v2").open(tmp_path)


def test_v1_needs_both_levels(tmp_path: Path) -> None:
    plant_v1(tmp_path)
    (tmp_path / "test/hard").rename(tmp_path / "test/harder")
    with pytest.raises(DatasetMissing, match=r"lacks test/hard/images/, test/hard/masks/\)(.|\n)*TransLAB\.html"):
        load("trans10k_v1").open(tmp_path)


def test_mask_names_end_in_mask(tmp_path: Path) -> None:
    plant_v2(tmp_path)
    (tmp_path / "train/masks_12/3_mask.png").rename(tmp_path / "train/masks_12/3_edge.png")
    with pytest.raises(DatasetBroken) as raised:
        load("trans10k_v2").open(tmp_path)
    assert "images without a mask (1):\n  train/images/3.jpg\n" in str(raised.value)
    assert "masks without an image (1):\n  train/masks_12/3_edge.png\n" in str(raised.value)


@pytest.mark.parametrize(
    "dataset, plant_it, folders, masks, colours",
    [
        (load("trans10k_v1"), plant_v1, V1_FOLDERS, "masks", V1_COLOURS),
        (load("trans10k_v2"), plant_v2, V2_FOLDERS, "masks_12", V2_COLOURS),
    ],
    ids=["v1", "v2"],
)
def test_inspection_counts_the_pixels_of_every_class(dataset: Dataset, plant_it, folders, masks, colours, tmp_path):
    looked = dataset.look(plant_it(tmp_path))
    for place, numbers in folders.items():
        for number in numbers:
            path = tmp_path / place / masks / f"{number}_mask.png"
            picture = Image.open(path).convert("RGB")
            seen = Counter(colours.index(picture.getpixel((x, y))) for y in range(SIZE[1]) for x in range(SIZE[0]))
            assert looked.encoding.count(looked.masks[path].levels) == seen


def test_category_names_are_those_of_the_papers_table() -> None:
    with (Path(__file__).parents[2] / "analysis" / "paper.csv").open(newline="", encoding="utf-8") as stream:
        keys = dict.fromkeys(row["our_metric"] for row in csv.DictReader(stream) if row["our_dataset"] == "trans10k_v2")
    assert load("trans10k_v2").classes == tuple(key.removeprefix("iou:") for key in keys if key.startswith("iou:"))


def test_counts_are_the_papers() -> None:
    v1, v2 = load("trans10k_v1").published, load("trans10k_v2").published
    assert (v1["train"], v1["validation"], v1["easy"] + v1["hard"]) == tuple(v2.values()) == (5000, 1000, 4428)
