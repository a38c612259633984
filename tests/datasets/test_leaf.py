"""Leaf disease segmentation in every layout it is found in, and its masks, which are dark red on black."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.metrics import metrics_of
from bench.regime import resolve
from datasets import DatasetBroken, DatasetMissing, load

ORIGINAL = "leaf_disease_segmentation/orig_data"
AUGMENTED = "leaf_disease_segmentation/aug_data"
NUMBERS = {"train": range(10), "valid": range(20, 23)}
HELD_OUT = ("00006", "00009")


def spots(number: int) -> np.ndarray:
    """(30, 20) of 0 and 1, another one for each number."""
    mask = np.zeros((30, 20), dtype=np.uint8)
    mask[2 : 5 + number, 3:11] = 1
    return mask


def painted(mask: np.ndarray, colour: tuple[int, int, int], mode: str) -> Image.Image:
    if mode == "P":
        picture = Image.fromarray(mask).convert("P")
        picture.putpalette([0, 0, 0, *colour])
        return picture
    return Image.fromarray(mask[..., None] * np.array(colour, dtype=np.uint8)).convert(mode)


def plant(
    base: Path, *, colour: tuple[int, int, int] = (128, 0, 0), mode: str = "RGB", names: tuple[str, ...] = ("{:05d}",)
) -> Path:
    """A miniature of one of the archive's folders, ``orig_data`` or ``aug_data``, in ``base``."""
    for part, numbers in NUMBERS.items():
        images, masks = base / f"{part}_images", base / f"{part}_masks"
        for folder in (images, masks):
            folder.mkdir(parents=True)
        for number in numbers:
            for name in names:
                Image.new("RGB", (20, 30), (20, 160, number)).save(images / f"{name.format(number)}.jpg")
                painted(spots(number), colour, mode).save(masks / f"{name.format(number)}.png")
    return base


def assert_whole(root: Path) -> None:
    splits = load("leaf").open(root)
    assert {name: split.identifiers for name, split in splits.items()} == {
        "train": tuple(f"{number:05d}" for number in range(10) if f"{number:05d}" not in HELD_OUT),
        "validation": HELD_OUT,
        "test": ("00020", "00021", "00022"),
    }
    for split in splits.values():
        for sample in map(split.__getitem__, range(len(split))):
            assert sample.image.shape == (30, 20, 3)
            np.testing.assert_array_equal(sample.mask, spots(int(sample.identifier)))


@pytest.mark.parametrize(
    "place",
    [
        ORIGINAL,
        "orig_data",
        "leaf/orig_data",
        f"leaf/{ORIGINAL}",
        f"leaf_disease_segmentation/{ORIGINAL}",
        f"leaf-disease-segmentation-with-trainvalid-split/{ORIGINAL}",
        ORIGINAL.upper(),
    ],
)
def test_the_archive_wherever_it_is_unpacked(place: str, tmp_path: Path) -> None:
    plant(tmp_path / place)
    assert_whole(tmp_path)


def test_augmented_copies_are_never_used(tmp_path: Path) -> None:
    plant(tmp_path / AUGMENTED, names=("{:05d}", "{:05d}_2", "{:05d}_3"))
    for root in (tmp_path, tmp_path / AUGMENTED):
        with pytest.raises(DatasetMissing, match="holds nothing of it"):
            load("leaf").open(root)
    plant(tmp_path / ORIGINAL)
    assert_whole(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L"])
@pytest.mark.parametrize("colour", [(128, 0, 0), (255, 255, 255), (1, 1, 1)])
def test_any_colour_but_black_is_diseased(colour: tuple[int, int, int], mode: str, tmp_path: Path) -> None:
    plant(tmp_path / ORIGINAL, colour=colour, mode=mode)
    assert_whole(tmp_path)


def test_a_threshold_would_erase_the_published_masks() -> None:
    grey = np.asarray(painted(spots(0), (128, 0, 0), "P").convert("L"))
    assert set(np.unique(grey)) == {0, 38}


def test_leaves_without_a_spot_are_sound(tmp_path: Path) -> None:
    plant(tmp_path / ORIGINAL)
    Image.new("RGB", (20, 30)).save(tmp_path / ORIGINAL / "valid_masks" / "00021.png")
    assert not load("leaf").open(tmp_path)["test"].mask(1).any()


def test_leftovers_are_an_error(tmp_path: Path) -> None:
    plant(tmp_path / ORIGINAL)
    (tmp_path / ORIGINAL / "train_masks" / "00004.png").unlink()
    (tmp_path / ORIGINAL / "valid_images" / "00022.jpg").unlink()
    with pytest.raises(DatasetBroken) as raised:
        load("leaf").open(tmp_path)
    assert "images without a mask (1):\n  orig_data/train_images/00004.jpg\n" in str(raised.value)
    assert "masks without an image (1):\n  orig_data/valid_masks/00022.png\n" in str(raised.value)


@pytest.mark.parametrize("place", ["leaf", "leaf_disease_segmentation", ORIGINAL.split("/")[0] + "/" + ORIGINAL])
def test_lists_of_the_authors_win_and_may_carry_an_index(place: str, tmp_path: Path) -> None:
    base = tmp_path / place.removesuffix("/orig_data")
    plant(base / "orig_data")
    lists = {"train": range(1, 4), "val": (9, 5), "test": (21,)}
    for name, numbers in lists.items():
        part = "valid" if name == "test" else "train"
        rows = [
            f"{row},orig_data/{part}_images/{number:05d}.jpg,orig_data/{part}_masks/{number:05d}.png"
            for row, number in enumerate(numbers)
        ]
        (base / f"{name}.csv").write_text("\n".join([",image,label", *rows]))
    splits = load("leaf").open(tmp_path)
    assert {name: split.identifiers for name, split in splits.items()} == {
        "train": ("00001", "00002", "00003"),
        "validation": ("00009", "00005"),
        "test": ("00021",),
    }
    np.testing.assert_array_equal(splits["validation"].mask(1), spots(5))


def test_the_papers_recipe_and_counts() -> None:
    leaf = load("leaf")
    regime, _ = resolve(leaf.regime, {})
    assert (regime.epochs, regime.lr, regime.loss, regime.validation_metric) == (30, 3e-4, "structure", "iou")
    assert leaf.metrics[0] == "iou" and set(leaf.metrics) <= set(metrics_of(1))
    assert dict(leaf.published) == {"train": 398, "validation": 100, "test": 90}


def test_the_published_number_of_images_gives_the_papers_split(tmp_path: Path) -> None:
    for part, count in {"train": 498, "valid": 90}.items():
        for kind, suffix in {"images": "jpg", "masks": "png"}.items():
            folder = tmp_path / "orig_data" / f"{part}_{kind}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:05d}.{suffix}").touch()
    found = load("leaf").find(tmp_path)
    assert {split: len(pairs) for split, pairs in found.splits.items()} == dict(load("leaf").published)
